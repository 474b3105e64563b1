"""A claim: what a paper says, the function that measures it for one seed, and the tests that judge it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from jingdu.lab.judge import Judgement, Test
from jingdu.lab.lab import Curve, Lab

Measure = Callable[[Lab, int], Mapping[str, Mapping[str, Any]]]
"""(lab, seed) -> arm -> measure -> value."""
Draw = Callable[[Any, "Outcome"], Any]
"""(matplotlib Figure, outcome): draws the picture."""


@dataclass(frozen=True)
class Claim:
    """Made by the decorator `claim`; called, it is the function that it decorates."""

    measure: Measure
    text: str
    source: str
    tests: tuple[Test, ...]
    seeds: int = 3
    minutes: float | int | None = None
    about: str = ""
    drawings: list[Draw] = field(default_factory=list, repr=False, compare=False)
    """The figure function, once there is one."""

    def __call__(self, lab: Lab, seed: int) -> Mapping[str, Mapping[str, Any]]:
        return self.measure(lab, seed)

    @property
    def name(self) -> str:
        """The name of its function."""
        return self.measure.__name__

    @property
    def paper(self) -> str:
        """The key of its paper: the last part of the name of its module."""
        return self.measure.__module__.rpartition(".")[2]

    @property
    def deterministic(self) -> bool:
        """Whether chance plays no part: the claim states one seed."""
        return self.seeds == 1

    def figure(self, draw: Draw) -> Draw:
        """Decorator: the function (figure, outcome) that draws the picture into a matplotlib Figure."""
        self.drawings[:] = [draw]
        return draw


def claim(
    text: str,
    source: str,
    tests: Sequence[Test],
    seeds: int = 3,
    minutes: float | int | None = None,
    about: str = "",
) -> Callable[[Measure], Claim]:
    """Decorator: make a claim of a function (lab, seed) -> {arm: {measure: value}}.

    Args:
        text: the statement, one sentence.
        source: where the paper makes it (figure, table, section).
        tests: the comparisons, with margins that stand before the run.
        seeds: how many; at least 3 where chance plays, 1 for a deterministic statement.
        minutes: of a full run on 2 CPU cores.
        about: what differs from the paper's own experiment.

    Raises ValueError for a claim without a text or tests, and for 2 seeds or none.
    """
    if not text or not source:
        raise ValueError("a claim has a text and a source")
    if not tests:
        raise ValueError(f"the claim {text!r} has no test")
    if seeds < 1 or seeds == 2:
        raise ValueError(f"the claim {text!r} has {seeds} seeds: 1 for a deterministic statement, else 3 or more")

    def make(measure: Measure) -> Claim:
        return Claim(measure, text, source, tuple(tests), seeds, minutes, about)

    return make


@dataclass
class Outcome:
    """What a run of a claim gave."""

    claim: Claim
    seeds: list[int]
    smoke: bool = False
    """Tiny budgets: the code was tried, nothing was shown."""
    folder: Path = Path()
    """Of the report."""
    values: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    """arm -> measure -> one value a seed."""
    curves: dict[str, list[Curve]] = field(default_factory=dict)
    """Name -> (xs, ys) a seed."""
    axes: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Name of a curve -> labels of its axes."""
    images: dict[str, Any] = field(default_factory=dict)
    """Name -> the first seed's image, [height, width] or [height, width, 3] in [0, 1], as `Axes.imshow` takes it."""
    judgements: list[Judgement] = field(default_factory=list)
    verdict: Literal["holds", "fails", "inconclusive", "smoke"] = "inconclusive"
    """A smoke run has no other verdict than "smoke"."""
    reason: str = ""
    """Why the verdict is not that of the tests."""
    minutes: float = 0.0
    """Of work, on this machine: wall time, and the training time of the parts that the cache had."""
    minutes_cached: float = 0.0
    """How many of them the cache saved."""
    seconds: list[float] = field(default_factory=list)
    """Wall time of each seed."""
    problem: str = ""
    """What went wrong while the picture was drawn."""
