"""GRU's claims: its score of a translation tells what counts cannot, and its unit does the LSTM's work with less."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import jingdu
from jingdu.data.catalogues import ENGLISH, catalogues
from jingdu.data.draws import Draws
from jingdu.engine import Stage
from jingdu.lab import Lab, Outcome, Test, claim
from jingdu.lab.style import PALETTE
from jingdu.names import Call
from jingdu.papers.language.gru import ROMANCE, encode_pairs, log_linear, log_probability, phrases, recipes
from jingdu.papers.language.lstm import adding
from jingdu.papers.language.lstm import recipes as lstm_recipes
from jingdu.speed.paired import alternate

# Re-ranking translations ----------------------------------------------------------------------------

BASE: Stage = recipes["laptop"].stages[0]
CANDIDATES = 10
LONGEST = 60
"""Characters of the messages that are ranked; those of training are as long as the recipe's."""
GRID = (0.0, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
"""Weights of the encoder-decoder's score that are tried."""
FLOOR = 1e-4
"""Probability of a word that never stood beside another."""

Question = tuple[str, list[str]]
"""An English message and its candidates, of which the first is its translation."""


@cache
def questions(language: str) -> list[Question]:
    """Held-out messages in this language: the others offered are other messages' translations, the nearest in length.

    Without that the length of a text alone would tell most of the wrong ones.
    """
    data = catalogues("test", (language,), longest=LONGEST)
    pairs = [(data.texts[m][ENGLISH], data.texts[m][language]) for m, _, _ in data.rows.tolist()]
    found = []
    for source, target in pairs:
        others = sorted({t for _, t in pairs} - {target}, key=lambda t: (abs(len(t) - len(target)), t))
        found.append((source, [target, *others[: CANDIDATES - 1]]))
    return found


@cache
def examples(language: str) -> list[tuple[str, str]]:
    """The training messages with their translations."""
    data = catalogues("train", (language,), longest=LONGEST)
    return [(data.texts[m][ENGLISH], data.texts[m][language]) for m, _, _ in data.rows.tolist()]


def by_phrases(language: str) -> Callable[[str, str], float]:
    """How often the phrase was translated so: what a phrase table holds. A message not seen in training has nothing."""
    counts = Counter(examples(language))
    sources = Counter(source for source, _ in examples(language))
    return lambda source, target: counts[source, target] / sources[source] if sources[source] else 0.0


def by_words(language: str, passes: int = 8) -> Callable[[str, str], float]:
    """The mean log-probability of a target's words from the source's by Brown et al.'s first model (1993), fitted by EM.

    It is the lexical weight that phrase tables have beside the frequencies (Koehn et al. 2003).
    """
    pairs = [(source.lower().split(), target.lower().split()) for source, target in examples(language)]
    table: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(lambda: 1.0))
    for _ in range(passes):
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        for source, target in pairs:
            for word in target:
                shares = [table[s][word] for s in source]
                for s, share in zip(source, shares, strict=True):
                    counts[s][word] += share / sum(shares)
        table = {s: {w: n / count.total() for w, n in count.items()} for s, count in counts.items()}

    def score(source: str, target: str) -> float:
        words, given = target.lower().split(), source.lower().split()
        logs = [math.log(max(sum(table.get(s, {}).get(w, 0.0) for s in given) / len(given), FLOOR)) for w in words]
        return sum(logs) / len(logs)

    return score


def by_encoder_decoder(network: nn.Module, symbols: Any, language: str, asked: Sequence[Question]) -> Tensor:
    """The network's log-probability of each candidate, by its symbols: [questions, candidates]."""
    sources = [source for source, candidates in asked for _ in candidates]
    targets = [target for _, candidates in asked for target in candidates]
    scores = []
    for first in range(0, len(sources), 200):
        part = slice(first, first + 200)
        batch = encode_pairs(symbols, sources[part], targets[part], [language] * len(sources[part]))
        with torch.no_grad():
            scores.append(log_probability(network, batch) / batch["mask"][:, 1:].sum(1))
    return torch.cat(scores).view(len(asked), -1)


def picks(scores: Tensor) -> Tensor:
    """Of each question, how probably the first candidate is picked: the best, or one of the equally good."""
    best = scores >= scores.max(1, keepdim=True).values - 1e-9
    return best[:, 0].double() / best.sum(1)


