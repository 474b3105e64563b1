"""The few helpers that no paper introduced."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn


def each(module: nn.Module, kinds: type | tuple[type, ...], do: Callable[[nn.Module], None]) -> None:
    """Call `do` on every submodule of the given kinds."""
    for child in module.modules():
        if isinstance(child, kinds):
            do(child)


def quick_layout(x: Float[Tensor, "batch c height width"]) -> Float[Tensor, "batch c height width"]:
    """The same images in the order of memory that a CPU convolves faster: channels innermost, from four images on.

    A network whose input is so stays so to its end. For fewer images the kernels' reordering costs more than it saves
    (ResNet-50 in float32 on two cores: 0.8 times as fast for one image, 1.1 for eight, in training 0.9 and 1.2).
    """
    return x.contiguous(memory_format=torch.channels_last) if x.device.type == "cpu" and len(x) >= 4 else x
