"""Evolution: ageing (AmoebaNet, https://arxiv.org/abs/1802.01548), and genetic with crossover.

Ageing evolution keeps the `population` youngest architectures. Each step draws `sample` of them, mutates the best one,
and the child joins: the oldest dies, however good it is. So an architecture survives by being found again and again,
and not by one lucky training (Section 3 of the AmoebaNet paper).
"""

from collections import deque
from collections.abc import Callable, Sequence

import torch

from jingdu.errors import UsageError

from .algorithms import SearchAlgorithm
from .space import SearchSpace


def unseen(algorithm: SearchAlgorithm, draw: Callable[[], tuple[int, ...]], tries: int = 30) -> tuple[int, ...]:
    """The first of some draws whose network was not told yet; the last one where all were.

    A search that keeps its results gains nothing by evaluating a network again.
    """
    seen = algorithm.seen
    for _ in range(tries):
        code = draw()
        if algorithm.space.canonical(code) not in seen:
            break
    return code


def pick(count: int, size: int, generator: torch.Generator) -> list[int]:
    """`count` numbers below `size`, none twice."""
    return torch.randperm(size, generator=generator)[:count].tolist()


class AgeingEvolution(SearchAlgorithm):
    """Tournament selection in which the oldest dies (Algorithm 1 of the AmoebaNet paper).

    Args:
        space, seed: as of `SearchAlgorithm`.
        population: P; the first so many are drawn at random. 100 in the paper.
        sample: S, from which the best one is mutated. 25 in the paper.
        identity: how often the child is the parent itself, which ages otherwise; 0.05 in the paper.
        fresh: mutate again while the child is known. The paper trains it anew, which with noise is worth something.
        oldest: False lets the worst die instead: plain tournament evolution.

    A mutation draws the kind of the choice first: with a space of cells an operation or a state (Fig. 2 there).
    """

    def __init__(
        self, space: SearchSpace, seed: int = 0, population: int = 100, sample: int = 25, identity: float = 0.0,
        fresh: bool = True, oldest: bool = True,
    ):  # fmt: skip
        super().__init__(space, seed)
        if not 1 <= sample <= population:
            raise UsageError(f"sample {sample} of a population of {population}: give from 1 to the population")
        self.size, self.sample, self.identity, self.fresh, self.oldest = population, sample, identity, fresh, oldest
        self.population: deque[tuple[tuple[int, ...], float]] = deque()
        self.born = 0
        self.kinds = sorted({c.kind for c in space.choices if len(c.values) > 1})

    def ask(self) -> tuple[int, ...]:
        self.born += 1
        if self.born <= self.size or not self.population:
            return unseen(self, lambda: self.space.sample(self.generator))
        drawn = [self.population[i] for i in pick(self.sample, len(self.population), self.generator)]
        parent = max(drawn, key=lambda member: member[1])[0]
        if self.identity and float(torch.rand(1, generator=self.generator)) < self.identity:
            return parent
        child = self._mutate(parent)
        if self.fresh and self.space.canonical(child) in self.seen:
            # Where the parent's neighbours are all known, the child goes further away.
            walk = [child]

            def further() -> tuple[int, ...]:
                walk.append(self._mutate(walk[-1] if len(walk) % 5 == 0 else parent))
                return walk[-1]

            child = unseen(self, further)
        return child

    def _mutate(self, parent: tuple[int, ...]) -> tuple[int, ...]:
        kind = self.kinds[int(torch.randint(len(self.kinds), (1,), generator=self.generator))]
        return self.space.mutate(parent, self.generator, kind=kind)

    def tell(self, code: Sequence[int], score: float) -> None:
        super().tell(code, score)
        self.population.append((tuple(code), float(score)))
        if len(self.population) > self.size:
            if self.oldest:
                self.population.popleft()
            else:
                worst = min(range(len(self.population)), key=lambda i: self.population[i][1])
                del self.population[worst]


class Genetic(SearchAlgorithm):
    """Generations: parents win tournaments, children are crossed and mutated, the best few live on as they are.

    Args:
        space, seed: as of `SearchAlgorithm`.
        population: architectures of a generation.
        tournament: of so many the best is a parent.
        elite: how many of a generation live on, without being evaluated again.
        crossover: how often a child has two parents.
        points: as of `SearchSpace.crossover`; by default each choice comes from either.
        mutation: how often each child is mutated, in one choice.
        fresh: cross and mutate again while the child is known.
    """

    def __init__(
        self, space: SearchSpace, seed: int = 0, population: int = 20, tournament: int = 3, elite: int = 4,
        crossover: float = 0.8, points: int | None = None, mutation: float = 0.5, fresh: bool = True,
    ):  # fmt: skip
        super().__init__(space, seed)
        if not 0 <= elite < population or not 1 <= tournament <= population:
            raise UsageError(
                f"population {population}, elite {elite}, tournament {tournament}: the elite is smaller than the "
                "population, a tournament no larger"
            )
        self.size, self.tournament, self.elite = population, tournament, elite
        self.crossing, self.points, self.mutation, self.fresh = crossover, points, mutation, fresh
        self.parents: list[tuple[tuple[int, ...], float]] = []
        self.children: list[tuple[tuple[int, ...], float]] = []

    def ask(self) -> tuple[int, ...]:
        if not self.parents:
            return unseen(self, lambda: self.space.sample(self.generator))
        return unseen(self, self._child) if self.fresh else self._child()

    def _winner(self) -> tuple[int, ...]:
        drawn = pick(self.tournament, len(self.parents), self.generator)
        return max((self.parents[i] for i in drawn), key=lambda member: member[1])[0]

    def _chance(self, rate: float) -> bool:
        return float(torch.rand(1, generator=self.generator)) < rate

    def _child(self) -> tuple[int, ...]:
        mother = child = self._winner()
        if self._chance(self.crossing):
            child = self.space.crossover(mother, self._winner(), self.generator, self.points)
        if self._chance(self.mutation) or child == mother:
            child = self.space.mutate(child, self.generator)
        return child

    def tell(self, code: Sequence[int], score: float) -> None:
        super().tell(code, score)
        self.children.append((tuple(code), float(score)))
        best = sorted(self.parents, key=lambda member: -member[1])[: self.elite]
        if len(best) + len(self.children) >= self.size:
            self.parents, self.children = [*best, *self.children], []
