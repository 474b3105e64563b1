"""Key names between our networks and other libraries: rules as data, read in both directions.

A family's tables are in `keys/<family>.toml`, one for each library:

    [torchvision]
    rules = [["conv{s}_x.{b}.conv{c}.{*}", "layer{s-1}.{b}.conv{c}.{*}"],      # ours, theirs
             ["fc.weight", "head.weight", "transpose"],                         # with a transform
             ["qkv.{*}", ["q.{*}", "k.{*}", "v.{*}"], "concatenate(0)"]]        # three of theirs
    ignore = ["*.num_batches_tracked"]      # may be absent, or be there for nothing
    prefix = "model."                       # before all of their names
    bare = true                             # files without the prefix are known too
    outside = ["head."]                     # names that begin so never have the prefix
    spare = ["pooler.*"]                    # may be there for nothing, and not be absent
    old = { ".gamma" = ".weight" }          # endings of names in older files -> those of today
    starts = { "net.layer." = "layers." }   # beginnings of names in some files -> those of the rules
    variants = ["resnet18"]                 # only for these; all without it

    [torchvision.lists.features]            # layers that it numbers through, by variant: conv2_1.{*} is
    vgg11 = "conv1_1 . . conv2_1"           # features.3.{*} here; a dot is a layer without tensors
    inside = [["conv.{*}", "0.{*}"]]        # rules for the rest of their names; without it, {*} is {*}

    [[torchvision.only]]                    # rules of some variants alone
    variants = ["vgg11_bn"]
    rules = [["norm.{*}", "bn.{*}"]]

    [timm]
    same_as = "torchvision"
    more = [["fc.{*}", "head.fc.{*}"]]      # rules before the other's

`{x}` is a word without dots, `{x-1}` the number x less one, `{*}` the rest. The first rule that fits is
used. Every rule has the same fields on both sides, so it can be read backwards.
"""

import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

from jingdu.errors import Refused, UsageError, unknown
from jingdu.weights.report import SHOWN, nearest, printable, some
from jingdu.weights.transforms import SAME, Transform

_FIELD = re.compile(r"\{(\*|[a-z][a-z0-9_]*)(?:([+-])(\d+))?\}")
OWN = "jingdu"
"""The name of our own format: our keys as they are."""


class Pattern:
    """A key with fields. Raises ValueError for one that cannot be read in both directions."""

    def __init__(self, text: str):
        self.text = text
        self.fields: dict[str, int] = {}
        self.numbers: set[str] = set()
        self._literals: list[str] = []
        self._order: list[str] = []
        end = 0
        for match in _FIELD.finditer(text):
            name, sign, offset = match.groups()
            literal = text[end : match.start()]
            if name in self.fields:
                raise ValueError(f"{text!r} repeats the field {name}")
            if not literal and self._order:
                raise ValueError(f"{text!r} has two fields without anything between them")
            if name == "*" and match.end() != len(text):
                raise ValueError(f"{text!r}: {{*}} is the rest and stands at the end")
            self._literals.append(literal)
            self._order.append(name)
            self.fields[name] = int(f"{sign or '+'}{offset or 0}")
            if offset:
                self.numbers.add(name)
            end = match.end()
        self._literals.append(text[end:])
        if any(mark in literal for literal in self._literals for mark in "{}"):
            raise ValueError(f"{text!r}: a field is {{name}}, {{name-1}} or {{*}}")

    def compile(self, numbers: set[str]) -> None:
        """Build the matcher, knowing which fields are numbers on either side of the rule."""
        self._numbers = numbers
        text = re.escape(self._literals[0])
        for name, literal in zip(self._order, self._literals[1:], strict=True):
            kind = ".+" if name == "*" else "0|[1-9][0-9]{0,17}" if name in numbers else r"[^.]+"
            text += f"({kind})" + re.escape(literal)
        self._regex = re.compile(text, re.DOTALL)

    def match(self, key: str) -> dict[str, str | int] | None:
        """The fields of a key, offsets undone; None if it does not fit."""
        found = self._regex.fullmatch(key)
        if found is None:
            return None
        values: dict[str, str | int] = {}
        for name, text in zip(self._order, found.groups(), strict=True):
            values[name] = int(text) - self.fields[name] if name in self._numbers else text
        return values

    def write(self, values: Mapping[str, str | int]) -> str | None:
        """The key of some fields; None where a number would be negative."""
        text = self._literals[0]
        for name, literal in zip(self._order, self._literals[1:], strict=True):
            value = values[name]
            if isinstance(value, int):
                value += self.fields[name]
                if value < 0:
                    return None
            text += f"{value}{literal}"
        return text


