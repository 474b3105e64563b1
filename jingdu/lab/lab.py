"""What a claim's function is given: it trains, and it keeps what the function wants to show."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch

from jingdu.engine import Recipe, Stage
from jingdu.errors import UsageError
from jingdu.lab.cache import Trained, trained
from jingdu.verbs import change

Curve = tuple[Sequence[float], Sequence[float]]
"""xs and ys of one seed."""


class Lab:
    """One seed of a claim.

    Args:
        smoke: only try the code: `budget` gives the tiny numbers.
        progress: is told, in a line of text, of each part that was trained.
    """

    def __init__(self, smoke: bool = False, progress: Callable[[str], Any] | None = None):
        self.smoke = smoke
        self.progress = progress or (lambda text: None)
        self.curves: dict[str, Curve] = {}
        self.axes: dict[str, tuple[str, str]] = {}
        self.images: dict[str, Any] = {}
        self.parts: list[Trained] = []

    def budget(self, full: Any, smoke: Any) -> Any:
        """`full` in a real run, `smoke` in one that only tries the code."""
        return smoke if self.smoke else full

    def train(self, recipe: Stage | Recipe, seed: int, **changes: Any) -> Trained:
        """The result of training a stage or recipe under `seed`, on the CPU, or of having done so before.

        `changes` are fields of every stage (`steps` replaces `epochs` and the other way round).
        Raises UsageError for an unknown field, and what `jingdu.engine.train` raises.
        """
        stages = recipe.stages if isinstance(recipe, Recipe) else (recipe,)
        stages = tuple(change(stage, **{**changes, "seed": seed}) for stage in stages)
        part = trained(Recipe(stages, minutes=0.0, expect={}))
        self.parts.append(part)
        networks = ", ".join(stages[-1].networks.values()) or stages[-1].system
        self.progress(
            f"  {networks}, seed {seed}: {'from the cache' if part.cached else f'trained in {part.seconds:.1f} s'}"
        )
        return part

    def curve(self, name: str, xs: Iterable[Any], ys: Iterable[Any], x: str = "", y: str = "") -> None:
        """Keep a curve of this seed.

        Args:
            name: of the curve; the same for every seed.
            xs: numbers along the axis: a list, an array, a tensor.
            ys: one value for each.
            x: the axis' label.
            y: the values' label, with their unit.

        Raises UsageError for a name that this seed has used, and for lists of different length.
        """
        if name in self.curves:
            raise UsageError(f"curve {name!r} was drawn already for this seed")
        points = [float(v) for v in xs], [float(v) for v in ys]
        if len(points[0]) != len(points[1]):
            raise UsageError(f"curve {name!r} has {len(points[0])} xs and {len(points[1])} ys")
        self.curves[name] = points
        self.axes[name] = (x, y)

    def image(self, name: str, pixels: Any) -> None:
        """Keep an image: [height, width], [1, height, width] or [3, height, width], array or tensor.

        Values are in [0, 1]; those outside are clipped. Raises UsageError for another shape, and for a name that this
        seed has used.
        """
        if name in self.images:
            raise UsageError(f"image {name!r} was kept already for this seed")
        array = pixels.detach().cpu().float().numpy() if isinstance(pixels, torch.Tensor) else np.asarray(pixels)
        array = np.nan_to_num(np.array(array, dtype=np.float32)).clip(0, 1)
        if array.ndim == 3 and array.shape[0] == 1:
            array = array[0]
        if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[0] != 3):
            raise UsageError(
                f"image {name!r} has shape {list(array.shape)}: give [height, width] or [3, height, width]"
            )
        self.images[name] = array.transpose(1, 2, 0) if array.ndim == 3 else array
