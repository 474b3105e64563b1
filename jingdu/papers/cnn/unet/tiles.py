"""Section 2, Figure 2: seamless segmentation of images of any size by overlapping tiles."""

import torch
from jaxtyping import Float
from torch import Tensor

from jingdu.papers.cnn.unet.network import UNet

__all__ = ["mirror", "segment"]


def mirror(
    images: Float[Tensor, "batch channels height width"], top: int, bottom: int, left: int, right: int
) -> Float[Tensor, "batch channels more_height more_width"]:
    """Images continued beyond their borders by reflection, as often as it takes; the border pixels come once."""

    def places(side: int, before: int, after: int) -> Tensor:
        period = max(2 * (side - 1), 1)
        place = torch.arange(-before, side + after, device=images.device).remainder(period)
        return torch.minimum(place, period - place) if side > 1 else place

    return images[:, :, places(images.shape[2], top, bottom)][:, :, :, places(images.shape[3], left, right)]


def segment(
    network: UNet, images: Float[Tensor, "batch channels height width"], tile: int | None = 384
) -> Float[Tensor, "batch classes height width"]:
    """The logits of each pixel of images of any size.

    Args:
        network: with "valid" convolutions, missing context is the mirror image; with padding, the network's own zeros,
            as in training.
        images: normalised.
        tile: sides of the pieces of the result, cut down to a multiple of the network's stride: then pools meet the
            same pixels in each piece, and the pieces together are what one pass over the whole image gives. None: one
            piece.
    """
    return _valid(network, images, tile) if network.valid else _padded(network, images, tile)


def _pieces(side: int, tile: int | None, stride: int) -> list[tuple[int, int]]:
    """First and last + 1 pixel of each piece along a side; the last may reach beyond it."""
    whole = -(-side // stride) * stride
    step = whole if tile is None else min(max(tile // stride, 1) * stride, whole)
    return [(start, start + step) for start in range(0, side, step)]


def _valid(network: UNet, images: Tensor, tile: int | None) -> Tensor:
    height, width = images.shape[2:]
    rows, columns = (_pieces(side, tile, network.stride) for side in (height, width))
    # What a piece of n pixels needs beside it: the margins, and the 4 pixels by which the outputs exceed multiples.
    more = network.smallest
    below, right = (pieces[-1][1] - side + more - network.margin for pieces, side in ((rows, height), (columns, width)))
    wide = mirror(images, network.margin, below, network.margin, right)
    lines = [
        torch.cat([
            network(wide[:, :, top : bottom + more, left : end + more])[:, :, : bottom - top, : end - left]
            for left, end in columns
        ], 3)
        for top, bottom in rows
    ]  # fmt: skip
    return torch.cat(lines, 2)[:, :, :height, :width]


def _padded(network: UNet, images: Tensor, tile: int | None) -> Tensor:
    height, width = images.shape[2:]
    low = [max(network.smallest - side, 0) for side in (height, width)]
    if any(low):  # smaller than one pixel of the bottom
        wide = mirror(images, 0, low[0], 0, low[1])
        return network(wide)[:, :, :height, :width]
    # A pixel's classes depend on `margin` pixels around it and up to stride - 1 more, by its place in the pools' windows.
    reach = 6 * network.stride
    rows, columns = (_pieces(side, tile, network.stride) for side in (height, width))
    lines = []
    for top, bottom in rows:
        line = []
        for left, end in columns:
            y, x = max(top - reach, 0), max(left - reach, 0)
            found = network(images[:, :, y : bottom + reach, x : end + reach])
            line.append(found[:, :, top - y : min(bottom, height) - y, left - x : min(end, width) - x])
        lines.append(torch.cat(line, 3))
    return torch.cat(lines, 2)
