"""Rows 11 and 12: a number that is not finite, and memory that gives out."""

import random
import re
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from jingdu.engine.checkpoint import list_checkpoints, newest_checkpoint
from jingdu.errors import Refused
from tests.faults.case import Case
from tests.faults.kills import begin, content, different
from tests.faults.nursery import Child, call

STEPS = 10
EACH = {"steps": STEPS, "save_every": 1, "evaluate_every": None}
"""A checkpoint after each step, so that what a bad one changed would be seen."""
WHERE: dict[str, tuple[str, ...]] = {
    "resnet": ("input", "loss", "gradient"),
    "gan": ("input", "loss", "gradient"),
    "ngram": ("logged",),  # no gradient, and its data are text
    "alexnet": ("input", "loss", "gradient"),
    "two processes": ("input", "loss", "gradient"),
    "vgg": ("input", "loss", "gradient"),
}
SAVED = ("model.safetensors", "ema.safetensors", "state.safetensors")


# Numbers that are not finite ------------------------------------------------------------------------


def not_finite(count: int, numbers: random.Random, folder: Path) -> Iterator[Case]:
    """Row 11: NaN or an infinity at one step, of one process: it ends there, nothing is updated, and it can be redone."""

    @cache
    def healthy(family: str, faulty: bool) -> Path:
        """The same run without the fault, with all its checkpoints."""
        out = folder / f"{family}-{'faulty' if faulty else 'plain'}"
        changes = _each(family) | {"keep": 1000}
        children = _with(family, out, "loss", "nan", 10**6, changes) if faulty else begin(family, out, 2, changes)
        assert {child.wait() for child in children} == {0}, children[0].said
        return out

    for number in range(count):
        family = list(WHERE)[number % len(WHERE)]
        where, value, step = (
            numbers.choice(WHERE[family]),
            numbers.choice(("nan", "inf", "-inf")),
            numbers.randrange(STEPS),
        )
        out = folder / str(number)
        children = _with(family, out, where, value, step, _each(family))
        codes = {child.wait() for child in children}
        problem = _stopped(codes, children[0].said, out, step, family != "ngram")
        problem = problem or _untouched(out, step, healthy(family, where != "input"))
        if family != "ngram":
            problem = problem or _replayed(out, step, family, where, healthy(family, where != "input"))
        yield Case(not problem, what=f"{family}, {where} {value} at step {step}: {problem}")
        shutil.rmtree(out)


def _each(family: str) -> dict[str, Any]:
    return {k: v for k, v in EACH.items() if family != "ngram" or k != "steps"}


def _with(family: str, out: Path, where: str, value: str, step: int, changes: dict[str, Any]) -> list[Child]:
    return begin(family, out, 2, changes, function="bad", fault=[where, value, step])


def _stopped(codes: set[int], said: str, out: Path, step: int, dumped: bool) -> str:
    lines = [line for line in said.splitlines() if line.startswith("jingdu: ")]
    place = f"step {step + 1 if dumped else step}"
    if codes != {4} or len(lines) != 1 or place not in lines[0] or "Traceback" in said:
        return f"exit {codes}: {said[-400:]}"
    kept = [path.name for path in (out / "trouble").glob("*")]
    if kept != ([f"step-{step + 1:09d}"] if dumped else []):
        return f"kept {kept}"
    return "" if ("jingdu doctor" in lines[0]) == dumped else f"no remedy: {lines[0]}"


def _untouched(out: Path, step: int, reference: Path) -> str:
    """The checkpoints are the two before the fault, byte for byte what they are in the run without it."""
    found = {path.name for path in list_checkpoints(out / "checkpoints")}
    wanted = {f"step-{n:09d}" for n in (step - 1, step) if n > 0}
    if found != wanted:
        return f"checkpoints {sorted(found)}, wanted {sorted(wanted)}"
    for name in sorted(wanted):
        for file in SAVED:
            one, other = (run / "checkpoints" / name / file for run in (out, reference))
            if other.exists() and one.read_bytes() != other.read_bytes():
                return f"{name}/{file} has changed"
    try:
        newest_checkpoint(out, warn=lambda _: None)
    except Refused as error:
        return str(error)
    return ""


