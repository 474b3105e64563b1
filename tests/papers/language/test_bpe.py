"""Byte-pair encoding: learning and encoding against their definitions, files and runs come back, text comes back."""

import base64
import dataclasses
import json
import re
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jingdu
from jingdu.cli import main
from jingdu.data.base import Tensors
from jingdu.data.draws import Draws
from jingdu.engine import read_log, train
from jingdu.engine.checkpoint import newest_checkpoint
from jingdu.errors import BadInput, Missing, Refused, UsageError
from jingdu.papers.language.bpe import (
    FAMILIES,
    Added,
    Cut,
    Family,
    Learning,
    Merges,
    Tokenizer,
    byte_characters,
    compile_pattern,
    encode_documents,
    fit,
    learn,
    normalise,
    predict,
    read_json,
    read_tokenizer,
    split,
    tokens,
)
from jingdu.papers.language.bpe.merges import symbols_of
from jingdu.papers.language.bpe.pieces import normalise_aligned, split_spans

BYTES = [name for name, family in FAMILIES.items() if family.alphabet == "bytes"]
TEXT = (
    "The low tide was lower than the lowest; the newest wide river isn't the widest.\n\n  def newer(self, low=1234567):\n"
    "\treturn 'naïve' + \"你好，世界\"  # 👩‍👩‍👧 low low lowest newest newest\r\n    I'LL go, they've GONE "
)
TEXTS = [TEXT, TEXT.upper(), "widest lowest newest " * 7, "  \n \t" * 5 + "low"]
text_without_halves = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


@pytest.fixture(scope="module", params=BYTES)
def learnt(request: pytest.FixtureRequest) -> Tokenizer:
    return fit(TEXTS, 331, request.param)


@pytest.fixture(scope="module")
def gpt2() -> Tokenizer:
    return fit(TEXTS, 317)


# Cutting -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "text", "pieces"), [
    ("gpt2", "I'll I'LL don't  a1b2 ", ["I", "'ll", " I", "'", "LL", " don", "'t", " ", " a", "1", "b", "2", " "]),
    ("gpt2", "x\n\n  y...", ["x", "\n\n ", " y", "..."]),
    ("cl100k", "I'LL (self.x) 12345\n\n  y", ["I", "'LL", " (", "self", ".x", ")", " ", "123", "45", "\n\n", " ", " y"]),
    ("cl100k", "a:\n  \n\tb", ["a", ":\n", "  \n", "\tb"]),
    ("o200k", "camelCase HTTPServer it's//", ["camel", "Case", " HTTPServer", " it's", "//"]),
    ("deepseek", "abc123你好かな x.y", ["abc", "123", "你好かな", " x", ".y"]),
    ("bert", "don't  stop\u3000now", ["don", "'", "t", "stop", "now"]),
    ("words", " a  b,c\n", ["a", "b,c"]),
])  # fmt: skip
def test_pieces_by_hand(family: str, text: str, pieces: list[str]) -> None:
    assert split(text, FAMILIES[family]) == pieces


@given(text_without_halves)
@settings(max_examples=60, deadline=None)
def test_pieces_are_the_text(text: str) -> None:
    """Families of bytes drop nothing; spans are where the pieces lie."""
    for family in FAMILIES.values():
        pieces = split(text, family)
        assert [text[a:b] for a, b in split_spans(text, family)] == pieces and all(pieces)
        if family.alphabet == "bytes":
            assert "".join(pieces) == text


def test_white_space_is_unicodes() -> None:
    r"""Python's \s has U+001C to U+001F, Unicode's White_Space has not; and \d, \w stay as they are."""
    assert compile_pattern(r"\s").findall("\x1c\x1f\x85\xa0\u2003\x0b a") == ["\x85", "\xa0", "\u2003", "\x0b", " "]
    assert compile_pattern(r"[^\s\p{N}]+").findall("a\x1cb 1½c") == ["a\x1cb", "c"]
    assert compile_pattern(r"\P{L}+|\p{^L}").findall("a1-b") == ["1-"] and compile_pattern(r"\S+").findall("a b") == [
        "a",
        "b",
    ]
    assert compile_pattern(r"\p{Lu}", 0x80).findall("aBÄ") == ["B"]


