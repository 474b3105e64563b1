"""Byte-pair encoding itself: which merges a text asks for, and how a piece is spelled with them."""

import heapq
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import pairwise

from jingdu.errors import UsageError

from .pieces import Family, Span

Pair = tuple[int, int]


# Bytes as characters -------------------------------------------------------------------------------


@cache
def byte_characters() -> dict[int, str]:
    """GPT-2's name for each byte, so that files of text can hold them: 188 printable bytes stand for themselves.

    The other 68 are the code points from 256 on, in their order. The order of the result is that of GPT-2's first
    256 tokens.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


@cache
def character_bytes() -> dict[str, int]:
    """The inverse of `byte_characters`."""
    return {character: byte for byte, character in byte_characters().items()}


# Learning ------------------------------------------------------------------------------------------


def symbols_of(piece: str, family: Family) -> list[bytes]:
    """What a piece is before any merge: its bytes, or its characters with the family's marks."""
    if family.alphabet == "bytes":
        data = piece.encode("utf-8", "surrogateescape")
        symbols = [data[i : i + 1] for i in range(len(data))]
    else:
        symbols = [character.encode() for character in piece]
    if family.prefix:
        symbols[1:] = [family.prefix.encode() + symbol for symbol in symbols[1:]]
    if family.suffix:
        symbols[-1] += family.suffix.encode()
    return symbols


def learn(words: Mapping[str, int], size: int, family: Family) -> tuple[dict[bytes, int], list[tuple[bytes, bytes]]]:
    """The vocabulary of `size` tokens that counted pieces ask for (Sec. 3.2, algorithm 1), and its merges in order.

    Again and again the most frequent pair of neighbours becomes one symbol; of equally frequent pairs the one
    with the smaller numbers, the left one first. Pairs are counted once, and then only changed where a merge was.
    Fewer tokens come out where every piece is one symbol before that.

    Raises UsageError where not even the alphabet has room.
    """
    spelled = [(symbols_of(word, family), count) for word, count in words.items() if word and count > 0]
    if family.alphabet == "bytes" and not family.suffix:
        names = [bytes([byte]) for byte in byte_characters()]
    else:
        names = sorted({symbol for symbols, _ in spelled for symbol in symbols})
    if len(names) > size:
        raise UsageError(f"a vocabulary of {size} tokens has no room for an alphabet of {len(names)}: give more")
    index = {name: i for i, name in enumerate(names)}
    sequences = [[index[symbol] for symbol in symbols] for symbols, _ in spelled]
    weights = [count for _, count in spelled]

    counts: defaultdict[Pair, int] = defaultdict(int)
    where: defaultdict[Pair, set[int]] = defaultdict(set)
    for number, (sequence, weight) in enumerate(zip(sequences, weights, strict=True)):
        for pair in pairwise(sequence):
            counts[pair] += weight
            where[pair].add(number)
    queue = [(-count, pair) for pair, count in counts.items()]
    heapq.heapify(queue)

    merges, skip = [], len(family.prefix.encode())
    while len(names) < size and queue:
        count, pair = heapq.heappop(queue)
        if -count != counts[pair]:  # it became rarer since: back to its place
            if counts[pair] > 0:
                heapq.heappush(queue, (-counts[pair], pair))
            continue
        left, right = names[pair[0]], names[pair[1]]
        joined = left + right[skip:]
        merges.append((left, right))
        if joined not in index:  # two pairs may spell the same
            index[joined] = len(names)
            names.append(joined)
        changes: defaultdict[Pair, int] = defaultdict(int)
        for number in sorted(where.pop(pair)):
            _replace(sequences[number], pair, index[joined], number, weights[number], changes, where)
        del counts[pair]
        for changed, by in changes.items():
            if changed != pair:
                counts[changed] += by
                if by > 0:
                    heapq.heappush(queue, (-counts[changed], changed))
    return index, merges


def _replace(
    sequence: list[int], pair: Pair, new: int, number: int, weight: int, changes: dict[Pair, int],
    where: dict[Pair, set[int]],
) -> None:  # fmt: skip
    """Merge a pair in one piece, and note which pairs of neighbours came and went."""
    left, right = pair
    at = 0
    while True:
        try:
            at = sequence.index(left, at, len(sequence) - 1)
        except ValueError:
            return
        if sequence[at + 1] == right:
            if at > 0:
                before = sequence[at - 1]
                changes[before, left] -= weight
                changes[before, new] += weight
                where[before, new].add(number)
            if at + 2 < len(sequence):
                after = sequence[at + 2]
                changes[right, after] -= weight
                changes[new, after] += weight
                where[new, after].add(number)
            sequence[at : at + 2] = [new]
        at += 1


# Encoding ------------------------------------------------------------------------------------------

_NEVER = 1 << 62
LONG = 96
"""Symbols from which on a piece is merged with a queue: below, looking at all pairs again is quicker."""


