"""The one loop that trains every system, and the run folder that it leaves.

RUN/recipe.json      what is being trained, all stages
RUN/log.jsonl        one line a step, one an evaluation
RUN/checkpoints/     step-N: model.safetensors, model.json, state.safetensors, manifest.json; tokenizer.json for text
RUN/STAGE/           an earlier stage of a recipe with several is a run folder of its own
RUN/result.json      the final measures: written last, so it says that the run is complete
"""

import contextlib
import dataclasses
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from torch import nn

import jingdu
from jingdu.data.preprocess import Preprocess
from jingdu.engine import parity
from jingdu.engine.checkpoint import newest_checkpoint, room_for, seal, unseal, write_checkpoint, write_whole
from jingdu.engine.contracts import Recipe, Stage
from jingdu.engine.distribute import World, join
from jingdu.engine.run import Log, NoLog, Progress, Signals, locked, say
from jingdu.engine.state import read_tree
from jingdu.engine.systems import build_system
from jingdu.engine.training import Training, device_of, load_weights
from jingdu.engine.trouble import explain
from jingdu.errors import Interrupted, Refused, UsageError

_MAY_CHANGE = ("accumulate", "checkpoint_activations", "keep", "save_every", "workers")
"""Fields of a stage that a resumed run may have anew: they do not say what is trained, on what, or how fast."""


@dataclass(frozen=True)
class Run:
    """A finished run: its folder and the last stage's final measures."""

    folder: Path
    metrics: dict[str, float]


# Stages and recipes ------------------------------------------------------------------------------


def _about(stage: Stage, world: World) -> dict[str, Any]:
    return {
        "jingdu": jingdu.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "processes": world.size,
        "seed": stage.seed,
    }


def _describe(recipe: Recipe) -> str:
    return json.dumps([dataclasses.asdict(stage) for stage in recipe.stages], indent=1)


def stage_from_json(table: Mapping[str, Any]) -> Stage:
    """A stage as `recipe.json` holds it."""
    values = dict(table)
    values["preprocess"] = Preprocess(
        **{k: tuple(v) if isinstance(v, list) else v for k, v in values["preprocess"].items()}
    )
    values["augment"], values["betas"] = tuple(values["augment"]), tuple(values["betas"])
    return Stage(**values)


def read_recipe(run: Path) -> tuple[Stage, ...]:
    """The stages of a run folder. Raises Refused where there is no readable recipe."""
    try:
        return tuple(stage_from_json(table) for table in json.loads((run / "recipe.json").read_text("utf-8")))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise Refused(f"{run}: no run folder with a readable recipe.json ({error})") from None


def train(
    recipe: Recipe | Stage, out: Path, *, device: str = "auto", resume: bool = False, quiet: bool = False,
    tensorboard: bool = False, parallel: str | None = None,
) -> Run:  # fmt: skip
    """Train a recipe into the run folder `out`, which all processes of a job see.

    With `resume`, go on from the newest intact checkpoint, or start where there is none; a finished
    run is left as it is. `parallel`, ddp or fsdp, says how the processes that torchrun has started divide the work.
    Raises UsageError (a folder that holds a run or something else), Refused (a damaged checkpoint, a full disk),
    TrainingFailed (a loss that is not finite, no memory), Interrupted (a signal; or another process died).
    """
    recipe = Recipe((recipe,), minutes=0, expect={}) if isinstance(recipe, Stage) else recipe
    out = Path(out)
    # torchrun has started the processes again after a fault
    resume = resume or int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    with join(parallel, device) as world, contextlib.ExitStack() as held, Signals() as signals:

        def enter() -> torch.device:
            place = device_of(world.device)
            if world.first:
                _refuse_foreign(out)
                held.enter_context(locked(out))
                _enter(out, recipe, resume)
            return place

        try:
            place = world.together(enter)
        except KeyboardInterrupt:
            raise Interrupted(f"stopped before the first step; {_again(out)}") from None
        quiet = quiet or not world.first
        crew = f", {world.size} processes ({world.parallel})" if world.size > 1 else ""
        say(f"device: {place}, {torch.get_num_threads()} threads{crew}; run folder: {out}", quiet)
        previous: dict[str, Any] = {}
        metrics: dict[str, float] = {}
        for stage in recipe.stages:
            last = stage is recipe.stages[-1]
            folder = out if last else out / stage.name
            training = None
            try:
                training = world.together(lambda stage=stage: Training(stage, place, previous, world))
                metrics = _run_stage(training, folder, resume, quiet, tensorboard, signals)
                if not last:
                    if world.first:
                        _write(folder / "recipe.json", json.dumps([dataclasses.asdict(stage)], indent=1).encode())
                    world.wait()
                    previous[stage.name] = _load_stage(folder, stage, previous, place)
            except (Interrupted, KeyboardInterrupt) as stop:
                said = str(stop) or "stopped at once: what followed the last checkpoint is left out"
                again = Interrupted(f"{said}; {_again(out)}")
                again.silent = not world.first
                raise again from None
            finally:
                if training is not None:
                    training.stream.close()
        return Run(out, metrics)


def _again(out: Path) -> str:
    return f"go on with --resume --out {out}"


def _write(path: Path, content: bytes) -> None:
    with room_for(path, len(content)):
        write_whole(path, content)


def _refuse_foreign(out: Path) -> None:
    """Raises UsageError for a folder of other things, before anything is put into it."""
    found = {path.name for path in out.iterdir()} if out.is_dir() else set()
    # The names that a run begins with; of one that was killed there may be no more.
    if found and not {"recipe.json", "lock"} & found:
        raise UsageError(f"{out} is not empty and holds no run: choose another --out")


