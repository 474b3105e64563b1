"""Pictures whose label no window sees alone: do the two markers on either side of a border match? (For the claims.)"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from jingdu.data.base import Batch
from jingdu.data.draws import Draws
from jingdu.data.scenes import COLOURS, render, world
from jingdu.errors import UsageError

__all__ = ["Matching", "matching"]

RADIUS = 0.45
"""Of a marker, in cells."""


class Matching:
    """Markers in the cells of a square, as `matching` makes them; each is a function of its number alone."""

    classes = ("different", "same")

    def __init__(
        self, first: int, count: int, window: int, colours: Sequence[str], others: int, pixels: int, seed: int
    ):
        self.first, self.count, self.window, self.others = first, count, window, others
        self.colours, self.pixels, self.seed = tuple(colours), pixels, seed

    def __len__(self) -> int:
        return self.count

    def cells(self, draws: Draws) -> Int64[Tensor, "pictures markers 2"]:
        """Row and column of each marker: two that a border parts, then others, none of which lies at a border."""
        window = self.window
        along, turned = draws.integers(2 * window), draws.integers(2).bool()
        border = torch.tensor([window - 1, window])[None].expand(len(along), 2)
        pair = torch.stack((along[:, None].expand(-1, 2), border), 2)
        pair = torch.where(turned[:, None, None], pair.flip(2), pair)
        free = torch.tensor([cell for cell in range(2 * window) if cell not in (window - 1, window)])
        places = draws.uniform(len(free) ** 2).argsort(1)[:, : self.others]
        others = torch.stack((free[places // len(free)], free[places % len(free)]), 2)
        return torch.cat((pair, others), 1)

    def batch(self, indices: np.ndarray, draws: Draws) -> Batch:
        numbers = self.first + np.asarray(indices, dtype=np.int64)
        markers = 2 + self.others
        worlds = world(numbers, self.seed, min_shapes=markers, max_shapes=markers, background="gradient")
        own = Draws(self.seed + 1, 0, numbers)
        cells = self.cells(own)
        known = torch.tensor([list(COLOURS).index(name) for name in self.colours])
        colour = own.integers(len(known), markers)
        label = own.integers(2)
        colour[:, 1] = (colour[:, 0] + (1 - label) * (1 + own.integers(len(known) - 1))) % len(known)
        side = 2 * self.window
        worlds = replace(
            worlds,
            shape=torch.zeros_like(worlds.shape),
            colour=known[colour],
            radius=torch.full_like(worlds.radius, RADIUS / side),
            position=(cells.flip(2) + 0.5) / side,
        )
        image: Float[Tensor, "pictures 3 size size"] = render(worlds, side * self.pixels)[0]
        return {"image": image, "label": label}


def matching(
    split: Literal["train", "test"],
    window: int = 4,
    colours: Sequence[str] = ("red", "yellow", "green", "blue"),
    others: int = 4,
    pixels: int = 4,
    count: int = 20_000,
    test_count: int = 1000,
    seed: int = 0,
) -> Matching:
    """Two by two windows of cells with coloured discs; two of them touch across the border between two windows.

    The label says whether these two have one colour, which is so in half of the pictures. Their place along the border
    is random; the other discs lie elsewhere, in random colours.

    Args:
        split: training and test pictures share no number.
        window: cells down and across of a window.
        colours: of the discs.
        others: discs beside the two.
        pixels: side of a cell.
        count: training pictures.
        test_count: test pictures.
        seed: of the pictures.

    Raises UsageError for fewer than two colours, and more discs than there are cells for.
    """
    if len(colours) < 2 or not 0 <= others <= (2 * window - 2) ** 2:
        raise UsageError(f"matching of {len(colours)} colours with {others} other discs: there are no such pictures")
    first, number = (0, count) if split == "train" else (1 << 32, test_count)
    return Matching(first, number, window, colours, others, pixels, seed)
