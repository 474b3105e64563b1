"""Fetching one file over HTTP: with a deadline of our own, resumed where it was cut, verified, and whole.

A socket's time-out starts again with every byte, so it does not bound a server that trickles. Here a
thread waits for the server, and the caller waits for progress.
"""

import contextlib
import errno
import hashlib
import http.client
import os
import re
import shutil
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from queue import Empty, Queue
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from jingdu.errors import JingduError, Missing, Refused
from jingdu.limits import ATTEMPTS, HUB_SECONDS, PROGRESS_BYTES

T = TypeVar("T")
Say = Callable[[str], None]


def say_to_stderr(text: str) -> None:
    """A line for the person at the terminal."""
    print(text, file=sys.stderr)


class Unreachable(Exception):
    """Why a server gave nothing: a reason for the message that the caller writes."""


class Patience:
    """How long to go on waiting: `seconds` from the start, and again from each sign of progress."""

    def __init__(self, seconds: float = HUB_SECONDS):
        self.seconds = seconds
        self.cancelled = False
        self._bytes = 0
        self.renew()

    def renew(self) -> None:
        """Something was finished: the wait starts again."""
        self._until = time.monotonic() + self.seconds

    def left(self) -> float:
        """Seconds until the server is given up."""
        return self._until - time.monotonic()

    def received(self, count: int) -> None:
        """Some bytes came; enough of them are progress."""
        self._bytes += count
        if self._bytes >= PROGRESS_BYTES:
            self._bytes = 0
            self.renew()


def attempt(patience: Patience, function: Callable[[], T]) -> T:
    """Call `function` in a thread and wait for it while there is patience. Raises Unreachable after that.

    A thread that hangs is left behind: it is a daemon, and checks `patience.cancelled` before it writes.
    """
    box: Queue[tuple[bool, Any]] = Queue(1)

    def work() -> None:
        try:
            box.put((True, function()))
        except BaseException as error:
            box.put((False, error))

    threading.Thread(target=work, daemon=True, name="jingdu-download").start()
    try:
        while True:
            try:
                done, value = box.get(timeout=max(patience.left(), 0.01))
            except Empty:
                if patience.left() > 0:
                    continue
                patience.cancelled = True
                raise Unreachable(f"no answer within {patience.seconds:g} s") from None
            if done:
                return value
            raise value
    except KeyboardInterrupt:
        patience.cancelled = True
        raise


class _KeepSecrets(urllib.request.HTTPRedirectHandler):
    """A redirect to another host does not get the token that was meant for the first."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        new = super().redirect_request(req, fp, code, msg, headers, newurl)
        if new is not None and urlsplit(newurl).netloc != urlsplit(req.full_url).netloc:
            new.remove_header("Authorization")
        return new


_opener = urllib.request.build_opener(_KeepSecrets)


class _Cut(Exception):
    """The connection ended before the file did."""


class _Status(Exception):
    """The server answered with an error."""

    def __init__(self, code: int):
        meaning = {401: "it asks who you are", 403: "it refuses access", 404: "there is no such file"}
        meaning |= {429: "too many requests were made"}
        super().__init__(f"{meaning.get(code, 'the server failed')} (HTTP {code})")


def _receive(url: str, part: Path, headers: Mapping[str, str], patience: Patience, show: Callable[..., None]) -> None:
    """Append what is missing of `url` to `part`. Runs in the worker thread."""
    have = _size(part)
    ask = {"User-Agent": "jingdu", "Accept-Encoding": "identity", **headers}
    if have:
        ask["Range"] = f"bytes={have}-"
    try:
        response = _opener.open(urllib.request.Request(url, headers=ask), timeout=patience.seconds)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:  # nothing is left to send: the checksum decides
            return
        raise _Status(error.code) from None
    with response:
        if response.status != 206 or not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            have = 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length and length.isdecimal() else None
        free = shutil.disk_usage(part.parent).free
        if total is not None and free < total - have:
            raise Refused(f"{part.parent}: {total - have:,} bytes needed, {free:,} free: make room and try again")
        with open(part, "ab" if have else "wb") as file:
            show(have, total)
            while chunk := response.read1(1 << 20):
                if patience.cancelled:
                    return
                _append(file, chunk, part)
                have += len(chunk)
                patience.received(len(chunk))
                show(have, total)
            file.flush()
            os.fsync(file.fileno())
    if total is not None and have < total:
        raise _Cut(f"the connection was cut after {have:,} of {total:,} bytes")


def _append(file: Any, chunk: bytes, part: Path) -> None:
    try:
        file.write(chunk)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        free = shutil.disk_usage(part.parent).free
        raise Refused(f"{part.parent}: the disk is full ({free:,} bytes free): make room and try again") from None


def checksum(path: Path, kind: str = "sha256") -> str:
    """The file's sha256, or with `kind="git"` the sha1 by which git names its content."""
    with open(path, "rb") as file:
        if kind == "sha256":
            return hashlib.file_digest(file, "sha256").hexdigest()
        digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
        while chunk := file.read(1 << 20):
            digest.update(chunk)
        return digest.hexdigest()