class Merges:
    """A vocabulary with ranked merges: the model behind a tokenizer.

    Args:
        vocabulary: token -> id. Tokens are bytes also where the alphabet is characters.
        ranks: pair of ids -> rank. The lowest rank is merged first, of equal ranks the leftmost.
        results: rank -> id of the merged token.
        unknown: id for characters that the vocabulary lacks.
        whole: a piece that is a token is that token, whatever its merges say (as tiktoken has it).
        byte_fallback: characters that the vocabulary lacks are spelled by tokens such as <0xE2> (as LLaMA has it).
    """

    def __init__(
        self, vocabulary: Mapping[bytes, int], ranks: Mapping[Pair, int], results: Mapping[int, int], family: Family,
        unknown: int | None = None, whole: bool = False, byte_fallback: bool = False,
    ):  # fmt: skip
        self.vocabulary, self.ranks, self.results, self.family = dict(vocabulary), dict(ranks), dict(results), family
        self.unknown, self.whole, self.byte_fallback = unknown, whole, byte_fallback
        self._sizes: dict[int, int] | None = None
        alphabet = [self.vocabulary.get(bytes([byte]), -1) for byte in range(256)]
        by_bytes = family.alphabet == "bytes" and not family.suffix and -1 not in alphabet
        self._alphabet = alphabet if by_bytes else None

    @classmethod
    def from_merges(
        cls, vocabulary: Mapping[bytes, int], merges: Sequence[tuple[bytes, bytes]], family: Family, **options: object
    ) -> "Merges":
        """From pairs of tokens, first merges first. Raises KeyError for a token that the vocabulary lacks."""
        skip = len(family.prefix.encode())
        pairs = [(vocabulary[left], vocabulary[right]) for left, right in merges]
        results = {rank: vocabulary[left + right[skip:]] for rank, (left, right) in enumerate(merges)}
        return cls(vocabulary, {pair: rank for rank, pair in enumerate(pairs)}, results, family, **options)  # type: ignore[arg-type]

    @classmethod
    def from_ranks(cls, ranks: Mapping[bytes, int], family: Family) -> "Merges":
        """From tiktoken's table: two neighbours merge if what they spell is a token, and its id is the rank."""
        pairs = {}
        for token, rank in ranks.items():
            for i in range(1, len(token)):
                left, right = ranks.get(token[:i]), ranks.get(token[i:])
                if left is not None and right is not None:
                    pairs[left, right] = rank
        return cls(ranks, pairs, {rank: rank for rank in ranks.values()}, family, whole=True)

    def pairs(self) -> list[Pair]:
        """The pairs that merge, first merges first."""
        return [pair for pair, _ in sorted(self.ranks.items(), key=lambda item: (item[1], item[0]))]

    def symbols(self, piece: str) -> list[int]:
        """The ids that merging starts from. Raises UsageError for what the vocabulary cannot spell."""
        if (alphabet := self._alphabet) is not None:
            return [alphabet[byte] for byte in piece.encode("utf-8", "surrogateescape")]
        ids: list[int] = []
        for symbol in symbols_of(piece, self.family):
            found = self.vocabulary.get(symbol, self.unknown)
            if self.byte_fallback and symbol not in self.vocabulary:
                ids += [self.vocabulary[b"<0x%02X>" % byte] for byte in symbol]
                continue
            if found is None:
                raise UsageError(
                    f"this vocabulary has no token for {symbol!r}, which {piece[:40]!r} needs, and no unknown token"
                )
            ids.append(found)
        return ids

    def encode(self, piece: str) -> list[int]:
        """The ids of one piece (algorithm 1's merges, applied by rank)."""
        if self.whole and (found := self.vocabulary.get(piece.encode("utf-8", "surrogateescape"))) is not None:
            return [found]
        ids = self.symbols(piece)
        return self._merge_long(ids) if len(ids) > LONG else self._merge(ids)

    def _merge(self, ids: list[int]) -> list[int]:
        rank = self.ranks.get
        ranks = [rank(pair, _NEVER) for pair in pairwise(ids)]
        while ranks and (best := min(ranks)) < _NEVER:
            at = ranks.index(best)
            ids[at : at + 2] = [self.results[best]]
            del ranks[at]
            if at > 0:
                ranks[at - 1] = rank((ids[at - 1], ids[at]), _NEVER)
            if at < len(ranks):
                ranks[at] = rank((ids[at], ids[at + 1]), _NEVER)
        return ids

    def _merge_long(self, ids: list[int]) -> list[int]:
        """The same in O(n log n): a linked list of symbols, and a queue of pairs of which the stale are passed over."""
        rank, size = self.ranks.get, len(ids)
        after, before = [*range(1, size), -1], [-1, *range(size - 1)]
        queue = [(found, at, *pair) for at, pair in enumerate(pairwise(ids)) if (found := rank(pair)) is not None]
        heapq.heapify(queue)
        while queue:
            best, at, left, right = heapq.heappop(queue)
            next_ = after[at]
            if ids[at] != left or next_ < 0 or ids[next_] != right:
                continue
            ids[at], ids[next_] = self.results[best], -1
            after[at] = after[next_]
            if after[at] >= 0:
                before[after[at]] = at
            for a, b in ((before[at], at), (at, after[at])):
                if a >= 0 and b >= 0 and (found := rank((ids[a], ids[b]))) is not None:
                    heapq.heappush(queue, (found, a, ids[a], ids[b]))
        return [token for token in ids if token >= 0]

    def spans(self, piece: str) -> list[Span]:
        """For each id of `encode(piece)` the characters that it spells, in part or whole."""
        if self._sizes is None:
            self._sizes = {number: _size(token, self.family) for token, number in self.vocabulary.items()}
        places = [i for i, character in enumerate(piece) for _ in character.encode("utf-8", "surrogateescape")]
        found, at = [], 0
        for token in self.encode(piece):
            size = self._sizes[token] if token != self.unknown else places.count(places[at])
            found.append((places[at], places[at + size - 1] + 1))
            at += size
        return found


def _size(token: bytes, family: Family) -> int:
    """How many bytes of text a token spells."""
    if re.fullmatch(rb"<0x[0-9A-F]{2}>", token) and family.alphabet == "characters":
        return 1
    return len(token.removeprefix(family.prefix.encode()).removesuffix(family.suffix.encode()))
