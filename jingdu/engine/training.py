"""One stage in progress: system, optimisers, stream and averages; and how a step moves them."""

import copy
import dataclasses
import hashlib
import importlib
import inspect
import json
import math
import random
from collections.abc import Callable, Iterable, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

import jingdu
from jingdu.data import open_data
from jingdu.engine import parity
from jingdu.engine.checkpoint import TOKENIZER
from jingdu.engine.contracts import Batch, Objective, Rollout, Stage, System
from jingdu.engine.distribute import World, blocks, local, shard_like
from jingdu.engine.optimise import apply_schedule, make_optimizer, make_schedule
from jingdu.engine.state import read_tree, tree_bytes
from jingdu.engine.stream import Play, Stream, evaluation_batches
from jingdu.engine.systems import build_networks, build_system, resolve
from jingdu.engine.trouble import check_finite
from jingdu.errors import Refused, UsageError
from jingdu.names import Call


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
        if isinstance(value, list):  # samples of different shapes
            return [move(part) for part in value]
        if not isinstance(value, Tensor):
            return value
        if stage.channels_last and value.ndim == 4:
            value = value.contiguous(memory_format=torch.channels_last)
        if stage.precision == "float64" and value.is_floating_point():
            value = value.double()
        return value.to(device)

    return {name: move(value) for name, value in batch.items()}


def size_of(batch: Batch) -> int:
    """Samples in a batch."""
    return len(next(iter(batch.values())))


def parts(batch: Batch, count: int) -> list[Batch]:
    """A batch cut into `count` parts of nearly equal size, for accumulation."""
    if count == 1:
        return [batch]
    size = size_of(batch)
    if size < count:
        raise UsageError(f"accumulate={count} is more than the {size} samples of a batch")
    bounds = [size * i // count for i in range(count + 1)]
    return [{name: value[low:high] for name, value in batch.items()} for low, high in pairwise(bounds)]


def reseed(device: torch.device, *numbers: int) -> None:
    """Set every global generator by the numbers that say where in a run we are.

    So no random state outlives a part of a batch: none needs to be saved, and neither a resume nor the number of
    processes changes what is drawn. (`torch.manual_seed` looks at every kind of device and is a hundred times slower.)
    """
    seed = int.from_bytes(hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest()) >> 1
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)


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
    found = blocks(system)
    for block in found:
        forward = block.forward

        def recomputed(*args: Any, _forward: Any = forward, _block: nn.Module = block) -> Any:
            if not torch.is_grad_enabled():
                return _forward(*args)
            contexts = lambda: (nullcontext(), _frozen_statistics(_block))  # noqa: E731
            return recompute(_forward, *args, use_reentrant=False, context_fn=contexts)

        block.forward = recomputed  # the instance's own forward: keys and classes stay as they are
    return len(found)


