"""Claims of `ngram` (Chen and Goodman): smoothing methods on English and on code, by cross-entropy.

English is the text of Python's `pydoc` topics, each paragraph once (topics repeat each other's); code is 300
files of the standard library. A seed is a random split of paragraphs or files: 80 % to count, 10 % held out
for weights and discounts, 10 % to test. The vocabulary is closed on the counted part (words that occur
twice), and the same for all methods and sizes.
"""

from functools import cache
from typing import Any, Literal

import numpy as np

from jingdu.data import Preprocess, open_data
from jingdu.data.draws import Draws, permutation
from jingdu.lab import Lab, Test, claim
from jingdu.lab.style import PALETTE
from jingdu.papers.language.ngram import (
    NGram,
    close_vocabulary,
    count_ngrams,
    encode,
    growing_index,
    histories_of,
    sentences,
)

Corpus = Literal["english", "code"]
BEST = "modified-kneser-ney"


@cache
def documents(corpus: Corpus) -> list[list[list[str]]]:
    """The corpus as documents of sentences of words."""
    name, tokens = {"english": ("pydoc_topics", "prose"), "code": ("stdlib", "code")}[corpus]
    texts: list[str] = []
    for split in ("train", "test"):
        data = open_data(name, split, Preprocess())
        rows = np.arange(len(data))
        texts += data.batch(rows, Draws(0, 0, rows))["text"]
    if corpus == "english":
        texts = list(dict.fromkeys(paragraph.strip() for text in texts for paragraph in text.split("\n\n")))
    found = [sentences(text, tokens) for text in texts]
    return [document for document in found if document]


class Split:
    """A random split of a corpus: its vocabulary, and the words to count, to tune and to test, by number."""

    def __init__(self, lab: Lab, corpus: Corpus, seed: int):
        everything = documents(corpus)
        most = lab.budget(full=len(everything) if corpus == "english" else 300, smoke=60)
        chosen = [everything[i] for i in permutation(seed, 0, len(everything))[:most]]
        tenth = len(chosen) // 10
        parts = (chosen[2 * tenth :], chosen[:tenth], chosen[tenth : 2 * tenth])
        train, held_out, test = ([sentence for document in part for sentence in document] for part in parts)
        index = growing_index()
        numbers = encode(train, index)
        self.words, self.train = close_vocabulary(list(index), numbers, min_count=2)
        closed = {word: i for i, word in enumerate(self.words)}
        self.held_out, self.test = encode(held_out, closed), encode(test, closed)

    def bits(self, order: int, methods: dict[str, dict[str, Any]], share: float = 1.0) -> dict[str, float]:
        """Each method's cross-entropy on the test words, in bits a token, from the first `share` of the counted part."""
        ends = np.flatnonzero(self.train == 1)
        train = self.train[: ends[max(int(share * len(ends)) - 1, 0)] + 1]
        levels = count_ngrams(train, order, len(self.words) + 1)
        context = histories_of(self.test, order, len(self.words))
        found = {}
        for name, options in methods.items():
            model = NGram(order=order, **options).fit_tokens(self.words, train, self.held_out, levels)
            found[name] = float(-np.log2(model.probability(context, self.test)).mean())
        return found


def _methods(*names: str, **options: Any) -> dict[str, dict[str, Any]]:
    return {name: {"smoothing": name, **options} for name in names}


# Best at every size --------------------------------------------------------------------------------

OTHERS = {
    "baseline": {"smoothing": "jelinek-mercer", "buckets": "one"},
    "jelinek-mercer": {"smoothing": "jelinek-mercer", "buckets": "count"},
    "average-count": {"smoothing": "jelinek-mercer", "buckets": "average"},
    **_methods("additive", "katz", "witten-bell", "witten-bell-back-off", "absolute-discounting-back-off"),
    **_methods("kneser-ney-back-off"),
    **_methods("absolute-discounting", "kneser-ney", discount="held-out"),
}
"""Section 5's methods; `baseline` has one lambda an order, the other Jelinek-Mercer models buckets of them."""
METHODS = {**OTHERS, **_methods(BEST, discount="held-out"), "estimated": {"smoothing": BEST}}
SHARES = (1 / 64, 1 / 8, 1.0)
# 2026-11-24: the gap to the best other method, in bits a token and at the worst size, has one sign. A trial
# with estimated discounts came before; the tests are of discounts tuned on the same held-out text that the
# others' weights are tuned on, as in the paper's headline method. Estimated ones are measured beside them.
GAP_TESTS = (
    Test("bigram.worst_gap", 0.0, above=0.0, about="bigrams: lowest cross-entropy at every size"),
    Test("trigram.worst_gap", 0.0, above=0.0, about="trigrams: lowest cross-entropy at every size"),
)


