"""The tokenizers library's tokenizer.json: what it says, and saying it.

A file is read into the same parts that our own vocabularies are made of. What has no part here (dropout, templates that
add special tokens) is either kept as it stands or refused by name, never passed over in silence.
"""

import json
import re
from collections.abc import Mapping
from itertools import groupby
from typing import Any

from jingdu.errors import Refused

from .added import Added
from .merges import Merges, byte_characters, character_bytes
from .pieces import BERT_WORDS, CHANGES, FAMILIES, FORMS, GPT2, MARK, META, UNCASED, Cut, Family
from .wordpiece import WordPiece

Model = Merges | WordPiece

HIGHEST_ID = 1 << 24
"""Ids above this are refused: tables as long as the highest id are made."""

# Writing -------------------------------------------------------------------------------------------


def _token_text(token: bytes, family: Family) -> str:
    """A token as the file spells it."""
    if family.alphabet == "characters":
        return token.decode()
    suffix = family.suffix.encode() if family.suffix and token.endswith(family.suffix.encode()) else b""
    return "".join(map(byte_characters().__getitem__, token.removesuffix(suffix))) + suffix.decode()


def _normalizer(family: Family) -> dict[str, Any] | None:
    found: list[dict[str, Any]] = []
    for by_character, steps in groupby(family.normal, lambda step: isinstance(step, str) and step in CHANGES):
        names = list(steps)
        if by_character:  # the library goes through them in this order, whatever the file's
            runs = [names] if names == [name for name in UNCASED if name in names] else [[name] for name in names]
            found += [
                {
                    "type": "BertNormalizer", "clean_text": "clean" in run, "handle_chinese_chars": "chinese" in run,
                    "strip_accents": "strip_accents" in run, "lowercase": "lower" in run,
                }
                for run in runs
            ]  # fmt: skip
        else:
            found += [
                {"type": name} if isinstance(name, str)
                else {"type": "Replace", "pattern": {"Regex": name[0]}, "content": name[1]}
                for name in names
            ]  # fmt: skip
    return found[0] if len(found) == 1 else {"type": "Sequence", "normalizers": found} if found else None


