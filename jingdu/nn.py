"""The few helpers that no paper introduced."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

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


def quick_layout(x: Float[Tensor, "batch c height width"]) -> Float[Tensor, "batch c height width"]:
    """The same images in the order of memory that a CPU convolves faster: channels innermost, from four images on.

    A network whose input is so stays so to its end. For fewer images the kernels' reordering costs more than it saves
    (ResNet-50 in float32 on two cores: 0.8 times as fast for one image, 1.1 for eight, in training 0.9 and 1.2).
    """
    return x.contiguous(memory_format=torch.channels_last) if x.device.type == "cpu" and len(x) >= 4 else x
