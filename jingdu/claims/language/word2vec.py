"""The claim of `word2vec`: what subsampling frequent words is worth."""

import time
from typing import Any

import numpy as np

from jingdu.lab import Lab, Outcome, Test, claim
from jingdu.lab.style import PALETTE
from jingdu.papers.language.word2vec import (
    Word2Vec,
    fit,
    shipped_similarities,
    spearman,
    wikipedia,
)

WINDOW = 5


# The margins were set on 2026-11-26, before the first full run.
@claim(
    "Dropping occurrences of frequent words makes training faster, and the vectors no worse.",
    source="2013b, Sec. 2.3, Table 1",
    tests=(
        Test(
            "t=1e-4.seconds", "all words.seconds", below=0.7, ratio=True,
            about="training takes less than 0.7 of the time",
        ),
        Test(
            "t=1e-4.spearman", "all words.spearman", above=-0.02,
            about="cosines rank pairs of words as people do, no less well",
        ),
    ),
    seeds=3,
    minutes=1.5,
    about="440,000 words of Wikipedia (shipped by gensim for its own tests) in place of a billion of news, t = 1e-4 in place "
    "of 1e-5, and WordSim-353 in place of analogies, which need more text. Seconds are of the processor, so that other "
    "programs do not count.",
)  # fmt: skip
def subsampling(lab: Lab, seed: int) -> dict[str, dict[str, float]]:
    """Skip-gram with 5 noise words, with and without subsampling, otherwise alike."""
    text = [line.split() for page in wikipedia("train").fields["text"] for line in page.splitlines()]
    text = text[: lab.budget(full=len(text), smoke=300)]
    people, measured = shipped_similarities(), {}
    for name, sample in (("all words", 0.0), ("t=1e-4", 1e-4)):
        spent, ranks, resumed = [0.0], [], [time.process_time()]

        def look(
            network: Word2Vec, spent: list[float] = spent, ranks: list[float] = ranks, resumed: list[float] = resumed
        ) -> None:
            spent.append(spent[-1] + time.process_time() - resumed[-1])
            ranks.append(spearman(network, people)[0])
            resumed.append(time.process_time())  # looking costs nothing

        fit(text, seed=seed, epochs=lab.budget(full=10, smoke=2), lr=0.05, window=WINDOW, sample=sample, each=look)
        seconds = spent[1:]
        lab.curve(name, seconds, ranks, x="seconds of the processor", y="Spearman's correlation")
        measured[name] = {"seconds": seconds[-1], "spearman": ranks[-1]}
    return measured


@subsampling.figure
def draw_subsampling(figure: Any, outcome: Outcome) -> None:
    """Quality against time, one dot an epoch."""
    axes = figure.subplots()
    for (name, curves), colour in zip(outcome.curves.items(), PALETTE, strict=False):
        for xs, ys in curves:
            axes.plot(xs, ys, "-", color=colour, alpha=0.3, linewidth=1)
        xs, ys = (np.mean([curve[i] for curve in curves], axis=0) for i in (0, 1))
        axes.plot(xs, ys, "o-", color=colour, markersize=4, label=name.replace("t=1e-4", "subsampled, t = 1e-4"))
    axes.set_xlabel("seconds of the processor")
    axes.set_ylabel("correlation with people (WordSim-353)")
    axes.set_xlim(left=0)
    axes.legend(loc="lower right", title="one dot an epoch; thin lines are seeds")
