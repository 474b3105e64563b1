"""A claim over its seeds: measure, judge, report."""

import random
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jingdu.errors import UsageError
from jingdu.lab.claims import Claim, Outcome
from jingdu.lab.judge import judge, measured, overall
from jingdu.lab.lab import Lab
from jingdu.lab.reports import read_report
from jingdu.lab.write import write_report

SMOKE_SEEDS = 2
"""Seeds of a smoke run, unless told otherwise: enough to try code that averages over seeds."""


def run_claim(
    claim: Claim,
    *,
    seeds: int | None = None,
    out: Path,
    smoke: bool = False,
    progress: Callable[[str], Any] | None = None,
) -> Outcome:
    """Measure a claim for the seeds 0, 1, ..., judge it, and write its report into the folder `out`.

    Each seed starts with the global random numbers of torch, NumPy and Python set to it. A figure function that fails
    costs nothing but its picture: the report is written with the default one, and then a RuntimeWarning says why.

    Args:
        claim: what to test.
        seeds: how many; by default as many as the claim states. With fewer it is inconclusive.
        out: folder of the report.
        smoke: tiny budgets that only try the code: the verdict is "smoke", and a real report is never replaced by it.
        progress: is told what happens, in lines of text.

    Raises UsageError, before anything is measured, for a folder that cannot be written or would lose a real report to
    a smoke run; after the first seed, for a test of something that was not measured.
    """
    say = progress or (lambda text: None)
    stated = min(claim.seeds, SMOKE_SEEDS) if smoke else claim.seeds
    count = stated if seeds is None else seeds
    if count < 1:
        raise UsageError(f"seeds {count}: give 1 or more")
    folder = _enter(Path(out), smoke)
    outcome = Outcome(claim, list(range(count)), smoke=smoke, folder=folder)
    title = f"{claim.paper}.{claim.name}"
    parts = []
    for seed in outcome.seeds:
        say(f"{title}: seed {seed}, {seed + 1} of {count}")
        started = time.monotonic()
        lab = Lab(smoke=smoke, progress=progress)
        _seed_all(seed)
        _collect(outcome, claim(lab, seed), lab)
        outcome.seconds.append(time.monotonic() - started)
        parts += lab.parts
    fresh = {part.folder for part in parts if not part.cached}
    saved = {part.folder: part.seconds for part in parts if part.folder not in fresh}
    outcome.minutes_cached = sum(saved.values()) / 60
    outcome.minutes = sum(outcome.seconds) / 60 + outcome.minutes_cached

    outcome.judgements = [judge(test, outcome.values, claim.deterministic) for test in claim.tests]
    outcome.verdict, outcome.reason = overall(outcome.judgements, count, claim.seeds)
    if smoke:
        outcome.verdict, outcome.reason = "smoke", "tiny budgets: the code was tried, nothing was shown"
    problem = write_report(outcome)
    say(f"{title}: {outcome.verdict}; wrote {folder}")
    if problem is not None:
        place = traceback.extract_tb(problem.__traceback__)[-1]
        where = f"{Path(place.filename).name} line {place.lineno}"
        warnings.warn(
            f"{title}: its figure function failed ({outcome.problem}; {where}), so {folder} has the default picture",
            RuntimeWarning,
            stacklevel=2,
        )
    return outcome


def _enter(folder: Path, smoke: bool) -> Path:
    """Make the report folder, or check that it may be written."""
    before = read_report(folder)
    if smoke and before is not None and not before.get("smoke"):
        raise UsageError(f"{folder} holds a real report, which a smoke run must not replace: choose another --out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".writable").touch()
        (folder / ".writable").unlink()
    except OSError as error:
        raise UsageError(f"{folder}: cannot write there ({error.strerror}); choose another --out") from None
    return folder


def _seed_all(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def _collect(outcome: Outcome, values: Mapping[str, Mapping[str, Any]], lab: Lab) -> None:
    """Add one seed's values, curves and images. Every seed must measure the same."""
    name, first = outcome.claim.name, not outcome.values
    shape = {arm: sorted(measures) for arm, measures in values.items()}
    before = {arm: sorted(measures) for arm, measures in outcome.values.items()}
    if not first and shape != before:
        raise UsageError(f"claim {name}: the seeds measured different things: {before}, then {shape}")
    for arm, measures in values.items():
        for measure, value in measures.items():
            outcome.values.setdefault(arm, {}).setdefault(measure, []).append(float(value))
    if first:  # before minutes go into the other seeds
        for test in outcome.claim.tests:
            for side in (test.left, test.right):
                if isinstance(side, str):
                    measured(outcome.values, side)
        outcome.images = lab.images
    for curve, points in lab.curves.items():
        outcome.curves.setdefault(curve, []).append(points)
    outcome.axes |= lab.axes
