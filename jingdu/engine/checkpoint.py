"""Checkpoints: a folder appears whole or not at all, and is believed only if its manifest verifies.

Protocol: write `step-N.tmp/`, fsync each file, write `manifest.json` (sha256 and size of every
file, and its own sha256) last, fsync, rename to `step-N/`, fsync the parent, read back, and only then delete the
oldest beyond `keep`. There is no "latest" pointer: the newest is the largest N that verifies.
"""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from jingdu.errors import Refused
from jingdu.limits import FREE_SPACE, MANIFEST_BYTES

MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
"""How text became the numbers that a network was trained on, in the format of the tokenizers library."""


# Single files ------------------------------------------------------------------------------------


def write_all(descriptor: int, content: bytes) -> None:
    """Write every byte: the system may take fewer at a time."""
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _write(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        write_all(descriptor, content)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(path: Path, content: bytes) -> None:
    """Replace one file so that a reader or a crash sees the old or the new one, never a part."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        _write(aside, content)
        os.replace(aside, path)
    except OSError:
        with suppress(OSError):
            os.unlink(aside)
        raise
    _sync_folder(path.parent)


@contextmanager
def room_for(path: Path, size: int) -> Iterator[None]:
    """While `size` bytes are written to `path`: the system's error becomes one sentence (Refused)."""
    try:
        yield
    except OSError as error:
        raise Refused(f"{path}: not written ({error.strerror}): {_room(path, size)}") from error


def _room(path: Path, size: int) -> str:
    place = next((folder for folder in path.parents if folder.is_dir()), Path("/"))
    free = shutil.disk_usage(place).free
    return (
        f"{size:,} bytes needed, {free:,} free. What was saved before is intact: make room and go on with the same "
        "command and --resume"
    )


def seal(table: Mapping[str, Any]) -> bytes:
    """JSON that carries its own sha256, so that no byte of it can change unnoticed."""
    digest = hashlib.sha256(json.dumps(table, indent=1).encode()).hexdigest()
    return json.dumps({**table, "sha256": digest}, indent=1).encode()


def unseal(path: Path) -> dict[str, Any]:
    """What `seal` made, read from a file. Raises Refused for anything else."""
    try:
        if path.stat().st_size > MANIFEST_BYTES:
            raise Refused(f"{path}: larger than {MANIFEST_BYTES:,} bytes")
        content = path.read_bytes()
        table = json.loads(content)
        del table["sha256"]
        intact = seal(table) == content
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise Refused(f"{path}: cannot be read ({error})") from None
    if not intact:
        raise Refused(f"{path}: its bytes have changed since it was written (sha256 differs)")
    return table


# Checkpoints -------------------------------------------------------------------------------------


def write_checkpoint(folder: Path, step: int, files: Mapping[str, bytes], keep: int, about: Mapping[str, Any]) -> Path:
    """Save `files` as checkpoint `step` under `folder`. Raises Refused when there is no room for it."""
    final, aside = folder / f"step-{step:09d}", folder / f"step-{step:09d}.tmp"
    need = int(FREE_SPACE * sum(map(len, files.values())))
    hashes = {name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)} for name, data in files.items()}
    with room_for(final, need):
        folder.mkdir(parents=True, exist_ok=True)
        for rest in folder.glob("step-*.tmp"):  # of a writer that was killed
            shutil.rmtree(rest)
        if _holds(final, hashes):  # saved already, by a signal right after a regular save
            return final
        if shutil.disk_usage(folder).free < need:
            raise Refused(f"{final}: not written: {_room(final, need)}")
        try:
            aside.mkdir()
            for name, content in files.items():
                _write(aside / name, content)
            _write(aside / MANIFEST, seal({**about, "step": step, "files": hashes}))
            _sync_folder(aside)
            if final.exists():  # it is damaged, else its files would be these
                _remove(final)
            os.rename(aside, final)
            _sync_folder(folder)
        except OSError:
            shutil.rmtree(aside, ignore_errors=True)
            raise
    verify(final)
    # What is newer than this one was refused when the run was resumed, so it does not count.
    mine = [path for path in list_checkpoints(folder) if int(path.name[5:]) <= step]
    for old in mine[max(keep, 2) :]:
        _remove(old)
    return final


def _holds(checkpoint: Path, hashes: Mapping[str, Any]) -> bool:
    try:
        return verify(checkpoint)["files"] == hashes
    except Refused:
        return False


def _remove(checkpoint: Path) -> None:
    """Delete a checkpoint; one that is half deleted does not have the name of one."""
    aside = checkpoint.with_name(f"{checkpoint.name}.old.tmp")
    os.rename(checkpoint, aside)
    shutil.rmtree(aside)


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoint folders, newest first, by number; not verified."""
    found = [path for path in folder.glob("step-*") if path.name[5:].isdigit()]
    return sorted(found, key=lambda path: int(path.name[5:]), reverse=True)


def verify(checkpoint: Path) -> dict[str, Any]:
    """The manifest of a checkpoint whose every file has the recorded size and sha256; else Refused."""
    manifest = unseal(checkpoint / MANIFEST)
    try:
        files = manifest["files"]
        for name, entry in files.items():
            path = checkpoint / name
            if Path(name).name != name or not path.is_file():  # a path, a link to nowhere, a pipe
                raise Refused(f"{checkpoint}: no such file in the checkpoint: {name!r}")
            if path.stat().st_size != entry["bytes"]:
                raise Refused(f"{path}: it has {path.stat().st_size:,} bytes and was written with {entry['bytes']:,}")
            with open(path, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest != entry["sha256"]:
                raise Refused(f"{path}: its bytes have changed since it was written (sha256 differs)")
        extra = {path.name for path in checkpoint.iterdir()} - set(files) - {MANIFEST}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Refused(f"{checkpoint}: incomplete or damaged ({error})") from None
    if extra:
        raise Refused(f"{checkpoint}: files that its manifest does not name: {', '.join(sorted(extra))}")
    return manifest


def newest_checkpoint(run: Path, warn: Callable[[str], None] | None = None) -> Path | None:
    """The newest checkpoint of a run that verifies, loudly passing over damaged ones.

    None where the run has no checkpoint yet. Raises Refused where there are some and none is
    good: a run never starts again at step 0 by itself.
    """
    warn = warn or (lambda text: print(f"warning: {text}", file=sys.stderr))
    candidates = list_checkpoints(run / "checkpoints")
    for candidate in candidates:
        try:
            verify(candidate)
            return candidate
        except Refused as error:
            warn(f"checkpoint refused, going back to the one before it: {error}")
    if candidates:
        raise Refused(f"{run}: none of its {len(candidates)} checkpoints is intact; start a new run with another --out")
    return None
