"""Sentences as a translator's tokens: the marks beside the vocabulary, and how text is spelled.

A source is the mark of its target language, where there are several (">>fr<<", as Marian's multilingual networks have
it), then the text, then the end.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jingdu.errors import BadInput, Missing, UsageError, need_extra, unknown
from jingdu.papers.language.bpe import Added, Merges, Tokenizer, count_pieces, family_of, learn, read_tokenizer

__all__ = ["BytePairs", "MarianPieces", "Speller", "learn_spelling", "read_spelling"]

PAD, END = "<pad>", "</s>"
_MARK = re.compile(r"\s*>>(.+?)<<\s*")


def _divide(text: str, to: str | None, languages: Mapping[str, int]) -> tuple[list[int], str]:
    """The mark of the target language, named apart or in front of the text, and the text without it."""
    found = _MARK.match(text) if languages and to is None else None
    if found is not None:
        to, text = found[1], text[found.end() :]
    if to is None and not languages:
        return [], text
    if to is None or to not in languages:
        raise unknown("target language", to or "none", languages, "Name one: --to NAME, or >>NAME<< before the text.")
    return [languages[to]], text


class BytePairs:
    """Sentences in a vocabulary of `bpe`, with <pad>, </s> and the marks of languages as its special tokens.

    `languages` are the target languages and their marks; there are none where it was learnt for one alone.
    """

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer, self.special = tokenizer, tokenizer.special
        if self.special.get(PAD) != 0 or self.special.get(END) != 1:
            raise UsageError(f"this vocabulary is not of a translator: its tokens 0 and 1 are not {PAD} and {END}")
        self.languages = {found[1]: i for name, i in self.special.items() if (found := _MARK.fullmatch(name))}
        self._silent = set(self.special.values())

    def source(self, text: str, to: str | None = None) -> list[int]:
        """The tokens of a sentence, with the mark of its target language and the end.

        Raises UsageError where there are several languages and none is named, or an unknown one.
        """
        mark, text = _divide(text, to, self.languages)
        return [*mark, *self.tokenizer.encode(text, disallowed=()), self.special[END]]

    def text(self, tokens: Iterable[int]) -> str:
        """What tokens spell; marks spell nothing."""
        return self.tokenizer.decode(token for token in tokens if token not in self._silent).strip()

    def pieces(self, tokens: Iterable[int]) -> list[str]:
        """Each token as a person reads it."""
        return [self.tokenizer.tokens[token].decode("utf-8", "replace") for token in tokens]


def learn_spelling(
    texts: Iterable[str], vocabulary: int, languages: Sequence[str] = (), family: str = "gpt2"
) -> BytePairs:
    """A joint vocabulary of both languages (Sec. 5.1), whose first tokens are the marks.

    Args:
        texts: of all languages.
        vocabulary: tokens in all.
        languages: target languages, where a mark must say which is wanted.
        family: how `bpe` cuts text.

    Raises UsageError where the vocabulary has no room for the bytes and the marks.
    """
    marks = [PAD, END, *(f">>{language}<<" for language in languages)]
    kind = family_of(family)
    if vocabulary <= len(marks):
        raise UsageError(f"a vocabulary of {vocabulary} tokens has no room beside its {len(marks)} marks")
    index, merges = learn(count_pieces(texts, kind), vocabulary - len(marks), kind)
    shifted = {token: number + len(marks) for token, number in index.items()}
    return BytePairs(
        Tokenizer(Merges.from_merges(shifted, merges, kind), {mark: Added(i) for i, mark in enumerate(marks)})
    )


class MarianPieces:
    """The same for a checkpoint of Marian: two SentencePiece models, and the numbers that Marian gives their pieces.

    Raises BadInput for files that cannot be read, Missing without the package sentencepiece.
    """

    def __init__(self, folder: Path):
        try:
            from sentencepiece import SentencePieceProcessor
        except ImportError:
            raise need_extra("sentencepiece", "text", "the vocabulary of Marian's checkpoints") from None
        models = []
        for name in ("source.spm", "target.spm"):
            try:
                models.append(SentencePieceProcessor(model_file=str(folder / name)))
            except (OSError, RuntimeError) as error:
                raise BadInput(folder / name, f"no SentencePiece model ({error})") from None
        self._source, self._target = models
        self.numbers: dict[str, int] = _read_numbers(folder / "vocab.json")
        self._names = {number: name for name, number in self.numbers.items()}
        self.languages = {found[1]: i for name, i in self.numbers.items() if (found := _MARK.fullmatch(name))}
        self._silent = {self.numbers[name] for name in (PAD, END) if name in self.numbers} | set(
            self.languages.values()
        )

    def source(self, text: str, to: str | None = None) -> list[int]:
        mark, text = _divide(text, to, self.languages)
        pieces: list[Any] = self._source.encode(text, out_type=str)
        unknown_piece = self.numbers["<unk>"]
        return [*mark, *(self.numbers.get(piece, unknown_piece) for piece in pieces), self.numbers[END]]

    def text(self, tokens: Iterable[int]) -> str:
        pieces = self.pieces(token for token in tokens if token not in self._silent)
        return self._target.decode(pieces).replace("\u2581", " ").strip()

    def pieces(self, tokens: Iterable[int]) -> list[str]:
        return [self._names[token] for token in tokens]


def _read_numbers(path: Path) -> dict[str, int]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(path, f"no readable JSON ({error})") from None
    if not isinstance(found, dict) or not all(isinstance(i, int) for i in found.values()):
        raise BadInput(path, "it does not give each piece its number")
    if missing := {"<unk>", END} - set(found):
        raise BadInput(path, f"it has no {' and no '.join(sorted(missing))}")
    return found


Speller = BytePairs | MarianPieces


def read_spelling(path: Path) -> Speller:
    """Of a run's tokenizer.json, or of the folder of a Marian checkpoint. Raises Missing for that of an FSMT."""
    if (path / "source.spm").exists():
        return MarianPieces(path)
    if (path / "merges.txt").exists() and not (path / "vocab.json").exists():  # theirs is vocab-src.json
        raise Missing(
            f"{path}: text of fairseq's checkpoints is cut by Moses and fastBPE, which are not here; with their tokens from "
            "elsewhere, translate(network, [tokens, ...]) of jingdu.papers.language.transformer translates"
        )
    return BytePairs(read_tokenizer(path))
