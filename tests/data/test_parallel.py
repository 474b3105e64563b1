"""Parallel text of the user's own: two files, or a data set with translations."""

from pathlib import Path

import numpy as np
import pytest

from jingdu.data import Preprocess, open_data
from jingdu.data.base import Data
from jingdu.data.draws import Draws
from jingdu.data.parallel import parallel
from jingdu.errors import BadInput, UsageError


def rows(data: Data) -> list[tuple[str, ...]]:
    indices = np.arange(len(data))
    batch = data.batch(indices, Draws(0, 0, indices))
    return list(zip(*(batch[k] for k in ("source", "target", "source_language", "target_language")), strict=True))


def write(folder: Path, name: str, lines: list[str]) -> str:
    (folder / name).write_text("\n".join(lines) + "\n", "utf-8")
    return str(folder / name)


def test_lines_that_stand_beside_each_other(tmp_path: Path) -> None:
    english = write(tmp_path, "a.en", [f"line {i}" for i in range(300)] + ["", "only\u2028one"])
    german = write(tmp_path, "a.de", [f"Zeile {i}" for i in range(300)] + ["nichts", "eine"])
    parts = {split: rows(parallel(split, english, german, ("en", "de"), share=0.2)) for split in ("train", "test")}
    both = parts["train"] + parts["test"]
    expected = {(f"line {i}", f"Zeile {i}", "en", "de") for i in range(300)} | {("only\u2028one", "eine", "en", "de")}
    assert set(both) == expected and len(both) == 301 and 30 < len(parts["test"]) < 90
    again = write(tmp_path, "b.en", ["line 7", "line 7"])
    data = open_data(
        f"parallel(source={english!r}, target={german!r}, test=({again!r}, {again!r}))", "test", Preprocess()
    )
    assert rows(data) == [("line 7", "line 7", "source", "target")] * 2


def test_files_that_do_not_belong_together(tmp_path: Path) -> None:
    one, two = write(tmp_path, "one", ["a", "b"]), write(tmp_path, "two", ["a"])
    with pytest.raises(BadInput, match="2 lines"):
        parallel("train", one, two)
    with pytest.raises(BadInput, match="nowhere"):
        parallel("train", one, str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match="no pair"):
        parallel("test", one, one, share=0.0)
    (tmp_path / "latin").write_bytes(b"\xe4\n")
    with pytest.raises(BadInput, match="UTF-8"):
        parallel("train", str(tmp_path / "latin"), one)


def test_a_data_set_with_translations(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    kinds = datasets.Features({"translation": datasets.Translation(("cs", "en")), "note": datasets.Value("string")})
    table = datasets.Dataset.from_list(
        [{"translation": {"cs": f"ahoj {i}", "en": f"hello {i}"}, "note": str(i)} for i in range(50)], features=kinds
    )
    datasets.DatasetDict({"train": table, "validation": table.select(range(3))}).save_to_disk(str(tmp_path / "set"))
    spec = f"hf:{tmp_path}/set"
    test = rows(open_data(f"{spec}(source='en', target='cs')", "test", Preprocess()))
    assert test == [(f"hello {i}", f"ahoj {i}", "en", "cs") for i in range(3)]
    assert rows(open_data(f"{spec}(source='note', target='en')", "train", Preprocess()))[7] == (
        "7",
        "hello 7",
        "note",
        "en",
    )
    with pytest.raises(UsageError, match="target"):
        open_data(f"{spec}(source='en')", "train", Preprocess())
    with pytest.raises(UsageError, match="de"):
        open_data(f"{spec}(source='en', target='de')", "train", Preprocess())
