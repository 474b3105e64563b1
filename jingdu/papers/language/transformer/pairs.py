"""Pairs of sentences as tokens, in batches of similar length that hold about as many tokens each (Section 5.1)."""

import hashlib
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from jingdu.data import Preprocess, open_data
from jingdu.data.base import Batch
from jingdu.data.draws import Draws, permutation
from jingdu.data.kept import kept
from jingdu.errors import Missing, UsageError
from jingdu.papers.language.bpe import Tokenizer, read_tokenizer

from .spelling import BytePairs, learn_spelling

__all__ = ["Pairs", "Rows", "group", "pairs"]

MANY = 100_000
"""Texts from which on they are encoded by a compiled library, where one is installed."""


class Rows:
    """Rows of tokens of different lengths, in one piece of memory."""

    def __init__(self, flat: np.ndarray, ends: Int64[np.ndarray, " rows"]):
        self.flat, self.ends = flat, ends
        self.starts = np.concatenate([[0], ends[:-1]]).astype(np.int64)

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> "Rows":
        flat = np.array([token for row in rows for token in row], dtype=np.int32)
        return cls(flat, np.cumsum([len(row) for row in rows], dtype=np.int64))

    @property
    def sizes(self) -> Int64[np.ndarray, " rows"]:
        return self.ends - self.starts

    def padded(self, rows: np.ndarray, first: Sequence[np.ndarray], last: int) -> Int64[Tensor, "rows time"]:
        """Some rows, with the tokens `first` (one array a place) before each and `last` behind it, padded with 0."""
        sizes = self.sizes[rows]
        found = np.zeros((len(rows), len(first) + int(sizes.max(initial=0)) + 1), dtype=np.int64)
        places = np.arange(found.shape[1])
        for place, tokens in enumerate(first):
            found[:, place] = tokens
        inside = (places >= len(first)) & (places < len(first) + sizes[:, None])
        if len(rows):
            found[inside] = np.concatenate([self.flat[self.starts[i] : self.ends[i]] for i in rows])
        found[np.arange(len(rows)), len(first) + sizes] = last
        return torch.from_numpy(found)


