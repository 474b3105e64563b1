"""Text as BERT reads it (Section 3, Figure 2): [CLS] first, and [SEP] behind each segment."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from jingdu.errors import UsageError
from jingdu.papers.language.bpe import Tokenizer, read_tokenizer
from jingdu.prediction import origin_of

from .model import BERT

__all__ = ["SPECIAL", "Marked", "Row", "read_marks"]

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
Row = tuple[list[int], list[int]]
"""Tokens with their marks, and the segment of each."""


@dataclass(frozen=True)
class Marked:
    """A tokenizer and its marks."""

    tokenizer: Tokenizer

    def __post_init__(self) -> None:
        if lacking := [name for name in SPECIAL if name not in self.tokenizer.special]:
            raise UsageError(f"this vocabulary has no {lacking[0]}: BERT's are WordPiece with {', '.join(SPECIAL)}")

    def __getattr__(self, name: str) -> int:
        """pad, unk, cls, sep, mask: the numbers of the marks."""
        if f"[{name.upper()}]" not in SPECIAL:
            raise AttributeError(name)
        return self.tokenizer.special[f"[{name.upper()}]"]

    @cached_property
    def goes_on(self) -> Bool[Tensor, " vocabulary"]:
        """Which tokens go on within a word (##)."""
        found = torch.zeros(self.tokenizer.n_vocab, dtype=torch.bool)
        for number, token in self.tokenizer.tokens.items():
            found[number] = token.startswith(b"##")
        return found

    def encode(self, text: str, masks: bool = False) -> list[int]:
        """The tokens of a text, without marks; with `masks`, [MASK] in the text is the mask."""
        return self.tokenizer.encode(text, allowed=("[MASK]",) if masks else (), disallowed=())

    def join(self, first: Sequence[int], second: Sequence[int] | None = None, length: int = 512) -> Row:
        """[CLS] first [SEP], or [CLS] first [SEP] second [SEP]; what is too long loses the end of its longer part."""
        a, b = list(first), list(second or ())
        room = length - 2 - (second is not None)
        if room < 1:
            raise UsageError(f"{length} tokens have no room for the marks and a word")
        while len(a) + len(b) > room:
            (a if len(a) > len(b) else b).pop()
        tail = [] if second is None else [*b, self.sep]
        return [self.cls, *a, self.sep, *tail], [0] * (len(a) + 2) + [1] * len(tail)

    def batch(
        self, rows: Sequence[Row]
    ) -> tuple[Int64[Tensor, "batch time"], Bool[Tensor, "batch time"], Int64[Tensor, "batch time"]]:
        """Rows padded at the right: tokens, mask, segments."""
        time = max(len(tokens) for tokens, _ in rows)
        tokens = torch.tensor([row + [self.pad] * (time - len(row)) for row, _ in rows])
        segments = torch.tensor([row + [0] * (time - len(row)) for _, row in rows])
        return tokens, torch.arange(time) < torch.tensor([[len(row)] for row, _ in rows]), segments


def read_marks(model: BERT, path: Path | None = None) -> tuple[Marked, int]:
    """The vocabulary beside the network's weights, or at `path`, and how many tokens the network reads.

    These are fewer than its positions where sentence-transformers' file beside the weights says so.
    Raises UsageError where there is no vocabulary, or a larger one than the network's.
    """
    place = path or origin_of(model).tokenizer
    if place is None:
        raise UsageError(
            "these weights have no vocabulary beside them: give --tokenizer FILE (vocab.txt or tokenizer.json)"
        )
    marked, rows = Marked(read_tokenizer(place)), len(model.embeddings.words.weight)
    if marked.tokenizer.n_vocab > rows:
        raise UsageError(f"{place}: its {marked.tokenizer.n_vocab} tokens are more than the {rows} of this network")
    said = Path(place) / "sentence_bert_config.json"
    most = json.loads(said.read_text("utf-8")).get("max_seq_length") if said.is_file() else None
    return marked, min(model.context, most) if isinstance(most, int) and most > 2 else model.context