@pytest.mark.parametrize(("pattern", "message"), [
    (r"\p{Han}", "property 'Han'"), (r"[a\S]", r"within a class"), ("[a[bc]]", "class within a class"),
    ("(", "cannot be read"), (r"[a&&b]", "cannot be read"), (r"[\P{L}]", "within a class"),
])  # fmt: skip
def test_patterns_that_python_cannot_read(pattern: str, message: str) -> None:
    with pytest.raises(Refused, match=message):
        compile_pattern(pattern)


def test_normalisation_is_berts() -> None:
    assert normalise("Ünï\x00\tÇode 中文\ufffd!", FAMILIES["bert"]) == "uni code  中  文 !"
    assert normalise("Ünï 中", FAMILIES["bert_cased"]) == "Ünï  中 "
    changed, origin = normalise_aligned("É中\x00x", FAMILIES["bert"])
    assert changed == "e 中 x" and origin == [0, 1, 1, 1, 3]
    with pytest.raises(UsageError, match="NFC changes this text"):
        normalise_aligned("e\u0301", Family("nfc", (), ("NFC",)))
    assert normalise_aligned("é", Family("nfc", (), ("NFC",))) == ("é", [0])
    with pytest.raises(UsageError, match="change of text"):
        normalise("a", Family("x", (), ("NFX",)))


# Learning ------------------------------------------------------------------------------------------


def test_bytes_have_characters() -> None:
    found = byte_characters()
    assert sorted(found) == list(range(256)) and len(set(found.values())) == 256
    assert sum(chr(byte) == character for byte, character in found.items()) == 188
    assert list(found)[:2] == [0x21, 0x22] and found[0x20] == "Ġ" and found[0x0A] == "Ċ" and found[0xAD] == "\u0143"


def test_sennrichs_example() -> None:
    """The dictionary of algorithm 1, with </w> in the last symbol."""
    words = {"low": 5, "lower": 2, "newest": 6, "widest": 3}
    _, merges = learn(words, 99, FAMILIES["words"])
    assert merges[:3] == [(b"e", b"s"), (b"es", b"t</w>"), (b"l", b"o")]
    index, merges = learn(words, 17, FAMILIES["words"])
    assert len(index) == 17 and list(index) == sorted(index, key=lambda name: index[name])
    with pytest.raises(UsageError, match="no room for an alphabet of 11"):
        learn(words, 10, FAMILIES["words"])


def _brute(words: dict[str, int], size: int, family: Family) -> list[tuple[bytes, bytes]]:
    """Algorithm 1 as it is written: all pairs are counted anew for each merge."""
    cut = [([*symbols_of(word, family)], count) for word, count in words.items()]
    if family.alphabet == "bytes":
        names = [bytes([byte]) for byte in byte_characters()]
    else:
        names = sorted({symbol for symbols, _ in cut for symbol in symbols})
    merges: list[tuple[bytes, bytes]] = []
    while len(names) < size:
        counts: Counter[tuple[bytes, bytes]] = Counter()
        for symbols, count in cut:
            for pair in pairwise(symbols):
                counts[pair] += count
        if not counts:
            break
        left, right = min(counts, key=lambda pair: (-counts[pair], names.index(pair[0]), names.index(pair[1])))
        merges.append((left, right))
        joined = left + right.removeprefix(family.prefix.encode())
        if joined not in names:
            names.append(joined)
        for symbols, _ in cut:
            at = 0
            while at + 1 < len(symbols):
                if (symbols[at], symbols[at + 1]) == (left, right):
                    symbols[at : at + 2] = [joined]
                at += 1
    return merges


@given(
    st.dictionaries(st.text("abcé", min_size=1, max_size=9), st.integers(1, 9), min_size=1, max_size=12),
    st.integers(0, 25),
    st.sampled_from(["gpt2", "words", "bert"]),
)
@settings(max_examples=80, deadline=None)
def test_learning_is_algorithm_1(words: dict[str, int], more: int, name: str) -> None:
    family = FAMILIES[name]
    alphabet = 256 if name == "gpt2" else len({symbol for word in words for symbol in symbols_of(word, family)})
    _, merges = learn(words, alphabet + more, family)
    assert merges == _brute(words, alphabet + more, family)


