"""The few helpers that no paper introduced."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function_variadic

from jingdu.errors import UsageError


def each(module: nn.Module, kinds: type | tuple[type, ...], do: Callable[[nn.Module], None]) -> None:
    """Call `do` on every submodule of the given kinds."""
    for child in module.modules():
        if isinstance(child, kinds):
            do(child)


def check_images(x: Tensor, first: nn.Conv2d, smallest: int = 1) -> None:
    """Raise UsageError, which names the axis, for what the convolution `first` of a network cannot take.

    That is a batch that is empty or not [batch, channels, height, width], other channels, sides below `smallest`
    pixels, and numbers of another type or on another device than its weights (under autocast torch converts them).
    """
    shape, weight = list(x.shape), first.weight
    if len(shape) != 4:
        raise UsageError(f"images have shape {shape}: wanted [batch, channels, height, width]")
    wanted = ("1 or more", str(first.in_channels), f"{smallest} or more", f"{smallest} or more")
    fits = (shape[0] > 0, shape[1] == first.in_channels, shape[2] >= smallest, shape[3] >= smallest)
    for axis, name in enumerate(("batch", "channels", "height", "width")):
        if not fits[axis]:
            raise UsageError(f"images have shape {shape}: {name} (axis {axis}) is {shape[axis]}, wanted {wanted[axis]}")
    if x.dtype != weight.dtype and not (x.is_floating_point() and torch.is_autocast_enabled(x.device.type)):
        raise UsageError(f"images are {x.dtype}, the network is {weight.dtype}: convert one")
    if x.device != weight.device:
        raise UsageError(f"images are on {x.device}, the network on {weight.device}: bring them together")


def quick_layout(x: Float[Tensor, "batch c height width"], fewest: int = 4) -> Float[Tensor, "batch c height width"]:
    """The same images in the order of memory that a CPU convolves faster: channels innermost, from `fewest` images on.

    A network whose input is so stays so to its end. For fewer images the kernels' reordering costs more than it saves
    (ResNet-50 in float32 on two cores: 0.8 times as fast for one image, 1.1 for eight, in training 0.9 and 1.2).
    """
    return x.contiguous(memory_format=torch.channels_last) if x.device.type == "cpu" and len(x) >= fewest else x


AT_ONCE, LARGE = 8, 1 << 18
"""Parts of a matrix, and numbers from which on one is cut into them, in `linear`."""


def linear(
    x: Float[Tensor, "*batch width"],
    weight: Float[Tensor, "out width"],
    bias: Float[Tensor, " out"] | None = None,
) -> Float[Tensor, "*batch out"]:
    """`F.linear`; of one vector on a CPU, where all the time is that of reading the weights, as a batch of products.

    A library's product of two matrices is made for many rows. In eight parts at a time it reads a large matrix at
    21 GB/s, where `F.linear` and `torch.mv` do at 13 (float32, two cores with AVX2, whose memory gives 27).
    """
    if has_torch_function_variadic(x, weight):
        return handle_torch_function(linear, (x, weight), x, weight, bias)
    rows = len(weight) // AT_ONCE * AT_ONCE
    if (
        x.numel() != x.shape[-1] or weight.numel() < LARGE or torch.is_grad_enabled() or not rows
        or x.device.type != "cpu" or x.dtype != torch.float32 or weight.dtype != torch.float32
        or torch.is_autocast_enabled("cpu") or not weight.is_contiguous()
    ):  # fmt: skip
        return F.linear(x, weight, bias)
    parts = weight[:rows].view(AT_ONCE, -1, weight.shape[1]).transpose(1, 2)
    y = torch.bmm(x.reshape(1, 1, -1).expand(AT_ONCE, 1, -1), parts).view(rows)
    if rows < len(weight):
        y = torch.cat([y, torch.mv(weight[rows:], x.reshape(-1))])
    y = y.view(*x.shape[:-1], -1)
    return y if bias is None else y + bias


class Linear(nn.Linear):
    """torch's layer by `linear`."""

    def forward(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch out"]:
        return linear(x, self.weight, self.bias)
