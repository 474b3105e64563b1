"""What a paper's `predict` gives, and what a network knows of where it came from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jingdu.data.preprocess import Preprocess
from jingdu.errors import UsageError


@dataclass(frozen=True)
class Prediction:
    """One result: `text` for a person, `data` (plain JSON values) for a program, `files` written."""

    input: str
    text: str
    data: Mapping[str, Any]
    files: tuple[Path, ...] = ()
    more: bool = False
    """A piece of a text that goes on with the next result: the last one has the data of all."""


@dataclass(frozen=True)
class Origin:
    """Which variant a network is, and what its weights brought: `create` sets it as `model.origin`."""

    variant: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    source: str | None = None
    """Where the weights came from; None is random initialisation."""
    classes: tuple[str, ...] | None = None
    preprocess: Preprocess | None = None
    tokenizer: Path | None = None
    """A file or folder that says how text becomes tokens; `bpe.read_tokenizer` reads it."""


def origin_of(model: object) -> Origin:
    """The origin of a network made by `jingdu.create` or `jingdu.load`."""
    origin = getattr(model, "origin", None)
    if not isinstance(origin, Origin):
        raise UsageError(
            f"this {type(model).__name__} has no origin: make it with jingdu.create(name, weights=...) or jingdu.load(run)"
        )
    return origin
