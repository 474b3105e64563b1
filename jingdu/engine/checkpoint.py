"""Checkpoints: a folder appears whole or not at all, and is believed only if its manifest verifies.

Protocol: write `step-N.tmp/`, fsync each file, write `manifest.json` (sha256 and size of every
file) last, fsync, rename to `step-N/`, fsync the parent, read back, and only then delete the
oldest beyond `keep`. There is no "latest" pointer: the newest is the largest N that verifies.
"""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jingdu.errors import Refused

MANIFEST = "manifest.json"


def _write(path: Path, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(path: Path, content: bytes) -> None:
    """Replace one file so that a reader or a crash sees the old or the new one, never a part."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    _write(aside, content)
    os.replace(aside, path)
    _sync_folder(path.parent)


def write_checkpoint(folder: Path, step: int, files: Mapping[str, bytes], keep: int, about: Mapping[str, Any]) -> Path:
    """Save `files` as checkpoint `step` under `folder`. Raises Refused when the disk is too full."""
    folder.mkdir(parents=True, exist_ok=True)
    final, aside = folder / f"step-{step:09d}", folder / f"step-{step:09d}.tmp"
    need = int(1.2 * sum(map(len, files.values())))
    free = shutil.disk_usage(folder).free
    if free < need:
        raise Refused(f"{folder}: {need:,} bytes needed for a checkpoint, {free:,} free: make room and use --resume")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir()
        for name, content in files.items():
            _write(aside / name, content)
        hashes = {
            name: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
            for name, content in files.items()
        }
        _write(aside / MANIFEST, json.dumps({**about, "step": step, "files": hashes}, indent=1).encode())
        _sync_folder(aside)
        if final.exists():  # the same step saved again, e.g. by a signal right after a regular save
            shutil.rmtree(final)
        os.rename(aside, final)
        _sync_folder(folder)
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise Refused(
            f"{aside}: the checkpoint could not be written ({error.strerror}); earlier ones are intact"
        ) from error
    verify(final)
    for old in list_checkpoints(folder)[max(keep, 2) :]:
        shutil.rmtree(old)
    return final


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoint folders, newest first, by number; not verified."""
    found = [path for path in folder.glob("step-*") if path.name[5:].isdigit()]
    return sorted(found, key=lambda path: int(path.name[5:]), reverse=True)


def verify(checkpoint: Path) -> dict[str, Any]:
    """The manifest of a checkpoint whose every file has the recorded size and sha256; else Refused."""
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_bytes())
        files = manifest["files"]
        for name, entry in files.items():
            with open(checkpoint / name, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest != entry["sha256"]:
                raise Refused(f"{checkpoint / name}: its bytes have changed since it was written (sha256 differs)")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Refused(f"{checkpoint}: incomplete or damaged ({error})") from None
    extra = {path.name for path in checkpoint.iterdir()} - set(files) - {MANIFEST}
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
