"""A run is a folder: one writer, a log that survives a kill, and what is said while it runs."""

import fcntl
import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import takewhile
from math import inf
from pathlib import Path
from typing import Any

from jingdu.engine.checkpoint import room_for, write_all, write_whole
from jingdu.errors import UsageError


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Hold the run folder for writing, and make it where there is none.

    A second process gets a UsageError; a dead one's lock is void, as the system releases it.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(run / "lock", os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise UsageError(f"{run}: cannot write there ({error.strerror}); choose another --out") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with suppress(OSError):  # on a full disk the lock holds all the same
            os.ftruncate(descriptor, 0)
            since = time.strftime("%Y-%m-%d %H:%M:%S")
            os.write(descriptor, f"process {os.getpid()} on {os.uname().nodename} since {since}".encode())
        yield
    except BlockingIOError:
        holder = os.read(descriptor, 200).decode(errors="replace") or "it has not said which"
        raise UsageError(f"{run}: another process writes this run ({holder}); use another --out") from None
    finally:
        os.close(descriptor)


class Signals:
    """SIGINT and SIGTERM. While `stepping`, the first asks the loop to stop after its step and the second stops at once.

    Else there is nothing to finish, and the first stops at once. At once means a KeyboardInterrupt.
    """

    def __enter__(self) -> "Signals":
        self.received: int | None = None
        self.stepping = False
        self._old: dict[int, Any] = {}
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._old[number] = signal.signal(number, self._handle)
            except ValueError:  # not in the main thread: the caller owns the signals
                break
        return self

    def _handle(self, number: int, frame: Any) -> None:
        if self.received is not None or not self.stepping:
            raise KeyboardInterrupt
        self.received = number

    def __exit__(self, *_: object) -> None:
        for number, old in self._old.items():
            signal.signal(number, old)


class Log:
    """`log.jsonl`: one JSON object a line. Lines after the resumed checkpoint are dropped."""

    def __init__(self, run: Path, after: int, tensorboard: bool = False):
        path = run / "log.jsonl"
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        kept = list(takewhile(lambda line: _order(line) <= after, lines))
        if any(_order(line) <= after for line in lines[len(kept) :]):
            say(f"warning: {path}: line {len(kept) + 1} is damaged; the steps from there to {after} are not in the log")
        with room_for(path, sum(map(len, kept))):
            write_whole(path, b"".join(kept))
            self.path, self.file = path, os.open(path, os.O_WRONLY | os.O_APPEND)
        self.board = None
        if tensorboard:
            from jingdu.errors import need_extra

            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise need_extra("tensorboard", "tensorboard", "--tensorboard") from None
            self.board = SummaryWriter(str(run / "tensorboard"), purge_step=after)

    def write(self, values: Mapping[str, Any]) -> None:
        line = (json.dumps(values) + "\n").encode()
        with room_for(self.path, len(line)):
            write_all(self.file, line)
        if self.board is not None:
            for name, value in {**values, **values.get("eval", {})}.items():
                if isinstance(value, int | float) and name not in ("step", "order"):
                    self.board.add_scalar(name, value, values["step"])

    def close(self) -> None:
        os.close(self.file)
        if self.board is not None:
            self.board.close()


def _order(line: bytes) -> float:
    """The place of a line in the run; infinity where it cannot be read: a killed run may cut its last line."""
    try:
        return json.loads(line)["order"] if line.endswith(b"\n") else inf
    except (ValueError, KeyError, TypeError):
        return inf


class NoLog:
    """What the other processes of a job write: nothing."""

    def write(self, values: Mapping[str, Any]) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def read_log(run: Path) -> list[dict[str, Any]]:
    """All lines of a run's log; one that is just being written is left out."""
    whole, _, _ = (run / "log.jsonl").read_text("utf-8").rpartition("\n")
    return [json.loads(line) for line in whole.splitlines()]


class Progress:
    """Loss, rate and time left: a live bar on a terminal, a line every few seconds elsewhere."""

    def __init__(self, title: str, total: int, done: int, quiet: bool):
        self.title, self.total, self.quiet = title, total, quiet
        self.first, self.started, self.said = done, time.monotonic(), time.monotonic()
        self.bar: Any = None
        if not quiet and sys.stderr.isatty() and "NO_COLOR" not in os.environ:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self.bar = Bar(*columns, TextColumn("{task.fields[values]}"), console=Console(stderr=True))
            self.bar.start()
            self.task = self.bar.add_task(title, total=total, completed=done, values="")

    def step(self, done: int, values: Mapping[str, Any]) -> None:
        if self.quiet:
            return
        shown = "  ".join(f"{k} {v:.4g}" for k, v in values.items() if isinstance(v, float))
        if self.bar is not None:
            self.bar.update(self.task, completed=done, values=shown)
        elif time.monotonic() - self.said > 5 or done == self.total:
            self.said = time.monotonic()
            rate = (done - self.first) / max(self.said - self.started, 1e-9)
            left = (self.total - done) / rate if rate else float("inf")
            print(f"{self.title} {done}/{self.total}  {shown}  {rate:.3g} steps/s  {left:.0f} s left", file=sys.stderr)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.stop()


def say(text: str, quiet: bool = False) -> None:
    """A line for the person at the terminal."""
    if not quiet:
        print(text, file=sys.stderr)
