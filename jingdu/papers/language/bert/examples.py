"""What is pre-trained on (Section 3.1, A.1, and create_pretraining_data.py): gaps to fill, and pairs of segments."""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int64

from jingdu.data.base import Batch
from jingdu.data.draws import Draws
from jingdu.data.kept import kept
from jingdu.errors import UsageError
from jingdu.papers.language.bpe import read_texts, tokenizer_for

from .text import SPECIAL, Marked

__all__ = ["Examples", "Lines", "cut_pairs", "cut_singles", "examples", "leave_gaps", "shorten"]

Ids = np.ndarray
LEFT_OUT = -100
"""The target of places where nothing is asked; cross_entropy leaves them out."""


@dataclass(frozen=True)
class Lines:
    """Documents as one row of tokens: sentences are lines, and a line's tokens follow those of the line before."""

    ids: Ids
    """int64 [tokens]."""
    lines: Ids
    """int64 [lines + 1]: where each begins among the tokens, and the end of the last."""
    documents: Ids
    """int64 [documents + 1]: where each begins among the lines, and the end of the last."""


def _read_lines(of: str, split: Literal["train", "test"], marked: Marked) -> Lines:
    """All lines of text data that have tokens. What was encoded is kept in the cache folder."""
    texts = read_texts(of, split)
    digest = hashlib.sha256(marked.tokenizer.to_json().encode())
    for text in texts:
        digest.update(hashlib.sha256(text.encode()).digest())

    def make() -> bytes:
        ids: list[int] = []
        lines, documents = [0], [0]
        for text in texts:
            for line in text.splitlines():
                if found := marked.encode(line):
                    ids += found
                    lines.append(len(ids))
            if len(lines) - 1 > documents[-1]:
                documents.append(len(lines) - 1)
        parts = [[len(ids), len(lines), len(documents)], ids, lines, documents]
        return np.concatenate([np.array(part, dtype="<i4") for part in parts]).tobytes()

    whole = np.frombuffer(kept(f"lines/{digest.hexdigest()[:40]}.bin", make), dtype="<i4").astype(np.int64)
    ends = np.cumsum([3, *whole[:3]])
    return Lines(*(whole[a:b] for a, b in pairwise(ends)))


# Segments ----------------------------------------------------------------------------------------------


def _target(rng: random.Random, most: int, short: float) -> int:
    """How long a chunk is to be: in a tenth of the cases shorter, as what a task will bring."""
    return rng.randint(2, most) if rng.random() < short else most


def cut_pairs(text: Lines, length: int, rng: random.Random, short: float = 0.1) -> Int64[Ids, "pairs 5"]:
    """Pairs of segments from all documents once: where each begins and ends, and 0 where the second follows the first.

    Lines are taken until they fill the length; some of them, at a random border, are the first segment, and the rest
    the second. In half of the cases, and where there is only one line, the second one comes from a random place of
    another document, and the lines that it displaces are put back. Segments may be too long together (`shorten`).

    Args:
        length: tokens of an example, with its three marks.
        short: share of the examples that are meant to be shorter.
    """
    starts, bounds = text.lines.tolist(), text.documents.tolist()
    count, most, found = len(bounds) - 1, length - 3, []
    for document in range(count):
        end, at = bounds[document + 1], bounds[document]
        # One length for all of a document, as in the released code.
        first, target = at, _target(rng, most, short)
        while at < end:
            at += 1
            if at < end and starts[at] - starts[first] < target:
                continue
            border = rng.randint(first + 1, at - 1) if at - first > 1 else at
            if at - first == 1 or rng.random() < 0.5:
                other = document
                for _ in range(10):
                    other = rng.randrange(count)
                    if other != document:
                        break
                low = rng.randrange(bounds[other], bounds[other + 1])
                high, room = low + 1, target - (starts[border] - starts[first])
                while high < bounds[other + 1] and starts[high] - starts[low] < room:
                    high += 1
                found.append((starts[first], starts[border], starts[low], starts[high], 1))
                at = border
            else:
                found.append((starts[first], starts[border], starts[border], starts[at], 0))
            first = at
    return np.array(found, dtype=np.int64).reshape(-1, 5)


