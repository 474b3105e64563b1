"""Readers of published vocabularies: what a folder holds, and what each file says."""

import base64
import binascii
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jingdu.errors import BadInput, Missing, Refused, UsageError

from .added import Added
from .interchange import HIGHEST_ID, Model, check_ids, read_json, token_bytes
from .merges import Merges, byte_characters
from .pieces import FAMILIES, Family, family_of
from .wordpiece import WordPiece

Parts = tuple[Model, dict[str, Added], str | None]
"""A model, its added tokens, and the text of the tokenizer.json that they are from."""

LARGEST = 256 << 20
"""Bytes of the largest file that is read."""
PAIRS = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"), ("encoder_bpe_40000.json", "vocab_40000.bpe"))
"""Names of a vocabulary's ids and of its merges: Hugging Face's, GPT-2's, GPT-1's."""

_GPT4_SPECIAL = {"<|endoftext|>": 100257, "<|fim_prefix|>": 100258, "<|fim_middle|>": 100259, "<|fim_suffix|>": 100260,
           "<|endofprompt|>": 100276}  # fmt: skip
KNOWN_RANKS: dict[int, tuple[str, Mapping[str, int]]] = {
    50256: ("gpt2", {"<|endoftext|>": 50256}),
    50280: ("gpt2", {"<|endoftext|>": 50256}),  # p50k: Codex; more runs of spaces
    100256: ("cl100k", _GPT4_SPECIAL),
    199998: ("o200k", {"<|endoftext|>": 199999, "<|endofprompt|>": 200018}),
}
"""Published tables of ranks, which do not name their family and special tokens, by how many ranks they have."""


def read_parts(path: str | Path, family: str | Family | None = None) -> Parts:
    """See `read_tokenizer`."""
    path, wanted = Path(path).expanduser(), None if family is None else family_of(family)
    if not path.exists():
        raise Missing(f"{path}: there is no such file or folder")
    try:
        return _folder(path, wanted) if path.is_dir() else _file(path, wanted)
    except (UsageError, BadInput, Missing):
        raise
    except Refused as error:
        raise BadInput(path, str(error)) from None


def _folder(path: Path, family: Family | None) -> Parts:
    if (path / "checkpoints").is_dir():
        return _run(path)
    names = ["tokenizer.json", *(merges for _, merges in PAIRS), "vocab.txt"]
    found = [path / name for name in names if (path / name).is_file()] or sorted(path.glob("*.tiktoken"))
    if not found:
        raise Missing(f"{path}: no tokenizer in this folder (looked for {', '.join(names)} and *.tiktoken)")
    return _file(found[0], family)


def _run(path: Path) -> Parts:
    """The tokenizer that a run of ours has learnt, or was trained with."""
    from jingdu.engine.checkpoint import newest_checkpoint
    from jingdu.engine.state import read_tree

    checkpoint = newest_checkpoint(path)
    if checkpoint is None:
        raise Refused("this run has no checkpoint yet")
    if (checkpoint / "tokenizer.json").exists():
        return _file(checkpoint / "tokenizer.json", None)
    tree = read_tree(checkpoint / "model.safetensors")
    model = tree.get("model")
    text = model.get("json") if isinstance(model, Mapping) else None
    if not isinstance(text, str):
        raise Refused("this run holds no tokenizer")
    return (*read_json(text), text)


def _read_text(path: Path) -> str:
    try:
        if path.stat().st_size > LARGEST:
            raise BadInput(path, f"larger than {LARGEST:,} bytes")
        return path.read_text("utf-8")
    except OSError as error:
        raise BadInput(path, error.strerror or "cannot be read") from None
    except UnicodeDecodeError as error:
        raise BadInput(path, f"not UTF-8 text ({error.reason} at byte {error.start})") from None


def _file(path: Path, family: Family | None) -> Parts:
    for ids, merges in PAIRS:
        if path.name in (ids, merges):
            return _pair(path.with_name(ids), path.with_name(merges), family)
    text = _read_text(path)
    if path.name == "vocab.txt":
        return _vocabulary(path, text, family)
    if text.lstrip().startswith("{"):
        return (*read_json(text), text)
    return _ranks(text, family)


