"""Elman's claims: bits, letters and words, from nothing but prediction of the next one."""

import re
from typing import Any

import numpy as np
import torch

from jingdu.data import Preprocess, open_data
from jingdu.data.draws import Draws
from jingdu.engine.contracts import Stage
from jingdu.lab import Lab, Outcome, Test, claim
from jingdu.lab.style import PALETTE
from jingdu.papers.language.rnn import LEXICON, read_corpus, xor
from jingdu.papers.language.rnn import recipes as rnn_recipes

BASE = rnn_recipes["laptop"].stages[0]

# The exclusive-or ---------------------------------------------------------------------------------

XOR = Stage(
    system="language_modelling", networks={"network": "rnn_xor"}, data="rnn.xor", batch_size=64, optimizer="adam",
    lr=5e-3, schedule="cosine", clip=1.0,
)  # fmt: skip


# Margins set on 2026-11-25, before the full run: 0.35 nats need the place within a triple as well as the exclusive-or
# (without the place the best is 0.41); nothing but the last bit gives 0.69.
@claim(
    "Read one after the other, the bits of an exclusive-or can be predicted where they can: at every third bit.",
    source="Fig. 3",
    tests=(
        Test("recurrent.third_bit", 0.35, below=0.0, about="the recurrent network's loss at every third bit, in nats"),
        Test("memoryless.third_bit", 0.69, above=-0.02, about="the same network, which sees only the last bit"),
    ),
    seeds=3,
    minutes=1.0,
    about="Sequences of 30 bits from a triple's start, 16 hidden units instead of two, gradients through time. With the "
    "paper's gradient of one step the same network is measured beside them.",
)  # fmt: skip
def exclusive_or(lab: Lab, seed: int) -> dict[str, dict[str, float]]:
    """Train on sequences, on single bits, and on sequences by the paper's gradient; loss by the place in the triple."""
    steps = lab.budget(full=1000, smoke=2)
    arms = {
        "recurrent": {"data": "rnn.xor"},
        "memoryless": {"data": "rnn.xor(count=200, length=1)"},
        "one-step gradient": {"data": "rnn.xor", "networks": {"network": "rnn_xor(truncate=1)"}},
    }
    tokens = xor("test", count=20_000 if not lab.smoke else 20).fields["tokens"]
    values = {}
    for name, changes in arms.items():
        network = lab.train(XOR, seed=seed, steps=steps, **changes).system.network
        with torch.no_grad():
            if name == "memoryless":
                nats = network(tokens[:, :-1].reshape(-1, 1), None, tokens[:, 1:].reshape(-1, 1))[0].view(
                    len(tokens), -1
                )
            else:
                nats, _ = network(tokens[:, :-1], None, tokens[:, 1:])
        by_place = nats.mean(0)
        lab.curve(name, range(2, tokens.shape[1] + 1), by_place, "bit", "loss (nats)")
        third = torch.arange(2, tokens.shape[1] + 1) % 3 == 0
        values[name] = {"third_bit": float(by_place[third].mean()), "other_bits": float(by_place[~third].mean())}
    return values


@exclusive_or.figure
def draw_bits(figure: Any, outcome: Outcome) -> None:
    """Figure 3: the loss of each bit, low at every third."""
    axes = figure.subplots()
    for (name, curves), colour in zip(outcome.curves.items(), PALETTE, strict=False):
        xs, mean = curves[0][0], np.mean([ys for _, ys in curves], 0)
        axes.plot(xs, mean, "o-", color=colour, markersize=3, label=name)
    axes.set_xticks(range(3, 31, 3))
    axes.set_ylim(0, 0.9)
    axes.set_xlabel("bit; every third is the exclusive-or of the two before it")
    axes.set_ylabel("loss (nats); a guess costs 0.69")
    axes.legend(loc="upper right", ncols=3, frameon=False)
    figure.suptitle(f"Exclusive-or in time: mean of {len(outcome.seeds)} seeds")


# Letters ------------------------------------------------------------------------------------------


def letters_and_starts() -> tuple[torch.Tensor, torch.Tensor]:
    """The test letters, and at which of them a word begins in the text with its spaces."""
    ids, _, _ = read_corpus("test", "pydoc_topics", "letters", None)
    data = open_data("pydoc_topics", "test", Preprocess())
    rows = np.arange(len(data))
    starts: list[bool] = []
    for text in data.batch(rows, Draws(0, 0, rows))["text"]:
        for word in re.findall("[a-z]+", text.lower()):
            starts += [True] + [False] * (len(word) - 1)
    return ids, torch.tensor(starts)


