"""Relative positions (Section 2.4, after T5 and Swin): what is added to the products of queries and keys, with a class token."""

from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from jingdu.papers.vit.swin import relative_index, resize_bias

__all__ = ["RelativeBias", "index_with_class", "resize_table"]

EXTRA = 3
"""Rows behind those of distances: the class token looks at a patch, a patch at it, and it at itself."""


@lru_cache(maxsize=16)
def index_with_class(grid: tuple[int, int], device: torch.device) -> Int[Tensor, "tokens tokens"]:
    """Which row of the table two tokens share, the class token being the first of them (modeling_finetune.py)."""
    rows = (2 * grid[0] - 1) * (2 * grid[1] - 1)
    with torch.inference_mode(False):
        index = F.pad(relative_index(grid, device), (1, 0, 1, 0), value=rows)
        index[1:, 0], index[0, 0] = rows + 1, rows + 2
        return index


def resize_table(
    table: Float[Tensor, "rows heads"], grid: tuple[int, int], old: Sequence[int] | None = None
) -> Float[Tensor, "new_rows heads"]:
    """The table for another grid of patches: distances as Swin's `resize_bias`, the three rows of the class token as they are.

    Raises UsageError where the rows are of no such grid.
    """
    old = None if old is None else (old[0], old[1])
    return torch.cat((resize_bias(table[:-EXTRA], grid, old), table[-EXTRA:]))


class RelativeBias(nn.Module):
    """A learned number for each head and each distance between two patches, down and across; it starts at zero.

    Args:
        heads: of the attention.
        grid: patches down and across.
    """

    def __init__(self, heads: int, grid: tuple[int, int]):
        super().__init__()
        self.grid = grid
        self.table = nn.Parameter(torch.zeros((2 * grid[0] - 1) * (2 * grid[1] - 1) + EXTRA, heads))

    def forward(self) -> Float[Tensor, "1 heads tokens tokens"]:
        """Of all pairs: a query's row, a key's column. With four axes, torch's attention on a CPU is twice as fast."""
        index = index_with_class(self.grid, self.table.device)
        return self.table.T.index_select(1, index.flatten()).view(1, -1, *index.shape)
