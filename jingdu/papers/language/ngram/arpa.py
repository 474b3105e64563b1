"""ARPA files: the exchange format of n-gram models, as text (Stolcke 2002; ngram-format(5) of SRILM).

    \\data\\
    ngram 1=...
    \\1-grams:
    log10 p <tab> words <tab> log10 back-off weight

-99 stands for log10 of zero. The weight of a history is on its own line, among the n-grams of its length.
Other toolkits pad a sentence with one `<s>`; here there are n-1, so that our files list `<s> <s>` too. In
files without it p(w | <s> <s>) is p(w | <s>), as their authors meant.
"""

import gzip
import math
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int64

from jingdu.engine.checkpoint import write_whole
from jingdu.errors import BadInput, Refused, UsageError

from .counting import find
from .smoothing import Table
from .text import END, START, UNKNOWN

ZERO = -99.0

# Writing -------------------------------------------------------------------------------------------


def write_arpa(path: str | Path, words: Sequence[str], tables: Sequence[Table]) -> Path:
    """Write a model that backs off, or an interpolated one as the back-off tables of the same probabilities.

    Raises UsageError for words with white space (a model of characters), Refused where it cannot be written.
    """
    if any(len(word.encode().split()) != 1 for word in words):
        raise UsageError("an ARPA file separates words by white space: a model of characters with spaces does not fit")
    path, names = Path(path), [*words, START]
    sections = [list(_lines(tables, k, names)) for k in range(1, len(tables) + 1)]
    header = "".join(f"ngram {k}={len(lines)}\n" for k, lines in enumerate(sections, 1))
    body = "".join(f"\n\\{k}-grams:\n" + "\n".join(lines) + "\n" for k, lines in enumerate(sections, 1))
    try:
        write_whole(path, f"\\data\\\n{header}{body}\n\\end\\\n".encode())
    except OSError as error:
        raise Refused(f"{path}: cannot be written ({error.strerror}); choose another file") from None
    return path


