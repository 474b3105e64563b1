"""Text as symbols, in windows or in streams whose next part begins where the last one ended."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor, nn

from jingdu.data import Preprocess, open_data
from jingdu.data.base import Batch, Tensors
from jingdu.data.draws import Draws
from jingdu.errors import BadInput, UsageError, unknown
from jingdu.names import Call

from .elman import sentences

Unit = Literal["letters", "characters", "words"]
UNKNOWN, END = "<unk>", "<eos>"
_UNITS = {"letters": "[a-z]", "characters": r"(?m:.)"}


class Symbols:
    """The symbols of a text and their numbers: what a run keeps as its tokenizer.json.

    `letters` are a to z, whatever stands between them dropped and capitals made small; `characters` are all; `words`
    stand between spaces, and `<eos>` at each line's end, as in the Penn Treebank files of Mikolov et al. 2010.
    """

    def __init__(self, symbols: Sequence[str], unit: Unit | str):
        if unit not in get_args(Unit):
            raise unknown("unit of text", unit, get_args(Unit))
        self.symbols, self.unit = list(symbols), unit
        self.index = {symbol: number for number, symbol in enumerate(self.symbols)}

    @classmethod
    def learn(cls, texts: Sequence[str], unit: Unit | str, vocabulary: int | None = None) -> "Symbols":
        """The symbols of some texts, the most frequent first after `<unk>`; at most `vocabulary` of them."""
        if unit == "letters":
            return cls([chr(code) for code in range(ord("a"), ord("z") + 1)], unit)
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(cls([], unit).pieces(text))
        counts.pop(UNKNOWN, None)
        order = sorted(counts, key=lambda symbol: (-counts[symbol], symbol))
        return cls([UNKNOWN, *order][:vocabulary], unit)

    @property
    def n_vocab(self) -> int:
        return len(self.symbols)

    def pieces(self, text: str) -> list[str]:
        """The text cut into symbols."""
        if self.unit == "letters":
            return re.findall("[a-z]", text.lower())
        if self.unit == "characters":
            return list(text)
        return [word for line in text.splitlines() for word in (*line.split(), END)]

    def encode(self, text: str) -> list[int]:
        """Numbers of the symbols; a strange one is `<unk>`, number 0."""
        return [self.index.get(piece, 0) for piece in self.pieces(text)]

    def decode(self, ids: Sequence[int]) -> str:
        """Symbols as text: words with spaces, lines as lines."""
        found = [self.symbols[i] if i < len(self.symbols) else "\ufffd" for i in ids]  # outputs to spare spell nothing
        if self.unit != "words":
            return "".join(found)
        return re.sub(r" ?\n ?", "\n", " ".join("\n" if symbol == END else symbol for symbol in found))

    def to_json(self) -> str:
        """In the format of the tokenizers library: a WordLevel model."""
        pattern = _UNITS.get(self.unit)
        cut = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        model = {"type": "WordLevel", "vocab": self.index, "unk_token": UNKNOWN}
        drop = {"type": "Replace", "pattern": {"Regex": "[^a-z]"}, "content": ""}
        letters = {"type": "Sequence", "normalizers": [{"type": "Lowercase"}, drop]}
        whole = {
            "version": "1.0", "truncation": None, "padding": None, "added_tokens": [],
            "normalizer": letters if self.unit == "letters" else None,
            "pre_tokenizer": cut if pattern else {"type": "WhitespaceSplit"},
            "post_processor": None, "decoder": None, "model": model,
        }  # fmt: skip
        return json.dumps(whole, ensure_ascii=False, indent=1)

    @classmethod
    def read(cls, path: Path) -> "Symbols":
        """From a file of `to_json`. Raises BadInput for another."""
        try:
            whole = json.loads(path.read_text("utf-8"))
            pattern = whole["pre_tokenizer"].get("pattern", {}).get("Regex")
            unit = next((unit for unit, known in _UNITS.items() if known == pattern), "words")
            vocab = whole["model"]["vocab"]
            if whole["model"]["type"] != "WordLevel" or sorted(vocab.values()) != list(range(len(vocab))):
                raise ValueError("not numbered symbols")
            return cls(sorted(vocab, key=vocab.__getitem__), unit)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadInput(path, f"no list of symbols ({type(error).__name__}: {error})") from None


class Text(Tensors):
    """Tokens with the symbols that they are numbers of."""

    def __init__(self, fields: dict[str, Any], tokenizer: Symbols):
        super().__init__(fields)
        self.tokenizer = tokenizer


@cache
def _texts(of: str, split: str) -> tuple[str, ...]:
    call = Call.parse(of)
    if call.name == "sentences":
        return (sentences(split, **call.arguments),)
    data = open_data(of, split, Preprocess())
    rows = np.arange(len(data))
    return tuple(data.batch(rows, Draws(0, 0, rows))["text"])


@cache
def read_corpus(
    split: str, of: str, unit: Unit | str, vocabulary: int | None
) -> tuple[Int64[Tensor, " tokens"], Int64[Tensor, " tokens"], Symbols]:
    """The documents of a data set one after the other: their symbols, the bytes each one spells, and what they are.

    The symbols are those of the train split. Raises UsageError for an unknown unit.
    """
    symbols = Symbols.learn(_texts(of, "train") if unit != "letters" else (), unit, vocabulary)
    pieces = [piece for text in _texts(of, split) for piece in symbols.pieces(text)]
    ids = torch.tensor([symbols.index.get(piece, 0) for piece in pieces], dtype=torch.int64)
    space = unit == "words"
    spelled = [1 if piece == END and space else len(piece.encode()) + space for piece in pieces]
    return ids, torch.tensor(spelled, dtype=torch.int64), symbols


def _windows(x: Tensor, length: int) -> Tensor:
    """[..., windows, length + 1]: each window begins with the last one's end, so that all but one place are predicted."""
    return x.unfold(-1, length + 1, length)