def with_best_weight(base: Tensor, feature: Tensor) -> tuple[Tensor, list[float]]:
    """Picks by base + weight * feature (Eq. 9), the weight of each half of the questions the best for the other half."""
    features, found, weights = torch.stack([base, feature], -1), torch.zeros(len(base)).double(), []
    even = torch.arange(len(base)) % 2 == 0
    for half in (even, ~even):
        tried = {w: picks(log_linear(features[~half], torch.tensor([1.0, w]).double())).mean().item() for w in GRID}
        weights.append(max(tried, key=tried.__getitem__))
        found[half] = picks(log_linear(features[half], torch.tensor([1.0, weights[-1]]).double()))
    return found, weights


def rank(lab: Lab, seed: int) -> dict[str, Tensor]:
    """Train the recipe's network; the picks of each way of scoring, all languages' questions one after the other."""
    smoke = {"networks": {"network": "gru_catalogues(hidden=8, embedding=6)"}, "batch_size": 8}
    run = lab.train(BASE, seed=seed, **lab.budget(full={}, smoke={"steps": 2, **smoke}))
    symbols = phrases("train", **Call.parse(BASE.data).arguments).tokenizer
    ways: dict[str, list[Tensor]] = {"phrases": [], "words": [], "encoder-decoder": []}
    for language in ROMANCE:
        asked = questions(language)[: lab.budget(full=None, smoke=4)]
        for name, score in (("phrases", by_phrases(language)), ("words", by_words(language, lab.budget(8, 1)))):
            rows = [[score(source, target) for target in candidates] for source, candidates in asked]
            ways[name].append(torch.tensor(rows, dtype=torch.float64))
        ways["encoder-decoder"].append(by_encoder_decoder(run.system.network, symbols, language, asked).double())
    scores = {name: torch.cat(parts) for name, parts in ways.items()}
    found = {name: picks(values) for name, values in scores.items()}
    found["words + encoder-decoder"], weights = with_best_weight(scores["words"], scores["encoder-decoder"])
    lab.curve("weights", (0, 1), weights)
    return found


def shares(lab: Lab, picked: dict[str, Tensor]) -> dict[str, dict[str, float]]:
    """Accuracy of each way, and its curve by the language."""
    for name, values in picked.items():
        sizes = [len(questions(language)[: lab.budget(full=None, smoke=4)]) for language in ROMANCE]
        lab.curve(name, range(len(ROMANCE)), [part.mean() for part in values.split(sizes)], "language", "accuracy")
    return {name: {"accuracy": float(values.mean())} for name, values in picked.items()}


ABOUT = (
    "Django's messages, from English into eight Romance languages, by characters; 580 held-out messages with ten candidates "
    "each: the translation, and nine other messages' translations into the same language that are nearest in length."
)


# Margin set on 2026-11-26, before the full run. The messages are held out, so no phrase table has any of them: the
# frequencies say nothing, and picking by them is chance, 10 %. `one_more_feature` has the baseline that does say something.
@claim(
    "The encoder-decoder's score finds the translation of phrases that were never seen, of which a phrase table says nothing.",
    source="Sec. 3.1, Sec. 4.1",
    tests=(
        Test("encoder-decoder.accuracy", "phrases.accuracy", above=0.1, about="translations found among ten candidates"),
    ),
    seeds=3,
    minutes=5.0,
    about=ABOUT + " A phrase table's frequencies are those of the training messages.",
)  # fmt: skip
def unseen_phrases(lab: Lab, seed: int) -> dict[str, dict[str, float]]:
    """Train the laptop recipe; how often the translation has the highest score."""
    picked = rank(lab, seed)
    return shares(lab, {name: picked[name] for name in ("phrases", "encoder-decoder")})


# Margin set on 2026-11-26, before the full run, but after a trial of one seed with 500 updates on messages of up to 60
# characters, in which 68 % became 75 %: weaker evidence than a claim that was set blind.
@claim(
    "As one more feature of a log-linear model, the encoder-decoder's score picks more of the right translations than the "
    "statistics of words alone.",
    source="Tab. 1",
    tests=(
        Test("words + encoder-decoder.accuracy", "words.accuracy", above=0.02, about="translations found among ten candidates"),
    ),
    seeds=3,
    minutes=5.0,
    about=ABOUT + " The other feature is a lexical weight: IBM Model 1 on the same training messages. The weight of the "
    "score is tuned on half of the questions for the other half. The paper measures BLEU of whole translations.",
)  # fmt: skip
def one_more_feature(lab: Lab, seed: int) -> dict[str, dict[str, float]]:
    """Train the laptop recipe; how often the translation has the highest score by words, and by both."""
    return shares(lab, rank(lab, seed))


