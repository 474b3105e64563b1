"""What an architecture scores: a child is trained for a while on some images and asked about others (Section 4.1)."""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.resources import files
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from jingdu.data.draws import Draws, permutation
from jingdu.errors import BadInput, UsageError
from jingdu.papers.cnn.resnet import pad_crop

from .space import SearchSpace


@dataclass(frozen=True)
class Examples:
    """Labelled images that are trained on, or asked about."""

    images: Float[Tensor, "count channels height width"]
    labels: Int64[Tensor, " count"]

    def take(self, rows: Any) -> "Examples":
        return Examples(self.images[rows], self.labels[rows])

    def __len__(self) -> int:
        return len(self.labels)


def split_off(examples: Examples, share: float = 0.25, seed: int = 0) -> tuple[Examples, Examples]:
    """Examples to train on and, at random, a share for validation, on which a search may look."""
    order = torch.from_numpy(permutation(seed, 0, len(examples)))
    count = round(share * len(examples))
    if not 0 < count < len(examples):
        raise UsageError(f"a share of {share} of {len(examples)} images leaves none on one side")
    return examples.take(order[count:].sort().values), examples.take(order[:count].sort().values)


@dataclass(frozen=True)
class Training:
    """How long and how a child is trained: SGD with Nesterov's momentum, the paper's rates, a cosine to zero."""

    steps: int = 60
    batch_size: int = 32
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    crop: int = 0
    """Pixels of padding from which a window of the old size is cut at random; 0 takes images as they are."""
    checks: int = 4
    """How often the child is asked about the validation images, evenly over the steps, the last time at the end."""
    last: int = 1
    """The score is the best of so many last checks; 5 in the paper, which has one an epoch."""
    median: bool = False
    """Stop a child that at a check is worse than the median of all earlier ones at the same check."""
    share: bool = False
    """A child begins with the last trained weights of the same name and shape (as ENAS does, arXiv 1802.03268)."""


@torch.no_grad()
def accuracy(network: nn.Module, examples: Examples, batch: int = 512) -> float:
    """The share of images that a network classifies rightly; leaves it in evaluation mode."""
    network.eval()
    right = 0
    for images, labels in zip(examples.images.split(batch), examples.labels.split(batch), strict=True):
        right += int((network(images).argmax(1) == labels).sum())
    return right / len(examples)


def train_network(
    network: nn.Module, train: Examples, how: Training, seed: int = 0,
    check: Callable[[int], bool] | None = None,
) -> int:  # fmt: skip
    """Train a network in place; returns the steps it took.

    `check` is called after each part of the steps with its number, and says whether to go on. Raises UsageError where
    there are fewer images than a batch has.
    """
    if len(train) < how.batch_size:
        raise UsageError(f"{len(train)} images are fewer than a batch of {how.batch_size}")
    decayed = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": how.weight_decay}, {"params": others}]
    optimizer = torch.optim.SGD(groups, lr=how.lr, momentum=how.momentum, nesterov=how.momentum > 0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, how.steps)
    stops = {round(how.steps * (i + 1) / how.checks): i for i in range(how.checks)}
    per_epoch = len(train) // how.batch_size
    for step in range(how.steps):
        epoch, place = divmod(step, per_epoch)
        if place == 0:
            order = permutation(seed, epoch, len(train))
        rows = order[place * how.batch_size : (place + 1) * how.batch_size]
        taken = torch.from_numpy(rows)
        images, labels = train.images[taken], train.labels[taken]
        images = pad_crop(images, Draws(seed, epoch, rows), padding=how.crop) if how.crop else images
        network.train()
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()
        schedule.step()
        if check is not None and step + 1 in stops and not check(stops[step + 1]):
            return step + 1
    return how.steps


