"""Image files, safely: what is decoded, how it becomes a tensor, and folders of them."""

import hashlib
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from jingdu import limits
from jingdu.data.base import Batch
from jingdu.data.draws import Draws
from jingdu.data.preprocess import Preprocess
from jingdu.errors import BadInput, Refused

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}
_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


def decode(path: str | Path, channels: int = 3) -> Image.Image:
    """An image file as grey (1) or RGB (3), upright by its EXIF. Raises BadInput for anything else."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own cap is stricter
            with Image.open(path, formats=limits.IMAGE_FORMATS) as image:
                width, height = image.size
                if width * height > limits.MAX_PIXELS:
                    raise BadInput(path, f"{width} x {height} pixels, more than {limits.MAX_PIXELS:,}")
                image.load()
                upright = ImageOps.exif_transpose(image)
                return upright.convert("L" if channels == 1 else "RGB")
    except FileNotFoundError:
        raise BadInput(path, "no such file") from None
    except UnidentifiedImageError:
        raise BadInput(path, f"not a {', '.join(limits.IMAGE_FORMATS)} image") from None
    except BadInput:
        raise
    # Pillow's decoders raise many types on damaged bytes; all of them mean one thing here.
    except Exception as error:
        raise BadInput(path, f"damaged image ({error})") from None


def to_tensor(image: Image.Image) -> Tensor:
    """Float32 [channels, height, width] in [0, 1]."""
    array = np.array(image, dtype=np.float32) / np.float32(255)
    return torch.from_numpy(array[None] if array.ndim == 2 else array.transpose(2, 0, 1).copy())


def resize_shorter(image: Image.Image, side: int, interpolation: str = "bilinear") -> Image.Image:
    """Scale so that the shorter side is `side`; the longer one is truncated (torchvision's Resize(int))."""
    width, height = image.size
    if width <= height:
        size = (side, int(side * height / width))
    else:
        size = (int(side * width / height), side)
    return image if size == image.size else image.resize(size, _RESAMPLING[interpolation])


def prepare(image: Image.Image, preprocess: Preprocess) -> Tensor:
    """Resize and centre crop: the evaluation view, [channels, size, size] in [0, 1], not yet normalised."""
    if preprocess.size is None:
        return to_tensor(image)
    image = resize_shorter(image, preprocess.shorter_side or preprocess.size, preprocess.interpolation)
    width, height = image.size
    size = preprocess.size
    left, top = round((width - size) / 2), round((height - size) / 2)
    return to_tensor(image.crop((left, top, left + size, top + size)))  # black beyond a smaller image


def normalise(images: Tensor, preprocess: Preprocess) -> Tensor:
    """Subtract the mean and divide by the deviation of each channel of [..., channels, height, width]."""
    mean = images.new_tensor(preprocess.mean).view(-1, 1, 1)
    std = images.new_tensor(preprocess.std).view(-1, 1, 1)
    return (images - mean) / std


def load_image(path: str | Path, preprocess: Preprocess) -> Tensor:
    """A file as the network sees it: [channels, height, width], normalised."""
    return normalise(prepare(decode(path, preprocess.channels), preprocess), preprocess)


def expand_inputs(words: Iterable[str | Path]) -> list[Path]:
    """Files as they are named, and the images of folders, sorted. Raises BadInput for what is absent."""
    found: list[Path] = []
    for word in words:
        path = Path(word)
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES)
            if not inside:
                raise BadInput(path, f"no image files ({', '.join(sorted(SUFFIXES))}) in this folder")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise BadInput(path, "no such file or folder")
    return found


class ImageFolder:
    """Images by class: ROOT/train/CLASS/* and ROOT/val|test/CLASS/*, or ROOT/CLASS/*.

    Without a split of its own, a tenth of the files, by their names, is the test split.
    Classes are the sorted folder names.
    """

    def __init__(
        self,
        root: Path,
        split: Literal["train", "test"],
        preprocess: Preprocess,
        crop: Callable[..., Tensor] | None = None,
        on_corrupt: Literal["stop", "skip"] = "stop",
    ):
        self.preprocess, self.on_corrupt = preprocess, on_corrupt
        self.crop = crop if split == "train" else None
        names = ("train",) if split == "train" else ("val", "test", "validation")
        divided = (root / "train").is_dir()
        base = next((root / n for n in names if (root / n).is_dir()), None) if divided else root
        if base is None:
            raise Refused(f"{root}: has train/ but none of val/, test/: make one, or put the classes directly inside")
        folders = sorted(p for p in base.iterdir() if p.is_dir() and not p.name.startswith("."))
        if len(folders) < 2:
            raise Refused(f"{base}: {len(folders)} class folder(s); two or more are needed, one a class")
        self.classes: tuple[str, ...] | None = tuple(p.name for p in folders)
        self.files: list[tuple[Path, int]] = []
        for label, folder in enumerate(folders):
            inside = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
            if not inside:
                raise Refused(f"{folder}: no image files ({', '.join(sorted(SUFFIXES))})")
            self.files += [(p, label) for p in inside if divided or self._test(p, root) == (split == "test")]
        if not self.files:
            raise Refused(f"{root}: no images fall into the {split} split; make {root}/train and {root}/val")
        self.skipped: set[Path] = set()
        self.pool = ThreadPoolExecutor(2)  # Pillow decodes outside the interpreter lock

    @staticmethod
    def _test(path: Path, root: Path) -> bool:
        return hashlib.sha256(path.relative_to(root).as_posix().encode()).digest()[0] < 26

    def __len__(self) -> int:
        return len(self.files)

    def _one(self, index: int, draws: Draws) -> Tensor | BadInput:
        path = self.files[index][0]
        try:
            image = decode(path, self.preprocess.channels)
            return prepare(image, self.preprocess) if self.crop is None else self.crop(image, draws, self.preprocess)
        except BadInput as error:
            return error

    def batch(self, indices: np.ndarray, draws: Draws) -> Batch:
        rows = [draws.take([i]) for i in range(len(indices))]
        results: list[Any] = list(self.pool.map(self._one, map(int, indices), rows))
        for result in results:
            if isinstance(result, BadInput):
                if self.on_corrupt == "stop":
                    raise result
                if result.path not in self.skipped:
                    self.skipped.add(result.path)
                    warnings.warn(f"left out: {result}", stacklevel=2)
        kept = [i for i, result in enumerate(results) if isinstance(result, Tensor)]
        if not kept:
            raise Refused(f"every image of a batch is damaged, the last: {results[-1]}")
        shapes = {tuple(results[i].shape) for i in kept}
        if len(shapes) > 1:
            raise Refused(f"images differ in size ({sorted(shapes)[:3]}): set --preprocess.size")
        labels = torch.tensor([self.files[int(indices[i])][1] for i in kept])
        batch: Batch = {"image": torch.stack([results[i] for i in kept]), "label": labels}
        if len(kept) < len(indices):
            batch["rows"] = torch.tensor(kept)
        return batch
