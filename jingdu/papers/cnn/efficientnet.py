r"""EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks. Tan, Le. 2019. https://arxiv.org/abs/1905.11946

**Problem.** Given twice the computation, should a network become deeper, wider, or see larger pictures? Each alone helps
at first and then hardly any more (Fig. 3); which to take, and how much, was settled by hand for every size anew.

**Idea.** They depend on each other: larger pictures need more layers, to see all of them, and more channels, for the
finer patterns in them. So all three grow together, by one number $\phi$ (Eq. 3):

$$ d = \alpha^\phi \qquad w = \beta^\phi \qquad r = \gamma^\phi \qquad
   \alpha\,\beta^2\,\gamma^2 \approx 2, \quad \alpha, \beta, \gamma \ge 1 $$

As the cost goes with $d \, w^2 r^2$, it doubles with each step of $\phi$. The three constants come from a grid search
on a small network, B0, which itself was found by a search for accuracy times $(\mathrm{FLOPs} / \mathrm{target})^{-0.07}$.

**Showed.** B7 has 84.4 % on ImageNet with 66 million weights, 8.4 times fewer than the best network before (abstract;
84.3 % in the later version); B4 has 82.6 % where ResNet-50 has 76.3 % at like cost (Tab. 2); and compound scaling is up
to 2.5 points better than that of one dimension (Fig. 8).

Differs from the paper in:
- Pictures are padded symmetrically and batch norms have torch's epsilon and momentum, as in torchvision's and timm's own
  weights; `padding="same", eps=0.001, momentum=0.01` is what the released checkpoints need, and B5 to B7 of torchvision
  the last two.
- B0 is taken as the authors give it: the search that found it is `nas`; `reward` is what it maximised.
- Training has no AutoAugment. RMSProp adds its eps outside the root, so that the recipe's is the root of the released one.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from jingdu.data.preprocess import IMAGENET, Preprocess
from jingdu.engine.contracts import Recipe, Stage
from jingdu.errors import UsageError
from jingdu.nn import check_images, quick_layout
from jingdu.papers.cnn.alexnet import classify
from jingdu.papers.cnn.mobilenet import (
    ConvNorm,
    InvertedResidual,
    Style,
    hold_resolution,
    initialise,
    taps_of,
    thinner,
)
from jingdu.papers.cnn.nas import Choice, GridSearch, SearchSpace, score, search
from jingdu.prediction import Prediction, origin_of

__all__ = [
    "CONSTANTS",
    "EfficientNet",
    "SIZES",
    "build",
    "compound",
    "example",
    "grid_search",
    "predict",
    "repeats",
    "reward",
    "scaling_space",
    "work",
]

# Compound scaling (Sec. 3) ----------------------------------------------------------------------------

CONSTANTS = (1.2, 1.1, 1.15)
"""alpha, beta, gamma: what depth, width and resolution grow by (Sec. 4)."""


def work(alpha: float | int, beta: float | int, gamma: float | int) -> float:
    """What the FLOPs are multiplied by: depth counts once, width and resolution squared (Sec. 3.3)."""
    return alpha * beta**2 * gamma**2


def compound(phi: float | int, constants: Sequence[float | int] = CONSTANTS) -> tuple[float, float, float]:
    """Eq. 3: by what depth, width and resolution are multiplied, at the compound coefficient `phi`.

    Raises UsageError for constants below 1, which would make a network smaller in one way as it grows.
    """
    if min(constants) < 1:
        raise UsageError(f"alpha, beta, gamma are {tuple(constants)}: none is below 1")
    alpha, beta, gamma = (constant**phi for constant in constants)
    return alpha, beta, gamma


def repeats(blocks: int, depth: float | int) -> int:
    """Blocks of a stage, rounded up (efficientnet_model.py of tensorflow/tpu, round_repeats)."""
    return math.ceil(blocks * depth)


def scaling_space(
    steps: Sequence[float] = (1.0, 1.05, 1.1, 1.15, 1.2, 1.25, 1.3), factor: float = 2.0, within: float = 0.1
) -> SearchSpace:
    """The grid of step 1: alpha, beta and gamma out of `steps`, of which the work grows by about `factor`.

    Args:
        steps: values of each, 1 or more.
        factor: what the work is to be multiplied by.
        within: by what share it may miss that.
    """
    choices = [Choice(name, tuple(steps), ordered=True) for name in ("alpha", "beta", "gamma")]
    return SearchSpace(choices, allowed=lambda values: abs(work(**values) / factor - 1) <= within)


def grid_search(
    accuracy: Callable[[tuple[float, float, float]], float], space: SearchSpace | None = None
) -> tuple[tuple[float, float, float], Mapping[tuple[float, float, float], float]]:
    """Step 1 of the method: with phi = 1, the constants whose network is the most accurate.

    Args:
        accuracy: trains and tests the base network, scaled by (alpha, beta, gamma); larger is better.
        space: by default `scaling_space()`.

    Returns the best constants, and what each of the grid gave. Raises UsageError where the space allows none.
    """
    space = space or scaling_space()
    found: dict[tuple[float, float, float], float] = {}

    def evaluate(code: tuple[int, ...]) -> float:
        values = space.decode(code)
        constants = values["alpha"], values["beta"], values["gamma"]
        found[constants] = accuracy(constants)
        return found[constants]

    codes = sum(1 for _ in space.codes())
    best = space.decode(search(GridSearch(space), evaluate, max(codes, 1)).best)
    return (best["alpha"], best["beta"], best["gamma"]), found


def reward(accuracy: float | int, flops: float | int, target: float | int = 400e6) -> float:
    """Section 4: what the search for B0 maximised, ACC (FLOPS / T)^-0.07, with a target of 400 million."""
    return score(accuracy, flops, target, exponent=-0.07)


# The network (Tab. 1) ---------------------------------------------------------------------------------

B0 = (
    # blocks, kernel, stride, expansion, channels
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
"""Stages 2 to 8 of Table 1."""


class EfficientNet(nn.Module):
    """Table 1, scaled: a stem, stages of MBConv, a 1x1 convolution, average pool, dropout, `fc`.

    MBConv is MobileNetV2's block with SiLU and a squeeze-excite, whose narrow layer has a quarter of the channels that
    enter the block, before their expansion.

    Args:
        width: what all channels are multiplied by.
        depth: what the blocks of each stage are multiplied by.
        rows: blocks, kernel, stride, expansion and channels of each stage, before both.
        ends: channels of the stem and of the last convolution, before `width`.
        num_classes: outputs.
        in_channels: of the pictures.
        dropout: before `fc`.
        drop_connect: probability that an image skips the last block in training; it grows linearly with the blocks.
        output_stride: input size over that of the last maps, from 2 to 32; dilation replaces the later strides.
        padding: symmetric; same; or keras (see `Style`).
        square: the blocks, counted through, that are padded symmetrically all the same: transformers' depthwise_padding.
        eps: of the batch norms.
        momentum: of the batch norms.
    """

    def __init__(
        self,
        width: float | int = 1.0,
        depth: float | int = 1.0,
        rows: Sequence[Sequence[int]] = B0,
        ends: Sequence[int] = (32, 1280),
        num_classes: int = 1000,
        in_channels: int = 3,
        dropout: float | int = 0.2,
        drop_connect: float | int = 0.2,
        output_stride: int | None = None,
        padding: str = "symmetric",
        square: Sequence[int] = (),
        eps: float = 1e-5,
        momentum: float = 0.1,
    ):
        super().__init__()
        self.width, self.depth, self.drop_connect = width, depth, drop_connect
        self.output_stride, self.square = output_stride, tuple(square)
        style = Style("silu", padding, eps, momentum)
        channels = thinner(ends[0], width)
        self.stem = ConvNorm(in_channels, channels, 3, 2, style=style)
        strides, total = [row[2] for row in rows], sum(repeats(row[0], depth) for row in rows)
        stages, widths, number = [], [], 0
        for (blocks, kernel, _, expansion, outputs), (stride, dilations) in zip(
            rows, hold_resolution(strides, output_stride), strict=True
        ):
            stage = []
            for j in range(repeats(blocks, depth)):
                stage.append(InvertedResidual(
                    channels, thinner(outputs, width), stride if j == 0 else 1, expansion, kernel, dilations[j > 0],
                    squeezed=max(1, channels // 4), drop=drop_connect * number / total,
                    style=replace(style, padding="symmetric") if number in self.square else style,
                ))  # fmt: skip
                channels, number = thinner(outputs, width), number + 1
            stages.append(nn.Sequential(*stage))
            widths.append(channels)
        self.stages = nn.Sequential(*stages)
        self.taps = taps_of(strides)
        self.channels = [widths[i] for i in self.taps]
        last = thinner(ends[1], width)
        self.head = ConvNorm(channels, last, style=style)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(last, num_classes)
        initialise(self)
        # The released code's, uniform by the number of outputs.
        nn.init.uniform_(self.fc.weight, -(num_classes**-0.5), num_classes**-0.5)
        nn.init.zeros_(self.fc.bias)

    def features(self, x: Float[Tensor, "batch channels height width"]) -> list[Tensor]:
        """The last maps of each resolution, shallow to deep, at strides 2, 4, 8, 16, 32; `channels` are their channels.

        With an output stride the later ones stay at that. Raises UsageError for what is no batch of pictures.
        """
        check_images(x, self.stem.conv)
        x, found = self.stem(quick_layout(x, fewest=1)), []
        for number, stage in enumerate(self.stages):
            x = stage(x)
            if number in self.taps:
                found.append(x)
        return found

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        return self.fc(self.dropout(self.head(self.features(x)[-1]).mean((2, 3))))


SIZES: dict[str, int] = {
    "efficientnet_b0": 224, "efficientnet_b1": 240, "efficientnet_b2": 260, "efficientnet_b3": 300,
    "efficientnet_b4": 380, "efficientnet_b5": 456, "efficientnet_b6": 528, "efficientnet_b7": 600, "efficientnet_l2": 800,
}  # fmt: skip
"""Sides of the pictures in pixels: the resolution that belongs to each width and depth."""

VARIANTS: dict[str, dict[str, Any]] = {
    # efficientnet_builder.py of tensorflow/tpu: about phi of Eq. 3, but rounded
    "efficientnet_b0": {"width": 1.0, "depth": 1.0, "dropout": 0.2},
    "efficientnet_b1": {"width": 1.0, "depth": 1.1, "dropout": 0.2},
    "efficientnet_b2": {"width": 1.1, "depth": 1.2, "dropout": 0.3},
    "efficientnet_b3": {"width": 1.2, "depth": 1.4, "dropout": 0.3},
    "efficientnet_b4": {"width": 1.4, "depth": 1.8, "dropout": 0.4},
    "efficientnet_b5": {"width": 1.6, "depth": 2.2, "dropout": 0.4},
    "efficientnet_b6": {"width": 1.8, "depth": 2.6, "dropout": 0.5},
    "efficientnet_b7": {"width": 2.0, "depth": 3.1, "dropout": 0.5},
    # Xie et al., "Self-training with Noisy Student improves ImageNet classification", arXiv 1911.04252
    "efficientnet_l2": {"width": 4.3, "depth": 5.3, "dropout": 0.5},
}


def build(variant: str, **overrides: Any) -> EfficientNet:
    """The network of a variant; overrides are the arguments of `EfficientNet`."""
    return EfficientNet(**{**VARIANTS[variant], **overrides})


def example(variant: str, batch: int) -> Float[Tensor, "batch 3 size size"]:
    """Noise in the shape of a variant's pictures."""
    size = SIZES[variant]
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))


