"""Augmentations that no paper introduced, on batches; each sample's draws are its own."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from jingdu.data.draws import Draws

__all__ = ["flip", "random_affine", "random_crop"]


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


def random_affine(
    images: Float[Tensor, "batch channels height width"],
    draws: Draws,
    degrees: float | int = 20,
    scale: tuple[float | int, float | int] = (0.8, 1.2),
    shear: float | int = 0.1,
    shift: float | int = 0.1,
    size: int | None = None,
) -> Float[Tensor, "batch channels new_height new_width"]:
    """Shear, scale, turn and move each image at random, about its centre; what nothing of it covers is 0.

    Args:
        degrees: largest angle, to either side.
        scale: smallest and largest factor, uniform in their logarithm.
        shear: largest horizontal displacement of a point, in its heights above the centre.
        shift: largest displacement along each axis, in sides of the result.
        size: side of the result in pixels, a square that shows the whole image at scale 1; None keeps height and width.
    """
    turn, zoom, slant, across, down = draws.uniform(5).unbind(1)
    angle = (2 * turn - 1) * math.radians(degrees)
    factor = scale[0] * (scale[1] / scale[0]) ** zoom
    slant = (2 * slant - 1) * shear
    place = torch.stack((2 * across - 1, 2 * down - 1), 1) * 2 * shift  # the frame is 2 wide
    height, width = images.shape[2:] if size is None else (size, size)
    # A pixel at p shows the image at (turn scale shear)^-1 (p - place), in pixels of one size along both axes.
    cos, sin = angle.cos() / factor, angle.sin() / factor
    back = torch.stack((cos + slant * sin, sin - slant * cos, -sin, cos), 1).view(-1, 2, 2)
    aspect = torch.tensor((1.0, images.shape[2] / images.shape[3]))
    back = back * aspect / aspect[:, None]
    theta = torch.cat((back, -back @ place[:, :, None]), 2).to(images)
    grid = F.affine_grid(theta, [*images.shape[:2], height, width], align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)
