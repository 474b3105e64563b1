"""A share of each row's faults with every commit; `python -m tests.faults --full` does all."""

from pathlib import Path

import pytest

from tests.faults.case import measure
from tests.faults.rows import ROWS


@pytest.mark.fault
@pytest.mark.parametrize("number", sorted(ROWS))
def test_row(number: int, tmp_path: Path) -> None:
    row = ROWS[number]
    outcome = measure(row, row.share, seed=0, folder=tmp_path / "row")
    assert outcome.done >= min(row.share, 4) and outcome.passed == outcome.done, outcome.failures[:5]
