"""The n-gram model: every smoothing is a distribution, counts are the text's, files and runs come back."""

import collections
import itertools
import json
import math
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import jingdu
from jingdu.cli import main
from jingdu.engine import read_log, train
from jingdu.engine.checkpoint import newest_checkpoint
from jingdu.errors import BadInput, Refused, UsageError
from jingdu.papers.language.ngram import (
    Counting,
    NGram,
    close_vocabulary,
    count_ngrams,
    encode,
    growing_index,
    held_out_weights,
    histories_of,
    join,
    predict,
    sentences,
)
from jingdu.papers.language.ngram.smoothing import Smoothing, katz_discounts, modified_discounts

TEXT = [
    "the",
    "cat",
    "sat",
    "on",
    "the",
    "mat",
    ".",
    "the",
    "dog",
    "sat",
    "on",
    "the",
    "log",
    ".",
    "a",
    "cat",
    "saw",
    "the",
    "dog",
    ",",
    "the",
    "dog",
    "saw",
    "a",
    "cat",
    ".",
]
CORPUS = [TEXT[:7], TEXT[7:14], TEXT[14:], ["the", "cat", "saw", "a", "log"], ["a", "dog"], ["sat", "on", "a", "mat"]]
METHODS = [name for name in get_args(Smoothing) if name != "arpa"]
PROPER = [name for name in METHODS if name != "stupid-back-off"]


def fitted(smoothing: str = "modified-kneser-ney", order: int = 3, **options: Any) -> NGram:
    return NGram(order, smoothing, min_count=1, tokens="spaces", **options).fit(CORPUS)


# Counting ------------------------------------------------------------------------------------------


