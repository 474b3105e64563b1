"""The canon: reads the cards and finds a paper's module, variants, recipes and claims by name.

The cards (`papers/<area>/cards.toml`) are the registry. Reading them imports no torch.
"""

import ast
import importlib
import importlib.util
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from jingdu.errors import UsageError, unknown
from jingdu.names import Call

PACKAGE = Path(__file__).parent


@dataclass(frozen=True)
class Paper:
    """One card: facts about a paper and its implementation."""

    key: str
    area: str
    title: str
    authors: str
    year: int
    first: str
    """Month of first appearance, YYYY-MM: a paper imports only papers that are not newer."""
    idea_en: str
    idea_zh: str
    builds_on: tuple[str, ...]
    """Papers whose code this module imports."""
    cites: tuple[str, ...] = ()
    """Parents that lend no code."""
    variants: Mapping[str, int] = field(default_factory=dict)
    """Variant -> number of trainable parameters; the first is the default. A paper without parameters, whose
    `build` gives a plain object, has none: its key is its only name."""
    counts_from: str = ""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """A library's name for one of our networks: "timm/resnet50" -> "resnet50(...)"."""
    weights: tuple[Mapping[str, str], ...] = ()
    venue: str = ""
    arxiv: str | None = None
    url: str | None = None
    course: Mapping[str, str] | None = None
    course_intro: Mapping[str, str] | None = None

    @property
    def module(self) -> str:
        return f"jingdu.papers.{self.area}.{self.key}"

    @property
    def default(self) -> str:
        return next(iter(self.variants), self.key)

    @property
    def link(self) -> str:
        return self.url or f"https://arxiv.org/abs/{self.arxiv}"

    @property
    def source_path(self) -> Path:
        base = PACKAGE / "papers" / self.area / self.key
        return base / "__init__.py" if base.is_dir() else base.with_suffix(".py")

    @property
    def source_files(self) -> tuple[Path, ...]:
        """All files of the module: one, or a package's, first the one that gives their reading order."""
        first = self.source_path
        others = first.parent.rglob("*.py") if first.name == "__init__.py" else ()
        return (first, *sorted(path for path in others if path != first))

    def load(self) -> Any:
        """Import the paper's module."""
        return importlib.import_module(self.module)

    def bibtex(self) -> str:
        """A BibTeX entry."""
        fields = {"title": self.title, "author": self.authors.replace(", ", " and "), "year": self.year}
        fields |= {"booktitle": self.venue} if self.venue else {}
        fields |= {"eprint": self.arxiv, "archivePrefix": "arXiv"} if self.arxiv else {"url": self.link}
        lines = ",\n".join(f"  {name} = {{{value}}}" for name, value in fields.items())
        return f"@misc{{{self.key}{self.year},\n{lines}\n}}"


@cache
def _cards() -> dict[str, Paper]:
    found = {}
    for path in sorted((PACKAGE / "papers").glob("*/cards.toml")):
        for key, table in tomllib.loads(path.read_text("utf-8")).items():
            table = {name: tuple(v) if isinstance(v, list) else v for name, v in table.items()}
            found[key] = Paper(key=key, area=path.parent.name, **table)
    return dict(sorted(found.items(), key=lambda item: item[1].first))


def papers(area: str | None = None) -> list[Paper]:
    """All papers of the library, oldest first. Raises UsageError for an unknown area."""
    cards = list(_cards().values())
    areas = {card.area for card in cards}
    if area is not None and area not in areas:
        raise unknown("area", area, areas)
    return [card for card in cards if area in (None, card.area)]


def paper(key: str) -> Paper:
    """The card of a paper. Raises UsageError, with the nearest keys, if there is none."""
    cards = _cards()
    if key not in cards:
        raise unknown("paper", key, cards, "See `jingdu list`.")
    return cards[key]


@dataclass(frozen=True)
class Resolved:
    """What a name means: a paper, one of its variants, and what a qualified name fixes."""

    paper: Paper
    variant: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    library: str | None = None
    by_key: bool = False
    """The name was a paper's key, so that weights may say which variant."""


