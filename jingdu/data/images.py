"""Image files, safely: what is decoded, how it becomes a tensor, and folders of them."""

import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from io import BufferedIOBase
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from jingdu import limits
from jingdu.data.base import Batch
from jingdu.data.draws import Draws
from jingdu.data.preprocess import Preprocess
from jingdu.data.split import split_names
from jingdu.errors import BadInput, Refused, UsageError

__all__ = [
    "Crop", "ImageFolder", "Pictures", "decode", "expand_inputs", "load_image", "normalise", "page", "prepare",
    "resize_shorter", "to_channels", "to_tensor", "write_picture",
]  # fmt: skip

Crop = Callable[[Image.Image, Draws, Preprocess], Tensor]
"""A training crop: one decoded image and its own row of draws -> [channels, height, width] in [0, 1]."""

# Pillow only warns up to twice its own limit; a bomb is an error for us, from the header on. One filter for the
# process, since changing filters around each call is not safe in threads.
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)
# A picture whose EXIF is damaged is sound: what its EXIF would say is left out.
warnings.filterwarnings("ignore", message="Corrupt EXIF data", category=UserWarning)

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what makes the picture upright (CIPA DC-008, 4.6.5.1, tag 274)."""


# One image ------------------------------------------------------------------------------------


def decode(
    source: str | Path | BufferedIOBase, channels: Literal[1, 3] = 3, name: str | Path | None = None
) -> Image.Image:
    """An image file as grey (1) or RGB (3), upright by its EXIF.

    Transparent parts become white. The first frame of an animation is taken. `name` says in errors where an open
    file came from.

    Raises BadInput for whatever is not a sound image of an allowed format and size.
    """
    path = name if name is not None else source if isinstance(source, str | Path) else "image"
    try:
        with Image.open(source, formats=limits.IMAGE_FORMATS) as image:
            width, height = image.size
            if width * height > limits.MAX_PIXELS:
                raise BadInput(path, f"{width} x {height} pixels, more than {limits.MAX_PIXELS:,}")
            image.load()
            turn = _UPRIGHT.get(_orientation(image))
            image = _flat(image, "L" if channels == 1 else "RGB")
        return image if turn is None else image.transpose(turn)
    except FileNotFoundError:
        raise BadInput(path, "no such file") from None
    except IsADirectoryError:
        raise BadInput(path, "a folder, not an image file") from None
    except PermissionError:
        raise BadInput(path, "no permission to read it") from None
    except UnidentifiedImageError:
        raise BadInput(path, f"not a sound {', '.join(limits.IMAGE_FORMATS)} image") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise BadInput(path, f"more than {limits.MAX_PIXELS:,} pixels") from None
    except BadInput:
        raise
    # Pillow's decoders raise many types on damaged bytes; all of them mean one thing here.
    except Exception as error:
        raise BadInput(path, f"damaged image ({error or type(error).__name__})") from None


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(_ORIENTATION, 1)
    # Damaged EXIF raises or warns in many ways, and the picture itself is sound.
    except Exception:
        return 1


def _flat(image: Image.Image, mode: str) -> Image.Image:
    """`image` in `mode`, without transparency."""
    if image.mode.startswith("I"):
        # 16 bits of grey: Pillow's own conversion would cut all values above 255.
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert(mode)
    if image.has_transparency_data:
        if image.mode not in ("RGBA", "LA"):
            image = image.convert("RGBA")
        under = Image.new(mode, image.size, "white")
        under.paste(image.convert(mode), mask=image.getchannel("A"))
        return under
    return image.convert(mode)


def to_tensor(image: Image.Image) -> Float[Tensor, "channels height width"]:
    """An 8-bit image as float32 in [0, 1]."""
    array = torch.from_numpy(np.array(image))
    array = array[None] if array.ndim == 2 else array.permute(2, 0, 1)
    return array.contiguous().to(torch.float32).div_(255)


def resize_shorter(image: Image.Image, side: int, interpolation: str = "bilinear") -> Image.Image:
    """Scale so that the shorter side is `side` pixels; the longer one is cut to whole pixels.

    Raises Refused where a long thin image would grow beyond `limits.MAX_PIXELS`.
    """
    width, height = image.size
    size = (side, int(side * height / width)) if width <= height else (int(side * width / height), side)
    if size == image.size:
        return image
    if size[0] * size[1] > limits.MAX_PIXELS:
        raise Refused(
            f"{width} x {height} pixels become {size[0]} x {size[1]} when the shorter side is {side}: "
            f"more than {limits.MAX_PIXELS:,}"
        )
    return image.resize(size, _RESAMPLING[interpolation])


def prepare(image: Image.Image, preprocess: Preprocess) -> Float[Tensor, "channels height width"]:
    """The evaluation view of `image`: resized, centre cropped, in [0, 1], not yet normalised.

    The same pixels as torchvision's Resize(int), CenterCrop and ToTensor, rounding and black borders included
    (torchvision.transforms, 0.28).

    Raises Refused for an image that is too long and thin.
    """
    if preprocess.size is None:
        return to_tensor(image)
    size = preprocess.size
    image = resize_shorter(image, preprocess.shorter_side or size, preprocess.interpolation)
    # Python rounds halves to even; a border is wider on the right and below.
    left, top = (round((side - size) / 2) if side >= size else -((size - side) // 2) for side in image.size)
    return to_tensor(image.crop((left, top, left + size, top + size)))


def normalise(
    images: Float[Tensor, "*batch channels height width"], preprocess: Preprocess
) -> Float[Tensor, "*batch channels height width"]:
    """Subtract `preprocess.mean` and divide by `preprocess.std`; one number stands for all channels.

    Raises UsageError where there are neither one nor as many numbers as channels.
    """
    channels = images.shape[-3]
    for name, values in (("mean", preprocess.mean), ("std", preprocess.std)):
        if len(values) not in (1, channels):
            raise UsageError(f"preprocess.{name} has {len(values)} numbers, but the images have {channels} channels")
    if not any(preprocess.mean) and all(value == 1 for value in preprocess.std):
        return images
    mean = images.new_tensor(preprocess.mean).view(-1, 1, 1)
    std = images.new_tensor(preprocess.std).view(-1, 1, 1)
    return (images - mean) / std


def to_channels(
    images: Float[Tensor, "*batch channels height width"], channels: Literal[1, 3]
) -> Float[Tensor, "*batch channels_out height width"]:
    """Grey as RGB or RGB as grey (0.299, 0.587, 0.114: ITU-R BT.601, as Pillow's mode L)."""
    if images.shape[-3] == channels:
        return images
    if channels == 3:
        return images.repeat_interleave(3, dim=-3)
    weights = images.new_tensor((0.299, 0.587, 0.114)).view(3, 1, 1)
    return (images * weights).sum(-3, keepdim=True)


def load_image(path: str | Path, preprocess: Preprocess) -> Float[Tensor, "channels height width"]:
    """A file as the network sees it, normalised. Raises BadInput with its path."""
    return normalise(_view(path, path, preprocess, None, None), preprocess)


def _view(
    source: str | Path | BufferedIOBase,
    name: str | Path,
    preprocess: Preprocess,
    crop: Crop | None,
    draws: Draws | None,
) -> Tensor:
    """One file decoded, and cropped or prepared. Whatever is wrong with it is told with its name."""
    image = decode(source, preprocess.channels, name)
    try:
        return prepare(image, preprocess) if crop is None or draws is None else crop(image, draws, preprocess)
    except BadInput:
        raise
    except Refused as error:
        raise BadInput(name, str(error)) from None


def page(rows: Sequence[Sequence[Tensor]], side: int = 192, gap: int = 4) -> Float[Tensor, "3 height width"]:
    """Rows of pictures side by side on white.

    Args:
        rows: pictures in [0, 1], [1 or 3, height, width] each. All become as large as the first.
        side: its width on the page, or a little less: a small one is enlarged a whole number of times.
        gap: pixels between them.
    """
    height, width = rows[0][0].shape[1:]
    scale = max(side // width, 1)
    lines = []
    for row in rows:
        pictures = [F.interpolate(x[None], (scale * height, scale * width))[0].expand(3, -1, -1) for x in row]
        lines.append(torch.cat([F.pad(x, (gap, 0, gap, 0), value=1.0) for x in pictures], 2))
    return F.pad(torch.cat(lines, 1), (0, gap, 0, gap), value=1.0)


def write_picture(picture: Float[Tensor, "3 height width"], out: Path) -> None:
    """A picture in [0, 1] as a file of the kind that its ending names. Raises UsageError where it cannot be written."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((picture * 255).round().byte().permute(1, 2, 0).cpu().numpy()).save(out)
    except (OSError, ValueError) as error:  # ValueError: Pillow knows no format of that ending
        raise UsageError(f"cannot write {out} ({error}): choose another --out") from None


def expand_inputs(words: Iterable[str | Path]) -> list[Path]:
    """Files as they are named, and the images in folders, sorted. Raises BadInput for what is absent."""
    found: list[Path] = []
    for word in words:
        path = Path(word).expanduser()
        if path.is_dir():
            inside = _images_in(path)
            if not inside:
                raise BadInput(path, f"no image files ({', '.join(limits.IMAGE_SUFFIXES)}) in this folder")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise BadInput(path, "no such file or folder")
    return found


def _images_in(folder: Path) -> list[Path]:
    """Image files anywhere below `folder`, sorted; hidden ones are left out."""
    found = []
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(place, name) for name in files if _is_image(name)]
    return sorted(found)


def _is_image(name: str) -> bool:
    return name.lower().endswith(limits.IMAGE_SUFFIXES) and not name.startswith(".")


# Many images ----------------------------------------------------------------------------------


@cache
def _pool() -> ThreadPoolExecutor:
    # Threads are enough: Pillow decodes outside the interpreter's lock.
    return ThreadPoolExecutor(min(limits.DECODE_THREADS, os.cpu_count() or 1), thread_name_prefix="decode")


class Pictures:
    """Decodes batches of image files in parallel: what image folders and hub data have in common.

    `skipped` holds the names of the damaged files met so far under on_corrupt="skip".
    """

    def __init__(self, preprocess: Preprocess, crop: Crop | None, on_corrupt: Literal["stop", "skip"]):
        self.preprocess, self.crop, self.on_corrupt = preprocess, crop, on_corrupt
        self.skipped: set[str] = set()

    def load(
        self, sources: Sequence[str | Path | BufferedIOBase], names: Sequence[str | Path], draws: Draws
    ) -> tuple[Float[Tensor, "batch channels height width"], list[int]]:
        """The images, and which of the sources they are: damaged ones are missing under on_corrupt="skip".

        Raises BadInput for a damaged image under "stop", Refused where none is left or sizes differ.
        """

        def one(row: int) -> Tensor | BadInput:
            own = draws.take([row])
            # Far from the numbers that the augmentation of the batch goes on to use: a crop that draws more than
            # its neighbours must neither share them nor move them.
            own.counter += 1 << 40
            try:
                return _view(sources[row], names[row], self.preprocess, self.crop, own)
            except BadInput as error:
                return error

        results = list(_pool().map(one, range(len(sources))))
        for result in results:
            if isinstance(result, BadInput):
                if self.on_corrupt == "stop":
                    raise result
                if str(result.path) not in self.skipped:
                    self.skipped.add(str(result.path))
                    warnings.warn(f"left out: {result}", stacklevel=3)
        kept = [row for row, result in enumerate(results) if isinstance(result, Tensor)]
        if not kept:
            raise Refused(f"every image of a batch is damaged, the first: {results[0]}")
        images = [results[row] for row in kept]
        if odd := next((row for row in kept if results[row].shape != images[0].shape), None):
            raise Refused(
                f"images differ in size: {names[kept[0]]} gives {tuple(images[0].shape)}, {names[odd]} "
                f"{tuple(results[odd].shape)}: set --preprocess.size"
            )
        return torch.stack(images), kept


LAYOUT = (
    "FOLDER/train/CLASS/*.jpg and FOLDER/val/CLASS/*.jpg, or FOLDER/CLASS/*.jpg, "
    "or without classes FOLDER/*.jpg (JPEG, PNG, WebP)"
)
_HELD_OUT = ("val", "validation", "valid", "test")


class ImageFolder(Pictures):
    """Images by class: ROOT/train/CLASS/* and ROOT/val/CLASS/* (or test), ROOT/CLASS/*, or unlabelled ROOT/*.

    Classes are the sorted folder names of the training split. Where nothing is held out, about a tenth of each
    class is, by a hash of the file's name within ROOT: at least one of two images or more.
    """

    def __init__(
        self,
        root: str | Path,
        split: Literal["train", "test"],
        preprocess: Preprocess,
        crop: Crop | None = None,
        on_corrupt: Literal["stop", "skip"] = "stop",
    ):
        """Raises Refused for a folder that is laid out otherwise, without opening any image."""
        super().__init__(preprocess, crop if split == "train" else None, on_corrupt)
        root = Path(root).expanduser()
        if not root.is_dir():
            what = "a file, not a folder" if root.exists() else "no such folder"
            raise Refused(f"{root}: {what}. Images go in {LAYOUT}; give the folder with --data")
        training, testing = _bases(root)
        if split == "train" and training == testing:
            raise Refused(f"{root}: has {testing.name} but no train. Images go in {LAYOUT}")
        self.classes = _classes(training)
        groups = _by_class(testing if split == "test" and testing else training, self.classes)
        if testing is None:
            groups = [_part(training, paths, split) for paths in groups]
        self.files = [(path, label) for label, paths in enumerate(groups) for path in paths]
        if not self.files:
            raise Refused(f"{root}: too few images to hold some out for the {split} split. Images go in {LAYOUT}")

    def __len__(self) -> int:
        return len(self.files)

    def batch(self, indices: np.ndarray, draws: Draws) -> Batch:
        """`image`, `label` where there are classes, and under on_corrupt="skip" `rows`: which of `indices` are left."""
        chosen = [self.files[int(index)] for index in indices]
        paths = [path for path, _ in chosen]
        images, kept = self.load(paths, paths, draws)
        batch: Batch = {"image": images}
        if self.classes is not None:
            batch["label"] = torch.tensor([chosen[row][1] for row in kept])
        if self.on_corrupt == "skip":
            batch["rows"] = torch.tensor(kept)
        return batch


def _bases(root: Path) -> tuple[Path, Path | None]:
    """Where training and held-out images lie; None where the folder does not divide them."""
    held_out = next((root / name for name in _HELD_OUT if (root / name).is_dir()), None)
    if (root / "train").is_dir():
        return root / "train", held_out
    if held_out is not None and all(folder.name in _HELD_OUT for folder in _folders(root)):
        return held_out, held_out
    return root, None


def _folders(base: Path) -> list[Path]:
    return sorted(path for path in base.iterdir() if path.is_dir() and not path.name.startswith("."))


def _classes(training: Path) -> tuple[str, ...] | None:
    names = tuple(folder.name for folder in _folders(training))
    if len(names) == 1:
        raise Refused(
            f"{training}: one class only ({names[0]}); two or more are needed, or no folder at all for images "
            f"without classes. Images go in {LAYOUT}"
        )
    return names or None


def _by_class(base: Path, classes: tuple[str, ...] | None) -> list[list[Path]]:
    """The images of each class below `base`, or all of them in one group."""
    if classes is None:
        if found := _images_in(base):
            return [found]
        raise Refused(f"{base}: no image files and no class folders. Images go in {LAYOUT}")
    folders = {folder.name: folder for folder in _folders(base)}
    if not folders:
        raise Refused(f"{base}: no class folders, but the training images have classes. Images go in {LAYOUT}")
    if strange := sorted(set(folders) - set(classes)):
        raise Refused(f"{folders[strange[0]]}: no training images have this class")
    groups = {name: _images_in(folder) for name, folder in folders.items()}
    if empty := [name for name, found in groups.items() if not found]:
        raise Refused(f"{folders[empty[0]]}: no image files ({', '.join(limits.IMAGE_SUFFIXES)}) in this class folder")
    return [groups.get(name, []) for name in classes]


def _part(base: Path, paths: list[Path], split: str) -> list[Path]:
    names = {path.relative_to(base).as_posix(): path for path in paths}
    return [names[name] for name in split_names(list(names), split)]
