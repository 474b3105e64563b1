"""Random numbers that belong to samples.

Row i of every draw is a function of (seed, epoch, index i) and of the draws before it, whatever
else is in the batch: so the number of workers, of processes and the batch size change nothing.
A counter-based generator (SplitMix64's finaliser, Steele et al. 2014, applied to key + counter)
makes that one vectorised expression a draw.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser: a bijection of 64-bit words whose output bits all depend on all input bits."""
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def _key(*parts: np.ndarray | int) -> np.ndarray:
    key = np.zeros(1, dtype=np.uint64)  # an array also for one key: scalars would be another type
    with np.errstate(over="ignore"):
        for part in parts:
            key = _mix(key + _GOLDEN + np.asarray(part, dtype=np.int64).astype(np.uint64))
    return key


class Draws:
    """Random rows for the samples `indices` of `epoch` under `seed`.

    A set whose samples are batches made anew in every epoch asks for `seed` and `epoch` themselves.
    """

    def __init__(self, seed: int, epoch: int, indices: Sequence[int] | np.ndarray):
        self.seed, self.epoch = seed, epoch
        self.keys = _key(seed, epoch, np.asarray(indices, dtype=np.int64))
        self.counter = 0

    def __len__(self) -> int:
        return len(self.keys)

    def take(self, rows: slice | Sequence[int] | np.ndarray | Tensor) -> "Draws":
        """Independent draws for some of the rows, from where this one stands."""
        part = Draws.__new__(Draws)
        part.seed, part.epoch, part.keys, part.counter = self.seed, self.epoch, self.keys[rows], self.counter
        return part

    def _words(self, count: int) -> np.ndarray:
        counters = np.arange(self.counter + 1, self.counter + 1 + count, dtype=np.uint64)
        self.counter += count
        with np.errstate(over="ignore"):
            return _mix(self.keys[:, None] + counters[None, :] * _GOLDEN)

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Float32 [batch, *shape], uniform on [low, high)."""
        words = self._words(math.prod(shape))
        unit = (words >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)
        values = unit * np.float32(high - low) + np.float32(low)
        # Where float32 is coarse, the sum may round up to `high` itself.
        values = np.minimum(values, np.nextafter(np.float32(high), np.float32(low)))
        return torch.from_numpy(values).view(len(self), *shape)

    def normal(self, *shape: int, std: float = 1.0) -> Tensor:
        """Float32 [batch, *shape], Gaussian with mean 0 (Box-Muller)."""
        count = math.prod(shape)
        unit = (self._words(2 * count) >> np.uint64(11)).astype(np.float64) * 2.0**-53
        radius = np.sqrt(-2.0 * np.log1p(-unit[:, :count]))
        values = std * radius * np.cos(2.0 * math.pi * unit[:, count:])
        return torch.from_numpy(values.astype(np.float32)).view(len(self), *shape)

    def integers(self, high: int, *shape: int) -> Tensor:
        """Int64 [batch, *shape], uniform on 0 .. high-1."""
        words = self._words(math.prod(shape)) >> np.uint64(11)
        values = np.minimum((words.astype(np.float64) * (2.0**-53 * high)).astype(np.int64), high - 1)
        return torch.from_numpy(values).view(len(self), *shape)


def permutation(seed: int, epoch: int, size: int) -> np.ndarray:
    """The order of `size` samples in `epoch`: a function of its arguments alone."""
    return np.argsort(_key(seed, epoch, np.arange(size, dtype=np.int64) + (1 << 40)), kind="stable")


def generator(seed: int, *parts: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator whose stream is a function of `seed` and `parts`."""
    return torch.Generator(device=device).manual_seed(int(_key(seed, *parts)[0]) >> 1)
