r"""MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications. Howard, Zhu, Chen, Kalenichenko,
Wang, Weyand, Andreetto, Adam. 2017. https://arxiv.org/abs/1704.04861

And version 2: MobileNetV2: Inverted Residuals and Linear Bottlenecks. Sandler, Howard, Zhu, Zhmoginov, Chen. 2018.
https://arxiv.org/abs/1801.04381

**Problem.** A network that labels a photo as well as VGG needs billions of multiplications, which a telephone
has neither the time nor the battery for. Every device allows another amount.

**Idea.** A convolution filters and mixes channels in one step. Do it in two: a *depthwise* 3x3 filter on each channel
alone, then a *pointwise* 1x1 convolution that mixes them. For kernels of side $D_K$, $M$ channels in and $N$ out, on
maps of side $D_F$, that costs (Eq. 5)

$$ D_K^2 \, M \, D_F^2 + M \, N \, D_F^2 $$

multiplications, $1/N + 1/D_K^2$ of what they cost together: with 3x3 kernels eight or nine times less. Two numbers
then fit the network to a device: $\alpha$ makes every layer thinner and $\rho$ the pictures smaller, and the cost
falls with the square of either. Version 2 turns the residual block inside out: the shortcut joins the *thin* ends,
which are linear, as a ReLU would destroy what few channels hold; between them a 1x1 convolution expands to six times
the channels, on which the depthwise filters are cheap.

**Showed.** 70.6 % on ImageNet with 569 million multiplications and 4.2 million weights, where the same network with
full convolutions has 71.7 % with 4866 and 29.3 (Tab. 4).

Differs from the paper in:
- The nonlinearity is ReLU6, as in every released checkpoint (tensorflow/models, research/slim/nets/mobilenet_v1.py);
  the text of version 1 says ReLU, which `activation="relu"` gives.
- The last depthwise convolution of version 1 has stride 1: Table 1 says 2, which its next row contradicts.
- Training is by synchronous updates of one process's batch, not by asynchronous ones of many.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from jingdu.data.preprocess import IMAGENET, Preprocess
from jingdu.engine.contracts import Recipe, Stage
from jingdu.errors import UsageError
from jingdu.nn import check_images, each, quick_layout
from jingdu.papers.cnn.alexnet import classify
from jingdu.papers.cnn.nas.cells import drop_path, pad_same
from jingdu.prediction import Prediction, origin_of

__all__ = [
    "ConvNorm",
    "DepthwiseSeparable",
    "InvertedResidual",
    "MobileNetV1",
    "MobileNetV2",
    "SqueezeExcite",
    "Style",
    "build",
    "cost",
    "drop_background",
    "hold_resolution",
    "initialise",
    "predict",
    "thin",
    "thinner",
]

# Convolutions -----------------------------------------------------------------------------------------


ACTIVATIONS = {"relu": nn.ReLU, "relu6": nn.ReLU6, "silu": nn.SiLU}


@dataclass(frozen=True)
class Style:
    """What all layers of a network have in common, and what its published weights differ in."""

    activation: str = "relu6"
    """relu, relu6 or silu."""
    padding: str = "symmetric"
    """symmetric; same, as TensorFlow pads: where the stride is 2 and a side even, one pixel more at its end; or keras, as
    that pads an even side, whatever the side is (its correct_pad)."""
    eps: float = 1e-5
    """Of the batch norms."""
    momentum: float = 0.1
    """The share of a batch in a batch norm's running statistics. TensorFlow states what is left: 1 less this."""

    def __post_init__(self) -> None:
        for name, known in (("activation", ACTIVATIONS), ("padding", ("symmetric", "same", "keras"))):
            if (value := getattr(self, name)) not in known:
                raise UsageError(f"{name} {value!r} is none of {', '.join(known)}")


