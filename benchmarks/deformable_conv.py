"""Deformable against plain 3x3 convolution, one training step of a layer: python -m benchmarks.deformable_conv.

The paper's layer does more: its ratio to a plain one says what moving the taps costs (above 1 it would be faster). The
second reference does the same work as ours by torch's grid_sample, tap by tap, which is how it is mostly written without a
kernel of its own.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.paired import compare, save
from jingdu.papers.cnn.deformable_conv import DeformConv2d

SIZES = ((128, 28), (256, 14), (512, 7))
"""Channels and sides of ResNet's conv3_x, conv4_x, conv5_x at 224 pixels."""


def grid_sampled(layer: DeformConv2d) -> Callable[[Tensor], Tensor]:
    """The layer by grid_sample: 9 maps, then a 1x1 convolution of them all."""

    def once(x: Tensor) -> Tensor:
        offset, mask = layer.moves(x)
        height, width = x.shape[2:]
        taps = []
        for tap in range(9):
            y = offset[:, 2 * tap] + torch.arange(height)[:, None] + tap // 3 - 1
            z = offset[:, 2 * tap + 1] + torch.arange(width) + tap % 3 - 1
            grid = torch.stack((2 * z / (width - 1) - 1, 2 * y / (height - 1) - 1), -1)
            read = F.grid_sample(x, grid, padding_mode="zeros", align_corners=True)
            taps.append(read if mask is None else read * mask[:, tap, None])
        weight = layer.weight.permute(0, 2, 3, 1).flatten(1)[:, :, None, None]
        return F.conv2d(torch.cat(taps, 1), weight)

    return once


def step(function: Callable[[Tensor], Tensor], x: Tensor, parameters: list[nn.Parameter]) -> Callable[[], None]:
    """Forward and backward, to weights and input."""

    def once() -> None:
        for tensor in (x, *parameters):
            tensor.grad = None
        function(x).square().mean().backward()

    return once


def cases(rounds: int = 7, batch: int = 4) -> list[dict[str, Any]]:
    """Each size: v1 against plain, v2 against plain, and v2 against grid_sample."""
    rows = []
    for channels, side in SIZES:
        x = torch.randn(batch, channels, side, side, generator=torch.Generator().manual_seed(0)).requires_grad_()
        plain = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        for mask_scale, version in ((None, "v1"), (1.0, "v2")):
            layer = DeformConv2d(channels, channels, padding=1, bias=False, mask_scale=mask_scale)
            nn.init.normal_(layer.offset.weight, std=0.01)
            sampled = grid_sampled(layer)
            gap = (layer(x) - sampled(x)).abs().max() / layer(x).abs().max()
            assert gap < 1e-4, float(gap)
            ours = step(layer, x, list(layer.parameters()))
            references = {"a plain 3x3 convolution": step(plain, x, list(plain.parameters()))}
            if mask_scale is not None:
                references["grid_sample"] = step(sampled, x, list(layer.parameters()))
            for name, reference in references.items():
                title = f"deformable {version}, {channels} channels of {side}x{side}, training step, against {name}"
                rows.append(compare(ours, reference, title, rounds, 1, f"{batch} maps, forward and backward"))
    return rows


if __name__ == "__main__":
    save(cases(), "deformable_conv.json")
