"""What the cards offer and what this machine keeps: the verb `jingdu weights`. Imports no torch.

There are three places. What was fetched from an address lies in our cache, in a folder that is named after its
sha256; what a user puts there by hand for a repository of the hub lies beside it; and what was fetched from the hub
lies in the cache of the hub's library. Other programs share the last one: we read all of it, and remove from it
only what is damaged, what we left half, and what a card or the user names.
"""

import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jingdu import canon
from jingdu.errors import Refused, UsageError
from jingdu.weights.download import Unreachable, alone, cache_folder, checksum, url_place
from jingdu.weights.hub import (
    by_hand_folder,
    discard,
    files_of,
    hub_cache,
    is_intact,
    kind_of_tag,
    parse,
    repository,
    snapshot,
)
from jingdu.weights.sources import KINDS, address

State = Literal["intact", "damaged", "unreadable", "partial", "unrecorded"]
"""Of a file: as its recorded checksum says, or half fetched, or there is no record (it was put there by hand)."""


# What the cards offer ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Where:
    """The place of a source on this machine."""

    source: str
    path: Path
    """The file or folder; where there is none yet, the place to put it by hand."""
    state: Literal["here", "begun", "damaged", "absent"]
    """Not verified: `verify` is for that. Damaged: the folder's index of shards cannot be read."""
    bytes: int | None = None


@dataclass(frozen=True)
class Offer:
    """A published source of a card."""

    paper: str
    variant: str
    format: str
    licence: str
    parameters: int | None
    where: Where


def _entries() -> Iterator[tuple[canon.Paper, Mapping[str, Any]]]:
    return ((card, entry) for card in canon.papers() for entry in card.weights)


def where(source: str) -> Where:
    """Find a source on this machine. Raises UsageError for what cannot be one."""
    if source.startswith("hf:"):
        repo, revision = parse(source)
        by_hand = by_hand_folder(repo, revision)
        for folder in (by_hand, snapshot(repo, revision)):
            try:
                files = files_of(folder) if folder else []
            except Refused:
                return Where(source, folder or by_hand, "damaged")
            if folder and files:
                return Where(source, folder, "here", sum(path.stat().st_size for path in files))
        begun = any((repository(repo) / "blobs").glob("*.part"))
        return Where(source, by_hand, "begun" if begun else "absent")
    if "://" in source:
        path = url_place(*address(source, next((entry for _, entry in _entries() if entry["source"] == source), {})))
        begun = path.with_name(f"{path.name}.part").exists()
    elif "/" in source or "." in source:
        path, begun = Path(source).expanduser(), False
    else:
        raise UsageError(f"unknown weights {source!r}: weights are {KINDS}")
    if path.exists():
        return Where(source, path, "here", path.stat().st_size if path.is_file() else None)
    return Where(source, path, "begun" if begun else "absent")


def offers(name: str | None = None) -> list[Offer]:
    """The published sources of all papers, of one, of a variant, or of LIBRARY/NAME. Raises UsageError."""
    found = None if name is None else canon.resolve(name)

    def wanted(card: canon.Paper, entry: Mapping[str, Any]) -> bool:
        if found is None or found.by_key:
            return found is None or card.key == found.paper.key
        return (
            card.key == found.paper.key
            and entry.get("variant", found.variant) == found.variant
            and found.library in (None, entry.get("format"))
        )

    rows = []
    for card, entry in _entries():
        if wanted(card, entry):
            variant, place = entry.get("variant", card.default), where(entry["source"])
            if place.bytes is None and "bytes" in entry:
                place = Where(place.source, place.path, place.state, int(entry["bytes"]))
            licence = entry.get("licence", "not stated")
            rows.append(Offer(card.key, variant, entry.get("format", ""), licence, card.variants.get(variant), place))
    return rows


# What is kept --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kept:
    """A file of the caches."""

    path: Path
    source: str
    place: Literal["address", "by hand", "hub"]

    @property
    def bytes(self) -> int:
        return self.path.stat().st_size

    @property
    def is_partial(self) -> bool:
        return self.path.name.endswith(".part")

    def state(self) -> State:
        """Reads the whole file, to compare it with its recorded checksum."""
        if self.is_partial:
            return "partial"
        try:
            if self.place == "hub":
                intact = is_intact(self.path)
            elif self.place == "address" and re.fullmatch("[0-9a-f]{8,16}", self.path.parent.name):
                intact = checksum(self.path).startswith(self.path.parent.name)
            else:
                intact = None
        except OSError:
            return "unreadable"
        return "unrecorded" if intact is None else "intact" if intact else "damaged"


def places() -> dict[str, Path]:
    """The three folders."""
    return {"address": cache_folder() / "weights", "by hand": cache_folder() / "hub", "hub": hub_cache()}


def _below(folder: Path) -> Iterator[Path]:
    """All files, links among them, in their order; folders that are links are left alone."""
    for root, folders, names in os.walk(folder):
        folders.sort()
        yield from (Path(root) / name for name in sorted(names) if not name.endswith(".lock"))