@dataclass(frozen=True)
class Entry:
    """Some tensors of ours, the ones of theirs that they are, and how."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    transform: Transform = SAME


class Rule:
    """One line of a table."""

    def __init__(self, ours: str | Sequence[str], theirs: str | Sequence[str], transform: str = ""):
        self.ours = [Pattern(text) for text in ([ours] if isinstance(ours, str) else ours)]
        self.theirs = [Pattern(text) for text in ([theirs] if isinstance(theirs, str) else theirs)]
        self.transform = Transform(transform, theirs=len(self.theirs), ours=len(self.ours))
        sides = [*self.ours, *self.theirs]
        if any(set(side.fields) != set(sides[0].fields) for side in sides):
            raise ValueError(f"{ours!r} and {theirs!r} have different fields")
        numbers = {name for side in sides for name in side.numbers}
        for side in sides:
            side.compile(numbers)

    def _entry(self, key: str, sides: Sequence[Pattern]) -> Entry | None:
        for side in sides:
            values = side.match(key)
            if values is None:
                continue
            ours = [pattern.write(values) for pattern in self.ours]
            theirs = [pattern.write(values) for pattern in self.theirs]
            if None in ours or None in theirs:
                continue
            return Entry(tuple(map(str, ours)), tuple(map(str, theirs)), self.transform)
        return None

    def from_ours(self, key: str) -> Entry | None:
        return self._entry(key, self.ours)

    def from_theirs(self, key: str) -> Entry | None:
        return self._entry(key, self.theirs)


class Numbering:
    """Layers that a library numbers through: our name of each and its place, and rules for the names inside."""

    def __init__(self, key: str, text: str, inside: Sequence[Sequence[Any]] = (("{*}", "{*}"),)):
        self.theirs = {word: f"{key}.{place}" for place, word in enumerate(text.split()) if word != "."}
        self.ours = {place: word for word, place in self.theirs.items()}
        self.inside = tuple(Rule(*rule) for rule in inside)

    def _entry(self, key: str, ours: bool) -> Entry | None:
        words = key.split(".")
        for cut in range(len(words) - 1, 0, -1):
            layer, rest = ".".join(words[:cut]), ".".join(words[cut:])
            other = (self.theirs if ours else self.ours).get(layer)
            if other is None:
                continue
            own, place = (layer, other) if ours else (other, layer)
            for rule in self.inside:
                found = rule.from_ours(rest) if ours else rule.from_theirs(rest)
                if found is not None:
                    sides = ((own, found.ours), (place, found.theirs))
                    here, there = (tuple(f"{prefix}.{name}" for name in names) for prefix, names in sides)
                    return Entry(here, there, found.transform)
        return None

    def from_ours(self, key: str) -> Entry | None:
        return self._entry(key, ours=True)

    def from_theirs(self, key: str) -> Entry | None:
        return self._entry(key, ours=False)


@dataclass(frozen=True)
class Fit:
    """How a table's names compare with the keys of a file."""

    table: "KeyTable"
    entries: tuple[Entry, ...]
    """What can be read, for tensors that the file has."""
    missing: tuple[str, ...]
    """Their names that the network needs and the file lacks."""
    unexpected: tuple[str, ...]
    unknown: tuple[str, ...] = ()
    """Our names that the table has no rule for."""

    @property
    def exact(self) -> bool:
        return not (self.missing or self.unexpected or self.unknown)

    def message(self) -> str:
        """Missing and unexpected keys, the first few of each, with the nearest names that are there."""
        parts = []
        if self.missing:
            shown = []
            for name in self.missing[:SHOWN]:
                entry = self.table.from_theirs(name)
                ours = "" if entry is None or name in entry.ours else f" (our {', '.join(entry.ours)})"
                shown.append(printable(name) + ours + nearest(name, self.unexpected))
            more = f", ... ({len(self.missing) - SHOWN} more)" if len(self.missing) > SHOWN else ""
            parts.append(f"{len(self.missing)} missing: {', '.join(shown)}{more}")
        if self.unexpected:
            parts.append(f"{len(self.unexpected)} unexpected: {some(self.unexpected)}")
        if self.unknown:
            parts.append(f"{len(self.unknown)} of ours that {self.table.name} has no name for: {some(self.unknown)}")
        return "; ".join(parts)


