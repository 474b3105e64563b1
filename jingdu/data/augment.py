"""Augmentations that no paper introduced, on batches; each sample's draws are its own."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from jingdu.data.draws import Draws

__all__ = ["flip", "random_crop"]


def random_crop(
    images: Float[Tensor, "batch channels height width"], draws: Draws, padding: int = 4, fill: float = 0.0
) -> Float[Tensor, "batch channels height width"]:
    """Pad each image by `padding` pixels of `fill` on every side and cut a window of the old size at random."""
    height, width = images.shape[2:]
    padded = F.pad(images, (padding,) * 4, value=fill)
    # All windows as a view, of which each image takes one: [batch, channels, down, across, height, width].
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    down, across = draws.integers(2 * padding + 1, 2).to(images.device).unbind(1)
    return windows[torch.arange(len(images), device=images.device), :, down, across]


def flip(
    images: Float[Tensor, "batch channels height width"], draws: Draws, p: float = 0.5
) -> Float[Tensor, "batch channels height width"]:
    """Mirror each image left to right with probability `p`."""
    chosen = draws.uniform(1, 1, 1).to(images.device) < p
    return torch.where(chosen, images.flip(3), images)
