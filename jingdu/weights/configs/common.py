"""What the configuration files of all families have in common."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jingdu.data.preprocess import Preprocess
from jingdu.errors import Refused

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Sizes:
    """Which network some weights are of. `variant` None: nothing says so but their keys."""

    variant: str | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    classes: tuple[str, ...] | None = None
    preprocess: Preprocess | None = None


@dataclass(frozen=True)
class Timm:
    """What a family makes of timm's configuration."""

    arguments: Mapping[str, str]
    """timm's arguments -> ours."""
    needs: Mapping[str, Any] = field(default_factory=dict)
    """Values that ours has and nothing else."""


def need(config: Config, name: str, wanted: Any) -> None:
    """Refuse a configuration that asks for something the paper's network does not have."""
    value = config.get(name, wanted)
    if value != wanted:
        raise Refused(f"config.json asks for {name} = {value!r}; our network has {wanted!r}")


def labels(config: Config) -> tuple[int, tuple[str, ...] | None]:
    """Number and names of the classes of a transformers configuration (2 where it does not say)."""
    names = config.get("id2label")
    if not isinstance(names, Mapping):
        return int(config.get("num_labels", 2)), None
    ordered = tuple(str(names[key]) for key in sorted(names, key=int))
    unnamed = all(name == f"LABEL_{i}" for i, name in enumerate(ordered))
    return len(ordered), None if unnamed else ordered
