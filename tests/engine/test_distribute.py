"""Several processes do the work of one: the same numbers, checkpoints that any number of them takes up, deaths named."""

import dataclasses
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from jingdu.data.preprocess import Preprocess
from jingdu.engine import Stage, read_log, train
from jingdu.engine import systems as engine_systems
from jingdu.engine import training as engine_training
from jingdu.engine.checkpoint import newest_checkpoint
from jingdu.engine.distribute import World, _is_connection, join
from jingdu.engine.launch import launch
from jingdu.errors import Interrupted, UsageError
from tests.engine import systems

RESNET = "resnet20_cifar(width=4, depths=(1, 1), num_classes=10, in_channels=1)"
BASE = Stage(
    system="tower", networks={"network": RESNET}, preprocess=Preprocess(channels=1), batch_size=30, steps=20,
    optimizer="adamw", lr=0.01, weight_decay=0.1, clip=0.5, ema=0.9, precision="float64", save_every=100,
)  # fmt: skip
GAN = dataclasses.replace(
    BASE, system="gan.GAN(samples=50)", clip=None, lr=2e-3,
    networks={
        "generator": "gan_digits_generator", "discriminator": "gan_digits_discriminator(keep=(1.0, 1.0))",
    },
)  # fmt: skip
NORMED = dataclasses.replace(BASE, system="classification", optimizer="sgd", ema=None)
PLAYED = dataclasses.replace(BASE, system="reinforce", data="corridor", batch_size=32, optimizer="sgd", lr=0.5)


def _corridor(text: str, split: str, stage: Stage, crop: Any = None) -> Any:
    return systems.Corridor(stage.seed) if text == "corridor" else OPEN(text, split, stage, crop)


OPEN = engine_training.open_source


def run(stage: Stage, out: str, parallel: str = "ddp", resume: bool = False, stop: int | None = None) -> str:
    """Train in this process, or in each of a group; `stop` ends it after that step, saved."""
    engine_systems.READY |= {"tower": systems.Tower, "reinforce": systems.Reinforce}
    engine_training.open_source = _corridor
    advance = engine_training.Training.advance

    def stopping(self: engine_training.Training) -> dict[str, Any]:
        values = advance(self)
        if self.step == stop and self.world.rank == self.world.size - 1:  # one process hears the signal
            os.kill(os.getpid(), signal.SIGTERM)
        return values

    engine_training.Training.advance = stopping
    try:
        train(stage, Path(out), device="cpu", quiet=True, parallel=parallel, resume=resume)
        return ""
    except Interrupted as error:
        return str(error)
    finally:
        engine_training.Training.advance = advance
        engine_training.open_source = OPEN


def difference(a: Path, b: Path, without: str = "$.") -> float:
    """The largest difference between the weights, averages and logged values of two runs."""
    worst = 0.0
    for name in ("model.safetensors", "ema.safetensors"):
        files = [newest_checkpoint(run) / name for run in (a, b)]
        if not any(file.exists() for file in files):
            continue
        first, second = map(load_file, files)
        assert first.keys() == second.keys()
        chosen = [key for key in first if not re.search(without, key)]
        worst = max([worst, *((first[key] - second[key]).abs().max().item() for key in chosen)])
    for one, two in zip(read_log(a), read_log(b), strict=True):
        assert one.keys() == two.keys()
        if "eval" not in one:
            worst = max([worst, *(abs(one[key] - two[key]) for key in one)])
    return worst


@pytest.mark.parametrize(("stage", "size", "parallel", "accumulate"), [
    pytest.param(BASE, 2, "ddp", 1, id="ddp-2"),
    pytest.param(BASE, 2, "ddp", 2, id="ddp-2-accumulate"),
    pytest.param(BASE, 4, "ddp", 1, id="ddp-4"),
    pytest.param(BASE, 2, "fsdp", 1, id="fsdp-2"),
    pytest.param(BASE, 4, "fsdp", 2, id="fsdp-4-accumulate"),
    pytest.param(GAN, 2, "ddp", 1, id="gan-ddp"),
    pytest.param(GAN, 2, "fsdp", 1, id="gan-fsdp"),
    pytest.param(GAN, 4, "ddp", 1, id="gan-ddp-4"),
    pytest.param(GAN, 4, "fsdp", 1, id="gan-fsdp-4"),
    pytest.param(PLAYED, 2, "ddp", 1, id="rollout-ddp"),
    pytest.param(PLAYED, 2, "fsdp", 1, id="rollout-fsdp"),
])  # fmt: skip
def test_twenty_steps_equal_one_process(
    stage: Stage, size: int, parallel: str, accumulate: int, tmp_path: Path
) -> None:
    """The one process cuts the batch into the same parts, so noise and logged values are the same too."""
    mine = dataclasses.replace(stage, accumulate=accumulate)
    launch(run, size, mine, str(tmp_path / "many"), parallel)
    run(dataclasses.replace(stage, accumulate=size * accumulate), str(tmp_path / "one"))
    assert difference(tmp_path / "one", tmp_path / "many") < 1e-9
    manifest = json.loads((newest_checkpoint(tmp_path / "many") / "manifest.json").read_text())
    assert manifest["processes"] == size


