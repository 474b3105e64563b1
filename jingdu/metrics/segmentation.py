"""Overlap of what is segmented with the truth, pixel by pixel and cell by cell."""

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from jingdu.errors import Refused

__all__ = ["Overlap", "merged"]


def merged(found: np.ndarray, cells: np.ndarray) -> tuple[int, int]:
    """How many cells share a connected part of `found` with another one, and how many there are.

    A cell belongs to the part that covers most of it, if that is half of it or more. Parts are connected by their sides.

    Args:
        found: bool [height, width].
        cells: the number of the cell at each pixel; 0 is none.
    """
    from scipy.ndimage import label

    parts, _ = label(found)
    owners = []
    numbers = np.unique(cells[cells > 0])
    for number in numbers:
        counts = np.bincount(parts[cells == number])
        part = int(counts[1:].argmax()) + 1 if len(counts) > 1 else 0
        if part and 2 * counts[part] >= counts.sum():
            owners.append(part)
    shared = np.bincount(owners) if owners else np.zeros(1, dtype=int)
    return int(shared[shared > 1].sum()), len(numbers)


class Overlap:
    """`iou`: the intersection of a class with the truth over their union, over all pixels of all images, the mean of
    the classes that occur; `pixel_error`; and where cells are numbered `merged`, the share of cells that are not told
    from another one."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        self.counts = torch.zeros(0, 0, dtype=torch.int64)  # [truth, found]
        self.shared = self.cells = 0

    def update(
        self,
        found: Int64[Tensor, "batch height width"],
        truth: Int64[Tensor, "batch height width"],
        cells: Int64[Tensor, "batch height width"] | None = None,
    ) -> None:
        """Take one batch of classes into account; class 0 is the background of the cells."""
        found, truth = found.cpu(), truth.cpu()
        classes = max(len(self.counts), int(found.max()) + 1, int(truth.max()) + 1)
        counts = torch.bincount((truth * classes + found).flatten(), minlength=classes**2).view(classes, classes)
        counts[: len(self.counts), : len(self.counts)] += self.counts
        self.counts = counts
        for image, numbers in zip(found, cells.cpu(), strict=True) if cells is not None else ():
            shared, count = merged((image > 0).numpy(), numbers.numpy())
            self.shared += shared
            self.cells += count

    def compute(self) -> dict[str, float]:
        """The measures over all images; then forgets them. Raises Refused where there were none."""
        if not self.counts.numel():
            raise Refused("nothing to evaluate: the evaluation data gave no masks")
        both = self.counts.diagonal().double()
        either = self.counts.sum(0) + self.counts.sum(1) - both
        known = either > 0
        values = {
            "iou": float((both[known] / either[known]).mean()),
            "pixel_error": 1 - float(both.sum() / self.counts.sum()),
        }
        if self.cells:
            values["merged"] = self.shared / self.cells
        self.reset()
        return values
