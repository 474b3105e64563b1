"""Which patches are hidden (Section 3, "Masking"), and pixels as a target (Section 3, "Reconstruction target")."""

from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float, Int64
from torch import Tensor

from jingdu.errors import UsageError

__all__ = ["Masking", "patchify", "pixel_loss", "pixel_target", "random_masking", "unpatchify", "visible"]

EPS = 1e-6
"""Added to a patch's variance before its root is taken (models_mae.py)."""


class Masking(NamedTuple):
    """How the patches of some images were shuffled."""

    keep: Int64[Tensor, "batch kept"]
    """The patches that are seen, in their shuffled order."""
    restore: Int64[Tensor, "batch patches"]
    """Where each patch stands in the shuffled order."""
    mask: Float[Tensor, "batch patches"]
    """1 for a hidden patch, 0 for a seen one."""


def visible(patches: int, share: float | int) -> int:
    """How many of so many patches are seen when a share of them is hidden: rounded down, as in the released code.

    Raises UsageError where none would be.
    """
    count = int(patches * (1 - share)) if 0 <= share < 1 else 0
    if count < 1:
        raise UsageError(f"of {patches} patches a share of {share:g} cannot be hidden: one at least is to be seen")
    return count


def random_masking(noise: Float[Tensor, "batch patches"], share: float | int) -> Masking:
    """Uniform sampling without replacement: the patches of an image are shuffled, and the first ones are seen.

    Args:
        noise: of which the order is taken; uniform for a random one.
        share: of the patches that is hidden.
    """
    kept = visible(noise.shape[1], share)
    order = noise.argsort(1)
    restore = order.argsort(1)
    return Masking(order[:, :kept], restore, (restore >= kept).to(noise.dtype))


def patchify(
    images: Float[Tensor, "batch channels height width"], patch: int
) -> Float[Tensor, "batch patches numbers"]:
    """The pixels of each patch, row by row, and of a pixel its channels side by side."""
    return rearrange(images, "b c (h p) (w q) -> b (h w) (p q c)", p=patch, q=patch)


def unpatchify(
    patches: Float[Tensor, "batch patches numbers"], patch: int, grid: tuple[int, int]
) -> Float[Tensor, "batch channels height width"]:
    """The images of `patchify`; `grid` is patches down and across."""
    return rearrange(patches, "b (h w) (p q c) -> b c (h p) (w q)", h=grid[0], w=grid[1], p=patch, q=patch)


def pixel_target(
    patches: Float[Tensor, "batch patches numbers"], normalised: bool
) -> Float[Tensor, "batch patches numbers"]:
    """What is to be predicted: the pixels, or their deviations from a patch's mean, in its standard deviations (Tab. 1d).

    The variance is the unbiased one.
    """
    if not normalised:
        return patches
    variance, mean = torch.var_mean(patches, dim=2, keepdim=True)
    return (patches - mean) * (variance + EPS).rsqrt()


def pixel_loss(
    predicted: Float[Tensor, "batch patches numbers"],
    target: Float[Tensor, "batch patches numbers"],
    mask: Float[Tensor, "batch patches"],
) -> Float[Tensor, ""]:
    """The mean squared error of a patch's numbers, and its mean over the hidden patches alone."""
    wide = torch.promote_types(predicted.dtype, torch.float32)
    error = (predicted.to(wide) - target.to(wide)).square().mean(2)
    return (error * mask).sum() / mask.sum()
