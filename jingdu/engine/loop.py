"""The one loop that trains every system, and the run folder that it leaves.

RUN/recipe.json      what is being trained, all stages
RUN/log.jsonl        one line a step, one an evaluation
RUN/checkpoints/     step-N: model.safetensors, model.json, state.safetensors, manifest.json
RUN/STAGE/           an earlier stage of a recipe with several is a run folder of its own
RUN/result.json      the final measures: written last, so it says that the run is complete
"""

import copy
import dataclasses
import json
import math
import platform
from collections.abc import Callable, Iterable, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

import jingdu
from jingdu.data import open_data
from jingdu.data.preprocess import Preprocess
from jingdu.engine.checkpoint import newest_checkpoint, write_checkpoint, write_whole
from jingdu.engine.contracts import Batch, Recipe, Rollout, Stage, System
from jingdu.engine.optimise import apply_schedule, make_optimizer, make_schedule
from jingdu.engine.run import Log, Progress, Signals, locked, say
from jingdu.engine.state import read_tree, rng_state, set_rng_state, tree_bytes
from jingdu.engine.stream import Play, Stream, evaluation_batches
from jingdu.engine.systems import build_networks, build_system, resolve
from jingdu.errors import Interrupted, JingduError, Refused, TrainingFailed, UsageError
from jingdu.names import Call


@dataclass(frozen=True)
class Run:
    """A finished run: its folder and the last stage's final measures."""

    folder: Path
    metrics: dict[str, float]


def device_of(name: str = "auto") -> torch.device:
    """`auto` is cuda, then mps, then cpu. A device that is asked for and absent is a UsageError."""
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, there in present.items() if there))
    kind = name.partition(":")[0]
    if not present.get(kind, False):
        raise UsageError(f"device {name!r} is not on this machine: use {', '.join(k for k in present if present[k])}")
    return torch.device(name)


def functions(calls: Iterable[str], home: str) -> list[Callable[..., Any]]:
    """Functions named in a recipe: `paper.function(arg=...)`, or a plain name of the module `home`."""
    import importlib

    found = []
    for text in calls:
        call = Call.parse(text)
        function = resolve(call.name) if "." in call.name else getattr(importlib.import_module(home), call.name, None)
        if function is None:
            raise UsageError(f"no function {call.name!r} in {home}; a paper's is written paper.function")
        found.append(partial(function, **call.arguments) if call.arguments else function)
    return found


