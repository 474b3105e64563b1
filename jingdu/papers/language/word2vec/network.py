"""The network: a table of vectors, and what is asked of it."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor, nn

from jingdu.errors import UsageError, unknown


def spell(words: Sequence[str]) -> UInt8[Tensor, " bytes"]:
    """Words as one tensor, so that they live among the weights: UTF-8, a line end between two words."""
    return torch.frombuffer(bytearray("\n".join(words).encode("utf-8", "surrogateescape")), dtype=torch.uint8)


class Word2Vec(nn.Module):
    """Two vectors a word, v as the input and v' as the output of the log-linear model (2013b, Eq. 2), and the words.

    Args:
        vocabulary: how many words.
        dim: numbers of a vector.
        output: keep the output vectors v', which negative sampling trains. Published files hold the v alone.
        tree: keep the vectors of the Huffman tree's inner nodes, which the hierarchical softmax trains.
        spelling: bytes of the words, as `spell` makes them. 0: the words are not known.
    """

    def __init__(
        self, vocabulary: int = 3_000_000, dim: int = 300, output: bool = False, tree: bool = False, spelling: int = 0
    ):
        super().__init__()
        if vocabulary < 0 or dim < 1 or spelling < 0:
            raise UsageError(f"vocabulary {vocabulary}, dim {dim}, spelling {spelling}: give sizes")
        self.input = nn.Parameter(torch.empty(vocabulary, dim).uniform_(-0.5 / dim, 0.5 / dim))
        self.output = nn.Parameter(torch.zeros(vocabulary, dim)) if output else None
        self.inner = nn.Parameter(torch.zeros(max(vocabulary - 1, 0), dim)) if tree else None
        self.register_buffer("counts", torch.zeros(vocabulary, dtype=torch.int64))
        self.register_buffer("spelling", torch.zeros(spelling, dtype=torch.uint8))
        self._words: tuple[int, list[str], dict[str, int]] | None = None

    def forward(self, words: Int64[Tensor, "*batch"]) -> Float32[Tensor, "*batch dim"]:
        """The vectors of words, by number."""
        return F.embedding(words, self.input)

    # Words -----------------------------------------------------------------------------------------

    def _index(self) -> tuple[list[str], dict[str, int]]:
        version = self.spelling._version  # grows when weights are loaded into the buffer
        if self._words is None or self._words[0] != version:
            text = bytes(self.spelling.cpu().numpy()).decode("utf-8", "surrogateescape")
            words = text.split("\n") if text else []
            self._words = version, words, {word: i for i, word in reversed(list(enumerate(words)))}
        return self._words[1:]

    @property
    def words(self) -> list[str]:
        """By number, the most frequent first where they were counted."""
        return self._index()[0]

    @property
    def index(self) -> dict[str, int]:
        """Word -> its number."""
        return self._index()[1]

    def number(self, word: str) -> int:
        """A word's number. Raises UsageError, with the nearest words, where it is not in the vocabulary."""
        words, index = self._index()
        if not words:
            raise UsageError("the words of these vectors are not known: train them, or load a run or a file of vectors")
        if word not in index:
            raise unknown("word", word, words[:20_000])
        return index[word]

    def __contains__(self, word: str) -> bool:
        return word in self.index

    def vector(self, word: str) -> Float32[Tensor, " dim"]:
        """v of one word."""
        return self.input[self.number(word)].detach()

    # Questions -------------------------------------------------------------------------------------

    def unit(self, words: int | None = None) -> Float32[Tensor, "words dim"]:
        """All vectors (or the first, the most frequent, `words`) divided by their lengths."""
        return F.normalize(self.input.detach()[:words], dim=1)

    def nearest(
        self, vector: Float32[Tensor, " dim"], top: int = 10, without: Sequence[str] = ()
    ) -> list[tuple[str, float]]:
        """The `top` words of largest cosine with a vector, and the cosines."""
        cosines = self.unit() @ F.normalize(vector, dim=0)
        cosines[[self.number(word) for word in without]] = -torch.inf
        values, rows = cosines.topk(min(top, len(cosines) - len(set(without))))
        words = self.words
        return [(words[row], value) for row, value in zip(rows.tolist(), values.tolist(), strict=True)]

    def neighbours(self, word: str, top: int = 10) -> list[tuple[str, float]]:
        """The words nearest to a word."""
        return self.nearest(self.vector(word), top, [word])

    def analogy(self, plus: Sequence[str], minus: Sequence[str], top: int = 10) -> list[tuple[str, float]]:
        """king + woman - man: the words nearest to the sum of unit vectors, without those asked with (2013a, Sec. 4)."""
        terms = [F.normalize(self.vector(word), dim=0) for word in plus]
        terms += [-F.normalize(self.vector(word), dim=0) for word in minus]
        return self.nearest(torch.stack(terms).sum(0), top, [*plus, *minus])

    def similarity(self, first: str, second: str) -> float:
        """The cosine of two words."""
        return float(F.cosine_similarity(self.vector(first), self.vector(second), dim=0))

    def sentence(self, words: Sequence[str]) -> Float32[Tensor, " dim"]:
        """The mean of the unit vectors of the words that are known. Raises UsageError where none is."""
        known = [word for word in words if word in self]
        if not known:
            raise UsageError(f"none of the words of {' '.join(words)!r} is in the vocabulary")
        return F.normalize(torch.stack([self.vector(word) for word in known]), dim=1).mean(0)
