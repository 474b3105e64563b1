"""Rows 2, 4, 5 and 16: a save that is cut, a full disk, changed bytes, and several writers."""

import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jingdu.engine.checkpoint import list_checkpoints, newest_checkpoint, verify
from jingdu.errors import Refused
from tests.faults.case import Case
from tests.faults.kills import content, different
from tests.faults.nursery import Child, call, start
from tests.faults.shim import STOPPED

UNLIKE = ("resnet", "gan", "ngram", "alexnet", "vgg", "two stages")


def _short(family: str) -> dict[str, Any]:
    """Four saves of each stage: the third and fourth delete one each."""
    return {"save_every": 1, "evaluate_every": None} | ({"batch_size": 20} if family == "ngram" else {"steps": 4})


def _places(
    count: int, numbers: random.Random, folder: Path, room: bool
) -> Iterator[tuple[str, int, dict[str, bytes]]]:
    """Some calls of the families' short runs that change the run folder, or that need room, and what such a run leaves."""
    places, references = [], {}
    for family in UNLIKE:
        out = folder / f"{family}-counted"
        child = call("work:calls", family, str(out), room, _short(family), output=folder / f"{family}.txt")
        assert child.code == 0, child.said
        references[family] = content(out)
        places += [(family, number) for number in range(int(child.said.strip().splitlines()[-1]))]
    for family, number in places if count >= len(places) else sorted(numbers.sample(places, count)):
        yield family, number, references[family]


def _newest(run: Path) -> str:
    """What is wrong with the checkpoints of a run and its stages, where there are some; else nothing."""
    for checkpoints in sorted(run.rglob("checkpoints")):
        try:
            if list_checkpoints(checkpoints):
                newest_checkpoint(checkpoints.parent, warn=lambda _: None)
        except Refused as error:
            return str(error)
    return ""


def cut_saves(count: int, numbers: random.Random, folder: Path) -> Iterator[Case]:
    """Row 2: the process ends at each call that changes the run folder; the newest good checkpoint is never lost."""
    for family, number, reference in _places(count, numbers, folder, room=False):
        out, output = folder / f"{family}-{number}", folder / f"{family}-{number}.txt"
        child = call("work:stopped", family, str(out), number, _short(family), output=output)
        problem = "" if child.code == STOPPED else f"exit {child.code}: {child.said[-200:]}"
        kept = len(list_checkpoints(out / "checkpoints"))
        problem = problem or _newest(out)
        again = call("work:resumed", family, str(out), _short(family), output=output)
        problem = problem or ("" if again.code == 0 else again.said[-300:]) or different(out, reference)
        yield Case(not problem, what=f"{family}, stopped at call {number}, {kept} checkpoints: {problem}")
        shutil.rmtree(out)


def full_disk(count: int, numbers: random.Random, folder: Path) -> Iterator[Case]:
    """Row 4: from each call on that needs room there is none: what was saved stays, one message, exit 4, resumable."""
    for family, number, reference in _places(count, numbers, folder, room=True):
        out, output = folder / f"{family}-{number}", folder / f"{family}-{number}.txt"
        child = call("work:full", family, str(out), number, _short(family), output=output)
        said = child.said.strip().splitlines()
        problem = (
            "" if child.code in (2, 4) and len(said) == 1 and str(out) in said[0] else f"{child.code}: {said[-3:]}"
        )
        if child.code == 4 and "free" not in child.said:
            problem = f"the message does not say what is free: {said}"
        for checkpoint in out.rglob("checkpoints/step-*"):
            try:
                verify(checkpoint)
            except Refused as error:
                problem = problem or str(error)
        again = call("work:resumed", family, str(out), _short(family), output=output)
        problem = problem or ("" if again.code == 0 else again.said[-300:]) or different(out, reference)
        yield Case(not problem, what=f"{family}, full from call {number}: {problem}")
        shutil.rmtree(out)


def changed_bytes(count: int, numbers: random.Random, folder: Path) -> Iterator[Case]:
    """Row 5: one flipped bit, or a file that is cut, in the newest checkpoint: refused, and the one before it is used."""
    for family in UNLIKE[:5]:
        child = call("work:fresh", family, str(folder / family), _short(family), output=folder / f"{family}.txt")
        assert child.code == 0, child.said
    for number in range(count):
        family = UNLIKE[number % 5]
        newest, before = list_checkpoints(folder / family / "checkpoints")
        path = numbers.choice(sorted(newest.iterdir()))
        whole = path.read_bytes()
        if numbers.randrange(4) == 3:
            damaged, how = whole[: numbers.randrange(len(whole))], "cut"
        else:
            place = numbers.randrange(len(whole))
            damaged = bytearray(whole)
            damaged[place] ^= 1 << numbers.randrange(8)
            how = f"bit flipped at {place}"
        path.write_bytes(damaged)
        warnings: list[str] = []
        started = time.monotonic()
        used = newest_checkpoint(folder / family, warnings.append)
        ok = used == before and len(warnings) == 1 and "refused" in warnings[0]
        yield Case(ok, time.monotonic() - started, f"{family}, {path.name}, {how}: used {used}, said {warnings}")
        path.write_bytes(whole)
    for family in UNLIKE[:5]:
        for checkpoint in list_checkpoints(folder / family / "checkpoints"):
            (checkpoint / "model.safetensors").write_bytes(b"nothing")
        again = call("work:resumed", family, str(folder / family), _short(family), output=folder / f"{family}.txt")
        yield Case(again.code == 4, what=f"{family}: none is good, and the run began anew: {again.said[-300:]}")


def races(count: int, numbers: random.Random, folder: Path) -> Iterator[Case]:
    """Row 16: eight starters of one run folder at once: one writes, the others leave with 2."""
    for number in range(count):
        out, at = folder / f"race-{number}", time.monotonic() + 0.4
        children: list[Child] = [
            start(
                "work:flood",
                UNLIKE[number % len(UNLIKE)],
                str(out),
                at,
                False,
                output=folder / f"race-{number}-{i}.txt",
            )
            for i in range(8)
        ]
        codes = [child.wait() for child in children]
        losers = [child for child, code in zip(children, codes, strict=True) if code == 2]
        late = max((float(child.said.split("ended ")[1]) for child in losers if "ended " in child.said), default=0.0)
        ok = codes.count(0) == 1 and len(losers) == 7
        yield Case(ok, late, f"race {number}: exits {codes}")
        shutil.rmtree(out)
