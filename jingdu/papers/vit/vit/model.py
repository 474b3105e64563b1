"""The network of Figure 1."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from jingdu.errors import UsageError, unknown
from jingdu.nn import check_images, each

from .hybrid import Backbone, HybridEmbed
from .layers import PatchEmbed, ViTBlock, resize_positions

__all__ = ["ViT", "check_pictures", "divide"]

Pool = Literal["token", "mean"]
"""What the head reads: the class token, or the mean of the patches (Appendix D.3)."""


def divide(image_size: int | Sequence[int], patch: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Height and width of an image that is a square or both, and patches down and across.

    Raises UsageError where the patches do not divide it.
    """
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    if height % patch or width % patch:
        raise UsageError(
            f"images of {height} x {width} pixels do not divide into patches of {patch}: choose another image_size or patch"
        )
    return (height, width), (height // patch, width // patch)


def check_pictures(x: Tensor, patches: PatchEmbed | HybridEmbed, image_size: tuple[int, int]) -> None:
    """Raise UsageError for what is no batch of images of `image_size` that `patches` can take."""
    if isinstance(patches, HybridEmbed):
        patches.check(x)
    else:
        check_images(x, patches.projection, patches.patch)
    if tuple(x.shape[2:]) != image_size:
        raise UsageError(
            f"images are {x.shape[2]} x {x.shape[3]}, and this network has positions for {image_size[0]} x "
            f"{image_size[1]}: create it with image_size=, which interpolates them"
        )


class ViT(nn.Module):
    """Patches, a class token, positions, and a Transformer's encoder.

    Args:
        num_classes: of the head; 0 has none, and gives what the head would read.
        image_size: side of the images in pixels, or height and width.
        patch: side of a patch.
        width: of a token.
        depth: blocks.
        heads: of each attention.
        in_channels: of the images.
        pool: see `Pool`. With the mean, the norm comes behind it, as MAE's fine-tuning has it.
        representation: units of the hidden tanh layer that the head has in pre-training (Section 3.1); None has none.
        hybrid: bottlenecks of the stages of a ResNet, whose maps are cut into patches of one pixel; None has images.
        dropout: behind the positions, and in the blocks.
        drop: probability that an image skips a branch of the last block; earlier blocks have less, evenly.
        embed_dropout: behind the positions alone; None is as `dropout`.
        block: what `ViTBlock` takes further: ratio, attention_dropout, activation, eps, norm, biases, bias, scale.

    Raises UsageError for an image that patches do not divide, and another pool.
    """

    undecayed = ("class_token", "positions")
    """Tables, not matrices of a map: without weight decay, as in timm (no_weight_decay)."""

    def __init__(
        self,
        num_classes: int = 1000,
        image_size: int | Sequence[int] = 224,
        patch: int = 16,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        in_channels: int = 3,
        pool: Pool | str = "token",
        representation: int | None = None,
        hybrid: Sequence[int] | None = None,
        dropout: float | int = 0.0,
        drop: float | int = 0.0,
        embed_dropout: float | int | None = None,
        **block: Any,
    ):
        super().__init__()
        if pool not in get_args(Pool):
            raise unknown("pool", str(pool), get_args(Pool))
        self.pool = pool
        self.patches: PatchEmbed | HybridEmbed = (
            PatchEmbed(patch, width, in_channels)
            if hybrid is None
            else HybridEmbed(Backbone(hybrid, in_channels=in_channels), width)
        )
        self.image_size, self.grid = divide(image_size, self.patches.patch)
        """Patches down and across."""
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.empty(1, 1 + self.grid[0] * self.grid[1], width))
        self.dropout = nn.Dropout(dropout if embed_dropout is None else embed_dropout)
        rates = [drop * i / max(depth - 1, 1) for i in range(depth)]
        self.blocks = nn.ModuleList(ViTBlock(width, heads, dropout=dropout, drop=rate, **block) for rate in rates)
        make: Callable[[int], nn.Module] = block.get("norm") or partial(nn.LayerNorm, eps=block.get("eps", 1e-6))
        self.norm = make(width)
        self.hidden = nn.Linear(width, representation) if representation is not None else None
        self.head = nn.Linear(representation or width, num_classes) if num_classes else nn.Identity()
        self.width = width
        self.initialise()

    def initialise(self) -> None:
        """As the authors' code: Glorot's uniform weights and near-zero biases in the MLPs, positions N(0, 0.02), a head of zeros."""
        nn.init.normal_(self.positions, std=0.02)

        def start(block: nn.Module) -> None:
            each(block, nn.Linear, lambda layer: nn.init.xavier_uniform_(layer.weight))
            each(block, nn.Linear, lambda layer: layer.bias is None or nn.init.zeros_(layer.bias))
            for layer in (block.mlp.expand, block.mlp.contract):
                nn.init.normal_(layer.bias, std=1e-6)

        each(self, ViTBlock, start)
        if self.hidden is not None:
            nn.init.trunc_normal_(self.hidden.weight, std=self.width**-0.5 / 0.87962566103423978)
            nn.init.zeros_(self.hidden.bias)
        if isinstance(self.head, nn.Linear):
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    # Images to tokens -------------------------------------------------------------------------------

    def embed(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch tokens token_width"]:
        """Equation 1: the class token and the patches, each with its position."""
        check_pictures(x, self.patches, self.image_size)
        tokens = torch.cat((self.class_token.expand(len(x), -1, -1), self.patches(x)), 1)
        return self.dropout(tokens + self.positions)

    def features(self, x: Float[Tensor, "batch channels height width"]) -> list[Tensor]:
        """The tokens behind each block, [batch, 1 + patches, width], shallow to deep; the last ones are not normalised.

        Raises UsageError for images of another size, and for what is no batch of pictures.
        """
        tokens, found = self.embed(x), []
        for block in self.blocks:
            tokens = block(tokens)
            found.append(tokens)
        return found

    def represent(self, tokens: Float[Tensor, "batch tokens token_width"]) -> Float[Tensor, "batch out"]:
        """Equation 4: y, what the head reads, from the last block's tokens."""
        y = self.norm(tokens)[:, 0] if self.pool == "token" else self.norm(tokens[:, 1:].mean(1))
        return y if self.hidden is None else torch.tanh(self.hidden(y))

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch out"]:
        tokens = self.embed(x)
        for block in self.blocks:
            tokens = block(tokens)
        return self.head(self.represent(tokens))

    @property
    def resized(self) -> Mapping[str, Callable[[Tensor], Tensor]]:
        """What loading may fit to the network's size, and how: positions of images of another size."""
        return {"positions": lambda table: resize_positions(table, self.grid)}
