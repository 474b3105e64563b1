"""Optimisers with decay groups, and learning-rate schedules as plain functions of the step.

A schedule maps (step, total steps, steps per epoch) to what it sets in the optimiser: "lr" as a
multiple of the stage's peak, other entries ("momentum") as values.
"""

import inspect
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from jingdu.engine.contracts import Objective, Stage
from jingdu.errors import UsageError, unknown
from jingdu.names import Call

Schedule = Callable[[int, int, float], dict[str, float]]


def _warm(step: int, warmup: int, start: float = 0.0) -> float:
    return start + (1 - start) * min((step + 1) / warmup, 1.0) if warmup else 1.0


def constant(step: int, total: int, epoch: float, *, warmup: int = 0) -> dict[str, float]:
    """The peak, after `warmup` linear steps."""
    return {"lr": _warm(step, warmup)}


def step(
    step: int,
    total: int,
    epoch: float,
    *,
    every: float,
    factor: float = 0.1,
    hold: float | None = None,
    warmup: int = 0,
) -> dict[str, float]:
    """Times `factor` after each `every` epochs, for the first time after `hold` (by default `every`); linear warm-up."""
    cuts = max(1 + math.floor((step / epoch - (every if hold is None else hold)) / every), 0)
    return {"lr": _warm(step, warmup) * factor**cuts}


def multistep(
    step: int,
    total: int,
    epoch: float,
    *,
    at: Sequence[float],
    factor: float = 0.1,
    warmup: int = 0,
    start: float = 0.1,
) -> dict[str, float]:
    """Times `factor` at each of the fractions `at` of the run; optional linear warm-up from `start`."""
    return {"lr": _warm(step, warmup, start) * factor ** sum(step >= fraction * total for fraction in at)}


def cosine(step: int, total: int, epoch: float, *, warmup: int = 0, end: float = 0.0) -> dict[str, float]:
    """Linear warm-up, then half a cosine down to `end` (Loshchilov & Hutter 2017, without restarts)."""
    if step < warmup:
        return {"lr": _warm(step, warmup)}
    done = (step - warmup) / max(total - warmup, 1)
    return {"lr": end + (1 - end) * 0.5 * (1 + math.cos(math.pi * done))}


def onecycle(
    step: int, total: int, epoch: float, *, rise: float = 0.3, start: float = 1 / 25, end: float = 1 / 250000
) -> dict[str, float]:
    """Up by a cosine over the share `rise`, then down (Smith & Topin 2018; shape of torch's OneCycleLR)."""
    top = max(rise * total - 1, 1e-9)
    if step <= top:
        low, high, done = start, 1.0, step / top
    else:
        low, high, done = 1.0, end, (step - top) / max(total - 1 - top, 1e-9)
    return {"lr": high + (low - high) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))}


def linear(step: int, total: int, epoch: float, *, warmup: int = 0) -> dict[str, float]:
    """Down to zero along a line from the first step on; before `warmup` steps, up along another (BERT's optimization.py)."""
    return {"lr": _warm(step, warmup) if step < warmup else 1 - step / total}


def inverse_sqrt(step: int, total: int, epoch: float, *, warmup: int) -> dict[str, float]:
    """Linear warm-up to the peak, then proportional to 1/sqrt(step) (Vaswani et al. 2017, Eq. 3)."""
    return {"lr": min((step + 1) / warmup, math.sqrt(warmup / (step + 1)))}


def exponential(
    step: int,
    total: int,
    epoch: float,
    *,
    factor: float,
    minimum: float = 0.0,
    momentum_start: float | None = None,
    momentum_end: float | None = None,
    momentum_epochs: float = 1,
) -> dict[str, float]:
    """Divided by `factor` at every step, down to the absolute rate `minimum`; momentum may rise linearly by epoch."""
    values = {"lr": factor**-step, "minimum": minimum}
    if momentum_start is not None and momentum_end is not None:
        done = min(int(step / epoch) / momentum_epochs, 1.0)
        values["momentum"] = momentum_start + (momentum_end - momentum_start) * done
    return values


SCHEDULES: dict[str, Callable[..., dict[str, float]]] = {
    f.__name__: f for f in (constant, step, multistep, cosine, onecycle, linear, inverse_sqrt, exponential)
}


def make_schedule(text: str) -> Schedule:
    """A schedule from its call written as text. Raises UsageError for an unknown name or argument."""
    call = Call.parse(text)
    if call.name not in SCHEDULES:
        raise unknown("schedule", call.name, SCHEDULES)
    function = SCHEDULES[call.name]
    try:
        inspect.signature(function).bind(0, 1, 1.0, **call.arguments)
    except TypeError as error:
        raise UsageError(f"schedule {text!r}: {error}") from None
    return partial(function, **call.arguments)


