"""Patches as tokens, and the block that the whole canon of vision transformers is made of (Section 3.1)."""

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from jingdu.errors import UsageError, unknown
from jingdu.papers.cnn.nas.cells import drop_path
from jingdu.papers.language.transformer import attention

__all__ = ["MLP", "PatchEmbed", "SelfAttention", "ViTBlock", "resize_positions"]

Biases = Literal["full", "none", "qv"]
"""Of the projection to queries, keys and values: all, none, or no keys (BEiT: those would not change the softmax)."""

GELU: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh")}
"""The exact one of the ports, and the approximation that flax, and so the authors' code, takes by default."""


class PatchEmbed(nn.Module):
    """Equation 1's E: each patch of an image, flattened, through one linear map.

    A convolution whose stride is its kernel is that map: its weight is [width, channels, patch, patch].

    Args:
        patch: side of a patch in pixels.
        width: of a token.
        in_channels: of the images.
    """

    def __init__(self, patch: int, width: int, in_channels: int = 3):
        super().__init__()
        self.patch = patch
        self.projection = nn.Conv2d(in_channels, width, patch, patch)
        # As the linear map that it is (timm's init_weights_vit_jax: LeCun's normal by the fan-in).
        fan_in = in_channels * patch**2
        nn.init.trunc_normal_(self.projection.weight, std=fan_in**-0.5 / 0.87962566103423978)
        nn.init.zeros_(self.projection.bias)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch patches tokens_width"]:
        """Tokens row by row, the top left patch first."""
        return self.projection(x).flatten(2).transpose(1, 2)