def group(longest: Int64[np.ndarray, " pairs"], tokens: int) -> Int64[np.ndarray, " groups_and_1"]:
    """Where batches begin among pairs that are sorted by their longer side: rows x longest is at most `tokens`.

    A pair that is longer than that has a batch of its own.
    """
    starts = [0]
    while starts[-1] < len(longest):
        first = starts[-1]
        # As many rows as the shortest would allow, then fewer, until the longest of them allows so many.
        count = max(tokens // int(longest[first]), 1)
        while count > 1 and (first + count > len(longest) or count * longest[first + count - 1] > tokens):
            count -= 1
        starts.append(first + count)
    return np.array(starts, dtype=np.int64)


class Pairs:
    """Batches of pairs; a sample is one such batch, so `batch_size` counts batches.

    Pairs are sorted by their longer side; those as long as each other are shuffled anew in every epoch. Where batches
    begin in that order is the same in all epochs, so batch i of an epoch is a function of (seed, epoch, i).

    `batch` gives `source` and `target`, lists of int64 [rows, time], padded at the right with 0: a source ends with 1, a
    target starts with 0 and ends with 1. With `references` there are also their texts, and the speller.
    """

    classes = None

    def __init__(
        self, source: Rows, target: Rows, speller: BytePairs, tokens: int = 4096, marks: np.ndarray | None = None,
        references: Sequence[str] | None = None,
    ):  # fmt: skip
        self.source, self.target, self.speller, self.marks, self.references = source, target, speller, marks, references
        self.longest = np.maximum(source.sizes + (0 if marks is None else 1), target.sizes) + 1
        self.starts = group(np.sort(self.longest), tokens)
        self._order: tuple[int, int, np.ndarray] | None = None

    @property
    def tokenizer(self) -> Tokenizer:
        return self.speller.tokenizer

    def __len__(self) -> int:
        return len(self.starts) - 1

    def order(self, seed: int, epoch: int) -> Int64[np.ndarray, " pairs"]:
        """All pairs by their longer side, in an order of this epoch's own among equals."""
        found = self._order
        if found is None or found[:2] != (seed, epoch):
            shuffled = permutation(seed, epoch, len(self.longest))
            found = seed, epoch, shuffled[np.argsort(self.longest[shuffled], kind="stable")]
            self._order = found
        return found[2]

    def batch(self, indices: np.ndarray, draws: Draws) -> Batch:
        order = self.order(draws.seed, draws.epoch)
        groups = [order[self.starts[i] : self.starts[i + 1]] for i in indices]
        marks = [[] if self.marks is None else [self.marks[rows]] for rows in groups]
        found: Batch = {
            "source": [self.source.padded(rows, first, last=1) for rows, first in zip(groups, marks, strict=True)],
            "target": [self.target.padded(rows, [np.zeros(len(rows), np.int64)], last=1) for rows in groups],
        }
        if self.references is not None:
            found["reference"] = [[self.references[i] for i in rows] for rows in groups]
            found["speller"] = [self.speller] * len(groups)
        return found


def pairs(
    split: Literal["train", "test"],
    of: str = "catalogues",
    vocabulary: int | str = 1000,
    tokens: int = 4096,
    longest: int = 256,
    family: str = "gpt2",
) -> Pairs:
    """Parallel text of `jingdu.data` as batches of tokens. What was learnt and encoded is kept in the cache folder.

    With more than one target language, a source begins with the mark of the wanted one.

    Args:
        split: train or test.
        of: data whose samples have `source`, `target` and their languages: catalogues(...), parallel(...), hf:...
        vocabulary: tokens of the joint vocabulary, learnt from the train split; or the tokenizer.json of a run.
        tokens: of source or of target, whichever has more, that a batch holds at most, padding included.
        longest: training pairs with more tokens on a side, its end included, are left out; of the test none is.
        family: how `bpe` cuts text, for a vocabulary that is learnt.

    Raises UsageError for data without pairs, or numbers that leave none.
    """
    data = _texts(of, split)
    speller = _speller(of, vocabulary, family)
    if speller.languages and (strange := sorted(set(data["target_language"]) - set(speller.languages))):
        raise UsageError(f"the vocabulary has no mark for {', '.join(strange)}")
    source, target = (_encode(data[side], speller.tokenizer) for side in ("source", "target"))
    marks = np.array([speller.languages[name] for name in data["target_language"]]) if speller.languages else None
    references = None
    if split == "test":
        references = data["target"]
    else:
        fits = np.flatnonzero(np.maximum(source.sizes + (marks is not None), target.sizes) + 1 <= longest)
        source, target = (_some(rows, fits) for rows in (source, target))
        marks = None if marks is None else marks[fits]
    if not len(source.ends):
        raise UsageError(f"{of}: no pair of the {split} split is left with at most {longest} tokens")
    return Pairs(source, target, speller, tokens, marks, references)


def _some(rows: Rows, chosen: np.ndarray) -> Rows:
    parts = [rows.flat[rows.starts[i] : rows.ends[i]] for i in chosen]
    return Rows(np.concatenate([rows.flat[:0], *parts]), np.cumsum(rows.sizes[chosen]))


@cache
def _texts(of: str, split: Literal["train", "test"]) -> dict[str, list[str]]:
    data: Any = open_data(of, split, Preprocess())
    rows = np.arange(len(data))
    found = data.batch(rows, Draws(0, 0, rows))
    fields = ("source", "target", "target_language")
    if any(name not in found for name in fields):
        raise UsageError(f"{of} has no pairs of texts: give catalogues(...), parallel(...) or hf:...(source=, target=)")
    return {name: list(found[name]) for name in fields}


def _digest(texts: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        data = text.encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def _speller(of: str, vocabulary: int | str, family: str) -> BytePairs:
    if isinstance(vocabulary, str):
        path = Path(vocabulary).expanduser()
        if not path.exists():
            raise Missing(f"{path}: there is no such vocabulary")
        return BytePairs(read_tokenizer(path))
    data = _texts(of, "train")
    languages = sorted(set(data["target_language"]))
    languages = languages if len(languages) > 1 else []
    texts = sorted({*data["source"], *data["target"]})
    name = hashlib.sha256(repr((_digest(texts), vocabulary, languages, family)).encode()).hexdigest()[:40]
    made = kept(
        f"vocabularies/{name}.json",
        lambda: learn_spelling(texts, vocabulary, languages, family).tokenizer.to_json().encode(),
    )
    return _parsed(made)


@cache
def _parsed(content: bytes) -> BytePairs:
    return BytePairs(Tokenizer.from_json(content.decode()))


def _encode(texts: Sequence[str], tokenizer: Tokenizer) -> Rows:
    """Without marks. A text that occurs again and again is encoded once."""
    different = list(dict.fromkeys(texts))

    def make() -> bytes:
        fast = len(different) >= MANY and any(map(find_spec, ("tiktoken", "tokenizers")))
        found = Rows.of(tokenizer.encode_batch(different, disallowed=(), fast=fast))
        return found.ends.astype("<i8").tobytes() + found.flat.astype("<i4").tobytes()

    name = hashlib.sha256(repr((_digest(different), _digest([tokenizer.to_json()]))).encode()).hexdigest()[:40]
    content = kept(f"pairs/{name}.bin", make)
    ends = np.frombuffer(content[: 8 * len(different)], dtype="<i8")
    known = Rows(np.frombuffer(content[8 * len(different) :], dtype="<i4"), ends)
    if len(different) == len(texts):
        return known
    numbers = {text: i for i, text in enumerate(different)}
    return _some(known, np.array([numbers[text] for text in texts], dtype=np.int64))
