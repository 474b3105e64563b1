"""Learning a vocabulary from text: in one call, or as a pass of the engine over its documents."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from jingdu.engine.contracts import Batch
from jingdu.errors import UsageError, need_extra

from .added import Added
from .interchange import read_json, write_json
from .merges import Merges, byte_characters, learn
from .pieces import Family, family_of, normalise, split
from .tokenizer import Tokenizer
from .wordpiece import WordPiece

END = "<|endoftext|>"
UNKNOWN = "[UNK]"
"""WordPiece's token for words that it cannot spell; its families always have it."""


def empty(family: str | Family = "gpt2", special: Sequence[str] = (END,)) -> Tokenizer:
    """A tokenizer that has learnt nothing: of bytes and special tokens. Of characters it knows none yet."""
    return _tokenizer({}, 0, family_of(family), special)


def count_pieces(texts: Iterable[str], family: Family) -> Counter[str]:
    """How often each piece occurs."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(split(normalise(text, family), family))
    return counts


def fit(
    texts: Iterable[str], vocabulary: int, family: str | Family = "gpt2", special: Sequence[str] = (END,),
    fast: bool = False,
) -> Tokenizer:  # fmt: skip
    """A tokenizer of `vocabulary` tokens, learnt from texts.

    Args:
        texts: UTF-8 text; special tokens in it are text like any other.
        vocabulary: tokens in all, special ones included. There are fewer where the texts have no more to merge.
        family: how text is cut; `bert` ones learn WordPiece vocabularies, by the same merges.
        special: tokens that no text gives, unless they are allowed; their ids are the last ones. Families of
            characters take a "<unk>" among them for characters that they have not seen; else those are an error.
        fast: by the tokenizers library, which learns the same merges.

    Raises UsageError where the vocabulary has no room for its alphabet.
    """
    family = family_of(family)
    special = tuple(dict.fromkeys(special))
    if fast:
        return _fit_fast(texts, vocabulary, family, special)
    return _tokenizer(count_pieces(texts, family), vocabulary, family, special)


def _all_special(family: Family, special: Sequence[str]) -> list[str]:
    return [*special, *([UNKNOWN] if family.prefix and UNKNOWN not in special else [])]


def _tokenizer(counts: Mapping[str, int], vocabulary: int, family: Family, special: Sequence[str]) -> Tokenizer:
    names = _all_special(family, special)
    if vocabulary and vocabulary <= len(names):
        raise UsageError(f"a vocabulary of {vocabulary} tokens has no room beside its {len(names)} special ones")
    if counts:
        index, merges = learn(counts, vocabulary - len(names), family)
    else:
        alphabet = byte_characters() if family.alphabet == "bytes" and not family.suffix else ()
        index, merges = {bytes([byte]): i for i, byte in enumerate(alphabet)}, []
    added = {name: Added(len(index) + i) for i, name in enumerate(names)}
    if family.prefix:
        return Tokenizer(WordPiece(index, added[UNKNOWN].id, family), added)
    unknown = added["<unk>"].id if "<unk>" in added and family.alphabet == "characters" else None
    return Tokenizer(Merges.from_merges(index, merges, family, unknown=unknown), added)


def _fit_fast(texts: Iterable[str], vocabulary: int, family: Family, special: Sequence[str]) -> Tokenizer:
    try:
        import tokenizers
    except ImportError:
        raise need_extra("tokenizers", "text", "the fast way of learning") from None
    if family.alphabet != "bytes" or family.suffix or family.normal:
        raise UsageError(f"the fast way of learning is for families of bytes, not for {family.name}: leave fast out")
    if vocabulary < 256 + len(special):
        raise UsageError(
            f"a vocabulary of {vocabulary} tokens has no room for 256 bytes and {len(special)} special ones"
        )
    library = tokenizers.Tokenizer.from_str(write_json(empty(family, ()).model, {}))
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocabulary - len(special), show_progress=False, initial_alphabet=list(byte_characters().values())
    )
    library.train_from_iterator(texts, trainer)
    model, _ = read_json(library.to_str())
    return Tokenizer(model, {name: Added(len(model.vocabulary) + i) for i, name in enumerate(special)})


class Learning:
    """One pass that counts pieces and then merges them (a `Fitted`).

    Args:
        model: the tokenizer that learns; its family and special tokens stay.
        vocabulary: tokens in all.
    """

    passes = 1

    def __init__(self, model: Tokenizer, vocabulary: int = 4096):
        if vocabulary <= model.n_vocab:
            raise UsageError(f"vocabulary {vocabulary}: there are {model.n_vocab} tokens before anything is learnt")
        self.model, self.vocabulary = model, vocabulary
        self.counts: Counter[str] = Counter()
        self._reset()

    def observe(self, batch: Batch, number: int) -> dict[str, Any]:
        """Count the pieces of batch["text"]."""
        self.counts.update(count_pieces(batch["text"], self.model.family))
        return {"pieces": self.counts.total(), "types": len(self.counts)}

    def end_pass(self, number: int) -> None:
        """Learn the merges; the counts are no longer needed."""
        self.model.become(_tokenizer(self.counts, self.vocabulary, self.model.family, tuple(self.model.special)))
        self.counts = Counter()

    def _reset(self) -> None:
        self.bytes = self.tokens = self.documents = self.same = 0

    def update(self, batch: Batch) -> None:
        """Encode the documents of batch["text"], and decode them again."""
        for text in batch["text"]:
            ids = self.model.encode(text, disallowed=())
            self.documents += 1
            self.same += self.model.decode(ids) == text
            self.bytes += len(text.encode())
            self.tokens += len(ids)

    def compute(self) -> dict[str, float]:
        """Bytes that a token spells on average, tokens in the vocabulary, and the share of documents that come back whole."""
        measures = {
            "bytes_per_token": self.bytes / max(self.tokens, 1),
            "round_trip": self.same / max(self.documents, 1),
            "vocabulary": float(self.model.n_vocab),
        }
        self._reset()
        return measures

    def state_dict(self) -> dict[str, Any]:
        pieces = list(self.counts)
        counts = torch.tensor([self.counts[piece] for piece in pieces], dtype=torch.int64)
        return {"model": self.model.state_dict(), "pieces": pieces, "counts": counts}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.counts = Counter(dict(zip(state["pieces"], state["counts"].tolist(), strict=True)))