def test_sizes_and_special_tokens() -> None:
    tokenizer = fit(TEXTS, 300, special=("<|endoftext|>", "<pad>", "<pad>"))
    assert tokenizer.n_vocab == 300 and tokenizer.special == {"<|endoftext|>": 298, "<pad>": 299}
    assert tokenizer.end == 298 and tokenizer.lossless
    assert fit(["ab"], 300).n_vocab == 256 + 1 + 1  # no more to merge
    with pytest.raises(UsageError, match="no room"):
        fit(TEXTS, 200)
    with pytest.raises(UsageError, match="no room beside"):
        fit(TEXTS, 1)
    with pytest.raises(UsageError, match="Did you mean gpt2"):
        fit(TEXTS, 300, "gpt-2")


# Encoding ------------------------------------------------------------------------------------------


def _by_rank(model: Merges, ids: list[int]) -> list[int]:
    """Merging as it is defined: the pair of lowest rank, the leftmost of them, until there is none."""
    while found := [(model.ranks[pair], at) for at, pair in enumerate(pairwise(ids)) if pair in model.ranks]:
        rank, at = min(found)
        ids = [*ids[:at], model.results[rank], *ids[at + 2 :]]
    return ids


@given(st.text("abcd ", max_size=150), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_merging_is_by_rank(text: str, seed: int) -> None:
    """Short and long pieces alike, on merges that no text would give."""
    generator = np.random.default_rng(seed)
    names = [bytes([byte]) for byte in range(256)]
    merges = []
    for _ in range(40):
        left, right = (names[i] for i in generator.choice([*range(97, 101), *range(256, len(names))], 2))
        if left + right not in names:
            merges.append((left, right))
            names.append(left + right)
    model = Merges.from_merges({name: i for i, name in enumerate(names)}, merges, FAMILIES["gpt2"])
    wanted = _by_rank(model, model.symbols(text))
    assert model._merge(model.symbols(text)) == wanted and model._merge_long(model.symbols(text)) == wanted
    ranks = {name: 1000 + i for i, name in enumerate(names)}
    model = Merges.from_ranks(ranks, FAMILIES["gpt2"])
    wanted = _by_rank(model, model.symbols(text))
    assert model._merge(model.symbols(text)) == wanted and model._merge_long(model.symbols(text)) == wanted


@given(text_without_halves, st.binary(max_size=60))
@settings(max_examples=150, deadline=None)
def test_text_and_bytes_come_back(learnt: Tokenizer, text: str, data: bytes) -> None:
    ids = learnt.encode(text)
    assert learnt.decode(ids) == text and all(0 <= i < learnt.n_vocab for i in ids)
    assert learnt.decode_bytes(learnt.encode_bytes(data)) == data
    assert learnt.decode(learnt.encode_bytes(data)) == data.decode("utf-8", "replace")
    assert learnt.encode_bytes(text.encode()) == ids


def test_long_pieces_take_no_long_time(learnt: Tokenizer) -> None:
    for text in ("low" * 40_000, " " * 120_000 + "x", "é" * 60_000):
        started = time.perf_counter()
        assert learnt.decode(learnt.encode(text)) == text
        assert time.perf_counter() - started < 8


def test_what_is_no_text_is_refused(gpt2: Tokenizer) -> None:
    with pytest.raises(UsageError, match=r"lone surrogate \(U\+D800\) at character 2"):
        gpt2.encode("ab\ud800")
    with pytest.raises(UsageError, match="lone surrogate"):
        gpt2.encode_with_offsets("\udcff")
    assert gpt2.decode(gpt2.encode("a\x00b")) == "a\x00b"
    with pytest.raises(UsageError, match="there is no token 317"):
        gpt2.decode([3, 317])
    with pytest.raises(UsageError, match="there is no token -1"):
        gpt2.decode([-1])
    assert gpt2.encode("") == [] and gpt2.decode([]) == "" and gpt2.encode_with_offsets("") == ([], [])


@given(text_without_halves)
@settings(max_examples=60, deadline=None)
def test_offsets_are_where_tokens_lie(learnt: Tokenizer, text: str) -> None:
    ids, offsets = learnt.encode_with_offsets(text)
    assert ids == learnt.encode(text) and len(ids) == len(offsets)
    at = 0
    for token, (start, end) in zip(ids, offsets, strict=True):
        spelled = learnt.tokens[token]
        assert (spelled in text[start:end].encode() and at == len(text[:start].encode())) or end - start >= 1
        whole = text[start:end].encode()
        assert len(text[:start].encode()) <= at < at + len(spelled) <= len(text[:end].encode()) and spelled in whole
        at += len(spelled)


def test_offsets_of_characters_and_words() -> None:
    tokenizer = fit(TEXTS, 90, "bert", special=("[PAD]", "[CLS]"))
    text = "Löwest [CLS] 你x"
    ids, offsets = tokenizer.encode_with_offsets(text, allowed=["[CLS]"])
    assert [text[a:b] for a, b in offsets][-3:] == ["[CLS]", "你", "x"] and "".join(
        text[a:b] for a, b in offsets[:-3]
    ) == "Löwest"
    assert ids == tokenizer.encode(text, allowed=["[CLS]"])
    gpt = fit(TEXTS, 90, "gpt", special=("<unk>",))
    ids, offsets = gpt.encode_with_offsets("lowest Ωc")
    assert ids[-2] == gpt.special["<unk>"] and offsets[0][0] == 0 and offsets[-2:] == [(7, 8), (8, 9)]
    assert ids == gpt.encode("lowest Ωc") and "<unk>" in gpt.decode(ids)


# Special tokens ------------------------------------------------------------------------------------


def test_special_tokens_are_allowed_disallowed_or_text(gpt2: Tokenizer) -> None:
    text = "low<|endoftext|> low"
    with pytest.raises(UsageError, match=r"special token '<\|endoftext\|>' at character 3"):
        gpt2.encode(text)
    plain = gpt2.encode(text, disallowed=())
    assert gpt2.end not in plain and gpt2.decode(plain) == text
    for allowed in ("all", {"<|endoftext|>"}):
        found = gpt2.encode(text, allowed=allowed)
        assert found == [*gpt2.encode("low"), gpt2.end, *gpt2.encode(" low")] and gpt2.decode(found) == text
    with pytest.raises(UsageError, match="unknown special token 'low'"):
        gpt2.encode(text, allowed={"low"})
    with pytest.raises(UsageError, match="at character 0"):
        gpt2.encode("low", disallowed={"low"})
    assert gpt2.encode_batch([text, "low"], disallowed=()) == [plain, gpt2.encode("low")]


def test_more_special_tokens(gpt2: Tokenizer) -> None:
    """The longest is found first; strips take white space; tokens that are not special are always found."""
    more = gpt2.with_special(["<a>", "<a><b>", "<a>"])
    assert more.special == {**gpt2.special, "<a>": 317, "<a><b>": 318} and gpt2.n_vocab == 317
    assert more.encode("<a><b><a>", allowed="all") == [318, 317]
    added = {"<m>": Added(320, True, True, False), "<n>": Added(321, False, False, True)}
    other = Tokenizer(gpt2.model, added)
    assert other.encode("low  <m> low", allowed="all") == [*gpt2.encode("low"), 320, *gpt2.encode(" low")]
    assert other.encode("low<n> \nlow") == [*gpt2.encode("low"), 321, *gpt2.encode("low")]
    assert other.encode_with_offsets("low <m>", allowed="all")[1][-1] == (3, 7)
    assert Tokenizer.from_json(other.to_json()).added == added


# WordPiece and words -------------------------------------------------------------------------------

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "un", "##aff", "##able", "a", "##a", "want", "##ed", ",", "中"]