def _enter(out: Path, recipe: Recipe, resume: bool) -> None:
    """Begin the run in its locked folder, or check that it may be continued with this recipe.

    A folder whose run failed before its first step (data that is not there) holds no run yet.
    """
    described = _describe(recipe)
    if next(out.rglob("log.jsonl"), None) is not None:
        if not resume:
            raise UsageError(f"{out} holds a run already: go on with --resume, or choose another --out")
        # Both as they are in the file: a list is as good as a tuple.
        before, now = (json.loads(text) for text in (_describe(Recipe(read_recipe(out), 0, {})), described))
        changed = [
            f"{new['name']}.{key}: {old.get(key)!r} -> {value!r}"
            for old, new in zip(before, now, strict=False)
            for key, value in new.items()
            if old.get(key) != value and key not in _MAY_CHANGE
        ]
        if changed or len(before) != len(now):
            raise UsageError(f"{out} was started with another recipe ({'; '.join(changed) or 'other stages'})")
    _write(out / "recipe.json", described.encode())


def _run_stage(
    training: Training, folder: Path, resume: bool, quiet: bool, tensorboard: bool, signals: Signals
) -> dict[str, float]:
    stage, world = training.stage, training.world

    def choose() -> str | None:
        with room_for(folder, 0):
            folder.mkdir(exist_ok=True)
        found = newest_checkpoint(folder) if resume else None
        return found and str(found)

    checkpoint = world.from_first(choose)
    if checkpoint is not None:
        world.together(lambda: training.load(Path(checkpoint)))
        say(f"resumed from {checkpoint} (step {training.step} of {training.total})", quiet)
    result = folder / "result.json"
    trained = checkpoint is not None and training.step >= training.total
    if trained and (measured := world.from_first(lambda: _finished(result))) is not None:
        say("this run is finished; nothing to do", quiet)
        return measured

    def save() -> None:
        files = training.files()
        world.from_first(
            lambda: str(
                write_checkpoint(folder / "checkpoints", training.step, files, stage.keep, _about(stage, world))
            )
        )

    log = Log(folder, after=training.step, tensorboard=tensorboard) if world.first else NoLog()
    progress = Progress(stage.name, training.total, training.step, quiet)
    saved_at = training.step if checkpoint is not None else -1
    try:
        while training.step < training.total:
            signals.stepping = True
            values = training.advance()
            stopped = world.any(signals.received is not None)
            log.write({"step": training.step, "order": training.step, **values})
            progress.step(training.step, values)
            done = training.step >= training.total
            if stage.evaluate_every and training.step % stage.evaluate_every == 0 and not (done or stopped):
                log.write({"step": training.step, "order": training.step, "eval": training.evaluate()})
            if training.step % stage.save_every == 0 or done or stopped:
                save()
                saved_at = training.step
            if stopped:
                raise Interrupted(f"stopped after step {training.step} and saved")
        if saved_at != training.step:
            save()
        signals.stepping = False  # saved: from here on there is nothing to finish
        if world.any(signals.received is not None):
            raise Interrupted(f"stopped after step {training.step} and saved")
        metrics = training.evaluate()
        # Logged after every step's order, and dropped again should the run be killed before its result.
        log.write({"step": training.step, "order": training.step + 1, "eval": metrics})
        if world.first:
            _write(result, seal({"metrics": metrics, "steps": training.step}))
        world.wait()
        return metrics
    except (ArithmeticError, MemoryError, RuntimeError) as error:
        told = explain(training, folder, error)
        if told is None:
            raise
        raise told from None
    finally:
        signals.stepping = False
        progress.close()
        log.close()


def _finished(result: Path) -> dict[str, float] | None:
    """The final measures of a run; None where they are not there, or damaged, so that they are taken again."""
    if not result.exists():
        return None
    try:
        return unseal(result)["metrics"]
    except (Refused, KeyError) as error:
        say(f"warning: {error}: measured again")
        return None


def load_system(run: Path, device: str = "cpu") -> Any:
    """The trained System or Fitted of a run folder, in eval mode, with averaged weights where there are some."""
    run = Path(run)
    place, last = torch.device(device), read_recipe(run)[-1]
    return _load_stage(run, last, load_earlier(run, last, place), place)


def load_earlier(folder: Path, stage: Stage, device: torch.device) -> dict[str, Any]:
    """The finished stages before `stage`, whose folder this is: the run's own, or one in it."""
    run = folder if (folder / "recipe.json").exists() else folder.parent
    previous: dict[str, Any] = {}
    for before in takewhile(lambda other: other.name != stage.name, read_recipe(run)):
        previous[before.name] = _load_stage(run / before.name, before, previous, device)
    return previous


def _load_stage(folder: Path, stage: Stage, previous: Mapping[str, Any], device: torch.device) -> Any:
    checkpoint = newest_checkpoint(folder)
    if checkpoint is None:
        raise Refused(f"{folder}: this run has no checkpoint yet")
    model = json.loads((checkpoint / "model.json").read_text("utf-8"))
    from jingdu import canon

    networks = {name: canon.create(card["variant"], **card["overrides"]) for name, card in model["networks"].items()}
    system = build_system(stage, networks, previous)
    averaged = checkpoint / "ema.safetensors"
    file = averaged if averaged.exists() else checkpoint / "model.safetensors"
    try:
        if not isinstance(system, nn.Module):
            system.load_state_dict(read_tree(file))
            return system
        load_weights(system, file)
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        said = " ".join(str(error).split())
        raise Refused(f"{file}: it is not of this system ({type(error).__name__}: {said})") from error
    parity.check_all({name: getattr(system, name) for name in networks}, checkpoint)
    return system.to(device).eval()
