import os
from pathlib import Path

import pytest

from jingdu.data.kept import kept
from jingdu.data.shipped import shipped_file
from jingdu.errors import Missing, UsageError


def test_what_is_kept_is_made_once_and_verified(capsys: pytest.CaptureFixture[str]) -> None:
    calls = []

    def make() -> bytes:
        calls.append(1)
        return b"content"

    assert kept("a/b", make) == kept("a/b", make) == b"content" and len(calls) == 1
    path = Path(os.environ["JINGDU_CACHE"]) / "a" / "b"
    whole = path.read_bytes()
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        assert kept("a/b", make) == b"content" and "have changed" in capsys.readouterr().err
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        assert kept("a/b", make) == b"content" and "have changed" in capsys.readouterr().err
    assert len(calls) == 1 + 2 * len(whole) and path.read_bytes() == whole


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("JINGDU_CACHE", str(tmp_path / "file"))
    with pytest.raises(UsageError, match="set JINGDU_CACHE"):
        kept("a", lambda: b"")


def test_files_of_packages() -> None:
    assert shipped_file("numpy", "numpy/__init__.py").is_file()
    with pytest.raises(Missing, match="pip install no-such-package"):
        shipped_file("no-such-package", "x")
    with pytest.raises(Missing, match="installed without it"):
        shipped_file("numpy", "numpy/none.txt")