# Margin set on 2026-11-25, before the full run.
@claim(
    "A network that predicts letters without spaces errs most where words begin: its error shows the words.",
    source="Fig. 6",
    tests=(
        Test("letters.first", "letters.later", above=1.3, ratio=True, about="loss at words' first letters / at their later ones"),
    ),
    seeds=3,
    minutes=1.5,
    about="Letters of Python's help topics instead of 200 generated sentences; 128 hidden units, a softmax over 26 "
    "letters, gradients through 64 steps. Spaces were taken out and are known to the measurement alone.",
)  # fmt: skip
def word_boundaries(lab: Lab, seed: int) -> dict[str, dict[str, float]]:
    """Train on letters; compare the loss of held-out letters that begin a word with that of the others."""
    network = lab.train(BASE, seed=seed, steps=lab.budget(full=1000, smoke=2)).system.network
    ids, starts = letters_and_starts()
    count = lab.budget(full=len(ids), smoke=400)
    ids, starts = ids[None, :count], starts[1:count]
    with torch.no_grad():
        nats = network(ids[:, :-1], None, ids[:, 1:])[0][0]
    begin = int(starts.nonzero()[lab.budget(full=400, smoke=2)])  # an excerpt that begins with a word
    shown = slice(begin, begin + 60)
    lab.curve("letters", ids[0, 1:][shown].tolist(), nats[shown], "letter", "loss (nats)")
    lab.curve("starts", range(60), starts[shown].float())
    # Which place of a word: for the picture's second half
    place = torch.zeros(len(starts), dtype=torch.int64)
    for i in range(1, len(starts)):
        place[i] = 0 if starts[i] else place[i - 1] + 1
    means = [float(nats[place == p].mean()) for p in range(8)]
    lab.curve("by place", range(1, 9), means, "letter of the word", "loss (nats)")
    return {
        "letters": {
            "first": float(nats[starts].mean()),
            "later": float(nats[~starts].mean()),
            "all": float(nats.mean()),
        }
    }


@word_boundaries.figure
def draw_letters(figure: Any, outcome: Outcome) -> None:
    """Figure 6: the loss letter by letter; and its mean by the letter's place in the word."""
    top, bottom = figure.subplots(2, 1)
    ids, nats = outcome.curves["letters"][0]
    starts = outcome.curves["starts"][0][1]
    top.plot(nats, color="#BBBBBB", linewidth=1, zorder=1)
    for i, (letter, value, start) in enumerate(zip(ids, nats, starts, strict=True)):
        top.text(
            i, value, chr(ord("a") + int(letter)), ha="center", va="center", fontsize=9, zorder=2,
            color=PALETTE[1] if start else "black", weight="bold" if start else "normal",
            bbox={"boxstyle": "round,pad=0.1", "color": "white", "linewidth": 0},
        )  # fmt: skip
    top.set_xlim(-1, len(nats))
    top.set_ylim(0, max(nats) * 1.08)
    top.set_xticks([])
    top.set_ylabel("loss (nats)")
    top.set_title("held-out text, one seed: the first letter of each word is bold", fontsize=10)
    for xs, ys in outcome.curves["by place"]:
        bottom.plot(xs, ys, "o-", color=PALETTE[0], alpha=0.6)
    bottom.set_xlabel("letter of the word")
    bottom.set_ylabel("mean loss (nats)")
    bottom.set_ylim(0)
    first, later = (np.mean(outcome.values["letters"][name]) for name in ("first", "later"))
    bottom.set_title(
        f"{len(outcome.seeds)} seeds: {first:.2f} nats at first letters, {later:.2f} at later ones", fontsize=10
    )
    figure.suptitle("A network that has never seen a space finds the words")


# Words --------------------------------------------------------------------------------------------

NOUNS = {word for name, words in LEXICON.items() if name.startswith("NOUN") for word in words}
WORDS = Stage(
    system="language_modelling", networks={"network": "rnn_words"},
    data="rnn.windows(of='sentences', unit='words', length=15)", batch_size=32, optimizer="adam", lr=2e-3,
    schedule="cosine", clip=1.0,
)  # fmt: skip


def mean_states(network: Any) -> tuple[list[str], np.ndarray]:
    """Each word of the test sentences, and the mean of the hidden states right after it."""
    ids, _, symbols = read_corpus("test", "sentences", "words", None)
    with torch.no_grad():
        states = network.read(ids[None])[0][0]
    words = [word for word in symbols.symbols if not word.startswith("<")]
    return words, torch.stack([states[ids == symbols.index[word]].mean(0) for word in words]).double().numpy()


def trained_and_not(lab: Lab, seed: int) -> dict[str, tuple[list[str], np.ndarray]]:
    """Words and states before and after training."""
    found = {}
    for name, steps, lr in (("untrained", 1, 0.0), ("trained", lab.budget(full=800, smoke=2), WORDS.lr)):
        found[name] = mean_states(lab.train(WORDS, seed=seed, steps=steps, lr=lr).system.network)
    return found