def test_wordpiece_by_hand(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    tokenizer = read_tokenizer(tmp_path)
    assert tokenizer.family.name == "bert" and tokenizer.n_vocab == 14 and tokenizer.end == 3
    assert tokenizer.encode("Unaffable, wanted 中a") == [5, 6, 7, 12, 10, 11, 13, 8]
    assert tokenizer.encode("unafff WANTÉD") == [1, 10, 11]
    assert tokenizer.encode("a" * 100) == [8] + [9] * 99 and tokenizer.encode("a" * 101) == [1]
    assert tokenizer.decode([5, 6, 7, 12, 10, 11]) == "unaffable , wanted"
    assert tokenizer.encode_with_offsets("a unafff")[1] == [(0, 1), (2, 8)]
    assert not tokenizer.lossless
    with pytest.raises(UsageError, match="spells text"):
        tokenizer.encode_bytes(b"a")
    (tmp_path / "vocab.txt").write_text("\r\n".join([*WORDS, "The"]) + "\r\n")
    assert read_tokenizer(tmp_path / "vocab.txt").family.name == "bert_cased"
    assert read_tokenizer(tmp_path / "vocab.txt", "bert").family.name == "bert"


def test_words_end_with_a_mark() -> None:
    tokenizer = fit(["low lower newest widest low"], 20, "words", special=())
    assert tokenizer.decode(tokenizer.encode("low  widest\n")) == "low widest"
    assert tokenizer.spelled[tokenizer.encode("low")[-1]].endswith(b" ")
    with pytest.raises(UsageError, match="has no token for b'z', which 'zoo' needs"):
        tokenizer.encode("zoo")
    bert = fit(TEXTS, 120, "bert", special=("[PAD]",))
    assert bert.special.keys() == {"[PAD]", "[UNK]"} and bert.encode("zz") == [bert.special["[UNK]"]]
    assert bert.decode(bert.encode("The lowest tide")) == "the lowest tide"


# Files ---------------------------------------------------------------------------------------------


def _same(one: Tokenizer, other: Tokenizer, text: str = TEXT) -> bool:
    return one.encode(text, disallowed=()) == other.encode(text, disallowed=()) and one.special == other.special


def test_json_comes_back(learnt: Tokenizer, tmp_path: Path) -> None:
    read = Tokenizer.from_json(learnt.to_json())
    assert read.family == learnt.family and _same(read, learnt) and read.to_json() == learnt.to_json()
    (tmp_path / "tokenizer.json").write_text(learnt.to_json())
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        assert _same(jingdu.create("bpe", weights=path), learnt)
        assert jingdu.create("bpe", weights=path).origin.source == str(path)
    again = jingdu.create("bpe").load_state_dict(learnt.state_dict())
    assert _same(again, learnt) and again.origin.variant == "bpe"
    with pytest.raises(Refused, match="no state"):
        again.load_state_dict({})


@pytest.mark.parametrize("family", ["bert", "bert_cased", "gpt", "words"])
def test_json_of_characters_comes_back(family: str) -> None:
    tokenizer = fit(TEXTS, 110, family, special=("<s>",))
    read = Tokenizer.from_json(tokenizer.to_json())
    assert read.family == tokenizer.family and _same(read, tokenizer)


def test_two_files_of_gpt2(gpt2: Tokenizer, tmp_path: Path) -> None:
    table = json.loads(gpt2.to_json())["model"]
    merges = "#version: 0.2\n" + "".join(f"{left} {right}\n" for left, right in table["merges"])
    for ids, names in (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")):
        folder = tmp_path / ids
        folder.mkdir()
        (folder / ids).write_text(json.dumps(table["vocab"]))
        (folder / names).write_text(merges)
        assert all(_same(read_tokenizer(path), gpt2) for path in (folder, folder / ids, folder / names))
    (folder / names).write_text(merges + "x y z\n")
    with pytest.raises(BadInput, match="line 62 is not two tokens"):
        read_tokenizer(folder)
    (folder / names).write_text(merges + "Ġlow zz\n")
    with pytest.raises(BadInput, match=r"needs the token b'zz', which encoder\.json has not"):
        read_tokenizer(folder)
    (folder / names).unlink()
    with pytest.raises(Missing, match="in two files"):
        read_tokenizer(folder / ids)


def test_two_files_of_gpt1(tmp_path: Path) -> None:
    names = ["<unk>", ".", "t", "h", "e", "e</w>", "t</w>", ".</w>", "th", "the</w>", "\n</w>"]
    (tmp_path / "encoder_bpe_40000.json").write_text(json.dumps({name: i for i, name in enumerate(names)}))
    (tmp_path / "vocab_40000.bpe").write_text("#version: 0.2\nt h\nth e</w>\n")
    tokenizer = read_tokenizer(tmp_path)
    assert tokenizer.family.name == "gpt" and tokenizer.n_vocab == 11
    assert tokenizer.encode("The Het. θ") == [9, 3, 4, 6, 7, 0]
    assert tokenizer.decode([9, 3, 4, 6, 7]) == "the het ."
    assert tokenizer.encode_with_offsets("The θt")[1] == [(0, 3), (4, 5), (5, 6)]


def test_tables_of_ranks(gpt2: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "own.tiktoken"
    path.write_bytes(b"".join(base64.b64encode(t) + b" %d\n" % i for t, i in gpt2.model.vocabulary.items()))
    with pytest.raises(UsageError, match="316 ranks does not say how text is cut: give family="):
        read_tokenizer(path)
    tokenizer = read_tokenizer(tmp_path, "gpt2")
    assert tokenizer.encode(TEXT) == gpt2.encode(TEXT) and tokenizer.n_vocab == 316 and tokenizer.end is None
    assert Tokenizer.from_json(tokenizer.to_json()).encode(TEXT) == gpt2.encode(TEXT)


JSON = {
    "added_tokens": [], "normalizer": None, "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False},
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]},
}  # fmt: skip


def test_json_by_hand() -> None:
    model, added = read_json(json.dumps(JSON))
    assert model.encode("ab") == [2] and not added and model.family == FAMILIES["gpt2"]
    llama = {
        "model": {
            "type": "BPE", "unk_token": "<unk>", "byte_fallback": True, "fuse_unk": True,
            "vocab": {name: i for i, name in enumerate(["<unk>", *(f"<0x{i:02X}>" for i in range(256)), "▁", "a", "▁a"])},
            "merges": [["▁", "a"]],
        },
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ]},
    }  # fmt: skip
    tokenizer = Tokenizer.from_json(json.dumps(llama))
    assert tokenizer.encode("a  aé") == [259, 257, 259, 1 + 0xC3, 1 + 0xA9]
    assert tokenizer.decode(tokenizer.encode("a  aé")) == "a  aé"
    with pytest.raises(UsageError, match="no offsets"):
        tokenizer.encode_with_offsets("a")


