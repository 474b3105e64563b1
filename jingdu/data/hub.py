"""Hugging Face `datasets`, on disk or from the hub (extra `[data]`).

Samples are addressed by their number, so that a run can be resumed anywhere and shuffled anyhow. A stream
cannot be: `streaming=True` therefore reads its first `count` rows into memory when it is opened, and is refused
without `count`.
"""

import threading
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
import torch

from jingdu import limits
from jingdu.data.base import Batch
from jingdu.data.draws import Draws
from jingdu.data.images import Crop, Pictures
from jingdu.data.preprocess import Preprocess
from jingdu.data.split import split_names
from jingdu.errors import Missing, Refused, UsageError, need_extra, unknown
from jingdu.names import Call

__all__ = ["HubData", "open_hub"]

_ARGUMENTS = ("config", "count", "image", "label", "source", "streaming", "target", "text")
_HELD_OUT = ("test", "validation", "valid", "val", "dev")


class HubData(Pictures):
    """Rows of a `datasets` table: `image`, `label` and `text` as far as it has such columns; or, of parallel text,
    `source`, `target` and the names of their languages.

    `rows` are those of the split. Labels are numbered as their ClassLabel says, or by their sorted values.
    """

    def __init__(self, table: Any, rows: Sequence[int], name: str, columns: Mapping[str, str],
                 numbers: Mapping[Any, int] | None, classes: Sequence[str] | None, preprocess: Preprocess,
                 crop: Crop | None, on_corrupt: Literal["stop", "skip"]):  # fmt: skip
        super().__init__(preprocess, crop, on_corrupt)
        self.table, self.row_numbers, self.name = table, list(rows), name
        self.columns, self.numbers = dict(columns), numbers
        self.classes = tuple(classes) if classes is not None else None

    def __len__(self) -> int:
        return len(self.row_numbers)

    def batch(self, indices: np.ndarray, draws: Draws) -> Batch:
        """The fields of these samples; under on_corrupt="skip" also `rows`: which of `indices` are left."""
        numbers = [self.row_numbers[int(index)] for index in indices]
        values = self.table[numbers]
        batch: Batch = {}
        kept = list(range(len(numbers)))
        if "image" in self.columns:
            names = [f"{self.name} row {number}" for number in numbers]
            # Undecoded: the table gives the file's bytes or where they lie, and our own decoder opens them.
            files = [
                BytesIO(v["bytes"]) if v["bytes"] is not None else v["path"] for v in values[self.columns["image"]]
            ]
            batch["image"], kept = self.load(files, names, draws)
        if "label" in self.columns:
            labels = [values[self.columns["label"]][row] for row in kept]
            batch["label"] = torch.tensor([self._number(label) for label in labels])
        if "text" in self.columns:
            batch["text"] = [values[self.columns["text"]][row] for row in kept]
        for side in ("source", "target"):
            if side in self.columns:
                column, _, language = self.columns[side].partition(".")
                batch[side] = [cell[language] if language else cell for cell in values[column]]
                batch[f"{side}_language"] = [language or column] * len(numbers)
        if self.on_corrupt == "skip":
            batch["rows"] = torch.tensor(kept)
        return batch

    def _number(self, label: Any) -> int:
        number = label if self.numbers is None else self.numbers.get(label)
        if number is None or number < 0:
            raise Refused(f"{self.name}: the label {label!r} of a row is none of the training labels")
        return number


def open_hub(
    text: str,
    split: Literal["train", "test"],
    preprocess: Preprocess,
    crop: Crop | None = None,
    on_corrupt: Literal["stop", "skip"] = "stop",
) -> HubData:
    """Open OWNER/NAME of the hub, or a folder: what `save_to_disk` wrote, or parquet, CSV and the like.

    Arguments in the text: `config` (one of a data set's configurations), `image`, `label`, `text` (columns, where
    their types leave a choice), `source` and `target` (of parallel text: two languages of a column of translations, or
    two columns of strings), `streaming` with `count` (the first rows only, in memory), or `count` alone.

    The test split is test, validation, valid, val or dev, the first whose labels are not hidden; where there is
    none, a tenth of the training rows, by their numbers, is held out.

    Raises:
        UsageError: an unknown argument, or a column or configuration that must be named.
        Missing: `datasets` is not installed, the hub does not answer within 15 s, or has no such data set.
        Refused: no such folder, columns that do not fit, hidden labels.
    """
    path = Path(text).expanduser()
    call = Call(text) if path.exists() else Call.parse(text)
    name, arguments = call.name, call.arguments
    if strange := [key for key in arguments if key not in _ARGUMENTS]:
        raise unknown("argument of hf:", strange[0], _ARGUMENTS)
    count, streaming = arguments.get("count"), bool(arguments.get("streaming", False))
    if streaming and count is None:
        raise UsageError(f"hf:{name}: a stream has no samples by number; give streaming=True, count=N to keep N rows")
    if count is not None and (not isinstance(count, int) or count < 1):
        raise UsageError(f"hf:{name}: count is a whole number of rows from 1 on, not {count!r}")
    try:
        import datasets
    except ImportError:
        raise need_extra("datasets", "data", "hf: data") from None

    path = Path(name).expanduser()
    if path.exists():
        splits = _local(datasets, path, arguments.get("config"), streaming)
    elif name.startswith((".", "/", "~")):
        raise Refused(
            f"{path}: no such folder; expected what datasets' save_to_disk wrote, or parquet, CSV, JSON files"
        )
    else:
        splits = _remote(datasets, name, arguments.get("config"), streaming)
    return _select(datasets, splits, f"hf:{name}", split, arguments, preprocess, crop, on_corrupt)


