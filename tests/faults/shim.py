"""A system that fails: counts the calls by which a process changes a folder, and stops or refuses from one of them on."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

CALLS = ("open", "write", "fsync", "rename", "replace", "unlink", "rmdir", "mkdir", "ftruncate")
"""All that the package changes files by; reading is not among them."""
FULL = ("open", "write", "mkdir")
"""Those that need room on the disk."""
STOPPED = 77
"""Exit code of a process that was stopped here."""


class Stop(BaseException):
    """End the process in the middle of this call."""


class Shim:
    """Watches what this process does to the files under `root`: `fail(calls so far)` is called before each one.

    It may raise an OSError, which the caller gets, or Stop; half of a write is done before. `done` counts the calls.
    """

    def __init__(self, root: Path, fail: Callable[[int], None], names: tuple[str, ...] = CALLS):
        self.root, self.fail = str(root), fail
        self.done = 0
        self.real = {name: getattr(os, name) for name in names}
        for name in names:
            setattr(os, name, self._watched(name))

    def _watched(self, name: str) -> Callable[..., Any]:
        real = self.real[name]

        def call(first: Any, *rest: Any, **options: Any) -> Any:
            if self._is_ours(first, options) and (name != "open" or rest[0] & (os.O_WRONLY | os.O_RDWR)):
                try:
                    self.fail(self.done)
                except (OSError, Stop) as error:
                    if name == "write":
                        real(first, rest[0][: len(rest[0]) // 2])
                    if isinstance(error, Stop):
                        os._exit(STOPPED)
                    raise
                self.done += 1
            return real(first, *rest, **options)

        return call

    def _is_ours(self, first: Any, options: dict[str, Any]) -> bool:
        if isinstance(first, int):
            return os.readlink(f"/proc/self/fd/{first}").startswith(self.root)
        # In a folder that is being deleted, names are relative to its descriptor.
        return options.get("dir_fd") is not None or str(os.fspath(first)).startswith(self.root)

    def close(self) -> int:
        """Give the system back; how many calls there were."""
        for name, real in self.real.items():
            setattr(os, name, real)
        return self.done


def stop_at(root: Path, number: int) -> Shim:
    """End the process at its call `number`, in the middle of it where it is a write."""

    def fail(done: int) -> None:
        if done == number:
            raise Stop

    return Shim(root, fail)


def full_from(root: Path, number: int) -> Shim:
    """The disk is full from the call `number` on that needs room, and after half of what that one writes."""

    def fail(done: int) -> None:
        if done >= number:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return Shim(root, fail, FULL)


def counted(root: Path, names: tuple[str, ...] = CALLS) -> Shim:
    """Nothing fails."""
    return Shim(root, lambda done: None, names)
