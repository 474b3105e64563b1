"""Mixed images and mixed labels (Section 6): mixup, CutMix, label smoothing, and the classifier that trains with them.

mixup is Zhang et al. 2017 (arXiv 1710.09412), CutMix Yun et al. 2019 (arXiv 1905.04899), label smoothing Szegedy et al.
2015 (arXiv 1512.00567). As in timm (timm/data/mixup.py), which the authors train with, a batch is mixed with itself in
reverse order, all of it in one way and one proportion.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from jingdu.engine.contracts import Batch
from jingdu.engine.systems import Classification

__all__ = ["MixedClassification", "cutmix", "mixed_targets", "mixup", "soft_cross_entropy"]


def mixup(images: Float[Tensor, "batch c h w"], share: float) -> Float[Tensor, "batch c h w"]:
    """`share` of each image and the rest of the one that stands at its place from the end."""
    return torch.lerp(images.flip(0), images, share)


def cutmix(
    images: Float[Tensor, "batch c h w"], share: float, centre: tuple[float, float]
) -> tuple[Float[Tensor, "batch c h w"], float]:
    """Each image with a box of the one that stands at its place from the end.

    Args:
        share: of the image that is to stay; the box has the rest, and the image's shape.
        centre: of the box, down and across, in [0, 1). Where it reaches over the border it is cut.

    Returns the images, and the share that did stay.
    """
    size = images.shape[2:]
    bounds = []
    for side, place in zip(size, centre, strict=True):
        length, middle = int(side * (1 - share) ** 0.5), int(place * side)
        bounds.append((max(middle - length // 2, 0), min(middle + (length + 1) // 2, side)))
    (top, bottom), (left, right) = bounds
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = images.flip(0)[:, :, top:bottom, left:right]
    return mixed, 1 - (bottom - top) * (right - left) / (size[0] * size[1])


def mixed_targets(
    labels: Int[Tensor, " batch"], classes: int, share: float = 1.0, smoothing: float = 0.0
) -> Float[Tensor, "batch {classes}"]:
    """Smoothed one-hot rows, mixed with themselves in reverse order as the images are."""
    rows = F.one_hot(labels, classes) * (1 - smoothing) + smoothing / classes
    return share * rows + (1 - share) * rows.flip(0)


def soft_cross_entropy(
    logits: Float[Tensor, "batch classes"], targets: Float[Tensor, "batch classes"]
) -> Float[Tensor, ""]:
    """Cross-entropy with probabilities as targets, mean over the batch."""
    return F.cross_entropy(logits.float(), targets)


class MixedClassification(Classification):
    """Softmax cross-entropy on mixed images and labels; evaluation is error, top-5 error and loss.

    A part of a batch (of a process, or of accumulation) is mixed in a way of its own, as each GPU's is in the authors'
    code.

    Args:
        network: gives logits.
        mixup: alpha of the Beta distribution of mixup's share; 0 has no mixup.
        cutmix: alpha of CutMix's; 0 has no CutMix.
        switch: probability of CutMix where there are both.
        p: probability that a batch is mixed.
        label_smoothing: share of a label that is spread over all classes.
    """

    def __init__(
        self, network: nn.Module, mixup: float | int = 0.8, cutmix: float | int = 1.0, switch: float | int = 0.5,
        p: float | int = 1.0, label_smoothing: float | int = 0.1,
    ):  # fmt: skip
        super().__init__(network, label_smoothing)
        self.mixup, self.cutmix, self.switch, self.p = mixup, cutmix, switch, p

    def mix(self, images: Float[Tensor, "batch c h w"]) -> tuple[Float[Tensor, "batch c h w"], float]:
        """The images, mixed in a way that torch's generator draws, and the share of each that stayed."""
        chosen, kind, down, across = torch.rand(4).tolist()
        cuts = self.cutmix > 0 and (self.mixup <= 0 or kind < self.switch)
        alpha = self.cutmix if cuts else self.mixup
        if alpha <= 0 or chosen >= self.p:
            return images, 1.0
        share = torch.distributions.Beta(float(alpha), float(alpha)).sample().item()
        return cutmix(images, share, (down, across)) if cuts else (mixup(images, share), share)

    def forward(self, batch: Batch, objective: str) -> tuple[Tensor, dict[str, Any]]:
        images, share = self.mix(batch["image"])
        logits = self.network(images)
        targets = mixed_targets(batch["label"], logits.shape[1], share, self.label_smoothing)
        return soft_cross_entropy(logits, targets), {"error": (logits.argmax(1) != targets.argmax(1)).float().mean()}