def _select(
    datasets: ModuleType, splits: Mapping[str, Any], name: str, split: str, arguments: Mapping[str, Any],
    preprocess: Preprocess, crop: Crop | None, on_corrupt: Literal["stop", "skip"],
) -> HubData:  # fmt: skip
    training = "train" if "train" in splits else next(iter(splits)) if len(splits) == 1 else None
    if training is None:
        raise Refused(f"{name}: no train split among {', '.join(splits)}")
    columns = _columns(datasets, _features(splits[training]), name, arguments)
    tables: dict[str, Any] = {}

    def table(which: str) -> Any:
        if which not in tables:
            tables[which] = _in_memory(datasets, splits[which], columns, arguments.get("count"))
        return tables[which]

    numbers, classes = _classes(datasets, table(training), columns, name)
    held_out, hidden = None, []
    for candidate in (candidate for candidate in _HELD_OUT if candidate in splits and candidate != training):
        if "label" in columns and _hidden(table(candidate), columns["label"]):
            hidden.append(candidate)
        else:
            held_out = candidate
            break
    if held_out is None and hidden:
        raise Refused(f"{name}: the labels of {', '.join(hidden)} are hidden, and no other split is held out")
    chosen = table(held_out if split == "test" and held_out else training)
    rows = list(range(len(chosen)))
    if held_out is None:
        rows = [int(row) for row in split_names([str(row) for row in rows], split)]
    if not rows:
        raise Refused(f"{name}: no rows in the {split} split")
    return HubData(
        chosen, rows, name, columns, numbers, classes, preprocess, crop if split == "train" else None, on_corrupt
    )


def _features(table: Any) -> Mapping[str, Any]:
    # A stream may learn its columns only from its first row.
    return table.features if table.features is not None else table._resolve_features().features


def _in_memory(datasets: ModuleType, table: Any, columns: Mapping[str, str], count: int | None) -> Any:
    """A table with rows by number, of at most `count`, whose images stay undecoded."""
    if not isinstance(table, datasets.Dataset):
        features = _features(table)
        if "image" in columns:
            table = table.cast_column(columns["image"], datasets.Image(decode=False))
            features = datasets.Features({**features, columns["image"]: datasets.Image(decode=False)})
        return datasets.Dataset.from_list(list(table.take(count)), features=features)
    if "image" in columns:
        table = table.cast_column(columns["image"], datasets.Image(decode=False))
    return table if count is None else table.select(range(min(count, len(table))))


def _columns(
    datasets: ModuleType, features: Mapping[str, Any], name: str, arguments: Mapping[str, Any]
) -> dict[str, str]:
    """Our field -> their column: by its type, unless the arguments name it."""

    def strings(kind: Any) -> bool:
        return isinstance(kind, datasets.Value) and kind.dtype in ("string", "large_string")

    if "source" in arguments or "target" in arguments:
        places = {column: column for column, kind in features.items() if strings(kind)}
        for column, kind in features.items():
            if isinstance(kind, datasets.Translation):
                places |= {language: f"{column}.{language}" for language in kind.languages}
        for side in ("source", "target"):
            if arguments.get(side) not in places:
                raise unknown(f"{side} of {name}", str(arguments.get(side)), places, "Give source and target.")
        return {side: places[arguments[side]] for side in ("source", "target")}

    fits = {
        "image": lambda kind: isinstance(kind, datasets.Image),
        "label": lambda kind: isinstance(kind, datasets.ClassLabel),
        "text": strings,
    }
    found: dict[str, str] = {}
    for ours, fit in fits.items():
        named = arguments.get(ours)
        if named is not None:
            if named not in features:
                raise unknown(f"column of {name}", named, features)
            if ours != "label" and not fit(features[named]):
                raise Refused(f"{name}: the column {named} holds no {ours} but {features[named]}")
            found[ours] = named
            continue
        candidates = [column for column, kind in features.items() if fit(kind)]
        if ours == "text" and "image" in found:
            continue  # beside images, strings are mostly file names: only a named column counts
        if ours in candidates:
            candidates = [ours]
        if len(candidates) > 1:
            raise UsageError(
                f"{name}: several columns could be the {ours} ({', '.join(candidates)}): name one, "
                f"hf:...({ours}={candidates[0]!r})"
            )
        if candidates:
            found[ours] = candidates[0]
    # Plain numbers count as labels only under the name that everyone gives them.
    if "label" not in found and isinstance(features.get("label"), datasets.Value) and found.get("text") != "label":
        found["label"] = "label"
    if not found:
        raise Refused(f"{name}: no image, label or text among its columns {', '.join(features)}")
    return found


