"""Small real data that installed packages carry: nothing is downloaded.

And `text`, the user's own documents, which need no more than these.
"""

import sysconfig
import tokenize
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from jingdu.data.augment import random_affine
from jingdu.data.base import Batch, Tensors
from jingdu.data.draws import Draws, permutation
from jingdu.data.images import to_channels
from jingdu.data.shipped import verify_shipped
from jingdu.data.split import held_out, split_names
from jingdu.errors import BadInput, Missing, UsageError, need_extra, unknown

__all__ = [
    "Crops", "Documents", "MovedDigits", "affine_digits", "digits", "faces", "photos", "pydoc_topics", "stdlib", "text",
]  # fmt: skip

Split = Literal["train", "test"]


# Images ---------------------------------------------------------------------------------------


def _stratified(labels: np.ndarray, split: str) -> np.ndarray:
    """The rows of one split, in their order: a quarter of each class, by a fixed shuffle, is for testing."""
    order = permutation(0, 0, len(labels))
    by_class = [order[labels[order] == label] for label in np.unique(labels)]
    test = np.concatenate([rows[: round(len(rows) / 4)] for rows in by_class])
    return np.sort(test if split == "test" else np.setdiff1d(order, test))


def _sized(images: Float[Tensor, "batch channels height width"], size: int, channels: Literal[1, 3]) -> Tensor:
    if not isinstance(size, int) or size < 1:
        raise UsageError(f"size is a whole number of pixels from 1 on, not {size!r}")
    if size != images.shape[-1]:
        images = F.interpolate(images, size=(size, size), mode="bilinear", antialias=True)
    return to_channels(images, channels).contiguous()


def digits(
    split: Split, size: int = 8, flat: bool = False, channels: Literal[1, 3] = 1, count: int | None = None
) -> Tensors:
    """scikit-learn's 1,797 handwritten digits: `image` [channels, size, size] in [0, 1] and `label`.

    A quarter of each class is the test split. Source: E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten
    Digits", UCI Machine Learning Repository, 1998 (the test part, 8x8 pixels of 17 greys).

    Args:
        split: train (1,347 digits) or test (450).
        size: side in pixels; other than 8 is resized bilinearly.
        flat: `features` [64] instead of `image`, for methods that know no pictures.
        channels: 1, or 3 equal ones.
        count: training digits, the first ones, mixed as they come; None has all of them.

    Raises UsageError for a count of more than there are, or of none.
    """
    from sklearn.datasets import load_digits

    verify_shipped("scikit-learn", "sklearn/datasets/data/digits.csv.gz", "sklearn/datasets/descr/digits.rst")
    bunch = load_digits()
    labels = bunch.target.astype(np.int64)
    rows = _stratified(labels, split)
    if count is not None and not 1 <= count <= 1347:
        raise UsageError(f"digits(count={count!r}): there are 1,347 training digits")
    rows = rows[:count] if split == "train" else rows
    images = torch.from_numpy(bunch.images[rows].astype(np.float32) / 16)[:, None]
    images = _sized(images, size, 1 if flat else channels)
    content = {"features": images.flatten(1)} if flat else {"image": images}
    return Tensors({**content, "label": torch.from_numpy(labels[rows])}, classes=[str(digit) for digit in range(10)])


class MovedDigits:
    """Digits under random affine maps: `fixed` ones are functions of the index alone, others of (seed, epoch, index)."""

    def __init__(self, source: Tensors, size: int, copies: int, channels: Literal[1, 3], fixed: bool):
        self.source, self.size, self.copies, self.channels, self.fixed = source, size, copies, channels, fixed
        self.classes = source.classes

    def __len__(self) -> int:
        return self.copies * len(self.source)

    def batch(self, indices: np.ndarray, draws: Draws) -> Batch:
        draws = Draws(0, 0, indices) if self.fixed else draws
        batch = self.source.batch(np.asarray(indices) % len(self.source), draws)
        moved = random_affine(batch["image"], draws, degrees=30, scale=(0.5, 0.9), shear=0.3, shift=0.2, size=self.size)
        return {**batch, "image": to_channels(moved, self.channels)}