class SelfAttention(nn.Module):
    """Appendix A: multi-head self-attention, with one projection for queries, keys and values.

    Args:
        width: of a token.
        heads: of the attention.
        biases: see `Biases`.
        dropout: of the attention weights.
        bias: called without arguments, gives what is added to the scaled products, [1, heads, tokens, tokens] or None:
            the relative positions of later papers. A bias that all blocks share is given to `forward`.
    """

    def __init__(
        self, width: int, heads: int, *, biases: Biases | str = "full", dropout: float | int = 0.0,
        bias: Callable[[], Tensor | None] | None = None,
    ):  # fmt: skip
        super().__init__()
        if width % heads:
            raise UsageError(f"width {width} does not divide into {heads} heads")
        if biases not in get_args(Biases):
            raise unknown("biases", str(biases), get_args(Biases))
        self.heads, self.dropout, self.bias = heads, dropout, bias
        self.qkv = nn.Linear(width, 3 * width, bias=biases == "full")
        self.query_bias, self.value_bias = (
            nn.Parameter(torch.zeros(width)) if biases == "qv" else None for _ in range(2)
        )
        self.project = nn.Linear(width, width)

    def split(self, x: Float[Tensor, "batch tokens width"]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each [batch, heads, tokens, width / heads]."""
        if self.query_bias is None or self.value_bias is None:
            qkv = self.qkv(x)
        else:
            bias = torch.cat((self.query_bias, torch.zeros_like(self.query_bias), self.value_bias))
            qkv = F.linear(x, self.qkv.weight, bias)
        q, k, v = rearrange(qkv, "b n (three h d) -> three b h n d", three=3, h=self.heads)
        return q, k, v

    def forward(
        self, x: Float[Tensor, "batch tokens width"], mask: Bool[Tensor, "batch 1 1 tokens"] | None = None,
        bias: Float[Tensor, "1 heads tokens tokens"] | None = None,
    ) -> Float[Tensor, "batch tokens width"]:  # fmt: skip
        q, k, v = self.split(x)
        if bias is None and self.bias is not None:
            bias = self.bias()
        y = attention(q, k, v, mask=mask, bias=bias, dropout=self.dropout if self.training else 0.0)
        return self.project(rearrange(y, "b h n d -> b n (h d)"))


class MLP(nn.Module):
    """Two layers with a GELU between them (Section 3.1).

    Args:
        width: of a token.
        inner: between the layers.
        activation: gelu, or gelu_tanh.
        dropout: behind each layer.
    """

    def __init__(self, width: int, inner: int, activation: str = "gelu", dropout: float | int = 0.0):
        super().__init__()
        if activation not in GELU:
            raise unknown("activation", activation, GELU)
        self.expand, self.contract = nn.Linear(width, inner), nn.Linear(inner, width)
        self.activation, self.dropout = GELU[activation], nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "batch *tokens width"]) -> Float[Tensor, "batch *tokens width"]:
        return self.dropout(self.contract(self.dropout(self.activation(self.expand(x)))))


class ViTBlock(nn.Module):
    r"""Equations 2 and 3: $z' = z + \mathrm{MSA}(\mathrm{LN}(z))$, then $z' + \mathrm{MLP}(\mathrm{LN}(z'))$.

    Args:
        width: of a token.
        heads: of the attention.
        ratio: the MLP's inner width, in `width`s.
        dropout: behind each linear layer but the first of the attention.
        attention_dropout: of the attention weights.
        activation: of the MLP: gelu, or gelu_tanh as in the authors' code.
        eps: of the norms.
        norm: makes a norm for a width, in place of LayerNorm.
        biases: of queries, keys and values; see `Biases`.
        bias: see `SelfAttention`.
        scale: where layer scale starts (CaiT; BEiT's gamma); None has none.
        drop: probability that an image skips a branch in training (stochastic depth).
        attention: a module in place of `SelfAttention`, which then has `heads`, `biases` and `bias` of its own.
    """

    def __init__(
        self, width: int, heads: int, *, ratio: float | int = 4, dropout: float | int = 0.0,
        attention_dropout: float | int = 0.0, activation: str = "gelu", eps: float = 1e-6,
        norm: Callable[[int], nn.Module] | None = None, biases: Biases | str = "full",
        bias: Callable[[], Tensor | None] | None = None, scale: float | None = None, drop: float | int = 0.0,
        attention: nn.Module | None = None,
    ):  # fmt: skip
        super().__init__()
        make = norm or (lambda width: nn.LayerNorm(width, eps))
        self.norm1 = make(width)
        if attention is None:
            attention = SelfAttention(width, heads, biases=biases, dropout=attention_dropout, bias=bias)
        self.attention = attention
        self.norm2 = make(width)
        self.mlp = MLP(width, int(ratio * width), activation, dropout)
        self.dropout, self.drop = nn.Dropout(dropout), drop
        self.scale1, self.scale2 = (
            nn.Parameter(torch.full((width,), scale)) if scale is not None else None for _ in range(2)
        )

    def _branch(self, y: Tensor, scale: Tensor | None) -> Tensor:
        return drop_path(y if scale is None else y * scale, self.drop if self.training else 0.0)

    def forward(
        self, x: Float[Tensor, "batch *tokens width"], mask: Bool[Tensor, "batch 1 1 tokens"] | None = None,
        bias: Float[Tensor, "1 heads tokens tokens"] | None = None,
    ) -> Float[Tensor, "batch *tokens width"]:  # fmt: skip
        given = {name: value for name, value in (("mask", mask), ("bias", bias)) if value is not None}
        x = x + self._branch(self.dropout(self.attention(self.norm1(x), **given)), self.scale1)
        return x + self._branch(self.mlp(self.norm2(x)), self.scale2)


def resize_positions(
    positions: Float[Tensor, "1 rows width"],
    grid: Sequence[int],
    old: Sequence[int] | None = None,
    first: int = 1,
    how: Literal["bicubic", "bilinear"] = "bicubic",
) -> Float[Tensor, "1 new_rows width"]:
    """Section 3.2: positions for another number of patches, "according to their location in the original image".

    Args:
        positions: a row for each token.
        grid: patches down and across that are wanted.
        old: those that there are; by default a square.
        first: rows of tokens that are no patches, which stay.
        how: bicubic and smoothed where the grid shrinks, as timm's; bilinear between grids whose corners coincide, as
            the authors' (scipy.ndimage.zoom of order 1; vit_jax/checkpoint.py).

    Raises UsageError where the rows are no such grid.
    """
    rows = positions.shape[1] - first
    old = (round(max(rows, 0) ** 0.5),) * 2 if old is None else old
    if old[0] * old[1] != rows:
        raise UsageError(f"{rows} positions are no grid of {old[0]} x {old[1]} patches: say which with old=")
    if tuple(old) == tuple(grid):
        return positions
    kept, table = positions[:, :first], positions[:, first:]
    table = table.float().reshape(1, *old, -1).permute(0, 3, 1, 2)
    if how == "bicubic":
        table = F.interpolate(table, tuple(grid), mode="bicubic", antialias=True)
    else:
        table = F.interpolate(table, tuple(grid), mode="bilinear", align_corners=True)
    return torch.cat((kept, table.flatten(2).transpose(1, 2).to(positions.dtype)), 1)
