"""Text as tokens for language models: documents in a row, cut into windows."""

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int64, UInt32

from jingdu.data import Preprocess, open_data
from jingdu.data.base import Batch, Data
from jingdu.data.draws import Draws
from jingdu.data.kept import kept
from jingdu.errors import UsageError

from .learning import END, fit
from .tokenizer import Tokenizer, read_tokenizer

Split = Literal["train", "test"]
VERSION = 1
"""Of what is kept in the cache: a larger one where the same text and options would give something else."""


class Windows:
    """Windows of length + 1 tokens from one long row of them: what a model reads, and what it predicts.

    `tokens` int64 [batch, length + 1]; `bytes` int64 [batch], how many bytes of text the predicted ones spell.
    A test window begins where the one before it ended; a training window, anew in every epoch, up to `length` tokens
    later.
    """

    classes = None

    def __init__(self, ids: UInt32[np.ndarray, " row"], tokenizer: Tokenizer, length: int, fixed: bool):
        self.ids, self.tokenizer, self.length, self.fixed = ids, tokenizer, length, fixed
        sizes = np.zeros(tokenizer.n_vocab, dtype=np.int64)
        for number, text in tokenizer.spelled.items():
            sizes[number] = len(text)
        for number in tokenizer.special.values():
            sizes[number] = 0
        self.sizes = torch.from_numpy(sizes)

    def __len__(self) -> int:
        return (len(self.ids) - 1) // self.length

    def batch(self, indices: np.ndarray, draws: Draws) -> Batch:
        starts = np.asarray(indices, dtype=np.int64) * self.length
        if not self.fixed:
            starts = np.minimum(starts + draws.integers(self.length).numpy(), len(self.ids) - 1 - self.length)
        tokens = torch.from_numpy(self.ids[starts[:, None] + np.arange(self.length + 1)].astype(np.int64))
        return {"tokens": tokens, "bytes": self.sizes[tokens[:, 1:]].sum(1)}


def tokens(
    split: Split,
    of: str = "stdlib",
    vocabulary: int | str = 2048,
    family: str = "gpt2",
    length: int = 128,
    special: tuple[str, ...] = (END,),
    end: str | None = None,
) -> Windows:
    """Any text data of `jingdu.data` as tokens, in windows for a language model.

    Documents follow each other with an end-of-text token after each. What was learnt and encoded is kept in the
    cache folder, under a hash of the text itself.

    Args:
        split: train or test. The vocabulary is learnt from the train split in both.
        of: data whose samples have `text`: stdlib, pydoc_topics, text(path='...'), a .txt file, hf:...
        vocabulary: how many tokens to learn, special ones included; or the file or folder of a tokenizer.
        family: how text is cut, for a vocabulary that is learnt.
        length: tokens that a model reads at once; a window has one more.
        special: special tokens of a vocabulary that is learnt.
        end: the special token after each document; by default the tokenizer's own, or none where it has none.

    Raises UsageError for text that is shorter than a window; and what `open_data` and `read_tokenizer` raise.
    """
    if length < 1:
        raise UsageError(f"tokens(length={length}): a window reads at least one token")
    tokenizer = tokenizer_for(of, vocabulary, family, tuple(special))
    if end is not None and end not in tokenizer.special:
        raise UsageError(f"tokens(end={end!r}): the special tokens are {', '.join(tokenizer.special) or 'none'}")
    ids, _ = encode_documents(of, split, tokenizer, tokenizer.end if end is None else tokenizer.special[end])
    if len(ids) <= length:
        raise UsageError(f"{of} has {len(ids)} tokens of {split} text, too few for a window of {length} + 1")
    return Windows(ids, tokenizer, length, fixed=split == "test")


def read_texts(of: str, split: Split) -> list[str]:
    """All documents of text data, in their order."""
    data: Data = open_data(of, split, Preprocess())
    rows = np.arange(len(data))
    found = data.batch(rows, Draws(0, 0, rows)).get("text")
    if found is None:
        raise UsageError(f"{of} has no text: give stdlib, pydoc_topics, text(path='...') or hf:...")
    return list(found)


def _digest(texts: list[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        data = text.encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def _key(*parts: object) -> str:
    return hashlib.sha256(json.dumps([VERSION, *parts]).encode()).hexdigest()[:40]


def tokenizer_for(of: str, vocabulary: int | str, family: str = "gpt2", special: tuple[str, ...] = (END,)) -> Tokenizer:
    """The tokenizer of a path, or one that is learnt from the train split of `of` (see `tokens`)."""
    if not isinstance(vocabulary, int):
        return _from_path(str(Path(vocabulary).expanduser()))
    texts = read_texts(of, "train")
    name = f"vocabularies/{_key(_digest(texts), vocabulary, family, special)}.json"
    made = kept(name, lambda: fit(texts, vocabulary, family, special).to_json().encode())
    return _parsed(made)


@cache
def _from_path(path: str) -> Tokenizer:
    return read_tokenizer(path)


@cache
def _parsed(text: bytes) -> Tokenizer:
    return Tokenizer.from_json(text.decode())


def encode_documents(
    of: str, split: Split, tokenizer: Tokenizer, end: int | None
) -> tuple[UInt32[np.ndarray, " row"], Int64[np.ndarray, " documents"]]:
    """All documents as one row of ids, `end` after each, and where in it each document ends.

    Special tokens in the text are text like any other. Documents whose encoding the cache holds are not encoded again.
    """
    texts = read_texts(of, split)

    def make() -> bytes:
        parts, ends = [], []
        for text in texts:
            ids = tokenizer.encode(text, disallowed=())
            parts.append(np.array(ids if end is None else [*ids, end], dtype="<u4"))
            ends.append(len(parts[-1]))
        whole = np.concatenate([np.cumsum(ends, dtype="<i8").view("<u4"), *parts])
        return whole.tobytes()

    name = f"tokens/{_key(_digest(texts), hashlib.sha256(tokenizer.to_json().encode()).hexdigest(), end)}.bin"
    whole = np.frombuffer(kept(name, make), dtype="<u4")
    return whole[2 * len(texts) :], whole[: 2 * len(texts)].view("<i8").astype(np.int64)
