"""Section 2: the parts of a U, and the network of Figure 1.

Later papers build their own U from the same parts: a `Style` says what convolutions stand between, `condition` and
`after` are places for modules of theirs (a time embedding, attention), and `contract` and `expand` walk down and up
over any blocks.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from jingdu.errors import UsageError
from jingdu.nn import check_images, each

__all__ = ["DoubleConv", "Down", "Style", "UNet", "Up", "contract", "enlarge", "expand", "join"]


def relu() -> nn.Module:
    """A ReLU that writes over its input: the maps of the first levels are large."""
    return nn.ReLU(inplace=True)


@dataclass(frozen=True)
class Style:
    """What stands around the two convolutions of a block. The paper's: nothing but a ReLU, and no padding."""

    padding: int = 0
    """0 loses a pixel on each side with each convolution; 1 keeps the size."""
    norm: Callable[[int], nn.Module] | None = None
    """Makes a norm for so many channels: nn.BatchNorm2d, or a GroupNorm."""
    activation: Callable[[], nn.Module] = relu
    norm_first: bool = False
    """Norm, activation, convolution in place of convolution, norm, activation."""
    dropout: float = 0.0
    """Share of the second convolution's inputs that is dropped in training."""


class DoubleConv(nn.Module):
    """Two 3x3 convolutions, each with its activation (Sec. 2).

    Args:
        inputs, outputs: channels.
        style: what stands around the convolutions.
        middle: channels between them; by default `outputs`.
        condition: called as condition(x, embedding) between the two: how a block hears of a time or a class.
        after: called with the result: attention, or the dropout of the contracting path's end.
    """

    def __init__(
        self, inputs: int, outputs: int, style: Style = Style(), middle: int | None = None,
        condition: nn.Module | None = None, after: nn.Module | None = None,
    ):  # fmt: skip
        super().__init__()
        middle = outputs if middle is None else middle
        make = style.norm or (lambda channels: nn.Identity())
        # A norm behind a convolution takes its bias away.
        bias = style.norm is None or style.norm_first
        self.norm_first = style.norm_first
        self.conv1 = nn.Conv2d(inputs, middle, 3, padding=style.padding, bias=bias)
        self.norm1 = make(inputs if style.norm_first else middle)
        self.conv2 = nn.Conv2d(middle, outputs, 3, padding=style.padding, bias=bias)
        self.norm2 = make(middle if style.norm_first else outputs)
        self.activation = style.activation()
        self.dropout = nn.Dropout(style.dropout)
        self.condition, self.after = condition, after

    def first(self, x: Float[Tensor, "batch inputs height width"]) -> Float[Tensor, "batch middle h w"]:
        """The first convolution with its norm and activation."""
        if self.norm_first:
            return self.conv1(self.activation(self.norm1(x)))
        return self.activation(self.norm1(self.conv1(x)))

    def second(self, x: Float[Tensor, "batch middle height width"]) -> Float[Tensor, "batch outputs h w"]:
        """The second one; dropout stands right before the convolution."""
        if self.norm_first:
            return self.conv2(self.dropout(self.activation(self.norm2(x))))
        return self.activation(self.norm2(self.conv2(self.dropout(x))))

    def forward(
        self, x: Float[Tensor, "batch inputs height width"], embedding: Tensor | None = None
    ) -> Float[Tensor, "batch outputs h w"]:
        x = self.first(x)
        if self.condition is not None:
            x = self.condition(x, embedding)
        x = self.second(x)
        return x if self.after is None else self.after(x)


# The walk down and up -----------------------------------------------------------------------------


class Down(nn.Module):
    """A step of the contracting path: make smaller (a 2x2 max-pool, or nothing on the first level), then a block."""

    def __init__(self, reduce: nn.Module, block: nn.Module):
        super().__init__()
        self.reduce, self.block = reduce, block

    def forward(
        self, x: Float[Tensor, "batch inputs height width"], *context: Any
    ) -> Float[Tensor, "batch outputs h w"]:
        return self.block(self.reduce(x), *context)


class Up(nn.Module):
    """A step of the expansive path: enlarge, join what comes across, then a block."""

    def __init__(self, enlarge: nn.Module, block: nn.Module):
        super().__init__()
        self.enlarge, self.block = enlarge, block

    def forward(
        self,
        x: Float[Tensor, "batch inputs height width"],
        across: Float[Tensor, "batch more high wide"],
        *context: Any,
    ) -> Float[Tensor, "batch outputs h w"]:
        return self.block(join(across, self.enlarge(x)), *context)


def contract(x: Tensor, blocks: Iterable[nn.Module], *context: Any) -> list[Tensor]:
    """The left side of a U: the output of each block, which is the next one's input. Blocks get (x, *context)."""
    taps = []
    for block in blocks:
        x = block(x, *context)
        taps.append(x)
    return taps


def expand(x: Tensor, across: Sequence[Tensor], blocks: Iterable[nn.Module], *context: Any) -> Tensor:
    """The right side: each block gets (x, the last of `across` that is left, *context)."""
    left = list(across)
    for block in blocks:
        x = block(x, left.pop(), *context)
    return x


