"""The paired timing of `jingdu.speed`, with results that lie in results/benchmarks/."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jingdu.speed import paired
from jingdu.speed.paired import compare

__all__ = ["RESULTS", "compare", "save"]

RESULTS = Path(__file__).parents[1] / "results" / "benchmarks"


def save(rows: Sequence[Mapping[str, Any]], path: str | Path, **more: Any) -> Path:
    """Write comparisons with the machine they were made on; returns the file.

    A relative path lies in results/benchmarks/, whether it says so or not: save(rows, "resnet.json").
    """
    path = Path(path)
    if not path.is_absolute():
        path = RESULTS / (path.relative_to("results/benchmarks") if path.is_relative_to("results/benchmarks") else path)
    return paired.save(rows, path, **more)
