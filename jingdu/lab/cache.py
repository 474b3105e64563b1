"""Trained parts, kept by a hash of all that made them.

An entry is a run folder of the engine with `entry.json`, which holds what made it, how long that took, and the sha256
of each file. It appears whole (trained aside, then renamed), and one that does not verify is trained again.

What makes a part: the source text of the papers that its stages name, of the papers that those import, and of the rooms
`engine`, `data`, `metrics`, of `nn` and `names`; the stages with their data and seed; the versions of torch, Python and
the packages that carry the embedded data; the processor's instruction set and the number of threads. The claim's own
text is not in it: claims share parts.
"""

import ast
import dataclasses
import hashlib
import json
import os
import random
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jingdu import canon
from jingdu.engine import Recipe, Stage, load_system, read_log
from jingdu.engine import train as run_recipe
from jingdu.engine.checkpoint import list_checkpoints, seal, unseal
from jingdu.engine.run import say
from jingdu.errors import Interrupted, Refused, UsageError
from jingdu.lab.machine import versions

ENTRY = "entry.json"
ABANDONED = 2 * 24 * 3600
"""Seconds after which a training folder that nobody finished is removed."""
_ROOMS = ("engine", "data", "metrics", "nn.py", "names.py")


@dataclass(frozen=True)
class Trained:
    """A finished training run: its measures, its log, and the system that it left."""

    folder: Path
    """The run folder."""
    metrics: dict[str, float]
    """The final evaluation."""
    seconds: float
    """What the training took, when it was done."""
    cached: bool
    """Whether it was there already."""

    @cached_property
    def log(self) -> list[dict[str, Any]]:
        """The lines of log.jsonl: {"step", "loss", ...} for steps, {"step", "eval": {...}} for evaluations."""
        return read_log(self.folder)

    def series(self, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of one logged name ("loss"), or of one evaluated measure ("eval.error")."""
        kind, dot, measure = name.partition(".")
        lines = [(line["step"], line["eval"]) for line in self.log if "eval" in line] if kind == "eval" and dot else []
        found = lines or [(line["step"], line) for line in self.log if "eval" not in line]
        key = measure if lines else name
        pairs = [(step, float(values[key])) for step, values in found if key in values]
        if not pairs:
            known = sorted({k for _, values in found for k in values} - {"step", "order"})
            raise UsageError(f"the run logged no {name!r}; it logged {', '.join(known)}")
        return [step for step, _ in pairs], [value for _, value in pairs]

    @cached_property
    def system(self) -> Any:
        """The trained System or Fitted, in eval mode, with averaged weights where there are some."""
        with same_randomness():
            return load_system(self.folder)


def cache_folder() -> Path:
    """$JINGDU_CACHE or ~/.cache/jingdu, and `lab` in it."""
    return Path(os.environ.get("JINGDU_CACHE") or Path.home() / ".cache" / "jingdu").expanduser() / "lab"


@contextmanager
def same_randomness() -> Iterator[None]:
    """Leave the global random numbers as they were: a part out of the cache must change nothing that follows."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])


# What made a part ---------------------------------------------------------------------------------


def _texts(tree: Any) -> Iterator[str]:
    """All texts among the values of a nested structure."""
    if isinstance(tree, str):
        yield tree
    elif isinstance(tree, Mapping | list | tuple):
        for value in tree.values() if isinstance(tree, Mapping) else tree:
            yield from _texts(value)


def named_papers(stages: Iterable[Stage]) -> dict[str, str]:
    """Word -> module, for each word of the stages that names a paper, a variant or an alias.

    Networks, systems, functions and rollouts all name papers; a word that does so by accident costs a retraining at
    most.
    """
    known = {name: p.module for p in canon.papers() for name in (*p.variants, *p.aliases, p.key)}
    words = {w for stage in stages for text in _texts(dataclasses.asdict(stage)) for w in re.findall(r"[\w/.-]+", text)}
    words |= {word.partition(".")[0] for word in words}
    return {word: known[word] for word in sorted(words & set(known))}


def _files(package: Path, module: str) -> list[Path]:
    """The source files of jingdu.x.y: one, or a folder's; none where there is no such module."""
    base = package.joinpath(*module.split(".")[1:])
    if base.with_suffix(".py").is_file():
        return [base.with_suffix(".py")]
    return sorted(p for p in base.rglob("*") if p.is_file() and "__pycache__" not in p.parts)


def _imported_papers(text: str) -> set[str]:
    """Modules of papers that a source text imports (or names that may be some)."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    # jingdu.papers.<area>.<paper>, whatever part of a paper's folder is named behind it
    return {".".join(name.split(".")[:4]) for name in found if re.match(r"jingdu\.papers\.\w+\.\w+", name)}


def sources(modules: Iterable[str], package: Path = canon.PACKAGE) -> dict[str, str]:
    """File -> sha256 of its bytes, for papers, the papers that they import, and the rooms that every training uses."""
    rooms = [_files(package, f"jingdu.{room.removesuffix('.py')}") for room in _ROOMS]
    found = {path: path.read_bytes() for room in rooms for path in room}
    waiting, seen = set(modules), set()
    while waiting:
        seen.add(module := waiting.pop())
        for path in _files(package, module):
            found[path] = path.read_bytes()
            if path.suffix == ".py":
                waiting |= _imported_papers(found[path].decode()) - seen
    return {
        path.relative_to(package).as_posix(): hashlib.sha256(content).hexdigest()
        for path, content in sorted(found.items())
    }


@cache
def _sources(modules: frozenset[str]) -> dict[str, str]:
    """Read once a process: the code that runs is the code that was imported."""
    return sources(modules)


def _own_files(spec: str | None) -> list[list[Any]]:
    """Names, sizes and times of the user's own data, where `spec` is a file or folder."""
    root = Path((spec or "").removeprefix("hf:")).expanduser()
    if not spec or not root.exists():
        return []
    paths = sorted(p for p in root.rglob("*") if p.is_file()) if root.is_dir() else [root]
    return [[str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns] for p in paths]


def made_of(recipe: Recipe) -> dict[str, Any]:
    """All that makes the trained part of a recipe, as plain values."""
    papers = named_papers(recipe.stages)
    aliases = {name: p.aliases[name] for p in canon.papers() for name in p.aliases if name in papers}
    # How often a run saves changes nothing that it learns.
    stages = [
        {k: v for k, v in dataclasses.asdict(s).items() if k not in ("save_every", "keep")} for s in recipe.stages
    ]
    return {
        "sources": _sources(frozenset(papers.values())),
        "aliases": aliases,
        "stages": json.loads(json.dumps(stages)),
        "files": [_own_files(spec) for s in recipe.stages for spec in (s.data, s.eval_data)],
        "versions": {name: version for name, version in versions().items() if name != "jingdu"},
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }


def key_of(made: Mapping[str, Any]) -> str:
    """The name of the entry for what `made_of` gives."""
    return hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()[:40]


# Entries ------------------------------------------------------------------------------------------


def _contents(folder: Path) -> dict[str, str]:
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != ENTRY)
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in paths}


