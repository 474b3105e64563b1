"""What the children do: train small unlike systems as the command line would, and fail where they are told to."""

import dataclasses
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jingdu import cli
from jingdu.data.preprocess import Preprocess
from jingdu.engine import Recipe, Stage, distribute, train
from jingdu.engine import systems as ready
from jingdu.engine import training as engine_training
from tests.engine import systems
from tests.faults import faulty, shim

RESNET = {"network": "resnet20_cifar(width=4, depths=(1, 1), num_classes=10, in_channels=1)"}
VGG = {"network": "vgg11_bn(widths=(4, 4, 6, 6, 8, 12, 12), num_classes=10, in_channels=1)"}
ALEXNET = {"network": "alexnet_scenes(widths=(4, 6, 6, 6, 8, 12, 12))"}
GAN = {
    "generator": "gan_digits_generator(hidden=(24, 24))",
    "discriminator": "gan_digits_discriminator(hidden=(12, 12))",
}
BASE = Stage(networks=RESNET, preprocess=Preprocess(channels=1), batch_size=16, steps=24, lr=0.02, save_every=5)
PLAIN = dataclasses.replace(BASE, lr=0.1)
WIDE = {"batch_size": 4, "steps": 12, "lr": 0.01, "save_every": 3}

FAMILIES: dict[str, Recipe | Stage] = {
    "resnet": dataclasses.replace(
        BASE, augment=("resnet.pad_crop(padding=1)", "flip"), schedule="onecycle", weight_decay=1e-3, accumulate=2,
        evaluate_every=7, clip=1.0,
    ),
    "vgg": dataclasses.replace(
        BASE, networks=VGG, preprocess=Preprocess(size=32, resize=32, channels=1), precision="bf16", **WIDE
    ),
    "alexnet": dataclasses.replace(
        BASE, networks=ALEXNET, data="scenes(fields=('image', 'label'), count=60, test_count=20)",
        preprocess=Preprocess(size=64, resize=64), augment=("random_crop", "flip", "alexnet.pca_colour_shift"),
        schedule="onecycle", weight_decay=5e-4, decay="all", **WIDE,
    ),
    "gan": dataclasses.replace(
        BASE, system="gan.GAN(samples=40)", networks=GAN, optimizer="adam", lr=2e-3, betas=(0.5, 0.999), ema=0.9
    ),
    "ngram": Stage(
        method="fit", system="ngram.Counting", networks={"model": "ngram(order=2)"}, data="pydoc_topics", batch_size=8,
        save_every=3,
    ),
    "corridor": dataclasses.replace(BASE, system="reinforce", data="corridor", lr=2.0, steps=40, save_every=7),
    "two stages": Recipe(
        (
            dataclasses.replace(PLAIN, name="encoder", system="encoder", steps=16),
            dataclasses.replace(PLAIN, name="head", system="head", steps=20, workers=2),
        ),
        minutes=1, expect={},
    ),
    "two processes": dataclasses.replace(BASE, system="tower", optimizer="adamw", ema=0.9, lr=0.01),
}  # fmt: skip

COMMANDS = {
    "resnet": "resnet --override width=4 depths=(1,1) --steps 30 --save-every 100 --batch-size 16",
    "gan": "gan --steps 40 --save-every 1000 --batch-size 16 --system gan.GAN(samples=40)",
    "alexnet": "alexnet --steps 20 --save-every 1000 --batch-size 4 --override 'widths=(4,6,6,6,8,12,12)' "
    "--data \"scenes(fields=('image', 'label'), count=60, test_count=20)\"",
    "ngram": "ngram --preset english --batch-size 4 --save-every 1000",
}
"""The same as a user writes it."""

_OPEN = engine_training.open_source


def _open(text: str, split: str, stage: Stage, crop: Any = None) -> Any:
    if text == "corridor":
        return systems.Corridor(stage.seed)
    if text == "numbered":
        return faulty.numbered()
    data = _OPEN(text, split, stage, crop)
    return faulty.Bad(data, **faulty.BAD) if faulty.BAD and split == "train" else data


def warm() -> None:
    """Import and load once what all children need."""
    import tempfile

    import torch

    torch.set_num_threads(1)
    ready.READY |= {name.lower(): kind for name, kind in vars(systems).items() if isinstance(kind, type)}
    ready.READY |= {name.lower(): kind for name, kind in vars(faulty).items() if isinstance(kind, type)}
    engine_training.open_source = _open
    with tempfile.TemporaryDirectory() as folder:
        for name in ("resnet", "alexnet", "gan", "ngram"):
            stage = FAMILIES[name]
            short = stage if stage.method == "fit" else dataclasses.replace(stage, steps=1)
            train(short, Path(folder) / name, device="cpu", quiet=True)


def recipe_of(family: str, changes: dict[str, Any]) -> Recipe:
    """A family's recipe, with changed fields in all its stages."""
    found = FAMILIES[family]
    stages = found.stages if isinstance(found, Recipe) else (found,)
    return Recipe(tuple(dataclasses.replace(stage, **changes) for stage in stages), minutes=1, expect={})


