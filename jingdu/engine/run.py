"""A run is a folder: one writer, a log that survives a kill, and what is said while it runs."""

import fcntl
import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jingdu.engine.checkpoint import write_whole
from jingdu.errors import UsageError


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Hold the run folder for writing. A second process gets a UsageError; a dead one's lock is void."""
    with open(run / "lock", "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            raise UsageError(
                f"{run}: another process writes this run ({file.read().strip() or 'unknown'}); use another --out"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()}")
        file.flush()
        yield


class Signals:
    """The first SIGINT or SIGTERM asks the loop to stop after its step; the second stops at once."""

    def __enter__(self) -> "Signals":
        self.received: int | None = None
        self._old: dict[int, Any] = {}
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._old[number] = signal.signal(number, self._handle)
            except ValueError:  # not in the main thread: the caller owns the signals
                break
        return self

    def _handle(self, number: int, frame: Any) -> None:
        if self.received is not None:
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
        kept = []
        for line in lines:
            try:
                if json.loads(line)["order"] > after:
                    break
            except (ValueError, KeyError):  # the last line of a killed run may be cut
                break
            kept.append(line)
        write_whole(path, b"".join(kept))
        self.file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (open for the run's length)
        self.board = None
        if tensorboard:
            from jingdu.errors import need_extra

            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise need_extra("tensorboard", "tensorboard", "--tensorboard") from None
            self.board = SummaryWriter(str(run / "tensorboard"), purge_step=after)

    def write(self, values: Mapping[str, Any]) -> None:
        self.file.write(json.dumps(values) + "\n")
        self.file.flush()
        if self.board is not None:
            for name, value in {**values, **values.get("eval", {})}.items():
                if isinstance(value, int | float) and name not in ("step", "order"):
                    self.board.add_scalar(name, value, values["step"])

    def close(self) -> None:
        self.file.close()
        if self.board is not None:
            self.board.close()


class NoLog:
    """What the other processes of a job write: nothing."""

    def write(self, values: Mapping[str, Any]) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def read_log(run: Path) -> list[dict[str, Any]]:
    """All lines of a run's log."""
    return [json.loads(line) for line in (run / "log.jsonl").read_text("utf-8").splitlines()]


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
