"""The network of Figure 2: a ViT with one more token, whose output a teacher's labels are compared with."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from jingdu.errors import UsageError
from jingdu.nn import each
from jingdu.papers.vit.vit import PatchEmbed, ViTBlock, check_pictures, divide, resize_positions

__all__ = ["DeiT", "token_similarity"]


class DeiT(nn.Module):
    """ViT's encoder, with a distillation token and a head of its own beside those of the class.

    Args:
        num_classes: of each head; 0 has none, and gives the tokens that the heads would read.
        image_size: side of the images in pixels, or height and width.
        patch: side of a patch.
        width: of a token.
        depth: blocks.
        heads: of each attention.
        in_channels: of the images.
        distilled: with the distillation token. Without, it is a ViT that starts from other weights.
        dropout: behind the positions, and in the blocks.
        drop: probability that an image skips a branch of the last block; earlier blocks have less, evenly (Section 6).
        block: what `ViTBlock` takes further: ratio, attention_dropout, activation, eps, biases, scale.

    Raises UsageError for an image that patches do not divide.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        image_size: int | Sequence[int] = 224,
        patch: int = 16,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        in_channels: int = 3,
        distilled: bool = False,
        dropout: float | int = 0.0,
        drop: float | int = 0.0,
        **block: Any,
    ):
        super().__init__()
        self.patches = PatchEmbed(patch, width, in_channels)
        self.image_size, self.grid = divide(image_size, patch)
        self.class_token = nn.Parameter(torch.empty(1, 1, width))
        self.distillation_token = nn.Parameter(torch.empty(1, 1, width)) if distilled else None
        self.first = 2 if distilled else 1
        """Tokens before the patches."""
        self.positions = nn.Parameter(torch.empty(1, self.first + self.grid[0] * self.grid[1], width))
        self.dropout = nn.Dropout(dropout)
        rates = [drop * i / max(depth - 1, 1) for i in range(depth)]
        self.blocks = nn.ModuleList(ViTBlock(width, heads, dropout=dropout, drop=rate, **block) for rate in rates)
        self.norm = nn.LayerNorm(width, block.get("eps", 1e-6))
        make = partial(nn.Linear, width, num_classes) if num_classes else nn.Identity
        self.head = make()
        self.distillation_head = make() if distilled else None
        self.width = width
        self.undecayed = ("class_token", "distillation_token", "positions")
        """Without weight decay, as in timm (no_weight_decay)."""
        self.initialise()

    def initialise(self) -> None:
        """Truncated normal weights with deviation 0.02 (Section 6), biases of zero; the patches' map is torch's own."""
        each(self, nn.Linear, lambda layer: nn.init.trunc_normal_(layer.weight, std=0.02))
        each(self, nn.Linear, lambda layer: layer.bias is None or nn.init.zeros_(layer.bias))
        for table in (self.class_token, self.distillation_token, self.positions):
            if table is not None:
                nn.init.trunc_normal_(table, std=0.02)
        self.patches.projection.reset_parameters()

    def embed(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch tokens token_width"]:
        """The class token, the distillation token and the patches, each with its position."""
        check_pictures(x, self.patches, self.image_size)
        tokens = [t.expand(len(x), -1, -1) for t in (self.class_token, self.distillation_token) if t is not None]
        return self.dropout(torch.cat((*tokens, self.patches(x)), 1) + self.positions)

    def features(self, x: Float[Tensor, "batch channels height width"]) -> list[Tensor]:
        """The tokens behind each block, [batch, 1 or 2 + patches, width], shallow to deep; the last are not normalised.

        Raises UsageError for images of another size, and for what is no batch of pictures.
        """
        tokens, found = self.embed(x), []
        for block in self.blocks:
            tokens = block(tokens)
            found.append(tokens)
        return found

    def both(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> tuple[Float[Tensor, "batch out"], Float[Tensor, "batch out"]]:
        """What the class head and the distillation head say. Without the token both are the class head's."""
        tokens = self.embed(x)
        for block in self.blocks:
            tokens = block(tokens)
        tokens = self.norm(tokens[:, : self.first])
        logits = self.head(tokens[:, 0])
        return logits, logits if self.distillation_head is None else self.distillation_head(tokens[:, 1])

    def forward(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch out"] | tuple[Float[Tensor, "batch out"], Float[Tensor, "batch out"]]:
        """Logits: in training those of both heads, else their mean; of one head where there is one."""
        logits, distilled = self.both(x)
        if self.distillation_head is None:
            return logits
        return (logits, distilled) if self.training else (logits + distilled) / 2

    @property
    def resized(self) -> Mapping[str, Callable[[Tensor], Tensor]]:
        """What loading may fit to the network's size, and how: positions of images of another size (Section 5.1)."""
        return {"positions": lambda table: resize_positions(table, self.grid, first=self.first)}


@torch.no_grad()
def token_similarity(network: DeiT, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, " layers"]:
    """Section 4: cosines of the class and the distillation token, behind each block, mean over images.

    Raises UsageError for a network with one token.
    """
    if network.distillation_token is None:
        raise UsageError("a network without a distillation token has nothing to compare its class token with")
    return torch.stack([F.cosine_similarity(t[:, 0], t[:, 1], dim=1).mean() for t in network.features(images)])
