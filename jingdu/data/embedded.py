"""Small real data that installed packages carry: nothing is downloaded."""

import hashlib
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from jingdu.data.base import Batch, Tensors
from jingdu.data.draws import Draws, permutation
from jingdu.errors import BadInput, Refused, need_extra


def _held_out(name: str, share: float) -> bool:
    """Whether a document belongs to the test split: a function of its name alone."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") < share * 2**64


def digits(split: str, size: int = 8) -> Tensors:
    """scikit-learn's 1,797 handwritten digits: image [1, size, size] (grey, 8x8 upsampled), label.

    A quarter of each class is the test split.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(bunch.images.astype(np.float32) / 16)[:, None]
    if size != 8:
        images = F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)
    labels = bunch.target.astype(np.int64)
    order = permutation(0, 0, len(labels))
    test = np.concatenate([(found := order[labels[order] == c])[: round(len(found) / 4)] for c in range(10)])
    chosen = np.sort(test if split == "test" else np.setdiff1d(order, test))
    return Tensors(
        {"image": images[chosen].contiguous(), "label": torch.from_numpy(labels[chosen])},
        classes=[str(c) for c in range(10)],
    )


def faces(split: str) -> Tensors:
    """scikit-image's LFW subset: 200 grey patches [1, 25, 25], a hundred of them faces."""
    try:
        from skimage.data import lfw_subset
    except ImportError:
        raise need_extra("scikit-image", "laptop", "the data set faces") from None
    images = torch.from_numpy(lfw_subset().astype(np.float32))[:, None]
    labels = torch.arange(200) // 100  # the file holds the 100 faces first
    chosen = (torch.arange(200) % 4 == 0) == (split == "test")
    return Tensors({"image": images[chosen], "label": labels[chosen]}, classes=["face", "other"])


class _Crops:
    """Random square crops of a few photographs; without randomness in the test split, a fixed grid of them."""

    classes = None

    def __init__(self, photographs: Sequence[Tensor], size: int, count: int, seed: int):
        self.photographs, self.size, self.count, self.seed = photographs, size, count, seed

    def __len__(self) -> int:
        return self.count

    def batch(self, indices: np.ndarray, draws: Draws) -> Batch:
        # A sample's place is its index's own, in every epoch: augmentation is the recipe's matter.
        places = Draws(self.seed, 0, indices).uniform(3).tolist()
        images, names = [], []
        for index, (top, left, scale) in zip(indices, places, strict=True):
            photo = self.photographs[int(index) % len(self.photographs)]
            height, width = photo.shape[1:]
            side = int(self.size + scale * (min(height, width) - self.size))
            y, x = int(top * (height - side + 1)), int(left * (width - side + 1))
            window = photo[None, :, y : y + side, x : x + side]
            images.append(F.interpolate(window, (self.size, self.size), mode="bilinear", antialias=True)[0])
            names.append(int(index) % len(self.photographs))
        return {"image": torch.stack(images).clamp(0, 1), "photo": torch.tensor(names)}


_PHOTOS = {"train": ("astronaut", "chelsea", "coffee", "rocket", "china.jpg"), "test": ("retina", "flower.jpg")}


def photos(split: str, size: int = 64, count: int = 2000) -> _Crops:
    """Random crops [3, size, size] of the photographs that scikit-image and scikit-learn carry.

    Test crops come from photographs that are not in the training split.
    """
    try:
        from skimage import data
    except ImportError:
        raise need_extra("scikit-image", "laptop", "the data set photos") from None
    from sklearn.datasets import load_sample_image

    arrays = [load_sample_image(n) if n.endswith(".jpg") else getattr(data, n)() for n in _PHOTOS[split]]
    tensors = [torch.from_numpy(np.ascontiguousarray(a[..., :3]).astype(np.float32) / 255).permute(2, 0, 1) for a in arrays]
    smallest = min(min(t.shape[1:]) for t in tensors)
    if not 1 <= size <= smallest:
        raise Refused(f"photos(size={size}): the photographs allow 1 to {smallest}")
    return _Crops(tensors, size, count if split == "train" else max(count // 8, 1), seed=0 if split == "train" else 1)


class _Files:
    """Text files, one document a file, read when they are asked for."""

    classes = None

    def __init__(self, paths: Sequence[Path]):
        self.paths = list(paths)

    def __len__(self) -> int:
        return len(self.paths)

    def batch(self, indices: np.ndarray, draws: Draws) -> Batch:
        return {"text": [self._read(self.paths[i]) for i in indices]}

    @staticmethod
    def _read(path: Path) -> str:
        try:
            return path.read_text("utf-8")
        except UnicodeDecodeError as error:
            raise BadInput(path, f"not UTF-8 text ({error.reason} at byte {error.start})") from None
        except OSError as error:
            raise BadInput(path, error.strerror or "cannot be read") from None


def stdlib(split: str) -> _Files:
    """The source of Python's own standard library: {"text": one module a sample}, about 10 MB of code."""
    root = Path(sysconfig.get_paths()["stdlib"])
    left_out = {"site-packages", "test", "tests", "idle_test", "lib2to3", "__pycache__", "encodings"}
    found = []
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if not left_out & set(name.parts) and _held_out(name.as_posix(), 0.1) == (split == "test"):
            found.append(path)
    return _Files(found)


def pydoc_topics(split: str) -> Tensors:
    """English: the topics of Python's language reference as its `help()` carries them, one a sample."""
    from pydoc_data.topics import topics

    names = [name for name in sorted(topics) if _held_out(name, 0.1) == (split == "test")]
    return Tensors({"text": [topics[name] for name in names], "name": names})


def text(split: str, path: str, **_: Any) -> _Files:
    """The user's own text: a UTF-8 file, or a folder of .txt files, one document a file.

    A folder with train/ and test/ is split so; otherwise a tenth of the files, by their names, is
    the test split. A single file is both.
    """
    root = Path(path)
    if root.is_file():
        return _Files([root])
    if not root.is_dir():
        raise BadInput(root, "no such file or folder of .txt files")
    folder = root / split
    found = sorted((folder if folder.is_dir() else root).rglob("*.txt"))
    if not folder.is_dir():
        found = [p for p in found if _held_out(p.relative_to(root).as_posix(), 0.1) == (split == "test")]
    if not found:
        raise BadInput(root, f"no .txt files for the {split} split")
    return _Files(found)
