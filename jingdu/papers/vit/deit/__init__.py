r"""Training data-efficient image transformers & distillation through attention. Touvron, Cord, Douze, Massa, Sablayrolles,
Jegou. 2020. https://arxiv.org/abs/2012.12877

**Problem.** A ViT has nothing of vision built in. On ImageNet's 1.3 million photos alone it stays behind convolutional
networks, and the 300 million that it was first trained on are not to be had.

**Idea.** Make more of each photo: strong augmentation, mixed images with mixed labels, several copies of an image in a
batch, stochastic depth. And let it learn from a convolutional network too, which has vision built in: a second token goes
through all blocks beside the class token, and its output has to agree with the class that the teacher finds most
probable, $y_t = \arg\max_c Z_t(c)$, in what the augmentation has left of the image (Eq. 3):

$$ L = \tfrac12 \mathrm{CE}(\psi(Z_{class}), y) + \tfrac12 \mathrm{CE}(\psi(Z_{distill}), y_t) $$

The two tokens find different vectors, and what both heads say together is better than either (Tab. 3).

**Showed.** On ImageNet alone, 81.8 % with the weights of ViT-B, on one machine in three days; 83.4 % with a RegNetY-16GF as
teacher, which itself has 82.9 %; 85.2 % at 384 pixels after 1000 epochs (README of the authors' code). The token is better
than distillation of the class token, hard or soft (Tab. 3).

Differs from the paper in:
- The mean of both heads is that of their logits, as released; the text adds their softmaxes.
- Soft distillation is divided by the number of classes too, as released (losses.py); Equation 2 is not.
- Repeated augmentation is the engine's `repeats`, whose epochs are not cut to a multiple of 256 images.
- Positions of another size are interpolated as timm does now, smoothed; the authors' cubic is another.
- Colour jitter, which the released arguments name, has no effect there beside RandAugment, and the recipes leave it out.
- Warm-up starts at a step's share of the rate, and not at 1e-6.

Reading order: `augment` and `mixing` (what is shown, and what is asked), `model` (two tokens), `distil` (the losses).
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from jingdu.data.preprocess import IMAGENET, Preprocess
from jingdu.engine.contracts import Recipe, Stage
from jingdu.papers.cnn.alexnet import classify
from jingdu.prediction import Prediction

from .augment import OPERATIONS, colour_jitter, rand_augment, random_erasing
from .distil import Distillation, hard_distillation, soft_distillation
from .mixing import MixedClassification, cutmix, mixed_targets, mixup, soft_cross_entropy
from .model import DeiT, token_similarity

__all__ = [
    "OPERATIONS", "VARIANTS", "DeiT", "Distillation", "MixedClassification", "build", "colour_jitter", "cutmix", "example",
    "hard_distillation", "mixed_targets", "mixup", "predict", "rand_augment", "random_erasing", "soft_cross_entropy",
    "soft_distillation", "token_similarity",
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


SCENES = Preprocess(size=24, resize=24, mean=(0.39,) * 3, std=(0.2,) * 3)
BICUBIC = replace(IMAGENET, interpolation="bicubic")
IMAGENET_STAGE: dict[str, Any] = {
    "data": "imagenet",
    "preprocess": BICUBIC,
    "crop": "googlenet.scale_and_aspect",
    "augment": ("flip", "deit.rand_augment", "deit.random_erasing"),
    "repeats": 3,
    "batch_size": 1024,
    "epochs": 300,
    "optimizer": "adamw",
    "lr": 1e-3,
    "weight_decay": 0.05,
    "schedule": "cosine(warmup=6255, end=0.01)",  # five epochs; 1e-5
    "ema": 0.99996,
    "precision": "bf16",
    "workers": 8,
    "save_every": 1251,
    "evaluate_every": 12510,
}
"""Table 9, column DeiT, and the authors' code (main.py)."""

recipes = {
    "laptop": Recipe(
        stages=(
            Stage(
                name="teacher",
                networks={"network": "resnet20_cifar(width=8)"},
                data="scenes(size=24, count=1500, max_shapes=1)",
                preprocess=SCENES,
                augment=("flip", "random_crop(padding=2)"),
                batch_size=64,
                steps=200,
                lr=0.1,
                schedule="onecycle",
                weight_decay=1e-4,
            ),
            Stage(
                name="student",
                system="deit.Distillation",
                networks={"network": "deit_mini_distilled(width=64, depth=4, heads=4, image_size=24)"},
                data="scenes(size=24, count=1500, max_shapes=1)",
                preprocess=SCENES,
                augment=("flip", "random_crop(padding=2)"),
                batch_size=64,
                steps=400,
                optimizer="adamw",
                lr=1e-3,
                weight_decay=0.05,
                schedule="cosine(warmup=30)",
                clip=1.0,
            ),
        ),
        minutes=3,
        expect={"error": (0.0, 0.5)},
        about="a DeiT of 0.2 million weights learns the shape in 1,500 little scenes, and from a ResNet that learned it there",
    ),
    "paper": Recipe(
        stages=(
            Stage(
                system="deit.Distillation",
                networks={
                    "network": "deit_base_distilled(drop=0.1)",
                    "teacher": "regnet_y16gf(weights='hf:timm/regnety_160.deit_in1k')",
                },
                **IMAGENET_STAGE,
            ),
        ),
        minutes=3 * 24 * 60,
        expect={"error": (0.155, 0.18)},
        machine="16 GPUs of 32 GB",
        about="Table 9 on an ImageNet folder (--data), with hard distillation from the authors' RegNetY-16GF",
    ),
    "alone": Recipe(
        stages=(
            Stage(system="deit.MixedClassification", networks={"network": "deit_base(drop=0.1)"}, **IMAGENET_STAGE),
        ),
        minutes=3 * 24 * 60,
        expect={"error": (0.17, 0.195)},
        machine="16 GPUs of 32 GB",
        about="Table 9 on an ImageNet folder (--data), without a teacher",
    ),
    "finetune": Recipe(
        stages=(
            Stage(
                system="deit.MixedClassification",
                networks={
                    "network": "deit_base(image_size=384, drop=0.1, weights='hf:timm/deit_base_patch16_224.fb_in1k')"
                },
                **{
                    **IMAGENET_STAGE,
                    "preprocess": replace(BICUBIC, size=384, resize=438),
                    "batch_size": 512,
                    "epochs": 30,
                    "lr": 5e-6,
                    "weight_decay": 1e-8,
                    "schedule": "constant",
                },
            ),
        ),
        minutes=24 * 60,
        expect={"error": (0.16, 0.185)},
        machine="16 GPUs of 32 GB",
        about="Section 5.1 on an ImageNet folder (--data): 30 epochs at 384 pixels from weights of 224, with interpolated positions",
    ),
}


def predict(model: DeiT, inputs: Sequence[str], *, top: int = 5) -> Iterator[Prediction]:
    """The most probable classes of image files, by the mean of both heads where there are two.

    Args:
        top: how many classes to give.
    """
    return classify(model, inputs, top=top)