@pytest.mark.parametrize(("change", "message"), [
    ({"model": {"type": "Unigram", "vocab": {}}}, "kind Unigram"),
    ({"model": {**JSON["model"], "vocab": {"a": 0, "b": 0, "ab": 2}}}, "share an id"),
    ({"model": {**JSON["model"], "vocab": {"a": 0, "b": -1, "ab": 2}}}, "the id of 'b' is -1"),
    ({"model": {**JSON["model"], "vocab": {"a": 0, "b": 2**60, "ab": 2}}}, "the id of 'b'"),
    ({"model": {**JSON["model"], "vocab": {"a": 0, "b": 1.5, "ab": 2}}}, "the id of 'b' is 1.5"),
    ({"model": {**JSON["model"], "merges": ["a c"]}}, "KeyError"),
    ({"model": {**JSON["model"], "merges": ["a b c"]}}, "ValueError"),
    ({"model": {**JSON["model"], "dropout": 0.1}}, "dropout"),
    ({"model": {**JSON["model"], "unk_token": "?"}}, "unknown token '\\?'"),
    ({"model": {**JSON["model"], "vocab": {"a": 0, "b": 1, "ab": 2, "中": 3}}}, "not made of bytes"),
    ({"normalizer": {"type": "Precompiled"}}, "normalizer Precompiled"),
    ({"pre_tokenizer": {"type": "Metaspace"}}, "pre-tokenizer Metaspace"),
    ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}}, "add_prefix_space"),
    ({"model": 3}, "no tokenizer.json"),
    ({"added_tokens": [{"id": 3}]}, "KeyError"),
])  # fmt: skip
def test_json_that_is_not_known_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps({**JSON, **change}))
    with pytest.raises(BadInput, match=message):
        read_tokenizer(tmp_path)


