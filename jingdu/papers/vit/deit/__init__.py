r"""Training data-efficient image transformers & distillation through attention. Touvron, Cord, Douze, Massa, Sablayrolles,
Jegou. 2020. https://arxiv.org/abs/2012.12877

**Problem.** A ViT needs hundreds of millions of photos that few have: on ImageNet's 1.3 million alone it "does not
generalize well", and a convolutional network of the same cost beats it.

**Idea.** Differs from the paper in:
- nothing yet
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from jingdu.papers.cnn.alexnet import classify
from jingdu.prediction import Prediction

from .augment import OPERATIONS, colour_jitter, rand_augment, random_erasing
from .mixing import MixedClassification, cutmix, mixed_targets, mixup, soft_cross_entropy
from .model import DeiT

__all__ = [
    "OPERATIONS", "VARIANTS", "DeiT", "MixedClassification", "build", "colour_jitter", "cutmix", "example",
    "mixed_targets", "mixup", "predict", "rand_augment", "random_erasing", "soft_cross_entropy",
]  # fmt: skip

TINY = {"width": 192, "heads": 3}
SMALL = {"width": 384, "heads": 6}

VARIANTS: dict[str, dict[str, Any]] = {
    # Table 1 and Section 5. First is what `create("deit")` gives.
    "deit_base": {},
    "deit_tiny": TINY,
    "deit_small": SMALL,
    "deit_tiny_distilled": {**TINY, "distilled": True},
    "deit_small_distilled": {**SMALL, "distilled": True},
    "deit_base_distilled": {"distilled": True},
    "deit_base_384": {"image_size": 384},
    "deit_base_distilled_384": {"image_size": 384, "distilled": True},
    # Ours, for scenes of 32x32 pixels
    "deit_mini": {"width": 96, "depth": 6, "heads": 3, "patch": 4, "image_size": 32, "num_classes": 8},
    "deit_mini_distilled": {
        "width": 96, "depth": 6, "heads": 3, "patch": 4, "image_size": 32, "num_classes": 8, "distilled": True,
    },
}  # fmt: skip


def build(variant: str, **overrides: Any) -> DeiT:
    """The network of a variant; overrides are the arguments of `DeiT` and of its blocks."""
    return DeiT(**{**VARIANTS[variant], **overrides})


def example(variant: str, batch: int) -> Tensor:
    """Noise in the shape of the variant's images."""
    size = VARIANTS[variant].get("image_size", 224)
    return torch.randn((batch, 3, size, size), generator=torch.Generator().manual_seed(0))


recipes: dict[str, Any] = {}


def predict(model: DeiT, inputs: Sequence[str], *, top: int = 5) -> Iterator[Prediction]:
    """The most probable classes of image files.

    Args:
        top: how many classes to give.
    """
    return classify(model, inputs, top=top)
