"""The convolution whose taps move (Sec. 2.1; v2 Sec. 3.2)."""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from jingdu.errors import UsageError

Border = Literal["zero", "clamp"]


def bilinear_corners(
    y: Float[Tensor, "*places"], x: Float[Tensor, "*places"], height: int, width: int, border: Border = "zero"
) -> tuple[Int64[Tensor, "*places 4"], Float[Tensor, "*places 4"]]:
    """Equations 3 and 4: the four pixels around each place, and what each counts.

    Args:
        y: row, in pixels; 0 is the middle of the first.
        x: column.
        height: of the map.
        width: of the map.
        border: "zero" is zero padding (v2). "clamp" reads places on the map alone, those beyond the middle of the last
            pixel as that pixel, and nothing above or left of the first's middle (v1's operator).

    Returns pixels as row * width + column (a pixel outside stands as one inside that counts nothing), and weights.
    """
    if border == "clamp":
        inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        y, x = y.clamp(max=height - 1), x.clamp(max=width - 1)
    with torch.no_grad():
        top, left = y.floor(), x.floor()
    down, across = y - top, x - left
    rows, columns = (torch.stack((low, low + 1), -1) for low in (top, left))
    by_row = torch.stack((1 - down, down), -1) * ((rows >= 0) & (rows < height))
    by_column = torch.stack((1 - across, across), -1) * ((columns >= 0) & (columns < width))
    weights = (by_row[..., :, None] * by_column[..., None, :]).flatten(-2)
    if border == "clamp":
        weights = weights * inside[..., None]
    rows, columns = rows.clamp(0, height - 1).long(), columns.clamp(0, width - 1).long()
    return (rows[..., :, None] * width + columns[..., None, :]).flatten(-2), weights


