"""WordPiece as BERT uses it: no merges, but the longest token that a word begins with, again and again.

Wu et al. 2016 (arXiv 1609.08144, Sec. 4.1) and BERT's released tokenization.py.
"""

from collections.abc import Mapping

from .pieces import Family, Span

LONGEST = 100
"""Characters of a word; a longer one is unknown as a whole."""


class WordPiece:
    """A vocabulary matched greedily: the model behind BERT's tokenizers.

    Args:
        vocabulary: token -> id; tokens that go on within a word begin with the family's prefix, ##.
        unknown: id for words that the vocabulary cannot spell to their end.
        longest: characters of the longest word that is tried.
    """

    def __init__(self, vocabulary: Mapping[bytes, int], unknown: int, family: Family, longest: int = LONGEST):
        self.vocabulary, self.unknown, self.family, self.longest = dict(vocabulary), unknown, family, longest
        self._words = {token.decode("utf-8", "replace"): number for token, number in self.vocabulary.items()}
        self._most = max(map(len, self._words), default=1)

    def encode(self, piece: str) -> list[int]:
        """The ids of one word."""
        return [token for token, _, _ in self._match(piece)]

    def spans(self, piece: str) -> list[Span]:
        """For each id of `encode(piece)` the characters that it spells."""
        return [(start, end) for _, start, end in self._match(piece)]

    def _match(self, piece: str) -> list[tuple[int, int, int]]:
        whole = [(self.unknown, 0, len(piece))]
        if len(piece) > self.longest:
            return whole
        found, start, mark = [], 0, ""
        while start < len(piece):
            for end in range(min(len(piece), start + self._most), start, -1):
                token = self._words.get(mark + piece[start:end])
                if token is not None:
                    break
            else:
                return whole
            found.append((token, start, end))
            start, mark = end, self.family.prefix
        return found