def draw_accuracies(figure: Any, outcome: Outcome) -> None:
    """The share of translations found, in each language and in all of them."""
    axes = figure.subplots()
    names = list(outcome.values)
    places = np.arange(len(ROMANCE) + 1)
    for i, name in enumerate(names):
        by_language = np.mean([ys for _, ys in outcome.curves[name]], 0)
        heights = [*by_language, np.mean(outcome.values[name]["accuracy"])]
        width = 0.8 / len(names)
        axes.bar(
            places + (i - (len(names) - 1) / 2) * width, heights, width, color=PALETTE[i],
            label=f"{name}: {100 * heights[-1]:.0f} %",
        )  # fmt: skip
    axes.axhline(1 / CANDIDATES, color="grey", linewidth=0.8, linestyle=":", label="chance: 10 %")
    axes.axvline(len(ROMANCE) - 0.5, color="grey", linewidth=0.8)
    axes.set_xticks(places, [*ROMANCE, "all"])
    axes.set_ylim(0, 1)
    axes.set_ylabel("translations found")
    axes.legend(loc="upper center", ncols=3, frameon=False, fontsize=9)
    figure.suptitle(f"Which of ten is the translation? Held-out messages, mean of {len(outcome.seeds)} seeds")


unseen_phrases.figure(draw_accuracies)
one_more_feature.figure(draw_accuracies)


# The adding problem ---------------------------------------------------------------------------------

ADDING: Stage = lstm_recipes["adding"].stages[0]
LENGTH = 100
UNITS = {"lstm": "lstm_adding", "gru": "gru_adding"}


# Margins set on 2026-11-26, before the full run.
@claim(
    "A gated recurrent unit learns to add two numbers a hundred steps apart, as an LSTM of equal width does, with a quarter "
    "of the weights less.",
    source="Sec. 2.3",
    tests=(
        Test("gru.mse", 0.03, below=0.0, about="squared error; to answer the mean costs 0.167"),
        Test("gru.parameters", "lstm.parameters", below=0.7501, ratio=True, about="weights of the recurrent layers"),
    ),
    seeds=3,
    minutes=8.0,
    about="64 units each, on the adding problem of the LSTM's paper, by the recipe of the LSTM's claim. The LSTM's input "
    "gates start closed and its forget gates open; the unit's gates start as torch's do. The paper does not make this comparison in numbers.",
)  # fmt: skip
def add_with_fewer_weights(lab: Lab, seed: int) -> dict[str, dict[str, float]]:
    """Train both on the adding problem; squared error on 2,000 other sequences."""
    values = {}
    for name, network in UNITS.items():
        changes = lab.budget(full={}, smoke={"steps": 2, "data": "lstm.adding(length=6)"})
        run = lab.train(ADDING, seed=seed, networks={"network": network}, **changes)
        lines = [line for line in run.log if "gradient_norm" in line]
        lab.curve(name, [line["step"] for line in lines], [line["loss"] for line in lines], "update", "squared error")
        size = sum(p.numel() for p in run.system.network.recurrent.parameters())
        values[name] = {"mse": run.metrics["mse"], "parameters": size}
    return values


@add_with_fewer_weights.figure
def draw_learning(figure: Any, outcome: Outcome) -> None:
    """The squared error while they learn."""
    axes = figure.subplots()
    for (name, curves), colour in zip(outcome.curves.items(), PALETTE, strict=False):
        measured = outcome.values[name]
        for seed, (xs, ys) in enumerate(curves):
            smooth = np.convolve(ys, np.ones(25) / 25, "valid") if len(ys) >= 25 else np.array(ys)
            label = f"{name}, {measured['parameters'][0]:,.0f} weights: {np.mean(measured['mse']):.4f} in the end"
            axes.plot(
                np.array(xs)[-len(smooth) :], smooth, color=colour, linewidth=1.2, alpha=0.8,
                label=None if seed else label,
            )  # fmt: skip
    axes.axhline(1 / 6, color="grey", linewidth=0.8, linestyle=":", label="the mean's: 0.167")
    axes.set_ylim(0, 0.3)
    axes.set_xlabel("update")
    axes.set_ylabel("squared error of a batch (mean of 25)")
    axes.legend(loc="upper right")
    figure.suptitle(f"Adding two numbers in {LENGTH} steps, {len(outcome.seeds)} seeds")


