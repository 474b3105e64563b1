"""The autoencoder of Figure 1: a ViT that sees some patches, and a small decoder that rebuilds the others."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from jingdu.errors import UsageError
from jingdu.nn import each
from jingdu.papers.vit.vit import ViT, ViTBlock, resize_positions

from .masking import Masking, patchify, pixel_loss, pixel_target, random_masking, visible
from .positions import sincos_positions

__all__ = ["MAE", "Decoder", "Rebuilt", "fine_tuned"]


class Rebuilt(NamedTuple):
    """What an autoencoder makes of images."""

    patches: Float[Tensor, "batch patches numbers"]
    """Predictions for all patches: of pixels, or of pixels as `pixel_target` normalises them."""
    mask: Float[Tensor, "batch patches"]
    """1 for a hidden patch, 0 for a seen one."""


class Decoder(nn.Module):
    """Section 3, "MAE decoder": a narrow stack of blocks over all patches, used in pre-training alone.

    Args:
        inputs: width of the encoder's tokens.
        outputs: numbers of a patch.
        grid: patches down and across.
        width: of its own tokens.
        depth: blocks.
        heads: of each attention.
        block: what `ViTBlock` takes further.
    """

    def __init__(
        self, inputs: int, outputs: int, grid: Sequence[int], width: int = 512, depth: int = 8, heads: int = 16,
        **block: Any,
    ):  # fmt: skip
        super().__init__()
        self.embed = nn.Linear(inputs, width)
        self.positions = nn.Parameter(sincos_positions(width, grid), requires_grad=False)
        self.blocks = nn.ModuleList(ViTBlock(width, heads, **block) for _ in range(depth))
        make: Callable[[int], nn.Module] = block.get("norm") or partial(nn.LayerNorm, eps=block.get("eps", 1e-6))
        self.norm = make(width)
        self.predict = nn.Linear(width, outputs)

    def forward(
        self,
        tokens: Float[Tensor, "batch seen inputs"],
        restore: Int64[Tensor, "batch patches"] | None = None,
        mask_token: Float[Tensor, "1 1 width"] | None = None,
    ) -> Float[Tensor, "batch patches numbers"]:
        """Predictions for all patches.

        Args:
            tokens: the encoder's, the class token first; then the seen patches in their shuffled order.
            restore: where each patch stands in that order, the hidden ones behind the seen; None: all are there, in place.
            mask_token: stands for each hidden one.
        """
        x = self.embed(tokens)
        if restore is not None and mask_token is not None:
            hidden = mask_token.to(x.dtype).expand(len(x), restore.shape[1] + 1 - x.shape[1], -1)
            shuffled = torch.cat((x[:, 1:], hidden), 1)
            patches = shuffled.gather(1, restore[..., None].expand(-1, -1, x.shape[2]))
            x = torch.cat((x[:, :1], patches), 1)
        x = x + self.positions
        for block in self.blocks:
            x = block(x)
        return self.predict(self.norm(x)[:, 1:])


class MAE(nn.Module):
    """Encoder and decoder. The encoder is a ViT without a head, whose positions are fixed.

    Args:
        image_size, patch, width, depth, heads, in_channels: of the encoder, as `ViT` has them.
        decoder: width, depth and heads of the decoder.
        masked: share of the patches that is hidden.
        normalised: the target is each patch's pixels normalised by themselves (Tab. 1d), as in the published weights.
        mask_tokens: where mask tokens stand for the hidden patches: decoder, or encoder, which then sees as many tokens
            as there are patches (the paper's comparison, Tab. 1c).
        block: what the blocks of both take further: ratio, activation, eps, biases, ...

    Raises UsageError for shares that leave nothing to see or nothing to predict.
    """

    def __init__(
        self,
        image_size: int | Sequence[int] = 224,
        patch: int = 16,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        in_channels: int = 3,
        decoder: Sequence[int] = (512, 8, 16),
        masked: float | int = 0.75,
        normalised: bool = True,
        mask_tokens: str = "decoder",
        **block: Any,
    ):
        super().__init__()
        if mask_tokens not in ("decoder", "encoder"):
            raise UsageError(f"mask_tokens is {mask_tokens!r}: they stand in the decoder, or in the encoder")
        self.encoder = ViT(0, image_size, patch, width, depth, heads, in_channels, **block)
        self.encoder.positions.requires_grad_(False)
        self.decoder = Decoder(width, patch**2 * in_channels, self.encoder.grid, *decoder, **block)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width if mask_tokens == "encoder" else decoder[0]))
        self.patch, self.masked, self.normalised, self.mask_tokens = patch, masked, normalised, mask_tokens
        count = self.encoder.grid[0] * self.encoder.grid[1]
        if visible(count, masked) == count:
            raise UsageError(f"of {count} patches a share of {masked:g} hides none: nothing is to be predicted")
        self.initialise()

    @torch.no_grad()
    def initialise(self) -> None:
        """As the released code: Glorot's uniform weights, of the patches' projection too; tokens N(0, 0.02); fixed positions."""
        each(self, nn.Linear, lambda layer: nn.init.xavier_uniform_(layer.weight))
        each(self, nn.Linear, lambda layer: layer.bias is None or nn.init.zeros_(layer.bias))
        # A convolution that is a linear map of whole patches starts as one.
        projection = self.encoder.patches.projection.weight
        nn.init.xavier_uniform_(projection.view(len(projection), -1))
        nn.init.normal_(self.encoder.class_token, std=0.02)
        nn.init.normal_(self.mask_token, std=0.02)
        self.encoder.positions.copy_(sincos_positions(self.encoder.width, self.encoder.grid))

    def encode(
        self,
        images: Float[Tensor, "batch channels height width"],
        noise: Float[Tensor, "batch patches"] | None = None,
        masked: float | int | None = None,
    ) -> tuple[Float[Tensor, "batch seen token_width"], Masking]:
        """The encoder's normalised tokens, the class token first, and which patches it saw; arguments as `forward` has them."""
        encoder = self.encoder
        tokens = encoder.embed(images)
        if noise is None:
            noise = torch.rand(len(tokens), tokens.shape[1] - 1, device=tokens.device)
        found = random_masking(noise, self.masked if masked is None else masked)
        first, patches = tokens[:, :1], tokens[:, 1:]
        if self.mask_tokens == "decoder":
            seen = patches.gather(1, found.keep[..., None].expand(-1, -1, patches.shape[2]))
        else:
            seen = torch.where(found.mask[..., None].bool(), self.mask_token + encoder.positions[:, 1:], patches)
        x = torch.cat((first, seen), 1)
        for block in encoder.blocks:
            x = block(x)
        return encoder.norm(x), found

    def forward(
        self,
        images: Float[Tensor, "batch channels height width"],
        noise: Float[Tensor, "batch patches"] | None = None,
        masked: float | int | None = None,
    ) -> Rebuilt:
        """Predict all patches from a random part of them.

        Args:
            images: normalised.
            noise: whose order shuffles the patches; by default uniform, from torch's global generator.
            masked: share of the patches that is hidden, if another than the network's.

        Raises UsageError for images of another size, and for what is no batch of pictures.
        """
        tokens, found = self.encode(images, noise, masked)
        if self.mask_tokens == "decoder":
            return Rebuilt(self.decoder(tokens, found.restore, self.mask_token), found.mask)
        return Rebuilt(self.decoder(tokens), found.mask)

    def loss(self, images: Float[Tensor, "batch channels height width"], rebuilt: Rebuilt) -> Float[Tensor, ""]:
        """The error of the predictions of `images` on the hidden patches."""
        target = pixel_target(patchify(images, self.patch), self.normalised)
        return pixel_loss(rebuilt.patches, target, rebuilt.mask)

    def features(self, x: Float[Tensor, "batch channels height width"]) -> list[Tensor]:
        """The encoder's tokens behind each block, of all patches."""
        return self.encoder.features(x)

    def handed_on(self) -> Mapping[str, Tensor]:
        """What a network that learns a task begins with: the encoder."""
        return self.encoder.state_dict()

    @property
    def resized(self) -> Mapping[str, Callable[[Tensor], Tensor]]:
        """What loading may fit to the network's size: positions of images of another size."""
        return {
            f"{part}.positions": lambda table: resize_positions(table, self.encoder.grid)
            for part in ("encoder", "decoder")
        }


def fine_tuned(pool: str = "mean", **arguments: Any) -> ViT:
    """Section 4, Appendix A.1: the encoder with a classifier, which reads the mean of the patches (or the class token)."""
    network = ViT(pool=pool, **arguments)
    if isinstance(network.head, nn.Linear):
        nn.init.trunc_normal_(network.head.weight, std=2e-5)  # main_finetune.py
    return network