def cut_singles(text: Lines, length: int, rng: random.Random, short: float = 0.1) -> Int64[Ids, "pairs 5"]:
    """The same without second segments: neighbouring lines that fill the length, for pre-training without the pairs."""
    starts, bounds = text.lines.tolist(), text.documents.tolist()
    found = []
    for first, end in pairwise(bounds):
        target, low = _target(rng, length - 2, short), first
        for at in range(first + 1, end + 1):
            if at == end or starts[at] - starts[low] >= target:
                found.append((starts[low], starts[at], 0, 0, 0))
                low = at
    return np.array(found, dtype=np.int64).reshape(-1, 5)


def shorten(first: Ids, second: Ids, most: int, rng: np.random.Generator) -> tuple[Ids, Ids]:
    """Two segments of at most `most` tokens together: the longer one loses tokens, each from a random end of it."""
    sizes = [len(first), len(second)]
    lost: list[list[int]] = [[0, 0], [0, 0]]
    over = sum(sizes) - most
    for end in rng.integers(2, size=max(over, 0)).tolist():
        longer = 0 if sizes[0] >= sizes[1] else 1
        sizes[longer] -= 1
        lost[longer][end] += 1
    (a, b), (c, d) = lost
    return first[a : len(first) - b], second[c : len(second) - d]


# Gaps --------------------------------------------------------------------------------------------------


def leave_gaps(
    tokens: Ids,
    rng: np.random.Generator,
    marked: Marked,
    *,
    share: float = 0.15,
    most: int = 20,
    whole_words: bool = False,
) -> tuple[Ids, Ids, Ids]:
    """The masked language model's question (task 1, A.1): tokens with gaps, the places that are asked for, what stood there.

    Of the chosen tokens 80 % become [MASK], 10 % any token of the vocabulary, and 10 % stay: the network does not know
    which tokens it will be asked for, so it keeps a good state of each.

    Args:
        tokens: of one example, with its marks, which are never chosen.
        rng: of the choice.
        marked: the vocabulary.
        share: of all tokens that are chosen; at least one is.
        most: tokens that are chosen.
        whole_words: choose all tokens of a word, or none (the option of 2019); words that no longer fit are passed over.
    """
    may = np.flatnonzero((tokens != marked.cls) & (tokens != marked.sep))
    wanted = min(most, max(1, round(len(tokens) * share)))
    if whole_words:
        begins = np.flatnonzero(~marked.goes_on.numpy()[tokens[may]] | (np.diff(may, prepend=-2) > 1))
        words = np.split(may, begins[begins > 0])
        chosen: list[int] = []
        for word in rng.permutation(len(words)):
            if len(chosen) + len(words[word]) <= wanted:
                chosen += words[word].tolist()
        places = np.sort(np.array(chosen, dtype=np.int64))
    else:
        places = np.sort(rng.permutation(may)[:wanted])
    targets = tokens[places]
    fate, any_token = rng.random(len(places)), rng.integers(marked.tokenizer.n_vocab, size=len(places))
    found = tokens.copy()
    found[places] = np.where(fate < 0.8, marked.mask, np.where(fate < 0.9, targets, any_token))
    return found, places, targets