WIDTHS = (32, 64, 128, 256)
LOOPS = {"": True, " by our scan": False}
"""Ways of going through time: torch's loop, which is what both papers' networks use, and our scan."""


# Margin set on 2026-11-26, before the full run: three quarters of the products would be 0.75. A first full run of the same day
# had torch's loop alone (it failed, at 1.88); the scan's times were added to show why, and decide nothing.
@claim(
    "A training step of a gated recurrent unit takes no more than 0.85 of the time of an LSTM's of equal width.",
    source="Sec. 2.3",
    tests=(
        Test("gru.seconds", "lstm.seconds", below=0.85, ratio=True, about="a step with 64 units, both by torch's loop"),
    ),
    seeds=3,
    minutes=1.5,
    about="64 sequences of 100 steps of the adding problem; the loss, its gradient and an update by Adam. The paper says that "
    "the unit is simpler to compute and does not time it. torch goes through an LSTM by oneDNN's kernels, which fuse a step "
    "and its gradient, and has none for a GRU: beside it are both by our scan, which is the same code for both cells.",
)  # fmt: skip
def step_time(lab: Lab, seed: int) -> dict[str, dict[str, float]]:
    """Time all in alternation; the median of each, by the number of units."""
    rows = np.arange(64)
    batch = adding("train", lab.budget(full=LENGTH, smoke=6)).batch(rows, Draws(seed, 0, rows))
    widths, rounds = lab.budget(full=(WIDTHS, 9), smoke=((64,), 1))
    times = []
    for width in widths:
        ways = {
            unit + loop: partial(_update, *_learner(variant, width, seed, kernels), batch)
            for loop, kernels in LOOPS.items()
            for unit, variant in UNITS.items()
        }
        times.append({name: float(np.median(seconds)) for name, seconds in alternate(ways, rounds, 2).items()})
    for name in times[0]:
        lab.curve(name, widths, [time[name] for time in times], "units", "seconds a step")
    return {name: {"seconds": seconds} for name, seconds in times[widths.index(64)].items()}


def _learner(variant: str, width: int, seed: int, kernels: bool) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    network = jingdu.create(variant, hidden=width)
    network.recurrent.use_kernels(kernels)
    return network, torch.optim.Adam(network.parameters(), 1e-3)


def _update(network: nn.Module, optimizer: torch.optim.Optimizer, batch: dict[str, Tensor]) -> None:
    optimizer.zero_grad()
    (network(batch["x"]) - batch["y"]).square().mean().backward()
    optimizer.step()


@step_time.figure
def draw_times(figure: Any, outcome: Outcome) -> None:
    """The gated unit's time by the LSTM's, by the number of units."""
    axes = figure.subplots()
    widths = outcome.curves["gru"][0][0]
    for (loop, kernels), colour in zip(LOOPS.items(), PALETTE, strict=False):
        pairs = zip(outcome.curves[f"gru{loop}"], outcome.curves[f"lstm{loop}"], strict=True)
        ratios = [np.divide(gru, lstm) for (_, gru), (_, lstm) in pairs]
        for each in ratios:
            axes.plot(widths, each, "o", color=colour, alpha=0.4)
        name = "torch's loop" if kernels else "our scan"
        axes.plot(widths, np.exp(np.mean(np.log(ratios), 0)), "-", color=colour, label=name)
    axes.axhline(0.85, color=PALETTE[2], linewidth=0.8, linestyle="--", label="the claim, at 64 units: 0.85")
    axes.axhline(0.75, color="grey", linewidth=0.8, linestyle=":", label="products: 0.75")
    axes.set_xscale("log", base=2)
    axes.set_xticks(widths, [f"{int(width)}" for width in widths])
    axes.set_ylim(0)
    axes.set_xlabel("units")
    axes.set_ylabel("time of a training step, GRU / LSTM")
    axes.legend(loc="lower right")
    figure.suptitle(f"How much quicker is a gated recurrent unit? {len(outcome.seeds)} measurements")
