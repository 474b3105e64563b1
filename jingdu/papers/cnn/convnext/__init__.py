r"""A ConvNet for the 2020s. Liu, Mao, Wu, Feichtenhofer, Darrell, Xie. 2022. https://arxiv.org/abs/2201.03545

**Problem.** Swin beats ResNets, and is said to do so by attention. But it was also trained otherwise, and everything around
its attention differs: stem, widths, norms, activations, where the side halves. What of this is it?

**Idea.** Take nothing from transformers but their habits. Start from a ResNet-50, train it as a transformer is trained, and
change one thing at a time towards Swin-T, at equal cost. What stands at the end of the road is a block without attention,

$$ y = x + \gamma\, W_2\, \mathrm{GELU}\big(W_1\, \mathrm{LN}(\mathrm{depthwise}_{7 \times 7}(x))\big) $$

with $W_1$ four times as wide as it is high: a depthwise convolution mixes places, two linear layers mix channels.

**Showed.** The recipe alone lifts ResNet-50 from 76.1 to 78.8 % on ImageNet, the road to 82.0, above Swin-T's 81.3 (Fig. 2).
ConvNeXt-T/S/B/L have 82.1, 83.1, 83.8 and 84.3 %, XL with ImageNet-22K 87.8 (Tab. 1); its backbones beat Swin's in detection
and segmentation (Tab. 3, 4).

Differs from the paper in:
- `convnext_atto`, `femto`, `pico` and `nano` are timm's (Wightman 2022); `convnext_mini` is ours.
- On the road, what the text leaves open is told at `Road`.
- Larger stems and heads of timm's other ConvNeXts (ols, hnf, mlp), and version 2, are left out.

Reading order: `layers` (the norm, the block), `model` (four stages, one width, the pyramid), `roadmap` (from ResNet-50 here).
"""

from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from jingdu.data.preprocess import IMAGENET, Preprocess
from jingdu.engine.contracts import Recipe
from jingdu.engine.contracts import Stage as Training
from jingdu.papers.cnn.alexnet import classify
from jingdu.prediction import Prediction

from .layers import ConvNeXtBlock, Downsample, LayerNorm2d, Stem, channel_norm
from .model import ConvNeXt, Isotropic, Pyramid, Stage
from .roadmap import STEPS, Road, RoadBlock, Step

__all__ = [
    "STEPS", "VARIANTS", "ConvNeXt", "ConvNeXtBlock", "Downsample", "Isotropic", "LayerNorm2d", "Pyramid", "Road", "RoadBlock",
    "Stage", "Stem", "Step", "build", "channel_norm", "predict",
]  # fmt: skip

DEEP = (3, 3, 27, 3)
SHALLOW = (2, 2, 6, 2)

VARIANTS: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    # Section 3. First is what `create("convnext")` gives.
    "convnext_tiny": (ConvNeXt, {}),
    "convnext_small": (ConvNeXt, {"depths": DEEP}),
    "convnext_base": (ConvNeXt, {"depths": DEEP, "widths": (128, 256, 512, 1024)}),
    "convnext_large": (ConvNeXt, {"depths": DEEP, "widths": (192, 384, 768, 1536)}),
    "convnext_xlarge": (ConvNeXt, {"depths": DEEP, "widths": (256, 512, 1024, 2048)}),
    # timm's
    "convnext_atto": (ConvNeXt, {"depths": SHALLOW, "widths": (40, 80, 160, 320)}),
    "convnext_femto": (ConvNeXt, {"depths": SHALLOW, "widths": (48, 96, 192, 384)}),
    "convnext_pico": (ConvNeXt, {"depths": SHALLOW, "widths": (64, 128, 256, 512)}),
    "convnext_nano": (ConvNeXt, {"depths": (2, 2, 8, 2), "widths": (80, 160, 320, 640)}),
    # Table 2
    "convnext_isotropic_small": (Isotropic, {}),
    "convnext_isotropic_base": (Isotropic, {"width": 768}),
    "convnext_isotropic_large": (Isotropic, {"width": 1024, "depth": 36}),
    # Figure 2: steps=0 is ResNet-50, steps=12 ConvNeXt-T
    "convnext_roadmap": (Road, {}),
    # Ours, for scenes of 32 to 48 pixels: as many multiplications as swin_mini
    "convnext_mini": (ConvNeXt, {"depths": (3, 3, 3), "widths": (48, 96, 192), "patch": 2, "num_classes": 8}),
}


def build(variant: str, **overrides: Any) -> nn.Module:
    """The network of a variant; overrides are the arguments of `ConvNeXt`, `Isotropic` or `Road`."""
    network, arguments = VARIANTS[variant]
    return network(**{**arguments, **overrides})


SCENES = Preprocess(size=32, resize=32, mean=(0.4,) * 3, std=(0.2,) * 3)


def _imagenet(network: str, about: str, error: tuple[float, float], minutes: float, **changes: Any) -> Recipe:
    options: dict[str, Any] = {
        "system": "deit.MixedClassification",
        "networks": {"network": network},
        "data": "imagenet",
        "preprocess": IMAGENET,
        "crop": "vgg.scale_jitter(low=224, high=480)",
        "augment": ("flip", "deit.rand_augment", "deit.random_erasing"),
        "optimizer": "adamw",
        "weight_decay": 0.05,
        "channels_last": True,
        "workers": 8,
        "save_every": 2000,
        **changes,
    }
    return Recipe(
        stages=(Training(**options),), minutes=minutes, expect={"error": error}, machine="8 GPUs", about=about
    )


recipes = {
    "laptop": Recipe(
        stages=(
            Training(
                networks={"network": "convnext_mini"},
                data="scenes(size=32)",
                preprocess=SCENES,
                batch_size=64,
                steps=300,
                optimizer="adamw",
                lr=2e-3,
                weight_decay=0.05,
                schedule="cosine(warmup=30)",
                clip=5.0,
            ),
        ),
        minutes=4,
        expect={"error": (0.0, 0.5)},
        about="a ConvNeXt of 1.3 million weights names the largest shape of little scenes",
    ),
    "paper": _imagenet(
        "convnext_tiny(drop=0.1)",
        "Appendix A.1 and the authors' TRAINING.md, from an ImageNet folder (--data): 82.1 %",
        (0.17, 0.20),
        4 * 24 * 60,
        batch_size=4096,
        epochs=300,
        lr=4e-3,
        schedule="cosine(warmup=6260)",  # 20 epochs
        ema=0.9999,
    ),
}


def predict(model: nn.Module, inputs: Sequence[str], *, top: int = 5) -> Iterator[Prediction]:
    """The most probable classes of image files.

    Args:
        top: how many classes to give.
    """
    return classify(model, inputs, top=top)
