"""The errors that a user can cause or meet. Each names the thing, the value and the remedy.

The command line prints the message alone and exits with the class's code; `--debug` adds the
traceback. Anything else that escapes is a fault of ours and is reported as one.
"""

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path


class JingduError(Exception):
    """Base of all errors with a message meant for the user."""

    exit_code = 1
    silent = False
    """Another process of the same job says it."""


class ClaimNotHeld(JingduError):
    """A claim was tested and failed, or was inconclusive."""

    exit_code = 1


class UsageError(JingduError, ValueError):
    """A name, flag or value that does not exist or does not fit."""

    exit_code = 2


class Missing(JingduError):
    """An extra, a data set or published weights that are not on this machine."""

    exit_code = 3


class Refused(JingduError):
    """Data, weights or a checkpoint that are damaged, malicious or do not fit."""

    exit_code = 4


class BadInput(Refused):
    """One input file that cannot be read; carries its path and the reason."""

    def __init__(self, path: str | Path, reason: str):
        super().__init__(f"{path}: {reason}")
        self.path, self.reason = Path(path), reason


class TrainingFailed(JingduError):
    """Training stopped because a number stopped making sense (NaN, infinity)."""

    exit_code = 4


class Interrupted(JingduError):
    """A signal ended the run after it was saved; it can be resumed."""

    exit_code = 130


_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory", "memory object")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of Python, torch or the system says that there is no memory left."""
    return isinstance(error, MemoryError) or any(text in str(error).lower() for text in _MEMORY)


def unknown(kind: str, name: str, known: Iterable[str], remedy: str = "") -> UsageError:
    """An error for a name that does not exist, with the nearest ones that do."""
    names = sorted(known)
    near = get_close_matches(name.lower(), names, n=3, cutoff=0.5)
    hint = f" Did you mean {', '.join(near)}?" if near else ""
    if not near and names:
        shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
        hint = f" Known: {shown}."
    return UsageError(f"unknown {kind} {name!r}.{hint}{' ' + remedy if remedy else ''}")


def need_extra(package: str, extra: str, purpose: str) -> Missing:
    """The one sentence for an optional dependency that is not installed."""
    return Missing(f"{purpose} needs {package}: pip install 'jingdu[{extra}]'")
