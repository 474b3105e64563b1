"""Rows 2, 4, 5 and 16: a save that is cut, a full disk, changed bytes, and several writers."""

import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from jingdu.engine.checkpoint import list_checkpoints, newest_checkpoint, verify
from jingdu.errors import Refused
from tests.faults.case import Case
from tests.faults.kills import content, different
from tests.faults.nursery import Child, call, start
from tests.faults.shim import STOPPED

SHORT = {"steps": 4, "save_every": 1, "evaluate_every": None}
"""Four saves: the third and fourth delete one each."""


def _calls(folder: Path, room: bool) -> int:
    """How many calls of a short run change its folder, or how many of them need room."""
    child = call("work:calls", "resnet", str(folder / "counted"), room, SHORT, output=folder / "counted.txt")
    assert child.code == 0, child.said
    return int(child.said.strip().splitlines()[-1])


def _some(count: int, most: int, numbers: random.Random) -> list[int]:
    return list(range(most)) if count >= most else sorted(numbers.sample(range(most), count))


def cut_saves(count: int, numbers: random.Random, folder: Path) -> Iterator[Case]:
    """Row 2: the process ends at each call that changes the run folder; the newest good checkpoint is never lost."""
    most = _calls(folder, room=False)
    reference = content(folder / "counted")
    for number in _some(count, most, numbers):
        out = folder / f"cut-{number}"
        child = call("work:stopped", "resnet", str(out), number, SHORT, output=folder / f"{number}.txt")
        problem = "" if child.code == STOPPED else f"exit {child.code}: {child.said[-200:]}"
        kept = len(list_checkpoints(out / "checkpoints"))
        if kept:
            try:
                newest_checkpoint(out, warn=lambda _: None)
            except Refused as error:
                problem = str(error)
        again = call("work:resumed", "resnet", str(out), SHORT, output=folder / f"{number}.txt")
        problem = problem or ("" if again.code == 0 else again.said[-300:]) or different(out, reference)
        yield Case(not problem, what=f"stopped at call {number}, {kept} checkpoints: {problem}")
        shutil.rmtree(out)


def full_disk(count: int, numbers: random.Random, folder: Path) -> Iterator[Case]:
    """Row 4: from each call on that needs room there is none: what was saved stays, one message, exit 4, resumable."""
    most = _calls(folder, room=True)
    reference = content(folder / "counted")
    for number in _some(count, most, numbers):
        out, output = folder / f"full-{number}", folder / f"full-{number}.txt"
        child = call("work:full", "resnet", str(out), number, SHORT, output=output)
        said = child.said.strip().splitlines()
        problem = (
            "" if child.code in (2, 4) and len(said) == 1 and str(out) in said[0] else f"{child.code}: {said[-3:]}"
        )
        if child.code == 4 and "free" not in child.said:
            problem = f"the message does not say what is free: {said}"
        for checkpoint in list_checkpoints(out / "checkpoints") if out.exists() else []:
            verify(checkpoint)
        again = call("work:resumed", "resnet", str(out), SHORT, output=output)
        problem = problem or ("" if again.code == 0 else again.said[-300:]) or different(out, reference)
        yield Case(not problem, what=f"full from call {number}: {problem}")
        shutil.rmtree(out)


def changed_bytes(count: int, numbers: random.Random, folder: Path) -> Iterator[Case]:
    """Row 5: one flipped bit, or a file that is cut, in the newest checkpoint: refused, and the one before it is used."""
    assert (child := call("work:fresh", "resnet", str(folder / "R"), SHORT, output=folder / "R.txt")).code == 0, (
        child.said
    )
    newest, before = list_checkpoints(folder / "R" / "checkpoints")
    for number in range(count):
        path = numbers.choice(sorted(newest.iterdir()))
        whole = path.read_bytes()
        if number % 4 == 3:
            damaged, how = whole[: numbers.randrange(len(whole))], "cut"
        else:
            place = numbers.randrange(len(whole))
            damaged = bytearray(whole)
            damaged[place] ^= 1 << numbers.randrange(8)
            how = f"bit flipped at {place}"
        path.write_bytes(damaged)
        warnings: list[str] = []
        started = time.monotonic()
        used = newest_checkpoint(folder / "R", warnings.append)
        ok = used == before and len(warnings) == 1 and "refused" in warnings[0]
        yield Case(ok, time.monotonic() - started, f"{path.name}, {how}: used {used}, said {warnings}")
        path.write_bytes(whole)
    for checkpoint in (newest, before):
        (checkpoint / "model.safetensors").write_bytes(b"nothing")
    try:
        newest_checkpoint(folder / "R", lambda _: None)
        yield Case(False, what="none is good, and the run would begin anew")
    except Refused:
        yield Case(True)


def races(count: int, numbers: random.Random, folder: Path) -> Iterator[Case]:
    """Row 16: eight starters of one run folder at once: one writes, the others leave with 2."""
    for number in range(count):
        out, at = folder / f"race-{number}", time.monotonic() + 0.4
        children: list[Child] = [
            start("work:flood", str(out), at, False, output=folder / f"race-{number}-{i}.txt") for i in range(8)
        ]
        codes = [child.wait() for child in children]
        losers = [child for child, code in zip(children, codes, strict=True) if code == 2]
        late = max((float(child.said.split("ended ")[1]) for child in losers if "ended " in child.said), default=0.0)
        ok = codes.count(0) == 1 and len(losers) == 7
        yield Case(ok, late, f"race {number}: exits {codes}")
        shutil.rmtree(out)