class Training:
    """One stage in progress; its whole state can be saved."""

    def __init__(self, stage: Stage, device: torch.device, previous: Mapping[str, Any], world: World | None = None):
        self.stage, self.device, self.world = stage, device, world or World()
        torch.manual_seed(stage.seed)
        crop = functions([stage.crop], "jingdu.data.augment")[0] if stage.crop else None
        source = open_source(stage.data, "train", stage, crop)
        self.data = source
        # The update in progress, for messages: objective, batch, samples of the whole batch, place of its randomness
        self.current: tuple[Objective, Batch, int, tuple[int, ...]] | None = None
        self.samples: dict[str, parity.Sample] = {}
        self.is_fit = stage.method == "fit"
        self.system = build_system(stage, build_networks(stage, source), previous)
        augment = tuple(functions(stage.augment, "jingdu.data.augment"))
        self.stream: Stream | Play = (
            Play(source)
            if isinstance(source, Rollout)
            else Stream(
                source, stage.batch_size, stage.seed, augment, stage.preprocess, stage.workers,
                shuffle=not self.is_fit, part=slice(None) if self.is_fit else self.world.share(stage.batch_size),
                repeats=stage.repeats,
            )
        )  # fmt: skip
        if self.is_fit:
            self.total = self.system.passes * self.stream.batches_per_epoch
        else:
            if (stage.steps is None) == (stage.epochs is None):
                raise UsageError(f"stage {stage.name!r}: give either steps or epochs")
            per_epoch = self.stream.batches_per_epoch
            self.total = stage.steps if stage.steps is not None else max(round((stage.epochs or 0) * per_epoch), 1)
            if self.world.size * stage.accumulate > stage.batch_size:
                raise UsageError(
                    f"{self.world.size} processes with accumulate={stage.accumulate} cut a batch of {stage.batch_size} "
                    f"samples: batch_size must be at least {self.world.size * stage.accumulate}"
                )
            self._prepare_gradients()
        self.step = 0

    def _prepare_gradients(self) -> None:
        stage, system = self.stage, self.system
        system.to(self.device)
        if stage.channels_last:
            system.to(memory_format=torch.channels_last)
        if stage.checkpoint_activations:
            checkpoint_activations(system)
        self.average: System | None = copy.deepcopy(system).requires_grad_(False) if stage.ema is not None else None
        if not (stage.compile or self.world.shard):  # there a network is not asked alone
            parity.watch(self.networks(), self.samples)
        for module in (system, self.average):
            if module is not None:
                self.world.prepare(module)
        if stage.compile:
            system.compile()
        self.optimizers, self.schedules, self.peaks, self.wrapped = {}, {}, {}, {}
        for objective in system.objectives:
            changed = dataclasses.replace(stage, **stage.per_objective.get(objective.name, {}))
            self.optimizers[objective.name] = make_optimizer(changed, system, objective)
            self.schedules[objective.name] = make_schedule(changed.schedule)
            self.peaks[objective.name] = changed.lr
            self.wrapped[objective.name] = self.world.wrap(system, self._moved_by(objective))

    def _moved_by(self, objective: Objective) -> list[Tensor]:
        return [p for group in self.optimizers[objective.name].param_groups for p in group["params"]]

    # One step ------------------------------------------------------------------------------------

    def advance(self) -> dict[str, Any]:
        """Do the next step; returns what to log."""
        values = self._fit_step() if self.is_fit else self._gradient_step()
        self.step += 1
        return values

    def _fit_step(self) -> dict[str, Any]:
        number, place = divmod(self.step, self.stream.batches_per_epoch)
        reseed(self.device, self.stage.seed, self.step)
        values = self.system.observe(self.stream.next(), number)
        if bad := [name for name, value in values.items() if isinstance(value, float) and not math.isfinite(value)]:
            raise FloatingPointError(f"{bad[0]} is {values[bad[0]]}")
        if place == self.stream.batches_per_epoch - 1:
            self.system.end_pass(number)
        return values

    def _gradient_step(self) -> dict[str, Any]:
        self.system.train()
        logged: dict[str, Any] = {}
        batch: Batch | None = None
        objectives = self.system.objectives
        for number, objective in enumerate(objectives):
            if self.step % objective.every:
                continue
            schedule = self.schedules[objective.name](self.step, self.total, self.stream.batches_per_epoch)
            lr = apply_schedule(self.optimizers[objective.name], schedule, self.peaks[objective.name])
            for update in range(objective.updates):
                place = (self.stage.seed, self.step, number, update)
                if objective.fresh or batch is None:
                    batch, whole = self._next_batch(place)
                values = self._update(objective, batch, whole, place)
            prefix = f"{objective.name}." if len(objectives) > 1 else ""
            logged |= {f"{prefix}{name}": value for name, value in {**values, "lr": lr}.items()}
        self.world.average_statistics(self.system)
        return logged

    def _next_batch(self, place: tuple[int, ...]) -> tuple[Batch, int]:
        """This process's share of the next batch, and how many samples the whole one has."""
        if isinstance(self.stream, Stream):
            batch = self.stream.next()
            # All samples are there, unless damaged ones are left out.
            whole = self.stage.batch_size
            if self.stage.on_corrupt == "skip":
                whole = round(self.world.sum([size_of(batch)])[0])
        else:  # every process plays the same, and takes its share of what was played
            reseed(self.device, *place)
            batch = self.world.call(self.system, lambda: self.stream.next(self.system))
            whole = size_of(batch)
            mine = self.world.share(whole)
            batch = {name: value[mine] for name, value in batch.items()} if self.world.size > 1 else batch
        return to_device(batch, self.device, self.stage), whole

    def _update(self, objective: Objective, batch: Batch, whole: int, place: tuple[int, ...]) -> dict[str, Any]:
        """One update by one objective: backward over the parts, check, clip, step, averages."""
        stage, system, world = self.stage, self.system, self.world
        optimizer, wrapped = self.optimizers[objective.name], self.wrapped[objective.name]
        self.current = objective, batch, whole, place
        mine = self._moved_by(objective)
        optimizer.zero_grad(set_to_none=True)
        total, values = 0.0, {}
        autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=stage.precision == "bf16")
        with world.owner(system, mine) if len(system.objectives) > 1 else nullcontext():
            for number, part in enumerate(parts(batch, stage.accumulate)):
                reseed(self.device, *place, world.rank * stage.accumulate + number)
                share = size_of(part) / whole
                with world.backward(wrapped, mine, last=number == stage.accumulate - 1):
                    with autocast:
                        loss, found = wrapped(part, objective.name)
                    weight = share * world.size  # the exchange of gradients divides by the number of processes
                    (loss * weight if weight != 1 else loss).backward()
                total += share * loss.item()
                for name, value in found.items():
                    plain = value.item() if isinstance(value, Tensor) else float(value)
                    values[name] = values.get(name, 0.0) + share * plain
        total, *means = world.sum([total, *values.values()])
        values = dict(zip(values, means, strict=True))
        grads = [p.grad for p in mine if p.grad is not None]
        norm = world.norm(grads)
        if not (math.isfinite(total) and math.isfinite(norm)):
            raise FloatingPointError(f"loss {total}, gradient norm {norm} of objective {objective.name!r}")
        if stage.clip is not None and norm > stage.clip:
            torch._foreach_mul_([local(g) for g in grads], stage.clip / (norm + 1e-6))
        optimizer.step()
        reseed(self.device, *place)
        system.after_update(objective.name)
        if self.average is not None and objective is system.objectives[-1]:
            average(self.average, system, stage.ema or 0.0)
        self.current = None
        return {"loss": total, **values, "gradient_norm": norm}

    # Evaluation and state ------------------------------------------------------------------------

    def evaluate(self) -> dict[str, float]:
        """The system's measures on the evaluation data, with the averaged weights where there are some."""
        stage = self.stage
        system = self.system if self.is_fit or self.average is None else self.average
        reseed(self.device, stage.seed, self.step)

        def measure() -> dict[str, float]:
            if isinstance(self.data, Rollout) and stage.eval_data is None:
                return {name: float(value) for name, value in system.eval().compute().items()}
            return evaluate_system(system, stage, self.device)

        return measure() if self.is_fit else self.world.call(system, measure)

    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = {"step": self.step, "stream": self.stream.state_dict()}
        if not self.is_fit:
            state["optimizers"] = {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()}
        return state

    def files(self) -> dict[str, bytes]:
        """What a checkpoint holds; all processes ask together, and the first one writes it.

        Raises FloatingPointError for weights that are not finite.
        """
        if not self.is_fit:
            check_finite(self)
        whole = self.world.whole
        trees = {"model.safetensors": whole(self.system.state_dict()), "state.safetensors": whole(self.state())}
        if not self.is_fit and self.average is not None:
            trees["ema.safetensors"] = whole(self.average.state_dict())
        if not self.world.first:
            return {}
        model = {
            "format": "jingdu",
            "version": jingdu.__version__,
            "system": self.stage.system,
            "networks": {name: _network_card(network) for name, network in self.networks().items()},
            "classes": getattr(self.data, "classes", None),
            "preprocess": dataclasses.asdict(self.stage.preprocess),
        }
        kept = self.system if self.is_fit or self.average is None else self.average
        if answers := parity.answers(self.networks(kept), self.samples):
            trees[parity.FILE] = answers
        files = {name: tree_bytes(tree) for name, tree in trees.items()}
        if (tokenizer := getattr(self.data, "tokenizer", None)) is not None:
            files[TOKENIZER] = tokenizer.to_json().encode()
        return {**files, "model.json": json.dumps(model, indent=1).encode()}

    def networks(self, system: Any = None) -> dict[str, Any]:
        """The stage's networks in the system, or in its average."""
        return {name: getattr(system or self.system, name) for name in self.stage.networks}

    def load(self, checkpoint: Path) -> None:
        """Take up the state of a checkpoint, whatever the number of processes that saved it.

        Raises Refused where it does not fit.
        """
        try:
            self._load(checkpoint)
        except (KeyError, ValueError, TypeError, RuntimeError) as error:
            said = " ".join(str(error).split())
            raise Refused(f"{checkpoint}: it is not of this system ({type(error).__name__}: {said})") from error
        # Another device rounds otherwise, and a sharded network cannot be asked alone.
        if not self.is_fit and self.device.type == "cpu" and not (self.stage.compile or self.world.shard):
            parity.check_all(self.networks(self.average or self.system), checkpoint)

    def _load(self, checkpoint: Path) -> None:
        state = read_tree(checkpoint / "state.safetensors")
        if self.is_fit:
            self.system.load_state_dict(read_tree(checkpoint / "model.safetensors"))
        else:
            load_weights(self.system, checkpoint / "model.safetensors")
            if self.average is not None:
                load_weights(self.average, checkpoint / "ema.safetensors")
            for objective in self.system.objectives:
                found = state["optimizers"][objective.name]
                for number, p in enumerate(self._moved_by(objective)):
                    if number in found["state"]:
                        entry = found["state"][number]
                        found["state"][number] = {name: shard_like(value, p) for name, value in entry.items()}
                self.optimizers[objective.name].load_state_dict(found)
        if (checkpoint / parity.FILE).exists():
            found = read_tree(checkpoint / parity.FILE)
            self.samples.update({name: {"inputs": sample["inputs"]} for name, sample in found.items()})
        self.step = state["step"]
        self.stream.load_state_dict(state["stream"])