@dataclass(frozen=True)
class KeyTable:
    """The names of one library for one family of networks."""

    name: str
    rules: tuple[Rule | Numbering, ...] = ()
    ignore: tuple[str, ...] = ()
    prefix: str = ""
    bare: bool = False
    outside: tuple[str, ...] = ()
    spare: tuple[str, ...] = ()
    old: Mapping[str, str] = field(default_factory=dict, compare=False)
    starts: Mapping[str, str] = field(default_factory=dict, compare=False)
    variants: tuple[str, ...] = ()
    numbered: Mapping[str, tuple[Rule | Numbering, ...]] = field(default_factory=dict, repr=False, compare=False)
    """Variant -> its lists, and rules of its own."""
    _identity: bool = field(default=False, repr=False)

    @classmethod
    def identity(cls) -> "KeyTable":
        """Our own format."""
        return cls(OWN, _identity=True)

    def of(self, variant: str | None) -> "KeyTable":
        """The table of one variant: with its lists and own rules, where there are some."""
        return replace(self, rules=self.rules + self.numbered.get(variant or "", ()), numbered={})

    def _prefixed(self, entry: Entry | None) -> Entry | None:
        if entry is None or not self.prefix:
            return entry
        theirs = tuple(name if name.startswith(self.outside) else self.prefix + name for name in entry.theirs)
        return Entry(entry.ours, theirs, entry.transform)

    def from_ours(self, key: str) -> Entry | None:
        """What our `key` is there; None without a rule. Raises ValueError where the way back leads elsewhere."""
        if self._identity:
            return Entry((key,), (key,))
        entry = next(filter(None, (rule.from_ours(key) for rule in self.rules)), None)
        entry = self._prefixed(entry)
        if entry is not None:
            back = {self.from_theirs(name) for name in entry.theirs}
            if back != {entry}:
                raise ValueError(f"{self.name}: {key!r} becomes {entry.theirs}, which lead back to {back}")
        return entry

    def from_theirs(self, key: str) -> Entry | None:
        """What their `key` is with us; None without a rule."""
        if self._identity:
            return Entry((key,), (key,))
        if not key.startswith((self.prefix, *self.outside)):
            return None
        bare = key.removeprefix(self.prefix)
        return self._prefixed(next(filter(None, (rule.from_theirs(bare) for rule in self.rules)), None))

    def ignores(self, *keys: str) -> bool:
        """Whether one of these may be absent, or be there for nothing."""
        return any(fnmatchcase(key, pattern) for key in keys for pattern in self.ignore)

    def _spares(self, key: str) -> bool:
        """Whether this may be there for nothing."""
        return any(fnmatchcase(key, pattern) for pattern in self.spare)

    def _renamed(self, keys: Iterable[str]) -> dict[str, str]:
        """Names of an older file -> what they would be today, unless that is there as well."""
        keys, found = set(keys), {}
        for key in keys:
            for ending, today in self.old.items():
                if key.endswith(ending) and (name := key.removesuffix(ending) + today) not in keys:
                    found[key] = name
            for start, today in self.starts.items():
                if key.startswith(start) and (name := today + key.removeprefix(start)) not in keys:
                    found[key] = name
        return found

    def fit(self, keys: Iterable[str], expected: Iterable[str]) -> Fit:
        """Compare the keys of a file with those that a network with keys `expected` needs."""
        keys, expected = set(keys), set(expected)
        if self.bare and self.prefix and not any(key.startswith(self.prefix) for key in keys):
            return replace(self, prefix="").fit(keys, expected)
        if renamed := self._renamed(keys):
            fit = replace(self, old={}, starts={}).fit({renamed.get(key, key) for key in keys}, expected)
            written = {today: key for key, today in renamed.items()}
            entries = (replace(e, theirs=tuple(written.get(name, name) for name in e.theirs)) for e in fit.entries)
            return replace(fit, entries=tuple(entries))
        entries: dict[Entry, None] = {}
        strangers = []
        for key in sorted(expected):
            entry = self.from_ours(key)
            if entry is not None and expected.issuperset(entry.ours):
                entries[entry] = None
            elif not self.ignores(key):
                strangers.append(key)
        needed = {name: entry for entry in entries for name in entry.theirs}
        missing = [name for name in needed if name not in keys and not self.ignores(name, *needed[name].ours)]
        unexpected = [key for key in sorted(keys - set(needed)) if not (self.ignores(key) or self._spares(key))]
        here = tuple(entry for entry in entries if keys.issuperset(entry.theirs))
        return Fit(self, here, tuple(sorted(missing)), tuple(unexpected), tuple(strangers))


