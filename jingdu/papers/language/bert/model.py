"""The encoder (Section 3), and the layers that read it: pooler, word and sentence predictions (3.1), tasks (4)."""

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from jingdu.errors import UsageError, unknown
from jingdu.nn import each
from jingdu.papers.language.transformer import attention

__all__ = ["BERT", "Embeddings", "Head", "Layer", "Packing", "SelfAttention", "VARIANTS", "Words", "build", "example"]

Head = Literal["words", "follows", "pretraining", "class", "tags", "span", "choice"]
"""What a network gives beside states: words; whether the second segment follows; both; or the answers of a task (Fig. 4)."""


class Packing:
    """The real tokens of a padded batch, one behind the other: what works on each position alone need not see the rest.

    Args:
        mask: False is padding.
    """

    def __init__(self, mask: Bool[Tensor, "batch time"]):
        self.shape, self.rows = mask.shape, mask.flatten().nonzero()[:, 0]

    def pack(self, x: Float[Tensor, "batch time width"]) -> Float[Tensor, "tokens width"]:
        return x.flatten(0, 1)[self.rows]

    def pad(self, x: Float[Tensor, "tokens width"]) -> Float[Tensor, "batch time width"]:
        """The other way; padding becomes zeros."""
        padded = x.new_zeros(self.shape.numel(), x.shape[1])
        return padded.index_copy(0, self.rows, x).unflatten(0, self.shape)


class SelfAttention(nn.Module):
    """Attention of all positions to all others, on both sides; queries, keys and values in one projection."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        if width % heads:
            raise UsageError(f"width {width} does not divide into {heads} heads")
        self.heads, self.dropout = heads, dropout
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(
        self,
        x: Float[Tensor, "*batch time width"],
        mask: Bool[Tensor, "batch 1 1 all"] | None = None,
        causal: bool = False,
        packing: Packing | None = None,
    ) -> Float[Tensor, "*batch time width"]:
        qkv = self.qkv(x)
        qkv = qkv if packing is None else packing.pad(qkv)
        q, k, v = rearrange(qkv, "b t (three h d) -> three b h t d", three=3, h=self.heads)
        y = attention(q, k, v, mask=mask, causal=causal, dropout=self.dropout if self.training else 0.0)
        y = rearrange(y, "b h t d -> b t (h d)")
        return self.project(y if packing is None else packing.pack(y))


class Layer(nn.Module):
    """The Transformer's encoder layer, norms behind the additions, with the exact GELU in place of ReLU (A.2).

    Args:
        width: of x.
        heads: of the attention.
        dropout: before every addition.
        attention_dropout: of attention weights; None is as `dropout`.
        inner: width within the feed-forward network; None is four times `width`.
        eps: of the norms (google-research/bert, modeling.py).
    """

    def __init__(
        self, width: int, heads: int, *, dropout: float | int = 0.1, attention_dropout: float | int | None = None,
        inner: int | None = None, eps: float = 1e-12,
    ):  # fmt: skip
        super().__init__()
        inner = 4 * width if inner is None else inner
        self.attention = SelfAttention(width, heads, dropout if attention_dropout is None else attention_dropout)
        self.norm1 = nn.LayerNorm(width, eps)
        self.expand, self.contract = nn.Linear(width, inner), nn.Linear(inner, width)
        self.norm2 = nn.LayerNorm(width, eps)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Float[Tensor, "*batch time width"],
        mask: Bool[Tensor, "batch 1 1 all"] | None = None,
        causal: bool = False,
        packing: Packing | None = None,
    ) -> Float[Tensor, "*batch time width"]:
        x = self.norm1(x + self.dropout(self.attention(x, mask, causal, packing)))
        return self.norm2(x + self.dropout(self.contract(F.gelu(self.expand(x)))))


class Embeddings(nn.Module):
    """Figure 2: the sum of a token's own vector, its position's and its segment's, normalised."""

    def __init__(self, vocabulary: int, width: int, context: int, segments: int, dropout: float, eps: float):
        super().__init__()
        self.words, self.places = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        self.segments = nn.Embedding(segments, width)
        self.norm, self.dropout = nn.LayerNorm(width, eps), nn.Dropout(dropout)

    def forward(
        self, tokens: Int64[Tensor, "batch time"], segments: Int64[Tensor, "batch time"] | None = None
    ) -> Float[Tensor, "batch time width"]:
        places = self.places.weight[: tokens.shape[1]]
        parts = self.segments.weight[0] if segments is None else self.segments(segments)
        return self.dropout(self.norm(self.words(tokens) + parts + places))


