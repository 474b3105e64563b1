"""Counts of n-grams as sorted arrays of numbers.

An n-gram hw is one number: the row of its history h in a table, times `size`, plus the word w. A
history is in turn the row of its last words one order below, times `size`, plus its first word. So
n-grams of any order are 64-bit numbers, and a look-up is a binary search. h' is h without its first word.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float64, Int64


@dataclass(frozen=True)
class Counts:
    """The n-grams of one order that occur, ascending. They end in a word that is predicted, never in `<s>`."""

    size: int
    """Words of the vocabulary, and `<s>`, whose number is size - 1."""
    histories: Int64[np.ndarray, " histories"]
    keys: Int64[np.ndarray, " ngrams"]
    count: Int64[np.ndarray, " ngrams"]
    continuations: Int64[np.ndarray, " ngrams"]
    """N1+(.hw): distinct words to the left; the count itself at the highest order and after `<s>`."""
    shorter: Int64[np.ndarray, " ngrams"]
    """Row of h'w one order below."""

    @cached_property
    def history(self) -> Int64[np.ndarray, " ngrams"]:
        """Row of each n-gram's history."""
        return self.keys // self.size

    @cached_property
    def total(self) -> Float64[np.ndarray, " histories"]:
        """c(h): how often each history is followed by a word."""
        return self.sums(self.count)

    @cached_property
    def types(self) -> Float64[np.ndarray, " histories"]:
        """N1+(h.): distinct words after each history."""
        return self.sums(np.ones(len(self.keys)))

    def sums(self, values: np.ndarray) -> Float64[np.ndarray, " histories"]:
        """Sum of the n-grams' values over the words of each history."""
        return np.bincount(self.history, values, minlength=len(self.histories))


def histories_of(tokens: Int64[np.ndarray, " tokens"], order: int, start: int) -> Int64[np.ndarray, "tokens context"]:
    """The order-1 words before each token, oldest first; `start` stands before a sentence's first word."""
    first = np.zeros(len(tokens), np.int64)
    begins = np.flatnonzero(tokens[:-1] == 1) + 1
    first[begins] = begins
    place = np.arange(len(tokens))[:, None] - np.arange(order - 1, 0, -1)
    return np.where(place >= np.maximum.accumulate(first)[:, None], tokens[np.maximum(place, 0)], start)


def count_ngrams(tokens: Int64[np.ndarray, " tokens"], order: int, size: int) -> list[Counts]:
    """Counts of the orders 1 .. `order`, in sentences that each end with `</s>` (number 1)."""
    context = histories_of(tokens, order, size - 1)
    histories, history = np.zeros(1, np.int64), np.zeros(len(tokens), np.int64)
    row, found = history, []
    for k in range(1, order + 1):
        if k > 1:
            histories, history = np.unique(history * size + context[:, 1 - k], return_inverse=True)
        below = row
        keys, place, row, count = np.unique(history * size + tokens, True, True, True)
        found.append((histories, keys, count, below[place]))
    levels = []
    for k, (histories, keys, count, shorter) in enumerate(found, start=1):
        continuations = count
        if k < order:
            after_start = histories[keys // size] % size == size - 1
            continuations = np.where(after_start, count, np.bincount(found[k][3], minlength=len(keys)))
        levels.append(Counts(size, histories, keys, count, continuations, shorter))
    return levels


@runtime_checkable
class Searchable(Protocol):
    """One order's sorted tables."""

    size: int
    histories: np.ndarray
    keys: np.ndarray


def look_up(
    levels: Sequence[Searchable], histories: Int64[np.ndarray, "batch context"], words: Int64[np.ndarray, " batch"]
) -> Iterator[tuple[Int64[np.ndarray, " batch"], Int64[np.ndarray, " batch"]]]:
    """Order by order, the rows of the histories and of the n-grams in the tables; -1 where absent.

    Histories may be shorter than the highest order's: then there are fewer orders.
    """
    history = np.zeros(len(words), np.int64)
    for k, level in enumerate(levels[: histories.shape[1] + 1]):
        if k:
            history = find(level.histories, history * level.size + histories[:, -k])
        yield history, find(level.keys, history * level.size + words)


def find(table: Int64[np.ndarray, " rows"], wanted: Int64[np.ndarray, " batch"]) -> Int64[np.ndarray, " batch"]:
    """Row of each wanted number in a sorted table, -1 where absent; numbers made of an absent row are negative."""
    if not len(table):
        return np.full(len(wanted), -1)
    row = np.minimum(np.searchsorted(table, wanted), len(table) - 1)
    return np.where(table[row] == wanted, row, -1)
