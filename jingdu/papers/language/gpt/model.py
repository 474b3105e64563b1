"""The decoder (Sections 3.1 and 4.1)."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from jingdu.errors import UsageError
from jingdu.nn import Linear, each, linear
from jingdu.papers.language.transformer import Cache, attention

__all__ = ["GPT", "MLP", "VARIANTS", "Block", "CausalSelfAttention", "build", "example"]


class CausalSelfAttention(nn.Module):
    """Multi-head attention of a sequence to its own past, with one projection for queries, keys and values."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        if width % heads:
            raise UsageError(f"width {width} does not divide into {heads} heads")
        self.heads, self.dropout = heads, dropout
        self.qkv = Linear(width, 3 * width)
        self.project = Linear(width, width)

    def forward(
        self,
        x: Float[Tensor, "batch time width"],
        mask: Bool[Tensor, "batch 1 1 time"] | None = None,
        state: Cache | None = None,
        layer: int = 0,
    ) -> Float[Tensor, "batch time width"]:
        batch, time, width = x.shape
        # [batch, time, 3 * heads * d] to three times [batch, heads, time, d]
        q, k, v = self.qkv(x).view(batch, time, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        if state is not None:
            k, v, mask = state.append(layer, k, v)
        dropout = self.dropout if self.training else 0.0
        # The mask of a state holds the past already.
        y = attention(q, k, v, mask=mask, causal=state is None or mask is None, dropout=dropout)
        return self.project(y.transpose(1, 2).reshape(batch, time, width))


class MLP(nn.Module):
    """The position-wise network, four times as wide inside, with the tanh form of GELU (Hendrycks & Gimpel 2016)."""

    def __init__(self, width: int):
        super().__init__()
        self.expand, self.project = Linear(width, 4 * width), Linear(4 * width, width)

    def forward(self, x: Float[Tensor, "batch time width"]) -> Float[Tensor, "batch time width"]:
        return self.project(F.gelu(self.expand(x), approximate="tanh"))


class Block(nn.Module):
    """Equation 2's transformer_block: each sublayer's output is added to its input, and the sum is normalised."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.attention, self.norm1 = CausalSelfAttention(width, heads, dropout), nn.LayerNorm(width)
        self.mlp, self.norm2 = MLP(width), nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Float[Tensor, "batch time width"],
        mask: Bool[Tensor, "batch 1 1 time"] | None = None,
        state: Cache | None = None,
        layer: int = 0,
    ) -> Float[Tensor, "batch time width"]:
        x = self.norm1(x + self.dropout(self.attention(x, mask, state, layer)))
        return self.norm2(x + self.dropout(self.mlp(x)))


class GPT(nn.Module):
    """Equation 2: embeddings of tokens and positions, blocks, and the tokens' own embeddings as the output layer.

    Args:
        vocabulary: tokens; rows of the table of embeddings.
        width: of the state at each position.
        layers: blocks.
        heads: of each attention.
        context: positions.
        dropout: on embeddings, attention weights and residuals (Sec. 4.1).
        marks: further rows of the table, for the start, delimiter and end tokens of fine-tuning (Sec. 3.3).
        classes: outputs of the task's linear layer (Eq. 3); None for a language model alone.
        spread: standard deviation of the initial weights. The paper's is for a width of 768; at a hundred, sublayers that
            start so small add nothing to a sum that is normalised behind them.
    """

    block: type[nn.Module] = Block

    def __init__(
        self,
        vocabulary: int = 40478,
        width: int = 768,
        layers: int = 12,
        heads: int = 12,
        context: int = 512,
        dropout: float = 0.1,
        marks: int = 0,
        classes: int | None = None,
        spread: float = 0.02,
    ):
        super().__init__()
        self.spread = spread
        self.vocabulary, self.heads, self.context, self.marks = vocabulary, heads, context, marks
        self.words = nn.Embedding(vocabulary + marks, width)
        self.places = nn.Embedding(context, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(self.block(width, heads, dropout) for _ in range(layers))
        self.norm: nn.Module = nn.Identity()
        self.head = nn.Linear(width, classes) if classes is not None else None
        self.initialise()

    def initialise(self) -> None:
        """Section 4.1: N(0, 0.02); biases start at zero."""
        each(self, (nn.Linear, nn.Embedding), lambda m: nn.init.normal_(m.weight, std=self.spread))
        each(self, nn.Linear, lambda m: nn.init.zeros_(m.bias))

    def hidden(
        self,
        tokens: Int64[Tensor, "batch time"],
        mask: Bool[Tensor, "batch time"] | None = None,
        positions: Int64[Tensor, "_ time"] | None = None,
        state: Cache | None = None,
    ) -> Float[Tensor, "batch time width"]:
        """The state of the last block at every position. Arguments are those of `forward`, or the state of a `step`."""
        time = tokens.shape[1]
        if positions is None:
            positions = (
                torch.arange(time, device=tokens.device)[None]
                if mask is None
                else (mask.long().cumsum(1) - 1).clamp(min=0)
            )
        if time > self.context:
            raise UsageError(f"{time} tokens: this network has positions for {self.context}")
        x = self.dropout(self.words(tokens) + self.places(positions))
        seen = None if mask is None else mask[:, None, None]
        for layer, block in enumerate(self.blocks):
            x = block(x, seen, state, layer)
        return self.norm(x)

    def logits(self, hidden: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch vocabulary"]:
        """The output layer of the language model: the table of embeddings once more (Eq. 2)."""
        return linear(hidden, self.words.weight)

    def forward(
        self,
        tokens: Int64[Tensor, "batch time"],
        mask: Bool[Tensor, "batch time"] | None = None,
        positions: Int64[Tensor, "_ time"] | None = None,
        states: bool = False,
    ) -> Float[Tensor, "batch time vocabulary_or_width"]:
        """Logits of the next token at every position.

        Args:
            tokens: their numbers.
            mask: False is padding, on either side: no token sees it.
            positions: from 0; by default a token's place among the real ones of its row.
            states: give what the logits are read from instead.

        Raises UsageError for more tokens than positions.
        """
        hidden = self.hidden(tokens, mask, positions)
        return hidden if states else self.logits(hidden)

    # Generation: the contract of rnn

    def init_state(self, batch: int, capacity: int) -> Cache:
        """Room for the keys and values of `capacity` tokens. Raises UsageError for more than there are positions."""
        if capacity > self.context:
            raise UsageError(
                f"prompt and continuation are {capacity + 1} tokens: this network has positions for {self.context}"
            )
        width = self.words.weight.shape[1] // self.heads
        return Cache.empty(len(self.blocks), batch, self.heads, capacity, width, self.words.weight)

    def step(
        self, tokens: Int64[Tensor, "batch time"], state: Cache, lengths: Int64[Tensor, " batch"] | None = None
    ) -> tuple[Float[Tensor, "batch vocabulary"], Cache]:
        """Read `tokens` behind those of `state`; the logits after each row's last real one."""
        time = tokens.shape[1]
        # What stands behind a row's real tokens may lie beyond the last position; nothing reads it.
        positions = state.positions(time).clamp(max=self.context - 1)
        x = self.hidden(tokens, None, positions, state)
        last = x[:, -1] if lengths is None else x[torch.arange(len(x), device=x.device), lengths - 1]
        return self.logits(last), state.advance(time, lengths)


VARIANTS: dict[str, dict[str, Any]] = {
    # Section 4.1
    "gpt1": {},
}


def build(variant: str, **overrides: Any) -> GPT:
    """The network of a variant; overrides are the arguments of `GPT`."""
    return GPT(**{**VARIANTS[variant], **overrides})


def example(variant: str, batch: int) -> Int64[Tensor, "batch time"]:
    """Tokens as a bench feeds them: 128 of each row."""
    return torch.randint(40478, (batch, 128), generator=torch.Generator().manual_seed(0))
