"""Augmentations that no paper introduced, on batches; each sample's draws are its own."""

import torch
import torch.nn.functional as F
from torch import Tensor

from jingdu.data.draws import Draws


def random_crop(images: Tensor, draws: Draws, padding: int = 4, fill: float = 0.0) -> Tensor:
    """Pad images [batch, channels, height, width] on every side and cut a random window of the old size."""
    batch, channels, height, width = images.shape
    padded = F.pad(images, (padding,) * 4, value=fill)
    corner = draws.integers(2 * padding + 1, 2)
    rows = corner[:, 0, None] + torch.arange(height)
    columns = corner[:, 1, None] + torch.arange(width)
    first = torch.arange(batch)[:, None, None]
    return padded[first, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def flip(images: Tensor, draws: Draws, p: float = 0.5) -> Tensor:
    """Mirror each image left to right with probability `p`."""
    chosen = draws.uniform(1, 1, 1) < p
    return torch.where(chosen, images.flip(3), images)
