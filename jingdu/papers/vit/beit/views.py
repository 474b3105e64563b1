"""What pre-training sees of an image (Section 2.1, 2.4): a view for the network, one for the tokenizer, a mask."""

from dataclasses import replace
from random import Random
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from jingdu.data import open_data
from jingdu.data.augment import flip
from jingdu.data.base import Batch
from jingdu.data.draws import Draws
from jingdu.data.preprocess import Preprocess
from jingdu.errors import UsageError
from jingdu.papers.cnn.googlenet import scale_and_aspect
from jingdu.papers.vit.deit import colour_jitter

from .masking import Masking, hide

__all__ = ["Few", "Views", "few", "map_pixels", "second_view", "two_views", "unmap_pixels", "views"]

RIM = 0.1
"""What DALL-E's tokenizer keeps free at both ends of the range of pixels, so that its logits stay finite."""


def map_pixels(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Pixels from [0, 1] to [0.1, 0.9], as DALL-E's tokenizer takes them (dall_e/utils.py)."""
    return (1 - 2 * RIM) * x + RIM


def unmap_pixels(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The way back, cut to [0, 1]."""
    return ((x - RIM) / (1 - 2 * RIM)).clamp(0, 1)


def second_view(
    images: Float[Tensor, "batch channels height width"], size: int
) -> Float[Tensor, "batch channels size size"]:
    """Images in [0, 1] at another size by Lanczos' filter, as 8-bit pictures."""
    if tuple(images.shape[2:]) == (size, size):
        return images
    bytes_ = (images * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    pictures = (Image.fromarray(array.squeeze(2) if array.shape[2] == 1 else array) for array in bytes_)
    small = np.stack([np.asarray(picture.resize((size, size), Image.Resampling.LANCZOS)) for picture in pictures])
    return torch.from_numpy(small).view(*small.shape[:3], -1).permute(0, 3, 1, 2).float().div(255)


def two_views(
    image: Image.Image, draws: Draws, preprocess: Preprocess, second: int
) -> Float[Tensor, "channels pixels 1"]:
    """One random crop of an image at two sizes: the pixels of `preprocess.size`, then those of `second` by Lanczos.

    The crop is GoogLeNet's, 8 to 100 % of the image; `draws` has one row (transforms.py).
    """
    first = scale_and_aspect(image, draws.take([0]), preprocess)
    other = scale_and_aspect(image, draws, replace(preprocess, size=second, interpolation="lanczos"))
    return torch.cat((first.flatten(1), other.flatten(1)), 1)[..., None]


class Views:
    """Images twice, and which patches of them are hidden: `image`, `view`, `mask`.

    Mirroring and colours change both views alike.
    """

    classes = None

    def __init__(
        self, source: Any, size: int, second: int, patch: int, hidden: int | None, masking: str | None, mirror: bool,
        jitter: float | int,
    ):  # fmt: skip
        self.source, self.size, self.second, self.grid = source, size, second, (size // patch,) * 2
        self.hidden, self.masking, self.mirror, self.jitter = hidden, masking, mirror, jitter

    def __len__(self) -> int:
        return len(self.source)

    def batch(self, indices: np.ndarray, draws: Draws) -> Batch:
        found = self.source.batch(indices, draws)
        image, rows = found["image"], found.get("rows")
        draws = draws if rows is None else draws.take(rows)
        if image.shape[3] == 1:  # packed by two_views
            image, view = image[..., 0].split((self.size**2, self.second**2), 2)
            image, view = image.unflatten(2, (self.size,) * 2), view.unflatten(2, (self.second,) * 2)
        else:
            view = second_view(image, self.second)
        everything = slice(None)
        if self.mirror:
            image, view = flip(image, draws.take(everything)), flip(view, draws)
        if self.jitter:
            image = colour_jitter(image, draws.take(everything), *(self.jitter,) * 3)
            view = colour_jitter(view, draws, *(self.jitter,) * 3)
        batch = {"image": image, "view": map_pixels(view)}
        if self.masking is not None:
            seeds = draws.integers(1 << 53).view(-1).tolist()
            batch["mask"] = torch.stack([hide(self.grid, Random(seed), self.hidden, self.masking) for seed in seeds])
        return batch if rows is None else {**batch, "rows": rows}


def views(
    split: Literal["train", "test"],
    of: str,
    size: int = 224,
    second: int | None = None,
    patch: int = 16,
    hidden: int | None = None,
    masking: Masking | str | None = "blocks",
    mirror: bool = True,
    jitter: float | int = 0.0,
    channels: Literal[1, 3] = 3,
    interpolation: Literal["bilinear", "bicubic"] = "bicubic",
) -> Views:
    """Images without labels for pre-training.

    Args:
        split: train or test. What is held out is neither cropped at random nor mirrored nor coloured.
        of: the data: a folder of images, of which random crops are taken, or an embedded set of that size.
        size: side of the network's view in pixels.
        second: side of the tokenizer's view; by default half of `size`.
        patch: side of the network's patches.
        hidden: patches to hide; by default 75 of 196.
        masking: blocks, or scattered; None has no masks, as a tokenizer needs none.
        mirror: mirror half of the images.
        jitter: brightness, contrast and colour are changed by up to this share.
        channels: of the images.
        interpolation: to the network's size.

    Raises UsageError for a size that the patches do not divide, and for data of other sizes.
    """
    if size % patch:
        raise UsageError(f"images of {size} pixels do not divide into patches of {patch}")
    second = size // 2 if second is None else second
    preprocess = Preprocess(size=size, resize=size, channels=channels, interpolation=interpolation)
    training = split == "train"

    def crop(image: Image.Image, draws: Draws, preprocess: Preprocess) -> Tensor:
        return two_views(image, draws, preprocess, second)

    embedded = not (of.startswith("hf:") or of == "imagenet" or any(mark in of for mark in "/\\"))
    source = open_data(of, split, preprocess, None if embedded else crop)
    return Views(source, size, second, patch, hidden, masking, mirror and training, jitter if training else 0.0)


class Few:
    """The first samples of a set, and no others."""

    def __init__(self, source: Any, count: int):
        self.source, self.count, self.classes = source, count, source.classes

    def __len__(self) -> int:
        return self.count

    def batch(self, indices: np.ndarray, draws: Draws) -> Batch:
        return self.source.batch(indices, draws)


def few(split: Literal["train", "test"], of: str, count: int, channels: Literal[1, 3] = 3) -> Any:
    """A set to learn a task from few labels: its first `count` training samples, and all that is held out.

    Args:
        split: train or test.
        of: the data, with their size: "affine_digits(size=20)".
        count: samples to train on.
        channels: of the images.

    Raises UsageError for more than there are.
    """
    source = open_data(of, split, Preprocess(channels=channels))
    if split == "train" and not 0 < count <= len(source):
        raise UsageError(f"{count} samples are to be trained on: {of} has {len(source)}")
    return Few(source, count) if split == "train" else source
