r"""The encoder and the decoder, and the decoder one token at a time.

Letters: source and target are int64 tokens, [batch, source] and [batch, time], padded at the right; memory, the encoder's
output, is [batch, source, width].
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from jingdu.errors import UsageError

from .attention import Cache
from .layers import DecoderLayer, EncoderLayer
from .positions import Sinusoids, sinusoids

__all__ = ["VARIANTS", "Decoding", "Reader", "Transformer", "build"]


class Transformer(nn.Module):
    """Figure 1. The embedding of the source, that of the target and the layer before the softmax are one (Sec. 3.4).

    Args:
        vocabulary: number of tokens, shared by source and target.
        width: d_model.
        inner: d_ff; or two numbers, of the encoder's and of the decoder's layers.
        heads: h.
        layers: N; or two numbers.
        positions: which `sinusoids`; a number is a learned table of so many places (Tab. 3 E); None is none.
        marks: tokens that stand for padding, for the end, and for the start of a target. Tensor2tensor's are 0, 1, 0.
        logits_bias: add a vector to the logits that is loaded and not trained (Marian's checkpoints).
        layer: what `EncoderLayer` takes further: dropout, norm, bias, activation, eps, attention_dropout, inner_dropout.
    """

    def __init__(
        self,
        vocabulary: int,
        width: int = 512,
        inner: int | Sequence[int] = 2048,
        heads: int = 8,
        layers: int | Sequence[int] = 6,
        positions: Sinusoids | str | int | None = "paper",
        marks: Sequence[int] = (0, 1, 0),
        logits_bias: bool = False,
        **layer: Any,
    ):
        super().__init__()
        inners, depths = ((n, n) if isinstance(n, int) else tuple(n) for n in (inner, layers))
        self.width, self.positions, self.marks = width, positions, tuple(marks)
        self.embedding = nn.Embedding(vocabulary, width)
        learned = isinstance(positions, int)
        self.source_positions = nn.Embedding(positions, width) if learned else None
        self.target_positions = nn.Embedding(positions, width) if learned else None
        if not learned and positions is not None:
            sinusoids(torch.zeros(1, dtype=torch.int64), width, positions)  # refuses what it does not know
        self.encoder = nn.ModuleList(EncoderLayer(width, inners[0], heads, **layer) for _ in range(depths[0]))
        self.decoder = nn.ModuleList(DecoderLayer(width, inners[1], heads, **layer) for _ in range(depths[1]))
        # Behind pre-norm layers the sum of all sublayers has not been normed yet.
        eps = self.encoder[0].self_attention_norm.eps
        last = partial(nn.LayerNorm, width, eps) if self.encoder[0].norm == "pre" else nn.Identity
        self.encoder_norm, self.decoder_norm = last(), last()
        self.dropout = nn.Dropout(self.encoder[0].dropout.p)
        self.register_buffer("logits_bias", torch.zeros(vocabulary) if logits_bias else None)
        for table in (self.embedding, self.source_positions, self.target_positions):
            if table is not None:
                nn.init.normal_(table.weight, std=width**-0.5)

    def embed(
        self,
        tokens: Int64[Tensor, "batch time"],
        places: Int64[Tensor, "batch_or_1 time"],
        learned: nn.Embedding | None,
    ) -> Float[Tensor, "batch time width"]:
        """Tokens times the root of the width, plus their places (Sec. 3.4, 3.5); dropout on the sum (Sec. 5.4)."""
        x = self.embedding(tokens) * math.sqrt(self.width)
        if learned is not None:
            if places.shape[1] > learned.num_embeddings or int(places.max()) >= learned.num_embeddings:
                raise UsageError(f"a token at place {int(places.max())}, where {learned.num_embeddings} were learned")
            x = x + learned(places)
        elif self.positions is not None:
            x = x + sinusoids(places, self.width, self.positions, x.dtype)
        return self.dropout(x)

    def encode(
        self, source: Int64[Tensor, "batch source"], lengths: Int64[Tensor, " batch"] | None = None
    ) -> tuple[Float[Tensor, "batch source width"], Bool[Tensor, "batch 1 1 source"]]:
        """The memory, and the mask that is True where it is of a token and not of padding.

        Padding is what has its mark, or lies behind `lengths`.
        """
        places = torch.arange(source.shape[1], device=source.device)[None]
        mask = (source != self.marks[0] if lengths is None else places < lengths[:, None])[:, None, None]
        x = self.embed(source, places, self.source_positions)
        for layer in self.encoder:
            x = layer(x, mask)
        return self.encoder_norm(x), mask

    def decode(
        self,
        target: Int64[Tensor, "batch time"],
        memory: Float[Tensor, "batch source width"],
        memory_mask: Bool[Tensor, "..."] | None = None,
    ) -> Float[Tensor, "batch time vocabulary"]:
        """The logits of the token after each of `target`, which begins with the start mark.

        Padding at the target's right needs no mask: what comes before it does not see it.
        """
        places = torch.arange(target.shape[1], device=target.device)[None]
        x = self.embed(target, places, self.target_positions)
        for layer in self.decoder:
            x = layer(x, memory, memory_mask)
        return self.logits(x)

    def logits(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch vocabulary"]:
        """By the rows of the embedding."""
        return F.linear(self.decoder_norm(x), self.embedding.weight, self.logits_bias)

    def forward(
        self,
        source: Int64[Tensor, "batch source"],
        target: Int64[Tensor, "batch time"],
        lengths: Int64[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch time vocabulary"]:
        """The logits of the token after each of `target`, which begins with the start mark; `lengths` are the sources'."""
        return self.decode(target, *self.encode(source, lengths))

    @torch.no_grad()
    def attention_maps(
        self, source: Int64[Tensor, "batch source"], target: Int64[Tensor, "batch time"]
    ) -> list[Float[Tensor, "batch heads time source"]]:
        """What the decoder looks at while it predicts the token after each of `target`: one map a layer."""
        found: list[Tensor] = []
        handles = [
            layer.cross_attention.register_forward_pre_hook(
                lambda module, positional, named: found.append(module.weights(*positional, **named)), with_kwargs=True
            )
            for layer in self.decoder
        ]
        try:
            self(source, target)
        finally:
            for handle in handles:
                handle.remove()
        return found

    # One token after the other ---------------------------------------------------------------------

    def reading(
        self, source: Int64[Tensor, "batch source"], lengths: Int64[Tensor, " batch"] | None = None
    ) -> "Reader":
        """The decoder under these sources, for `generate` and `beam_search`: each prompt is how its row's target begins."""
        return Reader(self, source, lengths)

    def step(
        self, tokens: Int64[Tensor, "batch n"], state: "Decoding", lengths: Int64[Tensor, " batch"] | None = None
    ) -> tuple[Float[Tensor, "batch vocabulary"], "Decoding"]:
        """Read the next tokens of each row; the logits are of the token after the last real one (see rnn's contract)."""
        cache, n = state.cache, tokens.shape[1]
        x = self.embed(tokens, cache.positions(n), self.target_positions)
        for number, layer in enumerate(self.decoder):
            x = layer.step(x, cache, number, *state.memory[number], state.mask)
        last = x[:, -1] if lengths is None else x[torch.arange(len(x), device=x.device), lengths - 1]
        return self.logits(last), replace(state, cache=cache.advance(n, lengths))


@dataclass(frozen=True)
class Decoding:
    """What the decoder remembers: its own keys and values, and those of the sources, which never change.

    Rows are grouped by sentence, as many for each: beams of one sentence share its memory.
    """

    cache: Cache
    memory: list[tuple[Float[Tensor, "sentences heads source head"], Float[Tensor, "sentences heads source head"]]]
    """Keys and values of each layer."""
    mask: Bool[Tensor, "sentences 1 1 source"] | None

    def select(self, rows: Int64[Tensor, " more"]) -> "Decoding":
        """The state of other rows; the memory is copied only where they no longer have the same sentences."""
        sentences = len(self.memory[0][0])
        each = len(self.cache.lengths) // sentences
        wanted = torch.div(rows, each, rounding_mode="floor")
        kept, counts = torch.unique_consecutive(wanted, return_counts=True)
        if len(kept) * int(counts[0]) != len(rows) or bool((counts != counts[0]).any()):
            kept = wanted  # not as many rows for each: every row gets its own
        cache = self.cache.select(rows)
        if torch.equal(kept, torch.arange(sentences, device=kept.device)):
            return replace(self, cache=cache)
        memory = [(k[kept], v[kept]) for k, v in self.memory]
        return Decoding(cache, memory, None if self.mask is None else self.mask[kept])


class Reader:
    """A Transformer that has read its sources (`Transformer.reading`): it has `init_state` and `step`."""

    def __init__(self, network: Transformer, source: Tensor, lengths: Tensor | None = None):
        self.network, self.source, self.lengths = network, source, lengths

    def init_state(self, batch: int, capacity: int) -> Decoding:
        """Row i continues a target of source i. Raises UsageError for another number of rows."""
        if batch != len(self.source):
            raise UsageError(f"{batch} targets to continue for {len(self.source)} sources: give one for each")
        network = self.network
        memory, mask = network.encode(self.source, self.lengths)
        kept = [layer.cross_attention.keys_values(memory) for layer in network.decoder]
        own = network.decoder[0].self_attention
        cache = Cache.empty(
            len(network.decoder), batch, own.kv_heads, capacity, network.width // own.heads, like=memory
        )
        return Decoding(cache, kept, None if bool(mask.all()) else mask)

    def step(self, tokens: Tensor, state: Decoding, lengths: Tensor | None = None) -> tuple[Tensor, Decoding]:
        return self.network.step(tokens, state, lengths)


MARIAN: dict[str, Any] = {
    "positions": "marian", "bias": True, "activation": "swish", "eps": 1e-5, "logits_bias": True,
}  # fmt: skip
"""What Marian's networks have that the paper's have not (transformers 5.23, models/marian)."""

VARIANTS: dict[str, dict[str, Any]] = {
    # Table 3, with the 37,000 tokens of Sec. 5.1 and nothing beside them
    "transformer_base_v37000": {"vocabulary": 37_000},
    "transformer_big_v37000": {"vocabulary": 37_000, "width": 1024, "inner": 4096, "heads": 16, "dropout": 0.3},
    # Helsinki-NLP/opus-mt-en-de: base, by Marian
    "transformer_opus_mt_en_de": {"vocabulary": 58_101, "marks": (58_100, 0, 58_100), **MARIAN},
}


def build(variant: str, **overrides: Any) -> Transformer:
    """The network of a variant; overrides are the arguments of `Transformer` and of its layers."""
    return Transformer(**{**VARIANTS[variant], **overrides})
