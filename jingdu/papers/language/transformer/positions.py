"""What tells a network without recurrence where in the sequence a token stands (Section 3.5)."""

import math
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from jingdu.errors import UsageError

__all__ = ["Sinusoids", "sinusoids"]

Sinusoids = Literal["paper", "tensor2tensor", "marian"]


def sinusoids(
    places: Int64[Tensor, "*shape"], width: int, kind: Sinusoids | str = "paper", dtype: torch.dtype = torch.float32
) -> Float[Tensor, "*shape width"]:
    r"""Waves whose lengths form a geometric row from $2\pi$ to $10000 \cdot 2\pi$, at the places given, from 0.

    $$ PE_{(pos, 2i)} = \sin(pos / 10000^{2i/d}), \quad PE_{(pos, 2i+1)} = \cos(pos / 10000^{2i/d}) $$

    Any place has a value, later ones than any seen in training too.

    Args:
        places: of tokens, in any shape.
        width: d.
        kind: "paper" is the equation. "tensor2tensor" (layers/common_attention.py, get_timing_signal_1d) has all sines
            and then all cosines, of waves whose exponents run from 0 to 1: i / (d/2 - 1) for 2i/d. "marian" has the
            paper's waves in tensor2tensor's order.
        dtype: of the result; it is computed more exactly where the device can.

    Raises UsageError for an odd width or another kind.
    """
    if width % 2 or kind not in get_args(Sinusoids):
        raise UsageError(
            f"sinusoids of kind {kind!r} and width {width}: use paper, tensor2tensor, marian; an even width"
        )
    exact = torch.float32 if places.device.type == "mps" else torch.float64
    last = max(width // 2 - 1, 1) if kind == "tensor2tensor" else width / 2
    exponents = torch.arange(width // 2, dtype=exact, device=places.device) / last
    angles = places[..., None].to(exact) * torch.exp(-math.log(10000.0) * exponents)
    waves = angles.sin(), angles.cos()
    return (torch.stack(waves, -1).flatten(-2) if kind == "paper" else torch.cat(waves, -1)).to(dtype)
