"""Networks made of cells: NASNet-A (https://arxiv.org/abs/1707.07012) and PNASNet-5 (https://arxiv.org/abs/1712.00559).

A cell sees the outputs of the two before it. It combines five pairs of operations by addition; each operation reads one
of the two, or the result of an earlier pair. What no pair reads goes out, side by side. Such a cell is found on small
images, and stacked for large ones.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from jingdu.engine.systems import Classification
from jingdu.errors import UsageError, unknown
from jingdu.nn import check_images, each, quick_layout

OPERATIONS = ("none", "sep3", "sep5", "sep7", "avg3", "max3")
"""Identity, separable convolutions of 3x3, 5x5 and 7x7, average and max-pooling of 3x3."""


@dataclass(frozen=True)
class Genotype:
    """A cell. States 0 and 1 are the outputs of the cell before the last one and of the last one; 2.. are the pairs'.

    Raises UsageError for states that are not there yet, and operations that nobody knows.
    """

    pairs: tuple[tuple[int, str, int, str], ...]
    """State and operation of the left side, state and operation of the right side."""
    out: tuple[int, ...]
    """The states that go out."""

    def __post_init__(self) -> None:
        for i, (left, first, right, second) in enumerate(self.pairs):
            if not (0 <= left < i + 2 and 0 <= right < i + 2):
                raise UsageError(f"pair {i} reads states {left} and {right}: there are 0 to {i + 1}")
            for operation in (first, second):
                if operation not in OPERATIONS:
                    raise unknown("operation", operation, OPERATIONS)
        if not self.out or any(not 0 <= state < len(self.pairs) + 2 for state in self.out):
            raise UsageError(f"states {self.out} go out: there are 0 to {len(self.pairs) + 1}")


# Fig. 4 of NASNet. The normal cell's h_{i-1} goes out although pairs read it, as in the released network.
NASNET_NORMAL = Genotype(
    ((1, "sep5", 0, "sep3"), (0, "sep5", 0, "sep3"), (1, "avg3", 0, "none"), (0, "avg3", 0, "avg3"),
     (1, "sep3", 1, "none")),
    out=(0, 2, 3, 4, 5, 6),
)  # fmt: skip
NASNET_REDUCTION = Genotype(
    ((1, "sep5", 0, "sep7"), (1, "max3", 0, "sep7"), (1, "avg3", 0, "sep5"), (3, "none", 2, "avg3"),
     (2, "sep3", 1, "max3")),
    out=(3, 4, 5, 6),
)  # fmt: skip
# Fig. 1 of PNASNet: one cell for both.
PNASNET = Genotype(
    ((0, "sep5", 0, "max3"), (1, "sep7", 1, "max3"), (1, "sep5", 1, "sep3"), (4, "sep3", 1, "max3"),
     (0, "sep3", 1, "none")),
    out=(2, 3, 4, 5, 6),
)  # fmt: skip
GENOTYPES = {"nasnet_normal": NASNET_NORMAL, "nasnet_reduction": NASNET_REDUCTION, "pnasnet": PNASNET}


# Parts ----------------------------------------------------------------------------------------------


def pad_same(
    x: Float[Tensor, "batch c height width"], kernel: int, stride: int, value: float = 0.0
) -> Float[Tensor, "batch c more_height more_width"]:
    """TensorFlow's SAME padding: the output has ceil(side / stride) pixels, an odd rest goes to the bottom and right."""
    height, width = (max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in x.shape[2:])
    if not height and not width:
        return x
    return F.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2), value=value)


def drop_path(x: Float[Tensor, "batch *axes"], rate: float | int) -> Float[Tensor, "batch *axes"]:
    """Zero a path for some of the images, and scale it for the others (FractalNet; NASNet, Section 4)."""
    if rate <= 0:
        return x
    kept = torch.empty(len(x), *[1] * (x.ndim - 1), dtype=x.dtype, device=x.device).bernoulli_(1 - rate)
    return x * kept / (1 - rate)


