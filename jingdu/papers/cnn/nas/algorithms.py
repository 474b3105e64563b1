"""The interface of all search algorithms, the two that need no history, and the loop that runs any of them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from jingdu.errors import UsageError

from .space import SearchSpace


class SearchAlgorithm:
    """Proposes architectures of a space, and learns from what they score.

    Ask and tell take turns, or several codes are asked for before the first is told. What it proposes is a function of
    its seed and of what it was told, so that a search goes on where it was by being told its history again.

    Args:
        space: what is searched.
        seed: of all that is drawn.
    """

    def __init__(self, space: SearchSpace, seed: int = 0):
        self.space = space
        self.generator = torch.Generator().manual_seed(seed)
        self.history: list[tuple[tuple[int, ...], float]] = []

    def ask(self) -> tuple[int, ...]:
        """The next code to evaluate."""
        raise TypeError(f"{type(self).__name__} proposes nothing")

    def tell(self, code: Sequence[int], score: float) -> None:
        """What a code scored; larger is better."""
        self.history.append((tuple(code), float(score)))

    @property
    def seen(self) -> set[tuple[int, ...]]:
        """The networks (canonical codes) that were told."""
        return {self.space.canonical(code) for code, _ in self.history}


class RandomSearch(SearchAlgorithm):
    """Codes uniformly at random, by default none twice, until all were seen: what every search is compared with.

    Args:
        space, seed: as of `SearchAlgorithm`.
        again: draw from all codes each time.
    """

    def __init__(self, space: SearchSpace, seed: int = 0, again: bool = False):
        super().__init__(space, seed)
        self.again = again
        self.asked: set[tuple[int, ...]] = set()

    def ask(self) -> tuple[int, ...]:
        for _ in range(1000):  # a space that is nearly used up gives a code twice
            code = self.space.sample(self.generator)
            if self.again or self.space.canonical(code) not in self.asked:
                break
        self.asked.add(self.space.canonical(code))
        return code


class GridSearch(SearchAlgorithm):
    """All codes that are allowed, in order, for small spaces; after the last comes the first again."""

    def __init__(self, space: SearchSpace, seed: int = 0):
        super().__init__(space, seed)
        self.left: Iterator[tuple[int, ...]] = iter(())

    def ask(self) -> tuple[int, ...]:
        code = next(self.left, None)
        if code is None:
            self.left = self.space.codes()
            code = next(self.left, None)
        if code is None:
            raise UsageError("no code of this space is allowed")
        return code


@dataclass
class Found:
    """What a search found: the codes in the order of their evaluation, and their scores."""

    codes: list[tuple[int, ...]] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)

    @property
    def best(self) -> tuple[int, ...]:
        """The first of those that scored highest. Raises UsageError where nothing was evaluated."""
        if not self.scores:
            raise UsageError("nothing was evaluated")
        return self.codes[max(range(len(self.scores)), key=self.scores.__getitem__)]

    @property
    def best_so_far(self) -> list[float]:
        """After each evaluation, the highest score until then."""
        curve: list[float] = []
        for value in self.scores:
            curve.append(max(value, curve[-1] if curve else value))
        return curve

    def regret(self, optimum: float) -> list[float]:
        """After each evaluation, what the best so far lacks of the space's optimum."""
        return [optimum - best for best in self.best_so_far]

    @property
    def ranking(self) -> list[tuple[tuple[int, ...], float]]:
        """Each code once with its best score, best first; of equals, the one that was found earlier."""
        best: dict[tuple[int, ...], float] = {}
        for code, value in zip(self.codes, self.scores, strict=True):
            best[code] = max(value, best.get(code, value))
        return sorted(best.items(), key=lambda pair: -pair[1])


def search(algorithm: SearchAlgorithm, evaluate: Callable[[tuple[int, ...]], float], evaluations: int) -> Found:
    """Ask, evaluate and tell `evaluations` times.

    Args:
        algorithm: may have been told of codes already.
        evaluate: the score of a code; larger is better.
        evaluations: how many codes; one that comes twice counts twice.
    """
    if evaluations < 1:
        raise UsageError(f"evaluations {evaluations}: give 1 or more")
    found = Found()
    for _ in range(evaluations):
        code = algorithm.ask()
        value = float(evaluate(code))
        algorithm.tell(code, value)
        found.codes.append(code)
        found.scores.append(value)
    return found
