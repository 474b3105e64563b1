"""Which patches are hidden (Algorithm 1): rectangles, until about 40 % of the image is."""

import math
from random import Random
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from jingdu.errors import UsageError, unknown

__all__ = ["block_mask", "hide", "scattered_mask"]

Masking = Literal["blocks", "scattered"]
"""Rectangles, as the paper; or patches that know nothing of each other, as its ablation (Tab. 4)."""

HIDDEN, SMALLEST = 75 / 196, 16 / 196
"""Shares of the patches: those that are hidden, and of the smallest rectangle (run_beit_pretraining.py)."""
TRIES = 10
"""Places of a rectangle that are tried before the image is left as it is (masking_generator.py)."""


def block_mask(
    grid: tuple[int, int], hidden: int, least: int, random: Random, aspect: tuple[float, float] = (0.3, 1 / 0.3)
) -> Bool[Tensor, "down across"]:
    """Algorithm 1: rectangles of `least` patches or more, one over another, until `hidden` patches are hidden.

    Args:
        grid: patches down and across.
        hidden: patches to hide; no more are, and fewer where no place for a rectangle was found in ten tries.
        least: patches of the smallest rectangle; the largest has what is still to be hidden.
        random: draws areas, aspect ratios and places.
        aspect: the least and the largest ratio of height to width, uniform in its logarithm.
    """
    mask = np.zeros(grid, dtype=bool)
    count = 0
    while count < hidden:
        for _ in range(TRIES):
            area = random.uniform(least, hidden - count)
            ratio = math.exp(random.uniform(math.log(aspect[0]), math.log(aspect[1])))
            height, width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if height >= grid[0] or width >= grid[1]:
                continue
            top, left = random.randint(0, grid[0] - height), random.randint(0, grid[1] - width)
            window = mask[top : top + height, left : left + width]
            new = window.size - int(window.sum())
            if 0 < new <= hidden - count:
                window[:] = True
                count += new
                break
        else:
            break
    return torch.from_numpy(mask)


def scattered_mask(grid: tuple[int, int], hidden: int, random: Random) -> Bool[Tensor, "down across"]:
    """`hidden` patches, each as likely as any other."""
    mask = torch.zeros(grid[0] * grid[1], dtype=torch.bool)
    mask[random.sample(range(len(mask)), hidden)] = True
    return mask.view(grid)


def hide(
    grid: tuple[int, int], random: Random, hidden: int | None = None, how: Masking | str = "blocks"
) -> Bool[Tensor, "down across"]:
    """The mask of one image.

    Args:
        grid: patches down and across.
        random: draws.
        hidden: patches to hide; by default the paper's share, 75 of 196.
        how: see `Masking`.

    Raises UsageError for another way, and for more patches than there are.
    """
    patches = grid[0] * grid[1]
    hidden = round(HIDDEN * patches) if hidden is None else hidden
    if how not in get_args(Masking):
        raise unknown("masking", str(how), get_args(Masking))
    if not 0 < hidden <= patches:
        raise UsageError(f"{hidden} patches are to be hidden: an image has {patches}")
    if how == "scattered":
        return scattered_mask(grid, hidden, random)
    return block_mask(grid, hidden, round(SMALLEST * patches), random)
