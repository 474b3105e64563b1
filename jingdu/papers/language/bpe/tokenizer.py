"""The tokenizer: special tokens, pieces, their ids, and the way back."""

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from jingdu.errors import Refused, UsageError

from .added import Added, Names, find_added
from .compiled import Encode, compiled
from .files import read_parts
from .interchange import Model, read_json, write_json
from .merges import Merges
from .pieces import META, Family, Span, normalise, normalise_aligned, split, split_spans

ENDS = ("<|endoftext|>", "<｜end▁of▁sentence｜>", "<|end_of_text|>", "</s>", "<EOT>", "[SEP]")
"""Special tokens that end a document, in the order in which they are looked for."""
CACHED_PIECE, CACHED_PIECES = 40, 1 << 19
"""Characters of the longest piece whose ids are remembered, and how many pieces are."""


class Tokenizer:
    """Text to ids and back.

    Args:
        model: the vocabulary with its merges, or WordPiece's.
        added: tokens that are found in the text as they stand, special ones above all.
        source: the tokenizer.json that this was read from, which `to_json` gives again.
    """

    def __init__(self, model: Model, added: Mapping[str, Added] | None = None, source: str | None = None):
        self.model, self.family = model, model.family
        self.added = dict(added or {})
        self._source = source
        self._cache: dict[str, list[int]] = {}

    # What there is ---------------------------------------------------------------------------------

    @property
    def special(self) -> dict[str, int]:
        """Special tokens and their ids."""
        return {name: token.id for name, token in self.added.items() if token.special}

    @cached_property
    def n_vocab(self) -> int:
        """One more than the highest id: what an embedding needs. There may be holes."""
        ids = [*self.model.vocabulary.values(), *(token.id for token in self.added.values())]
        return max(ids, default=-1) + 1

    @property
    def end(self) -> int | None:
        """The id of the special token that ends a document, if there is one."""
        special = self.special
        return next((special[name] for name in ENDS if name in special), None)

    @cached_property
    def tokens(self) -> dict[int, bytes]:
        """Id -> the token as the vocabulary has it."""
        found = {number: token for token, number in self.model.vocabulary.items()}
        return found | {token.id: name.encode() for name, token in self.added.items()}

    @cached_property
    def spelled(self) -> dict[int, bytes]:
        """Id -> what the token adds to a text: with the white space that a mark stands for."""
        prefix, suffix = self.family.prefix.encode(), self.family.suffix.encode()
        found = self.tokens.copy()
        for number, token in found.items():
            if prefix:
                found[number] = token[len(prefix) :] if token.startswith(prefix) else b" " + token
            elif suffix and token.endswith(suffix):
                found[number] = token.removesuffix(suffix) + b" "
            elif self.family.meta:
                found[number] = token.replace(META.encode(), b" ")
        if isinstance(self.model, Merges) and self.model.byte_fallback:
            for byte in range(256):
                found[self.model.vocabulary[b"<0x%02X>" % byte]] = bytes([byte])
        return found

    @property
    def lossless(self) -> bool:
        """Whether decoding gives the text back, byte by byte."""
        return self.family.alphabet == "bytes" and not (self.family.normal or self.family.suffix or self.family.prefix)

    # Encoding --------------------------------------------------------------------------------------

    def encode(self, text: str, allowed: Names = (), disallowed: Names = "all") -> list[int]:
        """The ids of a text.

        Args:
            text: any text without lone surrogates. NUL is a character like others (BERT's families drop it).
            allowed: special tokens that the text may hold, and that become their ids; "all", or names.
            disallowed: special tokens that are an error when the text holds them; "all" means all that are not
                allowed. What is neither is cut and merged like other text: (), ().

        Raises UsageError, as tiktoken does, for a disallowed special token; and for lone surrogates.
        """
        _check(text)
        ids: list[int] = []
        for start, end, number in find_added(text, self.added, allowed, disallowed):
            if number is None:
                self._extend(ids, text[start:end])
            else:
                ids.append(number)
        return ids

    def _extend(self, ids: list[int], text: str) -> None:
        cache = self._cache
        if self.family.normal:
            text = normalise(text, self.family)
        for piece in split(text, self.family):
            found = cache.get(piece)
            if found is None:
                found = self.model.encode(piece)
                if len(piece) <= CACHED_PIECE:
                    if len(cache) >= CACHED_PIECES:
                        cache.clear()
                    cache[piece] = found
            ids += found

    def encode_batch(
        self, texts: Sequence[str], allowed: Names = (), disallowed: Names = "all", fast: bool = False
    ) -> list[list[int]]:
        """The ids of several texts; with `fast` by a compiled library that gives the same (see `compiled`).

        Raises Missing for `fast` without the library.
        """
        if not fast:
            return [self.encode(text, allowed, disallowed) for text in texts]
        for text in texts:
            _check(text)
        parts = [list(find_added(text, self.added, allowed, disallowed)) for text in texts]
        plain = [t[a:b] for t, found in zip(texts, parts, strict=True) for a, b, number in found if number is None]
        encoded = iter(self._compiled(plain))
        return [
            [i for _, _, number in found for i in (next(encoded) if number is None else (number,))] for found in parts
        ]

    @cached_property
    def _compiled(self) -> Encode:
        return compiled(self.model)

    def encode_bytes(self, data: bytes) -> list[int]:
        """The ids of bytes that need not be UTF-8: `decode_bytes` gives exactly them back.

        A byte that is part of no character counts as a sign in the cutting. Special tokens are not looked for.
        Raises UsageError where the vocabulary is not of bytes.
        """
        if not self.lossless:
            raise UsageError(f"a vocabulary of the family {self.family.name} spells text, and not any bytes")
        ids: list[int] = []
        self._extend(ids, data.decode("utf-8", "surrogateescape"))
        return ids

    def encode_with_offsets(
        self, text: str, allowed: Names = (), disallowed: Names = "all"
    ) -> tuple[list[int], list[Span]]:
        """The ids, and for each the first character of the text that it spells and the one after the last.

        Tokens that share a character's bytes share its place. Raises UsageError as `encode`, and where a Unicode
        normal form has changed the text.
        """
        _check(text)
        ids: list[int] = []
        offsets: list[Span] = []
        for start, end, number in find_added(text, self.added, allowed, disallowed):
            if number is not None:
                ids.append(number)
                offsets.append((start, end))
                continue
            changed, origin = normalise_aligned(text[start:end], self.family)
            for low, high in split_spans(changed, self.family):
                piece = changed[low:high]
                ids += self.model.encode(piece)
                spans = self.model.spans(piece)
                offsets += [(start + origin[low + a], start + origin[low + b - 1] + 1) for a, b in spans]
        return ids, offsets

    # Decoding --------------------------------------------------------------------------------------

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes that ids spell. Raises UsageError for an id that the vocabulary has not."""
        try:
            found = b"".join([self.spelled[int(i)] for i in ids])
        except KeyError as error:
            raise UsageError(f"there is no token {error}: ids of this vocabulary are below {self.n_vocab:,}") from None
        if self.family.prefix or self.family.meta:
            return found.removeprefix(b" ")
        return found.removesuffix(b" ") if self.family.suffix else found

    def decode(self, ids: Iterable[int], errors: str = "replace") -> str:
        """The text that ids spell. Bytes that are no UTF-8 become U+FFFD, or what `errors` says (see `bytes.decode`)."""
        return self.decode_bytes(ids).decode("utf-8", errors)

    # Files and state -------------------------------------------------------------------------------

    def to_json(self) -> str:
        """The text of a tokenizer.json, which the tokenizers library reads."""
        self._source = self._source or write_json(self.model, self.added)
        return self._source

    @classmethod
    def from_json(cls, text: str) -> "Tokenizer":
        """From the text of a tokenizer.json. Raises Refused."""
        return cls(*read_json(text), source=text)

    def with_special(self, names: Iterable[str]) -> "Tokenizer":
        """The same with more special tokens, whose ids follow the highest one."""
        fresh = [name for name in dict.fromkeys(names) if name not in self.added]
        return Tokenizer(self.model, self.added | {name: Added(self.n_vocab + i) for i, name in enumerate(fresh)})

    def read_file(self, path: str | Path) -> "Tokenizer":
        """Become the tokenizer of a file or folder: what `--weights PATH` does. Raises BadInput, UsageError."""
        return self.become(read_tokenizer(path))

    def state_dict(self) -> dict[str, Any]:
        """Everything, as tokenizer.json."""
        return {"json": self.to_json()}

    def load_state_dict(self, state: Mapping[str, Any]) -> "Tokenizer":
        """Take over a `state_dict`. Raises Refused where it is none."""
        text = state.get("json")
        if not isinstance(text, str):
            raise Refused("no state of a tokenizer: it has no json")
        return self.become(Tokenizer.from_json(text))

    def become(self, other: "Tokenizer") -> "Tokenizer":
        """Take over another one's everything, and stay the same object."""
        kept = {"origin": self.__dict__["origin"]} if "origin" in self.__dict__ else {}
        self.__dict__.clear()
        self.__dict__.update(vars(other) | kept)
        return self


def _check(text: str) -> None:
    """Raises UsageError for half a surrogate pair, which no UTF-8 can hold."""
    try:
        if not text.isascii():
            text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"the text has a lone surrogate (U+{ord(text[error.start]):04X}) at character {error.start}: it is no "
            "character; replace it, or give bytes to encode_bytes"
        ) from None


def read_tokenizer(path: str | Path, family: str | Family | None = None) -> Tokenizer:
    """The tokenizer of a file or a folder.

    Args:
        path: tokenizer.json; vocab.bpe with encoder.json, merges.txt with vocab.json (one of them, or their folder); a
            table of ranks (*.tiktoken); vocab.txt of BERT; a folder with one of these; or a run folder of ours.
        family: how text is cut, where the file does not say and its vocabulary is not one of those known.

    Raises Missing for a path that is not there, BadInput for files that cannot be read, UsageError where the family
    has to be given.
    """
    return Tokenizer(*read_parts(path, family))
