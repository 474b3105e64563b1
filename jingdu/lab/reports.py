"""Reading a report again: a folder's report.json, and a line about it. Imports neither torch nor matplotlib."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def read_report(folder: Path) -> dict[str, Any] | None:
    """The report of a folder; None where there is none that can be read."""
    try:
        report = json.loads((folder / "report.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return report if isinstance(report, dict) else None


def number(value: float | int | None, digits: int = 4) -> str:
    """A value for people: `digits` significant digits, no exponent between 0.0001 and a million, – for none."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    if 1e-4 <= abs(value) < 1e6:
        text = f"{value:.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}"
        text = text.rstrip("0").rstrip(".") if "." in text else text
    else:
        text = f"{value:.{digits - 1}e}"
    return text.replace("-", "−")


def duration(minutes: float | int) -> str:
    """Minutes as people say them: "2.1 min", or "4 s" below one."""
    return f"{minutes:.1f} min" if minutes >= 1 else f"{60 * minutes:.0f} s"


def interval(test: Mapping[str, Any]) -> str:
    """A test's difference (or ratio) and its interval: "0.12 [0.1, 0.14]"."""
    low, high = test["interval"]
    return f"{number(test['difference'], 3)} [{number(low, 3)}, {number(high, 3)}]"


def summary(report: Mapping[str, Any]) -> str:
    """One line: verdict, the test that decides it, seeds, date, minutes and machine.

    "holds: plain-56 trains worse than plain-20: 0.71 [0.65, 0.77]; and 1 more test (3 seeds, 2026-11-24, 2.1 min on
    Xeon, 2 cores)"
    """
    machine, seeds = report["machine"], len(report["seeds"])
    foot = (
        f"({seeds} seed{'s' if seeds != 1 else ''}, {report['date']}, {duration(report['minutes'])} on "
        f"{machine['cpu']}, {machine['cores']} cores)"
    )
    if report.get("smoke"):
        return f"smoke run, shows nothing {foot}"
    tests = report["tests"]
    decisive = next((t for t in tests if t["verdict"] == report["verdict"]), tests[0])
    found = f": {interval(decisive)}" if decisive["difference"] is not None else ""
    reason = report.get("reason") or decisive["reason"]
    why = f" ({reason})" if report["verdict"] != "holds" and reason else ""
    more = len(tests) - 1
    rest = f"; and {more} more test{'s' if more > 1 else ''}" if more else ""
    return f"{report['verdict']}: {decisive['about'] or decisive['statement']}{found}{why}{rest} {foot}"