class Words(nn.Module):
    """What a masked word was (Sec. 3.1, task 1): a layer of its own, and the embeddings once more, with a bias."""

    def __init__(self, width: int, vocabulary: int, eps: float):
        super().__init__()
        self.dense, self.norm = nn.Linear(width, width), nn.LayerNorm(width, eps)
        self.bias = nn.Parameter(torch.zeros(vocabulary))

    def forward(
        self, states: Float[Tensor, "*place width"], table: Float[Tensor, "vocabulary width"]
    ) -> Float[Tensor, "*place vocabulary"]:
        return F.linear(self.norm(F.gelu(self.dense(states))), table, self.bias)


class BERT(nn.Module):
    """The bidirectional encoder.

    Args:
        vocabulary: WordPiece tokens.
        width: of the state at each position (H).
        layers: (L).
        heads: of each attention (A).
        context: positions.
        segments: kinds of segments.
        head: what it gives (`Head`); None is the states alone.
        labels: classes or tags of a task; 1 class is a number (regression).
        causal: no token sees a later one: the left-to-right model of Section 5.1.
        std: of initial weights (initializer_range); a network of width 64 needs 0.07 for products as large as base's.
        layer: what `Layer` takes further: dropout, attention_dropout, inner, eps.

    Raises UsageError for another head, and for heads that do not divide.
    """

    def __init__(
        self,
        vocabulary: int = 30522,
        width: int = 768,
        layers: int = 12,
        heads: int = 12,
        context: int = 512,
        segments: int = 2,
        head: Head | str | None = None,
        labels: int = 2,
        causal: bool = False,
        std: float | int = 0.02,
        **layer: Any,
    ):
        super().__init__()
        if head is not None and head not in get_args(Head):
            raise unknown("head of BERT", str(head), get_args(Head))
        self.context, self.causal, self.head = context, causal, head
        self.layers = nn.ModuleList(Layer(width, heads, **layer) for _ in range(layers))
        eps, dropout = layer.get("eps", 1e-12), layer.get("dropout", 0.1)
        self.embeddings = Embeddings(vocabulary, width, context, segments, dropout, eps)
        # What tags, spans and words are read from is at every position; the rest is read from [CLS].
        self.pooler = nn.Linear(width, width) if head not in ("words", "tags", "span") else None
        self.words = Words(width, vocabulary, eps) if head in ("words", "pretraining") else None
        self.follows = nn.Linear(width, 2) if head in ("follows", "pretraining") else None
        outputs = 1 if head == "choice" else labels
        self.classifier = nn.Linear(width, outputs) if head in ("class", "tags", "choice") else None
        self.span = nn.Linear(width, 2) if head == "span" else None
        self.dropout = nn.Dropout(dropout)
        self.initialise(std)

    def initialise(self, std: float | int) -> None:
        """Gaussian, cut off at two deviations in the released code; biases start at zero."""
        each(self, (nn.Linear, nn.Embedding), lambda m: nn.init.trunc_normal_(m.weight, std=std, a=-2 * std, b=2 * std))
        each(self, nn.Linear, lambda m: nn.init.zeros_(m.bias))

    def states(
        self,
        tokens: Int64[Tensor, "batch time"],
        mask: Bool[Tensor, "batch time"] | Int64[Tensor, "batch time"] | None = None,
        segments: Int64[Tensor, "batch time"] | None = None,
        packed: bool = False,
    ) -> list[Float[Tensor, "batch time width"]]:
        """The embeddings, and the output of each layer.

        Args:
            tokens, mask, segments: see `forward`.
            packed: compute nothing for padding, whose states are then zeros; quicker where there is much of it.
        """
        time = tokens.shape[1]
        if time > self.context:
            raise UsageError(f"{time} tokens: this network has positions for {self.context}")
        seen = None if mask is None else mask.bool()[:, None, None]
        packing = Packing(mask.bool()) if packed and mask is not None else None
        x = self.embeddings(tokens, segments)
        found = [x if packing is None else packing.pack(x)]
        for layer in self.layers:
            found.append(layer(found[-1], seen, self.causal, packing))
        return found if packing is None else [packing.pad(x) for x in found]

    def pool(self, states: Float[Tensor, "batch time width"]) -> Float[Tensor, "batch width"]:
        """The state of [CLS], the first token, through a layer of its own: what stands for the whole input."""
        if self.pooler is None:
            raise UsageError(f"a network with head={self.head!r} has no pooler: take head=None, pretraining or class")
        return torch.tanh(self.pooler(states[:, 0]))

    def predict_words(self, states: Float[Tensor, "*place width"]) -> Float[Tensor, "*place vocabulary"]:
        """Logits of the tokens at some positions. Raises UsageError where the network has no layer for them."""
        if self.words is None:
            raise UsageError("these weights have no layer that predicts words: take those of a masked language model")
        return self.words(states, self.embeddings.words.weight)

    def forward(
        self,
        tokens: Int64[Tensor, "batch *choices time"],
        mask: Bool[Tensor, "batch *choices time"] | Int64[Tensor, "batch *choices time"] | None = None,
        segments: Int64[Tensor, "batch *choices time"] | None = None,
        places: Int64[Tensor, "batch predictions"] | None = None,
    ) -> Any:
        """What the network's head says, from the states of the last layer.

        Args:
            tokens: with [CLS] first and [SEP] behind each segment; with head="choice" [batch, choices, time].
            mask: False (or 0) is padding, on either side: no token sees it. Positions count it, as in the released code.
            segments: 0 for tokens of the first, 1 of the second; by default all of the first.
            places: predict the words at these positions of each row alone; by default at all.

        Returns by head: None, states [batch, time, width]; words, logits [batch, time or predictions, vocabulary]; follows, logits
        [batch, 2], 0 is that the second segment follows; pretraining, these two; class, [batch, labels]; tags,
        [batch, time, labels]; span, of its first and its last token [batch, time, 2]; choice, [batch, choices].

        Raises UsageError for more tokens than positions.
        """
        choices = tokens.shape[1] if self.head == "choice" else None
        if choices is not None:
            tokens, mask, segments = (None if x is None else x.flatten(0, 1) for x in (tokens, mask, segments))
        x = self.states(tokens, mask, segments)[-1]
        at = x if places is None else x.take_along_dim(places[..., None], 1)
        answer: dict[str | None, Callable[[], Any]] = {
            None: lambda: x,
            "words": lambda: self.predict_words(at),
            "follows": lambda: self.follows(self.pool(x)),
            "pretraining": lambda: (self.predict_words(at), self.follows(self.pool(x))),
            "class": lambda: self.classifier(self.dropout(self.pool(x))),
            "tags": lambda: self.classifier(self.dropout(x)),
            "span": lambda: self.span(x),
            "choice": lambda: self.classifier(self.dropout(self.pool(x))).view(-1, choices),
        }
        return answer[self.head]()


VARIANTS: dict[str, dict[str, Any]] = {
    # Section 3, and the README of google-research/bert for the others
    "bert_base_uncased": {},
    "bert_base_cased": {"vocabulary": 28996},
    "bert_large_uncased": {"width": 1024, "layers": 24, "heads": 16},
    "bert_large_cased": {"vocabulary": 28996, "width": 1024, "layers": 24, "heads": 16},
    "bert_base_multilingual_cased": {"vocabulary": 119547},
    "bert_base_chinese": {"vocabulary": 21128},
    # Wang et al. 2020, and sentence-transformers: a small BERT that was taught to embed sentences
    "bert_all_minilm_l6_v2": {"width": 384, "layers": 6, "heads": 12},
}


def build(variant: str, **overrides: Any) -> BERT:
    """The network of a variant; overrides are the arguments of `BERT` and of its layers."""
    return BERT(**{**VARIANTS[variant], **overrides})


def example(variant: str, batch: int) -> Int64[Tensor, "batch time"]:
    """Tokens as a bench feeds them: 128 of each row."""
    return torch.randint(
        VARIANTS[variant].get("vocabulary", 30522), (batch, 128), generator=torch.Generator().manual_seed(0)
    )
