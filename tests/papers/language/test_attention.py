"""The attention core against Equation 1 written out, and the cache against attention over all tokens at once."""

import math

import pytest
import torch
from torch import Tensor

from jingdu.papers.language.transformer import Cache, attention


def written_out(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, bias: Tensor | float = 0.0) -> Tensor:
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    scores = q @ k.mT / math.sqrt(q.shape[-1]) + bias
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(-1).nan_to_num(0.0) @ v


def make(heads: int = 6, kv_heads: int = 6, time: int = 5, source: int = 7, batch: int = 3) -> list[Tensor]:
    draw = torch.Generator().manual_seed(heads + time)
    shapes = [(batch, heads, time, 4), (batch, kv_heads, source, 4), (batch, kv_heads, source, 4)]
    return [torch.randn(shape, generator=draw, dtype=torch.float64) for shape in shapes]


@pytest.mark.parametrize("kv_heads", [6, 2, 1])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("time, source", [(5, 7), (7, 7), (1, 7)])
def test_equation_1(kv_heads: int, causal: bool, masked: bool, biased: bool, time: int, source: int) -> None:
    q, k, v = make(kv_heads=kv_heads, time=time, source=source)
    mask = torch.rand(3, 1, time, source, generator=torch.Generator().manual_seed(1)) < 0.7 if masked else None
    bias = torch.randn(1, 6, time, source, dtype=torch.float64) if biased else None
    past = torch.ones(time, source, dtype=torch.bool).tril(source - time) if causal else None
    both = mask if past is None else past if mask is None else mask & past
    expected = written_out(q, k, v, both, 0.0 if bias is None else bias)
    torch.testing.assert_close(attention(q, k, v, mask=mask, bias=bias, causal=causal), expected)


@pytest.mark.parametrize("kv_heads", [6, 2])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_a_query_that_sees_nothing_gives_zeros_and_no_nan_in_gradients(
    kv_heads: int, biased: bool, dropout: float
) -> None:
    q, k, v = (x.requires_grad_() for x in make(kv_heads=kv_heads))
    bias = torch.randn(6, 5, 7, dtype=torch.float64).requires_grad_() if biased else None
    mask = torch.ones(3, 1, 5, 7, dtype=torch.bool)
    mask[1, :, 2] = False
    y = attention(q, k, v, mask=mask, bias=bias, dropout=dropout)
    assert (y[1, :, 2] == 0).all() and (y[1, :, 3] != 0).any()
    y.square().sum().backward()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in (q, k, v, *([bias] if biased else [])))
    assert not q.grad[1, :, 2].any() and q.grad[1, :, 3].any()


def test_scale_replaces_the_root_of_the_width() -> None:
    q, k, v = make()
    torch.testing.assert_close(attention(q, k, v, scale=1.0), attention(2 * q, k, v))


@pytest.mark.parametrize("ragged", [False, True])
def test_a_cache_gives_what_all_tokens_at_once_give(ragged: bool) -> None:
    q, k, v = make(kv_heads=2, time=11, source=11)
    whole = attention(q, k, v, causal=True)
    state = Cache.empty(1, 3, 2, 13, 4, like=q)
    lengths = torch.tensor([4, 2, 3]) if ragged else torch.tensor([4, 4, 4])

    def step(state: Cache, start: Tensor, n: int, counts: Tensor | None) -> tuple[Tensor, Cache]:
        def take(x: Tensor) -> Tensor:
            return torch.stack([row[:, s : s + n] for row, s in zip(x, start.tolist(), strict=True)])

        keys, values, seen = state.append(0, take(k), take(v))
        y = attention(take(q), keys, values, mask=seen, causal=seen is None)
        return y, state.advance(n, counts)

    y, state = step(state, torch.zeros(3, dtype=torch.int64), 4, lengths if ragged else None)
    at = lengths.clone()
    for row, n in enumerate(at.tolist()):
        torch.testing.assert_close(y[row, :, :n], whole[row, :, :n])
    rows = torch.tensor([2, 0, 1])
    for _ in range(3):
        assert state.lengths.tolist() == at.tolist()
        y, state = step(state, at, 1, None)
        torch.testing.assert_close(y[:, :, 0], torch.stack([whole[i, :, n] for i, n in enumerate(at.tolist())]))
        at += 1
    q, k, v, whole, at, state = q[rows], k[rows], v[rows], whole[rows], at[rows], state.select(rows)
    y, state = step(state, at, 2, None)
    for row, n in enumerate(at.tolist()):
        torch.testing.assert_close(y[row], whole[row, :, n : n + 2])


def test_a_full_cache_says_so() -> None:
    _, k, v = make(time=5, source=5)
    with pytest.raises(ValueError, match="5 tokens do not fit into a cache for 4"):
        Cache.empty(1, 3, 6, 4, 4, like=k).append(0, k, v)