def resolve(name: str) -> Resolved:
    """Find a variant, a paper's key (its first variant) or a qualified name (timm/resnet50)."""
    cards = _cards()
    known: set[str] = set(cards)
    for card in cards.values():
        if name in card.variants:
            return Resolved(card, name, by_key=name == card.key)
        if name in card.aliases:
            call = Call.parse(card.aliases[name])
            return Resolved(card, call.name, call.arguments, name.partition("/")[0])
        known |= set(card.variants) | set(card.aliases)
    if name in cards:
        return Resolved(cards[name], cards[name].default, by_key=True)
    raise unknown("model", name, known, "See `jingdu list`.")


def build(found: Resolved, variant: str, overrides: Mapping[str, Any]) -> Any:
    """Call the paper's `build`, with a clear error for an override that it does not know."""
    try:
        return found.paper.load().build(variant, **overrides)
    except TypeError as error:
        if "argument" not in str(error):
            raise
        raise UsageError(f"{variant}: {error}") from error


def create(name: str, weights: str | Path | None = None, **overrides: Any) -> Any:
    """A network, by name: `create("resnet50")`, `create("timm/resnet50", weights="model.safetensors")`.

    Args:
        name: a variant, a paper's key (its first variant), or LIBRARY/NAME.
        weights: a file, a folder, a run folder, hf:OWNER/NAME, URL#sha256=..., or "default".
        overrides: arguments of the paper's `build`, such as num_classes.

    Returns an `nn.Module` (or the paper's plain object) with an `origin`; in eval mode where
    weights were loaded. Raises UsageError, Missing or Refused.
    """
    from jingdu.prediction import Origin

    found = resolve(name)
    if weights is None:
        model = build(found, found.variant, {**found.overrides, **overrides})
        model.origin = Origin(found.variant, {**found.overrides, **overrides})
        return model
    from jingdu.weights import open_weights

    opened = open_weights(
        weights,
        family=found.paper.key,
        variants=tuple(found.paper.variants) or (found.paper.key,),
        published=found.paper.weights,
        variant=None if found.by_key else found.variant,
        library=found.library,
        aliases=found.paper.aliases,
        plain=not found.paper.variants,
        own_format=getattr(found.paper.load(), "read_weights", None),
    )
    variant = opened.variant if found.by_key and opened.variant else found.variant
    arguments = {**found.overrides, **opened.overrides, **overrides}
    model = build(found, variant, arguments)
    opened.fill(model, variant=variant, compare=not overrides)
    model.origin = Origin(variant, arguments, opened.description, opened.classes, opened.preprocess, opened.tokenizer)
    return model.eval() if hasattr(model, "eval") else model


def results_folder() -> Path:
    """Where the committed reports are: beside the package in a checkout, inside it when installed."""
    beside = PACKAGE.parent / "results"
    return beside if beside.is_dir() else PACKAGE / "results"


@dataclass(frozen=True)
class ClaimCard:
    """A claim as its decorator states it, and the committed report if there is one."""

    name: str
    text: str
    source: str
    report: Mapping[str, Any] | None


def claims(card: Paper) -> list[ClaimCard]:
    """The claims of a paper, read from the source text of its claims module: nothing is imported."""
    path = PACKAGE / "claims" / card.area / f"{card.key}.py"
    if not path.exists():
        return []
    found = []
    for node in ast.parse(path.read_text("utf-8")).body:
        if not isinstance(node, ast.FunctionDef):
            continue
        for mark in node.decorator_list:
            if isinstance(mark, ast.Call) and isinstance(mark.func, ast.Name) and mark.func.id == "claim":
                values = {k.arg: k.value for k in mark.keywords}
                text = ast.literal_eval(mark.args[0] if mark.args else values["text"])
                source = ast.literal_eval(values["source"]) if "source" in values else ""
                report = results_folder() / card.area / card.key / node.name / "report.json"
                found.append(
                    ClaimCard(node.name, text, source, json.loads(report.read_text()) if report.exists() else None)
                )
    return found


def claims_module(card: Paper) -> Any:
    """Import a paper's claims. Raises UsageError where it has none."""
    name = f"jingdu.claims.{card.area}.{card.key}"
    if importlib.util.find_spec(name) is None:
        raise UsageError(f"{card.key} has no claims")
    return importlib.import_module(name)