def tap_places(
    offset: Float[Tensor, "batch channels height width"], kernel: int, stride: int, padding: int, dilation: int
) -> tuple[Tensor, Tensor]:
    """Rows and columns [batch, height, width, taps, groups] in the input at which the taps of each output read."""
    batch, channels, height, width = offset.shape
    taps = kernel**2
    moves = offset.view(batch, channels // (2 * taps), taps, 2, height, width).permute(0, 4, 5, 2, 1, 3)

    def start(count: int) -> Tensor:
        return torch.arange(count, device=offset.device) * stride - padding

    tap = torch.arange(taps, device=offset.device) * dilation
    down = torch.arange(taps, device=offset.device).div(kernel, rounding_mode="floor") * dilation
    across = tap - down * kernel
    y = moves[..., 0] + start(height).view(-1, 1, 1, 1) + down.view(-1, 1)
    x = moves[..., 1] + start(width).view(-1, 1, 1) + across.view(-1, 1)
    return y, x


def deform_conv2d(
    x: Float[Tensor, "batch inputs in_height in_width"],
    offset: Float[Tensor, "batch offsets height width"],
    weight: Float[Tensor, "outputs inputs kernel kernel"],
    bias: Float[Tensor, " outputs"] | None = None,
    mask: Float[Tensor, "batch taps height width"] | None = None,
    *,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    border: Border = "zero",
) -> Float[Tensor, "batch outputs height width"]:
    """Equation 2, and with a mask v2's Equation 1.

    Args:
        x: the input.
        offset: 2 x kernel x kernel channels for each group of input channels: row and column of the first tap, of the
            second, .. in reading order, in pixels. Its height and width are the output's.
        weight: of the kernel.
        bias: added at the end.
        mask: what each tap counts: kernel x kernel channels for each group.
        stride: of the outputs, in pixels of the input.
        padding: pixels outside on which the first output's taps start.
        dilation: between the taps before they move.
        border: what is read there; see `bilinear_corners`.

    Raises UsageError for offsets or a mask that do not fit the kernel, the input's channels or the output's size.
    """
    (batch, inputs, height, width), (outputs, _, kernel, _) = x.shape, weight.shape
    taps, size = kernel**2, offset.shape[2:]
    groups = offset.shape[1] // (2 * taps)
    natural = tuple((side + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1 for side in (height, width))
    if offset.shape[1] != 2 * taps * max(groups, 1) or inputs % max(groups, 1):
        raise UsageError(
            f"offsets have {offset.shape[1]} channels: {taps} taps need {2 * taps} for each group, and {inputs} input "
            "channels must divide into the groups"
        )
    if tuple(size) != natural or (mask is not None and mask.shape != (batch, groups * taps, *size)):
        raise UsageError(
            f"the output is {natural[0]} x {natural[1]}, the offsets are {list(offset.shape)} and the mask "
            f"{None if mask is None else list(mask.shape)}: wanted {2 * taps * groups} and {taps * groups} channels of its size"
        )
    # Half precision would round places on large maps to whole pixels.
    exact = torch.promote_types(offset.dtype, torch.float32)
    y, across = tap_places(offset.to(exact), kernel, stride, padding, dilation)
    pixels, weights = bilinear_corners(y, across, height, width, border)
    if mask is not None:
        weights = weights * mask.view(batch, groups, taps, *size).permute(0, 3, 4, 2, 1)[..., None].to(exact)
    # One table of pixels of the whole batch, a row for each group of channels; each tap is a weighted sum of four rows.
    table = x.permute(0, 2, 3, 1).reshape(-1, inputs // groups)
    first = torch.arange(batch, device=x.device).view(-1, 1, 1, 1, 1, 1) * (height * width)
    group = torch.arange(groups, device=x.device).view(-1, 1)
    columns = F.embedding_bag(
        ((first + pixels) * groups + group).view(-1, 4),
        table,
        mode="sum",
        per_sample_weights=weights.reshape(-1, 4).to(x.dtype),
    )
    y = columns.view(-1, taps * inputs) @ weight.permute(2, 3, 1, 0).reshape(taps * inputs, outputs)
    if bias is not None:
        y = y + bias
    return y.view(batch, *size, outputs).permute(0, 3, 1, 2)


class DeformConv2d(nn.Module):
    """A convolution whose taps move: Figure 2, and v2 Section 3.2.

    Args:
        inputs: channels of the input.
        outputs: channels of the output.
        kernel: side of the kernel.
        stride: as a convolution's.
        padding: as a convolution's.
        dilation: as a convolution's.
        bias: whether there is one.
        offset_groups: groups of input channels with offsets of their own (4 in the authors' R-FCN).
        mask_scale: None: v1, all taps count alike. A number: taps count that many times a sigmoid (v2).
        border: see `bilinear_corners`.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, padding: int = 0, dilation: int = 1,
        bias: bool = True, offset_groups: int = 1, mask_scale: float | None = None, border: Border = "zero",
    ):  # fmt: skip
        super().__init__()
        if inputs % offset_groups:
            raise UsageError(f"{inputs} channels do not divide into {offset_groups} groups")
        self.inputs, self.outputs, self.kernel = inputs, outputs, kernel
        self.stride, self.padding, self.dilation = stride, padding, dilation
        self.offset_groups, self.mask_scale, self.border = offset_groups, mask_scale, border
        plain = nn.Conv2d(inputs, outputs, kernel, bias=bias)  # for its initialisation
        self.weight, self.bias = plain.weight, plain.bias
        channels = offset_groups * kernel**2 * (2 if mask_scale is None else 3)
        self.offset = nn.Conv2d(inputs, channels, kernel, stride, padding, dilation)
        nn.init.zeros_(self.offset.weight)
        nn.init.zeros_(self.offset.bias)
        self.rates = {"offset": 1.0}
        """Learning rates of parts as multiples of the network's; the engine reads them."""

    def moves(self, x: Float[Tensor, "batch inputs height width"]) -> tuple[Tensor, Tensor | None]:
        """The offsets in pixels, and what the taps count: all offsets come first, then the logits of the mask."""
        # Under autocast the offset would be rounded to eight bits.
        with torch.autocast(x.device.type, enabled=False):
            found = self.offset(x.to(self.offset.weight.dtype))
        if self.mask_scale is None:
            return found, None
        offset, logits = found.split([2 * found.shape[1] // 3, found.shape[1] // 3], 1)
        return offset, self.mask_scale * logits.sigmoid()

    def forward(self, x: Float[Tensor, "batch inputs height width"]) -> Float[Tensor, "batch outputs h w"]:
        offset, mask = self.moves(x)
        return deform_conv2d(
            x, offset, self.weight, self.bias, mask,
            stride=self.stride, padding=self.padding, dilation=self.dilation, border=self.border,
        )  # fmt: skip


def effective_dilation(
    offset: Float[Tensor, "batch channels height width"], kernel: int = 3, dilation: int = 1
) -> Float[Tensor, "batch groups height width"]:
    """Section 3.1: the mean distance in pixels between taps that are neighbours in the kernel, at each output."""
    y, x = tap_places(offset, kernel, 1, 0, dilation)
    places = torch.stack((y, x), -1).unflatten(3, (kernel, kernel))
    beside = (places[:, :, :, :, 1:] - places[:, :, :, :, :-1]).norm(dim=-1).flatten(3, 4)
    below = (places[:, :, :, 1:] - places[:, :, :, :-1]).norm(dim=-1).flatten(3, 4)
    return torch.cat((beside, below), 3).mean(3).permute(0, 3, 1, 2)
