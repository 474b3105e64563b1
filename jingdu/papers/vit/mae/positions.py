"""Positions that are computed, not learned (Appendix A.1): sines and cosines of both coordinates."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from jingdu.errors import UsageError

__all__ = ["sincos_positions"]


def sincos_positions(
    width: int, grid: Sequence[int], temperature: float | int = 10000
) -> Float[Tensor, "1 tokens {width}"]:
    r"""A row for the class token, of zeros, and one for each patch, row by row.

    Half of the channels tell a patch's column and half its row, the column first (the released util/pos_embed.py, whose
    meshgrid has the width first); of each half, half are sines and half cosines of the coordinate times
    $T^{-2i/d}$, where $d$ is the half's number of channels.

    Args:
        width: of a token.
        grid: patches down and across.
        temperature: T, between the longest and the shortest wave.

    Raises UsageError for a width that four does not divide.
    """
    if width % 4:
        raise UsageError(f"sines and cosines of two coordinates divide a token into four: its width cannot be {width}")
    omega = float(temperature) ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    row, column = torch.meshgrid(*(torch.arange(side, dtype=torch.float64) for side in grid), indexing="ij")
    angles = (place.reshape(-1, 1) * omega for place in (column, row))
    table = torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], 1)
    return torch.cat((table.new_zeros(1, width), table))[None].float()