def _classes(
    datasets: ModuleType, table: Any, columns: Mapping[str, str], name: str
) -> tuple[dict[Any, int] | None, tuple[str, ...] | None]:
    """How labels are numbered, and their names."""
    if "label" not in columns:
        return None, None
    kind = table.features[columns["label"]]
    if isinstance(kind, datasets.ClassLabel):
        return None, tuple(kind.names)
    values = table.unique(columns["label"])
    if not all(isinstance(value, bool | int | str) for value in values):
        raise Refused(f"{name}: the column {columns['label']} holds {kind}, not classes")
    values = sorted(values)
    return {value: number for number, value in enumerate(values)}, tuple(str(value) for value in values)


def _hidden(table: Any, column: str) -> bool:
    """Benchmarks publish test rows with -1 or nothing for a label."""
    return all(value is None or value == -1 for value in table.unique(column))


# Opening --------------------------------------------------------------------------------------


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _local(datasets: ModuleType, path: Path, config: str | None, streaming: bool) -> Mapping[str, Any]:
    if not path.is_dir():
        raise Refused(f"{path}: a file; give the folder that holds it, as hf:FOLDER")
    try:
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            loaded = datasets.load_from_disk(str(path))
        else:
            loaded = datasets.load_dataset(str(path.resolve()), config, streaming=streaming)
    # Whatever the library meets in a folder (formats, encodings, columns), the folder is what is wrong.
    except Exception as error:
        raise Refused(f"{path}: {_first_line(error)}") from None
    return loaded if isinstance(loaded, dict) else {"train": loaded}


def _remote(datasets: ModuleType, name: str, config: str | None, streaming: bool) -> Mapping[str, Any]:
    remedy = (
        f"fetch the data set {name} where there is a network, save_to_disk(FOLDER), copy it here and give "
        f"hf:FOLDER; or let HF_ENDPOINT name a mirror"
    )
    reached = datasets.config.HF_HUB_OFFLINE or _answers(
        f"{datasets.config.HF_ENDPOINT.rstrip('/')}/api/datasets/{name}"
    )
    before = datasets.config.HF_HUB_OFFLINE
    try:
        # A hub that is silent would be asked again and again for minutes; a copy in the cache needs none.
        datasets.config.HF_HUB_OFFLINE = before or not reached
        return datasets.load_dataset(name, config, streaming=streaming)
    except ConnectionError as error:
        where = "HF_HUB_OFFLINE is set" if before else f"{datasets.config.HF_ENDPOINT} does not answer"
        reason = where if before or not reached else _first_line(error)
        raise Missing(f"hf:{name} is not on this machine, and cannot be fetched ({reason}): {remedy}") from None
    except datasets.exceptions.DatasetNotFoundError as error:
        raise Missing(f"hf:{name}: {_first_line(error)} A private one needs `hf auth login`") from None
    except ValueError as error:
        raise UsageError(
            f"hf:{name}: {_first_line(error)} (a configuration is named hf:{name}(config='...'))"
        ) from None
    # Downloads and parsers fail in many ways; none of them is ours.
    except Exception as error:
        raise Missing(f"hf:{name} cannot be fetched ({_first_line(error)}): {remedy}") from None
    finally:
        datasets.config.HF_HUB_OFFLINE = before


def _answers(address: str) -> bool:
    """Whether anything is said at `address` within two thirds of `limits.HUB_SECONDS`; looking up its name counts."""
    seconds = limits.HUB_SECONDS * 2 / 3
    answered = threading.Event()

    def ask() -> None:
        try:
            with urllib.request.urlopen(address, timeout=seconds):
                answered.set()
        except urllib.error.HTTPError:
            answered.set()  # a refusal is an answer; the library will say what is wrong
        except (OSError, ValueError):
            return
        finally:
            finished.set()

    finished = threading.Event()
    threading.Thread(target=ask, daemon=True).start()
    finished.wait(seconds)
    return answered.is_set()
