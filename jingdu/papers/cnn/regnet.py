r"""Designing Network Design Spaces. Radosavovic, Kosaraju, Girshick, He, Dollar. 2020. https://arxiv.org/abs/2003.13678

**Problem.** A search finds one network, for one setting, and says nothing about why it is good. A rule that a person finds
by hand holds more widely, but nobody can try enough networks by hand.

**Idea.** Design the *space* of networks, not a network: sample some hundreds of networks of a space, train each briefly,
and look at the distribution of their errors, the share of networks with an error below $e$ (Eq. 1):

$$ F(e) = \frac 1 n \sum_{i=1}^n \mathbf 1[e_i < e] $$

If a constraint leaves this as it is, it only made the space simpler; if it pushes it up, the space became better. From
AnyNet (four stages, each with any width, depth, bottleneck ratio and group width) five such steps lead to RegNet, where
the width of block $j$ is a straight line, rounded to powers of one number (Eq. 2 to 4):

$$ u_j = w_0 + w_a j \qquad u_j = w_0 \, w_m^{s_j} \qquad w_j = w_0 \, w_m^{\lfloor s_j \rceil} $$

**Showed.** RegNets are as accurate as EfficientNets at like FLOPs under the same training, and up to 5 times faster on a
GPU (abstract); activations, not FLOPs, say how long a network takes (Fig. 12).

Differs from the paper in: nothing. Widths are fitted to the group width as in the authors' code (pycls); torchvision's
rule for that, by which three of its networks of the same names differ, is `rounding="ninety"`.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from jingdu.data.preprocess import IMAGENET, Preprocess
from jingdu.engine.contracts import Recipe, Stage
from jingdu.errors import UsageError, unknown
from jingdu.nn import check_images, quick_layout
from jingdu.papers.cnn.alexnet import classify
from jingdu.papers.cnn.mobilenet import ConvNorm, SqueezeExcite, Style, initialise, thinner
from jingdu.papers.cnn.nas import Choice, SearchSpace
from jingdu.prediction import Prediction

__all__ = [
    "AnyNet",
    "Basic",
    "Bottleneck",
    "Complexity",
    "Vanilla",
    "best_range",
    "block_widths",
    "build",
    "complexity",
    "design_space",
    "edf",
    "fit_groups",
    "linear_stages",
    "predict",
    "regnet",
    "sample_networks",
]

STYLE = Style("relu")

# Blocks (Sec. 3.2, Fig. 4) ----------------------------------------------------------------------------


class Vanilla(nn.Module):
    """Two 3x3 convolutions without a shortcut. `ratio`, `group` and `squeeze` mean nothing to it."""

    def __init__(self, inputs: int, outputs: int, stride: int, ratio: float, group: int, squeeze: float):
        super().__init__()
        self.conv1 = ConvNorm(inputs, outputs, 3, stride, style=STYLE)
        self.conv2 = ConvNorm(outputs, outputs, 3, style=STYLE)

    def forward(self, x: Float[Tensor, "batch inputs height width"]) -> Float[Tensor, "batch outputs h w"]:
        return self.conv2(self.conv1(x))


class _Residual(nn.Module):
    """A shortcut around `residual(x)`, with a projection where the shape changes, and a ReLU after the addition."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        changes = inputs != outputs or stride != 1
        self.shortcut = ConvNorm(inputs, outputs, 1, stride, linear=True, style=STYLE) if changes else nn.Identity()
        self.relu = nn.ReLU(inplace=True)

    def residual(self, x: Tensor) -> Tensor:
        raise TypeError("a block defines its residual function")

    def forward(self, x: Float[Tensor, "batch inputs height width"]) -> Float[Tensor, "batch outputs h w"]:
        return self.relu(self.residual(x) + self.shortcut(x))