class _Uncorrected:
    """Adam or AdamW whose averages start at zero and are taken as they are: theta -= lr m / (sqrt(v) + eps).

    torch divides m by 1 - b1^t and sqrt(v) by sqrt(1 - b2^t). For the length of a step, its rate and its eps (and the
    share that AdamW decays, which the rate multiplies) are changed so that this cancels.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        kept = [(group["lr"], group["eps"], group["weight_decay"]) for group in self.param_groups]
        for group in self.param_groups:
            done = [self.state[p]["step"] for p in group["params"] if self.state[p]]
            time = int(done[0]) + 1 if done else 1
            first, second = (1 - beta**time for beta in group["betas"])
            factor = first / math.sqrt(second)
            group["lr"], group["eps"] = group["lr"] * factor, group["eps"] / math.sqrt(second)
            if isinstance(self, torch.optim.AdamW):
                group["weight_decay"] /= factor
        try:
            return super().step(closure)
        finally:
            for group, (lr, eps, decay) in zip(self.param_groups, kept, strict=True):
                group["lr"], group["eps"], group["weight_decay"] = lr, eps, decay


class _UncorrectedAdam(_Uncorrected, torch.optim.Adam):
    pass


class _UncorrectedAdamW(_Uncorrected, torch.optim.AdamW):
    pass


class LARS(torch.optim.Optimizer):
    r"""Layer-wise adaptive rates (You et al. 2017, arXiv 1708.03888) as MoCo v3 and MAE have them.

    The gradient of a matrix or kernel $w$, with its decay $\lambda w$, is scaled to the length $\eta \|w\|$, and then goes into
    the momentum; one of another parameter as it is. Where $w$ or its gradient is zero nothing is scaled.

    Args:
        params: parameters or groups.
        lr: the rate.
        momentum: of the scaled gradients.
        weight_decay: $\lambda$, of matrices and kernels alone.
        trust: $\eta$.
    """

    def __init__(
        self, params: Any, lr: float = 0.1, momentum: float = 0.9, weight_decay: float = 0.0, trust: float = 0.001
    ):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                gradient = p.grad
                if p.ndim > 1:
                    gradient = gradient.add(p, alpha=group["weight_decay"])
                    length, size = gradient.norm(), p.norm()
                    scale = torch.where((length > 0) & (size > 0), group["trust"] * size / length, 1.0)
                    gradient = gradient * scale
                kept = self.state[p].setdefault("momentum", torch.zeros_like(p))
                kept.mul_(group["momentum"]).add_(gradient)
                p.add_(kept, alpha=-group["lr"])
        return loss


def rates(system: nn.Module) -> dict[str, float]:
    """Name of a parameter -> its learning rate as a multiple of the stage's, where a module's `rates` says one.

    A module's `rates` maps its own parameters' names, or the first parts of them, to the multiple: {"offset": 0.1,
    "blocks.3": 0.65}. The longest that fits counts, and of nested modules the inner one's.
    """
    found = {}
    for place, module in system.named_modules():
        if not isinstance(said := getattr(module, "rates", None), dict):
            continue
        for name, _ in module.named_parameters():
            parts = name.split(".")
            fits = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
            if (part := next((part for part in fits if part in said), None)) is not None:
                found[f"{place}{'.' if place else ''}{name}"] = float(said[part])
    return found


def make_optimizer(stage: Stage, system: nn.Module, objective: Objective) -> torch.optim.Optimizer:
    """The optimiser of one objective, over the parameters whose names start as it says."""
    named = [(name, p) for name, p in system.named_parameters() if name.startswith(objective.parameters)]
    named = [(name, p) for name, p in named if p.requires_grad]
    if not named:
        raise UsageError(f"objective {objective.name!r} has no parameters that start with {objective.parameters}")

    spared = {
        f"{place}{'.' if place else ''}{name}"
        for place, module in system.named_modules()
        for name in getattr(module, "undecayed", ())
    }

    def decays(name: str, p: torch.Tensor) -> bool:
        matrix = p.ndim >= 2 and name not in spared
        depthwise = p.ndim == 4 and p.shape[1] == 1
        return stage.decay == "all" or (matrix and not (stage.decay == "dense" and depthwise))

    multiples = rates(system)
    groups: list[dict[str, Any]] = []
    for rate in sorted({multiples.get(name, 1.0) for name, _ in named}, reverse=True):
        alike = [(name, p) for name, p in named if multiples.get(name, 1.0) == rate]
        more = {"lr": stage.lr * rate, "rate": rate} if rate != 1.0 else {}
        decayed = {name for name, p in alike if decays(name, p)}
        for weight_decay, wanted in ((stage.weight_decay, True), (0.0, False)):
            chosen = [p for name, p in alike if (name in decayed) == wanted]
            groups.append({"params": chosen, "weight_decay": weight_decay, **more})
    groups = [group for group in groups if group["params"]]
    if stage.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=stage.lr, momentum=stage.momentum, nesterov=stage.nesterov)
    if stage.optimizer == "adadelta":
        return torch.optim.Adadelta(groups, lr=stage.lr, rho=stage.momentum, eps=stage.eps)
    if stage.optimizer == "lars":
        return LARS(groups, lr=stage.lr, momentum=stage.momentum)
    if stage.optimizer == "rmsprop":
        return torch.optim.RMSprop(groups, lr=stage.lr, alpha=stage.betas[1], eps=stage.eps, momentum=stage.momentum)
    kinds = (torch.optim.Adam, torch.optim.AdamW) if stage.bias_correction else (_UncorrectedAdam, _UncorrectedAdamW)
    kind = kinds[stage.optimizer == "adamw"]
    return kind(groups, lr=stage.lr, betas=stage.betas, eps=stage.eps)


def apply_schedule(optimizer: torch.optim.Optimizer, values: dict[str, float], peak: float) -> float:
    """Set what the schedule gives; returns the learning rate in force."""
    lr = max(peak * values["lr"], values.get("minimum", 0.0))
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("rate", 1.0)
        if "momentum" in values and "momentum" in group:
            group["momentum"] = values["momentum"]
    return lr