@given(st.lists(st.lists(st.integers(0, 5), min_size=0, max_size=9), min_size=1, max_size=9), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_counts_are_those_of_a_counter(lines: list[list[int]], order: int) -> None:
    """Each order's n-grams, with n - 1 starts before a sentence and one end; continuations by their definition."""
    size, start = 9, 8
    tokens = np.array([w for line in lines for w in (*(2 + x for x in line), 1)], dtype=np.int64)
    levels = count_ngrams(tokens, order, size)
    padded = [[start] * (order - 1) + [2 + x for x in line] + [1] for line in lines]
    for k, level in enumerate(levels, start=1):
        wanted = collections.Counter(
            tuple(line[i - k + 1 : i + 1]) for line in padded for i in range(order - 1, len(line))
        )
        assert int(level.count.sum()) == len(tokens) and len(level.keys) == len(wanted)
        assert sorted(level.count.tolist()) == sorted(wanted.values())
        if k < order:
            longer = {tuple(line[i - k : i + 1]) for line in padded for i in range(order - 1, len(line))}
            left = collections.Counter(gram[1:] for gram in longer)
            expected = sorted(wanted[g] if start in g else left[g] for g in wanted)
            assert sorted(level.continuations.tolist()) == expected


def test_the_vocabulary_is_closed() -> None:
    index = growing_index()
    numbers = encode([["a", "b", "a", "<s>"], ["c", "a", "b"]], index)
    words, closed = close_vocabulary(list(index), numbers, min_count=2)
    assert words == ["<unk>", "</s>", "a", "b"]
    assert closed.tolist() == [2, 3, 2, 0, 1, 0, 2, 3, 1]
    assert histories_of(closed, 3, 4).tolist()[:5] == [[4, 4], [4, 2], [2, 3], [3, 2], [2, 0]]
    assert histories_of(closed, 3, 4).tolist()[5] == [4, 4]


def test_text_becomes_sentences() -> None:
    assert sentences("Dr. No is in. He waits!\n\nBye", "prose") == [
        ["Dr", "."], ["No", "is", "in", "."], ["He", "waits", "!"], ["Bye"],
    ]  # fmt: skip
    assert sentences("x == y[3.14]\nreturn", "code") == [["x", "==", "y", "[", "3.14", "]"], ["return"]]
    assert sentences("A b\nC", "spaces", "lower") == [["a", "b"], ["c"]]
    assert sentences("ab c", "characters") == [["a", "b", " ", "c"]]
    assert join(["f", "(", "x", ")", ",", "y"]) == "f (x), y" and join(list("a b"), "characters") == "a b"


# Smoothing -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("smoothing", PROPER)
def test_every_distribution_sums_to_one(smoothing: str, order: int) -> None:
    """After every history of words there are, seen or not, and after starts; `distribution` and `probability` agree."""
    model = fitted(smoothing, order)
    size = len(model.words)
    every = list(itertools.product([*range(0, size, 3), size], repeat=order - 1))
    for history in every[:: max(len(every) // 40, 1)]:
        p = model.distribution(np.array(history, dtype=np.int64))
        assert p.sum() == pytest.approx(1, abs=1e-9) and (p >= 0).all()
        repeated = np.repeat(np.array([history], dtype=np.int64).reshape(1, -1), size, axis=0)
        assert np.allclose(model.probability(repeated, np.arange(size)), p, rtol=1e-12, atol=1e-15)


@given(st.lists(st.lists(st.sampled_from("abcde"), min_size=1, max_size=6), min_size=1, max_size=8))
@settings(max_examples=30, deadline=None)
def test_any_text_can_be_smoothed(lines: list[list[str]]) -> None:
    """Scarce counts leave discounts undefined: the fall-backs still give distributions."""
    for smoothing in PROPER:
        model = NGram(3, smoothing, min_count=1, tokens="spaces").fit(lines)
        for history in ([0, 0], [len(model.words)] * 2, [len(model.words) - 1, 1]):
            assert model.distribution(np.array(history)).sum() == pytest.approx(1, abs=1e-9), smoothing


def _brute_kneser_ney(order: int, discount: float) -> Any:
    """Interpolated Kneser-Ney by its formula, on dictionaries."""
    padded = [["<s>"] * (order - 1) + line + ["</s>"] for line in CORPUS]
    grams = [[tuple(line[i - k + 1 : i + 1]) for line in padded for i in range(order - 1, len(line))]
             for k in range(1, order + 1)]  # fmt: skip
    words = sorted({w for line in CORPUS for w in line} | {"</s>", "<unk>"})

    def count(gram: tuple[str, ...]) -> int:
        k = len(gram)
        if k == order or gram[0] == "<s>":
            return grams[k - 1].count(gram)
        return len({longer for longer in grams[k] if longer[1:] == gram})

    def p(history: tuple[str, ...], word: str) -> float:
        lower = p(history[1:], word) if history else 1 / len(words)
        total = sum(count((*history, w)) for w in words)
        if total == 0:
            return lower
        types = sum(count((*history, w)) > 0 for w in words)
        return (max(count((*history, word)) - discount, 0) + discount * types * lower) / total

    return p


@pytest.mark.parametrize("order", [2, 3])
def test_kneser_ney_is_its_formula(order: int) -> None:
    model, p = fitted("kneser-ney", order, discount=0.6), _brute_kneser_ney(order, 0.6)
    for line in (CORPUS[0], CORPUS[3], ["log", "cat", "a", "the"]):
        padded = ["<s>"] * (order - 1) + line + ["</s>"]
        ours = model.score(" ".join(line)).log10
        theirs = [math.log10(p(tuple(padded[i - order + 1 : i]), padded[i])) for i in range(order - 1, len(padded))]
        assert np.allclose(ours, theirs, rtol=1e-12)


def test_modified_discounts_by_hand() -> None:
    """n1..n4 = 8, 4, 2, 1: Y = 1/2, D1 = 1 - 2Y n2/n1 = 1/2, D2 = 2 - 3Y n3/n2 = 5/4, D3+ = 3 - 4Y n4/n3 = 2."""
    count = np.repeat([1, 2, 3, 4], [8, 4, 2, 1])
    assert modified_discounts(count).tolist() == [0.5, 1.25, 2.0]
    assert modified_discounts(np.array([1, 1, 2])).tolist() == [0.5] * 3  # no n3: one D = n1 / (n1 + 2 n2)
    assert modified_discounts(np.array([7, 8])).tolist() == [0.5] * 3
    assert len(katz_discounts(np.array([1, 2]))) <= 1 and not len(katz_discounts(np.array([9])))


def test_katz_takes_good_turings_mass() -> None:
    """The discounted counts leave n1 / N to the unseen, where all counts are within k."""
    count = np.repeat([1, 2, 3, 4, 5, 6], [60, 25, 14, 9, 6, 4])
    d = katz_discounts(count)
    assert len(d) == 5
    lost = sum(number * r * (1 - d[r - 1]) for r, number in zip(range(1, 6), (60, 25, 14, 9, 6), strict=True))
    assert lost == pytest.approx(60)


def test_held_out_weights_are_the_best_ones() -> None:
    """Baum-Welch's lambdas: no other of a grid makes the held-out words more probable."""
    numbers = encode(CORPUS, index := growing_index())
    held_out = encode([["the", "cat", "sat"], ["a", "dog", "saw", "the", "log"]], index)
    levels = count_ngrams(numbers, 2, len(index) + 1)
    weights = held_out_weights(levels, held_out, "one", fewest=1)
    found = [w[-1] for _, w in weights]
    context = histories_of(held_out, 2, len(index))

    def likelihood(first: float, second: float) -> float:
        unigram = levels[0].count[np.searchsorted(levels[0].keys, held_out)] / levels[0].count.sum()
        p1 = first * unigram + (1 - first) / len(index)
        keys = levels[1].keys.tolist()
        rows = {int(h): i for i, h in enumerate(levels[1].histories)}
        total = 0.0
        for c, w, low in zip(context[:, 0], held_out, p1, strict=True):
            if int(c) not in rows:
                total += math.log(low)
                continue
            key = rows[int(c)] * levels[1].size + int(w)
            ml = levels[1].count[keys.index(key)] / levels[1].total[rows[int(c)]] if key in keys else 0.0
            total += math.log(second * ml + (1 - second) * low)
        return total

    best = likelihood(*found)
    grid = np.linspace(0.02, 0.98, 25)
    assert all(likelihood(a, b) <= best + 1e-4 for a in grid for b in grid)


def test_stupid_back_off_is_a_score() -> None:
    model = fitted("stupid-back-off")
    assert not model.normalised
    with pytest.raises(UsageError, match="scores and not probabilities"):
        model.perplexity(["the cat"])
    assert "log10_score" in model.evaluate(["the cat"])
    seen, unseen = model.score("the cat sat").log10, model.score("mat cat sat").log10
    assert 10 ** seen[1] == pytest.approx(2 / 3)  # after <s> the: cat twice, dog once
    assert unseen[1] < math.log10(0.4)


def test_perplexity_counts_the_end_and_not_the_start() -> None:
    model = fitted("additive", 1)
    counts = collections.Counter(w for line in CORPUS for w in (*line, "</s>"))
    size, total = len(model.words), sum(counts.values())
    text = ["the", "cat", "never"]
    logs = [math.log10((counts.get(w, 0) + 1) / (total + size)) for w in (*text, "</s>")]
    scores = model.score(" ".join(text))
    assert np.allclose(scores.log10, logs) and scores.known.tolist() == [True, True, False, True]
    assert scores.perplexity == pytest.approx(10 ** (-sum(logs) / 4))
    found = model.evaluate([" ".join(text)])
    assert found["oov_rate"] == pytest.approx(1 / 3) and found["perplexity"] == pytest.approx(scores.perplexity)
    assert found["bits_per_character"] == pytest.approx(-sum(logs) / math.log10(2) / len(" ".join(text)))


# Generation ----------------------------------------------------------------------------------------


def test_samples_follow_the_distribution() -> None:
    model, generator = fitted("modified-kneser-ney", 2), torch.Generator().manual_seed(3)
    first = collections.Counter(tuple(model.sample("the", 1, generator)) for _ in range(4000))
    p = model.distribution(model.history("the"))
    p[0] = 0
    p /= p.sum()
    for word, probability in zip(model.words[2:], p[2:], strict=True):
        assert first[(word,)] / 4000 == pytest.approx(probability, abs=0.03)
    assert model.sample("the", 5, torch.Generator().manual_seed(1)) == model.sample(
        "the", 5, torch.Generator().manual_seed(1)
    )


def test_beam_search_of_full_width_is_exhaustive() -> None:
    model = fitted("witten-bell", 2)
    found = model.beam_search("the", 2, beams=10_000)
    best, total = found[0]
    everything = {}
    for a in range(1, len(model.words)):
        log_a = model._speakable(model.history("the").tolist())[a]
        if a == 1:
            everything[()] = log_a
            continue
        for b in range(1, len(model.words)):
            words = (model.words[a],) + ((model.words[b],) if b > 1 else ())
            everything[(*words, "" if b > 1 else ".end")] = log_a + model._speakable([a])[b]
    assert total * math.log(10) == pytest.approx(max(everything.values()))
    assert [t for _, t in found] == sorted((t for _, t in found), reverse=True) and len(best) <= 2


# Files ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("smoothing", ["modified-kneser-ney", "katz", "jelinek-mercer", "witten-bell-back-off"])
def test_arpa_comes_back(smoothing: str, order: int, tmp_path: Path) -> None:
    model = fitted(smoothing, order)
    read = jingdu.create("ngram", weights=model.write_arpa(tmp_path / "m.arpa"), tokens="spaces")
    assert read.order == order and set(read.words) == set(model.words)
    for text in ("the cat sat on a log", "mat mat never the", "a"):
        assert np.allclose(read.score(text).log10, model.score(text).log10, atol=1e-12)
    again = NGram(tokens="spaces").read_file(read.write_arpa(tmp_path / "again.arpa"))
    assert np.allclose(again.score("the dog saw").log10, model.score("the dog saw").log10, atol=1e-12)


SMALL = "\\data\\\nngram 1=4\nngram 2=2\n\n\\1-grams:\n-99\t<s>\t-0.3\n-0.5\t</s>\n-0.4\ta\t-0.2\n-1.0\t<unk>\n\n\\2-grams:\n-0.1\t<s> a\n-0.6\ta </s>\n\n\\end\\\n"


def test_arpa_by_hand(tmp_path: Path) -> None:
    (tmp_path / "s.arpa").write_text("a comment\n" + SMALL)
    model = jingdu.create("ngram", weights=tmp_path / "s.arpa")
    assert np.allclose(model.score("a").log10, [-0.1, -0.6])
    assert np.allclose(model.score("a a").log10, [-0.1, -0.2 - 0.4, -0.6])
    assert np.allclose(model.score("b").log10, [-0.3 - 1.0, -0.5])


@pytest.mark.parametrize(("change", "message"), [
    (("ngram 2=2", "ngram 2=3"), "2 2-grams, where the header says 3"),
    (("\\end\\", ""), "the ARPA file is cut"),
    (("-0.1\t<s> a", "-0.1\t<s> b"), "line 12: the word 'b' of a 2-gram is not among the 1-grams"),
    (("-0.1\t<s> a", "x\t<s> a"), "line 12"),
    (("-0.1\t<s> a", "0.1\t<s> a"), "log10 of a probability is 0.1"),
    (("-0.6\ta </s>", "-0.6\t<s> a"), "listed twice"),
    (("\\data\\", "\\date\\"), r"none of its .* lines is"),
])  # fmt: skip
def test_damaged_arpa_files_say_where(change: tuple[str, str], message: str, tmp_path: Path) -> None:
    (tmp_path / "s.arpa").write_text(SMALL.replace(*change))
    with pytest.raises(BadInput, match=message):
        jingdu.create("ngram", weights=tmp_path / "s.arpa")


def test_what_does_not_fit_arpa_is_an_error(tmp_path: Path) -> None:
    for smoothing in ("additive", "stupid-back-off"):
        with pytest.raises(UsageError, match="cannot hold"):
            fitted(smoothing).write_arpa(tmp_path / "x.arpa")
    with pytest.raises(UsageError, match="counted nothing"):
        jingdu.create("ngram").score("the")
    with pytest.raises(Refused, match="cannot be written"):
        fitted().write_arpa(tmp_path / "no" / "x.arpa")


@pytest.mark.parametrize("options", [
    {"smoothing": "kneser"}, {"order": 0}, {"tokens": "words"}, {"added": 0.0}, {"discount": 1.5},
    {"smoothing": "katz", "discount": "held-out"}, {"buckets": "two"}, {"min_count": 0},
])  # fmt: skip
def test_wrong_options_are_named(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        jingdu.create("ngram", **options)


def test_nothing_to_count_is_an_error() -> None:
    with pytest.raises(UsageError, match="no text to count"):
        NGram().fit([])


# Through the engine and the command line -----------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve documents of one sentence a line."""
    (tmp_path / "texts").mkdir()
    for i in range(12):
        lines = [" ".join(CORPUS[(i + j) % len(CORPUS)]) for j in range(3)]
        (tmp_path / "texts" / f"{i:02}.txt").write_text("\n".join(lines))
    return tmp_path / "texts"


def test_a_run_resumes_and_counts_what_a_fit_counts(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dataclasses

    from jingdu.engine.training import Training

    (stage,) = jingdu.paper("ngram").load().recipes["paper"].stages
    stage = dataclasses.replace(
        stage, data=f"text(path={str(folder)!r})", batch_size=2, save_every=1,
        networks={"model": "ngram(tokens='spaces', min_count=1)"},
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
    model = jingdu.create("ngram", weights=tmp_path / "whole")
    names = sorted(folder.glob("*.txt"))
    kept = [name for name in names if model.score(name.read_text()).known.all()]
    assert len(kept) >= 10 and model.order == 3 and model.tokens == "spaces"
    assert jingdu.load(tmp_path / "cut").sizes == model.sizes


def test_counting_is_fit(folder: Path) -> None:
    texts = [path.read_text() for path in sorted(folder.glob("*.txt"))]
    counting = Counting(NGram(min_count=1, tokens="spaces"))
    for text in texts:
        counting.observe({"text": [text]}, 0)
    counting.end_pass(0)
    fit = NGram(min_count=1, tokens="spaces").fit([s for text in texts for s in sentences(text, "spaces")])
    assert counting.model.words == fit.words
    assert all(
        np.array_equal(a.probability, b.probability) for a, b in zip(counting.model.tables, fit.tables, strict=True)
    )


def test_the_command_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(tmp_path / "R")
    words = ["train", "ngram", "--preset", "paper", "--data", f"text(path={str(folder)!r})", "--out", run, "--quiet"]
    assert main([*words, "--override", "tokens=spaces", "min_count=1", "order=2"]) == 0
    assert "perplexity" in capsys.readouterr().out
    assert main(["predict", "ngram", "the cat", "--weights", run, "--tokens", "4", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert "continuation" in json.dumps(found) and "log10" in json.dumps(found)
    (tmp_path / "mine.txt").write_text("the cat sat on the mat .\nthe dog")
    assert main(["eval", "ngram", "--weights", run, "--data", str(tmp_path / "mine.txt")]) == 0
    assert "perplexity" in capsys.readouterr().out
    arpa = tmp_path / "m.arpa"
    assert main(["predict", "ngram", "--weights", run, "--arpa", str(arpa)]) == 0
    assert arpa.read_text().startswith("\\data\\") and str(arpa) in capsys.readouterr().out
    assert main(["predict", "ngram", "a dog", "--weights", str(arpa), "--tokens", "0"]) == 0
    assert "perplexity" in capsys.readouterr().out
    assert main(["predict", "ngram", "a", "--weights", run, "--temperature", "0"]) == 2
    assert "temperature 0" in capsys.readouterr().err
    (tmp_path / "no.arpa").write_text("hello")
    assert main(["predict", "ngram", "a", "--weights", str(tmp_path / "no.arpa")]) == 4
    assert "ARPA" in capsys.readouterr().err


def test_predictions_are_plain(capsys: pytest.CaptureFixture[str]) -> None:
    model = fitted()
    (scored,) = predict(model, ["the zebra"], tokens=0)
    assert "zebra?" in scored.text and "? unknown words" in scored.text and "continuation" not in scored.data
    assert json.loads(json.dumps(scored.data))["tokens"][1]["known"] is False
    (begun,) = predict(model, [], tokens=6, seed=2)
    (again,) = predict(model, [], tokens=6, seed=2)
    (beam,) = predict(model, ["the"], tokens=3, beams=4)
    assert begun.data == again.data and len(beam.data["continuation"]) > 0