class Examples:
    """What BERT is pre-trained on, one example a sample.

    `tokens`, `segments` int64 and `mask` bool [batch, time]; with gaps also `places` and `targets` int64
    [batch, predictions], whose targets are -100 where a row has fewer; of pairs `follows` int64 [batch], 0 where the
    second segment follows the first.
    """

    classes = None

    def __init__(
        self, text: Lines, cuts: Sequence[Ids], marked: Marked, length: int, gaps: int, whole_words: bool, pairs: bool
    ):
        self.text, self.marked, self.tokenizer = text, marked, marked.tokenizer
        self.cuts = np.concatenate(cuts)
        self.length, self.gaps, self.whole_words, self.pairs = length, gaps, whole_words, pairs

    def __len__(self) -> int:
        return len(self.cuts)

    def batch(self, indices: np.ndarray, draws: Draws) -> Batch:
        # An example is the same in every epoch; its duplicates have gaps of their own.
        draws = Draws(0, 0, indices)
        marked, ids, rows, asked = self.marked, self.text.ids, [], []
        for index, key in zip(indices, draws.keys, strict=True):
            rng = np.random.default_rng(int(key))
            a, b, c, d, _ = self.cuts[index]
            first, second = shorten(ids[a:b], ids[c:d], self.length - 2 - self.pairs, rng)
            tokens, segments = marked.join(first.tolist(), second.tolist() if self.pairs else None, self.length)
            if self.gaps:
                row, places, targets = leave_gaps(
                    np.array(tokens), rng, marked, most=self.gaps, whole_words=self.whole_words
                )
                tokens = row.tolist()
                asked.append((places, targets))
            rows.append((tokens, segments))
        padded, mask, kinds = marked.batch(rows)
        batch: Batch = {"tokens": padded, "mask": mask, "segments": kinds}
        if self.pairs:
            batch["follows"] = torch.from_numpy(self.cuts[np.asarray(indices), 4])
        if self.gaps:
            shape = (len(asked), self.gaps)
            batch |= {"places": torch.zeros(shape, dtype=torch.int64), "targets": torch.full(shape, LEFT_OUT)}
            for row, (places, targets) in enumerate(asked):
                batch["places"][row, : len(places)] = torch.from_numpy(places)
                batch["targets"][row, : len(targets)] = torch.from_numpy(targets)
        return batch


def examples(
    split: Literal["train", "test"],
    of: str = "stdlib",
    vocabulary: int | str = 4096,
    length: int = 128,
    family: str = "bert_cased",
    duplicates: int = 10,
    gaps: int = 20,
    whole_words: bool = False,
    pairs: bool = True,
    short: float | int = 0.1,
    tested: int = 1000,
) -> Examples:
    """Any text data of `jingdu.data` as examples to pre-train on; a line counts as a sentence.

    Args:
        split: train or test. The vocabulary is learnt from the train split in both.
        of: data whose samples have `text`: stdlib, pydoc_topics, text(path='...'), hf:...
        vocabulary: WordPiece tokens to learn, special ones included; or the file or folder of a vocabulary.
        length: tokens of an example.
        family: bert (small letters, no accents) or bert_cased, for a vocabulary that is learnt.
        duplicates: how often the train split is cut and masked anew; the masks are made once, and stay.
        gaps: the most tokens that are asked for in an example, of the 15 % that are meant; 0 leaves none.
        whole_words: mask whole words.
        pairs: two segments, to be asked whether the second follows; else one.
        short: share of shorter examples.
        tested: the most examples of the test split, taken from all of it.

    Raises UsageError for numbers that make no sense, and what `open_data` and `read_tokenizer` raise.
    """
    if length < 8 or min(duplicates, tested) < 1 or gaps < 0:
        raise UsageError(
            f"examples(length={length}, duplicates={duplicates}, tested={tested}, gaps={gaps}): at least 8, 1, 1, 0"
        )
    marked = Marked(tokenizer_for(of, vocabulary, family, SPECIAL))
    text = _read_lines(of, split, marked)
    cut = cut_pairs if pairs else cut_singles
    times = duplicates if split == "train" else 1
    cuts = [cut(text, length, random.Random(f"{split} {n}"), short) for n in range(times)]
    if split == "test" and len(cuts[0]) > tested:
        cuts = [cuts[0][np.linspace(0, len(cuts[0]) - 1, tested).round().astype(int)]]
    return Examples(text, cuts, marked, length, gaps, whole_words, pairs)