def kept() -> Iterator[Kept]:
    """The weights in the three places. Nothing is read but names."""
    folders = places()
    known = {
        url_place(*address(entry["source"], entry)): entry["source"]
        for _, entry in _entries()
        if "://" in entry["source"]
    }
    for path in _below(folders["address"]):
        whole = path.with_name(path.name.removesuffix(".part"))
        yield Kept(path, known.get(whole, whole.name), "address")
    for path in _below(folders["by hand"]):
        yield Kept(path, f"hf:{path.parent.relative_to(folders['by hand']).as_posix()}", "by hand")
    for folder in sorted(folders["hub"].glob("models--*")):
        for path in sorted((folder / "blobs").glob("*")):
            if kind_of_tag(path.name.removesuffix(".part")) and path.exists():
                yield Kept(path, _source_of(folder), "hub")


def _source_of(folder: Path) -> str:
    return "hf:" + folder.name.removeprefix("models--").replace("--", "/", 1)


# What is removed -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Removed:
    """A file, or a repository of the hub with all its files."""

    path: Path
    source: str
    bytes: int
    why: str
    done: bool = True
    """False: another process is fetching it now, and it was left."""


def prune(
    source: str | None = None, *, everything: bool = False, older_than: float | None = None, dry: bool = False
) -> Iterator[Removed]:
    """Remove weights from the caches, and say what goes.

    Args:
        source: this one (hf:OWNER/NAME with all its revisions, or an address).
        everything: what we fetched, and the repositories of the hub that a card names.
        older_than: the same, but only what was fetched more than so many days ago.
        dry: say it alone.

    Without any of them: partial downloads and damaged files, for which all is read. Files that were put there by
    hand are removed by their name alone. Raises UsageError for a source that is in no cache of ours, or no age.
    """
    if older_than is not None and not older_than >= 0:
        raise UsageError(f"older than {older_than:g} days: give 0 or more")
    if source is not None:
        chosen = _named(source)
    elif everything or older_than is not None:
        chosen = _fetched(time.time() - 86400 * older_than if older_than is not None else None)
    else:
        chosen = _broken()
    for path, name, why in chosen:
        size = _bytes(path)
        yield Removed(path, name, size, why, dry or _remove(path))


def _broken() -> Iterator[tuple[Path, str, str]]:
    for one in kept():
        if one.is_partial:
            yield one.path, one.source, "partial download"
        elif one.state() == "damaged":
            yield one.path, one.source, "damaged"


def _fetched(before: float | None) -> Iterator[tuple[Path, str, str]]:
    """What was fetched before a moment (None: at any time) and is ours to remove."""

    def is_old(*paths: Path) -> bool:
        return before is None or all(path.lstat().st_mtime < before for path in paths)

    why = "all" if before is None else "old"
    for one in list(kept()):
        if one.place == "address" and is_old(one.path):
            yield one.path, one.source, why
    named = {repository(parse(entry["source"])[0]) for _, entry in _entries() if entry["source"].startswith("hf:")}
    for folder in sorted(path for path in named if path.is_dir()):
        if is_old(*_below(folder)):
            yield folder, _source_of(folder), why


def _named(source: str) -> Iterator[tuple[Path, str, str]]:
    if source.startswith("hf:"):
        repo, revision = parse(source)
        if revision != "main":
            raise UsageError(f"{source}: a repository is removed with all its revisions: prune hf:{repo}")
        by_hand = by_hand_folder(repo)
        found = [repository(repo), by_hand, *by_hand.parent.glob(f"{by_hand.name}@*")]
    elif "://" in source:
        path = where(source).path
        found = [path, path.with_name(f"{path.name}.part")]
    else:
        raise UsageError(f"{source}: only what is in the caches is removed: hf:OWNER/NAME or an address")
    for path in found:
        if path.exists():
            yield path, source, "named"


def _bytes(path: Path) -> int:
    """Of a file, or of all files of a folder; a link counts as nothing."""
    return sum(one.lstat().st_size for one in ([path] if path.is_file() else _below(path)) if not one.is_symlink())


def _remove(path: Path) -> bool:
    """Delete a file or a folder of the caches; False where another process is writing it."""
    parts = list(path.rglob("*.part")) if path.is_dir() else [path] if path.name.endswith(".part") else []
    try:
        for part in parts:
            with alone(part, deadline=0):
                part.unlink(missing_ok=True)
    except Unreachable:
        return False
    if path.is_dir():
        shutil.rmtree(path)
    elif path.parent.name == "blobs":
        discard(path)
    else:
        path.unlink(missing_ok=True)
    _tidy(path.parent)
    return True


def _tidy(folder: Path) -> None:
    """Remove a folder without files, and the locks in it that nobody holds."""
    if folder in (cache_folder(), *places().values()):
        return
    with suppress(OSError, Unreachable):
        for lock in folder.glob("*.part.lock"):
            with alone(lock.with_suffix(""), deadline=0):
                pass
        folder.rmdir()
        _tidy(folder.parent)
