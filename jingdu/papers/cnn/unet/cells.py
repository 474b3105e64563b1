"""Images to learn from: cells that touch, drawn here, and the user's own images with their masks."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from jingdu.data.base import Batch
from jingdu.data.draws import Draws
from jingdu.data.images import decode, expand_inputs, to_tensor
from jingdu.data.split import split_names
from jingdu.errors import BadInput, Refused, UsageError
from jingdu.papers.cnn.unet.training import deform, weight_map

__all__ = ["Cells", "Pairs", "cells", "draw_cells", "pairs"]

_CANDIDATES = 16
_TEST = 1 << 32
"""Test images have the numbers from here on."""


def _place(candidates: Float[Tensor, "batch cells candidates 2"], radius: Float[Tensor, "batch cells"]) -> Tensor:
    """Centres, one cell after the other: the candidate nearest to the others that does not cover them, so that it
    touches; where all would cover, the farthest."""
    rows = torch.arange(len(radius))
    centres = [candidates[:, 0, 0]]
    for cell in range(1, radius.shape[1]):
        reach = radius[:, cell, None] + radius[:, :cell]
        distance = (candidates[:, cell, :, None] - torch.stack(centres, 1)[:, None]).norm(dim=-1)
        apart = (distance / reach[:, None]).amin(-1)  # [batch, candidates]
        score = torch.where(apart >= 0.78, 10 - apart, apart)
        centres.append(candidates[rows, cell, score.argmax(1)])
    return torch.stack(centres, 1)


def _clouds(draws: Draws, size: int, low: float, high: float, lattice: int = 5) -> Float[Tensor, "batch size size"]:
    """Smooth grey, between `low` and `high` at the points of a lattice."""
    coarse = draws.uniform(1, lattice, lattice, low=low, high=high)
    return F.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=True)[:, 0]


def draw_cells(
    draws: Draws, size: int, count: int = 9
) -> tuple[Float[Tensor, "batch 1 {size} {size}"], Int64[Tensor, "batch {size} {size}"]]:
    """Grey images of `count` cells in [0, 1], and the number of the cell at each pixel (0: none).

    Cells are wavy ellipses pressed against each other, with a gap of about a pixel where they meet. Inside and outside
    are equally grey under the same clouds; a cell shows by its dark rim, clear in one place and faint in another. So a
    pixel's class is a matter of what surrounds it.
    """
    places = (torch.arange(size) + 0.5) / size
    y, x = torch.meshgrid(places, places, indexing="ij")
    scale = math.sqrt(9 / count)
    radius = scale * draws.uniform(count, low=0.10, high=0.15)
    centre = _place(draws.uniform(count, _CANDIDATES, 2, low=0.08, high=0.92), radius)
    stretch, angle = draws.uniform(count, low=0.85, high=1.18), draws.uniform(count, high=math.pi)
    waves, phase = draws.uniform(count, 3, high=0.06), draws.uniform(count, 3, high=2 * math.pi)

    def per_cell(values: Tensor) -> Float[Tensor, "batch cells 1 1"]:
        return values[..., None, None]

    dx, dy = x - per_cell(centre[..., 0]), y - per_cell(centre[..., 1])
    cos, sin = per_cell(angle.cos()), per_cell(angle.sin())
    u, v = (cos * dx + sin * dy) * per_cell(stretch), (cos * dy - sin * dx) / per_cell(stretch)
    around, outline = torch.atan2(v, u), per_cell(radius)
    for number in range(3):
        outline = outline * (
            1 + per_cell(waves[..., number]) * ((number + 2) * around + per_cell(phase[..., number])).cos()
        )
    # 1 on a cell's outline and less inside: a pixel is of the cell in which it lies deepest.
    depth = torch.hypot(u, v) / outline
    (nearest, second), owner = depth.topk(2, 1, largest=False).values.unbind(1), depth.argmin(1)
    pixels = radius.mean(1)[:, None, None] * size
    rim, seam = (nearest - 1) * pixels, (second - nearest) * pixels  # in pixels, about
    inside = (nearest < 1) & (seam > 1.3)
    instances = torch.where(inside, owner + 1, 0)

    image = _clouds(draws, size, 0.38, 0.72)
    tint = draws.normal(count, std=0.02)
    image = image + torch.where(inside, tint.gather(1, owner.flatten(1)).view_as(image), 0)
    line = torch.exp(-((rim / 1.1) ** 2))
    meeting = torch.where(nearest < 1, torch.exp(-((seam / 1.3) ** 2)), 0)
    image = image - torch.maximum(line, meeting) * _clouds(draws, size, 0.04, 0.34)
    image = image + draws.normal(size, size, std=0.04)
    return image.clamp(0, 1)[:, None], instances


def _apart(maps: Int64[Tensor, "batch 2 height width"]) -> Int64[Tensor, "batch 2 height width"]:
    """Classes and cells with a pixel of background between cells: a deformation may have closed the gap."""
    cells = maps[:, 1]
    touches = torch.zeros_like(cells, dtype=torch.bool)
    for axis in (1, 2):
        here, there = cells.narrow(axis, 0, cells.shape[axis] - 1), cells.narrow(axis, 1, cells.shape[axis] - 1)
        touches.narrow(axis, 0, cells.shape[axis] - 1).logical_or_((here != there) & (here > 0) & (there > 0))
    return maps.masked_fill(touches[:, None], 0)


def _learn_from(
    images: Tensor, maps: Int64[Tensor, "batch 2 height width"], draws: Draws | None, elastic: float | int | None,
    w0: float | int | None, sigma: float | int,
) -> Batch:  # fmt: skip
    """A batch of images with their classes and cells; deformed where there are draws for it."""
    if draws is not None and elastic is not None:
        images, maps = deform(images, maps, draws, std=elastic)
        maps = _apart(maps)
    batch: Batch = {"image": images, "label": maps[:, 0], "instances": maps[:, 1]}
    if w0 is not None:
        batch["weight"] = torch.stack([weight_map(cells, w0, sigma) for cells in maps[:, 1]])
    return batch


class Cells:
    """Drawn cells: `image`, `label` (1: cell), `instances` and, where asked, `weight`. Which cells there are depends
    on the index alone; how they are deformed, on the epoch too."""

    classes = ("background", "cell")

    def __init__(self, first: int, count: int, size: int, cells: int, seed: int, elastic: float | int | None,
                 w0: float | int | None, sigma: float | int):  # fmt: skip
        self.first, self.count, self.size, self.cells, self.seed = first, count, size, cells, seed
        self.elastic, self.w0, self.sigma = elastic, w0, sigma
        self.drawn: dict[int, tuple[Tensor, Tensor]] = {}
        """Training images, which are few and come often."""

    def __len__(self) -> int:
        return self.count

    def _draw(self, numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
        images, instances = draw_cells(Draws(self.seed, 0, [self.first + n for n in numbers]), self.size, self.cells)
        return images, torch.stack(((instances > 0).long(), instances), 1)

    def batch(self, indices: np.ndarray, draws: Draws) -> Batch:
        numbers = [int(index) for index in indices]
        if self.first >= _TEST:
            return _learn_from(*self._draw(numbers), None, None, self.w0, self.sigma)
        if new := [number for number in numbers if number not in self.drawn]:
            self.drawn |= zip(new, zip(*self._draw(new), strict=True), strict=True)
        images, maps = (torch.stack(parts) for parts in zip(*(self.drawn[n] for n in numbers), strict=True))
        return _learn_from(images, maps, draws, self.elastic, self.w0, self.sigma)


def cells(
    split: Literal["train", "test"],
    size: int = 96,
    count: int = 30,
    test_count: int = 200,
    cells: int = 16,
    elastic: float | int | None = 3,
    w0: float | int | None = 10,
    sigma: float | int = 2,
    seed: int = 0,
) -> Cells:
    """Grey images of cells that touch.

    Args:
        split: training and test images share no number.
        size: side of the images in pixels.
        count: training images; the paper's tasks have 20 to 35.
        test_count: test images.
        cells: in each image.
        elastic: training images are turned, shifted, and deformed by this deviation in pixels; None leaves them as
            they are.
        w0: weight of the gaps in the loss; 0 leaves the balance of the classes, None equal weights.
        sigma: how far from the cells the gaps reach, in pixels.
        seed: another seed is another series of images.

    Raises UsageError for a number out of range.
    """
    for name, number, low in (
        ("size", size, 16), ("count", count, 1), ("test_count", test_count, 1), ("cells", cells, 2),
    ):  # fmt: skip
        if not isinstance(number, int) or number < low:
            raise UsageError(f"unet.cells: {name} is a whole number from {low} on, not {number!r}")
    first, number = (0, count) if split == "train" else (_TEST, test_count)
    return Cells(first, number, size, cells, seed, elastic, w0, sigma)


# The user's own images ----------------------------------------------------------------------------


class Pairs:
    """Images and their masks, files of the same name. A batch holds images of one size."""

    def __init__(self, files: Sequence[tuple[Path, Path]], classes: Sequence[str], channels: Literal[1, 3], train: bool,
                 elastic: float | int | None, w0: float | int | None, sigma: float | int):  # fmt: skip
        self.files, self.classes, self.channels, self.train = list(files), tuple(classes), channels, train
        self.elastic, self.w0, self.sigma = elastic, w0, sigma

    def __len__(self) -> int:
        return len(self.files)

    def _read(self, image: Path, mask: Path) -> tuple[Tensor, Tensor]:
        from scipy.ndimage import label

        pixels = to_tensor(decode(image, self.channels))
        values = torch.from_numpy(np.array(decode(mask, 1))).long()
        if values.shape != pixels.shape[1:]:
            raise BadInput(mask, f"{list(values.shape)} pixels, and its image has {list(pixels.shape[1:])}")
        # Two classes are often written as black and white.
        kinds = (values > 0).long() if len(self.classes) == 2 else values
        if int(kinds.max()) >= len(self.classes):
            raise BadInput(mask, f"class {int(kinds.max())}, and there are {len(self.classes)} from 0 on")
        numbers = torch.zeros_like(kinds)
        for kind in range(1, len(self.classes)):
            found, count = label((kinds == kind).numpy())
            numbers += torch.from_numpy(np.where(found > 0, found + int(numbers.max()), 0)).long() if count else 0
        return pixels, torch.stack((kinds, numbers))

    def batch(self, indices: np.ndarray, draws: Draws) -> Batch:
        read = [self._read(*self.files[int(index)]) for index in indices]
        sizes = {tuple(image.shape[1:]) for image, _ in read}
        if len(sizes) > 1:
            raise Refused(f"images of {' and '.join(map(str, sorted(sizes)))} pixels in one batch: set --batch-size 1")
        images, maps = (torch.stack(parts) for parts in zip(*read, strict=True))
        return _learn_from(images, maps, draws if self.train else None, self.elastic, self.w0, self.sigma)


def pairs(
    split: Literal["train", "test"],
    path: str,
    classes: Sequence[str] = ("background", "cell"),
    channels: Literal[1, 3] = 1,
    elastic: float | int | None = 10,
    w0: float | int | None = 10,
    sigma: float | int = 5,
) -> Pairs:
    """The user's own: PATH/images/NAME.png and PATH/masks/NAME.png, or these in PATH/train and PATH/test.

    Args:
        split: without PATH/train, about a tenth of the names is the test split.
        classes: names of the values of a mask, from 0 on; with two, all values above 0 are the second. Cells are the
            connected parts of a class other than the first.
        channels: 1 (grey) or 3.
        elastic, w0, sigma: as of `cells`.

    Raises Refused for a folder that is laid out otherwise, BadInput for a damaged file.
    """
    root = Path(path).expanduser()
    divided = (root / "train").is_dir()
    base = root / split if divided else root
    for folder in (base / "images", base / "masks"):
        if not folder.is_dir():
            raise Refused(
                f"{folder}: no such folder. Images go in {base}/images, masks of the same names in {base}/masks"
            )
    masks = {file.stem: file for file in expand_inputs([base / "masks"])}
    images = {file.stem: file for file in expand_inputs([base / "images"])}
    if lonely := sorted(set(images) - set(masks)):
        raise Refused(f"{images[lonely[0]]}: no mask of this name in {base / 'masks'}")
    names = sorted(images) if divided else split_names(sorted(images), split)
    if not names:
        raise Refused(f"{base}: too few images to hold some out; put them in {root}/train and {root}/test")
    return Pairs(
        [(images[name], masks[name]) for name in names], classes, channels, split == "train", elastic, w0, sigma
    )