def _replayed(out: Path, step: int, family: str, where: str, reference: Path) -> str:
    """The kept step has the weights from before its update, and fails again."""
    kept = out / "trouble" / f"step-{step + 1:09d}"
    if step:
        before = load_file(reference / "checkpoints" / f"step-{step:09d}" / "model.safetensors")
        # The forward pass has moved the running averages of batch norms; in a step, D moves before G.
        own = "generator." if family == "gan" and where != "input" else ""
        names = [name for name in before if name.startswith(own) and not re.search("running_|num_batches", name)]
        after = load_file(kept / "model.safetensors")
        if changed := [name for name in names if not before[name].equal(after[name])]:
            return f"updated: {changed[:3]}"
    child = call("work:replay", str(kept), output=out / "replay.txt")
    last = child.said.strip().splitlines()[-1:] or [""]
    if child.code != 0 or not re.search(r"\b(nan|inf)\b", last[0]):
        return f"replayed with {child.code}: {child.said[-400:]}"
    if where == "input" and "the batch's image: 1 of" not in child.said:
        return f"the batch is not named: {child.said}"
    return ""


# Memory ---------------------------------------------------------------------------------------------

LIMITED = ("resnet", "vgg", "alexnet", "gan", "corridor")
BALLOON = {"system": "balloon", "augment": [], "accumulate": 1, "batch_size": 512, "steps": 6, "save_every": 2,
           "evaluate_every": None, "clip": None}  # fmt: skip


def no_memory(count: int, numbers: random.Random, folder: Path) -> Iterator[Case]:
    """Row 12: at a random step there is memory for a part of the batch alone: resumable, and what is advised works.

    In turn a limit of the process (RLIMIT_AS) around a system with many activations, and CUDA's error in the others.
    """
    wholes: dict[str, dict[str, bytes]] = {}
    advised = worked = 0
    for number in range(count):
        real = number % 2 == 0
        family = "resnet" if real else LIMITED[number // 2 % len(LIMITED)]
        if real and number % 10 == 8:  # not even enough to begin
            fault: dict[str, Any] = {"room": numbers.randrange(1 << 20)}
        elif real:  # 512 samples need about 60 MB
            fault = {"room": numbers.randrange(12 << 20, 50 << 20), "step": numbers.randrange(4)}
        else:
            most = 7 if family == "resnet" else 3 if family in ("vgg", "alexnet") else 15
            fault = {"samples": numbers.randint(1, most), "where": numbers.choice(("forward", "backward")),
                     "step": numbers.randrange(10)}  # fmt: skip
        changes = BALLOON if real else {}
        if (key := f"{family}{real}") not in wholes:
            child = call("work:resumed", family, str(folder / key), changes, output=folder / f"{key}.txt")
            assert child.code == 0, child.said
            wholes[key] = content(folder / key)
        out, output = folder / str(number), folder / f"{number}.txt"
        child = call("work:short", family, str(out), fault, changes, output=output)
        lines = [line for line in child.said.splitlines() if line.startswith("jingdu: ")]
        problem = "" if child.code == 4 and len(lines) == 1 and "out of memory" in lines[0] else child.said[-500:]
        if parts := re.search(r"--resume --accumulate (\d+)", child.said):
            advised += 1
            shutil.copytree(out, folder / "advised")
            again = {**changes, "accumulate": int(parts[1])}
            follows = call("work:short", family, str(folder / "advised"), fault, again, output=folder / "advised.txt")
            worked += follows.code == 0
            shutil.rmtree(folder / "advised")
        elif not problem:
            problem = "" if real or fault["samples"] < 2 else f"no advice: {lines[0]}"
        after = call("work:resumed", family, str(out), changes, output=output)
        problem = problem or ("" if after.code == 0 else after.said[-400:]) or different(out, wholes[key])
        yield Case(not problem, what=f"{family}, {fault}: {problem}")
        shutil.rmtree(out)
    yield Case(advised >= count // 2 and worked >= 0.9 * advised, what=f"{worked} of {advised} pieces of advice worked")