class Evaluator:
    """Trains the children of a space, each network once: results are kept by canonical code.

    Args:
        space: whose codes are evaluated.
        train: images to train on.
        valid: images that give the score.
        how: budget and rates.
        seed: of weights and batches. With one seed a code always scores the same, unless weights are shared or children
            are stopped early.
    """

    def __init__(
        self, space: SearchSpace, train: Examples, valid: Examples, how: Training | None = None, seed: int = 0
    ):
        self.space, self.train, self.valid, self.how, self.seed = space, train, valid, how or Training(), seed
        self.results: dict[tuple[int, ...], float] = {}
        self.curves: list[list[float]] = []
        """Validation accuracy at every check, of each child that was trained."""
        self.steps = 0
        """Steps of training that all children took together."""
        self._shared: dict[tuple[str, tuple[int, ...]], Tensor] = {}

    def __call__(self, code: Sequence[int]) -> float:
        """The validation accuracy of a code's network."""
        key = self.space.canonical(code)
        if key not in self.results:
            self.results[key] = self.trained(key)[0]
        return self.results[key]

    def child(self, code: Sequence[int]) -> nn.Module:
        """The trained network of a code, by the full budget and from fresh weights."""
        network = self._fresh(code)
        train_network(network, self.train, self.how, self.seed)
        return network.eval()

    def _fresh(self, code: Sequence[int]) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            # A network's first weights are a function of the seed and of its own code.
            digest = hashlib.blake2b(repr((self.seed, tuple(code))).encode(), digest_size=6).digest()
            torch.default_generator.manual_seed(int.from_bytes(digest))
            return self.space.build(code)

    def trained(self, code: Sequence[int]) -> tuple[float, nn.Module]:
        """Train a code's network, whether or not it was before: its score, and the network as it was left."""
        network, curve = self._fresh(code), []
        if self.how.share:
            for name, tensor in network.state_dict().items():
                if (old := self._shared.get((name, tuple(tensor.shape)))) is not None:
                    tensor.copy_(old)

        def check(number: int) -> bool:
            curve.append(accuracy(network, self.valid))
            earlier = sorted(c[number] for c in self.curves if len(c) > number)
            return not (self.how.median and len(earlier) >= 5 and curve[-1] < earlier[len(earlier) // 2])

        self.steps += train_network(network, self.train, self.how, self.seed, check)
        self.curves.append(curve)
        if self.how.share:
            for name, tensor in network.state_dict().items():
                self._shared[name, tuple(tensor.shape)] = tensor.clone()
        return max(curve[-self.how.last :]), network

    def many(self, codes: Sequence[Sequence[int]], processes: int = 2) -> list[float]:
        """The same for many codes, in as many processes, which share neither weights nor medians.

        Raises UsageError where the budget asks for such sharing.
        """
        if self.how.share or self.how.median:
            raise UsageError("children in several processes do not see each other: share=False, median=False")
        keys = [self.space.canonical(code) for code in codes]
        todo = [key for key in dict.fromkeys(keys) if key not in self.results]
        if processes > 1 and len(todo) > 1:
            with ProcessPoolExecutor(processes, get_context(START), _begin, (self,)) as pool:
                self.results |= dict(zip(todo, pool.map(_evaluate, todo), strict=True))
        return [self(key) for key in keys]

    def state_dict(self) -> dict[str, Any]:
        """Results, curves and shared weights."""
        return {
            "results": [[list(key), value] for key, value in self.results.items()],
            "curves": [list(curve) for curve in self.curves],
            "shared": [[name, tensor] for (name, _), tensor in self._shared.items()],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.results = {tuple(key): float(value) for key, value in state["results"]}
        self.curves = [list(curve) for curve in state["curves"]]
        self._shared = {(name, tuple(tensor.shape)): tensor for name, tensor in state["shared"]}


START = "spawn"
"""How processes begin: a fork of one that has computed with threads may hang."""
_here: list[Evaluator] = []


def _begin(evaluator: Evaluator) -> None:
    torch.set_num_threads(1)
    _here[:] = [evaluator]


def _evaluate(key: tuple[int, ...]) -> float:
    return _here[0](key)


# Tables ---------------------------------------------------------------------------------------------

DIGITS_TABLE = Path(str(files("jingdu.papers.cnn"))) / "nas" / "digits.json"
"""All 576 networks of `digits_space`, each trained once: `python -m jingdu.papers.cnn.nas.digits`."""


class Table:
    """Scores that were measured before: a search over it costs no training, and its best code is known.

    Args:
        space: whose codes it holds.
        rows: code -> validation accuracy, test accuracy.
    """

    def __init__(self, space: SearchSpace, rows: Mapping[tuple[int, ...], tuple[float, float]]):
        self.space = space
        self.rows = {space.canonical(code): row for code, row in rows.items()}

    @classmethod
    def read(cls, space: SearchSpace, path: Path = DIGITS_TABLE) -> "Table":
        """The table of a file. Raises BadInput where it is none of this space."""
        try:
            content = json.loads(path.read_text("utf-8"))
            if content["choices"] != [choice.name for choice in space.choices]:
                raise BadInput(path, f"its choices are {content['choices']}, not those of this space")
            return cls(space, {tuple(code): (valid, test) for code, valid, test in content["rows"]})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BadInput(path, f"no table of scores ({error})") from None

    def write(self, path: Path) -> Path:
        rows = ",\n".join(json.dumps([list(code), *row]) for code, row in sorted(self.rows.items()))
        names = json.dumps([choice.name for choice in self.space.choices])
        path.write_text(f'{{"choices": {names},\n"rows": [\n{rows}\n]}}\n', "utf-8")
        return path

    def __call__(self, code: Sequence[int]) -> float:
        """The validation accuracy. Raises UsageError for a code that was not measured."""
        return self._row(code)[0]

    def test(self, code: Sequence[int]) -> float:
        """The test accuracy, which no search may see."""
        return self._row(code)[1]

    def _row(self, code: Sequence[int]) -> tuple[float, float]:
        key = self.space.canonical(code)
        if key not in self.rows:
            raise UsageError(f"the table has no code {key}")
        return self.rows[key]

    @property
    def optimum(self) -> float:
        """The highest validation accuracy."""
        return max(valid for valid, _ in self.rows.values())


def measure(
    evaluator: Evaluator, test: Examples, codes: Sequence[tuple[int, ...]], say: Callable[[str], Any] = print
) -> Table:
    """Train every code once, and make a table of the accuracies on the validation and the test images."""
    rows, started = {}, time.monotonic()
    for number, code in enumerate(codes, 1):
        valid, network = evaluator.trained(evaluator.space.canonical(code))
        rows[tuple(code)] = (valid, accuracy(network, test))
        if number % 50 == 0:
            say(f"{number} of {len(codes)}, {(time.monotonic() - started) / number:.2f} s each")
    return Table(evaluator.space, rows)
