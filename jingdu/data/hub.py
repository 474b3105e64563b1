"""Hugging Face `datasets`, local or from the hub (extra `[data]`)."""


import threading
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jingdu import limits
from jingdu.data.base import Batch
from jingdu.data.draws import Draws
from jingdu.data.images import prepare
from jingdu.data.preprocess import Preprocess
from jingdu.errors import Missing, Refused, need_extra


class HubData:
    """Rows of a `datasets` table: image, label and text columns under our names."""

    def __init__(self, table: Any, columns: dict[str, str], preprocess: Preprocess):
        self.table, self.columns, self.preprocess = table, columns, preprocess
        label = table.features.get(columns.get("label", "")) if table.features else None
        names = getattr(label, "names", None)
        self.classes: tuple[str, ...] | None = tuple(names) if names else None

    def __len__(self) -> int:
        return len(self.table)

    def batch(self, indices: np.ndarray, draws: Draws) -> Batch:
        rows = self.table[[int(i) for i in indices]]
        batch: Batch = {}
        for ours, theirs in self.columns.items():
            values = rows[theirs]
            if ours == "image":
                mode = "L" if self.preprocess.channels == 1 else "RGB"
                batch["image"] = torch.stack([prepare(image.convert(mode), self.preprocess) for image in values])
            else:
                batch[ours] = torch.tensor(values) if ours == "label" else list(values)
        return batch


def _columns(features: Any, image: str | None, label: str | None, text: str | None) -> dict[str, str]:
    """Our field -> their column, by the column's type unless it is named."""
    from datasets import ClassLabel, Image, Value

    found = {"image": image, "label": label, "text": text}
    for name, kind in features.items():
        if isinstance(kind, Image) and not found["image"]:
            found["image"] = name
        elif isinstance(kind, ClassLabel) and not found["label"]:
            found["label"] = name
        elif isinstance(kind, Value) and kind.dtype in ("string", "large_string") and not found["text"]:
            found["text"] = name
    for ours, theirs in found.items():
        if theirs is not None and theirs not in features:
            raise Refused(f"no column {theirs!r} for {ours}; there are {', '.join(features)}")
    if found["image"]:
        found["text"] = text  # a text column beside images is used only when named
    chosen = {ours: theirs for ours, theirs in found.items() if theirs}
    if not chosen:
        raise Refused(f"no image, label or text column among {', '.join(features)}: name one, e.g. hf:NAME(text='body')")
    return chosen


def hub_data(
    name: str,
    split: str,
    preprocess: Preprocess,
    *,
    image: str | None = None,
    label: str | None = None,
    text: str | None = None,
    config: str | None = None,
    streaming: bool = False,
    count: int | None = None,
) -> HubData:
    """Open a data set of the hub, or one saved on disk.

    Args:
        name: OWNER/NAME, or the path of a folder that `save_to_disk` wrote.
        streaming: read the first `count` rows without downloading the rest. Samples are addressed
            by index, so a stream is held in memory and `count` is needed.

    Raises Missing when the extra or the hub is absent, Refused for columns that do not fit.
    """
    try:
        import datasets
    except ImportError:
        raise need_extra("datasets", "data", "hf: data") from None
    if streaming and count is None:
        raise Refused(f"hf:{name}: streaming needs count=N, the rows to keep in memory")

    if Path(name).is_dir():
        loaded = datasets.load_from_disk(name)
        table = loaded if isinstance(loaded, datasets.Dataset) else _split(loaded, split, name)
    else:
        result: list[Any] = []
        worker = threading.Thread(
            target=lambda: result.append(_fetch(datasets, name, config, split, streaming)), daemon=True
        )
        worker.start()
        worker.join(None if _online_quickly(name) else 0)
        if not result or isinstance(result[0], Exception):
            reason = str(result[0]).splitlines()[0] if result else f"no answer within {limits.HUB_SECONDS:.0f} s"
            raise Missing(
                f"hf:{name} cannot be fetched ({reason}). Download it elsewhere, `save_to_disk(FOLDER)`, and give "
                "hf:FOLDER; HF_ENDPOINT names a mirror"
            )
        table = result[0]
    if streaming and not isinstance(table, datasets.Dataset):
        table = datasets.Dataset.from_list(list(table.take(count)), features=table.features)
    elif count is not None:
        table = table.select(range(min(count, len(table))))
    return HubData(table, _columns(table.features, image, label, text), preprocess)


def _split(loaded: Any, split: str, name: str) -> Any:
    for candidate in (split, "validation") if split == "test" else (split,):
        if candidate in loaded:
            return loaded[candidate]
    raise Refused(f"hf:{name}: no {split} split; there are {', '.join(loaded)}")


def _fetch(datasets: Any, name: str, config: str | None, split: str, streaming: bool) -> Any:
    try:
        return _split(datasets.load_dataset(name, config, streaming=streaming), split, name)
    except Exception as error:  # any failure of the network or the hub, told as one
        return error


def _online_quickly(name: str) -> bool:
    """Whether the hub answers at all within the deadline; a cached copy needs no answer."""
    import os
    import urllib.error
    import urllib.request

    if os.environ.get("HF_HUB_OFFLINE") or os.environ.get("HF_DATASETS_OFFLINE"):
        return True  # the library looks into its cache only, and returns at once
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    answered = threading.Event()

    def ask() -> None:
        try:
            with urllib.request.urlopen(f"{endpoint}/api/datasets/{name}", timeout=limits.HUB_SECONDS):
                answered.set()
        except urllib.error.HTTPError:
            answered.set()  # it answered; the library will say what is wrong
        except (OSError, ValueError):
            return

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(limits.HUB_SECONDS - 2)
    return answered.is_set()
