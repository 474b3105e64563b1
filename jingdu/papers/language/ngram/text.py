"""Text to words, and words to numbers. Sentences end with `</s>`; the vocabulary is closed by `<unk>`."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Literal

import numpy as np
from jaxtyping import Int64

UNKNOWN, END, START = "<unk>", "</s>", "<s>"
"""`<unk>` is word 0, `</s>` word 1; `<s>` is never predicted, and its number follows the vocabulary's last."""

Tokens = Literal["prose", "code", "spaces", "characters"]
Case = Literal["kept", "lower", "upper"]

_RUNS = "-=*.#~<>/&|+:!\"'`"
_WORD = re.compile(r"\d+(?:\.\d+)+|\w+|" + "|".join(re.escape(sign) + "+" for sign in _RUNS) + r"|[^\w\s]")
_SENTENCE_END = re.compile(r"\n\s*\n|(?<=[.!?])\s+(?=[\"'(\[“]*[A-Z0-9])")


def sentences(text: str, tokens: Tokens = "prose", case: Case = "kept") -> list[list[str]]:
    """The tokens of a text, sentence by sentence; empty sentences are left out.

    A word is a run of letters, digits and underscores, or a number with points; a sign, or a run of
    one (`==`, `...`), is a token; brackets stand alone; white space is dropped. `prose` ends a
    sentence at a blank line, and after `.`, `!` or `?` before a capital or a digit; `code` at every
    line end. `spaces` is for text that is divided already: a word is what stands between spaces, a
    sentence is a line. `characters` takes every character, white space too, and the text as one sentence.
    """
    pieces = {"prose": _SENTENCE_END.split, "characters": lambda whole: [whole]}.get(tokens, str.splitlines)(text)
    words = {"spaces": str.split, "characters": list}.get(tokens, _WORD.findall)
    change = {"kept": str, "lower": str.lower, "upper": str.upper}[case]
    found = (words(change(piece)) for piece in pieces)
    return [sentence for sentence in found if sentence]


def join(words: Sequence[str], tokens: Tokens = "prose") -> str:
    """Words as text, with the usual spaces around signs: the original ones are not known."""
    if tokens in ("characters", "spaces"):
        return ("" if tokens == "characters" else " ").join(words)
    text = re.sub(r" (?=[,.;:!?)\]}]+( |$))", "", " ".join(words))
    return re.sub(r"(?<=[(\[{]) ", "", text)


def encode(found: Iterable[Sequence[str]], index: Mapping[str, int]) -> Int64[np.ndarray, " tokens"]:
    """Sentences as one array of word numbers, each closed by `</s>`; other words are `<unk>`.

    An `index` from `growing_index` takes new words in instead.
    """
    flat = list(chain.from_iterable((*sentence, END) for sentence in found))
    number = index.__getitem__ if isinstance(index, defaultdict) else lambda word: index.get(word, 0)
    return np.fromiter(map(number, flat), np.int64, len(flat))


def growing_index(words: Iterable[str] = (UNKNOWN, END)) -> dict[str, int]:
    """Word -> number, where a word that is asked for the first time gets the next number."""
    index: defaultdict[str, int] = defaultdict(int, {word: i for i, word in enumerate(words)})
    index.default_factory = index.__len__
    return index


def close_vocabulary(
    types: Sequence[str], tokens: Int64[np.ndarray, " tokens"], min_count: int
) -> tuple[list[str], Int64[np.ndarray, " tokens"]]:
    """Replace words that occur less than `min_count` times by `<unk>`; the most frequent come first.

    Returns the vocabulary and the tokens by its numbers. `<s>` in the text is no word: it is `<unk>`.
    """
    counts = np.bincount(tokens, minlength=len(types))
    kept = [i for i in range(2, len(types)) if counts[i] >= min_count and types[i] != START]
    kept.sort(key=lambda i: (-counts[i], types[i]))
    renumber = np.zeros(len(types), np.int64)
    renumber[[1, *kept]] = np.arange(1, len(kept) + 2)
    return [UNKNOWN, END, *(types[i] for i in kept)], renumber[tokens]
