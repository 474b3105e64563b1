"""The network (Section 2.3)."""

import math
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from jingdu.papers.language.gpt import GPT, MLP, CausalSelfAttention
from jingdu.papers.language.transformer import Cache

__all__ = ["GPT2", "VARIANTS", "PreNormBlock", "build", "example"]


class PreNormBlock(nn.Module):
    """Layer normalisation moved to the input of each sublayer; the sum is left as it is."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), CausalSelfAttention(width, heads, dropout)
        self.norm2, self.mlp = nn.LayerNorm(width), MLP(width)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Float[Tensor, "batch time width"],
        mask: Bool[Tensor, "batch 1 1 time"] | None = None,
        state: Cache | None = None,
        layer: int = 0,
    ) -> Float[Tensor, "batch time width"]:
        x = x + self.dropout(self.attention(self.norm1(x), mask, state, layer))
        return x + self.dropout(self.mlp(self.norm2(x)))


class GPT2(GPT):
    """GPT with pre-norm blocks and a last layer normalisation, which "largely follows" the first one (Sec. 2.3).

    Args:
        vocabulary: tokens; rows of the table of embeddings.
        width: of the state at each position.
        layers: blocks.
        heads: of each attention.
        context: positions.
        dropout: on embeddings, attention weights and residuals.
        scaled: what is added to the residual starts smaller by the root of how often that is done, as the text says;
            the released code does not do it.
    """

    block = PreNormBlock

    def __init__(
        self,
        vocabulary: int = 50257,
        width: int = 768,
        layers: int = 12,
        heads: int = 12,
        context: int = 1024,
        dropout: float = 0.1,
        scaled: bool = True,
    ):
        self.scaled = scaled  # asked for while the parent initialises
        super().__init__(vocabulary, width, layers, heads, context, dropout)
        self.norm = nn.LayerNorm(width)

    def initialise(self) -> None:
        """N(0, 0.02), positions N(0, 0.01); and what is added to the residual, by 1 / sqrt(2 * layers) less."""
        super().initialise()
        nn.init.normal_(self.places.weight, std=0.01)
        for block in self.blocks if self.scaled else ():
            for layer in (block.attention.project, block.mlp.project):
                nn.init.normal_(layer.weight, std=0.02 / math.sqrt(2 * len(self.blocks)))


VARIANTS: dict[str, dict[str, Any]] = {
    # Table 2
    "gpt2": {},
    "gpt2_medium": {"width": 1024, "layers": 24, "heads": 16},
    "gpt2_large": {"width": 1280, "layers": 36, "heads": 20},
    "gpt2_xl": {"width": 1600, "layers": 48, "heads": 25},
}


def build(variant: str, **overrides: Any) -> GPT2:
    """The network of a variant; overrides are the arguments of `GPT2`."""
    return GPT2(**{**VARIANTS[variant], **overrides})


def example(variant: str, batch: int) -> Int64[Tensor, "batch time"]:
    """Tokens as a bench feeds them: 128 of each row."""
    return torch.randint(50257, (batch, 128), generator=torch.Generator().manual_seed(0))