def gaps(lab: Lab, seed: int, corpus: Corpus) -> dict[str, dict[str, float]]:
    """For each order, by how many bits modified Kneser-Ney is better than the best other method, at three sizes."""
    split, measured = Split(lab, corpus, seed), {}
    for order, name in ((2, "bigram"), (3, "trigram")):
        bits = [split.bits(order, METHODS, share) for share in SHARES]
        runner_up = [min(b[method] for method in OTHERS) for b in bits]
        measured[name] = {
            "worst_gap": min(other - b[BEST] for other, b in zip(runner_up, bits, strict=True)),
            "worst_gap_estimated": min(other - b["estimated"] for other, b in zip(runner_up, bits, strict=True)),
            **{f"gap_at_{share:.3g}": other - b[BEST] for share, other, b in zip(SHARES, runner_up, bits, strict=True)},
            **{f"bits_of_{method}": value for method, value in bits[-1].items()},
        }
        sizes = [share * len(split.train) for share in SHARES]
        for method in METHODS:
            over = [b[method] - b["baseline"] for b in bits]
            lab.curve(f"{name} {method}", sizes, over, x="training tokens", y="bits a token over baseline")
    return measured


@claim(
    "On English, modified Kneser-Ney has the lowest cross-entropy of all methods at every corpus size and order tried.",
    source="Sec. 5.1 of the long version",
    tests=GAP_TESTS,
    seeds=5,
    minutes=0.4,
    about="1,000 to 65,000 words; the paper goes to tens of millions.",
)
def best_on_english(lab: Lab, seed: int) -> dict[str, dict[str, float]]:
    return gaps(lab, seed, "english")


@claim(
    "On code, modified Kneser-Ney has the lowest cross-entropy of all methods at every corpus size and order tried.",
    source="Sec. 5.1 of the long version",
    tests=GAP_TESTS,
    seeds=5,
    minutes=1.0,
    about="15,000 to a million tokens of Python; files differ more from each other than parts of a news corpus do.",
)
def best_on_code(lab: Lab, seed: int) -> dict[str, dict[str, float]]:
    return gaps(lab, seed, "code")


LOOKS = {  # a colour for each idea: solid interpolates, dashed backs off, dotted sets its parameters otherwise
    "jelinek-mercer": (0, "-"), "average-count": (0, ":"), "katz": (6, "--"), "witten-bell": (3, "-"),
    "witten-bell-back-off": (3, "--"), "absolute-discounting": (5, "-"), "absolute-discounting-back-off": (5, "--"),
    "kneser-ney": (1, "-"), "kneser-ney-back-off": (1, "--"), BEST: (2, "-"), "estimated": (2, ":"),
}  # fmt: skip


def draw_sizes(figure: Any, outcome: Any) -> None:
    """Like the paper's figures: cross-entropy against training size, as a difference to the baseline."""
    for axis, order in zip(figure.subplots(1, 2, sharey=True), ("bigram", "trigram"), strict=True):
        for method, (colour, style) in LOOKS.items():
            curves = outcome.curves[f"{order} {method}"]
            xs, ys = (np.mean([curve[i] for curve in curves], axis=0) for i in (0, 1))
            label, width = method.replace("estimated", f"{BEST}, estimated"), 3 if method == BEST else 1.3
            axis.semilogx(xs, ys, style, color=PALETTE[colour], marker="o", markersize=3, label=label, linewidth=width)
        axis.axhline(0, color="grey", linewidth=0.5)
        axis.set_title(f"{order}s")
        axis.set_xlabel("training tokens")
    figure.axes[0].set_ylabel("bits a token over Jelinek-Mercer\nwith one weight")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize=7)


best_on_english.figure(draw_sizes)
best_on_code.figure(draw_sizes)

# The order of the methods --------------------------------------------------------------------------

CHAIN = {name: METHODS[name] for name in ("additive", "jelinek-mercer", "katz")} | _methods(BEST)
CHAIN_TESTS = (  # 2026-11-24, before the run
    Test("additive.perplexity", f"{BEST}.perplexity", above=1.10, ratio=True, about="add-1 is 10 % over modified KN"),
    Test("runner-up.perplexity", f"{BEST}.perplexity", above=1.01, ratio=True, about="the next best is 1 % over it"),
    Test("jelinek-mercer.perplexity", "katz.perplexity", above=1.0, ratio=True, about="Jelinek-Mercer is over Katz"),
    Test("additive.perplexity", "jelinek-mercer.perplexity", above=1.0, ratio=True, about="add-1 is over both"),
)


def chain(lab: Lab, seed: int, corpus: Corpus) -> dict[str, dict[str, float]]:
    """Trigram perplexities of four methods, discounts estimated, and of the best but modified Kneser-Ney."""
    bits = Split(lab, corpus, seed).bits(3, CHAIN)
    bits["runner-up"] = min(value for name, value in bits.items() if name != BEST)
    return {name: {"perplexity": 2.0**value} for name, value in bits.items()}