def read_entry(folder: Path) -> Trained | None:
    """A part of the cache, if there is one and all its files are as they were written."""
    try:
        entry = unseal(folder / ENTRY)
        if entry["files"] != _contents(folder):
            return None
        metrics = json.loads((folder / "result.json").read_text("utf-8"))["metrics"]
        return Trained(folder, metrics, float(entry["seconds"]), cached=True)
    except (Refused, OSError, ValueError, KeyError, TypeError):
        return None


def _prune(run: Path) -> None:
    """Leave the last checkpoint of each stage, and nothing that only a training in progress needs."""
    for folder in (run, *(path for path in run.iterdir() if path.is_dir())):
        for old in list_checkpoints(folder / "checkpoints")[1:]:
            shutil.rmtree(old)
        (folder / "lock").unlink(missing_ok=True)


def _aside(root: Path) -> Path:
    """A fresh folder to train in; what killed processes left behind long ago is removed."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        for path in root.glob("training-*"):
            if time.time() - path.stat().st_mtime > ABANDONED:
                shutil.rmtree(path, ignore_errors=True)
        return Path(tempfile.mkdtemp(prefix="training-", dir=root))
    except OSError as error:
        raise UsageError(
            f"{root}: trained parts cannot be kept there ({error.strerror}); set JINGDU_CACHE to a folder of yours"
        ) from None


@same_randomness()
def trained(recipe: Recipe) -> Trained:
    """The trained part of a recipe: out of the cache, or trained now, on the CPU.

    Global random numbers are left as they were. Raises what `jingdu.engine.train` raises, and UsageError where the
    cache folder cannot be written.
    """
    made = made_of(recipe)
    root = cache_folder()
    folder = root / key_of(made)
    if (found := read_entry(folder)) is not None:
        return found
    if folder.exists():
        say(f"warning: {folder}: this trained part was changed since it was made, and is made again")
    rare = tuple(dataclasses.replace(stage, save_every=10**9, keep=2) for stage in recipe.stages)
    aside = _aside(root)
    try:
        started = time.monotonic()
        run = run_recipe(dataclasses.replace(recipe, stages=rare), aside / "run", device="cpu", quiet=True)
        seconds = time.monotonic() - started
        _prune(run.folder)
        entry = {"seconds": round(seconds, 3), "made_of": made, "files": _contents(run.folder)}
        (run.folder / ENTRY).write_bytes(seal(entry))
        if folder.exists() and read_entry(folder) is None:
            shutil.rmtree(folder, ignore_errors=True)
        try:
            os.rename(run.folder, folder)
        except OSError:  # another process trained the same part meanwhile
            if read_entry(folder) is None:
                raise
        return Trained(folder, run.metrics, seconds, cached=False)
    except Interrupted:
        raise Interrupted(
            "stopped; the parts that were trained are kept, so the same command goes on from there"
        ) from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