@pytest.mark.parametrize(("name", "content", "message"), [
    ("tokenizer.json", b"{", "no tokenizer.json"), ("tokenizer.json", b"[" * 100_000, "line 1 is not a token"),
    ("x.tiktoken", b"!!! 3\n", "line 1 is not a token in base64"), ("x.tiktoken", b"YQ== 1\nYg==\n", "line 2"),
    ("x.tiktoken", b"YQ== 1\nYg== 1\n", "share a rank"), ("x.tiktoken", b"YQ== 1\n", "no token for the byte 0"),
    ("x.tiktoken", b"YQ== -1\n", "rank -1"), ("x.tiktoken", b"\xff", "not UTF-8 text"),
    ("vocab.txt", b"the\n", r"no \[UNK\]"), ("tokenizer.json", b'{"model": ' * 9999 + b"1", "no tokenizer.json"),
])  # fmt: skip
def test_damaged_files_are_refused(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput, match=message):
        read_tokenizer(tmp_path / name)


def test_what_is_not_there_is_missing(tmp_path: Path) -> None:
    with pytest.raises(Missing, match="no such file or folder"):
        read_tokenizer(tmp_path / "no")
    with pytest.raises(Missing, match="no tokenizer in this folder"):
        read_tokenizer(tmp_path)


