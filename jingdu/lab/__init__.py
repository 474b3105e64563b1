"""What claims are made with: run, compare over seeds, judge, report, cache trained parts.

Reading order: `judge` (the rule), `lab` (what a claim's function is given), `claims` (a claim and its outcome), `run`
(all seeds of a claim), `cache` (trained parts), `write` and `style` (the report and its picture), `reports` (reading
a report again). Importing this package imports neither torch nor matplotlib.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jingdu.lab.claims import Claim as Claim
    from jingdu.lab.claims import Outcome as Outcome
    from jingdu.lab.claims import claim as claim
    from jingdu.lab.judge import Test as Test
    from jingdu.lab.lab import Lab as Lab

_HOME = {
    "Claim": "jingdu.lab.claims",
    "Lab": "jingdu.lab.lab",
    "Outcome": "jingdu.lab.claims",
    "Test": "jingdu.lab.judge",
    "claim": "jingdu.lab.claims",
}
__all__ = ["Claim", "Lab", "Outcome", "Test", "claim"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'jingdu.lab' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
