"""The network of Figure 1: a ViT with a token for hidden patches, relative positions and scaled branches."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from jingdu.errors import UsageError, unknown
from jingdu.nn import each
from jingdu.papers.vit.vit import PatchEmbed, ViTBlock, check_pictures, divide

from .bias import RelativeBias, resize_table

__all__ = ["BEiT"]

Pool = Literal["mean", "token"]
"""What a classifier reads: the mean of the patches, or the class token."""


class BEiT(nn.Module):
    """Patches and a class token, in blocks whose attention knows how far apart two patches are.

    With `words` it is the network of pre-training: one table of relative positions serves all blocks, and the head says
    which visual word a hidden patch is. Without, each block has a table of its own, and the head names classes.

    Args:
        num_classes: of a classifier's head; 0 has none, and gives what the head would read.
        image_size: side of the images in pixels, or height and width.
        patch: side of a patch.
        width: of a token.
        depth: blocks.
        heads: of each attention.
        in_channels: of the images.
        words: visual words to choose from.
        pool: see `Pool`.
        shared: one table for all blocks; by default where there are words.
        dropout: behind the embedding, and in the blocks.
        drop: probability that an image skips a branch of the last block; earlier blocks have less, evenly.
        scale: where layer scale starts; None has none.
        std: of the weights at the start.
        block: what `ViTBlock` takes further: ratio, attention_dropout, activation, eps.

    Raises UsageError for an image that patches do not divide, and another pool.
    """

    undecayed = ("class_token",)
    """Without weight decay, as in the authors' code (no_weight_decay), where the mask token and the tables have it."""

    def __init__(
        self,
        num_classes: int = 1000,
        image_size: int | Sequence[int] = 224,
        patch: int = 16,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        in_channels: int = 3,
        words: int | None = None,
        pool: Pool | str = "mean",
        shared: bool | None = None,
        dropout: float | int = 0.0,
        drop: float | int = 0.0,
        scale: float | None = 0.1,
        std: float = 0.02,
        **block: Any,
    ):
        super().__init__()
        if pool not in get_args(Pool):
            raise unknown("pool", str(pool), get_args(Pool))
        self.image_size, self.grid = divide(image_size, patch)
        self.words, self.pool, self.width = words, pool, width
        shared = words is not None if shared is None else shared
        self.class_token = nn.Parameter(torch.empty(1, 1, width))
        self.mask_token = nn.Parameter(torch.empty(1, 1, width)) if words is not None else None
        self.patches = PatchEmbed(patch, width, in_channels)
        self.dropout = nn.Dropout(dropout)
        rates = [drop * i / max(depth - 1, 1) for i in range(depth)]
        self.blocks = nn.ModuleList(
            ViTBlock(
                width, heads, biases="qv", bias=None if shared else RelativeBias(heads, self.grid), scale=scale,
                dropout=dropout, drop=rate, **block,
            )
            for rate in rates
        )  # fmt: skip
        # Behind the blocks, since in fine-tuning it learns at the rate of the head (optim_factory.py).
        self.bias = RelativeBias(heads, self.grid) if shared else None
        self.norm = nn.LayerNorm(width, eps=block.get("eps", 1e-6))
        count = num_classes if words is None else words
        self.head = nn.Linear(width, count) if count else nn.Identity()
        self.initialise(std)

    def initialise(self, std: float = 0.02) -> None:
        """Section 2.5: weights N(0, std) within one deviation, the two that end a branch of block l divided by sqrt(2 l).

        A classifier's head starts a thousandth as large (modeling_finetune.py).
        """

        def start(weight: Tensor) -> None:
            nn.init.trunc_normal_(weight, std=std, a=-std, b=std)

        each(self, (nn.Linear, nn.Conv2d), lambda layer: start(layer.weight))
        each(self, (nn.Linear, nn.Conv2d), lambda layer: layer.bias is None or nn.init.zeros_(layer.bias))
        for token in (self.class_token, self.mask_token):
            if token is not None:
                start(token)
        with torch.no_grad():
            for number, block in enumerate(self.blocks, 1):
                for layer in (block.attention.project, block.mlp.contract):
                    layer.weight.div_((2 * number) ** 0.5)
            if self.words is None and isinstance(self.head, nn.Linear):
                self.head.weight.mul_(0.001)

    # Images to tokens -------------------------------------------------------------------------------

    def embed(
        self, x: Float[Tensor, "batch channels height width"], mask: Bool[Tensor, "batch down across"] | None = None
    ) -> Float[Tensor, "batch tokens token_width"]:
        """The class token and the patches, of which hidden ones are the mask token instead (Section 2.3)."""
        check_pictures(x, self.patches, self.image_size)
        patches = self.patches(x)
        if mask is not None:
            if self.mask_token is None or tuple(mask.shape) != (len(x), *self.grid):
                wanted = f"[{len(x)}, {self.grid[0]}, {self.grid[1]}], of a network with words="
                raise UsageError(f"a mask has shape {list(mask.shape)}: wanted {wanted}")
            patches = torch.where(mask.flatten(1)[..., None], self.mask_token, patches)
        return self.dropout(torch.cat((self.class_token.expand(len(x), -1, -1), patches), 1))

    def features(
        self, x: Float[Tensor, "batch channels height width"], mask: Bool[Tensor, "batch down across"] | None = None
    ) -> list[Tensor]:
        """The tokens behind each block, [batch, 1 + patches, width], shallow to deep; the last ones are not normalised.

        Raises UsageError for images of another size, and for what is no batch of pictures.
        """
        bias = None if self.bias is None else self.bias()
        tokens, found = self.embed(x, mask), []
        for block in self.blocks:
            tokens = block(tokens, None, bias)
            found.append(tokens)
        return found

    def represent(self, tokens: Float[Tensor, "batch tokens token_width"]) -> Float[Tensor, "batch width"]:
        """What a classifier's head reads: the normalised mean of the patches, or the class token (Section 2.5)."""
        return self.norm(tokens[:, 1:].mean(1)) if self.pool == "mean" else self.norm(tokens)[:, 0]

    def word_logits(
        self, x: Float[Tensor, "batch channels height width"], mask: Bool[Tensor, "batch down across"] | None = None
    ) -> Float[Tensor, "batch down across words"]:
        """Of every patch, hidden or not."""
        return self.head(self.norm(self.features(x, mask)[-1][:, 1:])).unflatten(1, self.grid)

    def forward(
        self, x: Float[Tensor, "batch channels height width"], mask: Bool[Tensor, "batch down across"] | None = None
    ) -> Float[Tensor, "rows out"]:
        """A classifier's logits [batch, classes]; with words, those of the hidden patches [hidden, words], image by image.

        Without a mask all patches are asked for, and none is hidden.
        """
        tokens = self.features(x, mask)[-1]
        if self.words is None:
            return self.head(self.represent(tokens))
        asked = tokens[:, 1:].flatten(0, 1) if mask is None else tokens[:, 1:][mask.flatten(1)]
        return self.head(self.norm(asked))

    # To a task --------------------------------------------------------------------------------------

    def handed_on(self) -> Mapping[str, Tensor]:
        """What a classifier begins with: each block has a copy of the shared table; the mean's norm starts anew."""
        state = dict(self.state_dict())
        if self.words is None:
            return state
        for name in [name for name in state if name.startswith(("mask_token", "norm.", "head."))]:
            del state[name]
        if self.bias is not None:
            table = state.pop("bias.table")
            state |= {f"blocks.{i}.attention.bias.table": table for i in range(len(self.blocks))}
        return state

    @property
    def resized(self) -> Mapping[str, Callable[[Tensor], Tensor]]:
        """What loading may fit to the network's size: the tables of images of another size."""
        names = ["bias"] if self.bias is not None else [f"blocks.{i}.attention.bias" for i in range(len(self.blocks))]
        return {f"{name}.table": lambda table: resize_table(table, self.grid) for name in names}
