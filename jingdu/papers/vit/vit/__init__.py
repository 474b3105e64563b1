r"""An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale. Dosovitskiy, Beyer, Kolesnikov,
Weissenborn, Zhai, Unterthiner, Dehghani, Minderer, Heigold, Gelly, Uszkoreit, Houlsby. 2020.
https://arxiv.org/abs/2010.11929

**Problem.** Transformers rule language and grow with data and size. In vision, attention helps convolutions or has
patterns of its own that run badly on today's machines; a pixel that attends to all others costs the square of the pixels.

**Idea.** Change nothing of the Transformer, and make the image a sentence: cut it into patches of 16x16 pixels
$x_p^i$, map each by one matrix $E$ to a token, put a learned class token before them and add learned positions:

$$ z_0 = [x_{class};\, x_p^1 E;\, \dots;\, x_p^N E] + E_{pos}, \quad
   z'_l = \mathrm{MSA}(\mathrm{LN}(z_{l-1})) + z_{l-1}, \quad z_l = \mathrm{MLP}(\mathrm{LN}(z'_l)) + z'_l $$

The class is read from $\mathrm{LN}(z_L^0)$. That two pixels are neighbours, or that a cat is a cat wherever it sits, the
network has to learn from data.

**Showed.** With much data to learn from it needs no convolutions: pre-trained on 303 million photos, ViT-H/14 has 88.55 %
on ImageNet (Tab. 2). With little, ResNets are better (Fig. 3, 4).

Differs from the paper in:
- The MLPs have the exact GELU, as the ports; the authors' code has its approximation (`activation="gelu_tanh"`).
- `vit_tiny16`, `vit_small16` and `vit_small32` are of later papers (DeiT; Steiner et al. 2021).
- Positions are interpolated as timm does; `resize_positions(how="bilinear")` is the authors' way.

Reading order: `layers` (patches, the block), `model` (the network), `hybrid` (a ResNet before it), `looking` (attention).
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from jingdu.data.preprocess import Preprocess
from jingdu.engine.contracts import Recipe, Stage
from jingdu.papers.cnn.alexnet import classify
from jingdu.prediction import Prediction

from .hybrid import Backbone, HybridEmbed, StandardisedConv2d
from .layers import MLP, PatchEmbed, SelfAttention, ViTBlock, resize_positions
from .looking import (
    attention_distance,
    attention_maps,
    overlay,
    own_preprocess,
    position_similarity,
    rollout,
    show_attention,
)
from .model import ViT, check_pictures, divide

__all__ = [
    "MLP", "VARIANTS", "Backbone", "HybridEmbed", "PatchEmbed", "SelfAttention", "StandardisedConv2d", "ViT",
    "ViTBlock", "attention_distance", "attention_maps", "build", "check_pictures", "divide", "example", "overlay", "own_preprocess",
    "position_similarity", "predict", "resize_positions", "rollout", "show_attention",
]  # fmt: skip

TINY = {"width": 192, "heads": 3}
SMALL = {"width": 384, "heads": 6}
LARGE = {"width": 1024, "depth": 24, "heads": 16}
HUGE = {"width": 1280, "depth": 32, "heads": 16, "patch": 14}
HYBRID = {"hybrid": (3, 4, 9)}

VARIANTS: dict[str, dict[str, Any]] = {
    # Table 1; tiny and small are of later papers. First is what `create("vit")` gives.
    "vit_base16": {},
    "vit_tiny16": TINY,
    "vit_small16": SMALL,
    "vit_small32": {**SMALL, "patch": 32},
    "vit_base32": {"patch": 32},
    "vit_base16_384": {"image_size": 384},
    "vit_large16": LARGE,
    "vit_large16_384": {**LARGE, "image_size": 384},
    "vit_large32": {**LARGE, "patch": 32},
    "vit_huge14": HUGE,
    # Section 3.1, Hybrid Architecture
    "vit_r50_base16_224": HYBRID,
    "vit_r50_base16_384": {**HYBRID, "image_size": 384},
    # Ours, for scenes of 32x32 pixels
    "vit_mini": {"width": 96, "depth": 6, "heads": 3, "patch": 4, "image_size": 32, "num_classes": 8},
}


def build(variant: str, **overrides: Any) -> ViT:
    """The network of a variant; overrides are the arguments of `ViT` and of its blocks."""
    return ViT(**{**VARIANTS[variant], **overrides})


def example(variant: str, batch: int) -> Tensor:
    """Noise in the shape of the variant's images."""
    size = VARIANTS[variant].get("image_size", 224)
    return torch.randn((batch, 3, size, size), generator=torch.Generator().manual_seed(0))


HALF = Preprocess(size=224, resize=224, mean=(0.5,) * 3, std=(0.5,) * 3)
"""The authors' preprocessing: pixels from -1 to 1."""
DIGITS = Preprocess(mean=(0.305,), std=(0.376,), channels=1)

recipes = {
    "laptop": Recipe(
        stages=(
            Stage(
                networks={
                    "network": "vit_mini(width=48, depth=4, heads=3, patch=2, image_size=8, in_channels=1, num_classes=10)"
                },
                data="digits",
                preprocess=DIGITS,
                augment=("random_crop(padding=1)",),
                batch_size=64,
                steps=1500,
                optimizer="adamw",
                lr=2e-3,
                weight_decay=0.05,
                schedule="cosine(warmup=50)",
                clip=1.0,
            ),
        ),
        minutes=1.5,
        expect={"error": (0.01, 0.1)},
        about="a ViT of 0.1 million weights reads digits of 8x8 pixels, in patches of 2x2; scenes of 32x32 want many more "
        "images than a laptop has minutes for",
    ),
    "paper": Recipe(
        stages=(
            Stage(
                name="pre-training",
                networks={"network": "vit_base16(dropout=0.1, representation=768)"},
                data="imagenet",
                preprocess=HALF,
                crop="vgg.scale_jitter(low=224, high=480)",
                augment=("flip",),
                batch_size=4096,
                epochs=300,
                optimizer="adam",
                lr=3e-3,
                weight_decay=0.3,
                schedule="cosine(warmup=10000)",
                clip=1.0,
                workers=8,
                save_every=2000,
            ),
        ),
        minutes=3 * 24 * 60,
        expect={"error": (0.2, 0.27)},
        machine="8 TPU chips",
        about="Table 3: ImageNet alone, from an ImageNet folder (--data); the paper's own weights saw 14 and 303 million photos",
    ),
}


def predict(model: ViT, inputs: Sequence[str], *, top: int = 5) -> Iterator[Prediction]:
    """The most probable classes of image files.

    Args:
        top: how many classes to give.
    """
    return classify(model, inputs, top=top)
