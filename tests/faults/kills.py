"""Rows 1, 3, 17 and 18: a run that was killed, stopped or interrupted goes on to the bits of the one that never was."""

import random
import re
import shlex
import shutil
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jingdu.engine.checkpoint import MANIFEST, newest_checkpoint
from tests.faults.case import Case
from tests.faults.nursery import Child, call, start
from tests.faults.work import COMMANDS, FAMILIES

KILLS = 3
"""Times that one run is killed, at most."""


def content(run: Path) -> dict[str, bytes]:
    """All that a run leaves and promises to be equal: weights, optimiser, averages, logged values, measures."""
    found = {}
    for stage in (run, *(path for path in run.iterdir() if (path / "checkpoints").is_dir())):
        newest = newest_checkpoint(stage)
        files = [*(newest.iterdir() if newest else ()), stage / "log.jsonl", stage / "result.json"]
        for path in files:
            if path.name != MANIFEST and path.exists():
                found[path.relative_to(run).as_posix()] = path.read_bytes()
    return found


def different(run: Path, reference: dict[str, bytes]) -> str:
    """The files in which a run differs from the reference; nothing where it does not."""
    found = content(run)
    return ", ".join(sorted(k for k in found.keys() | reference.keys() if found.get(k) != reference.get(k)))


def begin(
    family: str, out: Path, size: int = 2, changes: dict[str, Any] | None = None, function: str = "resumed",
    fault: Sequence[Any] = (),
) -> list[Child]:  # fmt: skip
    """Start or resume a family's run: one process, or the `size` ones of a group."""
    output, arguments = out.with_suffix(".txt"), (family, str(out), changes or {}, *fault)
    if family != "two processes":
        return [start(f"work:{function}", *arguments, output=output)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [start("work:process", rank, size, port, function, *arguments, output=output) for rank in range(size)]


def whole(
    family: str, out: Path, size: int = 2, changes: dict[str, Any] | None = None
) -> tuple[dict[str, bytes], float]:
    """A run that nothing happens to, and how long it took."""
    started = time.monotonic()
    children = begin(family, out, size, changes)
    codes = [child.wait() for child in children]
    assert set(codes) == {0}, (family, codes, children[0].said)
    return content(out), time.monotonic() - started


def kill(children: list[Child], victim: Child) -> bool:
    """Whether it was killed, and had not ended; the others of its job are asked to end, as torchrun does."""
    victim.send(signal.SIGKILL)
    killed = victim.wait() == -signal.SIGKILL
    codes = [child.wait(2.0, ask=signal.SIGTERM) for child in children if child is not victim]
    assert -signal.SIGKILL not in codes, f"a process that was asked to end went on: {victim.said[-300:]}"
    return killed


def kills(count: int, numbers: random.Random, folder: Path) -> Iterator[Case]:
    """Row 1: kill -9 at random times, and once more while it is resumed; at the end, resume what is finished."""
    each = -(-count // len(FAMILIES))
    for family in FAMILIES:
        reference, seconds = whole(family, folder / f"{family}-whole")
        done, number = 0, 0
        while done < each:
            number, killed = number + 1, 0
            out = folder / f"{family}-{number}"
            for _ in range(min(numbers.randint(1, KILLS), each - done)):
                children = begin(family, out)
                time.sleep(numbers.uniform(0, seconds))
                if kill(children, numbers.choice(children)):
                    killed += 1
                else:  # it was done before: the first run was slower, as the machine had more to do then
                    seconds *= 0.9
            children = begin(family, out)
            codes = [child.wait() for child in children]
            said = different(out, reference) if set(codes) == {0} else f"exit {codes}: {children[0].said[-300:]}"
            done += killed
            yield Case(not said, what=f"{family}, run {number}: {said}", count=killed)
            shutil.rmtree(out)
        before = content(folder / f"{family}-whole")
        again = [child.wait() for child in begin(family, folder / f"{family}-whole")]
        same = content(folder / f"{family}-whole") == before
        yield Case(set(again) == {0} and same, what=f"{family}: a finished run, resumed: exit {again}, same: {same}")


def order(count: int, numbers: random.Random, folder: Path) -> Iterator[Case]:
    """Row 3: 50 steps, three epochs; stopped after each step, the ids of the samples are the same, whatever the workers.

    A batch holds its samples' numbers as their images, and the run's log holds them all.
    """

    def ids(out: Path) -> list[object]:
        from jingdu.engine import read_log

        return [line["ids"] for line in read_log(out) if "ids" in line]

    steps = 50
    call("work:ordered", str(folder / "whole"), 0, 0, output=folder / "whole.txt")
    wanted = ids(folder / "whole")
    if len(wanted) != steps:
        yield Case(False, what=f"{len(wanted)} steps: {(folder / 'whole.txt').read_text()}")
        return
    places = range(1, steps) if count >= steps else sorted(numbers.sample(range(1, steps), count))
    for stop in places:
        out, first, second = folder / str(stop), numbers.choice((0, 1, 4)), numbers.choice((0, 1, 4))
        call("work:ordered", str(out), first, stop, output=folder / f"{stop}.txt")
        child = call("work:ordered", str(out), second, 0, output=folder / f"{stop}.txt")
        found = ids(out) if child.code == 0 else child.said
        yield Case(found == wanted, what=f"stopped after {stop}, workers {first} then {second}: {found}")
        shutil.rmtree(out)
    yield Case(len(set(map(str, wanted))) == steps, what="the batches are not all different")


def signals(count: int, numbers: random.Random, folder: Path) -> Iterator[Case]:
    """Row 17: SIGTERM or SIGINT at random times, now and then twice; what is printed goes on to the same bits."""
    plans = []
    for name, words in COMMANDS.items():
        started = time.monotonic()
        out = folder / f"{name}-whole"
        child = call("work:command", ["train", *shlex.split(words), "--out", str(out)], output=out.with_suffix(".txt"))
        assert child.code == 0, child.said
        plans.append((name, words, content(out), time.monotonic() - started))
    number = 0
    for number in range(count):
        name, words, reference, seconds = plans[number % len(plans)]
        out, twice = folder / f"{name}-{number}", numbers.random() < 0.2
        output = out.with_suffix(".txt")
        child = start("work:command", ["train", *shlex.split(words), "--out", str(out)], output=output)
        time.sleep(numbers.uniform(0, 0.9 * seconds))
        sent = time.monotonic()
        child.send(numbers.choice((signal.SIGTERM, signal.SIGINT)))
        if twice:
            time.sleep(numbers.uniform(0, 0.03))
            child.send(signal.SIGTERM)
        code = child.wait()
        waited, said = time.monotonic() - sent, child.said
        problem = "" if code in (0, 130) and waited <= 5 else f"exit {code} after {waited:.1f} s: {said[-300:]}"
        log = out / "log.jsonl"
        if (
            code == 130 and not twice and log.exists() and log.stat().st_size
        ):  # before its first step there is nothing to save
            saved = newest_checkpoint(out)
            problem = problem or (
                "" if saved and "jingdu train" in said else f"nothing was saved or said: {said[-300:]}"
            )
        printed = re.findall(r"jingdu (train .*)", said)
        again = shlex.split(printed[-1]) if printed else ["train", *shlex.split(words), "--out", str(out), "--resume"]
        child = call("work:command", again, output=output)
        problem = problem or ("" if child.code == 0 else f"resumed with {child.code}: {child.said[-300:]}")
        problem = problem or different(out, reference)
        yield Case(not problem, waited, f"{name}, {number}{', twice' if twice else ''}: {problem}")
        shutil.rmtree(out)


def deaths(count: int, numbers: random.Random, folder: Path) -> Iterator[Case]:
    """Row 18: of four processes that train one system, one is killed or stopped: the others name it and leave in time.

    A stopped one is noticed after the group's time, a constant that is 3 s here.
    """
    size, changes = 4, {"steps": 60, "ema": None}
    reference, seconds = whole("two processes", folder / "whole", size, changes)
    for number in range(count):
        out, rank, stops = folder / str(number), number % size, number % 5 == 4
        children = begin("two processes", out, size, changes | ({"group_seconds": 3.0} if stops else {}))
        log, until = out / "log.jsonl", time.monotonic() + 60
        while not (log.exists() and log.stat().st_size) and time.monotonic() < until:
            time.sleep(0.005)
        time.sleep(numbers.uniform(0, 0.5 * seconds))
        victim, sent = children[rank], time.monotonic()
        victim.send(signal.SIGSTOP if stops else signal.SIGKILL)
        codes = [child.wait(20) for child in children if child is not victim]
        waited = time.monotonic() - sent
        victim.send(signal.SIGKILL)
        ended = victim.wait() == 0 or set(codes) == {0}  # it was done before
        how = "is stopped" if stops else "was killed or has died"
        said, late = victim.said, waited > (3.0 + 5.0 if stops else 2.0)
        named = re.findall(rf"rank {rank} \(process {victim.pid} {how}\).*--resume", said)
        problem = "" if ended or (set(codes) == {130} and len(named) == 1 and not late) else f"{codes}: {said[-400:]}"
        again = [child.wait() for child in begin("two processes", out, size, changes)]
        problem = problem or ("" if set(again) == {0} else f"resumed with {again}: {victim.said[-300:]}")
        problem = problem or different(out, reference)
        yield Case(
            not problem, 0.0 if stops or ended else waited, f"rank {rank} {how} ({waited:.1f} s): {problem}", not ended
        )
        shutil.rmtree(out)
