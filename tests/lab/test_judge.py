"""The rule, branch by branch. Numbers are worked out by hand with t(0.975, 2) = 4.302653, t(0.975, 4) = 2.776445."""

import math

import pytest

from jingdu.errors import UsageError
from jingdu.lab import Test
from jingdu.lab.judge import Judgement, judge, measured, overall, t_interval

NAN, INF = math.nan, math.inf


def values(left: list[float], right: list[float] | None = None) -> dict[str, dict[str, list[float]]]:
    return {"a": {"x": left}, "b": {"x": [0.0] * len(left) if right is None else right}}


def test_interval_by_hand() -> None:
    # mean 2, s = 1, half width 4.302653 / sqrt 3 = 2.484138
    assert t_interval([1.0, 2.0, 3.0]) == pytest.approx((-0.484138, 4.484138), abs=1e-6)
    # mean 3, s = sqrt 2.5, half width 2.776445 * 1.581139 / sqrt 5 = 1.963243
    assert t_interval([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx((1.036757, 4.963243), abs=1e-6)
    # two values: t(0.975, 1) = 12.706205, half width 12.706205 * (sqrt 2 / 2) / sqrt 2
    assert t_interval([1.0, 2.0]) == pytest.approx((1.5 - 6.353102, 1.5 + 6.353102), abs=1e-6)
    # 90 %: t(0.95, 2) = 2.919986
    assert t_interval([1.0, 2.0, 3.0], 0.9) == pytest.approx((2 - 1.685854, 2 + 1.685854), abs=1e-6)


# 0.5, 0.6, 0.7: mean 0.6, interval [0.351586, 0.848414]
SPREAD = [0.5, 0.6, 0.7]


@pytest.mark.parametrize(
    ("differences", "margin", "verdict", "reason"),
    [
        (SPREAD, {"above": 0.35}, "holds", ""),
        (SPREAD, {"above": 0.36}, "inconclusive", "contains the margin"),
        (SPREAD, {"above": 0.84}, "inconclusive", "contains the margin"),
        (SPREAD, {"above": 0.85}, "fails", "wrong side"),
        (SPREAD, {"above": 0}, "holds", ""),
        (SPREAD, {"above": -1}, "holds", ""),
        (SPREAD, {"below": 0.85}, "holds", ""),
        (SPREAD, {"below": 0.84}, "inconclusive", "contains the margin"),
        (SPREAD, {"below": 0.35}, "fails", "wrong side"),
        (SPREAD, {"below": 0}, "fails", "wrong side"),
        # A negative margin above: left may be worse by less than that.
        ([-0.01, 0.0, 0.01], {"above": -0.1}, "holds", ""),
        ([-0.01, 0.0, 0.01], {"above": -0.01}, "inconclusive", "contains the margin"),
        ([-0.5, -0.6, -0.7], {"above": -0.1}, "fails", "wrong side"),
        # Below: the mirror image.
        ([-0.5, -0.6, -0.7], {"below": -0.35}, "holds", ""),
        ([-0.5, -0.6, -0.7], {"below": -0.36}, "inconclusive", "contains the margin"),
        ([-0.5, -0.6, -0.7], {"below": -0.85}, "fails", "wrong side"),
        # No spread: the interval is a point, and a point on the margin is not beyond it.
        ([0.2, 0.2, 0.2], {"above": 0.1}, "holds", ""),
        ([0.25, 0.25, 0.25], {"above": 0.25}, "fails", "wrong side"),
        ([0.25, 0.25, 0.25], {"below": 0.25}, "fails", "wrong side"),
        ([0.0, 0.0, 0.0], {"above": 0}, "fails", "wrong side"),
        ([0.0, 0.0, 0.0], {"below": 0.01}, "holds", ""),
        # Many seeds: the interval clears the margin, but one seed points the other way.
        ([1.0] * 29 + [-0.01], {"above": 0.5}, "inconclusive", "seed 29 disagrees"),
        ([0.0] * 2 + [1.0] * 28, {"above": 0.5}, "inconclusive", "seed 0, 1 disagrees"),
        ([-1.0] * 29 + [0.0], {"below": -0.5}, "inconclusive", "seed 29 disagrees"),
        ([1.0] * 29 + [-0.6], {"above": -0.5}, "inconclusive", "seed 29 disagrees"),
        ([-1.0] * 29 + [0.6], {"below": 0.5}, "inconclusive", "seed 29 disagrees"),
        # Beyond zero but short of the margin is agreement: the mean must clear it, not every seed.
        ([1.0] * 29 + [0.4], {"above": 0.5}, "holds", ""),
        # One seed where chance plays.
        ([5.0], {"above": 0}, "inconclusive", "one seed"),
        ([-5.0], {"above": 0}, "inconclusive", "one seed"),
    ],
)
def test_every_branch(differences: list[float], margin: dict[str, float], verdict: str, reason: str) -> None:
    found = judge(Test("a.x", "b.x", **margin), values(differences))
    assert found.verdict == verdict
    assert (reason in found.reason) if reason else found.reason == ""
    assert found.per_seed == pytest.approx(differences)


def test_differences_are_paired_by_seed() -> None:
    # The arms overlap, their paired differences do not: 0.1, 0.11, 0.12.
    found = judge(Test("a.x", "b.x", above=0.05), values([1.1, 5.11, 9.12], [1.0, 5.0, 9.0]))
    assert found.verdict == "holds"
    assert found.difference == pytest.approx(0.11)
    assert found.interval == pytest.approx((0.11 - 0.02484138, 0.11 + 0.02484138), abs=1e-7)


def test_right_may_be_a_number() -> None:
    assert judge(Test("a.x", 0.3, above=0.05), values(SPREAD)).difference == pytest.approx(0.3)
    assert judge(Test("a.x", 2, below=0), values(SPREAD)).verdict == "holds"


@pytest.mark.parametrize(
    ("margin", "verdict"),
    [
        # Ratios e, e^2, e^3: geometric mean e^2, interval [exp(-0.484138), exp(4.484138)] = [0.616228, 88.5]
        ({"above": 0.6}, "holds"),
        ({"above": 0.62}, "inconclusive"),
        ({"above": 89}, "fails"),
        ({"below": 89}, "holds"),
        ({"below": 88}, "inconclusive"),
        ({"below": 0.6}, "fails"),
    ],
)
def test_ratios_are_compared_by_logarithms(margin: dict[str, float], verdict: str) -> None:
    left, right = [math.e * 3, math.e**2 * 5, math.e**3 * 7], [3.0, 5.0, 7.0]
    found = judge(Test("a.x", "b.x", ratio=True, **margin), values(left, right))
    assert found.verdict == verdict
    assert found.difference == pytest.approx(math.e**2)
    assert found.interval == pytest.approx((0.616228, 88.6005), rel=1e-5)
    assert found.per_seed == pytest.approx((math.e, math.e**2, math.e**3))


def test_a_ratio_below_one_disagrees_with_above_one() -> None:
    found = judge(Test("a.x", 1, above=1.1, ratio=True), values([2.0] * 29 + [0.9]))
    assert (found.verdict, found.reason) == ("inconclusive", "seed 29 disagrees")
    # A margin below one allows for a little less: 0.95 > 0.9.
    assert judge(Test("a.x", 1, above=0.9, ratio=True), values([1.0, 0.99, 1.01])).verdict == "holds"


@pytest.mark.parametrize(
    ("left", "right", "ratio", "reason"),
    [
        ([1.0, NAN, 1.0], [0.0, 0.0, 0.0], False, "a.x is nan at seed 1"),
        ([1.0, 1.0, INF], [0.0, 0.0, 0.0], False, "a.x is inf at seed 2"),
        ([1.0, 1.0, 1.0], [-INF, 0.0, 0.0], False, "b.x is -inf at seed 0"),
        ([INF, INF, INF], [INF, INF, INF], False, "a.x is inf at seed 0"),
        ([1.0, 1.0, 1.0], [1.0, 0.0, 1.0], True, "b.x is 0 at seed 1"),
        ([1.0, -2.0, 1.0], [1.0, 1.0, 1.0], True, "a.x is -2 at seed 1"),
    ],
)
def test_numbers_that_make_no_sense_are_inconclusive(
    left: list[float], right: list[float], ratio: bool, reason: str
) -> None:
    for deterministic in (False, True):
        for margin in ({"above": 0.5}, {"below": 0.5}):
            found = judge(Test("a.x", "b.x", ratio=ratio, **margin), values(left, right), deterministic)
            assert found.verdict == "inconclusive"
            assert reason in found.reason
            assert math.isnan(found.difference) and all(map(math.isnan, found.interval))


def test_deterministic_statements_are_their_values() -> None:
    found = judge(Test("a.x", "b.x", above=3), values([7.5], [4.0]), deterministic=True)
    assert (found.verdict, found.difference, found.interval) == ("holds", 3.5, (3.5, 3.5))
    assert judge(Test("a.x", "b.x", above=3.5), values([7.5], [4.0]), deterministic=True).verdict == "fails"
    assert judge(Test("a.x", "b.x", below=3.5), values([7.5], [4.0]), deterministic=True).verdict == "fails"
    assert judge(Test("a.x", "b.x", below=3.6), values([7.5], [4.0]), deterministic=True).verdict == "holds"
    # More seeds than it needs: the range of its values, without Student's allowance.
    assert judge(Test("a.x", 0, above=0), values([1.0, 2.0, 4.0]), deterministic=True).interval == (1.0, 4.0)
    assert judge(Test("a.x", 0, above=3), values([1.0, 2.0, 4.0]), deterministic=True).verdict == "inconclusive"


def _judged(verdict: str) -> Judgement:
    return Judgement(Test("a.x", 0, above=0), (1.0,), 1.0, (1.0, 1.0), verdict)


@pytest.mark.parametrize(
    ("verdicts", "verdict"),
    [
        (["holds"], "holds"),
        (["holds", "holds"], "holds"),
        (["holds", "inconclusive"], "inconclusive"),
        (["inconclusive"], "inconclusive"),
        (["holds", "fails"], "fails"),
        (["inconclusive", "fails", "holds"], "fails"),
    ],
)
def test_a_claim_is_as_good_as_its_tests(verdicts: list[str], verdict: str) -> None:
    assert overall([_judged(v) for v in verdicts], seeds=3, stated=3) == (verdict, "")
    assert overall([_judged(v) for v in verdicts], seeds=5, stated=3) == (verdict, "")
    found, reason = overall([_judged(v) for v in verdicts], seeds=2, stated=3)
    assert found == "inconclusive" and "2 of the 3 seeds" in reason


def test_an_unknown_measure_is_named() -> None:
    table = {"a.b": {"x": [1.0]}}
    assert measured(table, "a.b.x") == [1.0]
    for name in ("a.x", "a.b.y", "c.x"):
        with pytest.raises(UsageError, match=r"did not measure; it measured a\.b\.x"):
            measured(table, name)
    with pytest.raises(UsageError, match=r"'b\.y'"):
        judge(Test("a.b.x", "b.y", above=0), table)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"left": "a.x", "right": "b.x"}, "either above or below"),
        ({"left": "a.x", "right": "b.x", "above": 1, "below": 2}, "either above or below"),
        ({"left": "a.x", "right": "b.x", "above": NAN}, "margin nan is no number"),
        ({"left": "a.x", "right": "b.x", "below": INF}, "margin inf is no number"),
        ({"left": "a.x", "right": "b.x", "above": 0, "ratio": True}, r"margin 0.0 is no ratio"),
        ({"left": "a.x", "right": -1, "above": 1, "ratio": True}, "compared with -1"),
        ({"left": "a.x", "right": NAN, "above": 1}, "compared with nan"),
        ({"left": "ax", "right": 0, "above": 1}, "'ax' is not written arm.measure"),
        ({"left": "a.", "right": 0, "above": 1}, "not written"),
        ({"left": "a.x", "right": ".x", "above": 1}, "'.x' is not written"),
    ],
)
def test_a_test_is_checked_when_it_is_written(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Test(**arguments)


def test_statements() -> None:
    assert Test("a.x", "b.x", above=0.1).statement == "a.x − b.x > 0.1"
    assert Test("a.x", "b.x", below=1.5, ratio=True).statement == "a.x / b.x < 1.5"
    assert Test("a.x", 2, below=0).statement == "a.x − 2 < 0"
    assert Test("a.x", 0, below=2).statement == "a.x < 2"
    assert Test("a.x", "b.x", above=0).margin == 0.0
