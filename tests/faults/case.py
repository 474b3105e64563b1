"""What a row of the table is, and how its cases are counted."""

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.nursery import prepare


@dataclass(frozen=True)
class Case:
    """One thing that went wrong, and whether the promise held."""

    ok: bool
    seconds: float = 0.0
    """What the promise bounds: until it was saved, refused, noticed."""
    what: str = ""
    count: int = 1
    """How many faults it stands for: a run that was killed three times is three."""


Cases = Callable[[int, random.Random, Path], Iterator[Case]]
"""cases(count, numbers, folder): about `count` faults, chosen by `numbers`."""


@dataclass(frozen=True)
class Row:
    """A promise of the table, and what holds it."""

    number: int
    event: str
    promise: str
    cases: Cases
    share: int
    """Faults with each commit."""
    full: int
    """Faults in the whole count."""


@dataclass
class Outcome:
    """What came of a row."""

    row: Row
    done: int = 0
    passed: int = 0
    worst: float = 0.0
    duration: float = 0.0
    failures: list[str] = field(default_factory=list)


def measure(row: Row, count: int, seed: int, folder: Path) -> Outcome:
    """Do `count` faults of a row: the same ones for the same seed."""
    folder.mkdir(parents=True, exist_ok=True)
    prepare()
    outcome, started = Outcome(row), time.monotonic()
    for case in row.cases(count, random.Random(f"{seed}-{row.number}"), folder):
        outcome.done += case.count
        outcome.passed += case.count * case.ok
        outcome.worst = max(outcome.worst, case.seconds)
        if not case.ok:
            outcome.failures.append(case.what)
    outcome.duration = time.monotonic() - started
    return outcome
