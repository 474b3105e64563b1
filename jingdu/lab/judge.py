r"""The verdict: a rule that stands before the run.

A test compares two measures seed by seed. For seed s let $d_s$ be left - right, or log(left / right) where the test is
of a ratio; let m be the margin (its logarithm for a ratio). `above=m` states d > m, `below=m` states d < m.

The interval is Student's 95 % interval of the mean of the paired differences,
$\bar d \pm t_{0.975,\,n-1}\, s / \sqrt n$ (for a ratio of the geometric mean). Equal differences give an interval of
one point. A deterministic statement (a claim with `seeds=1`) has no spread by chance: its interval runs from the
smallest to the largest value, which is the value itself.

A test
- **holds** if every seed agrees and the interval clears the margin. To agree is d > 0 in a test above m >= 0, and
  d > m above a negative m (left may be worse, by less than -m); d < 0 below m <= 0, and d < m below a positive m.
  To clear is: the lower end > m (above), the upper end < m (below).
- **fails** if the interval has no point on the asked side: its upper end <= m (above), its lower end >= m (below).
- is **inconclusive** in every other case: the interval contains the margin; a seed disagrees; a value is NaN or
  infinite; a ratio of values that are not positive; one seed where chance plays.

A claim holds if all its tests hold, fails if any fails, and is inconclusive otherwise. Run with fewer seeds than it
states, it is inconclusive whatever its tests say.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from jingdu.errors import UsageError

Verdict = Literal["holds", "fails", "inconclusive"]
Values = Mapping[str, Mapping[str, Sequence[float]]]
"""arm -> measure -> one value a seed."""


@dataclass(frozen=True)
class Test:
    """One comparison of a claim, with the margin that stands before the run.

    Raises ValueError where the margin is missing, given twice, not finite or, for a ratio, not positive, and where a
    name is not written arm.measure.
    """

    __test__ = False  # pytest collects classes called Test

    left: str
    """The measure "arm.measure"; the last dot divides."""
    right: str | float | int
    """What it is compared with: another measure, or a number."""
    above: float | int | None = None
    """The difference is larger than this."""
    below: float | int | None = None
    """The difference is smaller than this."""
    ratio: bool = False
    """Compare left / right instead of left - right; the margin is then a ratio."""
    about: str = ""
    """The comparison in words."""

    def __post_init__(self) -> None:
        for name in (self.left, self.right):
            if isinstance(name, str) and not all(name.rpartition(".")[::2]):
                raise ValueError(f"test of {self.left!r}: {name!r} is not written arm.measure")
        if (self.above is None) == (self.below is None):
            raise ValueError(f"test of {self.left!r}: give either above or below")
        if not math.isfinite(self.margin) or (self.ratio and self.margin <= 0):
            raise ValueError(
                f"test of {self.left!r}: the margin {self.margin} is no {'ratio' if self.ratio else 'number'}"
            )
        if not isinstance(self.right, str) and (not math.isfinite(self.right) or (self.ratio and self.right <= 0)):
            raise ValueError(f"test of {self.left!r}: it cannot be compared with {self.right}")

    @property
    def margin(self) -> float:
        """The number that the interval must clear."""
        return float(self.above if self.above is not None else self.below)  # type: ignore[arg-type]

    @property
    def compared(self) -> str:
        """What is compared with the margin, as a formula."""
        if self.right == 0 and not self.ratio:
            return self.left
        right = self.right if isinstance(self.right, str) else f"{self.right:g}"
        return f"{self.left} {'/' if self.ratio else '−'} {right}"

    @property
    def statement(self) -> str:
        """What the test states, as a formula."""
        return f"{self.compared} {'>' if self.above is not None else '<'} {self.margin:g}"


@dataclass(frozen=True)
class Judgement:
    """What became of a test. Numbers are differences, or ratios where the test is of a ratio."""

    test: Test
    per_seed: tuple[float, ...]
    difference: float
    """Mean over the seeds; geometric for ratios. NaN where there is none."""
    interval: tuple[float, float]
    verdict: Verdict
    reason: str = ""
    """Why it does not hold."""


def measured(values: Values, name: str) -> Sequence[float]:
    """The values of "arm.measure", one a seed. Raises UsageError where nothing of that name was measured."""
    arm, _, measure = name.rpartition(".")
    if arm not in values or measure not in values[arm]:
        known = ", ".join(f"{a}.{m}" for a in values for m in values[a])
        raise UsageError(f"a test compares {name!r}, which the claim did not measure; it measured {known or 'nothing'}")
    return values[arm][measure]


def t_interval(differences: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Student's interval of the mean of two values or more."""
    from scipy.stats import t

    n = len(differences)
    mean = math.fsum(differences) / n
    spread = math.sqrt(math.fsum((d - mean) ** 2 for d in differences) / (n - 1))
    half = float(t.ppf((1 + level) / 2, n - 1)) * spread / math.sqrt(n)
    return mean - half, mean + half


