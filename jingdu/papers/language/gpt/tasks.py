"""Tasks as sequences, and learning them (Sections 3.2 and 3.3, Figure 1)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jingdu.data.base import Batch
from jingdu.engine.contracts import System
from jingdu.engine.loop import load_system
from jingdu.errors import UsageError
from jingdu.metrics.classification import Accuracy

from .model import GPT

__all__ = ["FineTuning", "multiple_choice", "pair", "similarity", "single", "take_up"]


def single(text: Sequence[int], vocabulary: int) -> list[list[int]]:
    """Classification: one sequence, start text end. The marks follow the words: start, delimiter, end."""
    return [[vocabulary, *text, vocabulary + 2]]


def pair(first: Sequence[int], second: Sequence[int], vocabulary: int) -> list[list[int]]:
    """Entailment: one sequence, start premise delimiter hypothesis end."""
    return [[vocabulary, *first, vocabulary + 1, *second, vocabulary + 2]]


def similarity(first: Sequence[int], second: Sequence[int], vocabulary: int) -> list[list[int]]:
    """Similarity has no order: both of them, whose final states are added."""
    return pair(first, second, vocabulary) + pair(second, first, vocabulary)


def multiple_choice(context: Sequence[int], answers: Sequence[Sequence[int]], vocabulary: int) -> list[list[int]]:
    """Question answering: one sequence for each answer, whose scores meet in a softmax."""
    return [sequence for answer in answers for sequence in pair(context, answer, vocabulary)]


class FineTuning(System):
    """Section 3.2: a task's loss, and predicting its tokens as a second one.

    A batch has `tokens` int64 [batch, sequences, time], `mask` of the same shape (False behind the end token), and
    `label` [batch]. The network has a `head`: of one output where the sequences are choices, else of one a class.

    Args:
        network: a GPT with three marks and a head.
        auxiliary: lambda of Equation 5; the paper's is 0.5.
        choices: the sequences are answers to choose from; else their states are added.
        frozen: train the task's linear layer alone, on the states of a network that stays as it is.
        start: the name of an earlier stage, or the folder of a run, whose network is gone on with; None begins from
            nothing.
        previous: the finished stages, by name.
    """

    def __init__(
        self, network: GPT, auxiliary: float = 0.5, choices: bool = False, frozen: bool = False,
        start: str | None = None, previous: dict[str, Any] | None = None,
    ):  # fmt: skip
        super().__init__()
        if network.head is None or network.marks < 3:
            raise UsageError("fine-tuning needs a network with marks=3 and classes, such as gpt1(marks=3, classes=8)")
        self.network, self.auxiliary, self.choices = network, auxiliary, choices
        self.accuracy = Accuracy()
        if start is not None:
            stages = previous or {}
            if start not in stages and not Path(start).is_dir():
                raise UsageError(f"no earlier stage {start!r}, and no run folder: there are {sorted(stages)}")
            take_up(network, (stages[start] if start in stages else load_system(Path(start))).network)
        if frozen:
            network.requires_grad_(False)
            network.head.requires_grad_(True)

    def _read(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits of the task [batch, classes], and the states that they were read from [batch * sequences, time, width]."""
        tokens, mask = (batch[name].flatten(0, 1) for name in ("tokens", "mask"))
        hidden = self.network(tokens, mask, states=True)
        end = mask.long().sum(1) - 1
        states = hidden[torch.arange(len(hidden), device=hidden.device), end].unflatten(0, batch["tokens"].shape[:2])
        states = self.network.dropout(states)
        head = self.network.head
        return (head(states)[..., 0] if self.choices else head(states.sum(1))), hidden

    def forward(self, batch: Batch, objective: str) -> tuple[Tensor, dict[str, Any]]:
        scores, hidden = self._read(batch)
        task = F.cross_entropy(scores.float(), batch["label"])
        values = {"task": task.detach(), "error": (scores.detach().argmax(1) != batch["label"]).float().mean()}
        if not self.auxiliary:
            return task, values
        tokens, mask = (batch[name].flatten(0, 1) for name in ("tokens", "mask"))
        targets = tokens[:, 1:].masked_fill(~mask[:, 1:], -100)
        language = F.cross_entropy(self.network.logits(hidden[:, :-1]).float().flatten(0, 1), targets.flatten())
        return task + self.auxiliary * language, {**values, "language": language.detach()}

    def update(self, batch: Batch) -> None:
        self.accuracy.update(self._read(batch)[0].float(), batch["label"])

    def compute(self) -> dict[str, float]:
        return self.accuracy.compute()


@torch.no_grad()
def take_up(network: nn.Module, trained: nn.Module) -> None:
    """Copy a pre-trained network's weights; what is new (marks, head) keeps its initial values."""
    new = dict(network.named_parameters())
    for name, old in trained.named_parameters():
        new[name][: len(old)] = old