@claim(
    "On English trigrams modified Kneser-Ney beats Katz, Katz beats Jelinek-Mercer, and Jelinek-Mercer beats add-1.",
    source="Sec. 5.1 of the long version",
    tests=CHAIN_TESTS,
    seeds=5,
    minutes=0.1,
    about="65,000 words. In the paper too Katz falls behind Jelinek-Mercer where text is scarce.",
)
def ordering_on_english(lab: Lab, seed: int) -> dict[str, dict[str, float]]:
    return chain(lab, seed, "english")


@claim(
    "On code trigrams modified Kneser-Ney beats Katz, Katz beats Jelinek-Mercer, and Jelinek-Mercer beats add-1.",
    source="Sec. 5.1 of the long version",
    tests=CHAIN_TESTS,
    seeds=5,
    minutes=0.3,
    about="A million tokens of Python in place of news text.",
)
def ordering_on_code(lab: Lab, seed: int) -> dict[str, dict[str, float]]:
    return chain(lab, seed, "code")


def draw_bars(figure: Any, outcome: Any) -> None:
    """A bar for each arm's mean perplexity, a dot for each split; one panel a corpus."""
    names = [name for name in outcome.values if name != "runner-up"]
    corpora = sorted({name.partition(" ")[0] for name in names if " " in name}, reverse=True) or [""]
    panels = figure.subplots(1, len(corpora), squeeze=False)[0]
    for axis, corpus in zip(panels, corpora, strict=True):
        own = [name for name in names if name.startswith(corpus)]
        found = [outcome.values[name]["perplexity"] for name in own]
        places = range(len(own))
        axis.barh(places, [np.mean(values) for values in found], color="#BBD6EA")
        for place, values in zip(places, found, strict=True):
            axis.plot(values, [place] * len(values), "k.", markersize=4)
        axis.set_yticks(places, [name.removeprefix(f"{corpus} ") for name in own])
        axis.invert_yaxis()
        axis.grid(False, axis="y")
        axis.set_xlabel("test perplexity")
        axis.set_title(corpus)
        if max(map(np.mean, found)) > 5 * min(map(np.mean, found)):
            axis.set_xscale("log")
    figure.set_size_inches(4.2 + 4.2 * len(corpora), 1.4 + 0.35 * len(names) / len(corpora))


ordering_on_english.figure(draw_bars)
ordering_on_code.figure(draw_bars)

# Interpolation, and longer histories ---------------------------------------------------------------

DISCOUNTING = ("absolute-discounting", "kneser-ney", BEST)


@claim(
    "For the discounting methods interpolation beats back-off.",
    source="Sec. 5.2 of the long version",
    tests=tuple(  # 2026-11-24, before the run
        Test(
            f"{corpus} {method}-back-off.perplexity",
            f"{corpus} {method}.perplexity",
            above=1.0,
            ratio=True,
            about=f"{corpus}: {method} is worse with back-off",
        )
        for corpus in ("english", "code")
        for method in DISCOUNTING
    ),
    seeds=5,
    minutes=0.3,
    about="Trigrams. Back-off takes the same estimated discounts, and gives them to unseen words alone.",
)
def interpolation_beats_back_off(lab: Lab, seed: int) -> dict[str, dict[str, float]]:
    methods = _methods(*DISCOUNTING, *(f"{name}-back-off" for name in DISCOUNTING))
    measured = {}
    for corpus in ("english", "code"):
        bits = Split(lab, corpus, seed).bits(3, methods)
        measured |= {f"{corpus} {name}": {"perplexity": 2.0**value} for name, value in bits.items()}
    return measured


@claim(
    "With modified Kneser-Ney smoothing trigrams beat bigrams, and bigrams beat unigrams.",
    source="Sec. 5 of the long version",
    tests=tuple(  # 2026-11-24, before the run
        Test(
            f"{corpus} {shorter}.perplexity",
            f"{corpus} {longer}.perplexity",
            above=1.0,
            ratio=True,
            about=f"{corpus}: {longer}s beat {shorter}s",
        )
        for corpus in ("english", "code")
        for shorter, longer in (("unigram", "bigram"), ("bigram", "trigram"))
    ),
    seeds=5,
    minutes=0.3,
)
def longer_histories_help(lab: Lab, seed: int) -> dict[str, dict[str, float]]:
    measured = {}
    for corpus in ("english", "code"):
        split = Split(lab, corpus, seed)
        for order, name in enumerate(("unigram", "bigram", "trigram"), start=1):
            measured[f"{corpus} {name}"] = {"perplexity": 2.0 ** split.bits(order, _methods(BEST))[BEST]}
    return measured


interpolation_beats_back_off.figure(draw_bars)
longer_histories_help.figure(draw_bars)