def join(
    across: Float[Tensor, "batch channels high wide"], x: Float[Tensor, "batch more height width"]
) -> Float[Tensor, "batch both h w"]:
    """Concatenate what comes across, first, with what comes from below.

    Without padding it is the larger one, and its centre is taken (the grey arrows of Fig. 1). With padding, where a
    pool has dropped an odd row, it may be larger by one: then `x` gets a row of zeros, rather than being resized.
    """
    down, right = across.shape[2] - x.shape[2], across.shape[3] - x.shape[3]
    if max(down, right) > 1:
        across = across[:, :, down // 2 : down // 2 + x.shape[2], right // 2 : right // 2 + x.shape[3]]
    elif down or right:
        x = F.pad(x, (right // 2, right - right // 2, down // 2, down - down // 2))
    return torch.cat((across, x), 1)


def enlarge(how: Literal["transposed", "bilinear", "nearest"], inputs: int, outputs: int) -> nn.Module:
    """Twice the height and width.

    transposed: the paper's "2x2 convolution (up-convolution)". bilinear: corners stay in the corners, and so do the
    channels. nearest: each pixel four times, then a 3x3 convolution.
    """
    if how == "transposed":
        return nn.ConvTranspose2d(inputs, outputs, 2, 2)
    if how == "bilinear":
        return nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
    return nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(inputs, outputs, 3, padding=1))


# The network --------------------------------------------------------------------------------------


class UNet(nn.Module):
    """Figure 1: `depth` steps down and up again, joined at each level; a 1x1 convolution gives the classes.

    Args:
        width: channels of the first level; they double from level to level.
        depth: steps down.
        padding: "valid" is the paper's: the map of classes is smaller than the image. "same" keeps the size.
        norm: "batch" puts a batch norm behind each convolution.
        up: how the expansive path enlarges (`enlarge`).
        dropout: share of the last two levels' outputs that is dropped in training (Sec. 3.1).
        skips: False gives zeros in place of what comes across: the twin that must send all through the bottom.
    """

    def __init__(
        self,
        num_classes: int = 2,
        in_channels: int = 1,
        width: int = 64,
        depth: int = 4,
        padding: Literal["valid", "same"] = "valid",
        norm: Literal["batch"] | None = None,
        up: Literal["transposed", "bilinear", "nearest"] = "transposed",
        dropout: float = 0.5,
        skips: bool = True,
    ):
        super().__init__()
        style = Style(int(padding == "same"), nn.BatchNorm2d if norm == "batch" else None)
        widths = [width << level for level in range(depth + 1)]
        if up == "bilinear":  # which keeps the channels: the bottom has what the others' up-convolution would leave
            widths[-1] = widths[-2]
        self.contracting = nn.ModuleList()
        for level, channels in enumerate(widths):
            after = nn.Dropout(dropout) if dropout and level >= depth - 1 else None
            block = DoubleConv(widths[level - 1] if level else in_channels, channels, style, after=after)
            self.contracting.append(Down(nn.MaxPool2d(2) if level else nn.Identity(), block))
        self.expanding = nn.ModuleList()
        below = widths[-1]
        for level in reversed(range(depth)):
            channels = widths[level]
            outputs, arriving = channels, channels
            if up == "bilinear":
                outputs, arriving = widths[max(level - 1, 0)], below
            block = DoubleConv(channels + arriving, outputs, style, middle=channels)
            self.expanding.append(Up(enlarge(up, below, channels), block))
            below = outputs
        self.score = nn.Conv2d(below, num_classes, 1)
        self.skips, self.valid, self.depth, self.channels = skips, padding == "valid", depth, widths
        self.initialise()

    def initialise(self) -> None:
        """Section 3: Gaussian weights of deviation sqrt(2/N), N the incoming nodes of one neuron; biases of zero."""

        def start(layer: nn.Conv2d | nn.ConvTranspose2d) -> None:
            # An output of a 2x2 up-convolution with stride 2 sees one pixel.
            pixels = 1 if isinstance(layer, nn.ConvTranspose2d) else math.prod(layer.kernel_size)
            nn.init.normal_(layer.weight, std=math.sqrt(2 / (layer.in_channels * pixels)))
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

        each(self, (nn.Conv2d, nn.ConvTranspose2d), start)

    @property
    def stride(self) -> int:
        """Pixels of the image for one at the bottom."""
        return 1 << self.depth

    @property
    def margin(self) -> int:
        """Pixels of an image on each side of which there are no classes, without padding."""
        return 6 * self.stride - 4

    @property
    def smallest(self) -> int:
        """The smallest image: 188 pixels for the paper's network, which leaves 4; with padding, one at the bottom."""
        return 12 * self.stride - 4 if self.valid else self.stride

    def features(self, x: Float[Tensor, "batch channels height width"]) -> list[Tensor]:
        """The outputs of the contracting path's levels, before they are pooled; `self.channels` holds their channels.

        Raises UsageError for images of other channels, too small ones and, without padding, sizes of which a pool
        would drop a row ("such that all 2x2 max-pooling operations are applied to a layer with an even size", Sec. 2).
        """
        check_images(x, self.contracting[0].block.conv1, self.smallest)
        if self.valid and any((side + 4) % self.stride for side in x.shape[2:]):
            down = [(side + 4) // self.stride * self.stride - 4 for side in x.shape[2:]]
            raise UsageError(
                f"images are {x.shape[2]} x {x.shape[3]}: without padding the sides are {self.smallest} and every "
                f"{self.stride} pixels more, such as {down[0]} x {down[1]}; unet.segment cuts tiles of any image"
            )
        # In their own layout: with the channels innermost a CPU takes 1.05 to 1.6 times as long, in training the most.
        return contract(x, self.contracting)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes h w"]:
        *across, x = self.features(x)
        if not self.skips:
            across = [torch.zeros_like(tap) for tap in across]
        return self.score(expand(x, across, self.expanding))