def to_device(batch: Batch, device: torch.device, stage: Stage) -> Batch:
    def move(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if stage.channels_last and value.ndim == 4:
            value = value.contiguous(memory_format=torch.channels_last)
        if stage.precision == "float64" and value.is_floating_point():
            value = value.double()
        return value.to(device)

    return {name: move(value) for name, value in batch.items()}


def parts(batch: Batch, count: int) -> list[Batch]:
    """A batch cut into `count` parts of nearly equal size, for accumulation."""
    if count == 1:
        return [batch]
    size = len(next(iter(batch.values())))
    if size < count:
        raise UsageError(f"accumulate={count} is more than the {size} samples of a batch")
    bounds = [size * i // count for i in range(count + 1)]
    return [{name: value[low:high] for name, value in batch.items()} for low, high in pairwise(bounds)]


@contextmanager
def _frozen_statistics(module: nn.Module) -> Any:
    """Batch norms that normalise by the batch but leave their running averages alone."""
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    before = [(m.momentum, m.num_batches_tracked.clone()) for m in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(count)


def checkpoint_activations(system: nn.Module) -> int:
    """Recompute every child of a Sequential or ModuleList in the backward pass; returns how many.

    A recomputed batch norm must not count its batch twice, so its averages stand still then.
    """
    blocks = [child for m in system.modules() if isinstance(m, nn.Sequential | nn.ModuleList) for child in m.children()]
    blocks = [block for block in blocks if any(True for _ in block.children())]
    for block in blocks:
        forward = block.forward

        def recomputed(*args: Any, _forward: Any = forward, _block: nn.Module = block) -> Any:
            if not torch.is_grad_enabled():
                return _forward(*args)
            contexts = lambda: (nullcontext(), _frozen_statistics(_block))  # noqa: E731
            return recompute(_forward, *args, use_reentrant=False, context_fn=contexts)

        block.forward = recomputed  # the instance's own forward: keys and classes stay as they are
    return len(blocks)


class Training:
    """One stage in progress: system, optimisers, stream, averages; its whole state can be saved."""

    def __init__(self, stage: Stage, device: torch.device, previous: Mapping[str, Any]):
        self.stage, self.device = stage, device
        torch.manual_seed(stage.seed)
        crop = functions([stage.crop], "jingdu.data.augment")[0] if stage.crop else None
        source = _open(stage.data, "train", stage, crop)
        self.data = source
        self.is_fit = stage.method == "fit"
        self.system = build_system(stage, build_networks(stage, source), previous)
        augment = tuple(functions(stage.augment, "jingdu.data.augment"))
        self.stream: Stream | Play = (
            Play(source)
            if isinstance(source, Rollout)
            else Stream(
                source, stage.batch_size, stage.seed, augment, stage.preprocess, stage.workers, shuffle=not self.is_fit
            )
        )
        if self.is_fit:
            self.total = self.system.passes * self.stream.batches_per_epoch
        else:
            if (stage.steps is None) == (stage.epochs is None):
                raise UsageError(f"stage {stage.name!r}: give either steps or epochs")
            per_epoch = self.stream.batches_per_epoch
            self.total = stage.steps if stage.steps is not None else max(round((stage.epochs or 0) * per_epoch), 1)
            self._prepare_gradients()
        self.step = 0

    def _prepare_gradients(self) -> None:
        stage, system = self.stage, self.system
        system.to(self.device)
        if stage.channels_last:
            system.to(memory_format=torch.channels_last)
        if stage.checkpoint_activations:
            checkpoint_activations(system)
        self.optimizers, self.schedules, self.peaks = {}, {}, {}
        for objective in system.objectives:
            changed = dataclasses.replace(stage, **stage.per_objective.get(objective.name, {}))
            self.optimizers[objective.name] = make_optimizer(changed, system, objective)
            self.schedules[objective.name] = make_schedule(changed.schedule)
            self.peaks[objective.name] = changed.lr
        self.average: System | None = copy.deepcopy(system).requires_grad_(False) if stage.ema is not None else None
        if stage.compile:
            system.compile()

    # One step ------------------------------------------------------------------------------------

    def advance(self) -> dict[str, Any]:
        """Do the next step; returns what to log."""
        values = self._fit_step() if self.is_fit else self._gradient_step()
        self.step += 1
        return values

    def _fit_step(self) -> dict[str, Any]:
        number, place = divmod(self.step, self.stream.batches_per_epoch)
        values = self.system.observe(self.stream.next(), number)
        if place == self.stream.batches_per_epoch - 1:
            self.system.end_pass(number)
        return values

    def _gradient_step(self) -> dict[str, Any]:
        self.system.train()
        logged: dict[str, Any] = {}
        batch: Batch | None = None
        objectives = self.system.objectives
        for objective in objectives:
            if self.step % objective.every:
                continue
            schedule = self.schedules[objective.name](self.step, self.total, self.stream.batches_per_epoch)
            lr = apply_schedule(self.optimizers[objective.name], schedule, self.peaks[objective.name])
            for _ in range(objective.updates):
                if objective.fresh or batch is None:
                    batch = to_device(self.stream.next(self.system), self.device, self.stage)
                values = self._update(objective, batch, many=len(objectives) > 1)
            prefix = f"{objective.name}." if len(objectives) > 1 else ""
            logged |= {f"{prefix}{name}": value for name, value in {**values, "lr": lr}.items()}
        return logged

    def _update(self, objective: Any, batch: Batch, many: bool) -> dict[str, Any]:
        """One update by one objective: backward over the parts, check, clip, step, averages."""
        stage, system = self.stage, self.system
        optimizer = self.optimizers[objective.name]
        mine = [p for group in optimizer.param_groups for p in group["params"]]
        if many:  # the other players' weights get no gradient, and their backward work is saved
            owned = set(map(id, mine))
            others = [p for p in system.parameters() if id(p) not in owned and p.requires_grad]
            for p in others:
                p.requires_grad_(False)
        optimizer.zero_grad(set_to_none=True)
        total, values = 0.0, {}
        whole = len(next(iter(batch.values())))
        autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=stage.precision == "bf16")
        for part in parts(batch, stage.accumulate):
            share = len(next(iter(part.values()))) / whole
            with autocast:
                loss, found = system(part, objective.name)
            (loss * share if share != 1 else loss).backward()
            total += share * loss.item()
            for name, value in found.items():
                number = value.item() if isinstance(value, Tensor) else float(value)
                values[name] = values.get(name, 0.0) + share * number
        grads = [p.grad for p in mine if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(grads).item()
        if not (math.isfinite(total) and math.isfinite(norm)):
            raise FloatingPointError(f"loss {total}, gradient norm {norm} of objective {objective.name!r}")
        if stage.clip is not None and norm > stage.clip:
            torch._foreach_mul_(grads, stage.clip / (norm + 1e-6))
        optimizer.step()
        if many:
            for p in others:
                p.requires_grad_(True)
        system.after_update(objective.name)
        if self.average is not None and objective is system.objectives[-1]:
            average(self.average, system, stage.ema or 0.0)
        return {"loss": total, **values, "gradient_norm": norm}

    # Evaluation and state ------------------------------------------------------------------------

    def evaluate(self) -> dict[str, float]:
        """The system's measures on the evaluation data, with the averaged weights where there are some."""
        stage = self.stage
        if isinstance(self.data, Rollout) and stage.eval_data is None:
            system = self.average if not self.is_fit and self.average is not None else self.system
            return {name: float(value) for name, value in system.eval().compute().items()}
        system = self.system if self.is_fit or self.average is None else self.average
        return evaluate_system(system, stage, self.device)

    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = {"step": self.step, "stream": self.stream.state_dict(), "rng": rng_state()}
        if not self.is_fit:
            state["optimizers"] = {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()}
        return state

    def files(self) -> dict[str, bytes]:
        """What a checkpoint holds."""
        model = {
            "format": "jingdu",
            "version": jingdu.__version__,
            "system": self.stage.system,
            "networks": {name: _network_card(network) for name, network in self.networks().items()},
            "classes": getattr(self.data, "classes", None),
            "preprocess": dataclasses.asdict(self.stage.preprocess),
        }
        files = {
            "model.safetensors": tree_bytes(self.system.state_dict()),
            "model.json": json.dumps(model, indent=1).encode(),
            "state.safetensors": tree_bytes(self.state()),
        }
        if not self.is_fit and self.average is not None:
            files["ema.safetensors"] = tree_bytes(self.average.state_dict())
        return files

    def networks(self) -> dict[str, Any]:
        return {name: getattr(self.system, name) for name in self.stage.networks}

    def load(self, checkpoint: Path) -> None:
        self.system.load_state_dict(read_tree(checkpoint / "model.safetensors"))
        state = read_tree(checkpoint / "state.safetensors")
        if not self.is_fit:
            for name, optimizer in self.optimizers.items():
                optimizer.load_state_dict(state["optimizers"][name])
            if self.average is not None:
                self.average.load_state_dict(read_tree(checkpoint / "ema.safetensors"))
        self.step = state["step"]
        self.stream.load_state_dict(state["stream"])
        set_rng_state(state["rng"])


def _network_card(network: Any) -> dict[str, Any]:
    return {"variant": network.origin.variant, "overrides": dict(network.origin.overrides)}


def average(mean: nn.Module, module: nn.Module, decay: float) -> None:
    """Exponential moving average of the parameters; buffers are copied."""
    with torch.no_grad():
        pairs = list(zip(mean.parameters(), module.parameters(), strict=True))
        torch._foreach_lerp_([a for a, _ in pairs], [b.detach() for _, b in pairs], 1 - decay)
        for a, b in zip(mean.buffers(), module.buffers(), strict=True):
            a.copy_(b)


def _open(text: str, split: str, stage: Stage, crop: Any = None) -> Any:
    """Data by name, or a paper's Rollout (`paper.Class(...)`)."""
    call = Call.parse(text)
    paper, dot, attribute = call.name.partition(".")
    if dot and attribute.isidentifier() and paper.isidentifier() and not Path(text).exists():  # my.txt is a file
        return resolve(call.name)(**call.arguments)
    return open_data(text, split, stage.preprocess, crop, stage.on_corrupt)


def evaluate_system(system: Any, stage: Stage, device: torch.device) -> dict[str, float]:
    """Run a system's `update` over the test split and `compute` its measures."""
    data = _open(stage.eval_data or stage.data, "test", stage)
    if isinstance(system, nn.Module):
        system.eval()
    # Autocast holds in evaluation too: the weights will be used as they were trained.
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=stage.precision == "bf16")
    with torch.no_grad(), autocast:
        for batch in evaluation_batches(data, stage.batch_size, stage.preprocess):
            system.update(to_device(batch, device, stage))
        return {name: float(value) for name, value in system.compute().items()}


# Stages and recipes ------------------------------------------------------------------------------


def _about(stage: Stage) -> dict[str, Any]:
    return {
        "jingdu": jingdu.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
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
    tensorboard: bool = False,
) -> Run:  # fmt: skip
    """Train a recipe into the run folder `out`.

    With `resume`, go on from the newest intact checkpoint, or start where there is none; a finished
    run is left as it is. Raises UsageError (a folder that holds a run or something else), Refused,
    TrainingFailed (a loss that is not finite), Interrupted (after a signal; saved).
    """
    recipe = Recipe((recipe,), minutes=0, expect={}) if isinstance(recipe, Stage) else recipe
    out = Path(out)
    place = device_of(device)
    _enter(out, recipe, resume)
    with locked(out):
        write_whole(out / "recipe.json", _describe(recipe).encode())
        previous: dict[str, Any] = {}
        say(f"device: {place}, {torch.get_num_threads()} threads; run folder: {out}", quiet)
        metrics: dict[str, float] = {}
        for stage in recipe.stages:
            last = stage is recipe.stages[-1]
            folder = out if last else out / stage.name
            folder.mkdir(exist_ok=True)
            training = Training(stage, place, previous)
            try:
                metrics = _run_stage(training, folder, resume, quiet, tensorboard)
            except Interrupted as stop:
                raise Interrupted(f"{stop}; go on with --resume --out {out}") from None
            finally:
                training.stream.close()
            if not last:
                write_whole(folder / "recipe.json", json.dumps([dataclasses.asdict(stage)], indent=1).encode())
            previous[stage.name] = training.system
        return Run(out, metrics)


def _enter(out: Path, recipe: Recipe, resume: bool) -> None:
    """Make the run folder, or check that it may be continued with this recipe.

    A folder whose run failed before its first step (data that is not there) holds no run yet.
    """
    described = _describe(recipe)
    if (out / "recipe.json").exists():
        if next(out.rglob("log.jsonl"), None) is None:
            return
        if not resume:
            raise UsageError(f"{out} holds a run already: go on with --resume, or choose another --out")
        before = (out / "recipe.json").read_text("utf-8")
        if json.loads(before) != json.loads(described):
            changed = [
                f"{new['name']}.{key}: {old.get(key)!r} -> {value!r}"
                for old, new in zip(json.loads(before), json.loads(described), strict=False)
                for key, value in new.items()
                if old.get(key) != value
            ]
            raise UsageError(f"{out} was started with another recipe ({'; '.join(changed) or 'other stages'})")
        return
    if out.exists() and any(out.iterdir()):
        raise UsageError(f"{out} is not empty and holds no run: choose another --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_whole(out / "recipe.json", described.encode())  # also tries whether the folder can be written
    except OSError as error:
        raise UsageError(f"{out}: cannot write there ({error.strerror}); choose another --out") from None


def _run_stage(training: Training, folder: Path, resume: bool, quiet: bool, tensorboard: bool) -> dict[str, float]:
    stage = training.stage
    checkpoint = newest_checkpoint(folder) if resume else None
    if checkpoint is not None:
        training.load(checkpoint)
        say(f"resumed from {checkpoint} (step {training.step} of {training.total})", quiet)
    result = folder / "result.json"
    if checkpoint is not None and training.step >= training.total and result.exists():
        say("this run is finished; nothing to do", quiet)
        return json.loads(result.read_text())["metrics"]

    def save() -> Path:
        return write_checkpoint(folder / "checkpoints", training.step, training.files(), stage.keep, _about(stage))

    log = Log(folder, after=training.step, tensorboard=tensorboard)
    progress = Progress(stage.name, training.total, training.step, quiet)
    saved_at = training.step if checkpoint is not None else -1
    try:
        with Signals() as signals:
            while training.step < training.total:
                try:
                    values = training.advance()
                except FloatingPointError as error:
                    raise _not_finite(training, folder, error) from None
                log.write({"step": training.step, "order": training.step, **values})
                progress.step(training.step, values)
                done = training.step >= training.total
                if stage.evaluate_every and training.step % stage.evaluate_every == 0 and not done:
                    # Evaluation must not move the training's random numbers.
                    rng = rng_state()
                    log.write({"step": training.step, "order": training.step, "eval": training.evaluate()})
                    set_rng_state(rng)
                if training.step % stage.save_every == 0 or done or signals.received is not None:
                    save()
                    saved_at = training.step
                if signals.received is not None and not done:
                    raise Interrupted(f"stopped after step {training.step} and saved")
        if saved_at != training.step:
            save()
        torch.manual_seed(stage.seed)  # a resumed evaluation draws what an uninterrupted one draws
        metrics = training.evaluate()
        # Logged after every step's order, and dropped again should the run be killed before its result.
        log.write({"step": training.step, "order": training.step + 1, "eval": metrics})
        write_whole(result, json.dumps({"metrics": metrics, "steps": training.step}, indent=1).encode())
        return metrics
    finally:
        progress.close()
        log.close()


def _not_finite(training: Training, folder: Path, error: Exception) -> JingduError:
    """Stop at a NaN: nothing was updated by it and no checkpoint was rotated."""
    good = newest_checkpoint(folder, warn=lambda _: None)
    position = getattr(training.stream, "position", None)
    where = f", batch {position - 1}" if position is not None else ""
    return TrainingFailed(
        f"step {training.step + 1}{where}: {error}. Nothing was updated. Last good checkpoint: {good or 'none yet'}. "
        "Lower --lr, use --clip, or look at that batch"
    )


def load_system(run: Path, device: str = "cpu") -> Any:
    """The trained System or Fitted of a run folder, in eval mode, with averaged weights where there are some."""
    run = Path(run)
    stages = read_recipe(run)
    previous = {stage.name: load_system(run / stage.name, device) for stage in stages[:-1]}
    stage = stages[-1]
    checkpoint = newest_checkpoint(run)
    if checkpoint is None:
        raise Refused(f"{run}: this run has no checkpoint yet")
    model = json.loads((checkpoint / "model.json").read_text("utf-8"))
    from jingdu import canon

    networks = {name: canon.create(card["variant"], **card["overrides"]) for name, card in model["networks"].items()}
    system = build_system(stage, networks, previous)
    averaged = checkpoint / "ema.safetensors"
    system.load_state_dict(read_tree(averaged if averaged.exists() else checkpoint / "model.safetensors"))
    return system.to(device).eval() if isinstance(system, nn.Module) else system
