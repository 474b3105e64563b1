"""A space of architectures: named choices, and what a search does with them (Section 3.1: a network as a sequence)."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from jingdu.errors import UsageError, unknown

TRIES = 10_000
"""Draws after which a space is said to allow nothing."""


@dataclass(frozen=True)
class Choice:
    """One decision: its name and the values that it may take.

    Raises UsageError for fewer than one value, or the same one twice.
    """

    name: str
    values: tuple[Any, ...]
    ordered: bool = False
    """The values are a scale (3, 5, 7), on which one next to another is nearer than one far away."""
    kind: str = ""
    """What is chosen (an operation, a state): a mutation may draw the kind first."""
    layer: int = 0
    """Which layer the choice is about; the choices of a layer stand together."""
    source: int | None = None
    """For a connection from that layer to `layer`: the values are False and True."""

    def __post_init__(self) -> None:
        if not self.values or len(set(self.values)) != len(self.values):
            raise UsageError(f"choice {self.name!r} has the values {self.values}: give different ones, at least one")


@dataclass(frozen=True)
class Cost:
    """What a network costs: trainable parameters, and multiply-adds of one forward pass of one image."""

    parameters: int
    flops: int


def count_cost(network: nn.Module, image: Sequence[int]) -> Cost:
    """The cost of a network on one image [channels, height, width].

    Multiply-adds are those of convolutions and linear layers, as papers count them ("FLOPs" of Sec. 3 of EfficientNet);
    norms, activations and pools add nothing. The network stays where it is and in its mode; nothing is computed where
    it lies on the meta device.
    """
    found: list[int] = []

    def hook(module: nn.Module, _: Any, output: Tensor) -> None:
        weight = module.weight
        # [batch, outputs, height, width] or [batch, ..., outputs]: each output number is one row of the weight
        found.append(output[0].numel() * math.prod(weight.shape[1:]))

    handles = [
        module.register_forward_hook(hook)
        for module in network.modules()
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear)
    ]
    training, first = network.training, next(network.parameters())
    try:
        with torch.no_grad():
            network.eval()(torch.empty(1, *image, device=first.device, dtype=first.dtype))
    finally:
        network.train(training)
        for handle in handles:
            handle.remove()
    return Cost(sum(p.numel() for p in network.parameters() if p.requires_grad), sum(found))


def score(accuracy: float, cost: float, target: float, exponent: float = -0.07) -> float:
    r"""Two aims in one number: $\mathrm{acc} \cdot (\mathrm{cost} / \mathrm{target})^w$.

    MnasNet's Eq. 2 (https://arxiv.org/abs/1807.11626) with alpha = beta, as EfficientNet's search uses it: w = -0.07
    gives up 5 % of the accuracy for half of the cost. Raises UsageError for costs that are not positive.
    """
    if not cost > 0 or not target > 0:
        raise UsageError(f"cost {cost}, target {target}: both are positive")
    return accuracy * (cost / target) ** exponent


class SearchSpace:
    """Architectures as sequences of choices. One is a code: for each choice the number of its value.

    Args:
        choices: in the order in which they are made.
        network: the network of an architecture, from its values by name; for `build` and `cost`.
        allowed: which architectures exist, from their values by name; by default all.
        image: the shape [channels, height, width] for which `cost` counts.
        canonical: the code that stands for a code: several may describe the same network. By default itself.
        paths: the paths of an architecture from its input to its output, each as a sequence of operations, from its
            values by name: BANANAS' encoding.
        arguments: what the class of its networks is built from, as plain values, from an architecture's values by name: so
            a run keeps its winner.

    Raises UsageError for a space without choices, or two of one name.
    """

    def __init__(
        self,
        choices: Sequence[Choice],
        network: Callable[[dict[str, Any]], nn.Module] | None = None,
        allowed: Callable[[dict[str, Any]], bool] | None = None,
        image: Sequence[int] = (3, 32, 32),
        canonical: Callable[[tuple[int, ...]], tuple[int, ...]] | None = None,
        paths: Callable[[dict[str, Any]], set[tuple[str, ...]]] | None = None,
        arguments: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    ):
        self.choices = tuple(choices)
        names = [choice.name for choice in self.choices]
        if not names or len(set(names)) != len(names):
            raise UsageError(f"a space has choices of different names, at least one; these are {names}")
        self.sizes = tuple(len(choice.values) for choice in self.choices)
        self.network, self.image = network, tuple(image)
        # The numbers of the choices that have more than one value: all, and by kind.
        self._open: dict[str | None, list[int]] = {None: [i for i, size in enumerate(self.sizes) if size > 1]}
        for i in self._open[None]:
            self._open.setdefault(self.choices[i].kind, []).append(i)
        self._allowed, self._canonical, self._paths, self._arguments = allowed, canonical, paths, arguments
        self._costs: dict[tuple[int, ...], Cost] = {}
        self._known_paths: dict[tuple[int, ...], set[tuple[str, ...]]] = {}

    def __len__(self) -> int:
        """How many codes there are, those that are not allowed too."""
        return math.prod(self.sizes)

    # Codes -----------------------------------------------------------------------------------------

    def decode(self, code: Sequence[int]) -> dict[str, Any]:
        """The values of a code, by name. Raises UsageError for a code of another space."""
        if len(code) != len(self.sizes) or any(not 0 <= c < size for c, size in zip(code, self.sizes, strict=False)):
            raise UsageError(f"code {tuple(code)}: wanted {len(self.sizes)} numbers below {self.sizes}")
        return {choice.name: choice.values[c] for choice, c in zip(self.choices, code, strict=True)}

    def encode(self, values: Mapping[str, Any]) -> tuple[int, ...]:
        """The code of values by name. Raises UsageError for names or values that the space does not have."""
        code = []
        for choice in self.choices:
            if choice.name not in values:
                raise UsageError(f"architecture {dict(values)} says nothing of {choice.name!r}")
            if values[choice.name] not in choice.values:
                raise UsageError(f"{choice.name}={values[choice.name]!r}: it is one of {choice.values}")
            code.append(choice.values.index(values[choice.name]))
        if strange := set(values) - {choice.name for choice in self.choices}:
            raise unknown("choice", sorted(strange)[0], [choice.name for choice in self.choices])
        return tuple(code)

    def allows(self, code: Sequence[int]) -> bool:
        return self._allowed is None or self._allowed(self.decode(code))

    def canonical(self, code: Sequence[int]) -> tuple[int, ...]:
        """The same for all codes of one network: what results are kept by."""
        return tuple(code) if self._canonical is None else self._canonical(tuple(code))

    def codes(self) -> Iterator[tuple[int, ...]]:
        """All that are allowed, the last choice fastest."""
        return (tuple(map(int, c)) for c in np.ndindex(*self.sizes) if self.allows(c))

    def one_hot(self, codes: Sequence[Sequence[int]]) -> Float[Tensor, "batch bits"]:
        """Codes as numbers for a predictor: one bit for each value of each choice."""
        table = torch.tensor([list(code) for code in codes], dtype=torch.int64).view(-1, len(self.sizes))
        return torch.cat(
            [torch.nn.functional.one_hot(column, size) for column, size in zip(table.T, self.sizes, strict=True)], 1
        ).float()

    def path_encoding(self, codes: Sequence[Sequence[int]]) -> Float[Tensor, "batch paths"]:
        """One bit for each path that any of these codes has (Sec. 3 of BANANAS, which lists all possible ones).

        Raises UsageError where the space does not say what its paths are.
        """
        if self._paths is None:
            raise UsageError("this space has no paths: give it paths=..., or encode its codes by one_hot")
        for code in map(tuple, codes):
            if code not in self._known_paths:
                self._known_paths[code] = self._paths(self.decode(code))
        found = [self._known_paths[tuple(code)] for code in codes]
        place = {path: i for i, path in enumerate(sorted(set().union(*found)))}
        bits = torch.zeros(len(codes), len(place))
        pairs = torch.tensor([(row, place[path]) for row, paths in enumerate(found) for path in paths])
        bits[pairs[:, 0], pairs[:, 1]] = 1
        return bits

    # Moves -----------------------------------------------------------------------------------------

    def _until_allowed(self, draw: Callable[[], tuple[int, ...]]) -> tuple[int, ...]:
        for _ in range(TRIES):
            if self.allows(code := draw()):
                return code
        raise UsageError(f"{TRIES:,} draws in a row are not allowed in this space of {len(self):,}: ask for less")

    def sample(self, generator: torch.Generator) -> tuple[int, ...]:
        """A code, uniform over those that are allowed."""

        def draw() -> tuple[int, ...]:
            places = torch.rand(len(self.sizes), generator=generator, dtype=torch.float64).tolist()
            return tuple(int(place * size) for place, size in zip(places, self.sizes, strict=True))

        return self._until_allowed(draw)

    def mutate(
        self, code: Sequence[int], generator: torch.Generator, changes: int = 1, kind: str | None = None
    ) -> tuple[int, ...]:
        """Other values for `changes` choices (of one kind, if any), all drawn uniformly.

        Raises UsageError where so many choices do not have two values.
        """
        open_ = self._open.get(kind, [])
        if not 0 < changes <= len(open_):
            raise UsageError(f"{changes} changes: {len(open_)} choices have more than one value")

        def draw() -> tuple[int, ...]:
            new = list(code)
            places = [_draw(len(open_), generator)] if changes == 1 else torch.randperm(len(open_), generator=generator)
            for place in places[:changes]:
                i = open_[place]
                new[i] = (new[i] + 1 + _draw(self.sizes[i] - 1, generator)) % self.sizes[i]
            return tuple(new)

        return self._until_allowed(draw)

    def crossover(
        self, mother: Sequence[int], father: Sequence[int], generator: torch.Generator, points: int | None = None
    ) -> tuple[int, ...]:
        """A child of two codes: each choice from either at random, or in turns between `points` random cuts.

        Raises UsageError for more points than there are places to cut.
        """
        length = len(self.sizes)
        if points is not None and not 0 < points < length:
            raise UsageError(f"{points} points: a code of {length} choices is cut at 1 to {length - 1} places")

        def draw() -> tuple[int, ...]:
            if points is None:
                takes = torch.randint(2, (length,), generator=generator).tolist()
            else:
                cuts = (torch.randperm(length - 1, generator=generator)[:points] + 1).tolist()
                takes = [sum(cut <= i for cut in cuts) % 2 for i in range(length)]
            return tuple(father[i] if take else mother[i] for i, take in enumerate(takes))

        return self._until_allowed(draw)

    def neighbours(self, code: Sequence[int]) -> list[tuple[int, ...]]:
        """All allowed codes that differ in one choice; an ordered one by one step alone."""
        found = []
        for i, choice in enumerate(self.choices):
            others = range(self.sizes[i]) if not choice.ordered else (code[i] - 1, code[i] + 1)
            for value in others:
                if value != code[i] and 0 <= value < self.sizes[i]:
                    found.append((*code[:i], value, *code[i + 1 :]))
        return [other for other in found if self.allows(other)]

    # Networks --------------------------------------------------------------------------------------

    def build(self, code: Sequence[int]) -> nn.Module:
        """The network of a code, with fresh weights. Raises UsageError where the space has no networks."""
        if self.network is None:
            raise UsageError("this space has no networks: give it network=...")
        return self.network(self.decode(code))

    def arguments(self, code: Sequence[int]) -> dict[str, Any]:
        """The arguments of the network of a code, as plain values. Raises UsageError where the space does not say them."""
        if self._arguments is None:
            raise UsageError("this space does not say what its networks are built from: give it arguments=...")
        return self._arguments(self.decode(code))

    def cost(self, code: Sequence[int]) -> Cost:
        """Parameters and multiply-adds of a code's network; counted once, without computing anything."""
        key = self.canonical(code)
        if key not in self._costs:
            with torch.device("meta"):
                self._costs[key] = count_cost(self.build(key), self.image)
        return self._costs[key]


def _draw(size: int, generator: torch.Generator) -> int:
    return int(torch.randint(size, (1,), generator=generator))
