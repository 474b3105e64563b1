r"""Scaled dot-product attention (Section 3.2.1), and the keys and values that a decoder keeps.

This is the one attention of the library: later papers write their own short class around it. Letters: queries q are
[batch, heads, time, width], keys k and values v are [batch, kv_heads, source, width].
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

__all__ = ["Cache", "attention", "attention_weights"]


def attention(
    q: Float[Tensor, "batch heads time width"],
    k: Float[Tensor, "batch kv_heads source width"],
    v: Float[Tensor, "batch kv_heads source value_width"],
    *,
    mask: Bool[Tensor, "..."] | None = None,
    bias: Float[Tensor, "..."] | None = None,
    causal: bool = False,
    dropout: float = 0.0,
    scale: float | None = None,
) -> Float[Tensor, "batch heads time value_width"]:
    r"""Equation 1: $\mathrm{softmax}(q k^\top / \sqrt{d_k})\, v$, for every query over all the keys that it may see.

    Args:
        q, k, v: queries, keys, values. With fewer key heads than query heads, neighbouring query heads share one.
        mask: True where a query may look; broadcasts to [batch, heads, time, source].
        bias: added to the scaled products before the softmax; broadcasts likewise.
        causal: the last query is at the place of the last key, and none sees what comes after it (Sec. 3.2.3).
        dropout: share of the attention weights that is dropped; the caller gives 0 outside training.
        scale: in place of $1/\sqrt{d_k}$.

    A query that may look nowhere gives zeros. The matrix of weights is never stored, whatever the lengths, unless a
    bias or a mask of that size is given.
    """
    time, source = q.shape[2], k.shape[2]
    shares = k.shape[1] != q.shape[1]
    whole = causal and time == source and mask is None and bias is None
    if causal and not whole and time > 1:
        place = torch.arange(source, device=q.device)
        past = place <= place[source - time :, None]
        mask = past if mask is None else mask & past
    dead = None
    allowed: Tensor | None = mask
    if mask is not None:
        dead = ~mask.any(-1, keepdim=True)
        if bias is not None:
            allowed = bias.masked_fill(~mask, float("-inf")).to(q.dtype)
    elif bias is not None:
        allowed = bias.to(q.dtype)
    y = F.scaled_dot_product_attention(q, k, v, allowed, dropout, is_causal=whole, scale=scale, enable_gqa=shares)
    return y if dead is None else y.masked_fill(dead, 0.0)


def attention_weights(
    q: Float[Tensor, "batch heads time width"],
    k: Float[Tensor, "batch kv_heads source width"],
    *,
    mask: Bool[Tensor, "..."] | None = None,
    causal: bool = False,
) -> Float[Tensor, "batch heads time source"]:
    r"""$\mathrm{softmax}(q k^\top / \sqrt{d_k})$, the matrix that `attention` does not store: to look at (Fig. 3-5)."""
    eye = torch.eye(k.shape[2], dtype=k.dtype, device=k.device).expand(*k.shape[:2], -1, -1)
    return attention(q, k, eye, mask=mask, causal=causal)


@dataclass(frozen=True)
class Cache:
    """The keys and values of a decoder's layers for all tokens that it has read, in memory that is taken once.

    Rows may hold different numbers of tokens: each one's next token is written behind its own last one. A step reads
    `positions`, lets every layer `append`, and gives `advance` as its new state.
    """

    keys: list[Float[Tensor, "batch kv_heads capacity width"]]
    """One tensor a layer, written in place."""
    values: list[Float[Tensor, "batch kv_heads capacity width"]]
    lengths: Int64[Tensor, " batch"]
    """How many tokens each row holds."""
    common: int | None = 0
    """The same, as a number, where all rows hold as many: then slices do, and no mask is needed."""

    @classmethod
    def empty(cls, layers: int, batch: int, heads: int, capacity: int, width: int, like: Tensor) -> "Cache":
        """Room for `capacity` tokens, on the device and of the dtype of `like`."""
        keys, values = ([like.new_zeros(batch, heads, capacity, width) for _ in range(layers)] for _ in range(2))
        return cls(keys, values, torch.zeros(batch, dtype=torch.int64, device=like.device))

    @property
    def capacity(self) -> int:
        return self.keys[0].shape[2]

    def positions(self, time: int) -> Int64[Tensor, "batch_or_1 time"]:
        """The places of the next `time` tokens of each row, from 0; one row for all that stand at the same place."""
        ahead = torch.arange(time, device=self.lengths.device)
        return ahead[None] + (self.common if self.common is not None else self.lengths[:, None])

    def append(
        self,
        layer: int,
        k: Float[Tensor, "batch kv_heads time width"],
        v: Float[Tensor, "batch kv_heads time width"],
    ) -> tuple[Tensor, Tensor, Bool[Tensor, "batch 1 time capacity"] | None]:
        """Keep the next keys and values of a layer; gives all of them, and which a query may see where that differs.

        With a mask of None the rows stand at the same place, and attention is causal.
        Raises ValueError where there is no room.
        """
        keys, values, time = self.keys[layer], self.values[layer], k.shape[2]
        if self.common is not None:
            end = self.common + time
            if end > self.capacity:
                raise ValueError(f"{end} tokens do not fit into a cache for {self.capacity}")
            keys[:, :, self.common : end] = k
            values[:, :, self.common : end] = v
            return keys[:, :, :end], values[:, :, :end], None
        place = self.positions(time)
        where = place[:, None, :, None].expand(k.shape)
        keys.scatter_(2, where, k)
        values.scatter_(2, where, v)
        return keys, values, torch.arange(self.capacity, device=k.device) <= place[:, None, :, None]

    def advance(self, time: int, lengths: Int64[Tensor, " batch"] | None = None) -> "Cache":
        """The state after `time` tokens; `lengths` says how many of them are real in each row (the rest is padding)."""
        if lengths is None:
            return replace(
                self, lengths=self.lengths + time, common=None if self.common is None else self.common + time
            )
        return replace(self, lengths=self.lengths + lengths, common=None)

    def select(self, rows: Int64[Tensor, " more"]) -> "Cache":
        """The state of some rows, in their order, which may repeat: what beam search goes on with."""
        keys, values = ([x[rows] for x in tensors] for tensors in (self.keys, self.values))
        return replace(self, keys=keys, values=values, lengths=self.lengths[rows])