def _table(name: str, raw: Mapping[str, Any]) -> KeyTable:
    known = {
        "rules", "ignore", "prefix", "bare", "outside", "spare", "old", "starts", "variants", "same_as", "more", "lists", "only",
    }  # fmt: skip
    extra = set(raw) - known
    if extra:
        raise ValueError(f"[{name}]: unknown {', '.join(sorted(extra))}")
    numbered: dict[str, tuple[Rule | Numbering, ...]] = {}
    for key, content in raw.get("lists", {}).items():
        options = {"inside": content["inside"]} if "inside" in content else {}
        for variant in (name for name in content if name != "inside"):
            numbered[variant] = (*numbered.get(variant, ()), Numbering(key, content[variant], **options))
    for part in raw.get("only", ()):
        for variant in part["variants"]:
            numbered[variant] = (*numbered.get(variant, ()), *(Rule(*rule) for rule in part["rules"]))
    return KeyTable(
        name,
        tuple(Rule(*rule) for rule in [*raw.get("more", ()), *raw.get("rules", ())]),
        tuple(raw.get("ignore", ())),
        raw.get("prefix", ""),
        raw.get("bare", False),
        tuple(raw.get("outside", ())),
        tuple(raw.get("spare", ())),
        dict(raw.get("old", {})),
        dict(raw.get("starts", {})),
        tuple(raw.get("variants", numbered)),
        numbered,
    )


KEYS = Path(__file__).parent / "keys"


@cache
def tables(family: str) -> Mapping[str, KeyTable]:
    """All tables of a family by library, our own format first. `same_as` shares another's rules."""
    path = KEYS / f"{family}.toml"
    raw = tomllib.loads(path.read_text("utf-8")) if path.exists() else {}
    found = {OWN: KeyTable.identity()}
    for name, content in raw.items():
        same = content.get("same_as")
        found[name] = _table(name, {**raw[same], **content} if same else content)
    return found


def library_of(config: Mapping[str, Any] | None) -> str | None:
    """The library whose `config.json` this is."""
    if config is None:
        return None
    if "architecture" in config:
        return "timm"
    if "_class_name" in config:
        return "diffusers"
    if "model_cfg" in config:
        return "open_clip"
    return "transformers" if "architectures" in config or "model_type" in config else None


def detect(
    keys: Iterable[str],
    config: Mapping[str, Any] | None,
    family: str,
    library: str | None,
    expected: Iterable[str],
    variant: str | None = None,
) -> Fit:
    """The table by which a file with these keys becomes a network with the keys `expected`.

    `library` (from a qualified name) decides; else the `config.json` beside the file; else the table that
    translates exactly these keys into exactly those. Raises UsageError where two tables do and mean
    different tensors, or for an unknown library; Refused, with the nearest table's missing and unexpected
    keys, where none does.
    """
    keys, expected = set(keys), set(expected)
    known = {
        name: table.of(variant)
        for name, table in tables(family).items()
        if not table.variants or variant is None or variant in table.variants
    }
    if library is not None and library not in known:
        raise unknown(f"format of {family} weights", library, known)
    said = library_of(config)
    chosen = library or (said if said in known else None)
    fits = [table.fit(keys, expected) for name, table in known.items() if chosen in (None, name)]
    exact = [fit for fit in fits if fit.exact]
    if not exact:
        best = min(fits, key=lambda fit: len(fit.missing) + len(fit.unexpected) + 2 * len(fit.unknown))
        hint = f"; the config.json beside them is of {said}" if said and library and said != library else ""
        raise Refused(f"the weights do not fit, read as {best.table.name}{hint}: {best.message()}")
    if len({frozenset(fit.entries) for fit in exact}) > 1:
        names = ", ".join(fit.table.name for fit in exact)
        raise UsageError(
            f"the keys of these weights fit several formats of {family} ({names}) and mean different tensors in "
            f"them: name the network as LIBRARY/NAME, for example {exact[-1].table.name}/..."
        )
    return exact[0]
