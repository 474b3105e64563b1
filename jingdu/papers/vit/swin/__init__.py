r"""Swin Transformer: Hierarchical Vision Transformer using Shifted Windows. Liu, Lin, Cao, Hu, Wei, Zhang, Lin, Guo.
2021. https://arxiv.org/abs/2103.14030

**Problem.** ViT's maps have one coarse resolution, and each of their patches looks at all: the cost grows with the square
of the pixels. Detection and segmentation need fine maps of several sizes, of large pictures.

**Idea.** Each token looks at those of its window alone, of MxM tokens, and every second block displaces the windows by
half of one, so that neighbours that a border parts meet in the next block (Eq. 3):

$$ \hat z^l = \mathrm{W\text{-}MSA}(\mathrm{LN}(z^{l-1})) + z^{l-1}, \quad z^l = \mathrm{MLP}(\mathrm{LN}(\hat z^l)) + \hat z^l $$
$$ \hat z^{l+1} = \mathrm{SW\text{-}MSA}(\mathrm{LN}(z^l)) + z^l, \quad z^{l+1} = \mathrm{MLP}(\mathrm{LN}(\hat z^{l+1})) + \hat z^{l+1} $$

In a window, $\mathrm{softmax}(q k^\top / \sqrt d + B)\, v$, where $B$ is learned for each relative position (Eq. 4). Between
stages 2x2 tokens become one of twice the width. For $hw$ tokens of width $C$ an attention costs

$$ \Omega(\mathrm{MSA}) = 4 hw C^2 + 2 (hw)^2 C, \qquad \Omega(\mathrm{W\text{-}MSA}) = 4 hw C^2 + 2 M^2 hw C $$

multiplications (Eq. 1, 2): linear in the pixels, where global attention's are quadratic.

**Showed.** 58.7 box AP and 51.1 mask AP on COCO test-dev, 53.5 mIoU on ADE20K, 87.3 % on ImageNet (Tab. 1-3). Without the
displacement Swin-T has 80.2 % and not 81.3, without the bias 80.1 (Tab. 4).

Differs from the paper in:
- Roll, padding and cut are one step, and windows whose tokens see each other alike are attended together.
- A table for another window is resized by BEiT's geometric progression, as timm does; `resize_bias(how="bicubic")` is the
  paper's way.
- `swin_mini` is ours.

Reading order: `windows` (where they lie, the attention in them), `model` (stages, the network, the pyramid), `matching`
(pictures whose label no window sees).
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from jingdu.data.preprocess import IMAGENET, Preprocess
from jingdu.engine.contracts import Recipe
from jingdu.engine.contracts import Stage as Training
from jingdu.papers.cnn.alexnet import classify
from jingdu.prediction import Prediction

from .matching import Matching, matching
from .model import PatchMerging, Pyramid, Stage, Swin, attention_cost
from .windows import Layout, WindowAttention, layout, partition, relative_index, resize_bias, reverse

__all__ = [
    "VARIANTS", "Layout", "Matching", "PatchMerging", "Pyramid", "Stage", "Swin", "WindowAttention", "attention_cost", "build",
    "example", "layout", "matching", "partition", "predict", "relative_index", "resize_bias", "reverse",
]  # fmt: skip

DEEP = {"depths": (2, 2, 18, 2)}
BASE = {**DEEP, "width": 128, "heads": (4, 8, 16, 32)}
LARGE = {**DEEP, "width": 192, "heads": (6, 12, 24, 48)}
BIG = {"image_size": 384, "window": 12}

VARIANTS: dict[str, dict[str, Any]] = {
    # Section 3.3
    "swin_tiny": {},
    "swin_small": DEEP,
    "swin_base": BASE,
    "swin_large": LARGE,
    "swin_base_window12_384": {**BASE, **BIG},
    "swin_large_window12_384": {**LARGE, **BIG},
    # Ours, for scenes of 32 to 48 pixels: as many multiplications as vit_mini
    "swin_mini": {
        "width": 48, "depths": (2, 2, 2), "heads": (3, 6, 12), "patch": 2, "window": 4, "image_size": 32, "num_classes": 8,
    },
}  # fmt: skip


def build(variant: str, **overrides: Any) -> Swin:
    """The network of a variant; overrides are the arguments of `Swin` and of its blocks."""
    return Swin(**{**VARIANTS[variant], **overrides})


def example(variant: str, batch: int) -> Tensor:
    """Noise in the shape of the variant's images."""
    size = VARIANTS[variant].get("image_size", 224)
    return torch.randn((batch, 3, size, size), generator=torch.Generator().manual_seed(0))


SCENES = Preprocess(size=36, resize=36, mean=(0.4,) * 3, std=(0.2,) * 3)

recipes = {
    "laptop": Recipe(
        stages=(
            Training(
                networks={
                    "network": "swin_mini(image_size=36, patch=6, window=3, width=32, depths=(2,), heads=(2,), num_classes=2)"
                },
                data="swin.matching(asks='match', others=2)",
                preprocess=SCENES,
                batch_size=64,
                steps=450,
                optimizer="adamw",
                lr=4e-3,
                weight_decay=0.02,
                schedule="cosine(warmup=30)",
                clip=1.0,
            ),
        ),
        minutes=1.5,
        expect={"error": (0.0, 0.2)},
        about="a Swin of one stage, 30 thousand weights, says whether a ring has the colour of the disc behind its window's border",
    ),
    "paper": Recipe(
        stages=(
            Training(
                networks={"network": "swin_tiny(drop=0.2)"},
                system="deit.MixedClassification",
                data="imagenet",
                preprocess=Preprocess(
                    size=224, resize=256, interpolation="bicubic", mean=IMAGENET.mean, std=IMAGENET.std
                ),
                crop="googlenet.scale_and_aspect",
                augment=("flip", "deit.rand_augment", "deit.random_erasing"),
                batch_size=1024,
                epochs=300,
                optimizer="adamw",
                lr=1e-3,
                weight_decay=0.05,
                schedule="cosine(warmup=25000, end=0.01)",
                clip=5.0,
                workers=8,
                save_every=2500,
            ),
        ),
        minutes=2 * 24 * 60,
        expect={"error": (0.18, 0.2)},
        machine="8 GPUs",
        about="Section 4.1 and the authors' configuration, from an ImageNet folder (--data): 81.2 %; Swin-S and -B skip with "
        "drop=0.3 and 0.5",
    ),
}


def predict(model: Swin, inputs: Sequence[str], *, top: int = 5) -> Iterator[Prediction]:
    """The most probable classes of image files.

    Args:
        top: how many classes to give.
    """
    return classify(model, inputs, top=top)
