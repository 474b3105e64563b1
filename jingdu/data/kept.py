"""Derived data in the cache folder: made once, and believed only with the sha256 that they were written with."""

import hashlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

from jingdu.errors import UsageError

_DIGEST = 65  # a sha256 in hexadecimal, and a line end


def kept(name: str, make: Callable[[], bytes]) -> bytes:
    """What `make()` gives, or gave before.

    Args:
        name: of the file below the cache folder, $JINGDU_CACHE or ~/.cache/jingdu. It holds a hash of all that the
            content depends on.
        make: is called where there is no such file, or, with a warning, where its bytes have changed.

    Raises UsageError where the cache folder cannot be written.
    """
    from jingdu.engine.checkpoint import write_whole

    root = Path(os.environ.get("JINGDU_CACHE") or Path.home() / ".cache" / "jingdu").expanduser()
    path = root / name
    if path.exists():
        content = path.read_bytes()
        digest, data = content[:_DIGEST], content[_DIGEST:]
        if digest == hashlib.sha256(data).hexdigest().encode() + b"\n":
            return data
        print(
            f"warning: {path}: its bytes have changed since it was made (sha256 differs): made again", file=sys.stderr
        )
    data = make()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, hashlib.sha256(data).hexdigest().encode() + b"\n" + data)
    except OSError as error:
        raise UsageError(
            f"{path}: derived data cannot be kept there ({error.strerror}); set JINGDU_CACHE to a folder of yours"
        ) from None
    return data
