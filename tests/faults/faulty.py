"""Systems and data in which a number goes wrong, and one that is too large."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jingdu.data.base import Tensors
from jingdu.data.draws import Draws
from jingdu.engine import System
from jingdu.engine.contracts import Batch
from jingdu.engine.systems import Classification
from jingdu.papers.generative.gan import GAN

BAD: dict[str, Any] = {}
"""Which batch of the training data has one bad value (for the next run of this process)."""


class Bad:
    """Data whose batch `number` of training holds one value that is not finite."""

    def __init__(self, data: Any, number: int, value: float, batch_size: int):
        self.data, self.number, self.value = data, number, value
        self.classes, self.seen = data.classes, 0

    def __len__(self) -> int:
        return len(self.data)

    def batch(self, indices: np.ndarray, draws: Draws) -> Batch:
        batch = self.data.batch(indices, draws)
        if self.seen == self.number:
            batch["image"] = batch["image"].clone()
            batch["image"][3, 0, 5, 4] = self.value
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
    """From `step` on, which a buffer counts, the loss or its gradient is `value`."""

    def _prepare(self, where: str, value: str, step: int) -> None:
        self.where, self.value, self.at = where, float(value), step
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))

    def _spoil(self, loss: Tensor) -> Tensor:
        if self.updates < self.at:
            return loss
        return _Spoil.apply(loss, self.value) if self.where == "gradient" else loss + self.value

    def after_update(self, objective: str) -> None:
        if objective == self.objectives[-1].name:
            self.updates += 1


class FaultyResnet(_Faulty, Classification):
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


LIMIT = {"samples": 10**9, "where": "forward", "step": 0}
"""For `Balloon`: with more samples at a time than this there is no memory, from this step on."""


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


class Balloon(System):
    """A classifier with far more activations than weights, which runs out of memory where `LIMIT` says."""

    def __init__(self, network: nn.Module, width: int = 200):
        super().__init__()
        self.network = network.requires_grad_(False)
        self.wide, self.out = nn.Linear(64, width), nn.Linear(width, 10)
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))
        self.right = self.count = 0

    def forward(self, batch: Batch, objective: str) -> tuple[Tensor, dict[str, Any]]:
        full = self.updates >= LIMIT["step"] and len(batch["label"]) > LIMIT["samples"]
        if full and LIMIT["where"] == "forward":
            _no_memory()
        x = self.wide(batch["image"].flatten(1))
        for _ in range(8):
            x = x.sin()
        loss = F.cross_entropy(self.out(x), batch["label"])
        return (_Full.apply(loss) if full and LIMIT["where"] == "backward" else loss), {}

    def after_update(self, objective: str) -> None:
        self.updates += 1

    def update(self, batch: Batch) -> None:
        self.count += len(batch["label"])

    def compute(self) -> dict[str, float]:
        value, self.count = float(self.count), 0
        return {"samples": value}
