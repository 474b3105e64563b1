r"""The layers of Figure 1.

Letters: x is [batch, time, width]; memory, what a decoder looks at, is [batch, source, width]. Masks are True where a
query may look.
"""

from collections.abc import Callable
from typing import Literal, get_args

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from jingdu.errors import unknown

from .attention import Cache, attention, attention_weights

__all__ = ["DecoderLayer", "EncoderLayer", "FeedForward", "MultiHeadAttention", "Placement", "add_and_norm"]

Placement = Literal["post", "pre"]
"""Where a layer norm stands: behind the addition, as in the paper, or before the sublayer."""

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "swish": F.silu}


class MultiHeadAttention(nn.Module):
    r"""Section 3.2.2: heads that attend side by side, each in a subspace of its own, and their answers put together.

    $$ \mathrm{MultiHead}(Q, K, V) = \mathrm{Concat}(\mathrm{head}_1, ..., \mathrm{head}_h) W^O, \quad
       \mathrm{head}_i = \mathrm{Attention}(Q W_i^Q, K W_i^K, V W_i^V) $$

    Args:
        width: of x; each head has width / heads.
        heads: of the queries.
        kv_heads: of keys and values; fewer than `heads` are shared by neighbours, 1 is shared by all. None: as many.
        bias: add a bias to each of the four projections; the paper has none.
        dropout: share of the attention weights that is dropped in training; the paper drops none.

    Raises ValueError for heads that do not divide.
    """

    def __init__(self, width: int, heads: int, kv_heads: int | None = None, bias: bool = False, dropout: float = 0.0):
        super().__init__()
        kv_heads = heads if kv_heads is None else kv_heads
        if width % heads or heads % kv_heads:
            raise ValueError(f"width {width}, {heads} heads, {kv_heads} key heads: each must divide the one before it")
        self.heads, self.kv_heads, self.dropout = heads, kv_heads, dropout
        self.q = nn.Linear(width, width, bias)
        self.k = nn.Linear(width, width // heads * kv_heads, bias)
        self.v = nn.Linear(width, width // heads * kv_heads, bias)
        self.o = nn.Linear(width, width, bias)
        for projection in (self.q, self.k, self.v, self.o):
            _initialise(projection)

    def queries(self, x: Float[Tensor, "batch time width"]) -> Float[Tensor, "batch heads time head"]:
        return self.q(x).unflatten(2, (self.heads, -1)).transpose(1, 2)

    def keys_values(self, memory: Float[Tensor, "batch source width"]) -> tuple[Tensor, Tensor]:
        """Keys and values, each [batch, kv_heads, source, head]: they may be kept while queries come one by one."""
        k, v = (project(memory).unflatten(2, (self.kv_heads, -1)).transpose(1, 2) for project in (self.k, self.v))
        return k, v

    def attend(
        self,
        x: Float[Tensor, "batch time width"],
        k: Float[Tensor, "batch kv_heads source head"],
        v: Float[Tensor, "batch kv_heads source head"],
        *,
        mask: Bool[Tensor, "..."] | None = None,
        causal: bool = False,
    ) -> Float[Tensor, "batch time width"]:
        """The answers to queries from x, given keys and values."""
        y = attention(self.queries(x), k, v, mask=mask, causal=causal, dropout=self.dropout if self.training else 0.0)
        return self.o(y.transpose(1, 2).flatten(2))

    def forward(
        self,
        x: Float[Tensor, "batch time width"],
        memory: Float[Tensor, "batch source width"] | None = None,
        *,
        mask: Bool[Tensor, "..."] | None = None,
        causal: bool = False,
    ) -> Float[Tensor, "batch time width"]:
        """Attention of x to `memory`, or to itself. `mask` broadcasts to [batch, heads, time, source]."""
        return self.attend(x, *self.keys_values(x if memory is None else memory), mask=mask, causal=causal)

    def weights(
        self,
        x: Float[Tensor, "batch time width"],
        memory: Float[Tensor, "batch source width"] | None = None,
        *,
        mask: Bool[Tensor, "..."] | None = None,
        causal: bool = False,
    ) -> Float[Tensor, "batch heads time source"]:
        """How much each query of `forward` takes from each key."""
        k, _ = self.keys_values(x if memory is None else memory)
        return attention_weights(self.queries(x), k, mask=mask, causal=causal)


class FeedForward(nn.Module):
    r"""Equation 2, at every position alike: $\max(0, x W_1 + b_1) W_2 + b_2$."""

    def __init__(self, width: int, inner: int, activation: str = "relu", dropout: float = 0.0):
        super().__init__()
        if activation not in ACTIVATIONS:
            raise unknown("activation", activation, ACTIVATIONS)
        self.w1, self.w2 = nn.Linear(width, inner), nn.Linear(inner, width)
        self.activation, self.dropout = ACTIVATIONS[activation], nn.Dropout(dropout)
        for linear in (self.w1, self.w2):
            _initialise(linear)

    def forward(self, x: Float[Tensor, "batch time width"]) -> Float[Tensor, "batch time width"]:
        return self.w2(self.dropout(self.activation(self.w1(x))))


def _initialise(linear: nn.Linear) -> None:
    """Uniform with variance 2 / (inputs + outputs), biases zero (tensor2tensor: uniform_unit_scaling, gain 1)."""
    nn.init.xavier_uniform_(linear.weight)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)


def add_and_norm(
    x: Float[Tensor, "batch time width"],
    sublayer: Callable[[Tensor], Tensor],
    norm: nn.Module,
    dropout: nn.Module,
    placement: Placement | str = "post",
) -> Float[Tensor, "batch time width"]:
    r"""The frame of every sublayer, $\mathrm{LayerNorm}(x + \mathrm{Dropout}(\mathrm{Sublayer}(x)))$ (Sec. 3.1, 5.4).

    With placement "pre" it is $x + \mathrm{Dropout}(\mathrm{Sublayer}(\mathrm{LayerNorm}(x)))$.
    """
    if placement == "post":
        return norm(x + dropout(sublayer(x)))
    return x + dropout(sublayer(norm(x)))


class _Layer(nn.Module):
    """What both kinds of layer have.

    Args:
        width: of x.
        inner: of the feed-forward network.
        heads: of every attention.
        dropout: after every sublayer, before the addition.
        norm: post, as the paper; pre, as tensor2tensor from its second set of hyperparameters on.
        bias: of the attentions' projections.
        activation: of the feed-forward network: relu, or swish (Marian's).
        eps: of the layer norms; 1e-6 is tensor2tensor's, 1e-5 torch's.
        attention_dropout: of the attention weights (tensor2tensor's later sets of hyperparameters: 0.1).
        inner_dropout: within the feed-forward network (likewise).

    Raises UsageError for another norm or activation.
    """

    def __init__(
        self, width: int, inner: int, heads: int, *, dropout: float = 0.1, norm: Placement | str = "post", bias: bool = False,
        activation: str = "relu", eps: float = 1e-6, attention_dropout: float = 0.0,
        inner_dropout: float = 0.0,
    ):  # fmt: skip
        super().__init__()
        if norm not in get_args(Placement):
            raise unknown("norm", norm, get_args(Placement))
        self.norm = norm
        self.dropout = nn.Dropout(dropout)
        self.self_attention = MultiHeadAttention(width, heads, bias=bias, dropout=attention_dropout)
        self.self_attention_norm = nn.LayerNorm(width, eps)
        self.feed_forward = FeedForward(width, inner, activation, inner_dropout)
        self.feed_forward_norm = nn.LayerNorm(width, eps)

    def frame(self, x: Tensor, sublayer: Callable[[Tensor], Tensor], norm: nn.Module) -> Tensor:
        return add_and_norm(x, sublayer, norm, self.dropout, self.norm)


class EncoderLayer(_Layer):
    """Figure 1, left: self-attention, then the feed-forward network."""

    def forward(
        self, x: Float[Tensor, "batch time width"], mask: Bool[Tensor, "..."] | None = None
    ) -> Float[Tensor, "batch time width"]:
        """`mask` broadcasts to [batch, heads, time, time]."""
        x = self.frame(x, lambda y: self.self_attention(y, mask=mask), self.self_attention_norm)
        return self.frame(x, self.feed_forward, self.feed_forward_norm)


class DecoderLayer(_Layer):
    """Figure 1, right: self-attention that sees no later token, attention to the memory, the feed-forward network."""

    def __init__(self, width: int, inner: int, heads: int, **options: object):
        super().__init__(width, inner, heads, **options)  # type: ignore[arg-type]
        own = self.self_attention
        self.cross_attention = MultiHeadAttention(width, heads, bias=own.o.bias is not None, dropout=own.dropout)
        self.cross_attention_norm = nn.LayerNorm(width, self.self_attention_norm.eps)

    def _sublayers(self, x: Tensor, own: Callable[[Tensor], Tensor], cross: Callable[[Tensor], Tensor]) -> Tensor:
        x = self.frame(x, own, self.self_attention_norm)
        x = self.frame(x, cross, self.cross_attention_norm)
        return self.frame(x, self.feed_forward, self.feed_forward_norm)

    def forward(
        self,
        x: Float[Tensor, "batch time width"],
        memory: Float[Tensor, "batch source width"],
        memory_mask: Bool[Tensor, "..."] | None = None,
        mask: Bool[Tensor, "..."] | None = None,
    ) -> Float[Tensor, "batch time width"]:
        """All positions at once.

        Args:
            x: the target so far, at every position.
            memory: the encoder's output.
            memory_mask: which of it may be seen; broadcasts to [batch, heads, time, source].
            mask: which targets may be seen, beside that none is seen before its time; [batch, heads, time, time].
        """
        return self._sublayers(
            x,
            lambda y: self.self_attention(y, mask=mask, causal=True),
            lambda y: self.cross_attention(y, memory, mask=memory_mask),
        )

    def step(
        self,
        x: Float[Tensor, "batch time width"],
        cache: Cache,
        layer: int,
        k: Float[Tensor, "sentences heads source head"],
        v: Float[Tensor, "sentences heads source head"],
        memory_mask: Bool[Tensor, "..."] | None = None,
    ) -> Float[Tensor, "batch time width"]:
        """The next positions alone: `cache` remembers the earlier ones, k and v are the memory's.

        Each sentence of the memory belongs to batch / sentences neighbouring rows of x.
        """

        def own(y: Tensor) -> Tensor:
            keys, values, seen = cache.append(layer, *self.self_attention.keys_values(y))
            return self.self_attention.attend(y, keys, values, mask=seen, causal=seen is None)

        def cross(y: Tensor) -> Tensor:
            # Queries to one memory have no order, so a sentence's rows are queries side by side: it is read once.
            together = y.reshape(len(k), -1, y.shape[2])
            return self.cross_attention.attend(together, k, v, mask=memory_mask).view(y.shape)

        return self._sublayers(x, own, cross)