class ConvNorm(nn.Module):
    """A convolution without bias, its batch norm and, unless it is linear, the style's activation."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, dilation: int = 1, groups: int = 1,
        linear: bool = False, style: Style = Style(),
    ):  # fmt: skip
        super().__init__()
        self.style = style
        # With stride 1 all rules are the symmetric one.
        self.rule = style.padding if stride > 1 and kernel > 1 else "symmetric"
        padding = dilation * (kernel - 1) // 2 if self.rule == "symmetric" else 0
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, groups, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=style.eps, momentum=style.momentum)
        self.activation = nn.Identity() if linear else ACTIVATIONS[style.activation](inplace=True)

    def forward(self, x: Float[Tensor, "batch inputs height width"]) -> Float[Tensor, "batch outputs h w"]:
        kernel = self.conv.kernel_size[0]
        if self.rule == "same":
            x = pad_same(x, kernel, self.conv.stride[0])
        elif self.rule == "keras":
            x = F.pad(x, (kernel // 2 - 1, kernel // 2) * 2)
        return self.activation(self.bn(self.conv(x)))


class DepthwiseSeparable(nn.Module):
    """Section 3.1, Figure 3 right: a 3x3 filter on each channel, then a 1x1 convolution over all of them."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, dilation: int = 1, style: Style = Style()):
        super().__init__()
        self.depthwise = ConvNorm(inputs, inputs, 3, stride, dilation, groups=inputs, style=style)
        self.pointwise = ConvNorm(inputs, outputs, style=style)

    def forward(self, x: Float[Tensor, "batch inputs height width"]) -> Float[Tensor, "batch outputs h w"]:
        return self.pointwise(self.depthwise(x))


class SqueezeExcite(nn.Module):
    """Weigh each channel by a number in (0, 1) that all channels' means decide (Hu, Shen, Sun, arXiv 1709.01507, Eq. 3).

    Args:
        channels: of the maps.
        squeezed: units between the two dense layers.
        activation: between them: relu, relu6 or silu.
    """

    def __init__(self, channels: int, squeezed: int, activation: str = "relu"):
        super().__init__()
        self.reduce = nn.Linear(channels, squeezed)
        self.activation = ACTIVATIONS[activation](inplace=True)
        self.expand = nn.Linear(squeezed, channels)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels height width"]:
        weights = self.expand(self.activation(self.reduce(x.mean((2, 3)))))
        return x * weights.sigmoid()[:, :, None, None]


class InvertedResidual(nn.Module):
    """Version 2, Figure 4d: expand by a 1x1 convolution, filter, project by a linear one; the shortcut joins the thin ends.

    The shortcut is there only where it is the identity. EfficientNet's MBConv is this block with a squeeze-excite.

    Args:
        inputs: channels.
        outputs: channels.
        stride: of the depthwise convolution.
        expansion: channels in between, in inputs; 1 has no first convolution.
        kernel: side of the depthwise convolution.
        dilation: of the depthwise convolution.
        squeezed: units of the squeeze-excite after it; 0 has none.
        drop: probability that an image skips the block in training.
        style: see `Style`.
    """

    def __init__(
        self, inputs: int, outputs: int, stride: int = 1, expansion: int = 6, kernel: int = 3, dilation: int = 1,
        squeezed: int = 0, drop: float | int = 0.0, style: Style = Style(),
    ):  # fmt: skip
        super().__init__()
        wide = inputs * expansion
        self.expand = ConvNorm(inputs, wide, style=style) if expansion != 1 else nn.Identity()
        self.depthwise = ConvNorm(wide, wide, kernel, stride, dilation, groups=wide, style=style)
        self.squeeze = SqueezeExcite(wide, squeezed, style.activation) if squeezed else nn.Identity()
        self.project = ConvNorm(wide, outputs, linear=True, style=style)
        self.is_residual = inputs == outputs and stride == 1
        self.drop = drop

    def forward(self, x: Float[Tensor, "batch inputs height width"]) -> Float[Tensor, "batch outputs h w"]:
        y = self.project(self.squeeze(self.depthwise(self.expand(x))))
        return x + drop_path(y, self.drop if self.training else 0.0) if self.is_residual else y


# Sizes ------------------------------------------------------------------------------------------------


def thin(channels: int | float, alpha: float | int) -> int:
    """Version 1: alpha times the channels, rounded down, and 8 at least (Sec. 3.3; mobilenet_v1.py's min_depth)."""
    return max(int(channels * alpha), 8)