class Basic(_Residual):
    """Two 3x3 convolutions. `ratio`, `group` and `squeeze` mean nothing to it."""

    def __init__(self, inputs: int, outputs: int, stride: int, ratio: float, group: int, squeeze: float):
        super().__init__(inputs, outputs, stride)
        self.conv1 = ConvNorm(inputs, outputs, 3, stride, style=STYLE)
        self.conv2 = ConvNorm(outputs, outputs, 3, linear=True, style=STYLE)

    def residual(self, x: Tensor) -> Tensor:
        return self.conv2(self.conv1(x))


class Bottleneck(_Residual):
    """The X block (Fig. 4): 1x1, grouped 3x3, 1x1; and the Y block, with a squeeze-excite after the grouped one.

    Args:
        inputs: channels.
        outputs: channels.
        stride: of the grouped convolution.
        ratio: outputs over the channels in between (b).
        group: channels of a group (g).
        squeeze: units of the squeeze-excite, in `inputs`; 0 has none.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, ratio: float | int, group: int, squeeze: float | int):
        super().__init__(inputs, outputs, stride)
        inner = round(outputs / ratio)
        self.conv1 = ConvNorm(inputs, inner, style=STYLE)
        self.conv2 = ConvNorm(inner, inner, 3, stride, groups=inner // group, style=STYLE)
        self.squeeze = SqueezeExcite(inner, round(inputs * squeeze), "relu") if squeeze else nn.Identity()
        self.conv3 = ConvNorm(inner, outputs, linear=True, style=STYLE)

    def residual(self, x: Tensor) -> Tensor:
        return self.conv3(self.squeeze(self.conv2(self.conv1(x))))


BLOCKS = {"vanilla": Vanilla, "basic": Basic, "bottleneck": Bottleneck}


class AnyNet(nn.Module):
    """Figure 3: a 3x3 stem, stages that each halve the maps, average pool, `fc`.

    Args:
        widths: channels of each stage.
        depths: blocks of each stage.
        ratios: bottleneck ratio of each stage.
        groups: group width of each stage; it divides the bottleneck's width (see `fit_groups`).
        squeeze: as of `Bottleneck`.
        block: vanilla, basic or bottleneck.
        stem: channels of the stem.
        num_classes: outputs.
        in_channels: of the pictures.

    Raises UsageError for stages of different numbers, or groups that do not fit.
    """

    def __init__(
        self,
        widths: Sequence[int],
        depths: Sequence[int],
        ratios: Sequence[float | int],
        groups: Sequence[int],
        squeeze: float | int = 0.0,
        block: str = "bottleneck",
        stem: int = 32,
        num_classes: int = 1000,
        in_channels: int = 3,
    ):
        super().__init__()
        if block not in BLOCKS:
            raise unknown("block", block, BLOCKS)
        if len({len(widths), len(depths), len(ratios), len(groups)}) != 1:
            raise UsageError(
                f"stages: {len(widths)} widths, {len(depths)} depths, {len(ratios)} ratios, {len(groups)} groups"
            )
        channels, stages = stem, []
        self.stem = ConvNorm(in_channels, stem, 3, 2, style=STYLE)
        for width, depth, ratio, group in zip(widths, depths, ratios, groups, strict=True):
            if block == "bottleneck" and round(width / ratio) % group:
                raise UsageError(f"groups of {group} do not divide a bottleneck of {width} / {ratio:g} channels")
            blocks = []
            for j in range(depth):
                blocks.append(BLOCKS[block](channels, width, 2 if j == 0 else 1, ratio, group, squeeze))
                channels = width
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.channels = list(widths)
        self.fc = nn.Linear(channels, num_classes)
        initialise(self)
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)

    def features(self, x: Float[Tensor, "batch channels height width"]) -> list[Tensor]:
        """The output of every stage, shallow to deep, at strides 4, 8, 16, 32; `channels` are their channels.

        Raises UsageError for what is no batch of pictures.
        """
        check_images(x, self.stem.conv)
        x, found = self.stem(quick_layout(x)), []
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        return found

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        return self.fc(self.features(x)[-1].mean((2, 3)))


# The rule of widths (Sec. 3.3, 3.4) -------------------------------------------------------------------


def block_widths(initial: int, slope: float | int, step: float | int, depth: int, quantum: int = 8) -> list[int]:
    """Eq. 2 to 4: the width of each block, a multiple of `quantum`. Halves are rounded to even, as numpy does.

    Args:
        initial: w_0, a multiple of `quantum`.
        slope: w_a, 0 or more.
        step: w_m, above 1.
        depth: blocks.

    Raises UsageError for other values.
    """
    if slope < 0 or initial <= 0 or initial % quantum or step <= 1 or depth < 1:
        raise UsageError(
            f"initial {initial}, slope {slope}, step {step}, depth {depth}: initial is a multiple of {quantum}, slope 0 or "
            "more, step above 1, depth 1 or more"
        )
    # The power that each width is, and the widths of the rounded powers
    powers = [round(math.log((initial + slope * j) / initial) / math.log(step)) for j in range(depth)]
    return [round(initial * step**power / quantum) * quantum for power in powers]


def linear_stages(widths: Sequence[int]) -> tuple[list[int], list[int]]:
    """Blocks in a row of one width are a stage: their widths and depths."""
    stages = [(width, len(list(blocks))) for width, blocks in groupby(widths)]
    return [width for width, _ in stages], [depth for _, depth in stages]


def fit_groups(
    widths: Sequence[int], ratios: Sequence[float | int], groups: Sequence[int], rounding: str = "nearest"
) -> tuple[list[int], list[int]]:
    """Widths whose bottlenecks divide into their groups, and the groups, which are at most a bottleneck wide.

    Source: pycls/models/blocks.py, adjust_block_compatibility.

    Args:
        widths: of the stages.
        ratios: of the stages.
        groups: of the stages.
        rounding: nearest, as the authors' code; or ninety, as torchvision: up where the nearest were a tenth too few.
    """
    if rounding not in ("nearest", "ninety"):
        raise unknown("rounding", rounding, ("nearest", "ninety"))
    fitted, clipped = [], []
    for width, ratio, group in zip(widths, ratios, groups, strict=True):
        inner = max(1, int(width / ratio))
        group = min(group, inner)
        # A ratio below 1 widens: then the width itself must stay a multiple too.
        multiple = math.lcm(group, round(1 / ratio)) if ratio < 1 else group
        inner = max(multiple, round(inner / multiple) * multiple) if rounding == "nearest" else thinner(inner, 1, group)
        fitted.append(int(inner * ratio))
        clipped.append(group)
    return fitted, clipped


def regnet(
    initial: int,
    slope: float | int,
    step: float | int,
    depth: int,
    group: int,
    ratio: float | int = 1.0,
    squeeze: float | int = 0.0,
    rounding: str = "nearest",
    stem: int = 32,
    num_classes: int = 1000,
    in_channels: int = 3,
) -> AnyNet:
    """The AnyNet that six numbers describe (Sec. 3.3): w_0, w_a, w_m, d, g and b; `squeeze` 0.25 makes the Y block."""
    widths, depths = linear_stages(block_widths(initial, slope, step, depth))
    ratios = [ratio] * len(widths)
    widths, groups = fit_groups(widths, ratios, [group] * len(widths), rounding)
    return AnyNet(widths, depths, ratios, groups, squeeze, "bottleneck", stem, num_classes, in_channels)


def _table(
    squeeze: float, rows: Mapping[str, tuple[int, float, float, int, int]]
) -> dict[str, tuple[Any, dict[str, Any]]]:
    names = ("initial", "slope", "step", "depth", "group")
    return {
        f"regnet_{name}": (regnet, {**dict(zip(names, row, strict=True)), **({"squeeze": squeeze} if squeeze else {})})
        for name, row in rows.items()
    }


VARIANTS: dict[str, tuple[Any, dict[str, Any]]] = {
    # Figures 16 and 17; pycls, configs/dds_baselines. w_0, w_a, w_m, d, g
    **_table(0.0, {
        "x200mf": (24, 36.44, 2.49, 13, 8), "x400mf": (24, 24.48, 2.54, 22, 16), "x600mf": (48, 36.97, 2.24, 16, 24),
        "x800mf": (56, 35.73, 2.28, 16, 16), "x1_6gf": (80, 34.01, 2.25, 18, 24), "x3_2gf": (88, 26.31, 2.25, 25, 48),
        "x4gf": (96, 38.65, 2.43, 23, 40), "x6_4gf": (184, 60.83, 2.07, 17, 56), "x8gf": (80, 49.56, 2.88, 23, 120),
        "x12gf": (168, 73.36, 2.37, 19, 112), "x16gf": (216, 55.59, 2.1, 22, 128), "x32gf": (320, 69.86, 2.0, 23, 168),
    }),
    **_table(0.25, {
        "y200mf": (24, 36.44, 2.49, 13, 8), "y400mf": (48, 27.89, 2.09, 16, 8), "y600mf": (48, 32.54, 2.32, 15, 16),
        "y800mf": (56, 38.84, 2.4, 14, 16), "y1_6gf": (48, 20.71, 2.65, 27, 24), "y3_2gf": (80, 42.63, 2.66, 21, 24),
        "y4gf": (96, 31.41, 2.24, 22, 64), "y6_4gf": (112, 33.22, 2.27, 25, 72), "y8gf": (192, 76.82, 2.19, 17, 56),
        "y12gf": (168, 73.36, 2.37, 19, 112), "y16gf": (200, 106.23, 2.48, 18, 112), "y32gf": (232, 115.89, 2.53, 20, 232),
    }),
    # Ours: an AnyNet whose sizes are all to be chosen
    "regnet_anynet": (
        AnyNet, {"widths": (32, 64, 128, 256), "depths": (1, 1, 2, 1), "ratios": (1, 1, 1, 1), "groups": (16, 16, 16, 16)},
    ),
}  # fmt: skip


def build(variant: str, **overrides: Any) -> AnyNet:
    """The network of a variant; overrides are the arguments of `regnet`, or of `AnyNet`."""
    network, arguments = VARIANTS[variant]
    return network(**{**arguments, **overrides})


# Design spaces (Sec. 3.1, 3.2) ------------------------------------------------------------------------


@dataclass(frozen=True)
class Complexity:
    """What a network costs for one picture: multiply-adds, parameters, and numbers that its convolutions give (Sec. 3.5)."""

    flops: int
    parameters: int
    activations: int


def complexity(
    widths: Sequence[int],
    depths: Sequence[int],
    ratios: Sequence[float | int],
    groups: Sequence[int],
    size: int = 224,
    squeeze: float | int = 0.0,
    stem: int = 32,
    num_classes: int = 1000,
    in_channels: int = 3,
) -> Complexity:
    """The complexity of an AnyNet of bottlenecks by its sizes alone: no network is built, so a sampler may ask often.

    Arguments as of `AnyNet`; `size` is the side of the pictures in pixels.
    """
    flops = parameters = activations = 0

    def conv(inputs: int, outputs: int, kernel: int, side: int, group: int | None = None) -> None:
        nonlocal flops, parameters, activations
        weights = kernel**2 * (group or inputs) * outputs
        flops, activations = flops + weights * side**2, activations + outputs * side**2
        parameters += weights + 2 * outputs  # and its norm

    side, channels = -(-size // 2), stem
    conv(in_channels, stem, 3, side)
    for width, depth, ratio, group in zip(widths, depths, ratios, groups, strict=True):
        inner = round(width / ratio)
        for j in range(depth):
            conv(channels, inner, 1, side)
            side = -(-side // 2) if j == 0 else side
            conv(inner, inner, 3, side, group)
            if units := round(channels * squeeze):
                dense = 2 * inner * units
                flops, parameters = flops + dense, parameters + dense + inner + units
            conv(inner, width, 1, side)
            if j == 0:
                conv(channels, width, 1, side)
            channels = width
    flops, parameters = flops + channels * num_classes, parameters + (channels + 1) * num_classes
    return Complexity(flops, parameters, activations)


STEPS = ("A", "B", "C", "D", "E")


def design_space(
    name: str,
    widths: Sequence[int] = tuple(range(16, 1025, 16)),
    depths: Sequence[int] = tuple(range(1, 17)),
    ratios: Sequence[float | int] = (1, 2, 4),
    groups: Sequence[int] = (1, 2, 4, 8, 16, 32),
    stages: int = 4,
    **options: Any,
) -> SearchSpace:
    """A space of networks: anynetx_a to anynetx_e, each a constraint more than the one before, or regnetx.

    A: every stage has its own width, depth, ratio and group width. B: one ratio for all. C: one group width too. D: widths
    do not fall. E: depths do not fall, but for the last stage. regnetx: widths by the linear rule.

    Args:
        name: of the space.
        widths: that a stage may have; regnetx: w_0, of which w_a is up to twice the largest divided by the depth.
        depths: that a stage may have; regnetx: d is up to their sum.
        ratios: b.
        groups: g.
        stages: how many; regnetx has as many or one fewer.
        options: further arguments of `AnyNet`.
    """
    known = [*(f"anynetx_{step.lower()}" for step in STEPS), "regnetx"]
    if name not in known:
        raise unknown("design space", name, known)

    def network(values: dict[str, Any]) -> nn.Module:
        return AnyNet(*sizes_of(values), **options)

    if name == "regnetx":
        slopes = tuple(round(max(widths) * part / 16, 2) for part in range(1, 17))
        choices = [
            Choice("initial", tuple(w for w in widths if w % 8 == 0 and w <= max(widths) / 2), ordered=True),
            Choice("slope", slopes, ordered=True),
            Choice("step", tuple(round(1.5 + 0.1 * i, 1) for i in range(16)), ordered=True),
            Choice("depth", tuple(range(stages, max(depths) * stages + 1)), ordered=True),
            Choice("ratio", tuple(ratios)),
            Choice("group", tuple(groups)),
        ]

        def linear(values: dict[str, Any]) -> bool:
            found, _ = linear_stages(block_widths(*(values[key] for key in ("initial", "slope", "step", "depth"))))
            return stages - 1 <= len(found) <= stages and max(found) <= max(widths)

        return SearchSpace(choices, network, linear)
    step = STEPS.index(name[-1].upper())
    each_stage = range(1, stages + 1)
    choices = [Choice(f"width{i}", tuple(widths), ordered=True) for i in each_stage]
    choices += [Choice(f"depth{i}", tuple(depths), ordered=True) for i in each_stage]
    choices += (
        [Choice("ratio", tuple(ratios))] if step >= 1 else [Choice(f"ratio{i}", tuple(ratios)) for i in each_stage]
    )
    choices += (
        [Choice("group", tuple(groups))] if step >= 2 else [Choice(f"group{i}", tuple(groups)) for i in each_stage]
    )

    def allowed(values: dict[str, Any]) -> bool:
        w = [values[f"width{i}"] for i in each_stage]
        d = [values[f"depth{i}"] for i in each_stage][:-1]
        return (step < 3 or w == sorted(w)) and (step < 4 or d == sorted(d))

    return SearchSpace(choices, network, allowed)


def sizes_of(values: Mapping[str, Any]) -> tuple[list[int], list[int], list[float], list[int]]:
    """Widths, depths, ratios and groups, fitted, of the values of a design space."""
    if "slope" in values:
        rule = block_widths(*(values[key] for key in ("initial", "slope", "step", "depth")))
        widths, depths = linear_stages(rule)
    else:
        count = sum(key.startswith("width") for key in values)
        widths, depths = ([values[f"{name}{i + 1}"] for i in range(count)] for name in ("width", "depth"))
    ratios, groups = (
        [values.get(name, values.get(f"{name}{i + 1}")) for i in range(len(widths))] for name in ("ratio", "group")
    )
    widths, groups = fit_groups(widths, ratios, groups)
    return widths, depths, ratios, groups


def sample_networks(
    space: SearchSpace, count: int, flops: tuple[float, float], generator: torch.Generator, **options: Any
) -> list[tuple[int, ...]]:
    """Codes of `count` different networks of a space whose multiply-adds lie in a band (Sec. 3.1).

    Args:
        space: from `design_space`.
        flops: the least and the most.
        generator: draws the codes.
        options: arguments of `complexity`: size, num_classes.

    Raises UsageError where a thousand draws a network do not suffice.
    """
    found: dict[tuple[int, ...], None] = {}
    for _ in range(1000 * count):
        code = space.sample(generator)
        if flops[0] <= complexity(*sizes_of(space.decode(code)), **options).flops <= flops[1]:
            found[code] = None
        if len(found) == count:
            return list(found)
    raise UsageError(
        f"{1000 * count:,} draws gave {len(found)} of {count} networks of {flops[0]:g} to {flops[1]:g} FLOPs"
    )


def edf(errors: Sequence[float]) -> tuple[list[float], list[float]]:
    """Eq. 1 as a curve: the errors in order, and the share of networks whose error is at most each."""
    return sorted(errors), [(i + 1) / len(errors) for i in range(len(errors))]


def best_range(
    values: Sequence[float],
    errors: Sequence[float],
    generator: torch.Generator,
    share: float = 0.25,
    draws: int = 10_000,
) -> tuple[float, float, float]:
    """The empirical bootstrap (Sec. 3.1): which values of a parameter the best networks have.

    Args:
        values: of the parameter, one a network.
        errors: of the networks.
        generator: draws the samples.
        share: of the networks, drawn with replacement, of which the best one's value is taken.
        draws: how many samples.

    Returns the 2.5th, 50th and 97.5th percentile of these values.
    """
    count = max(1, round(share * len(values)))
    chosen = torch.randint(len(values), (draws, count), generator=generator)
    best = torch.tensor(errors, dtype=torch.float64)[chosen].argmin(1)
    picked = torch.tensor(values, dtype=torch.float64)[chosen[torch.arange(draws), best]]
    low, middle, high = torch.quantile(picked, torch.tensor([0.025, 0.5, 0.975], dtype=torch.float64)).tolist()
    return low, middle, high


# Training and use -------------------------------------------------------------------------------------

DIGITS = Preprocess(size=32, resize=32, mean=(0.305,), std=(0.376,), channels=1)
"""Digits of 8x8 pixels, four times as large: the stem and three stages halve them four times."""

recipes = {
    "laptop": Recipe(
        stages=(
            Stage(
                networks={"network": "regnet_x200mf(initial=16, slope=8.0, step=2.0, depth=6, group=8, stem=16)"},
                data="digits",
                preprocess=DIGITS,
                batch_size=64,
                epochs=10,
                lr=0.1,
                schedule="cosine(warmup=20)",
                weight_decay=5e-4,
                save_every=50,
            ),
        ),
        minutes=1,
        expect={"error": (0.0, 0.05)},
        about="six blocks, by the linear rule, on scikit-learn's digits at 32x32 pixels",
    ),
    "paper": Recipe(
        stages=(
            Stage(
                networks={"network": "regnet_x200mf"},
                data="imagenet",
                preprocess=IMAGENET,
                crop="vgg.scale_jitter(low=224, high=288)",
                augment=("flip", "alexnet.pca_colour_shift"),
                batch_size=1024,
                epochs=100,
                lr=0.8,
                schedule="cosine(warmup=6255)",
                weight_decay=5e-5,
                decay="all",
                channels_last=True,
                workers=8,
                save_every=5000,
            ),
        ),
        minutes=24 * 60,
        expect={"error": (0.305, 0.325)},
        machine="8 GPUs",
        about="Section 5 on an ImageNet folder (--data): 100 epochs, the first 5 warming up, half a cosine from 0.1 a 128 "
        "images, weight decay 5e-5; 31.1 % error in the authors' zoo",
    ),
}


def predict(
    model: AnyNet, inputs: Sequence[str], *, top: int = 5, crops: Literal["centre", "ten"] = "centre"
) -> Iterator[Prediction]:
    """The most probable classes of image files.

    Args:
        top: how many classes to give.
        crops: one centre crop, or the average of ten.
    """
    return classify(model, inputs, top=top, crops=crops)
