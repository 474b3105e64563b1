"""How a picture becomes a network's input. Belongs to the weights and is saved with them."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Preprocess:
    """Resize the shorter side to `resize`, cut the centre `size` x `size`, scale to [0, 1], normalise.

    `size` None keeps the image as it is (embedded data come at their own size).
    """

    size: int | None = None
    """Side of the square that the network sees, in pixels."""
    resize: int | None = None
    """Shorter side before the centre crop, in pixels; None: size / 0.875 rounded."""
    mean: tuple[float, ...] = (0.0,)
    """Subtracted from each channel of an image in [0, 1]."""
    std: tuple[float, ...] = (1.0,)
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bilinear"
    channels: Literal[1, 3] = 3
    """1: the file is read as grey; 3: as RGB."""

    @property
    def shorter_side(self) -> int | None:
        return self.resize or (None if self.size is None else round(self.size / 0.875))


IMAGENET = Preprocess(size=224, resize=256, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
"""The evaluation transform of torchvision's IMAGENET1K_V1 weights (torchvision/transforms/_presets.py)."""
