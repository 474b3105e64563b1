"""Systems and data in which a number goes wrong, and one that is too large."""

import resource
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from jingdu.data.base import Tensors
from jingdu.data.draws import Draws
from jingdu.engine import System
from jingdu.engine.contracts import Batch
from jingdu.engine.systems import Classification
from jingdu.papers.generative.gan import GAN
from jingdu.papers.language.ngram import Counting, NGram
from tests.engine.systems import Tower

BAD: dict[str, Any] = {}
"""Which batch of the training data has one bad value (for the next run of this process)."""


class Bad:
    """Data whose batch `number` of training holds one value that is not finite."""

    def __init__(self, data: Any, number: int, value: float):
        self.data, self.number, self.value = data, number, value
        self.classes, self.seen = data.classes, 0

    def __len__(self) -> int:
        return len(self.data)

    def batch(self, indices: np.ndarray, draws: Draws) -> Batch:
        batch = self.data.batch(indices, draws)
        if self.seen == self.number:
            batch["image"] = batch["image"].clone()
            batch["image"][3, 0, 5, 6] = self.value
        self.seen += 1
        return batch


def numbered() -> Tensors:
    """263 samples whose image is their number; 17 batches of 15 an epoch, and 8 samples left out of each."""
    return Tensors({"image": torch.arange(263.0).view(-1, 1, 1, 1), "label": torch.arange(263)})


class Numbered(System):
    """Logs which samples a batch has, and in what order."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network.requires_grad_(False)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, batch: Batch, objective: str) -> tuple[Tensor, dict[str, Any]]:
        ids = 0
        for number in batch["label"].tolist():
            ids = (ids * 263 + number) % (2**31 - 1)  # a float holds it exactly
        return (self.scale * batch["image"].mean()).square() * 1e-6, {"ids": ids}


class _Spoil(torch.autograd.Function):
    """The identity, whose gradient is a given number."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: float) -> Tensor:
        ctx.value = value
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return torch.full_like(gradient, ctx.value), None


class _Faulty:
    """From step `step` on, which a buffer counts, the loss or its gradient is `value`; in a job, in its last process."""

    def _prepare(self, where: str, value: str, step: int) -> None:
        self.where, self.value, self.at = where, float(value), step
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))

    def _spoil(self, loss: Tensor) -> Tensor:
        if self.updates < self.at or (dist.is_initialized() and dist.get_rank() < dist.get_world_size() - 1):
            return loss
        return _Spoil.apply(loss, self.value) if self.where == "gradient" else loss + self.value

    def after_update(self, objective: str) -> None:
        super().after_update(objective)
        if objective == self.objectives[-1].name:
            self.updates += 1


class FaultyClassification(_Faulty, Classification):
    def __init__(self, network: nn.Module, where: str, value: str, step: int):
        Classification.__init__(self, network)
        self._prepare(where, value, step)

    def forward(self, batch: Batch, objective: str) -> tuple[Tensor, dict[str, Any]]:
        loss, values = Classification.forward(self, batch, objective)
        return self._spoil(loss), values


class FaultyGAN(_Faulty, GAN):
    """The generator's loss, which comes second in a step."""

    def __init__(self, generator: nn.Module, discriminator: nn.Module, where: str, value: str, step: int):
        GAN.__init__(self, generator, discriminator, samples=40)
        self._prepare(where, value, step)

    def forward(self, batch: Batch, objective: str) -> tuple[Tensor, dict[str, Any]]:
        loss, values = GAN.forward(self, batch, objective)
        return (self._spoil(loss) if objective == "generator" else loss), values


class FaultyTower(_Faulty, Tower):
    def __init__(self, network: nn.Module, where: str, value: str, step: int):
        Tower.__init__(self, network)
        self._prepare(where, value, step)

    def forward(self, batch: Batch, objective: str) -> tuple[Tensor, dict[str, Any]]:
        loss, values = Tower.forward(self, batch, objective)
        return self._spoil(loss), values


class FaultyCounting(Counting):
    """A pass over text: a number that it logs is `value` from its batch `step` on."""

    def __init__(self, model: NGram, where: str, value: str, step: int):
        super().__init__(model)
        self.value, self.left = float(value), step

    def observe(self, batch: Batch, number: int) -> dict[str, Any]:
        values = super().observe(batch, number)
        self.left -= 1
        return {**values, "rate": self.value} if self.left < 0 else values


# Memory ---------------------------------------------------------------------------------------------


def _no_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 1 GiB")


class _Full(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        _no_memory()
        return gradient


def fake_limit(training: Any, samples: int, where: str, step: int) -> None:
    """From step `step` on there is no memory for more than `samples` samples at a time: CUDA's error, anywhere."""

    def is_full(batch: Batch) -> bool:
        return training.step >= step and len(next(iter(batch.values()))) > samples

    def before(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if where == "forward" and is_full(inputs[0]):
            _no_memory()

    def after(module: nn.Module, inputs: tuple[Any, ...], output: tuple[Tensor, dict[str, Any]]) -> Any:
        return (_Full.apply(output[0]), output[1]) if where == "backward" and is_full(inputs[0]) else None

    training.system.register_forward_pre_hook(before)
    training.system.register_forward_hook(after)


def allow(room: int) -> None:
    """From now on this process may have only `room` bytes more than it has (RLIMIT_AS)."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + room, resource.RLIM_INFINITY))


def real_limit(training: Any, room: int, step: int) -> None:
    """`allow` from the beginning of step `step` on."""

    def before(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if training.step >= step:
            allow(room)
            handle.remove()

    handle = training.system.register_forward_pre_hook(before)


class Balloon(System):
    """A classifier with far more activations than weights."""

    def __init__(self, network: nn.Module, width: int = 3000):
        super().__init__()
        self.network = network.requires_grad_(False)
        self.wide, self.out = nn.Linear(64, width), nn.Linear(width, 10)
        self.count = 0

    def forward(self, batch: Batch, objective: str) -> tuple[Tensor, dict[str, Any]]:
        x = self.wide(batch["image"].flatten(1))
        for _ in range(8):
            x = x.sin()
        return F.cross_entropy(self.out(x), batch["label"]), {}

    def update(self, batch: Batch) -> None:
        self.count += len(batch["label"])

    def compute(self) -> dict[str, float]:
        value, self.count = float(self.count), 0
        return {"samples": value}