def test_parts_of_a_batch_equal_the_batch(tmp_path: Path) -> None:
    """Without noise the parts do not matter: two processes are one process with the whole batch."""
    launch(run, 2, BASE, str(tmp_path / "many"))
    run(BASE, str(tmp_path / "one"))
    assert difference(tmp_path / "one", tmp_path / "many") < 1e-9


def test_batch_norm_normalises_each_part(tmp_path: Path) -> None:
    """Its running averages are of each process's parts, and then their mean: other numbers, close to the one's."""
    launch(run, 2, NORMED, str(tmp_path / "many"))
    run(dataclasses.replace(NORMED, accumulate=2), str(tmp_path / "one"))
    assert difference(tmp_path / "one", tmp_path / "many", without="running_|num_batches") < 1e-9
    one, many = (load_file(newest_checkpoint(tmp_path / name) / "model.safetensors") for name in ("one", "many"))
    for name in (name for name in one if "running_mean" in name):
        assert (one[name] - many[name]).norm() < 0.2 * one[name].norm()


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize("stage", [pytest.param(BASE, id="tower"), pytest.param(GAN, id="gan")])
def test_saved_by_two_goes_on_with_one_and_four(stage: Stage, parallel: str, tmp_path: Path) -> None:
    """The batch is cut into four parts by all of them, so that a GAN's noise is the same."""
    whole = dataclasses.replace(stage, accumulate=4)
    run(whole, str(tmp_path / "whole"))
    stopped = launch(run, 2, dataclasses.replace(stage, accumulate=2), str(tmp_path / "1"), parallel, False, 11)
    assert all("after step 11" in text and "--resume" in text for text in stopped)
    shutil.copytree(tmp_path / "1", tmp_path / "4")
    run(whole, str(tmp_path / "1"), parallel, True)
    launch(run, 4, dataclasses.replace(stage, accumulate=1), str(tmp_path / "4"), parallel, True)
    for size in (1, 4):
        assert difference(tmp_path / "whole", tmp_path / str(size)) < 1e-9


def _fail_on(rank: int) -> list[Any]:
    """What each process sees when one of them cannot begin."""
    with join() as world:

        def begin() -> int:
            if world.rank == rank:
                raise UsageError("no such data")
            return 7

        try:
            return [world.together(begin)]
        except Exception as error:
            return [type(error).__name__, str(error), error.exit_code, error.silent, world.from_first(lambda: "told")]


def test_one_process_that_cannot_begin_stops_all() -> None:
    first, second = launch(_fail_on, 2, 1)
    assert first == ["JingduError", "rank 1: no such data", 2, True, "told"]
    assert second == ["UsageError", "no such data", 2, False, "told"]
    assert launch(_fail_on, 2, 5) == [[7], [7]]


def test_more_processes_than_samples_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="batch_size must be at least 4"):
        launch(run, 2, dataclasses.replace(BASE, batch_size=3, accumulate=2), str(tmp_path / "R"))


def test_alone_everything_is_local() -> None:
    world = World()
    assert world.gather(3) == [3] and world.sum([1.0, 2.0]) == [1.0, 2.0] and world.from_first(lambda: "a") == "a"
    assert world.share(10) == slice(0, 10) and not world.any(False) and world.any(True)
    with pytest.raises(UsageError, match="ddp or fsdp"), join("pipeline"):
        pass


