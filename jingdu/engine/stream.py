"""The endless stream of training batches: batch n is a function of (seed, n) alone.

Epoch e visits the samples in an order that (seed, e) fixes; an incomplete last batch is left to
the next epoch's shuffle. The position is one number, so a resume in the middle of an epoch is exact.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from jingdu.data.base import Batch, Data
from jingdu.data.draws import Draws, permutation
from jingdu.data.images import normalise
from jingdu.data.preprocess import Preprocess
from jingdu.engine.contracts import Rollout
from jingdu.errors import UsageError

Augment = Callable[[torch.Tensor, Draws], torch.Tensor]


class Stream:
    """Training batches in order, prepared ahead by threads where asked.

    `shuffle` False visits the samples in their own order and keeps the last, smaller batch (`fit`).
    `part` is which samples of a batch are prepared here; other processes have the others. With `repeats` a sample stands
    in its batch so many times, in as many parts of it: copy c of sample i is sample i + c * len(data) to its draws.
    """

    def __init__(
        self, data: Data, batch_size: int, seed: int, augment: tuple[Augment, ...], preprocess: Preprocess,
        workers: int = 0, shuffle: bool = True, part: slice = slice(None), repeats: int = 1,
    ):  # fmt: skip
        if shuffle and len(data) < batch_size:
            raise UsageError(f"batch_size {batch_size} is larger than the data ({len(data)} samples)")
        self.data, self.batch_size, self.seed, self.shuffle = data, batch_size, seed, shuffle
        self.augment, self.preprocess = augment, preprocess
        self.batches_per_epoch = len(data) // batch_size if shuffle else -(-len(data) // batch_size)
        self.position = 0
        self.ahead: dict[int, Future[Batch]] = {}
        self.pool = ThreadPoolExecutor(workers) if workers else None
        self.workers, self.part, self.repeats = workers, part, repeats
        self._order: tuple[int, np.ndarray] | None = None

    def indices(self, number: int) -> tuple[int, np.ndarray]:
        """Epoch of batch `number`, and the samples and copies of our part of it."""
        epoch, place = divmod(number, self.batches_per_epoch)
        if self._order is None or self._order[0] != epoch:
            order = permutation(self.seed, epoch, len(self.data)) if self.shuffle else np.arange(len(self.data))
            self._order = (epoch, order)
        if self.repeats == 1:
            return epoch, self._order[1][place * self.batch_size : (place + 1) * self.batch_size][self.part]
        places = np.arange(place * self.batch_size, (place + 1) * self.batch_size)
        copies = places % self.repeats
        apart = np.argsort(copies, kind="stable")  # all first copies, then all second ones: no two in one part
        return epoch, (self._order[1][places // self.repeats] + copies * len(self.data))[apart][self.part]

    def _prepare(self, epoch: int, indices: np.ndarray) -> Batch:
        draws = Draws(self.seed, epoch, indices)
        batch = self.data.batch(indices % len(self.data), draws)
        if isinstance(batch.get("image"), torch.Tensor):
            images = batch["image"]
            kept = batch.get("rows")  # a data set that skips corrupt files says which rows it kept
            draws = draws if kept is None else draws.take(kept)
            for function in self.augment:
                images = function(images, draws)
            batch["image"] = normalise(images, self.preprocess)
        return batch

    def next(self, system: Any = None) -> Batch:
        number, self.position = self.position, self.position + 1
        if self.pool is None:
            return self._prepare(*self.indices(number))
        for n in range(number, number + self.workers + 1):
            if n not in self.ahead:
                self.ahead[n] = self.pool.submit(self._prepare, *self.indices(n))
        return self.ahead.pop(number).result()

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position = state["position"]

    def close(self) -> None:
        if self.pool is not None:
            self.pool.shutdown(wait=True, cancel_futures=True)


class Play:
    """The same interface over a Rollout, whose state carries position and randomness."""

    def __init__(self, rollout: Rollout):
        self.rollout = rollout
        self.batches_per_epoch = rollout.steps_per_epoch

    def next(self, system: Any) -> Batch:
        with torch.no_grad():
            return self.rollout.play(system)

    def state_dict(self) -> dict[str, Any]:
        return self.rollout.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rollout.load_state_dict(state)

    def close(self) -> None:
        pass


def evaluation_batches(data: Data, batch_size: int, preprocess: Preprocess) -> Iterator[Batch]:
    """All samples once, in order, without augmentation."""
    for start in range(0, len(data), batch_size):
        indices = np.arange(start, min(start + batch_size, len(data)))
        batch = data.batch(indices, Draws(0, 0, indices))
        if isinstance(batch.get("image"), torch.Tensor):
            batch["image"] = normalise(batch["image"], preprocess)
        yield batch
