"""Every claim's code runs, with the tiny budgets of a smoke run; the full runs' reports lie under results/."""

from pathlib import Path

import pytest

import jingdu
from jingdu import canon

CLAIMS = [(paper.key, claim.name) for paper in canon.papers() for claim in canon.claims(paper)]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Vocabularies are learnt once for all."""
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("key, name", CLAIMS)
def test_smoke(key: str, name: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JINGDU_CACHE", str(cache))
    (outcome,) = jingdu.reproduce(key, name, seeds=1, out=tmp_path, smoke=True)
    assert outcome.verdict == "smoke" and not outcome.problem
    assert all(len(values) == 1 for measures in outcome.values.values() for values in measures.values())
    assert (outcome.folder / "report.html").exists() and (outcome.folder / "picture.png").exists()