def thinner(channels: int | float, alpha: float | int, divisor: int = 8) -> int:
    """Version 2: the nearest multiple of `divisor`, or the next where that were more than a tenth too few.

    Source: tensorflow/models, research/slim/nets/mobilenet/mobilenet.py, _make_divisible.
    """
    wanted = channels * alpha
    nearest = max(divisor, int(wanted + divisor / 2) // divisor * divisor)
    return nearest + divisor if nearest < 0.9 * wanted else nearest


def cost(kernel: int, inputs: int, outputs: int, side: int, alpha: float | int = 1.0, rho: float | int = 1.0) -> float:
    """Eq. 7: multiplications of a depthwise separable convolution under both multipliers."""
    area = (rho * side) ** 2
    return kernel**2 * alpha * inputs * area + alpha * inputs * alpha * outputs * area


def hold_resolution(
    strides: Sequence[int], output_stride: int | None, reached: int = 2
) -> list[tuple[int, tuple[int, int]]]:
    """Strides of stages where the last maps are not to be smaller than input / `output_stride`; dilations replace the rest.

    Args:
        strides: of the stages' first blocks.
        output_stride: what is asked for; None keeps the strides.
        reached: input size over that of the maps before the first stage.

    Returns for each stage its stride, and the dilation of its first block and of the others: the first sees its input
    still as the stage before did. Raises UsageError for an output stride that no stage has.
    """
    found, dilation, seen = [], 1, {reached}
    for stride in strides:
        before = dilation
        if stride > 1 and reached == output_stride:
            stride, dilation = 1, dilation * stride
        reached *= stride
        seen.add(reached)
        found.append((stride, (before, dilation)))
    if output_stride not in (None, *seen):
        raise UsageError(f"output_stride {output_stride} is none of {sorted(seen)}")
    return found


def taps_of(strides: Sequence[int]) -> list[int]:
    """The stages after which the maps shrink, and the last: the deepest maps of each resolution."""
    return [i for i in range(len(strides)) if i == len(strides) - 1 or strides[i + 1] > 1]


def initialise(network: nn.Module) -> None:
    """He initialisation by the fan-out that a kernel really has: of depthwise kernels, their own channel alone."""

    def start(conv: nn.Conv2d) -> None:
        fan_out = conv.kernel_size[0] * conv.kernel_size[1] * conv.out_channels // conv.groups
        nn.init.normal_(conv.weight, std=(2 / fan_out) ** 0.5)

    each(network, nn.Conv2d, start)


# Networks ---------------------------------------------------------------------------------------------


class _MobileNet(nn.Module):
    """What both versions share: a stem, stages of blocks, perhaps a last 1x1 convolution, average pool, dropout, `fc`."""

    stem: ConvNorm
    stages: nn.Sequential
    head: nn.Module
    taps: list[int]
    """The stages that `features` shows."""
    channels: list[int]
    """Of what it shows."""

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


class MobileNetV1(_MobileNet):
    """Table 1.

    Args:
        alpha: the width multiplier (Sec. 3.3); released as "depth_multiplier".
        rows: channels, blocks and stride of each stage, the stride in its first block.
        stem: channels and stride of the first convolution.
        separable: False has full 3x3 convolutions for the separable ones: the twin of Table 4.
        num_classes: outputs.
        in_channels: of the pictures.
        dropout: before `fc`.
        output_stride: input size over that of the last maps, from 2 to 32; dilation replaces the later strides.
        activation: relu6 or relu.
        padding: symmetric, or as TensorFlow pads: same.
        eps: of the batch norms.
        momentum: of the batch norms.
    """

    def __init__(
        self,
        alpha: float | int = 1.0,
        rows: Sequence[Sequence[int]] = ((64, 1, 1), (128, 2, 2), (256, 2, 2), (512, 6, 2), (1024, 2, 2)),
        stem: Sequence[int] = (32, 2),
        separable: bool = True,
        num_classes: int = 1000,
        in_channels: int = 3,
        dropout: float | int = 0.001,
        output_stride: int | None = None,
        activation: str = "relu6",
        padding: str = "symmetric",
        eps: float = 1e-5,
        momentum: float = 0.1,
    ):
        super().__init__()
        self.alpha, self.output_stride = alpha, output_stride
        style = Style(activation, padding, eps, momentum)
        block = DepthwiseSeparable if separable else partial(ConvNorm, kernel=3)
        channels = thin(stem[0], alpha)
        self.stem = ConvNorm(in_channels, channels, 3, stem[1], style=style)
        stages, widths = [], []
        held = hold_resolution([stride for *_, stride in rows], output_stride, stem[1])
        for (width, depth, _), (stride, dilations) in zip(rows, held, strict=True):
            blocks = []
            for j in range(depth):
                options = {"stride": stride if j == 0 else 1, "dilation": dilations[j > 0], "style": style}
                blocks.append(block(channels, thin(width, alpha), **options))
                channels = thin(width, alpha)
            stages.append(nn.Sequential(*blocks))
            widths.append(channels)
        self.stages = nn.Sequential(*stages)
        self.taps = taps_of([stride for *_, stride in rows])
        self.channels = [widths[i] for i in self.taps]
        self.head = nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(channels, num_classes)
        initialise(self)


class MobileNetV2(_MobileNet):
    """Version 2, Table 2.

    Args:
        alpha: the width multiplier; the last 1x1 convolution is not made thinner (Sec. 6.1).
        rows: expansion t, channels c, blocks n and stride s of each stage.
        num_classes: outputs.
        in_channels: of the pictures.
        dropout: before `fc`.
        output_stride: as of `MobileNetV1`.
        activation: as of `MobileNetV1`.
        padding: as of `MobileNetV1`.
        eps: of the batch norms.
        momentum: of the batch norms.
    """

    def __init__(
        self,
        alpha: float | int = 1.0,
        rows: Sequence[Sequence[int]] = (
            (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
        ),
        num_classes: int = 1000,
        in_channels: int = 3,
        dropout: float | int = 0.2,
        output_stride: int | None = None,
        activation: str = "relu6",
        padding: str = "symmetric",
        eps: float = 1e-5,
        momentum: float = 0.1,
    ):  # fmt: skip
        super().__init__()
        self.alpha, self.output_stride = alpha, output_stride
        style = Style(activation, padding, eps, momentum)
        channels = thinner(32, alpha)
        self.stem = ConvNorm(in_channels, channels, 3, 2, style=style)
        stages, widths = [], []
        held = hold_resolution([stride for *_, stride in rows], output_stride)
        for (expansion, width, depth, _), (stride, dilations) in zip(rows, held, strict=True):
            blocks = []
            for j in range(depth):
                options = {"dilation": dilations[j > 0], "style": style}
                width_here = thinner(width, alpha)
                blocks.append(InvertedResidual(channels, width_here, stride if j == 0 else 1, expansion, **options))
                channels = width_here
            stages.append(nn.Sequential(*blocks))
            widths.append(channels)
        self.stages = nn.Sequential(*stages)
        self.taps = taps_of([stride for *_, stride in rows])
        self.channels = [widths[i] for i in self.taps]
        last = thinner(1280, max(alpha, 1.0))
        self.head = ConvNorm(channels, last, style=style)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(last, num_classes)
        initialise(self)


VARIANTS: dict[str, tuple[type, dict[str, Any]]] = {
    # Table 6
    "mobilenet_v1_100": (MobileNetV1, {"alpha": 1.0}),
    "mobilenet_v1_075": (MobileNetV1, {"alpha": 0.75}),
    "mobilenet_v1_050": (MobileNetV1, {"alpha": 0.5}),
    "mobilenet_v1_025": (MobileNetV1, {"alpha": 0.25}),
    # Version 2, Section 6.1, and the released widths (research/slim/nets/mobilenet/README.md)
    "mobilenet_v2_100": (MobileNetV2, {"alpha": 1.0}),
    "mobilenet_v2_140": (MobileNetV2, {"alpha": 1.4}),
    "mobilenet_v2_075": (MobileNetV2, {"alpha": 0.75}),
    "mobilenet_v2_050": (MobileNetV2, {"alpha": 0.5}),
    "mobilenet_v2_035": (MobileNetV2, {"alpha": 0.35}),
    # Table 4: the network with full convolutions
    "mobilenet_v1_full": (MobileNetV1, {"separable": False}),
}


def build(variant: str, **overrides: Any) -> MobileNetV1 | MobileNetV2:
    """The network of a variant; overrides are the arguments of `MobileNetV1` or `MobileNetV2`."""
    network, arguments = VARIANTS[variant]
    return network(**{**arguments, **overrides})


@torch.no_grad()
def drop_background(network: MobileNetV1 | MobileNetV2) -> MobileNetV1 | MobileNetV2:
    """Take away class 0, "background", of Google's checkpoints: their 1001 classes become ImageNet's 1000, in order.

    Changes the network, and returns it. Raises UsageError where one class or none would be left.
    """
    old = network.fc
    if old.out_features < 3:
        raise UsageError(f"a network of {old.out_features} classes has no background to drop")
    network.fc = nn.Linear(old.in_features, old.out_features - 1, device=old.weight.device, dtype=old.weight.dtype)
    network.fc.weight.copy_(old.weight[1:])
    network.fc.bias.copy_(old.bias[1:])
    origin = origin_of(network)
    classes = origin.classes and origin.classes[1:]
    network.origin = replace(
        origin, overrides={**origin.overrides, "num_classes": network.fc.out_features}, classes=classes
    )
    return network


RESOLUTIONS = (224, 192, 160, 128)
"""Sides of the pictures, 224 rho, in Table 7."""

DIGITS = Preprocess(size=20, mean=(0.143,), std=(0.265,), channels=1)
"""Mean and deviation of the pixels of `affine_digits`."""
SMALL = "alpha=0.5, rows=((48, 1, 1), (96, 2, 2), (192, 2, 2)), stem=(32, 1), dropout=0.0"


def _imagenet(network: str, about: str, error: tuple[float, float], **changes: Any) -> Recipe:
    return Recipe(
        stages=(
            Stage(
                networks={"network": network},
                data="imagenet",
                preprocess=IMAGENET,
                crop="vgg.scale_jitter(low=224, high=288)",
                augment=("flip",),
                optimizer="rmsprop",
                betas=(0.9, 0.9),
                momentum=0.9,
                decay="dense",
                channels_last=True,
                ema=0.9999,
                workers=8,
                save_every=5000,
                **changes,
            ),
        ),
        minutes=7 * 24 * 60,
        expect={"error": error},
        machine="4 GPUs",
        about=about,
    )


recipes = {
    "laptop": Recipe(
        stages=(
            Stage(
                networks={"network": f"mobilenet_v1_100({SMALL})"},
                data="affine_digits",
                preprocess=DIGITS,
                batch_size=64,
                steps=900,
                lr=0.05,
                schedule="onecycle",
                weight_decay=5e-4,
                decay="dense",
                save_every=100,
            ),
        ),
        minutes=1,
        expect={"error": (0.0, 0.12)},
        about="five separable blocks on scikit-learn's digits under random affine maps at 20x20 pixels",
    ),
    "paper": _imagenet(
        "mobilenet_v1_100(momentum=0.0003, eps=0.001)",
        "Section 3.2 with the settings of the released code (research/slim: RMSProp with eps 1, rate 0.045 times 0.94 every "
        "two and a half epochs, weight decay 4e-5 on all but depthwise kernels), on an ImageNet folder (--data)",
        (0.28, 0.31),
        batch_size=64,
        epochs=200,
        lr=0.045,
        eps=1.0,
        schedule="step(every=2.5, factor=0.94)",
        weight_decay=4e-5,
    ),
    "v2": _imagenet(
        "mobilenet_v2_100(momentum=0.003, eps=0.001)",
        "version 2, Section 6.1: RMSProp, rate 0.045 times 0.98 after each epoch, weight decay 4e-5, batches of 96",
        (0.27, 0.30),
        batch_size=96,
        epochs=300,
        lr=0.045,
        eps=1.0,
        schedule="step(every=1, factor=0.98)",
        weight_decay=4e-5,
    ),
}


def predict(
    model: MobileNetV1 | MobileNetV2, inputs: Sequence[str], *, top: int = 5, crops: Literal["centre", "ten"] = "centre"
) -> Iterator[Prediction]:
    """The most probable classes of image files.

    Args:
        top: how many classes to give.
        crops: one centre crop, or the average of ten.
    """
    return classify(model, inputs, top=top, crops=crops)
