"""The data contract: a finite set of samples, each a function of (seed, epoch, index)."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from jingdu.data.draws import Draws

Batch = dict[str, Any]


@runtime_checkable
class Data(Protocol):
    """A finite set. `batch` depends on its arguments alone, never on earlier calls."""

    classes: tuple[str, ...] | None
    """Names of the labels, where there are labels."""

    def __len__(self) -> int: ...

    def batch(self, indices: np.ndarray, draws: Draws) -> Batch:
        """Samples `indices` (int64): named tensors or lists whose first axis is the sample.

        Images are float32 [batch, channels, height, width] in [0, 1]; labels int64 [batch].
        """
        ...


class Tensors:
    """Data that fit in memory: named tensors (or lists) with one row a sample."""

    def __init__(self, fields: Mapping[str, Tensor | Sequence[Any]], classes: Sequence[str] | None = None):
        self.fields = dict(fields)
        self.classes = tuple(classes) if classes is not None else None
        sizes = {name: len(values) for name, values in self.fields.items()}
        if len(set(sizes.values())) != 1:
            raise ValueError(f"fields differ in length: {sizes}")

    def __len__(self) -> int:
        return len(next(iter(self.fields.values())))

    def batch(self, indices: np.ndarray, draws: Draws) -> Batch:
        rows = torch.from_numpy(np.ascontiguousarray(indices))
        return {
            name: values[rows] if isinstance(values, Tensor) else [values[i] for i in indices]
            for name, values in self.fields.items()
        }
