"""Paired timing, on a clock that the test turns."""

import gc
import json
import math
import random
from pathlib import Path

import pytest
import torch

import benchmarks.paired
from jingdu.speed import paired
from jingdu.speed.paired import alternate, compare, median_interval, save


class Clock:
    """A clock that stands still, except while a call takes its time."""

    def __init__(self) -> None:
        self.now, self.calls = 100.0, ""

    def takes(self, name: str, *milliseconds: float) -> object:
        turn = iter(range(10**6))

        def call() -> None:
            self.calls += name
            self.now += milliseconds[next(turn) % len(milliseconds)] / 1000

        return call


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(paired.time, "perf_counter", lambda: made.now)
    return made


def test_order_swaps_and_ratios_are_of_pairs(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    row = compare(clock.takes("A", 2.0), clock.takes("B", 3.0), "twin", rounds=6, warmup=3, work="one image")
    assert clock.calls == "AB" * 3 + "AB" + "BA" + "AB" + "BA" + "AB" + "BA"
    assert row["ratio"] == pytest.approx(1.5) and row["interval"] == pytest.approx([1.5, 1.5])
    assert (row["ours"], row["reference"]) == (pytest.approx(0.002), pytest.approx(0.003))
    assert (row["name"], row["rounds"], row["work"]) == ("twin", 6, "one image")
    assert (row["threads"], row["torch"]) == (torch.get_num_threads(), torch.__version__)
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and said.startswith("twin: 1.500 times as fast as the reference [1.500, 1.500]")


def test_drift_cancels_in_pairs(clock: Clock) -> None:
    # Both slow down tenfold half way; the ratio of each pair stays 2.
    ours, reference = [1.0] * 5 + [10.0] * 5, [2.0] * 5 + [20.0] * 5
    row = compare(clock.takes("A", *ours), clock.takes("B", *reference), "drift", rounds=10, warmup=0)
    assert row["ratio"] == pytest.approx(2.0) and row["interval"] == pytest.approx([2.0, 2.0])
    assert "work" not in row


def test_the_interval_is_of_the_median(clock: Clock) -> None:
    ratios = [1.0, 1.1, 1.2, 1.3, 1.4, 9.0]
    row = compare(clock.takes("A", 1.0), clock.takes("B", *ratios), "spread", rounds=6, warmup=0)
    assert row["ratio"] == pytest.approx(1.25) and row["interval"] == pytest.approx([1.0, 9.0])


@pytest.mark.parametrize(
    # Ranks from the binomial distribution: n = 6: 2/64; n = 9: 2 (1 + 9) / 512 = 0.039; n = 30: ranks 10 and 21.
    ("count", "low", "high"), [(6, 1, 6), (8, 1, 8), (9, 2, 8), (11, 2, 10), (12, 3, 10), (20, 6, 15), (30, 10, 21)],
)  # fmt: skip
def test_ranks_of_the_medians_interval(count: int, low: int, high: int) -> None:
    values = [float(v) for v in range(1, count + 1)]
    assert median_interval(values[::-1]) == (low, high)


def test_too_few_rounds_are_refused(clock: Clock) -> None:
    with pytest.raises(ValueError, match="5 values"):
        median_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    with pytest.raises(ValueError, match="5 rounds"):
        compare(clock.takes("A", 1.0), clock.takes("B", 1.0), "few", rounds=5)
    assert clock.calls == ""


def test_the_collector_comes_back(clock: Clock) -> None:
    def fails() -> None:
        assert not gc.isenabled()
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        compare(clock.takes("A", 1.0), fails, "broken", warmup=0)
    assert gc.isenabled()


def test_real_work_is_told_apart() -> None:
    a = torch.rand(97, 89)
    row = compare(lambda: a @ a.T, lambda: [a @ a.T for _ in range(7)], "seven times the work", rounds=15)
    assert row["interval"][0] > 1.5


@pytest.mark.parametrize("ratio", [0.9, 1.0, 1.3])
def test_known_ratios_come_back_out_of_noise(clock: Clock, ratio: float) -> None:
    # Each call takes up to a tenth longer than it should, by chance, and the machine slows down by half on the way.
    draw = random.Random(1)
    drift = [1 + turn / 80 for turn in range(40)]
    ours, reference = ([share * d * (1 + 0.1 * draw.random()) for d in drift] for share in (1, ratio))
    row = compare(clock.takes("A", *ours), clock.takes("B", *reference), "noise", rounds=40, warmup=0)
    low, high = row["interval"]
    assert low <= row["ratio"] <= high and high - low < 0.05 * ratio
    assert row["ratio"] == pytest.approx(ratio, rel=0.02)


def test_the_interval_covers_the_median_as_often_as_it_says() -> None:
    # Exponential: the median is ln 2, far from the mean. 20 values: ranks 6 and 15 cover it in 95.86 % of draws.
    draw = random.Random(2)
    intervals = [median_interval([draw.expovariate(1) for _ in range(20)]) for _ in range(2000)]
    assert sum(low <= math.log(2) <= high for low, high in intervals) / 2000 == pytest.approx(0.9586, abs=0.015)


def test_any_number_of_ways_can_alternate(clock: Clock) -> None:
    times = alternate({name: clock.takes(name, 1.0 + i) for i, name in enumerate("ABC")}, rounds=3, warmup=1)
    assert clock.calls == "ABC" + "ABC" + "CBA" + "ABC"
    assert times["C"] == pytest.approx([0.003] * 3)


def test_results_are_saved_with_their_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmarks.paired, "RESULTS", tmp_path / "results" / "benchmarks")
    rows = [{"name": "a", "ratio": 1.5}]
    for given in ("a.json", "results/benchmarks/a.json", Path("results/benchmarks/a.json")):
        path = benchmarks.paired.save(rows, given)
        assert path == tmp_path / "results" / "benchmarks" / "a.json"
        table = json.loads(path.read_text())
        assert table["rows"] == rows and table["versions"]["torch"] == torch.__version__
        assert set(table["machine"]) == {"cpu", "capability", "cores", "system"} and table["date"]
        path.unlink()
    assert save(rows, tmp_path / "elsewhere" / "b.json", note="n") == tmp_path / "elsewhere" / "b.json"
    assert json.loads((tmp_path / "elsewhere" / "b.json").read_text())["note"] == "n"


def test_results_lie_beside_the_benchmarks() -> None:
    path = Path(benchmarks.paired.__file__).parents[1] / "results" / "benchmarks"
    assert path == benchmarks.paired.RESULTS
