"""Image files for tests: sound ones of every kind, and damaged ones."""

import struct
import zlib
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image


def picture(width: int, height: int, seed: int = 0, mode: str = "RGB") -> Image.Image:
    """Smooth noise: compresses well and is different everywhere."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (5, 7, len(Image.new(mode, (1, 1)).getbands())), dtype=np.uint8)
    image = Image.fromarray(small[..., 0] if small.shape[-1] == 1 else small, mode="L" if mode == "1" else mode)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def save(path: Path, image: Image.Image | None = None, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (image or picture(19, 13)).save(path, **options)
    return path


def encoded(kind: str, image: Image.Image | None = None, **options: object) -> bytes:
    buffer = BytesIO()
    (image or picture(41, 29)).save(buffer, kind, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds almost nothing: a bomb, for whoever believes it."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    content = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", content) + chunk(b"IEND", b"")


def folder(root: Path, layout: dict[str, int], sizes: Sequence[tuple[int, int]] = ((19, 13),)) -> Path:
    """Files 0.png, 1.png, ... in each folder of `layout`, each with other content."""
    seed = 0
    for place, count in layout.items():
        (root / place).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            save(root / place / f"{number}.png", picture(*sizes[seed % len(sizes)], seed=seed))
            seed += 1
    return root
