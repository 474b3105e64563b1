"""The norm of channels, and the block (Figure 4)."""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from jingdu.errors import unknown
from jingdu.papers.cnn.nas.cells import drop_path

__all__ = ["ConvNeXtBlock", "Downsample", "LayerNorm2d", "Stem", "channel_norm"]

Channels = Literal["first", "last"]
"""Where a map has its channels: [batch, channels, height, width] or [batch, height, width, channels]."""


def channel_norm(
    x: Float[Tensor, "batch channels height width"],
    weight: Float[Tensor, " channels"],
    bias: Float[Tensor, " channels"],
    eps: float = 1e-6,
) -> Float[Tensor, "batch channels height width"]:
    """Layer norm over the channels of each pixel, by its formula, where the channels lie."""
    y = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x  # a variance in bf16 has two or three digits
    y = y - y.mean(1, keepdim=True)
    y = y * torch.rsqrt(y.square().mean(1, keepdim=True) + eps)
    return (y * weight.to(y.dtype)[:, None, None] + bias.to(y.dtype)[:, None, None]).to(x.dtype)


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of each pixel of a map.

    Args:
        width: how many channels.
        eps: added to their variance.
        channels: which axis holds them: the second one, or the last one. Both give the same numbers.

    Raises UsageError for another `channels`.
    """

    def __init__(self, width: int, eps: float = 1e-6, channels: Channels | str = "first"):
        super().__init__(width, eps)
        if channels not in get_args(Channels):
            raise unknown("channels", str(channels), get_args(Channels))
        self.first = channels == "first"

    def forward(self, x: Float[Tensor, "batch a b c"]) -> Float[Tensor, "batch a b c"]:
        if not self.first:
            return super().forward(x)
        if x.is_contiguous() and not x.is_contiguous(memory_format=torch.channels_last) and x.device.type != "cpu":
            return channel_norm(x, self.weight, self.bias, self.eps)
        # A view of the pixels, channels innermost: of maps that lie so, as ours do on a CPU, nothing is copied.
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Stem(nn.Module):
    """Section 2.2: patches through one linear map, a convolution whose stride is its kernel; then a norm."""

    def __init__(self, in_channels: int, width: int, patch: int = 4, eps: float = 1e-6):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, width, patch, patch)
        self.norm = LayerNorm2d(width, eps)

    def forward(self, x: Float[Tensor, "batch inputs height width"]) -> Float[Tensor, "batch outputs h w"]:
        return self.norm(self.conv(x))


class Downsample(nn.Module):
    """Section 2.6, between stages: a norm, without which training diverges, and a convolution of 2x2 pixels at stride 2."""

    def __init__(self, inputs: int, outputs: int, eps: float = 1e-6):
        super().__init__()
        self.norm = LayerNorm2d(inputs, eps)
        self.conv = nn.Conv2d(inputs, outputs, 2, 2)

    def forward(self, x: Float[Tensor, "batch inputs height width"]) -> Float[Tensor, "batch outputs h w"]:
        return self.conv(self.norm(x))


class ConvNeXtBlock(nn.Module):
    r"""Figure 4: $y = x + \gamma\, W_2\, \mathrm{GELU}(W_1\, \mathrm{LN}(\mathrm{depthwise}_{7 \times 7}(x)))$.

    Args:
        width: channels.
        kernel: side of the depthwise convolution's.
        scale: where gamma starts (CaiT's layer scale); None has none.
        drop: probability that an image skips the block in training (stochastic depth).
        eps: of the norm.
    """

    def __init__(
        self, width: int, kernel: int = 7, scale: float | None = 1e-6, drop: float | int = 0.0, eps: float = 1e-6
    ):
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width)
        self.norm = LayerNorm2d(width, eps, channels="last")
        self.expand, self.contract = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.scale = nn.Parameter(torch.full((width,), scale)) if scale is not None else None
        self.drop = drop

    def forward(self, x: Float[Tensor, "batch width h w"]) -> Float[Tensor, "batch width h w"]:
        y = self.depthwise(x).permute(0, 2, 3, 1)
        y = self.contract(F.gelu(self.expand(self.norm(y))))
        rate = self.drop if self.training else 0.0
        x = x.permute(0, 2, 3, 1)
        if self.scale is None:
            x = x + drop_path(y, rate)
        elif rate:
            x = x + drop_path(y * self.scale, rate)
        else:
            x = torch.addcmul(x, y, self.scale)
        return x.permute(0, 3, 1, 2)
