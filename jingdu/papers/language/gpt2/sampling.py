"""Sampling (openai/gpt-2, src/sample.py)."""

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from jingdu.errors import UsageError
from jingdu.papers.language.rnn import Choose, greedy, sample

__all__ = ["sampler", "top_k", "top_p"]


def top_k(logits: Float[Tensor, "batch vocabulary"], k: int) -> Float[Tensor, "batch vocabulary"]:
    """Only the `k` most probable tokens of each row (Fan et al. 2018); of equal ones at the border, all."""
    least = logits.topk(min(k, logits.shape[1])).values[:, -1:]
    return logits.masked_fill(logits < least, float("-inf"))


def top_p(
    logits: Float[Tensor, "batch vocabulary"], p: float | int, crossing: bool = True
) -> Float[Tensor, "batch vocabulary"]:
    """The nucleus: the fewest most probable tokens whose probabilities reach `p` together (Holtzman et al. 2019).

    `crossing` False leaves out the token that crosses `p`, as the released code does, but never the first one.
    """
    ordered, places = logits.sort(-1, descending=True)
    reached = ordered.softmax(-1).cumsum(-1)
    before = reached - ordered.softmax(-1)
    kept = before < p if crossing else reached <= p
    kept[:, 0] = True
    return logits.masked_fill(~torch.zeros_like(kept).scatter(1, places, kept), float("-inf"))


def sampler(
    temperature: float | int = 1.0, k: int | None = None, p: float | int | None = None, crossing: bool = True
) -> Choose:
    """How `generate` chooses: by temperature, then the `k` best, then the nucleus `p`; temperature 0 is greedy.

    `crossing` is `top_p`'s.

    Raises UsageError for a negative temperature, `k` below 1, or `p` outside (0, 1].
    """
    if not 0 <= temperature < math.inf:
        raise UsageError(f"temperature is {temperature}: it must be 0 (greedy) or more, and finite")
    if k is not None and k < 1:
        raise UsageError(f"top-k is {k}: it must be 1 or more")
    if p is not None and not 0 < p <= 1:
        raise UsageError(f"top-p is {p}: it must be above 0 and at most 1")
    if temperature == 0:
        return greedy

    def choose(logits: Tensor, generator: torch.Generator | None = None) -> Int64[Tensor, " batch"]:
        logits = logits.float() / temperature
        logits = logits if k is None else top_k(logits, k)
        return sample(logits if p is None else top_p(logits, p, crossing), generator)

    return choose
