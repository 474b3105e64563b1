"""The file formats of word2vec.c, which other tools read and write too: text and binary, plain or packed by gzip.

    V d
    word v1 v2 ... vd          text: numbers in decimal
    word <d float32>           binary: little-endian, after one space; a line end follows each vector

gensim writes its binary files without those line ends; both are read. A word is bytes without spaces: where they are
no UTF-8, they come back as they were (surrogateescape).
"""

import gzip
import io
import re
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from jingdu.engine.checkpoint import write_whole
from jingdu.errors import BadInput, Refused, UsageError

_HEADER = re.compile(rb"[ \t]*(\d{1,12})[ \t]+(\d{1,6})[ \t]*\r?\n")
_LONGEST = 10_000
"""Bytes of a word; word2vec.c has 100."""
_CHUNK = 1 << 22


def _is_packed(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _open(path: Path) -> io.BufferedIOBase:
    return gzip.open(path) if _is_packed(path) else open(path, "rb")


def header(path: str | Path) -> tuple[int, int] | None:
    """Words and dimensions of a file of these formats; None where it is another."""
    try:
        with _open(Path(path)) as file:
            match = _HEADER.match(file.readline(64))
    except (OSError, EOFError, zlib.error):
        return None
    return (int(match[1]), int(match[2])) if match and int(match[2]) else None


def read_vectors(path: str | Path) -> tuple[list[str], Float32[Tensor, "words dim"]]:
    """Words and vectors of a text or binary file. Raises BadInput where it is damaged or of another format."""
    path = Path(path)
    size = header(path)
    if size is None:
        raise BadInput(path, "no file of word vectors: its first line is not 'WORDS DIMENSIONS'")
    words, dim = size
    try:
        # A number has two bytes or more, and gzip packs a thousandfold at most: what is not there is not allocated.
        length = path.stat().st_size * (1032 if _is_packed(path) else 1)
        if 2 * words * dim > length:
            raise BadInput(path, f"the file is cut: {words:,} words of {dim} numbers do not fit into it")
        with _open(path) as file:
            start = len(file.readline())
            is_text = _is_row(file.readline(_LONGEST + 64 * dim), dim)
            file.seek(start)
            return _read_text(path, file, words, dim) if is_text else _read_binary(path, file, words, dim)
    except (OSError, EOFError, zlib.error) as error:
        raise BadInput(path, f"cannot be read ({error})") from None


def _is_row(line: bytes, dim: int) -> bool:
    fields = line.split()
    try:
        return len(fields) > dim and all(len(field) < 64 and float(field) is not None for field in fields[-dim:])
    except ValueError:
        return False


def _text(word: bytes) -> str:
    return word.decode("utf-8", "surrogateescape")


def _read_text(path: Path, file: io.BufferedIOBase, words: int, dim: int) -> tuple[list[str], Tensor]:
    found, table = [], np.empty((words, dim), np.float32)
    for row in range(words):
        fields = file.readline().rstrip().rsplit(b" ", dim)
        try:
            if len(fields) != dim + 1:
                raise ValueError(f"{max(len(fields) - 1, 0)} numbers, where the header says {dim}")
            table[row] = [float(field) for field in fields[1:]]
        except ValueError as error:
            raise BadInput(path, f"line {row + 2}: {error}") from None
        found.append(_text(fields[0]))
    if file.read(_CHUNK).strip():
        raise BadInput(path, f"more than the {words:,} words of its header")
    return found, torch.from_numpy(table)


def _read_binary(path: Path, file: io.BufferedIOBase, words: int, dim: int) -> tuple[list[str], Tensor]:
    found, table = [], np.empty((words, dim), np.dtype("<f4"))
    data, at, size = b"", 0, 4 * dim
    for row in range(words):
        space = data.find(b" ", at)
        while space < 0 or space + 1 + size > len(data):
            more = file.read(max(_CHUNK, size))
            if not more or (space < 0 and len(data) - at > _LONGEST):
                raise BadInput(
                    path, f"the file is cut, or is of another format: it ends in word {row + 1:,} of {words:,}"
                )
            data, at = data[at:] + more, 0
            space = data.find(b" ")
        found.append(_text(data[at:space].lstrip(b"\n")))
        table[row] = np.frombuffer(data, "<f4", dim, space + 1)
        at = space + 1 + size
    if (data[at:] + file.read(_CHUNK)).strip(b"\n"):
        raise BadInput(path, f"more than the {words:,} words of its header")
    return found, torch.from_numpy(table.astype(np.float32, copy=False))


def write_vectors(
    path: str | Path, words: Sequence[str], vectors: Float32[Tensor, "words dim"], binary: bool | None = None
) -> Path:
    """Write a file that word2vec's tools and gensim open; binary by default where its name ends in .bin.

    Text has the nine digits that give each float32 back. Raises UsageError for words with white space in them (a
    phrase is new_york), Refused where it cannot be written.
    """
    path = Path(path)
    binary = path.suffix == ".bin" if binary is None else binary
    names = [word.encode("utf-8", "surrogateescape") for word in words]
    bad = [word for word, name in zip(words, names, strict=True) if name.split() != [name]]
    if bad:
        raise UsageError(f"word {bad[0]!r}: the format divides by white space, so a word is not empty and holds none")
    rows = vectors.detach().cpu().numpy().astype("<f4")
    pieces = [f"{len(names)} {rows.shape[1]}\n".encode()]
    for name, row in zip(names, rows, strict=True):
        numbers = row.tobytes() if binary else " ".join([f"{value:.9g}" for value in row.tolist()]).encode()
        pieces.append(name + b" " + numbers + b"\n")
    try:
        write_whole(path, b"".join(pieces))
    except OSError as error:
        raise Refused(f"{path}: cannot be written ({error.strerror}); choose another file") from None
    return path