# Tokens for language models ------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Thirteen documents, of which two are for testing."""
    for i in range(13):
        path = tmp_path / "texts" / ("test" if i > 10 else "train") / f"{i:02}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(TEXTS[i % 4] + f" document {i} <|endoftext|>", newline="")
    return tmp_path / "texts"


def test_windows_of_tokens(folder: Path) -> None:
    of = f"text(path={str(folder)!r})"
    data, held_out = (tokens(split, of, vocabulary=290, length=17) for split in ("train", "test"))
    assert data.tokenizer.n_vocab == 290 and data.tokenizer.to_json() == held_out.tokenizer.to_json()
    texts = [path.read_text() for path in sorted((folder / "test").glob("*.txt"))]
    row = [
        i
        for text in texts
        for i in [*data.tokenizer.encode(text.replace("\r\n", "\n"), disallowed=()), data.tokenizer.end]
    ]
    rows = np.arange(len(held_out))
    batch = held_out.batch(rows, Draws(5, 5, rows))
    assert len(held_out) == (len(row) - 1) // 17 and batch["tokens"].shape == (len(rows), 18)
    for i, window in enumerate(batch["tokens"].tolist()):
        assert window == row[17 * i : 17 * i + 18]
    spelled = data.tokenizer.decode_bytes(i for i in row[1 : 17 * len(rows) + 1] if i != data.tokenizer.end)
    assert int(batch["bytes"].sum()) == len(spelled)

    rows = np.array([0, 3, len(data) - 1])
    a, b, c = (data.batch(rows, Draws(seed, epoch, rows))["tokens"] for seed, epoch in ((1, 0), (1, 0), (1, 1)))
    assert a.equal(b) and not a.equal(c) and a.shape == (3, 18)
    alone = data.batch(rows[1:2], Draws(1, 0, rows[1:2]))["tokens"]
    assert alone[0].equal(a[1])
    whole = data.ids.tolist()
    for place, window in zip(rows, a.tolist(), strict=True):
        assert any(window == whole[s : s + 18] for s in range(17 * place, 17 * place + 17))
    _, ends = encode_documents(of, "train", data.tokenizer, data.tokenizer.end)
    assert len(ends) == 11 and [whole[end - 1] for end in ends] == [data.tokenizer.end] * 11 and ends[-1] == len(whole)