def load_weights(system: nn.Module, file: Path) -> None:
    """Load a system's own weights, strictly. Raises Refused for other keys, RuntimeError for other shapes."""
    from jingdu.weights.tables import KeyTable

    parameters = dict(system.named_parameters(remove_duplicate=False))
    tree = {name: shard_like(value, parameters.get(name)) for name, value in read_tree(file).items()}
    if not (fit := KeyTable.identity().fit(tree, system.state_dict())).exact:
        raise Refused(f"{file}: {fit.message()}")
    system.load_state_dict(tree)


def _network_card(network: Any) -> dict[str, Any]:
    return {"variant": network.origin.variant, "overrides": dict(network.origin.overrides)}


def average(mean: nn.Module, module: nn.Module, decay: float) -> None:
    """Exponential moving average of the parameters; buffers are copied."""
    with torch.no_grad():
        pairs = list(zip(mean.parameters(), module.parameters(), strict=True))
        torch._foreach_lerp_([local(a) for a, _ in pairs], [local(b.detach()) for _, b in pairs], 1 - decay)
        for a, b in zip(mean.buffers(), module.buffers(), strict=True):
            a.copy_(b)


def open_source(text: str, split: str, stage: Stage, crop: Any = None) -> Any:
    """Data by name, or a paper's own: a data function `paper.function(split, ...)`, or a Rollout `paper.Class(...)`."""
    call = Call.parse(text)
    paper, dot, attribute = call.name.partition(".")
    if dot and attribute.isidentifier() and paper.isidentifier() and not Path(text).exists():  # my.txt is a file
        made = resolve(call.name)
        place = (split,) if "split" in inspect.signature(made).parameters else ()
        try:
            inspect.signature(made).bind(*place, **call.arguments)
        except TypeError as error:
            raise UsageError(f"data {text!r}: {error}") from None
        return made(*place, **call.arguments)
    return open_data(text, split, stage.preprocess, crop, stage.on_corrupt)


def evaluate_system(system: Any, stage: Stage, device: torch.device) -> dict[str, float]:
    """Run a system's `update` over the test split and `compute` its measures."""
    data = open_source(stage.eval_data or stage.data, "test", stage)
    if isinstance(system, nn.Module):
        system.eval()
    # Autocast holds in evaluation too: the weights will be used as they were trained.
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=stage.precision == "bf16")
    with torch.no_grad(), autocast:
        # In parts, as in training: what does not fit into memory at once does not here either.
        for batch in evaluation_batches(data, -(-stage.batch_size // stage.accumulate), stage.preprocess):
            system.update(to_device(batch, device, stage))
        return {name: float(value) for name, value in system.compute().items()}