def _ranks(text: str, family: Family | None) -> Parts:
    """A line a token: its bytes in base64, and its rank, which is its id."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line:
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise Refused(f"line {number} is not a token in base64 and its rank: {line[:60]!r}") from None
        if not 0 <= int(rank) <= HIGHEST_ID:
            raise Refused(f"line {number}: the rank {rank} is not from 0 to {HIGHEST_ID:,}")
    if len(set(ranks.values())) != len(ranks) or b"" in ranks:
        raise Refused("two of its tokens share a rank, or one is empty")
    if lacking := [byte for byte in range(256) if bytes([byte]) not in ranks]:
        raise Refused(f"it has no token for the byte {lacking[0]}, so that it cannot spell every text")
    special: Mapping[str, int] = {}
    if family is None:
        if len(ranks) not in KNOWN_RANKS:
            raise UsageError(
                f"a table of {len(ranks):,} ranks does not say how text is cut: give family=, one of {', '.join(FAMILIES)}"
            )
        name, special = KNOWN_RANKS[len(ranks)]
        family = FAMILIES[name]
    return Merges.from_ranks(ranks, family), {name: Added(number) for name, number in special.items()}, None


def _json(path: Path) -> Any:
    try:
        return json.loads(_read_text(path))
    except (ValueError, RecursionError) as error:
        raise BadInput(path, f"no readable JSON ({error})") from None


def _pair(ids: Path, merges: Path, family: Family | None) -> Parts:
    """GPT-2's two files, and GPT-1's: token -> id, and a merge a line. What no merge makes is a special token."""
    for path in (ids, merges):
        if not path.is_file():
            raise Missing(f"{path}: this vocabulary is in two files, and this one is not there")
    vocabulary = _json(ids)
    if not isinstance(vocabulary, dict):
        raise BadInput(ids, "an object from tokens to ids was expected")
    check_ids(vocabulary)
    by_bytes = set(byte_characters().values()) <= set(vocabulary)
    ended = any(token.endswith("</w>") for token in vocabulary)
    if family is None:
        if by_bytes and ended:
            raise UsageError(f"{ids}: bytes with </w> are of no family that is known here: give family=")
        family = FAMILIES["gpt2" if by_bytes else "gpt"]
    lines = _read_text(merges).split("\n")
    pairs = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or (number == 1 and line.startswith("#version")):
            continue
        pair = line.rstrip("\r").split(" ")
        if len(pair) != 2:
            raise BadInput(merges, f"line {number} is not two tokens: {line[:60]!r}")
        pairs.append((pair[0], pair[1]))
    suffix = family.suffix
    made = {left + right for left, right in pairs} | {token for pair in pairs for token in pair}
    unknown = next((vocabulary[name] for name in ("<unk>", "[UNK]") if name in vocabulary), None)
    added, own = {}, {}
    for token, number in vocabulary.items():
        if token not in made and len(token.removesuffix(suffix)) > 1:
            added[token] = Added(number)
            continue
        try:
            own[token_bytes(token, family)] = number
        except KeyError:
            raise BadInput(ids, f"the token {token!r} is not made of bytes, and no special one") from None
    try:
        found = [(token_bytes(left, family), token_bytes(right, family)) for left, right in pairs]
        return Merges.from_merges(own, found, family, unknown=unknown), added, None
    except KeyError as error:
        raise BadInput(merges, f"a merge needs the token {error}, which {ids.name} has not") from None


def _vocabulary(path: Path, text: str, family: Family | None) -> Parts:
    """BERT's vocab.txt: a token a line, and its id is the line's number.

    A vocabulary without capital letters is of the family `bert` (uncased).
    """
    tokens = text.split("\n")
    if tokens and not tokens[-1]:
        tokens.pop()
    tokens = [token.rstrip("\r") for token in tokens]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    if "[UNK]" not in vocabulary or not vocabulary:
        raise Refused("it has no [UNK], as the vocabularies of BERT have")
    special = {
        name: Added(vocabulary[name]) for name in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if name in vocabulary
    }
    if family is None:
        capitals = any(
            token != token.lower() for token in tokens if token not in special and not token.startswith("[unused")
        )
        family = FAMILIES["bert_cased" if capitals else "bert"]
    own = {token.encode(): number for token, number in vocabulary.items()}
    return WordPiece(own, vocabulary["[UNK]"], family), special, None