def affine_digits(split: Split, size: int = 20, copies: int = 4, channels: Literal[1, 3] = 1) -> MovedDigits:
    """`digits`, each turned by up to 30 degrees, sheared, moved, and between a half and nine tenths of the picture wide.

    Harder than digits that stand straight and in the middle, and as many different ones as training may ask for: they
    are new in every epoch. Test digits are fixed.

    Args:
        split: train (1,347 digits) or test (450).
        size: side of the pictures in pixels.
        copies: how often each digit is in the test split, moved differently.
        channels: 1, or 3 equal ones.
    """
    if not isinstance(size, int) or not isinstance(copies, int) or min(size, copies) < 1:
        raise UsageError(f"affine_digits(size={size!r}, copies={copies!r}): both are whole numbers from 1 on")
    return MovedDigits(digits(split), size, copies if split == "test" else 1, channels, split == "test")


def faces(split: Split, size: int = 25, channels: Literal[1, 3] = 1) -> Tensors:
    """scikit-image's 200 grey patches of 25x25 pixels: 100 faces, 100 others; `image` in [0, 1] and `label`.

    A quarter of each class is the test split. Source: a subset of Labeled Faces in the Wild (Huang et al. 2007),
    skimage.data.lfw_subset.

    Args:
        split: train (150 patches) or test (50).
        size: side in pixels; other than 25 is resized bilinearly.
        channels: 1, or 3 equal ones.
    """
    patches = _shipped("lfw_subset", "lfw_subset.npy")
    labels = np.arange(200) // 100  # the file holds the faces first
    rows = _stratified(labels, split)
    images = torch.from_numpy(patches[rows].astype(np.float32))[:, None]
    return Tensors(
        {"image": _sized(images, size, channels), "label": torch.from_numpy(labels[rows])}, classes=("face", "other")
    )


def _shipped(function: str, *files: str) -> Any:
    """What `skimage.data.FUNCTION()` gives, only where the files that it reads lie in the installed package.

    Other functions of that module, and these where a distribution left a file out, would download it.
    """
    try:
        import skimage.data
    except ImportError:
        raise need_extra("scikit-image", "laptop", "the embedded photographs and faces") from None
    for file in files:
        path = Path(skimage.__file__).parent / "data" / file
        if not path.is_file():
            raise Missing(
                f"{path}: scikit-image {skimage.__version__} is installed without it; install its wheel from PyPI"
            )
    verify_shipped("scikit-image", *(f"skimage/data/{file}" for file in files))
    return getattr(skimage.data, function)()


PHOTOS: dict[str, tuple[str, ...]] = {
    "train": ("astronaut", "china", "coffee", "motorcycle", "rocket"),
    "test": ("chelsea", "flower"),
}
"""The colour photographs of everyday things that scikit-image and scikit-learn carry."""


@cache
def _photo(name: str) -> UInt8[Tensor, "3 height width"]:
    if name in ("china", "flower"):
        from sklearn.datasets import load_sample_image

        # Both pictures are read, and what is said of them.
        images = "sklearn/datasets/images/"
        verify_shipped("scikit-learn", *(f"{images}{file}" for file in ("china.jpg", "flower.jpg", "README.txt")))
        array = load_sample_image(f"{name}.jpg")
    elif name == "motorcycle":
        array = _shipped(
            "stereo_motorcycle", *(f"motorcycle_{part}" for part in ("left.png", "right.png", "disp.npz"))
        )[0]
    else:
        array = _shipped(name, f"{name}.jpg" if name == "rocket" else f"{name}.png")
    return torch.from_numpy(np.ascontiguousarray(array[..., :3].transpose(2, 0, 1)))


