"""Ways of doing the same work, timed side by side.

A machine's speed drifts (heat, other programs), so that runs one after the other compare the hours rather than the
programs. Here all are called in every round, in an order that swaps from round to round, and of two each round gives one
ratio. Its median and the median's interval by order statistics assume nothing of how times are distributed.
"""

import gc
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from jingdu.engine.checkpoint import write_whole
from jingdu.lab.machine import machine, today, versions

FEWEST = 6
"""Rounds that a 95 % interval of a median needs: 2 / 2^5 is still more than 5 %."""


def median_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """The interval of the median between the k-th smallest and the k-th largest value, k as large as `level` allows.

    The number of values below the median is binomial (n, 1/2), whatever their distribution. Raises ValueError for
    fewer than 6 values at 95 %, whose whole range is too narrow.
    """
    n, ordered = len(values), sorted(values)
    k, tail = 0, 0.0  # tail: probability that at most k - 1 values lie below the median
    while k < n and 2 * (tail + math.comb(n, k) * 0.5**n) <= 1 - level:
        tail += math.comb(n, k) * 0.5**n
        k += 1
    if k == 0:
        raise ValueError(f"{n} values give no {level:.0%} interval of their median")
    return ordered[k - 1], ordered[n - k]


def _wait() -> None:
    """Let an accelerator finish what was asked of it."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(function: Callable[[], object]) -> float:
    """Seconds of one call."""
    _wait()
    started = time.perf_counter()
    function()
    _wait()
    return time.perf_counter() - started


@contextmanager
def _no_collection() -> Iterator[None]:
    """A collection of garbage would fall into one side's time."""
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def alternate(functions: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 3) -> dict[str, list[float]]:
    """Seconds of each function in each round; every other round goes through them backwards.

    Args:
        functions: by name; each does its work once a call.
        rounds: calls of each that count.
        warmup: calls of each before that.
    """
    for _ in range(warmup):
        for function in functions.values():
            function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    forwards = list(functions.items())
    with _no_collection():
        for turn in range(rounds):
            for name, function in forwards if turn % 2 == 0 else reversed(forwards):
                times[name].append(seconds(function))
    return times


def compare(
    ours: Callable[[], object],
    reference: Callable[[], object],
    name: str,
    rounds: int = 30,
    warmup: int = 3,
    work: str | None = None,
) -> dict[str, Any]:
    """Time both in alternation, and print and return how many times as fast ours is.

    Args:
        ours: does the work once. Gradients, precision and the like are the caller's to switch.
        reference: does the same work once.
        name: of the comparison.
        rounds: pairs of calls that count; at least 6.
        warmup: calls of each before that.
        work: what one call does, in words ("8 images of 3x224x224, inference").

    Returns name, ratio (median over the rounds of reference time / ours: above 1 ours is faster), its 95 % interval,
    the median times `ours` and `reference` in seconds, rounds, threads, torch, and work where it is given. Raises
    ValueError for fewer than 6 rounds.
    """
    if rounds < FEWEST:
        raise ValueError(f"{name}: {rounds} rounds give no interval; take {FEWEST} or more")
    times = alternate({"ours": ours, "reference": reference}, rounds, warmup)
    return told(times["ours"], times["reference"], name, work)


def told(ours: Sequence[float], reference: Sequence[float], name: str, work: str | None = None) -> dict[str, Any]:
    """What `compare` prints and returns, of seconds that were measured in the same rounds."""
    ratios = [b / a for a, b in zip(ours, reference, strict=True)]
    low, high = median_interval(ratios)
    row = {
        "name": name,
        "ratio": statistics.median(ratios),
        "interval": [low, high],
        "ours": statistics.median(ours),
        "reference": statistics.median(reference),
        "rounds": len(ratios),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        **({"work": work} if work is not None else {}),
    }
    print(
        f"{name}: {row['ratio']:.3f} times as fast as the reference [{low:.3f}, {high:.3f}] "
        f"(ours {1000 * row['ours']:.3g} ms, reference {1000 * row['reference']:.3g} ms, {len(ratios)} rounds, "
        f"{row['threads']} thread{'s' if row['threads'] > 1 else ''})"
    )
    return row


def save(rows: Sequence[Mapping[str, Any]], path: str | Path, **more: Any) -> Path:
    """Write comparisons with the date, the machine and the versions, and what else is given; returns the file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    table = {"date": today(), "machine": machine(), "versions": versions(), **more, "rows": list(rows)}
    write_whole(path, (json.dumps(table, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode())
    return path
