"""Small systems that drive the engine where the papers do not: two stages, a rollout, cadences."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jingdu.engine import Objective, System
from jingdu.engine.contracts import Batch


class Encoder(System):
    """Stage one: a linear autoencoder of the digits."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        self.encode, self.decode = nn.Linear(64, 5), nn.Linear(5, 64)
        self.errors: list[float] = []

    def forward(self, batch: Batch, objective: str) -> tuple[Tensor, dict[str, Any]]:
        x = batch["image"].flatten(1)
        return F.mse_loss(self.decode(self.encode(x)), x), {}

    def update(self, batch: Batch) -> None:
        self.errors.append(self(batch, "loss")[0].item())

    def compute(self) -> dict[str, float]:
        errors, self.errors = self.errors, []
        return {"reconstruction": sum(errors) / len(errors)}


class Head(System):
    """Stage two: a classifier over the first stage's frozen code."""

    def __init__(self, network: nn.Module, previous: dict[str, Any]):
        super().__init__()
        self.network = network
        self.encode = previous["encoder"].encode.requires_grad_(False)
        self.out = nn.Linear(5, 10)
        self.right = self.count = 0

    def forward(self, batch: Batch, objective: str) -> tuple[Tensor, dict[str, Any]]:
        return F.cross_entropy(self.out(self.encode(batch["image"].flatten(1))), batch["label"]), {}

    def update(self, batch: Batch) -> None:
        self.right += int((self.out(self.encode(batch["image"].flatten(1))).argmax(1) == batch["label"]).sum())
        self.count += len(batch["label"])

    def compute(self) -> dict[str, float]:
        value, self.right, self.count = self.right / self.count, 0, 0
        return {"accuracy": value}


class Corridor:
    """A Rollout: a corridor of 7 cells with a reward at the right end; REINFORCE's experience."""

    steps_per_epoch = 10

    def __init__(self, seed: int = 0):
        self.generator = torch.Generator().manual_seed(seed)
        self.played = 0

    def play(self, system: nn.Module) -> Batch:
        cells, actions = [], []
        cell = torch.full((32,), 3)
        for _ in range(6):
            move = torch.multinomial(system.policy(cell).softmax(1), 1, generator=self.generator)[:, 0]
            cells.append(cell)
            actions.append(move)
            cell = (cell + 2 * move - 1).clamp(0, 6)
        self.played += 32
        return {"cells": torch.stack(cells, 1), "actions": torch.stack(actions, 1), "reward": (cell == 6).float()}

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self.generator.get_state(), "played": self.played}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state["generator"])
        self.played = state["played"]


class Reinforce(System):
    """Williams 1992: the log-probability of what was done, weighted by the reward over its mean."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        self.table = nn.Embedding(7, 2)

    def policy(self, cell: Tensor) -> Tensor:
        return self.table(cell)

    def forward(self, batch: Batch, objective: str) -> tuple[Tensor, dict[str, Any]]:
        log = self.table(batch["cells"]).log_softmax(-1).gather(-1, batch["actions"][..., None]).sum((1, 2))
        reward = batch["reward"]
        return -((reward - reward.mean()) * log).mean(), {"reward": reward.mean()}

    def compute(self) -> dict[str, float]:
        return {"right": self.table.weight.softmax(1)[:, 1].mean().item()}


class Cadence(System):
    """Counts its own updates: two in a row, then one on every third step on the same batch."""

    objectives = (
        Objective("first", parameters=("a",), updates=2),
        Objective("second", parameters=("b",), every=3, fresh=False),
    )

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        self.a, self.b = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
        self.register_buffer("counts", torch.zeros(2, dtype=torch.long))
        self.seen: list[tuple[str, float]] = []

    def forward(self, batch: Batch, objective: str) -> tuple[Tensor, dict[str, Any]]:
        self.seen.append((objective, float(batch["image"].sum())))
        return ((self.a + self.b) ** 2).sum(), {}

    def after_update(self, objective: str) -> None:
        self.counts[0 if objective == "first" else 1] += 1


class Broken(System):
    """A loss that becomes NaN at its fourth update."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        self.a = nn.Parameter(torch.ones(2))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, batch: Batch, objective: str) -> tuple[Tensor, dict[str, Any]]:
        self.calls += 1
        return self.a.sum() * (float("nan") if self.calls == 4 else 1.0), {}


class Tower(System):
    """A classifier of nested blocks without batch norm or dropout, a scalar parameter among its own."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network.requires_grad_(False)  # a recipe has one; this system does not use it
        block = lambda: nn.Sequential(nn.Linear(32, 32), nn.Tanh(), nn.LayerNorm(32))  # noqa: E731
        self.body = nn.Sequential(nn.Linear(64, 32), block(), nn.Sequential(block(), block()))
        self.out = nn.Linear(32, 10)
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.register_buffer("mean", torch.zeros(10))
        self.right = self.count = 0

    def logits(self, batch: Batch) -> Tensor:
        return self.scale.exp() * self.out(self.body(batch["image"].flatten(1)))

    def forward(self, batch: Batch, objective: str) -> tuple[Tensor, dict[str, Any]]:
        return F.cross_entropy(self.logits(batch), batch["label"]), {"scale": self.scale}

    def after_update(self, objective: str) -> None:
        self.mean += torch.rand(10, dtype=self.mean.dtype)

    def update(self, batch: Batch) -> None:
        self.right += int((self.logits(batch).argmax(1) == batch["label"]).sum())
        self.count += len(batch["label"])

    def compute(self) -> dict[str, float]:
        value, self.right, self.count = self.right / self.count, 0, 0
        return {"accuracy": value}
