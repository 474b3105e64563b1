"""RoI pooling whose bins move (Sec. 2.2; v2 Sec. 3.2), and what else v2 gives its detectors (Sec. 3.3)."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from jingdu.errors import UsageError

from .convolution import bilinear_corners


def deform_roi_pool(
    features: Float[Tensor, "batch channels height width"],
    rois: Float[Tensor, "rois 5"],
    offset: Float[Tensor, "rois twice_classes size size"] | None = None,
    mask: Float[Tensor, "rois 1 size size"] | None = None,
    *,
    size: int = 7,
    groups: int = 1,
    scale: float = 1.0,
    gamma: float = 0.1,
    samples: int = 4,
) -> Float[Tensor, "rois outputs size size"]:
    """The mean of each bin of each region, the bins moved (Eq. 5), and weighed (v2 Eq. 2).

    Args:
        features: `groups`^2 maps for each output channel: of one output, the maps of its bins in reading order (position
            sensitive, R-FCN's); 1 is ordinary RoI pooling.
        rois: number in the batch, left, top, right, bottom in pixels of the image, the last pixel within.
        offset: how far each bin moves across, then down, in units of `gamma` times the region's size. Of several
            classes, each has its own, for its share of the outputs.
        mask: what each bin counts.
        size: bins along a side.
        groups: bins with maps of their own along a side.
        scale: pixels of the features in one of the image.
        gamma: see `offset`; 0.1 in Section 2.2.
        samples: places read in a bin along a side.

    Regions are rounded to pixels and places beyond the outer edge of the map do not count, as in the authors' operator
    (deformable_psroi_pooling.cu). Raises UsageError where channels, groups and classes do not divide.
    """
    _, channels, height, width = features.shape
    classes = 1 if offset is None else offset.shape[1] // 2
    if channels % (groups**2 * classes) or (offset is not None and offset.shape[1] % 2):
        raise UsageError(
            f"{channels} channels do not divide into {groups} x {groups} maps of {classes} classes"
            if offset is None or offset.shape[1] % 2 == 0
            else f"offsets have {offset.shape[1]} channels: two for each class are needed"
        )
    exact = torch.promote_types(features.dtype, torch.float32)
    corners = rois[:, 1:].to(exact).round()
    start = corners[:, :2] * scale - 0.5
    extent = ((corners[:, 2:] + 1) * scale - 0.5 - start).clamp(min=0.1)

    def places(axis: int) -> Tensor:
        """[rois, classes, size, size, samples]: along one axis (0 across, 1 down)."""
        shift = extent.new_zeros(len(rois), 1, size, size)
        if offset is not None:
            shift = gamma * offset.to(exact).unflatten(1, (classes, 2))[:, :, axis] * extent[:, axis].view(-1, 1, 1, 1)
        number = torch.arange(size, device=rois.device).view((-1, 1) if axis else (-1,))
        inside = torch.arange(samples, device=rois.device) / samples
        part = (extent[:, axis] / size).view(-1, 1, 1, 1, 1)
        return start[:, axis].view(-1, 1, 1, 1, 1) + shift[..., None] + part * (number[..., None] + inside)

    x, y = torch.broadcast_tensors(places(0)[..., None, :], places(1)[..., :, None])
    valid = (x >= -0.5) & (x <= width - 0.5) & (y >= -0.5) & (y <= height - 0.5)
    pixels, weights = bilinear_corners(y.clamp(0, height - 1), x.clamp(0, width - 1), height, width)
    weights = weights * (valid / valid.sum((-1, -2), keepdim=True).clamp(min=1))[..., None].to(exact)
    if mask is not None:
        weights = weights * mask.to(exact)[..., None, None, None]
    # A row holds the output channels of one class that a bin reads at one pixel.
    table = features.unflatten(1, (classes, -1, groups**2)).permute(0, 4, 5, 1, 3, 2)
    cell = torch.arange(size, device=rois.device) * groups // size
    which = (torch.arange(classes, device=rois.device).view(-1, 1, 1) * groups**2 + cell[:, None] * groups + cell)[
        ..., None, None, None
    ]
    image = rois[:, 0].long().view(-1, 1, 1, 1, 1, 1, 1) * (height * width)
    index = ((image + pixels) * (classes * groups**2) + which).flatten(0, 3).flatten(1)
    found = F.embedding_bag(
        index,
        table.reshape(-1, table.shape[-1]),
        mode="sum",
        per_sample_weights=weights.reshape(index.shape).to(features.dtype),
    )
    return found.view(len(rois), classes, size, size, -1).permute(0, 1, 4, 2, 3).flatten(1, 2)


class DeformRoIPool(nn.Module):
    """Figure 3: plain RoI pooling gives dense layers a first look, by which they move the bins; v2 weighs them too.

    Args:
        channels: of the features.
        size: bins along a side.
        hidden: units of the dense layers.
        modulated: whether bins are weighed (v2).
        scale: pixels of the features in one of the image.
        gamma: the offsets' unit, in sides of the region.
    """

    def __init__(
        self, channels: int, size: int = 7, hidden: int = 1024, modulated: bool = False, scale: float = 1.0, gamma: float = 0.1
    ):  # fmt: skip
        super().__init__()
        self.size, self.scale, self.gamma, self.modulated = size, scale, gamma, modulated
        self.branch = nn.Sequential(
            nn.Linear(channels * size**2, hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, hidden),
            nn.ReLU(inplace=True),
        )
        self.offset = nn.Linear(hidden, (3 if modulated else 2) * size**2)
        nn.init.zeros_(self.offset.weight)
        nn.init.zeros_(self.offset.bias)

    def forward(
        self, features: Float[Tensor, "batch channels height width"], rois: Float[Tensor, "rois 5"]
    ) -> Float[Tensor, "rois channels size size"]:
        look = deform_roi_pool(features, rois, size=self.size, scale=self.scale)
        found = self.offset(self.branch(look.flatten(1))).view(len(rois), -1, self.size, self.size)
        mask = found[:, 2:].sigmoid() if self.modulated else None
        return deform_roi_pool(
            features, rois, found[:, :2], mask, size=self.size, scale=self.scale, gamma=self.gamma
        )  # fmt: skip


class DeformPSRoIPool(nn.Module):
    """Figure 4: position-sensitive maps of scores, and others of offsets, which each class has of its own.

    Args:
        inputs: channels of the features.
        outputs: channels of the result, for R-FCN the classes; each moves its bins itself.
        size: bins along a side.
        scale: pixels of the features in one of the image.
        gamma: the offsets' unit, in sides of the region.
    """

    def __init__(self, inputs: int, outputs: int, size: int = 7, scale: float = 1.0, gamma: float = 0.1):
        super().__init__()
        self.size, self.scale, self.gamma = size, scale, gamma
        self.score = nn.Conv2d(inputs, outputs * size**2, 1)
        self.offset = nn.Conv2d(inputs, 2 * outputs * size**2, 1)
        nn.init.zeros_(self.offset.weight)
        nn.init.zeros_(self.offset.bias)

    def forward(
        self, features: Float[Tensor, "batch inputs height width"], rois: Float[Tensor, "rois 5"]
    ) -> Float[Tensor, "rois outputs size size"]:
        same: dict[str, Any] = {"size": self.size, "groups": self.size, "scale": self.scale}
        offset = deform_roi_pool(self.offset(features), rois, **same)
        return deform_roi_pool(self.score(features), rois, offset, gamma=self.gamma, **same)


# Feature mimicking (v2 Sec. 3.3) -------------------------------------------------------------------------


def region_crops(
    images: Float[Tensor, "batch channels height width"], rois: Float[Tensor, "rois 5"], size: int = 224
) -> Float[Tensor, "rois channels size size"]:
    """What the R-CNN branch sees: each region of its image (as in `deform_roi_pool`), resized to `size` x `size` pixels."""
    height, width = images.shape[2:]
    left, top, right, bottom = rois[:, 1:].unbind(1)
    unit = (torch.arange(size, device=images.device) + 0.5) / size
    x = left[:, None] + (right - left + 1)[:, None] * unit
    y = top[:, None] + (bottom - top + 1)[:, None] * unit
    grid = torch.stack(torch.broadcast_tensors(2 * x[:, None, :] / width - 1, 2 * y[:, :, None] / height - 1), -1)
    return F.grid_sample(images[rois[:, 0].long()], grid.to(images), padding_mode="border", align_corners=False)


def mimicking_loss(
    features: Float[Tensor, "rois width"], teacher: Float[Tensor, "rois width"]
) -> Float[Tensor, ""]:  # fmt: skip
    """v2 Equation 3: the sum over regions of one less the cosine between a detector's features and an R-CNN's.

    Both are the outputs of the last dense layer, and both learn by it. The paper adds a tenth of it to the loss.
    """
    return (1 - F.cosine_similarity(features, teacher, dim=1)).sum()