def windows(
    split: Literal["train", "test"],
    of: str = "pydoc_topics",
    unit: Unit | str = "characters",
    vocabulary: int | None = None,
    length: int = 64,
) -> Text:
    """Text cut into windows of `length` symbols to predict: `tokens` [length + 1] and the `bytes` that they spell.

    Args:
        split: train or test.
        of: a data set of texts, by name, or Elman's `sentences`.
        unit: letters, characters or words.
        vocabulary: at most so many symbols; the rarer ones are `<unk>`.
        length: of a window.
    """
    ids, spelled, symbols = read_corpus(split, of, unit, vocabulary)
    if len(ids) <= length:
        raise UsageError(f"{of} has {len(ids)} {unit} to {split}: too few for windows of length={length}")
    return Text({"tokens": _windows(ids, length), "bytes": _windows(spelled, length)[:, 1:].sum(1)}, symbols)


def streams(
    split: Literal["train", "test"],
    of: str = "pydoc_topics",
    unit: Unit | str = "characters",
    vocabulary: int | None = None,
    length: int = 64,
    batch: int = 32,
) -> Text:
    """Text cut into `batch` long pieces that are read side by side: samples t * batch to t * batch + batch - 1 are their
    t-th windows, each beginning where the one before ended.

    As `windows`, with `row`, the piece that a window is from, and `start`, whether it is the piece's first.
    """
    ids, spelled, symbols = read_corpus(split, of, unit, vocabulary)
    each = len(ids) // batch
    if each <= length:
        raise UsageError(
            f"{of} has {len(ids)} {unit} to {split}: too few for {batch} streams in parts of length={length}"
        )
    tokens, weights = (_windows(x[: each * batch].view(batch, each), length) for x in (ids, spelled))
    rows = torch.arange(batch).repeat(tokens.shape[1])
    fields = {
        "tokens": tokens.transpose(0, 1).flatten(0, 1),
        "bytes": weights[..., 1:].sum(-1).t().flatten(),
        "row": rows,
        "start": torch.arange(len(rows)) < batch,
    }
    return Text(fields, symbols)


class Streams:
    """`streams` of the train split in their own order, for `Stateful`: the position is the state. See `streams`."""

    def __init__(
        self,
        of: str = "pydoc_topics",
        unit: Unit | str = "characters",
        vocabulary: int | None = None,
        length: int = 64,
        batch: int = 32,
    ):
        self.data = streams("train", of, unit, vocabulary, length, batch)
        self.tokenizer, self.width = self.data.tokenizer, batch
        self.steps_per_epoch = len(self.data) // batch
        self.position = 0

    def play(self, system: nn.Module) -> Batch:
        first = self.position % self.steps_per_epoch * self.width
        self.position += 1
        rows = np.arange(first, first + self.width)
        return self.data.batch(rows, Draws(0, 0, rows))

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position = state["position"]
