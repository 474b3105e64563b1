"""The machine's limits."""

import torch

from jingdu.speed import peak
from jingdu.speed.peak import Limits, limits, matrix_peak, read_bandwidth


def test_limits_are_of_this_machine() -> None:
    found = limits()
    assert set(found.peak) == {"float32", "bf16"}
    # From a slow core's gigaflop to more than any device does in 2026; memory likewise.
    assert 1e9 < found.peak["float32"] < 1e16
    # A CPU without bf16 units emulates them: 0.3 gigaflop on an AVX2 core (2026-11-26).
    assert 1e7 < found.peak["bf16"] < 1e16
    assert 1e8 < found.bandwidth < 1e14
    assert found.as_json()["units"] == {"peak": "FLOP/s", "bandwidth": "B/s"}


def test_no_product_beats_the_peak_by_much() -> None:
    best = matrix_peak(torch.float32, size=768)
    assert 0.2 < matrix_peak(torch.float32, size=512, repeats=9) / best < 2


def test_operations_and_bytes_are_counted_right(monkeypatch) -> None:
    def half_a_second(work) -> float:
        work()
        return 0.5

    monkeypatch.setattr(peak, "seconds", half_a_second)
    assert matrix_peak(torch.float32, size=10) == 2 * 10**3 / 0.5
    assert read_bandwidth(mebibytes=3) == 3 * 2**20 / 0.5
    assert Limits({"float32": 1.0}, 2.0).as_json()["bandwidth"] == 2.0
