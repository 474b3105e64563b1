"""N-gram probabilities against nltk.lm, with its padding and its one discount."""

import math
import random
from typing import Any

import numpy as np
import pytest

from jingdu.papers.language.ngram import (
    NGram,
    count_ngrams,
    encode,
    estimate,
    held_out_discounts,
    histories_of,
)

lm = pytest.importorskip("nltk.lm")

GENERATOR = random.Random(5)
WORDS = [f"w{i}" for i in range(23)]
CORPUS = [[GENERATOR.choice(WORDS[: 3 + i % 21]) for _ in range(1 + i % 13)] for i in range(60)]
TEST = [[GENERATOR.choice([*WORDS, "new"]) for _ in range(7)] for _ in range(11)]


def _theirs(kind: type, order: int, *arguments: Any, starts: bool = True, **options: Any) -> Any:
    """Their model over our padding: n - 1 starts and one end, and no n-gram that predicts a start.

    A start that is no word of the vocabulary is their <UNK>, as a history too.
    """
    model = kind(*arguments, order, **options)
    grams = []
    for line in CORPUS:
        padded = ["<s>"] * (order - 1) + line + ["</s>"]
        ends = range(order - 1, len(padded))
        grams.append([tuple(padded[i - k + 1 : i + 1]) for i in ends for k in range(1, order + 1)])
    words = [w for line in CORPUS for w in (*line, "</s>")]
    model.fit(grams, vocabulary_text=words + ["<s>"] * starts)
    return model


def _logs(model: Any, order: int) -> list[float]:
    found = []
    for line in TEST:
        padded = ["<s>"] * (order - 1) + [w if w in WORDS else "<UNK>" for w in line] + ["</s>"]
        for i in range(order - 1, len(padded)):
            p = model.unmasked_score(padded[i], padded[i - order + 1 : i])
            found.append(math.log10(p) if p else -math.inf)
    return found


def _ours(**options: Any) -> list[float]:
    model = NGram(min_count=1, tokens="spaces", **options).fit(CORPUS)
    return [value for line in TEST for value in model.score(" ".join(line)).log10]


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("added", [1.0, 0.3])
def test_additive_is_lidstone_and_laplace(order: int, added: float) -> None:
    """V is without the start, so that in their histories a start is an <UNK>: those with unknown words are left out."""
    laplace = added == 1.0
    theirs = _theirs(*((lm.Laplace, order) if laplace else (lm.Lidstone, order, added)), starts=False)
    ours = _ours(order=order, smoothing="additive", added=added)
    compared = 0
    for line in TEST:
        padded = ["<UNK>"] * (order - 1) + [w if w in WORDS else "<UNK>" for w in line] + ["</s>"]
        for i, place in enumerate(range(order - 1, len(padded))):
            history = padded[place - order + 1 : place]
            if "<UNK>" not in history[max(order - 1 - i, 0) :] and (order == 1 or theirs.counts[tuple(history)]):
                expected = math.log10(theirs.unmasked_score(padded[place], tuple(history)))
                assert ours[TEST.index(line) * 8 + i] == pytest.approx(expected, rel=1e-12)
                compared += 1
    assert compared > (70 if order < 3 else 15)


def test_maximum_likelihood() -> None:
    ours, theirs = _ours(order=1, smoothing="maximum-likelihood"), _logs(_theirs(lm.MLE, 1), 1)
    assert np.allclose(ours, theirs, rtol=1e-12) and -math.inf in ours


@pytest.mark.parametrize(("smoothing", "kind", "order", "discount"), [
    ("witten-bell", lm.WittenBellInterpolated, 2, None),
    ("witten-bell", lm.WittenBellInterpolated, 3, None),
    ("absolute-discounting", lm.AbsoluteDiscountingInterpolated, 2, 0.1),
    ("absolute-discounting", lm.AbsoluteDiscountingInterpolated, 3, 0.75),
    ("kneser-ney", lm.KneserNeyInterpolated, 2, 0.1),
    ("kneser-ney", lm.KneserNeyInterpolated, 2, 0.75),
])  # fmt: skip
def test_interpolated_models(smoothing: Any, kind: type, order: int, discount: float | None) -> None:
    """Theirs end in unigrams as they are, where ours end in 1/V; words without a unigram are left out."""
    model = NGram(order, smoothing, min_count=1, tokens="spaces").fit(CORPUS)
    levels = count_ngrams(encode(CORPUS, model.index), order, len(model.words) + 1)
    discounts = None if discount is None else [np.array([discount])] * order
    model.tables = estimate(levels, smoothing, discounts=discounts, lowest="unigram")
    ours = [value for line in TEST for value in model.score(" ".join(line)).log10]
    theirs = _logs(_theirs(kind, order, **({} if discount is None else {"discount": discount})), order)
    compared = [(a, b) for a, b in zip(ours, theirs, strict=True) if b > -math.inf]
    assert len(compared) > 60
    assert np.allclose(*zip(*compared, strict=True), rtol=1e-9)


def test_held_out_discounts_are_a_minimum() -> None:
    """No other discount of a grid gives the held-out text a higher probability."""
    model = NGram(2, "kneser-ney", min_count=1, tokens="spaces").fit(CORPUS)
    levels = count_ngrams(encode(CORPUS, model.index), 2, len(model.words) + 1)
    tokens = encode(TEST, model.index)
    context = histories_of(tokens, 2, len(model.words))

    def loss(*discounts: float) -> float:
        model.tables = estimate(levels, "kneser-ney", discounts=[np.array([d]) for d in discounts])
        return float(-np.log(model.probability(context, tokens)).mean())

    best = loss(*(float(d[0]) for d in held_out_discounts(levels, tokens, "kneser-ney")))
    assert all(loss(a, b) >= best - 1e-6 for a in np.linspace(0.05, 0.95, 10) for b in np.linspace(0.05, 0.95, 10))