def _reason(error: Exception) -> str:
    """One phrase for a foreign network error."""
    reason = getattr(error, "reason", None) or error
    return (str(reason).splitlines() or [type(error).__name__])[0] or type(error).__name__


@contextlib.contextmanager
def _progress(name: str) -> Iterator[Callable[[int, int | None], None]]:
    """A bar on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(name, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextlib.contextmanager
def alone(part: Path, deadline: float = HUB_SECONDS) -> Iterator[None]:
    """Only one process writes a partial file; the others wait while it grows, and find it finished.

    Raises Unreachable when it has not grown for `deadline` seconds (0: when another process has it now).
    """
    try:
        import fcntl
    except ImportError:  # not on this system: the checksum still decides
        yield
        return
    lock = part.with_name(part.name + ".lock")
    patience, size = Patience(deadline), -1
    while True:
        with open(lock, "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                now = _size(part)
                if now > size:
                    size = now
                    patience.renew()
                if patience.left() <= 0:
                    raise Unreachable("another process is fetching it and gets no further") from None
            else:
                # Whoever had the lock before may have removed its file: then this is a lock of nothing.
                if _is_at(lock, file.fileno()):
                    yield
                    lock.unlink(missing_ok=True)  # after success alone: whoever comes later finds the file itself
                    return
        time.sleep(0.05)


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def fetch(
    url: str,
    target: Path,
    digest: str,
    *,
    kind: str = "sha256",
    headers: Mapping[str, str] | None = None,
    deadline: float = HUB_SECONDS,
) -> None:
    """Make `target` the content of `url` whose checksum starts with `digest`.

    A cut download stays beside it as `.part` and is continued by the next call. Content with another
    checksum is removed. Raises Unreachable (no server, no progress for `deadline` seconds), Refused
    (wrong content, no room).
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    name = target.name if len(target.name) <= 40 else f"{target.name[:37]}..."
    with alone(part, deadline), _progress(name) as show:
        if target.exists():  # another process was quicker
            return
        resumed = _size(part) > 0
        while True:
            _download(url, part, headers or {}, deadline, show)
            found = checksum(part, kind) if part.exists() else ""
            if found.startswith(digest):
                os.replace(part, target)
                _sync_folder(target.parent)
                return
            part.unlink(missing_ok=True)
            if not resumed:
                raise Refused(
                    f"{url}: wrong content, removed (its checksum is {found[:16]}..., expected {digest[:16]}...): "
                    "the address or the checksum is not of this file, or someone changed it on the way"
                )
            resumed = False  # the old part may have been of another file: once more from nothing


def _download(url: str, part: Path, headers: Mapping[str, str], deadline: float, show: Callable[..., None]) -> None:
    """Receive until the server has sent all, over at most `ATTEMPTS` connections that were cut."""
    for number in range(1, ATTEMPTS + 1):
        before = _size(part)
        patience = Patience(deadline)
        try:
            return attempt(patience, lambda p=patience: _receive(url, part, headers, p, show))
        except JingduError:
            raise
        except (OSError, http.client.HTTPException, ValueError, _Cut, _Status, Unreachable) as error:
            size = _size(part)
            if size > before and number < ATTEMPTS and not isinstance(error, Unreachable):
                continue
            kept = f"; {size:,} bytes are kept and the next try goes on from there" if size else ""
            raise Unreachable(_reason(error) + kept) from None


def _sync_folder(path: Path) -> None:
    with contextlib.suppress(OSError):  # some systems cannot open a folder
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def cache_folder() -> Path:
    """Where fetched files are kept: $JINGDU_CACHE, else ~/.cache/jingdu."""
    return Path(os.environ.get("JINGDU_CACHE") or Path.home() / ".cache" / "jingdu").expanduser()


def is_offline() -> bool:
    """Whether the environment forbids connections (JINGDU_OFFLINE, HF_HUB_OFFLINE, TRANSFORMERS_OFFLINE)."""
    names = ("JINGDU_OFFLINE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    return any(os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE") for name in names)


def url_place(url: str, sha256: str) -> Path:
    """Where the content of an address is kept; `sha256` may be a prefix."""
    name = re.sub(r"[^A-Za-z0-9._-]", "_", Path(unquote(urlsplit(url).path)).name).lstrip(".") or "weights"
    return cache_folder() / "weights" / sha256[:16] / name


def fetch_url(url: str, sha256: str, *, offline: bool, deadline: float, licence: str, say: Say) -> Path:
    """The verified file of `url` in our cache, fetched if it is not there. `sha256` may be a prefix.

    Raises Missing when it cannot be had, with the place where it can be put by hand.
    """
    target = url_place(url, sha256)
    by_hand = f"fetch it by hand and put it at {target}"
    if target.exists():
        if checksum(target).startswith(sha256):
            return target
        target.unlink()
        say(f"{target}: the cached copy was damaged and is removed")
    if offline:
        raise Missing(f"{url} is not in the cache and connections are switched off: {by_hand}")
    say(f"fetching {url} (licence of the weights: {licence})")
    try:
        fetch(url, target, sha256, deadline=deadline)
    except Unreachable as error:
        raise Missing(f"cannot fetch {url}: {error}; {by_hand}") from None
    return target
