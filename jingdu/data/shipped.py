"""Files of installed packages, believed only with the sha256 that their package was installed with."""

import base64
import csv
import hashlib
from functools import cache
from importlib import metadata
from pathlib import Path

from jingdu.errors import BadInput, Missing


@cache
def verify_shipped(package: str, *files: str) -> None:
    """Raises BadInput where a file of an installed package has changed since it was installed.

    A wheel leaves the checksums of its files in RECORD (PyPA, "Recording installed projects"). Where another
    system installed the package without them, there is nothing to compare with; nor is there for Python's own
    library, which `stdlib` and `pydoc_topics` read.
    """
    try:
        installed = metadata.distribution(package)
    except metadata.PackageNotFoundError:
        return
    rows = csv.reader((installed.read_text("RECORD") or "").splitlines())
    recorded = {row[0]: row[1].removeprefix("sha256=") for row in rows if len(row) > 1 and row[1].startswith("sha256=")}
    for file in files:
        path = Path(str(installed.locate_file(file)))
        if file in recorded and _digest(path) != recorded[file]:
            raise BadInput(path, f"changed since {package} was installed (sha256 differs): install {package} again")


def shipped_file(package: str, file: str) -> Path:
    """A file of an installed package, verified; the package is not imported.

    Raises Missing where the package is not installed or has no such file, BadInput where it has changed.
    """
    try:
        path = Path(str(metadata.distribution(package).locate_file(file)))
    except metadata.PackageNotFoundError:
        raise Missing(f"{file} lies in the package {package}, which is not installed: pip install {package}") from None
    if not path.is_file():
        raise Missing(f"{path}: {package} {metadata.version(package)} is installed without it")
    verify_shipped(package, file)
    return path


def _digest(path: Path) -> str:
    try:
        return base64.urlsafe_b64encode(hashlib.sha256(path.read_bytes()).digest()).decode().rstrip("=")
    except OSError as error:
        raise BadInput(path, error.strerror or "cannot be read") from None