def _pre_tokenizer(family: Family) -> dict[str, Any] | None:
    found: list[dict[str, Any]] = [
        {"type": "BertPreTokenizer"} if cut == BERT_WORDS
        else {
            "type": "Split", "pattern": {"Regex": cut.pattern},
            "behavior": "Isolated" if cut.keep == "all" else "Removed", "invert": cut.keep == "matches",
        }
        for cut in family.cuts
    ]  # fmt: skip
    if family.alphabet == "bytes":
        found.append({"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False})
    return found[0] if len(found) == 1 else {"type": "Sequence", "pretokenizers": found} if found else None


def _decoder(family: Family) -> dict[str, Any]:
    if family.prefix:
        return {"type": "WordPiece", "prefix": family.prefix, "cleanup": False}
    if family.suffix:
        return {"type": "BPEDecoder", "suffix": family.suffix}
    if family.meta:
        steps: list[dict[str, Any]] = [
            {"type": "Replace", "pattern": {"String": META}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ]  # fmt: skip
        return {"type": "Sequence", "decoders": steps}
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}


def write_json(model: Model, added: Mapping[str, Added]) -> str:
    """A vocabulary as tokenizer.json, which the tokenizers library reads and gives equal ids with."""
    family = model.family
    vocabulary = {_token_text(token, family): number for token, number in model.vocabulary.items()}
    vocabulary |= {name: token.id for name, token in added.items()}
    vocabulary = dict(sorted(vocabulary.items(), key=lambda item: item[1]))
    body: dict[str, Any]
    if isinstance(model, WordPiece):
        names = {number: name for name, number in vocabulary.items()}
        body = {
            "type": "WordPiece", "unk_token": names[model.unknown], "continuing_subword_prefix": family.prefix,
            "max_input_chars_per_word": model.longest, "vocab": vocabulary,
        }  # fmt: skip
    else:
        names = {number: _token_text(token, family) for token, number in model.vocabulary.items()}
        unknown = next((name for name, number in vocabulary.items() if number == model.unknown), None)
        body = {
            "type": "BPE", "dropout": None, "unk_token": unknown,
            "continuing_subword_prefix": family.prefix or None, "end_of_word_suffix": family.suffix or None,
            "fuse_unk": False, "byte_fallback": model.byte_fallback, "ignore_merges": model.whole, "vocab": vocabulary,
            "merges": [[names[left], names[right]] for left, right in model.pairs()],
        }  # fmt: skip
    tokens = [
        {
            "id": token.id, "content": name, "single_word": False, "lstrip": token.strip_left,
            "rstrip": token.strip_right, "normalized": False, "special": token.special,
        }
        for name, token in sorted(added.items(), key=lambda item: item[1].id)
    ]  # fmt: skip
    table = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": tokens, "normalizer": _normalizer(family),
        "pre_tokenizer": _pre_tokenizer(family), "post_processor": None, "decoder": _decoder(family), "model": body,
    }  # fmt: skip
    return json.dumps(table, ensure_ascii=False)


# Reading -------------------------------------------------------------------------------------------


def _members(table: Mapping[str, Any] | None, many: str) -> list[Mapping[str, Any]]:
    """The members of a sequence, or the one step, or none."""
    if table is None:
        return []
    if table["type"] == "Sequence":
        return [step for part in table[many] for step in _members(part, many)]
    return [table]


def _regex_of(table: Mapping[str, str]) -> str:
    """A pattern, with its line ends written as they are in ours."""
    found = table["Regex"] if "Regex" in table else re.escape(table["String"])
    return found.replace("\r", r"\r").replace("\n", r"\n")


def _normal(table: Mapping[str, Any] | None) -> tuple[str | tuple[str, str], ...]:
    found: list[str | tuple[str, str]] = []
    for step in _members(table, "normalizers"):
        match step["type"]:
            case "BertNormalizer":
                lower = bool(step["lowercase"])
                accents = lower if step.get("strip_accents") is None else step["strip_accents"]
                wanted = (step["clean_text"], step["handle_chinese_chars"], accents, lower)
                found += [name for name, is_wanted in zip(UNCASED, wanted, strict=True) if is_wanted]
            case "Lowercase":
                found.append("lower")
            case "Replace":
                found.append((_regex_of(step["pattern"]), step["content"]))
            case "Prepend":
                found.append((r"\A(?=\s|\S)", step["prepend"]))
            case name if name in FORMS:
                found.append(name)
            case name:
                raise Refused(f"the normalizer {name} is not known")
    return tuple(found)


def _cuts(table: Mapping[str, Any] | None) -> tuple[tuple[Cut, ...], bool]:
    """The cuts, and whether text becomes bytes after them."""
    found, by_bytes = [], False
    for step in _members(table, "pretokenizers"):
        match step["type"]:
            case "Split":
                behaviour, invert = step["behavior"], bool(step.get("invert"))
                if behaviour not in ("Isolated", "Removed"):
                    raise Refused(f"the pre-tokenizer Split with the behavior {behaviour} is not known")
                keep = "all" if behaviour == "Isolated" else "matches" if invert else "gaps"
                found.append(Cut(_regex_of(step["pattern"]), keep))
            case "ByteLevel":
                if step.get("add_prefix_space"):
                    raise Refused("the pre-tokenizer ByteLevel with add_prefix_space is not known")
                found += [Cut(GPT2)] if step.get("use_regex", True) else []
                by_bytes = True
            case "BertPreTokenizer":
                found.append(BERT_WORDS)
            case "Whitespace":
                found.append(Cut(r"\w+|[^\w\s]+", "matches"))
            case "WhitespaceSplit":
                found.append(Cut(r"\s+", "gaps"))
            case "Punctuation" if step.get("behavior", "Isolated") == "Isolated":
                found.append(Cut(f"[{MARK}]"))
            case "Digits":
                found.append(Cut(r"\p{N}" if step.get("individual_digits") else r"\p{N}+"))
            case name:
                raise Refused(f"the pre-tokenizer {name} is not known")
    return tuple(found), by_bytes


def _family(table: Mapping[str, Any], name: str) -> Family:
    body = table["model"]
    cuts, by_bytes = _cuts(table.get("pre_tokenizer"))
    family = Family(
        name, cuts, _normal(table.get("normalizer")), "bytes" if by_bytes else "characters",
        body.get("end_of_word_suffix") or "", body.get("continuing_subword_prefix") or "",
    )  # fmt: skip
    same = [known for known in FAMILIES.values() if known == Family(known.name, *_fields(family))]
    return same[0] if same else family


def _fields(family: Family) -> tuple[Any, ...]:
    return family.cuts, family.normal, family.alphabet, family.suffix, family.prefix


def token_bytes(text: str, family: Family) -> bytes:
    """A token of a file as bytes. Raises KeyError for one that no text can give."""
    if family.alphabet == "characters":
        return text.encode()
    suffix = family.suffix if family.suffix and text.endswith(family.suffix) else ""
    return bytes(map(character_bytes().__getitem__, text.removesuffix(suffix))) + suffix.encode()


def check_ids(vocabulary: Mapping[str, Any]) -> None:
    """Raises Refused for ids that are no small whole numbers, or that two tokens share."""
    for name, number in vocabulary.items():
        if type(number) is not int or not 0 <= number <= HIGHEST_ID:
            raise Refused(f"the id of {name!r} is {number!r}: it must be a whole number from 0 to {HIGHEST_ID:,}")
    if len(set(vocabulary.values())) != len(vocabulary):
        raise Refused("two of its tokens share an id")


def read_json(text: str, name: str = "file") -> tuple[Model, dict[str, Added]]:
    """A model and its added tokens from the text of a tokenizer.json; `name` is the family's, if it is new.

    Raises Refused for text that is none, or asks for what is not known here.
    """
    try:
        return _read_table(json.loads(text), name)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Refused(f"no tokenizer.json that can be read ({type(error).__name__}: {error})") from None


def _read_table(table: Mapping[str, Any], name: str) -> tuple[Model, dict[str, Added]]:
    body, family = table["model"], _family(table, name)
    added = {
        token["content"]: Added(token["id"], token["special"], token["lstrip"], token["rstrip"])
        for token in table.get("added_tokens") or []
    }
    for token in table.get("added_tokens") or []:
        if token["single_word"] or not token["content"]:
            raise Refused(f"the added token {token['content']!r} is found in single words alone, which is not known")
    kind = body.get("type") or ("BPE" if "merges" in body else "WordPiece")
    vocabulary: Mapping[str, int] = body["vocab"]
    check_ids(vocabulary | {text: token.id for text, token in added.items()})
    unknown = body.get("unk_token")
    if unknown is not None and unknown not in vocabulary:
        raise Refused(f"its unknown token {unknown!r} is not in the vocabulary")
    if kind == "WordPiece":
        own = {text.encode(): number for text, number in vocabulary.items()}
        return WordPiece(own, vocabulary[unknown], family, body["max_input_chars_per_word"]), added
    if kind != "BPE":
        raise Refused(f"models of the kind {kind} are not known: BPE and WordPiece are")
    if body.get("dropout") or (body.get("fuse_unk") and unknown is not None and not body.get("byte_fallback")):
        raise Refused("merges with dropout, or with unknown characters in one, are not known")
    pairs = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in body["merges"]]
    merging = {text for pair in pairs for text in pair}
    own = {}
    for text, number in vocabulary.items():
        if text in added and text not in merging:  # found in the text, never merged
            continue
        try:
            own[token_bytes(text, family)] = number
        except KeyError:
            raise Refused(f"the token {text!r} is not made of bytes") from None
    merges = [(token_bytes(left, family), token_bytes(right, family)) for left, right in pairs]
    options = {"whole": bool(body.get("ignore_merges")), "byte_fallback": bool(body.get("byte_fallback"))}
    model = Merges.from_merges(own, merges, family, unknown=vocabulary.get(unknown), **options)
    return model, added