def test_tokens_of_files_and_their_ends(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of = f"text(path={str(folder)!r})"
    (tmp_path / "tokenizer.json").write_text(fit(TEXTS, 280, special=("<s>", "<e>")).to_json())
    data = tokens("train", of, vocabulary=str(tmp_path), length=5)
    assert 278 not in data.ids and 279 not in data.ids  # none of its special tokens is known to end a text
    data = tokens("train", of, vocabulary=str(tmp_path / "tokenizer.json"), length=5, end="<e>")
    assert (data.ids == 279).sum() == 11
    for options, message in (({"end": "<x>"}, "special tokens are <s>, <e>"), ({"length": 0}, "at least one"),
                             ({"length": 10**6}, "too few for a window")):  # fmt: skip
        with pytest.raises(UsageError, match=message):
            tokens("train", of, vocabulary=str(tmp_path), **{"length": 5, **options})
    monkeypatch.setattr("jingdu.papers.language.bpe.windows.open_data", lambda *_: Tensors({"label": [0, 1]}))
    with pytest.raises(UsageError, match="digits has no text"):
        tokens("train", "digits")


def test_changed_bytes_of_the_cache_are_made_again(
    folder: Path, _own_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    of = f"text(path={str(folder)!r})"
    before = tokens("train", of, vocabulary=290, length=5)
    files = sorted(path for path in _own_cache.rglob("*") if path.is_file())
    assert [path.parent.name for path in files] == ["tokens", "vocabularies"]
    for path in files:
        for place in (3, 70, path.stat().st_size - 1):
            content = bytearray(path.read_bytes())
            content[place] ^= 4
            path.write_bytes(content)
            after = tokens("train", of, vocabulary=290, length=5)
            assert (before.ids == after.ids).all() and "its bytes have changed" in capsys.readouterr().err
    assert not capsys.readouterr().err
    (folder / "train" / "00.txt").write_text("something else " * 9)
    assert not np.array_equal(tokens("train", of, vocabulary=290, length=5).ids, before.ids)


# Through the engine and the command line -----------------------------------------------------------


def test_a_run_resumes_and_learns_what_fit_learns(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from jingdu.engine.training import Training

    (stage,) = jingdu.paper("bpe").load().recipes["paper"].stages
    stage = dataclasses.replace(
        stage, data=f"text(path={str(folder)!r})", batch_size=2, save_every=1, system="bpe.Learning(vocabulary=290)",
        networks={"model": "bpe(family='cl100k')"},
    )  # fmt: skip
    train(stage, tmp_path / "whole", device="cpu", quiet=True)
    advance = Training.advance

    def dying(self: Training) -> dict[str, Any]:
        if self.step == 3:
            raise RuntimeError("as a kill would")
        return advance(self)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "advance", dying)
        with pytest.raises(RuntimeError, match="kill"):
            train(stage, tmp_path / "cut", device="cpu", quiet=True)
    train(stage, tmp_path / "cut", device="cpu", quiet=True, resume=True)
    files = [newest_checkpoint(tmp_path / name) / "model.safetensors" for name in ("whole", "cut")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert read_log(tmp_path / "whole") == read_log(tmp_path / "cut")
    texts = [path.read_text() for path in sorted((folder / "train").glob("*.txt"))]
    wanted = fit(texts, 290, "cl100k")
    for found in (jingdu.create("bpe", weights=tmp_path / "whole"), read_tokenizer(tmp_path / "cut")):
        assert found.family.name == "cl100k" and _same(found, wanted)
    with pytest.raises(UsageError, match="257 tokens before anything is learnt"):
        Learning(jingdu.create("bpe"), 257)


def test_the_command_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(tmp_path / "R")
    words = ["train", "bpe", "--data", f"text(path={str(folder)!r})", "--out", run, "--quiet"]
    assert main([*words, "--system", "bpe.Learning(vocabulary=280)"]) == 0
    assert "round_trip 1" in capsys.readouterr().out
    assert main(["predict", "bpe", "low é<|endoftext|>", "--weights", run, "--special", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    found = row.get("data", row)
    assert found["ids"][-1] == 279 and found["count"] == len(found["ids"]) and found["round_trip"]
    written = tmp_path / "tokenizer.json"
    assert main(["predict", "bpe", "--weights", run, "--write", str(written)]) == 0
    assert str(written) in capsys.readouterr().out
    ids = " ".join(map(str, read_tokenizer(written).encode("lowest")))
    assert main(["predict", "bpe", ids, "--weights", str(written), "--decode"]) == 0
    assert "lowest" in capsys.readouterr().out
    for wrong, code in ((["x1", "--decode"], 2), (["999", "--decode"], 2), (["a\ud800"], 2)):
        assert main(["predict", "bpe", *wrong, "--weights", run]) == code
        capsys.readouterr()
    assert main(["predict", "bpe", "a", "--weights", str(folder)]) == 3
    assert "no tokenizer in this folder" in capsys.readouterr().err
    assert main(["eval", "bpe", "--weights", run, "--data", str(folder / "train" / "00.txt")]) == 0
    assert "bytes_per_token" in capsys.readouterr().out


def test_predictions_are_plain(gpt2: Tokenizer) -> None:
    shown, decoded = *predict(gpt2, ["low 👍"]), *predict(gpt2, ["3, 4"], decode=True)
    assert re.search(r"\d+ tokens, 8 bytes, 5 characters", shown.text) and "\\xf0" in shown.text
    assert json.loads(json.dumps(shown.data))["count"] == len(gpt2.encode("low 👍")) and decoded.text == "$%"
    assert Cut("a").keep == "all"
