"""Pictures whose label no window sees alone: does a ring match the disc behind the border of its window? (For the claims.)"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from jingdu.data.base import Batch
from jingdu.data.draws import Draws
from jingdu.data.scenes import COLOURS, SHAPES, render, world
from jingdu.errors import UsageError

__all__ = ["Matching", "matching"]

RADIUS = 0.45
"""Of a shape, in cells."""


class Matching:
    """Shapes in the cells of a square, as `matching` makes them; each picture is a function of its number alone."""

    classes = ("different", "same")

    def __init__(
        self, first: int, count: int, window: int, colours: Sequence[str], others: int, pixels: int, seed: int
    ):
        self.first, self.count, self.window, self.others = first, count, window, others
        self.colours, self.pixels, self.seed = tuple(colours), pixels, seed

    def __len__(self) -> int:
        return self.count

    def cells(self, draws: Draws) -> Int64[Tensor, "pictures shapes 2"]:
        """Row and column of the ring, which stands at the border, of the disc right of it, and of the others."""
        side = 2 * self.window
        ring = draws.integers(side) * side + self.window - 1
        order = draws.uniform(side**2)
        pair = torch.stack((ring, ring + 1), 1)
        cells = torch.cat((pair, order.scatter(1, pair, 2.0).argsort(1)[:, : self.others]), 1)
        return torch.stack((cells // side, cells % side), 2)

    def batch(self, indices: np.ndarray, draws: Draws) -> Batch:
        numbers = self.first + np.asarray(indices, dtype=np.int64)
        count, side = 2 + self.others, 2 * self.window
        worlds = world(numbers, self.seed, min_shapes=count, max_shapes=count, background="gradient")
        own = Draws(self.seed + 1, 0, numbers)
        cells = self.cells(own)
        known = torch.tensor([list(COLOURS).index(name) for name in self.colours])
        colour = own.integers(len(known), count)
        label = own.integers(2)
        colour[:, 1] = (colour[:, 0] + (1 - label) * (1 + own.integers(len(known) - 1))) % len(known)
        shape = torch.full_like(worlds.shape, list(SHAPES).index("circle"))
        shape[:, 0] = list(SHAPES).index("ring")
        worlds = replace(
            worlds,
            shape=shape,
            colour=known[colour],
            radius=torch.full_like(worlds.radius, RADIUS / side),
            position=(cells.flip(2) + 0.5) / side,
        )
        image: Float[Tensor, "pictures 3 size size"] = render(worlds, side * self.pixels)[0]
        return {"image": image, "label": label}


def matching(
    split: Literal["train", "test"],
    window: int = 3,
    colours: Sequence[str] = ("red", "blue"),
    others: int = 10,
    pixels: int = 6,
    count: int = 40_000,
    test_count: int = 1000,
    seed: int = 0,
) -> Matching:
    """Two by two windows of cells with coloured shapes: a ring in the last column of a left window, a disc right of it, in
    the next window, and more discs anywhere.

    The label says whether the ring and the disc right of it have one colour, which is so in half of the pictures. All
    else, the row included, is random.

    Args:
        split: training and test pictures share no number.
        window: cells down and across of a window.
        colours: of the shapes.
        others: discs beside the two shapes.
        pixels: side of a cell; below 6 a ring is hard to tell from a disc.
        count: training pictures.
        test_count: test pictures.
        seed: of the pictures.

    Raises UsageError for fewer than two colours, and more discs than there are cells for.
    """
    if len(colours) < 2 or not 0 <= others <= 4 * window**2 - 2:
        raise UsageError(f"matching of {len(colours)} colours with {others} other discs: there are no such pictures")
    first, number = (0, count) if split == "train" else (1 << 32, test_count)
    return Matching(first, number, window, colours, others, pixels, seed)
