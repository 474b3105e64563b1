"""Distillation (Section 4): what a student learns from a teacher's answers, and how."""

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from jingdu.engine.contracts import Batch, Objective
from jingdu.errors import UsageError, unknown
from jingdu.metrics.classification import Accuracy

from .mixing import MixedClassification, mixed_targets, soft_cross_entropy
from .model import DeiT

__all__ = ["Distillation", "hard_distillation", "soft_distillation"]

Kind = Literal["hard", "soft"]


def hard_distillation(
    logits: Float[Tensor, "batch classes"], teacher: Float[Tensor, "batch classes"]
) -> Float[Tensor, ""]:
    """Equation 3's second term: cross-entropy with the class that the teacher finds most probable."""
    return F.cross_entropy(logits.float(), teacher.argmax(1))


def soft_distillation(
    logits: Float[Tensor, "batch classes"], teacher: Float[Tensor, "batch classes"], tau: float | int = 1.0
) -> Float[Tensor, ""]:
    r"""Equation 2's second term: $\tau^2 \mathrm{KL}(\psi(Z_t / \tau), \psi(Z_s / \tau))$ at the temperature `tau`.

    Divided by the batch and by the classes, as released (losses.py).
    """
    ours, theirs = (F.log_softmax(scores.float() / tau, 1) for scores in (logits, teacher))
    return F.kl_div(ours, theirs, reduction="sum", log_target=True) * tau**2 / logits.numel()


class Distillation(MixedClassification):
    """A student that learns from labels and from a teacher, which sees the same mixed images.

    The teacher is compared with the distillation head, or where there is none with the class head. Evaluation is by
    what the network says, and with two heads also by each of them: `class_error`, `distillation_error`.

    Args:
        network: the student.
        teacher: any classifier of the same classes; without one it is the network of the recipe's stage before.
        kind: hard labels, or soft ones.
        alpha: what the teacher's share of the loss is.
        tau: temperature of soft labels.
        previous: finished systems of earlier stages.
        mixup: this and what follows as of `MixedClassification`.

    Raises UsageError where there is no teacher, and for another kind.
    """

    objectives = (Objective("loss", ("network.",)),)

    def __init__(
        self,
        network: nn.Module,
        teacher: nn.Module | None = None,
        kind: Kind | str = "hard",
        alpha: float | int = 0.5,
        tau: float | int = 1.0,
        previous: Mapping[str, Any] | None = None,
        mixup: float | int = 0.8,
        cutmix: float | int = 1.0,
        switch: float | int = 0.5,
        p: float | int = 1.0,
        label_smoothing: float | int = 0.1,
    ):
        super().__init__(network, mixup, cutmix, switch, p, label_smoothing)
        if kind not in get_args(Kind):
            raise unknown("kind of distillation", str(kind), get_args(Kind))
        if teacher is None and not previous:
            raise UsageError("distillation needs a teacher: give it as a network, or train it in a stage before")
        self.teacher = (list((previous or {}).values())[-1].network if teacher is None else teacher).eval()
        self.teacher.requires_grad_(False)
        self.kind, self.alpha, self.tau = kind, alpha, tau
        two = isinstance(network, DeiT) and network.distillation_head is not None
        self.heads = {"class_error": Accuracy(), "distillation_error": Accuracy()} if two else {}

    def train(self, mode: bool = True) -> "Distillation":
        """The student's mode; a teacher is always asked as it would be used."""
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, batch: Batch, objective: str) -> tuple[Tensor, dict[str, Any]]:
        images, share = self.mix(batch["image"])
        with torch.no_grad():
            taught = self.teacher(images)
        said = self.network(images)
        logits, distilled = said if isinstance(said, tuple) else (said, said)
        targets = mixed_targets(batch["label"], logits.shape[1], share, self.label_smoothing)
        hard = self.kind == "hard"
        lesson = hard_distillation(distilled, taught) if hard else soft_distillation(distilled, taught, self.tau)
        loss = (1 - self.alpha) * soft_cross_entropy(logits, targets) + self.alpha * lesson
        error = (logits.argmax(1) != targets.argmax(1)).float().mean()
        return loss, {"error": error, "disagreement": (distilled.argmax(1) != taught.argmax(1)).float().mean()}

    def update(self, batch: Batch) -> None:
        if not self.heads:
            super().update(batch)
            return
        both = self.network.both(batch["image"])
        self.accuracy.update(sum(both).float() / 2, batch["label"])
        for head, logits in zip(self.heads.values(), both, strict=True):
            head.update(logits.float(), batch["label"])

    def compute(self) -> dict[str, float]:
        return {**super().compute(), **{name: head.compute()["error"] for name, head in self.heads.items()}}