class Crops:
    """Square windows of photographs, at a random place and scale, resized to one size.

    `fixed` windows are a function of the index alone; others of (seed, epoch, index).
    """

    classes = None

    def __init__(self, names: Sequence[str], size: int, count: int, scale: tuple[int | float, int | float], channels: Literal[1, 3],
                 fixed: bool):  # fmt: skip
        self.names, self.size, self.count, self.scale = tuple(names), size, count, scale
        self.channels, self.fixed = channels, fixed

    def __len__(self) -> int:
        return self.count

    def batch(self, indices: np.ndarray, draws: Draws) -> Batch:
        draws = Draws(0, 0, indices) if self.fixed else draws
        which = draws.integers(len(self.names)).tolist()
        images = []
        for choice, (zoom, down, across) in zip(which, draws.uniform(3).tolist(), strict=True):
            photo = _photo(self.names[choice])
            height, width = photo.shape[1:]
            low, high = self.scale
            side = min(round(self.size * low * (high / low) ** zoom), height, width)
            top, left = int(down * (height - side + 1)), int(across * (width - side + 1))
            window = photo[None, :, top : top + side, left : left + side].float().div_(255)
            if side != self.size:
                window = F.interpolate(window, size=(self.size, self.size), mode="bilinear", antialias=True)
            images.append(window[0])
        return {
            "image": to_channels(torch.stack(images).clamp_(0, 1), self.channels),
            "name": [self.names[choice] for choice in which],
        }


def photos(
    split: Split,
    size: int | None = 64,
    count: int = 2000,
    test_count: int = 250,
    scale: tuple[int | float, int | float] = (1, 4),
    channels: Literal[1, 3] = 3,
) -> Crops | Tensors:
    """The photographs that scikit-image and scikit-learn carry: random windows `image` of them, and their `name`.

    Training windows differ in every epoch; test windows are fixed, and come from photographs of their own.

    Args:
        split: train (5 photographs) or test (2).
        size: side of the windows in pixels; None gives the whole photographs, a list of different sizes.
        count: windows of a training epoch.
        test_count: test windows.
        scale: a window is this many times `size` wide, between the two at random, and made smaller; (1, 1)
            keeps the photographs' own pixels.
        channels: 3, or 1 for grey.
    """
    names = PHOTOS[split]
    if size is None:
        images = [to_channels(_photo(name).float().div_(255), channels) for name in names]
        return Tensors({"image": images, "name": list(names)})
    smallest = min(min(_photo(name).shape[1:]) for name in names)
    if not isinstance(size, int) or not 1 <= size <= smallest:
        raise UsageError(f"photos(size={size!r}): the smallest photograph allows 1 to {smallest} pixels")
    if len(scale) != 2 or not 1 <= scale[0] <= scale[1]:
        raise UsageError(f"photos(scale={scale!r}): two factors are needed, 1 or more, the smaller first")
    return Crops(names, size, count if split == "train" else test_count, tuple(scale), channels, split == "test")


# Text -----------------------------------------------------------------------------------------


class Documents:
    """Text files, one document a sample, read when they are asked for: `text` and `name`, two lists."""

    classes = None

    def __init__(self, root: Path, names: Sequence[str], read: Callable[[Path], str]):
        self.root, self.names, self.read = root, list(names), read

    def __len__(self) -> int:
        return len(self.names)

    def batch(self, indices: np.ndarray, draws: Draws) -> Batch:
        names = [self.names[int(index)] for index in indices]
        return {"text": [self.read(self.root / name) for name in names], "name": names}


def _read_text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise BadInput(path, f"not UTF-8 text ({error.reason} at byte {error.start})") from None
    except OSError as error:
        raise BadInput(path, error.strerror or "cannot be read") from None


def _read_source(path: Path) -> str:
    """Python's source in the encoding that it declares (PEP 263)."""
    try:
        with tokenize.open(path) as file:
            return file.read()
    except (OSError, SyntaxError, UnicodeDecodeError) as error:
        raise BadInput(path, f"not readable as Python source ({error})") from None