def judge(test: Test, values: Values, deterministic: bool = False) -> Judgement:
    """Apply the rule of this module to one test. Raises UsageError for a measure that is not there."""
    left = measured(values, test.left)
    right = measured(values, test.right) if isinstance(test.right, str) else [float(test.right)] * len(left)
    pairs = list(zip(left, right, strict=True))
    unusable = _unusable(test, pairs)
    if unusable:
        nan = math.nan
        return Judgement(test, (nan,) * len(pairs), nan, (nan, nan), "inconclusive", unusable)

    if test.ratio:
        differences, margin, back = [math.log(a) - math.log(b) for a, b in pairs], math.log(test.margin), math.exp
    else:
        differences, margin, back = [a - b for a, b in pairs], test.margin, float
    mean = math.fsum(differences) / len(differences)
    low, high = mean, mean
    if min(differences) == max(differences):
        mean = low = high = differences[0]
    elif deterministic:
        low, high = min(differences), max(differences)
    else:
        low, high = t_interval(differences)

    if test.above is not None:
        agree, clears, opposite = [d > min(margin, 0.0) for d in differences], low > margin, high <= margin
    else:
        agree, clears, opposite = [d < max(margin, 0.0) for d in differences], high < margin, low >= margin
    verdict, reason = _decide(agree, clears, opposite, alone=len(differences) == 1 and not deterministic)
    return Judgement(test, tuple(map(back, differences)), back(mean), (back(low), back(high)), verdict, reason)


def _unusable(test: Test, pairs: Sequence[tuple[float, float]]) -> str:
    """Why the values cannot be compared, or nothing."""
    for seed, pair in enumerate(pairs):
        for name, value in zip((test.left, test.right), pair, strict=True):
            if not math.isfinite(value):
                return f"{name} is {value} at seed {seed}"
            if test.ratio and value <= 0:
                return f"{name} is {value:g} at seed {seed}, and a ratio needs positive values"
    return ""


def _decide(agree: Sequence[bool], clears: bool, opposite: bool, alone: bool) -> tuple[Verdict, str]:
    if alone:
        return "inconclusive", "one seed gives no interval"
    if clears and all(agree):
        return "holds", ""
    if opposite:
        return "fails", "the interval lies on the wrong side of the margin"
    if not clears:
        return "inconclusive", "the interval contains the margin"
    against = [seed for seed, agrees in enumerate(agree) if not agrees]
    return "inconclusive", f"seed {', '.join(map(str, against))} disagrees"


def overall(judgements: Sequence[Judgement], seeds: int, stated: int) -> tuple[Verdict, str]:
    """A claim's verdict from its tests', and why it is not theirs, where it is not.

    Args:
        judgements: of all tests.
        seeds: how many were run.
        stated: how many the claim asks for.
    """
    if seeds < stated:
        return "inconclusive", f"{seeds} of the {stated} seeds that the claim states were run"
    verdicts = {j.verdict for j in judgements}
    return "fails" if "fails" in verdicts else "holds" if verdicts == {"holds"} else "inconclusive", ""