def _torchrun(out: Path, *options: str, steps: int, size: int = 2, words: str = "") -> "subprocess.Popen[str]":
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}", *options),
        *("-m", "jingdu", "train", *shlex.split(words or RESNET_WORDS), "--out", str(out), "--steps", str(steps)),
        *("--save-every", "5", "--device", "cpu"),
    ]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


RESNET_WORDS = "resnet --batch-size 8"
GAN_WORDS = "gan --batch-size 32 --precision float64 --system gan.GAN(samples=50) --resume --accumulate"


@pytest.mark.slow
def test_the_command_under_torchrun(tmp_path: Path) -> None:
    """A GAN begun by two processes, one of which is killed, ends with one and with four as with one alone."""
    words = [*shlex.split(GAN_WORDS), "4", "--steps", "150", "--save-every", "5", "--device", "cpu", "--quiet"]
    alone = [sys.executable, "-m", "jingdu", "train", *words]
    subprocess.run([*alone, "--out", tmp_path / "whole"], check=True, capture_output=True)
    job = _torchrun(tmp_path / "1", steps=150, words=f"{GAN_WORDS} 2")
    _wait_for(lambda: newest_checkpoint(tmp_path / "1") is not None)
    os.kill(_worker(1, job.pid), signal.SIGKILL)
    _, said = job.communicate(timeout=60)
    assert job.returncode != 0 and "rank 1" in said
    shutil.copytree(tmp_path / "1", tmp_path / "4")
    subprocess.run([*alone, "--out", tmp_path / "1"], check=True, capture_output=True)
    job = _torchrun(tmp_path / "4", steps=150, size=4, words=f"{GAN_WORDS} 1")
    _, said = job.communicate(timeout=120)
    assert job.returncode == 0 and "resumed from" in said, said
    for size in (1, 4):
        assert difference(tmp_path / "whole", tmp_path / str(size)) < 1e-9


def test_what_gloo_says_of_a_lost_process_is_known() -> None:
    for text in ("Application timeout caused pair closure", "Connection closed by peer", "[enforce fail] timed out"):
        assert _is_connection(RuntimeError(text)), text
    assert not _is_connection(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_a_process_that_dies_before_they_met(tmp_path: Path) -> None:
    """The other waits for it, and still ends when the launcher asks: at once, not when the group's time is up."""
    job = _torchrun(tmp_path / "R", steps=100_000)

    def met() -> list[int]:
        """The children that wait for each other, or train."""
        try:
            return [_worker(rank, job.pid) for rank in (0, 1)]
        except AssertionError:
            return []

    _wait_for(met)
    os.kill(met()[1], signal.SIGSTOP)  # it never comes
    time.sleep(8)
    os.kill(met()[1], signal.SIGKILL)
    killed = time.monotonic()
    job.communicate(timeout=60)
    assert job.returncode != 0 and time.monotonic() - killed < 15


def _worker(rank: int, launcher: int) -> int:
    """The process of a rank, by its environment."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_bytes().split(b"\0")
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if f"RANK={rank}".encode() in environment and parent == launcher:
            return int(folder.name)
    raise AssertionError(f"no process has rank {rank}")


def _wait_for(what: Any, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.05)


def test_a_killed_process_ends_the_job_and_is_named(tmp_path: Path) -> None:
    out = tmp_path / "R"
    job = _torchrun(out, steps=100_000)
    _wait_for(lambda: newest_checkpoint(out) is not None)
    victim = _worker(1, job.pid)
    os.kill(victim, signal.SIGKILL)
    killed = time.monotonic()
    _, said = job.communicate(timeout=60)
    assert time.monotonic() - killed < 15
    assert job.returncode != 0
    assert re.search(rf"rank 1 \(process {victim} was killed or has died\).*--resume", said), said


def test_max_restarts_resumes(tmp_path: Path) -> None:
    out = tmp_path / "R"
    job = _torchrun(out, "--max-restarts=2", steps=250)  # more than it can do before it is killed
    _wait_for(lambda: newest_checkpoint(out) is not None)
    os.kill(_worker(1, job.pid), signal.SIGKILL)
    _, said = job.communicate(timeout=120)
    assert job.returncode == 0, said
    assert "resumed from" in said
    assert [line["step"] for line in read_log(out)][:-1] == list(range(1, 251))
    assert torch.isfinite(
        torch.cat([t.flatten() for t in load_file(newest_checkpoint(out) / "model.safetensors").values()])
    ).all()
