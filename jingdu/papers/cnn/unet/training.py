"""Section 3: a loss that keeps touching cells apart, and deformations that make thirty images enough."""

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from jingdu.data.draws import Draws
from jingdu.engine.contracts import Batch, System
from jingdu.metrics.segmentation import Overlap
from jingdu.papers.cnn.unet.tiles import segment

__all__ = ["Segmentation", "deform", "displacements", "warp", "weight_map"]

# The loss -----------------------------------------------------------------------------------------


def weight_map(
    instances: Int64[Tensor, "height width"], w0: float | int = 10, sigma: float | int = 5, balance: bool = True
) -> Float[Tensor, "height width"]:
    r"""Equation 2: how much each pixel counts,
    $w(x) = w_c(x) + w_0 \exp(-(d_1(x) + d_2(x))^2 / 2\sigma^2)$.

    Args:
        instances: the number of the cell that a pixel belongs to; 0 is background. A map of classes does not do: d1 and
            d2 are the distances in pixels to the nearest and the second nearest cell.
        w0: weight of a pixel that touches two cells; 0 leaves the term out.
        sigma: in pixels; the paper's 5 is for cells of some 50 pixels.
        balance: w_c gives background and cells the same sum; without, w_c is 1.

    The second term is for the background alone: the gaps between cells are part of it. It needs two cells.
    """
    from scipy.ndimage import distance_transform_edt, find_objects

    cells = instances.numpy()
    inside = cells > 0
    weights = np.ones(cells.shape, dtype=np.float32)
    share = inside.mean()
    if balance and 0 < share < 1:
        weights = np.where(inside, 0.5 / share, 0.5 / (1 - share)).astype(np.float32)
    if w0:
        nearest = np.full((2, *cells.shape), np.inf)
        far = math.ceil(5 * sigma)  # from there on a cell adds less than w0 / 10^5
        for number, box in enumerate(find_objects(cells), start=1):
            if box is not None:
                around = (slice(None), *(slice(max(part.start - far, 0), part.stop + far) for part in box))
                distance = distance_transform_edt(cells[around[1:]] != number)
                first, second = nearest[around]
                nearest[around] = np.minimum(first, distance), np.minimum(second, np.maximum(first, distance))
        weights += np.where(inside, 0, w0 * np.exp(-(nearest.sum(0) ** 2) / (2 * sigma**2))).astype(np.float32)
    return torch.from_numpy(weights)


class Segmentation(System):
    """Equation 1: the cross-entropy of each pixel's softmax, times its weight; the mean over all pixels.

    A batch has `image`, `label` [batch, height, width] and may have `weight` and `instances`, alike. "Valid" networks
    see images continued by reflection, so that the whole image is learned from. Evaluation is what `Overlap` gives.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        self.overlap = Overlap()

    def logits(self, images: Float[Tensor, "batch channels height width"]) -> Tensor:
        """One piece for each image, whatever its size."""
        return (
            segment(self.network, images, tile=None) if getattr(self.network, "valid", False) else self.network(images)
        )

    def forward(self, batch: Batch, objective: str) -> tuple[Tensor, dict[str, Any]]:
        logits = self.logits(batch["image"]).float()
        loss = F.cross_entropy(logits, batch["label"], reduction="none")
        if "weight" in batch:
            loss = loss * batch["weight"]
        return loss.mean(), {"pixel_error": (logits.detach().argmax(1) != batch["label"]).float().mean()}

    def update(self, batch: Batch) -> None:
        self.overlap.update(self.logits(batch["image"]).argmax(1), batch["label"], batch.get("instances"))

    def compute(self) -> dict[str, float]:
        return self.overlap.compute()


# Deformations (Sec. 3.1) --------------------------------------------------------------------------


def displacements(
    draws: Draws, height: int, width: int, std: float | int = 10, grid: int = 3
) -> Float[Tensor, "batch 2 {height} {width}"]:
    """Smooth random displacements (right, down) in pixels: Gaussian vectors on a `grid` x `grid` lattice whose corners
    are the image's, and bicubic interpolation between them."""
    coarse = draws.normal(2, grid, grid, std=float(std))
    return F.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=True)


def warp(
    images: Float[Tensor, "batch channels height width"],
    flow: Float[Tensor, "batch 2 height width"],
    mode: str = "bilinear",
) -> Float[Tensor, "batch channels height width"]:
    """Each pixel is what lies at its place plus its displacement; beyond the border lies the mirror image."""
    height, width = images.shape[2:]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    scale = torch.tensor((2 / max(width - 1, 1), 2 / max(height - 1, 1)))
    places = (torch.stack((x, y)) + flow).permute(0, 2, 3, 1) * scale - 1
    return F.grid_sample(images, places, mode=mode, padding_mode="reflection", align_corners=True)


def deform(
    images: Float[Tensor, "batch channels height width"],
    maps: Int64[Tensor, "batch kinds height width"],
    draws: Draws,
    std: float | int = 10,
    degrees: float | int = 180,
    shift: float | int = 0.1,
    grey: float | int = 0.1,
) -> tuple[Float[Tensor, "batch channels height width"], Int64[Tensor, "batch kinds height width"]]:
    """Section 3.1: shifts, turns, smooth deformations and grey values, drawn for each image; its maps go with it.

    Args:
        maps: classes, numbers of cells: they keep whole values.
        std: deviation of the displacements, in pixels; 0 leaves the deformation out.
        degrees: largest turn to either side.
        shift: largest shift along each axis, in sides.
        grey: largest change of brightness, and of contrast, in parts.
    """
    height, width = images.shape[2:]
    turn, right, down, light, contrast = (2 * draws.uniform(5) - 1).unbind(1)
    flow = displacements(draws, height, width, std) if std else images.new_zeros(len(images), 2, height, width)
    angle = (turn * math.radians(degrees))[:, None, None]
    y, x = torch.meshgrid(torch.arange(height) - (height - 1) / 2, torch.arange(width) - (width - 1) / 2, indexing="ij")
    turned = torch.stack((angle.cos() * x - angle.sin() * y - x, angle.sin() * x + angle.cos() * y - y), 1)
    moved = torch.stack((right * shift * width, down * shift * height), 1)
    flow = flow + turned + moved[:, :, None, None]
    images = warp(images, flow)
    images = (
        (images - 0.5) * (1 + grey * contrast[:, None, None, None]) + 0.5 + grey * light[:, None, None, None]
    ).clamp(0, 1)
    return images, warp(maps.float(), flow, "nearest").round().long()