# Training and use -------------------------------------------------------------------------------------

SCENES = Preprocess(size=48, resize=48, mean=(0.391, 0.384, 0.377), std=(0.2, 0.2, 0.2))
"""Mean of the pixels of `scenes`, and one number for the scale of the rest."""
SMALL = "rows=((1, 3, 1, 1, 16), (2, 3, 2, 4, 24), (2, 5, 2, 4, 40)), ends=(16, 160), dropout=0.0, drop_connect=0.0"

recipes = {
    "laptop": Recipe(
        stages=(
            Stage(
                networks={"network": f"efficientnet_b0({SMALL})"},
                data="scenes(fields=('image', 'label'))",
                preprocess=SCENES,
                augment=("flip",),
                batch_size=32,
                steps=800,
                lr=0.1,
                schedule="onecycle",
                weight_decay=5e-4,
                save_every=100,
            ),
        ),
        minutes=2,
        expect={"error": (0.0, 0.10)},
        about="five blocks tell the largest shape in 4,000 scenes of 48x48 pixels",
    ),
    "paper": Recipe(
        stages=(
            Stage(
                networks={"network": "efficientnet_b0(momentum=0.01, eps=0.001)"},
                system="classification(label_smoothing=0.1)",
                data="imagenet",
                preprocess=IMAGENET,
                crop="vgg.scale_jitter(low=224, high=288)",
                augment=("flip",),
                batch_size=2048,
                epochs=350,
                optimizer="rmsprop",
                betas=(0.9, 0.9),
                momentum=0.9,
                eps=0.0316,
                lr=0.128,
                schedule="step(every=2.4, factor=0.97, warmup=3128)",
                weight_decay=1e-5,
                ema=0.9999,
                channels_last=True,
                workers=8,
                save_every=5000,
            ),
        ),
        minutes=5 * 24 * 60,
        expect={"error": (0.225, 0.25)},
        machine="8 GPUs",
        about="Section 5.2 on an ImageNet folder (--data): RMSProp, rate 0.016 a 256 images times 0.97 every 2.4 epochs, "
        "five epochs of warm-up, weight decay on all but norms, averaged weights; without AutoAugment",
    ),
}


def predict(
    model: EfficientNet, inputs: Sequence[str], *, top: int = 5, crops: Literal["centre", "ten"] = "centre"
) -> Iterator[Prediction]:
    """The most probable classes of image files, at the variant's own resolution.

    Weights may bring another one. Without, a picture's shorter side becomes 32 pixels more than the network's, and the
    centre is cut out, as the released code does for B0.

    Args:
        top: how many classes to give.
        crops: one centre crop, or the average of ten.
    """
    origin = origin_of(model)
    if origin.preprocess is None and origin.variant in SIZES:
        size = SIZES[origin.variant]
        model.origin = replace(
            origin, preprocess=replace(IMAGENET, size=size, resize=size + 32, interpolation="bicubic")
        )
    return classify(model, inputs, top=top, crops=crops)
