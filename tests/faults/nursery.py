"""Processes that can be killed, without paying for the import of torch each time.

One process imports everything once and forks a child for each request: `start("work:train", ...)`.
"""

import atexit
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


@dataclass
class Child:
    """A forked process; its stdout and stderr are in the file `output`."""

    pid: int
    output: Path
    started: float
    code: int | None = None

    def wait(self, seconds: float = 60.0, ask: int = signal.SIGKILL) -> int:
        """Its exit code, negative for a signal. One that is late gets the signal `ask`; then it is killed: -9."""
        if self.code is None:
            self.code = _nursery().ask({"wait": self.pid, "seconds": seconds, "ask": ask})
        return self.code

    def send(self, number: int) -> None:
        """A signal; a child that has ended has its number until it was waited for."""
        os.kill(self.pid, number)

    @property
    def said(self) -> str:
        return self.output.read_text("utf-8", errors="replace")


def start(function: str, *arguments: Any, output: Path, environment: dict[str, str] | None = None) -> Child:
    """Fork a child that calls `module:function` of this package with plain arguments; its result is the exit code."""
    nursery = _nursery()  # its start, of some seconds, is no part of a child's time
    started = time.monotonic()
    request = {"call": function, "with": arguments, "output": str(output), "environment": environment or {}}
    return Child(nursery.ask(request), output, started)


def call(function: str, *arguments: Any, output: Path) -> Child:
    """The same, waited for."""
    child = start(function, *arguments, output=output)
    child.wait()
    return child


class _Nursery:
    def __init__(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "tests.faults.nursery"]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, cwd=ROOT, env=environment, text=True)
        atexit.register(self.close)

    def ask(self, request: dict[str, Any]) -> int:
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


@cache
def _nursery() -> _Nursery:
    """The one of this process, when it has imported everything."""
    nursery = _Nursery()
    nursery.ask({"ready": True})
    return nursery


def prepare() -> None:
    """Start the nursery, so that what is timed next does not wait for it."""
    _nursery()


def _wait(pid: int, seconds: float, ask: int) -> int:
    """Exit code of a child; polled by its file descriptor, so that nothing else is needed."""
    descriptor = os.pidfd_open(pid)
    try:
        for number, patience in ((ask, seconds), (signal.SIGKILL, 5.0)):
            if select.select([descriptor], [], [], patience)[0]:
                break
            os.kill(pid, number)
    finally:
        os.close(descriptor)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _run(request: dict[str, Any]) -> None:
    """In the child, which never returns."""
    target = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(target, 1)
    os.dup2(target, 2)
    os.environ.update(request["environment"])

    code = 1
    try:
        module, _, name = request["call"].partition(":")
        code = getattr(importlib.import_module(f"tests.faults.{module}"), name)(*request["with"]) or 0
    except KeyboardInterrupt as stop:
        if stop.__traceback__.tb_next is not None:  # it got out of the command, which is a fault
            traceback.print_exc()
        else:  # a signal before or after the command: Python itself leaves so
            code = 130
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _serve() -> None:
    importlib.import_module("tests.faults.work").warm()
    answers = os.dup(1)
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        if "ready" in request:
            answer = 0
        elif "wait" in request:
            answer = _wait(request["wait"], request["seconds"], request["ask"])
        else:
            # A child stands for a whole program: what it gets before it is ready counts as Ctrl-C.
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            answer = os.fork()
            if answer == 0:
                os.close(answers)
                _run(request)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.write(answers, f"{answer}\n".encode())


if __name__ == "__main__":
    _serve()