def _as_program(function: Callable[[], Any]) -> int:
    """Run it as the command line runs a verb: one message, and the exit code."""

    def dispatch(words: list[str]) -> int:
        function()
        return 0

    cli._dispatch = dispatch
    return cli.main([])


def run(family: str, out: str, resume: bool = False, **changes: Any) -> int:
    """Train a family into a run folder."""
    recipe = recipe_of(family, changes)
    return _as_program(lambda: train(recipe, Path(out), device="cpu", quiet=True, resume=resume))


def fresh(family: str, out: str, changes: dict[str, Any]) -> int:
    """A new run."""
    return run(family, out, **changes)


def resumed(family: str, out: str, changes: dict[str, Any]) -> int:
    """Go on, or start where there is none."""
    return run(family, out, resume=True, **changes)


def command(words: list[str]) -> int:
    """The command line itself."""
    sys.argv = ["jingdu", *words]
    return cli.main()


def stopped(family: str, out: str, number: int, changes: dict[str, Any]) -> int:
    """Train, and end at the call `number` that changes the run folder."""
    shim.stop_at(Path(out), number)
    return run(family, out, resume=True, **changes)


def calls(family: str, out: str, room: bool, changes: dict[str, Any]) -> int:
    """Train, and print how many calls change the run folder, or how many of them need room."""
    seen = shim.counted(Path(out), shim.FULL if room else shim.CALLS)
    code = run(family, out, resume=True, **changes)
    print(seen.close())
    return code


def full(family: str, out: str, number: int, changes: dict[str, Any]) -> int:
    """Train with a disk that is full from the call `number` on that needs room."""
    shim.full_from(Path(out), number)
    return run(family, out, resume=True, **changes)


def flood(family: str, out: str, at: float, resume: bool) -> int:
    """One of several starters of one run, at the same moment."""
    import time

    while time.monotonic() < at:
        pass
    code = run(family, out, resume=resume)
    print(f"ended {time.monotonic() - at:.3f}")
    return code


FAULTY = {
    "resnet": "faultyclassification", "vgg": "faultyclassification", "alexnet": "faultyclassification",
    "gan": "faultygan", "ngram": "faultycounting", "two processes": "faultytower",
}  # fmt: skip


def bad(family: str, out: str, changes: dict[str, Any], where: str, value: str, step: int) -> int:
    """Train with a number that is not finite, from `step` on; in a job, in its last process."""
    if where == "input":
        if os.environ.get("RANK", "0") == str(int(os.environ.get("WORLD_SIZE", "1")) - 1):
            faulty.BAD = {"number": step, "value": float(value)}
        return run(family, out, **changes)
    system = f"{FAULTY[family]}(where={where!r}, value={value!r}, step={step})"
    return run(family, out, system=system, **changes)


def short(family: str, out: str, fault: dict[str, Any], changes: dict[str, Any]) -> int:
    """Train, or go on, with too little memory: `faulty.fake_limit` or `faulty.real_limit`, by its arguments; without
    a step there is too little to begin with."""
    if "step" not in fault:
        faulty.allow(**fault)
        return run(family, out, resume=True, **changes)
    begin = engine_training.Training.__init__

    def limited(self: engine_training.Training, *arguments: Any, **options: Any) -> None:
        begin(self, *arguments, **options)
        (faulty.fake_limit if "samples" in fault else faulty.real_limit)(self, **fault)

    engine_training.Training.__init__ = limited
    return run(family, out, resume=True, **changes)


def hostile(path: str, image: str) -> int:
    """Predict with weights that attack; print the peak of resident memory above what there was before, in bytes."""

    def resident(field: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(field)).split()[1]) * 1024

    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = resident("VmRSS")
    code = command(["predict", "resnet20_cifar", image, "--weights", path])
    print(f"peak {max(resident('VmHWM') - before, 1)}")
    return code


def replay(folder: str) -> int:
    """Do a step that failed again, as `jingdu doctor` does."""
    return command(["doctor", folder])


def _join(rank: int, size: int, port: int, seconds: float | None = None) -> None:
    """Be one of the processes that torchrun would start."""
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(size),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
    )  # fmt: skip
    if seconds is not None:
        distribute.GROUP_SECONDS = seconds


def process(rank: int, size: int, port: int, function: str, *arguments: Any) -> int:
    """One of the processes that train together: `function` with these arguments."""
    *_, changes = (found for found in arguments if isinstance(found, dict))
    _join(rank, size, port, changes.pop("group_seconds", None))
    return globals()[function](*arguments)


def ordered(out: str, workers: int, stop: int) -> int:
    """Fifty steps of a run that logs the ids of its samples; it dies after step `stop`, saved after each fifth one."""
    advance = engine_training.Training.advance

    def dying(self: engine_training.Training) -> dict[str, Any]:
        if self.step == stop > 0:
            os._exit(shim.STOPPED)
        return advance(self)

    engine_training.Training.advance = dying
    return run(
        "resnet", out, resume=True, system="numbered", data="numbered", augment=(), accumulate=1, steps=50,
        batch_size=15, save_every=5, workers=workers, evaluate_every=None, clip=None, schedule="constant",
    )  # fmt: skip