def _norm(width: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(width, eps=1e-3)  # TensorFlow's


class Projection(nn.Module):
    """1x1 convolution and batch norm of an activated state: to another width, or to every second pixel."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
        self.bn = _norm(outputs)

    def forward(self, x: Float[Tensor, "batch inputs h w"]) -> Float[Tensor, "batch outputs g v"]:
        return self.bn(self.conv(x))


class FactorizedReduction(nn.Module):
    """Half the side without losing a pixel's phase: half of the channels see the even pixels, half the odd ones."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.path1 = nn.Conv2d(inputs, outputs // 2, 1, bias=False)
        self.path2 = nn.Conv2d(inputs, outputs - outputs // 2, 1, bias=False)
        self.norm = _norm(outputs)

    def forward(self, x: Float[Tensor, "batch inputs h w"]) -> Float[Tensor, "batch outputs g v"]:
        odd = F.pad(x, (0, 1, 0, 1))[:, :, 1::2, 1::2]  # zeros behind the last pixel of an odd side
        return self.norm(torch.cat([self.path1(x[:, :, ::2, ::2]), self.path2(odd)], 1))


class TwiceSeparable(nn.Module):
    """Depthwise and pointwise convolution and batch norm, applied twice (Appendix A.4); reads an activated state."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int):
        super().__init__()
        self.kernel, self.stride = kernel, stride
        self.depthwise1 = nn.Conv2d(
            inputs, inputs, kernel, stride, kernel // 2 if stride == 1 else 0, groups=inputs, bias=False
        )
        self.pointwise1 = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.bn1 = _norm(outputs)
        self.depthwise2 = nn.Conv2d(outputs, outputs, kernel, 1, kernel // 2, groups=outputs, bias=False)
        self.pointwise2 = nn.Conv2d(outputs, outputs, 1, bias=False)
        self.bn2 = _norm(outputs)

    def forward(self, x: Float[Tensor, "batch inputs h w"]) -> Float[Tensor, "batch outputs g v"]:
        if self.stride > 1:
            x = pad_same(x, self.kernel, self.stride)
        x = F.relu(self.bn1(self.pointwise1(self.depthwise1(x))), inplace=True)
        return self.bn2(self.pointwise2(self.depthwise2(x)))


class Pool(nn.Module):
    """3x3 pooling; where the width changes, a 1x1 convolution and batch norm follow.

    `zeros`: a strided average counts the padding as zeros, as timm's does; TensorFlow's does not.
    """

    def __init__(self, inputs: int, outputs: int, kind: str, stride: int, zeros: bool = False):
        super().__init__()
        self.kind, self.stride, self.zeros = kind, stride, zeros
        self.conv = nn.Conv2d(inputs, outputs, 1, bias=False) if inputs != outputs else None
        self.bn = _norm(outputs) if inputs != outputs else None

    def forward(self, x: Float[Tensor, "batch inputs h w"]) -> Float[Tensor, "batch outputs g v"]:
        if self.stride == 1:
            y = F.max_pool2d(x, 3, 1, 1) if self.kind == "max3" else F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        elif self.kind == "max3":
            y = F.max_pool2d(pad_same(x, 3, self.stride, -math.inf), 3, self.stride)
        else:
            y = F.avg_pool2d(pad_same(x, 3, self.stride), 3, self.stride)
            if not self.zeros:
                inside = pad_same(x.new_ones(1, 1, *x.shape[2:]), 3, self.stride)
                y = y / F.avg_pool2d(inside, 3, self.stride)
        return y if self.conv is None else self.bn(self.conv(y))


class NASCell(nn.Module):
    """One cell.

    Args:
        genotype: what it does.
        inputs: channels of the two states that come in.
        width: channels of every state inside.
        stride: 2 for a reduction: operations that read the two inputs halve the side.
        first: how the older input becomes like the younger one: "raw" is taken as it is, "same" by a projection,
            "halve" by a factorized reduction, where its side is twice as long.
        zeros: as of `Pool`.
        halved: the name of that reduction among the cell's parts.
    """

    def __init__(
        self, genotype: Genotype, inputs: tuple[int, int], width: int, stride: int = 1, first: str = "same",
        zeros: bool = False, halved: str = "halve",
    ):  # fmt: skip
        super().__init__()
        self.genotype, self.first, self.halved = genotype, first, halved
        if first == "halve":
            self.add_module(halved, FactorizedReduction(inputs[0], width))
        elif first == "same":
            self.previous = Projection(inputs[0], width)
        self.current = Projection(inputs[1], width)
        self.rate = 0.0
        """Of drop-path, in training."""
        widths = [inputs[0] if first == "raw" else width] + [width] * (1 + len(genotype.pairs))
        for i, pair in enumerate(genotype.pairs):
            for side, (state, operation) in (("left", pair[:2]), ("right", pair[2:])):
                # States made inside have the small side already.
                part = _operation(operation, widths[state], width, stride if state < 2 else 1, zeros)
                self.add_module(f"pair{i}_{side}", part)
        self.outputs = sum(widths[state] for state in genotype.out)
        """Channels that go out."""

    def forward(
        self, before: Float[Tensor, "batch a h w"], last: Float[Tensor, "batch b g v"]
    ) -> Float[Tensor, "batch outputs m n"]:
        if self.first == "raw":
            states = [before]
        else:
            states = [getattr(self, self.halved if self.first == "halve" else "previous")(F.relu(before))]
        states.append(self.current(F.relu(last)))
        active: dict[int, Tensor] = {}  # each state is activated once, however many operations read it
        for i, (left, first, right, second) in enumerate(self.genotype.pairs):
            a = self._operate(getattr(self, f"pair{i}_left"), first, states, left, active)
            b = self._operate(getattr(self, f"pair{i}_right"), second, states, right, active)
            states.append(a + b)
        return torch.cat([states[state] for state in self.genotype.out], 1)

    def _operate(
        self, part: nn.Module, operation: str, states: list[Tensor], state: int, active: dict[int, Tensor]
    ) -> Tensor:
        if isinstance(part, Pool | nn.Identity):
            y = part(states[state])
        else:
            if state not in active:
                active[state] = F.relu(states[state])
            y = part(active[state])
        return drop_path(y, self.rate) if self.training and operation != "none" else y


def _operation(name: str, inputs: int, outputs: int, stride: int, zeros: bool) -> nn.Module:
    if name == "none":
        return nn.Identity() if stride == 1 and inputs == outputs else Projection(inputs, outputs, stride)
    if name.startswith("sep"):
        return TwiceSeparable(inputs, outputs, int(name[3:]), stride)
    return Pool(inputs, outputs, name, stride, zeros)


class NASNet(nn.Module):
    """A 3x3/2 convolution, two reductions, and three stages of cells with a reduction between them (NASNet, Fig. 2).

    Args:
        normal, reduction: cells, by a name of `GENOTYPES` or as (pairs, out).
        repeats: normal cells of each stage.
        width: channels of the states inside the first stage's cells; they double at a reduction.
        stem: channels of the first convolution; None is the small stem for images of 32 pixels and fewer: a 3x3
            convolution of stride 1, and no reductions before the first stage.
        counted: a reduction is one of its stage's `repeats` cells, as in PNASNet.
        skips: the cell after a reduction sees, instead of the reduction's input, the one before that (NASNet-A large).
        zeros: strided averages count padding, as timm's; see `Pool`.
        dropout: before the classifier.
        drop_path: the last cell's rate at the end of training; it grows along the network (Section 4).
    """

    def __init__(
        self, normal: Any = "nasnet_normal", reduction: Any = "nasnet_reduction", repeats: int = 4, width: int = 44,
        stem: int | None = 32, num_classes: int = 1000, in_channels: int = 3, counted: bool = False, skips: bool = False,
        zeros: bool = False, dropout: float = 0.5, drop_path: float = 0.0,
    ):  # fmt: skip
        super().__init__()
        if repeats < 1 or width < (4 if stem else 1) or not 0 <= drop_path < 1:
            raise UsageError(f"repeats {repeats}, width {width}, drop_path {drop_path}: see NASNet")
        normal, reduction = as_genotype(normal), as_genotype(reduction)
        self.skips, self.drop_path, self.small = skips, drop_path, stem is None
        # Modules are named as in the published networks.
        self.first = "conv_0" if counted else "conv0"
        options = {"zeros": zeros, "halved": "previous" if counted else "halve"}
        wide = 3 * width if stem is None else stem
        self.add_module(self.first, nn.Sequential())
        conv = nn.Conv2d(in_channels, wide, 3, 1 if self.small else 2, 1 if self.small else 0, bias=False)
        getattr(self, self.first).add_module("conv", conv)
        getattr(self, self.first).add_module("bn", _norm(wide))
        self.cells: list[tuple[str, int]] = []
        """Name and stride of each cell, in order."""
        # Channels, and how often the side was halved, of the last two outputs.
        states = [(wide, 0), (wide, 0)]

        def add(name: str, genotype: Genotype, inside: int, stride: int, raw: bool = False) -> None:
            (before, scale), (last, now) = states
            first = "raw" if raw else "same" if scale == now else "halve"
            cell = NASCell(genotype, (before, last), inside, stride, first, **options)
            self.add_module(name, cell)
            self.cells.append((name, stride))
            older = states[0] if stride == 2 and skips and not name.startswith("cell_stem") else states[1]
            states[:] = [older, (cell.outputs, now + stride - 1)]

        if not self.small:
            add("cell_stem_0", reduction, width // 4, 2, raw=True)
            add("cell_stem_1", reduction, width // 2, 2)
        number = 0
        for stage in range(3):
            for i in range(repeats + (stage > 0 and not counted)):
                reduces = stage > 0 and i == 0
                name = f"reduction_cell_{stage - 1}" if reduces and not counted else f"cell_{number}"
                number += name.startswith("cell")
                add(name, reduction if reduces else normal, width << stage, 2 if reduces else 1)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(states[1][0], num_classes)
        self.set_progress(0.0)
        each(self, nn.Conv2d, lambda m: nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu"))

    def set_progress(self, done: float) -> None:
        """Say what share of training is done: drop-path's rate grows with it, and with a cell's depth."""
        for i, (name, _) in enumerate(self.cells):
            getattr(self, name).rate = self.drop_path * done * (i + 1) / len(self.cells)

    def features(self, x: Float[Tensor, "batch channels height width"]) -> list[Tensor]:
        """What each side's last cell gives, the largest side first, before its ReLU: strides 2, 4, 8, 16, 32.

        (1, 2 and 4 with the small stem.)
        """
        stem = getattr(self, self.first)
        check_images(x, stem.conv, smallest=3)
        x = stem(quick_layout(x))
        before, last, taps = x, x, []
        for name, stride in self.cells:
            if stride == 2:
                taps.append(last)
            y = getattr(self, name)(before, last)
            keeps = stride == 2 and self.skips and not name.startswith("cell_stem")
            before, last = before if keeps else last, y
        return [*taps, last]

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        return self.fc(self.dropout(F.relu(self.features(x)[-1]).mean((2, 3))))


def as_genotype(cell: Any) -> Genotype:
    """A genotype from a name, from (pairs, out) in plain lists, or itself."""
    if isinstance(cell, Genotype):
        return cell
    if isinstance(cell, str):
        if cell not in GENOTYPES:
            raise unknown("cell", cell, GENOTYPES)
        return GENOTYPES[cell]
    pairs, out = cell
    return Genotype(tuple((int(a), str(f), int(b), str(g)) for a, f, b, g in pairs), tuple(map(int, out)))


class ScheduledDropPath(Classification):
    """Classification by a network of cells whose drop-path rate grows linearly over `steps` updates (NASNet, Section 4)."""

    def __init__(self, network: nn.Module, steps: int, label_smoothing: float = 0.0):
        super().__init__(network, label_smoothing)
        self.steps = steps
        self.register_buffer("done", torch.zeros((), dtype=torch.int64))

    def forward(self, batch: Any, objective: str) -> tuple[Tensor, dict[str, Any]]:
        self.network.set_progress(min(int(self.done) / self.steps, 1.0))
        return super().forward(batch, objective)

    def after_update(self, objective: str) -> None:
        self.done += 1


def describe(genotype: Genotype) -> Sequence[str]:
    """A line of text for each pair of a cell."""
    names = ["before", "last", *(f"pair {i}" for i in range(len(genotype.pairs)))]
    return [f"pair {i} = {f}({names[a]}) + {g}({names[b]})" for i, (a, f, b, g) in enumerate(genotype.pairs)]