def _lines(tables: Sequence[Table], k: int, names: list[str]) -> Iterator[str]:
    """The n-grams of order k, each with its weight where it is a history."""
    table, start = tables[k - 1], len(names) - 1
    if k == 1:  # all words, those too whose probability the uniform distribution gave
        words, p = np.arange(start)[:, None], np.full(start, table.backoff[0] / start)
        p[table.keys] = table.probability
    else:
        words = np.column_stack([_histories(tables, k)[table.keys // table.size], table.keys % table.size])
        p = table.probability
    weights = np.full(len(words), np.nan)
    if k < len(tables):
        rows, histories = np.zeros(len(words), np.int64), _histories(tables, k + 1)
        for j, level in enumerate(tables[1 : k + 1], start=1):
            rows = find(level.histories, rows * level.size + words[:, -j])
        weights = np.where(rows >= 0, tables[k].backoff[rows], np.nan)
        only = histories[:, -1] == start  # <s>, <s> <s>, ...: never predicted
        words, p = np.concatenate([words, histories[only]]), np.concatenate([p, np.zeros(only.sum())])
        weights = np.concatenate([weights, tables[k].backoff[only]])
    with np.errstate(divide="ignore"):
        logs, weights = np.log10(p), np.log10(weights)
    for row, log, weight in zip(words.tolist(), logs.tolist(), weights.tolist(), strict=True):
        back = "" if math.isnan(weight) else f"\t{max(weight, ZERO):.15g}"
        # A probability of 1 may come out of its sums as a little more.
        yield f"{min(max(log, ZERO), 0.0):.15g}\t{' '.join([names[w] for w in row])}{back}"


def _histories(tables: Sequence[Table], k: int) -> Int64[np.ndarray, "histories words"]:
    """The k - 1 words of each history of order k, by number."""
    words = np.zeros((1, 0), np.int64)
    for table in tables[1:k]:
        words = np.column_stack([table.histories % table.size, words[table.histories // table.size]])
    return words


# Reading -------------------------------------------------------------------------------------------


@dataclass
class Section:
    """The n-grams of one order, as a file lists them."""

    ngrams: list[tuple[str, ...]] = field(default_factory=list)
    log10: list[float] = field(default_factory=list)
    weight: list[float] = field(default_factory=list)
    """log10; nan where there is none."""
    line: list[int] = field(default_factory=list)


def read_arpa(path: str | Path) -> tuple[list[str], list[Table]]:
    """The vocabulary and tables of an ARPA file, plain or packed by gzip.

    Raises BadInput, with the line, where it is damaged or no ARPA file.
    """
    path = Path(path)
    sections = _parse(path)
    index = {UNKNOWN: 0, END: 1}
    for (word,) in sections[0].ngrams:
        if word != START:
            index.setdefault(word, len(index))
    words, start = list(index), len(index)
    index[START], size = start, start + 1
    rows = [_numbers(path, section, index, k) for k, section in enumerate(sections, 1)]
    weights = [np.array(section.weight) for section in sections]
    # A history is an n-gram with a weight, or with longer ones after it, or the end of a longer history.
    needed = [np.zeros((0, len(sections)), np.int64)]
    for k in range(len(sections) - 1, 0, -1):
        own = rows[k - 1][~np.isnan(weights[k - 1])]
        needed.insert(0, np.unique(np.concatenate([own, rows[k][:, :k], needed[0][:, 1:]]), axis=0))
    histories, backoff, tables = [np.zeros(1, np.int64)], np.zeros(1), []
    for k, section in enumerate(sections, 1):
        if k > 1:
            histories.append(np.sort(_rows(histories, needed[k - 2][:, 1:], size) * size + needed[k - 2][:, 0]))
            backoff, given = np.ones(len(histories[-1])), ~np.isnan(weights[k - 2])
            backoff[_rows(histories, rows[k - 2][given], size)] = _power(weights[k - 2][given])
        keys = _rows(histories, rows[k - 1][:, :-1], size) * size + rows[k - 1][:, -1]
        order = np.argsort(keys, kind="stable")
        twice = np.flatnonzero(np.diff(keys[order]) == 0)
        if len(twice):
            place = order[twice[0] + 1]
            raise BadInput(path, f"line {section.line[place]}: {' '.join(section.ngrams[place])!r} is listed twice")
        order = order[rows[k - 1][order, -1] != start]  # <s> is there for its weight alone
        keys, p = keys[order], _power(np.array(section.log10))[order]
        if k == 1:  # <unk> and </s> that are not listed have no probability
            absent = np.setdiff1d(np.arange(start), keys)
            place = np.searchsorted(keys, absent)
            keys, p = np.insert(keys, place, absent), np.insert(p, place, 0.0)
        tables.append(Table(size, histories[-1], backoff, keys, p))
    return words, tables


def _numbers(path: Path, section: Section, index: dict[str, int], k: int) -> Int64[np.ndarray, "ngrams words"]:
    try:
        return np.array([[index[w] for w in ngram] for ngram in section.ngrams], np.int64).reshape(-1, k)
    except KeyError as error:
        word = error.args[0]
        line = next(number for number, ngram in zip(section.line, section.ngrams, strict=True) if word in ngram)
        raise BadInput(path, f"line {line}: the word {word!r} of a {k}-gram is not among the 1-grams") from None


def _rows(histories: Sequence[np.ndarray], words: np.ndarray, size: int) -> Int64[np.ndarray, " ngrams"]:
    """Rows of histories given by their words; `histories` are the tables of the orders 1, 2, ..."""
    rows = np.zeros(len(words), np.int64)
    for j in range(1, words.shape[1] + 1):
        rows = find(histories[j], rows * size + words[:, -j])
    return rows


def _power(log10: Float64[np.ndarray, " rows"]) -> Float64[np.ndarray, " rows"]:
    return np.where(log10 <= ZERO, 0.0, 10.0**log10)


def _parse(path: Path) -> list[Section]:
    """The sections of the file, each as long as its header says."""
    declared: list[int] = []
    sections: list[Section] = []
    number, state = 0, "before"  # before, header, a section's n-grams, end
    try:
        with open(path, "rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
        with gzip.open(path) if packed else open(path, "rb") as file:
            for line in file:
                number += 1
                fields = [f.decode("utf-8") for f in line.split()]  # ASCII white space: a word may hold other
                if not fields or (state == "before" and fields[0] != "\\data\\"):
                    continue  # SRILM allows any text before the header
                if fields[0] == "\\data\\":
                    state = "header"
                elif state == "header" and fields[0] == "ngram":
                    match = re.fullmatch(r"ngram (\d+) ?= ?(\d+)", " ".join(fields))
                    if match is None or int(match[1]) != len(declared) + 1:
                        raise ValueError(f"expected 'ngram {len(declared) + 1}=COUNT'")
                    declared.append(int(match[2]))
                elif fields[0].startswith("\\"):
                    if sections and len(sections[-1].ngrams) != declared[len(sections) - 1]:
                        raise ValueError(
                            f"{len(sections[-1].ngrams)} {len(sections)}-grams, where the header says "
                            f"{declared[len(sections) - 1]}"
                        )
                    wanted = f"\\{len(sections) + 1}-grams:" if len(sections) < len(declared) else "\\end\\"
                    if fields[0] != wanted:
                        raise ValueError(f"expected {wanted}, found {fields[0][:40]}")
                    if wanted == "\\end\\":
                        state = "end"
                        break
                    sections.append(Section())
                    state = "n-grams"
                elif state == "n-grams":
                    _add(sections[-1], fields, len(sections), number)
                else:
                    raise ValueError(f"found {fields[0][:40]!r} in the header")
    except (OSError, EOFError, ValueError, zlib.error) as error:
        at = f"line {number}: " if number else ""
        raise BadInput(path, f"{at}not an ARPA file ({getattr(error, 'strerror', None) or error})") from None
    if state == "before":
        raise BadInput(path, f"no ARPA file: none of its {number} lines is \\data\\")
    if state != "end" or not sections:
        raise BadInput(
            path, f"line {number}: the ARPA file is cut, it has no \\end\\" if state != "end" else "it is empty"
        )
    return sections


def _add(section: Section, fields: list[str], k: int, number: int) -> None:
    """One n-gram's line. Raises ValueError."""
    if not k + 1 <= len(fields) <= k + 2:
        raise ValueError(f"a {k}-gram has {k + 1} or {k + 2} fields, this line {len(fields)}")
    log10, weight = float(fields[0]), math.nan
    if not log10 <= 0:
        raise ValueError(f"the log10 of a probability is {log10}")
    if len(fields) == k + 2:
        weight = float(fields[-1])
        if not weight < -ZERO:
            raise ValueError(f"the log10 of a back-off weight is {weight}")
    section.ngrams.append(tuple(UNKNOWN if w == "<UNK>" else w for w in fields[1 : k + 1]))
    section.log10.append(log10)
    section.weight.append(weight)
    section.line.append(number)