_NOT_LIBRARY = {"site-packages", "dist-packages", "__pycache__", "encodings", "pydoc_data", "lib2to3"}
_TESTS = {"test", "tests", "idle_test"}


@cache
def _modules(root: Path, part: str) -> tuple[str, ...]:
    """Readable modules of the standard library that are not empty, by their sorted names."""
    found = []
    for path in root.rglob("*.py"):
        name = path.relative_to(root)
        if _NOT_LIBRARY & set(name.parts) or bool(_TESTS & set(name.parts)) != (part == "tests"):
            continue
        # The build's own settings name the machine that built it, and are no code.
        if name.name.startswith("_sysconfigdata"):
            continue
        try:
            if _read_source(path).strip():
                found.append(name.as_posix())
        except BadInput:
            continue
    return tuple(sorted(found))


def stdlib(split: Split, part: Literal["library", "tests"] = "library", share: float = 0.1) -> Documents:
    """The source of Python's own standard library, one module a sample: `text` and `name`.

    About 9 MB of code; which modules there are depends on the version of Python. A share of them, by their names, is
    the test split: a larger one holds all of a smaller one.

    Args:
        split: train or test.
        part: the library itself, or its tests where the installation has them.
        share: how much is held out for testing.

    Raises Missing where Python is installed without its sources, UsageError for a share that is none.
    """
    if not 0 < share < 1:
        raise UsageError(f"stdlib(share={share!r}): a share is above 0 and below 1")
    if part not in ("library", "tests"):
        raise unknown("part of stdlib", part, ("library", "tests"))
    root = Path(sysconfig.get_paths()["stdlib"])
    names = _modules(root, part)
    if not names:
        raise Missing(f"{root}: this Python has no sources of its {part} there; install one from python.org or conda")
    return Documents(root, [name for name in names if held_out(name, share) == (split == "test")], _read_source)


def pydoc_topics(split: Split) -> Tensors:
    """English prose: the topics of Python's reference that `help()` carries, one a sample: `text` and `name`.

    Less than half a megabyte, from the pydoc_data package. A tenth, by their names, is the test split.
    """
    from pydoc_data.topics import topics

    names = [name for name in sorted(topics) if held_out(name) == (split == "test")]
    return Tensors({"text": [topics[name] for name in names], "name": names})


def text(split: Split, path: str, share: float | int = 0.1) -> Documents | Tensors:
    """The user's own text: a UTF-8 file, or a folder of .txt files, one document a sample: `text` and `name`.

    A folder that holds train/ and test/ is divided so; of another, a tenth of the files, by their names, is the
    test split; of a single file, its last tenth, from the next line on.

    Args:
        split: train or test.
        path: the file or folder.
        share: how much is held out for testing; 1 is all of it, and then there is no train split.

    Raises BadInput for what is not there, is not UTF-8, or holds too little; UsageError for a share that is none.
    """
    if not 0 < share <= 1 or (share == 1 and split == "train"):
        raise UsageError(f"text(share={share!r}): a share is above 0 and, where there is training, below 1")
    root = Path(path).expanduser()
    if root.is_file():
        content = _read_text(root)
        if share == 1:
            return Tensors({"text": [content], "name": [root.name]})
        cut = content.find("\n", int(len(content) * (1 - share))) + 1
        parts = {"train": content[:cut], "test": content[cut:]}
        if not all(part.strip() for part in parts.values()):
            raise BadInput(root, "too few lines to hold some out for testing; give a folder with train/ and test/")
        return Tensors({"text": [parts[split]], "name": [root.name]})
    if not root.is_dir():
        raise BadInput(root, "no such file or folder of .txt files")
    divided = (root / "train").is_dir() and (root / "test").is_dir()
    base = root / split if divided else root
    names = sorted(file.relative_to(base).as_posix() for file in base.rglob("*.txt"))
    if not divided and share < 1:
        names = split_names(names, split, share)
    if not names:
        raise BadInput(base, f"too few .txt files for the {split} split")
    return Documents(base, names, _read_text)
