"""Words and their counts, and what is made of them: subsampling, noise, the Huffman tree, phrases.

Letters: V words, sorted by count; c their counts; f = c / sum c.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, Int32, Int64
from torch import Tensor

from jingdu.errors import UsageError

Subsampling = Literal["code", "text"]


def sort_words(counts: Mapping[str, int], min_count: int = 5) -> tuple[list[str], Int64[Tensor, " words"]]:
    """The words that occur `min_count` times, the most frequent first (ties by the alphabet), and their counts."""
    kept = sorted((word for word, count in counts.items() if count >= min_count), key=lambda w: (-counts[w], w))
    return kept, torch.tensor([counts[word] for word in kept], dtype=torch.int64)


# Subsampling of frequent words (2013b, Sec. 2.3) ----------------------------------------------------


def keep_probability(
    counts: Int64[Tensor, " words"], sample: float, formula: Subsampling = "code"
) -> Float32[Tensor, " words"]:
    """With what probability an occurrence of each word is kept; all are where `sample` is 0.

    `sample` is t. Eq. 5 discards with probability 1 - sqrt(t / f). The released code keeps with probability
    (sqrt(f / t) + 1) t / f, a little more, and so do all tools since (word2vec.c, TrainModelThread).
    """
    if sample <= 0:
        return torch.ones(len(counts))
    ratio = sample * counts.sum() / counts.double()  # t / f
    return (ratio.sqrt() + (ratio if formula == "code" else 0)).clamp(max=1).float()


# Noise words (2013b, Sec. 2.2) ----------------------------------------------------------------------


def noise_distribution(counts: Int64[Tensor, " words"], power: float = 0.75) -> Float64[Tensor, " words"]:
    """P_n(w): unigram counts to the power 3/4, which the paper found better than 0 and 1."""
    weights = counts.double() ** power
    return weights / weights.sum()


def draw_noise(
    cumulative: Float64[Tensor, " words"], count: int, generator: torch.Generator | None = None
) -> Int32[Tensor, " count"]:
    """`count` words by the running sums of their probabilities.

    word2vec.c looks a random slot up in a table of 1e8 words; a search in the sums is exact and V numbers long.
    """
    uniform = torch.rand(count, dtype=torch.float64, generator=generator, device=cumulative.device)
    return torch.searchsorted(cumulative, uniform * cumulative[-1], right=True, out_int32=True).clamp_(
        max=len(cumulative) - 1
    )


# The Huffman tree (2013a, Sec. 2; Morin and Bengio 2005 brought the hierarchical softmax) -----------


@dataclass(frozen=True)
class Tree:
    """For each word its path from the root: inner nodes, and the way taken at each.

    Rows are as long as the longest path; `valid` says which entries are of the word's own.
    """

    nodes: Int32[Tensor, "words depth"]
    """Inner nodes by number, 0 .. V - 2, in the order in which they were made: the root is V - 2."""
    bits: Bool[Tensor, "words depth"]
    """The code: False is the branch of the rarer half, the positive class of the node's classifier."""
    valid: Bool[Tensor, "words depth"]


def huffman(counts: Int64[Tensor, " words"]) -> Tree:
    """The binary code with the shortest mean length: frequent words have short paths.

    With the words sorted, the two rarest are always at the head of one of two queues: words not yet joined, and
    inner nodes in the order of their making. Raises UsageError for less than two words.
    """
    words = len(counts)
    if words < 2:
        raise UsageError(f"a tree of {words} words has no inner node: the vocabulary needs two words or more")
    weight = counts.flip(0).tolist() + [0] * (words - 1)  # the leaves, rarest first, and the inner nodes
    parent, bit = [0] * (2 * words - 1), [False] * (2 * words - 1)
    leaf, inner = 0, words
    for new in range(words, 2 * words - 1):
        for second in (False, True):
            # Of equals the inner node is taken, as in word2vec.c.
            if inner == new or (leaf < words and weight[leaf] < weight[inner]):
                child, leaf = leaf, leaf + 1
            else:
                child, inner = inner, inner + 1
            parent[child], bit[child] = new, second
            weight[new] += weight[child]
    parents, branches, root = np.array(parent), np.array(bit), 2 * words - 2
    place, steps = np.arange(words)[::-1], []  # word 0, the most frequent, is the last leaf
    while (place != root).any():
        climbs = place != root
        steps.append((parents[place], branches[place], climbs))
        place = np.where(climbs, parents[place], root)
    nodes, bits, valid = (np.stack(step, axis=1) for step in zip(*steps, strict=True))
    # The climb is turned round: a path begins at the root.
    turn = (valid.sum(1, keepdims=True) - 1 - np.arange(valid.shape[1])) % valid.shape[1]
    nodes, bits, valid = (np.take_along_axis(array, turn, axis=1) for array in (nodes, bits, valid))
    return Tree(
        nodes=torch.from_numpy(np.where(valid, nodes - words, 0).astype(np.int32)),
        bits=torch.from_numpy(bits & valid),
        valid=torch.from_numpy(valid),
    )


# Phrases (2013b, Sec. 4) ----------------------------------------------------------------------------


def count_bigrams(sentences: Iterable[Sequence[str]]) -> tuple[dict[str, int], dict[tuple[str, str], int]]:
    """How often each word occurs, and each pair of neighbours within a sentence."""
    words: dict[str, int] = {}
    pairs: dict[tuple[str, str], int] = {}
    for sentence in sentences:
        for word in sentence:
            words[word] = words.get(word, 0) + 1
        for pair in pairwise(sentence):
            pairs[pair] = pairs.get(pair, 0) + 1
    return words, pairs


def find_phrases(
    words: Mapping[str, int], pairs: Mapping[tuple[str, str], int], threshold: float = 100.0, discount: int = 5
) -> set[tuple[str, str]]:
    r"""The bigrams that are phrases: score(a, b) = (c(ab) - delta) / (c(a) c(b)) > threshold (Eq. 6).

    The score is times the number of words, as in word2phrase.c, so that the threshold does not depend on the size
    of the text. Of words rarer than `discount` there are no phrases.
    """
    total = sum(words.values())

    def is_phrase(a: str, b: str, count: int) -> bool:
        if words[a] < discount or words[b] < discount:
            return False
        return (count - discount) / (words[a] * words[b]) * total > threshold

    return {(a, b) for (a, b), count in pairs.items() if is_phrase(a, b, count)}


def join_phrases(sentence: Sequence[str], phrases: set[tuple[str, str]]) -> list[str]:
    """A sentence whose phrases are one word each, new_york; from the left, a word is in one of them at most.

    A phrase of more than two words takes another pass, with a lower threshold: the paper makes 2 to 4.
    """
    joined: list[str] = []
    free = False  # whether the last word may still be joined to the next
    last = ""
    for word in sentence:
        if free and (last, word) in phrases:
            joined[-1] = f"{last}_{word}"
            free = False
        else:
            joined.append(word)
            free = True
        last = word
    return joined


def with_phrases(sentences: Iterable[Sequence[str]], passes: Sequence[set[tuple[str, str]]]) -> Iterator[Sequence[str]]:
    """Sentences after every pass of joining, in the order of the passes."""
    for sentence in sentences:
        for phrases in passes:
            sentence = join_phrases(sentence, phrases)
        yield sentence