# Margins set on 2026-11-25, before the full run, but after trials in which neighbours agreed in 97 to 100 % of cases, and in
# which the tree's first division, the paper's own measure (`word_tree` below), was another one: weaker evidence than a claim
# that was set blind. 18 of 29 words are nouns: random neighbours agree in 52 % of cases.
@claim(
    "Trained to predict the next word, hidden states of nouns lie by nouns and of verbs by verbs, which nobody told the network of.",
    source="Fig. 7",
    tests=(
        Test("trained.neighbours", 0.9, above=0.0, about="words whose nearest word is of their own class"),
        Test("trained.neighbours", "untrained.neighbours", above=0.15, about="against the same network before training"),
    ),
    seeds=3,
    minutes=1.0,
    about="The paper's grammar and lexicon, 10,000 sentences, 150 hidden units; gradients through 15 words, Adam. The states "
    "after each word are averaged over 1,000 other sentences.",
)  # fmt: skip
def word_classes(lab: Lab, seed: int) -> dict[str, dict[str, float]]:
    """Train on words; compare each word's class with that of the word whose mean state is nearest."""
    values = {}
    for name, (words, states) in trained_and_not(lab, seed).items():
        distances = np.linalg.norm(states[:, None] - states[None], axis=-1)
        np.fill_diagonal(distances, np.inf)
        same = [(words[i] in NOUNS) == (words[j] in NOUNS) for i, j in enumerate(distances.argmin(1))]
        centred = states - states.mean(0)
        axes = np.linalg.svd(centred, full_matrices=False)[2][:2]
        lab.curve(name, *(centred @ axes.T).T)
        values[name] = {"neighbours": float(np.mean(same))}
    return values


def vocabulary() -> list[str]:
    """The grammar's words in the order of their numbers."""
    return [word for word in read_corpus("train", "sentences", "words", None)[2].symbols if not word.startswith("<")]


@word_classes.figure
def draw_words(figure: Any, outcome: Outcome) -> None:
    """The words' mean states in their two main directions."""
    for axes, name in zip(figure.subplots(1, 2), ("untrained", "trained"), strict=True):
        xs, ys = outcome.curves[name][0]
        axes.scatter(xs, ys, s=0)
        for x, y, word in zip(xs, ys, vocabulary(), strict=True):
            axes.text(
                x, y, word, color=PALETTE[0] if word in NOUNS else PALETTE[1], ha="center", va="center", fontsize=8
            )
        axes.margins(0.12)
        axes.set_xticks([])
        axes.set_yticks([])
        share = np.mean(outcome.values[name]["neighbours"])
        axes.set_title(f"{name}: {100 * share:.0f} % lie by a word of their class")
    figure.suptitle("Hidden states after each word in two dimensions: nouns blue, verbs orange")


# 2026-11-25: a trial of one seed with 800 and 200 steps, and with the paper's gradient of one step, gave 0.65 to 0.83
# before the full run; the test stays as the paper puts it. Its full run with three seeds was inconclusive, all of them
# below the margin: six seeds since.
@claim(
    "The first division of the tree of hidden states is that of nouns and verbs.",
    source="Fig. 7",
    tests=(Test("trained.agreement", 0.9, above=0.0, about="words on the right side when the tree is cut into two"),),
    seeds=6,
    minutes=1.0,
    about="The networks of the claim word_classes; average linkage of the words' mean states.",
)
def word_tree(lab: Lab, seed: int) -> dict[str, dict[str, float]]:
    """Cluster the mean states after each word into two, before and after training."""
    from scipy.cluster.hierarchy import fcluster, linkage

    values = {}
    for name, (words, states) in trained_and_not(lab, seed).items():
        tree = linkage(states, "average")
        side = fcluster(tree, 2, "maxclust") == 1
        agree = float(np.mean([(word in NOUNS) == s for word, s in zip(words, side, strict=True)]))
        lab.curve(name, range(tree.size), tree.flatten())
        values[name] = {"agreement": max(agree, 1 - agree)}
    return values


@word_tree.figure
def draw_tree(figure: Any, outcome: Outcome) -> None:
    """Figure 7: the tree of the words' states, of the first seed."""
    from scipy.cluster.hierarchy import dendrogram

    for axes, name in zip(figure.subplots(1, 2), ("untrained", "trained"), strict=True):
        tree = np.array(outcome.curves[name][0][1]).reshape(-1, 4)
        dendrogram(
            tree, labels=vocabulary(), orientation="left", ax=axes, color_threshold=0,
            above_threshold_color="#666666", leaf_font_size=7,
        )  # fmt: skip
        for label in axes.get_yticklabels():
            label.set_color(PALETTE[0] if label.get_text() in NOUNS else PALETTE[1])
        axes.grid(False)
        share = np.mean(outcome.values[name]["agreement"])
        axes.set_title(f"{name}: {100 * share:.0f} % on the right side")
        axes.set_xlabel("distance of clusters")
    figure.suptitle("The tree of hidden states after each word (one seed): nouns blue, verbs orange")
