"""Claims of `nas`: what a search gains over drawing architectures at random, at an equal number of trained children.

576 small chains on scikit-learn's digits. The first claim reads the scores of all of them from the table that ships
with the paper (each was trained once); the others train their children.
"""

from functools import cache
from typing import Any

import numpy as np
import torch

from jingdu.lab import Lab, Outcome, Test, claim
from jingdu.papers.cnn.nas import (
    ALGORITHMS,
    Evaluator,
    Examples,
    Found,
    Table,
    Training,
    accuracy,
    digits_space,
    search,
    split_off,
    train_network,
)
from jingdu.papers.cnn.nas.digits import examples

SEARCHES: dict[str, dict[str, Any]] = {
    "random": {},
    "reinforce": {},
    "ageing": {"population": 20, "sample": 5},
    "genetic": {"population": 20, "tournament": 3, "elite": 4},
    "bayesian": {},
    "bananas": {},
}
NAMES = {
    "random": "random", "reinforce": "controller (REINFORCE)", "ageing": "ageing evolution", "genetic": "genetic",
    "bayesian": "Gaussian process", "bananas": "ensemble of networks",
}  # fmt: skip
ROUNDS, EVALUATIONS = 6, 100


def _run(name: str, space: Any, evaluate: Any, evaluations: int, seed: int) -> Found:
    return search(ALGORITHMS[name](space, seed=seed, **SEARCHES[name]), evaluate, evaluations)


# Set on 2026-11-26, before the first full run. The controller stands in a claim of its own: it needs more children.
@claim(
    "Evolution and Bayesian optimisation find better architectures than random search does with as many trained children.",
    source="AmoebaNet, Fig. 3; BANANAS, Fig. 3",
    tests=(
        Test("random.regret", "ageing.regret", above=0.0, about="ageing evolution's regret is lower"),
        Test("random.regret", "genetic.regret", above=0.0, about="the genetic algorithm's regret is lower"),
        Test("random.regret", "bayesian.regret", above=0.0, about="Bayesian optimisation's regret is lower"),
    ),
    seeds=5,
    minutes=3.0,
    about="576 chains of three convolutions on 240 digits, each trained once for 64 steps: the regret is what the best of "
    "100 evaluated ones lacks of the best of all, in validation accuracy. A seed is the mean of six searches, 30 in all.",
)
def sooner_than_random(lab: Lab, seed: int) -> dict[str, dict[str, float]]:
    """Six searches of each kind over the table: mean regret, and the test accuracy of what was found."""
    space = digits_space()
    table = Table.read(space)
    rounds, evaluations = lab.budget(full=(ROUNDS, EVALUATIONS), smoke=(1, 12))
    values = {}
    for name in SEARCHES:
        curves, tests = [], []
        for number in range(rounds):
            found = _run(name, space, table, evaluations, seed=1000 * seed + number)
            curves.append(found.regret(table.optimum))
            tests.append(table.test(found.best))
        mean = np.mean(curves, 0)
        lab.curve(name, range(1, evaluations + 1), mean, "architectures evaluated", "regret (validation accuracy)")
        values[name] = {
            "regret": float(mean[-1]),
            "regret_at_half": float(mean[evaluations // 2 - 1]),
            "test_error": 1 - float(np.mean(tests)),
            **{f"regret_{number}": float(curve[-1]) for number, curve in enumerate(curves)},
        }
    return values


def _sign_test(outcome: Outcome, name: str) -> tuple[int, int, float]:
    """Of all searches of a kind: how many have less regret than random search of the same seed, how many more, and p."""
    from scipy.stats import binomtest

    pairs = [
        (a, b)
        for measure in outcome.values[name]
        if measure.startswith("regret_") and measure != "regret_at_half"
        for a, b in zip(outcome.values[name][measure], outcome.values["random"][measure], strict=True)
    ]
    wins, losses = sum(a < b for a, b in pairs), sum(a > b for a, b in pairs)
    p = float(binomtest(wins, wins + losses, alternative="greater").pvalue) if wins + losses else 1.0
    return wins, losses, p


@sooner_than_random.figure
def draw_regret(figure: Any, outcome: Outcome) -> None:
    """The regret over evaluations, and where each search of each kind ended."""
    from jingdu.lab.style import PALETTE

    figure.set_size_inches(10.4, 4.8)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.05))
    for name, colour in zip(SEARCHES, ("#777777", *PALETTE), strict=False):
        curves = np.array([ys for _, ys in outcome.curves[name]])
        left.plot(np.arange(1, curves.shape[1] + 1), 100 * curves.mean(0), color=colour, label=NAMES[name])
    left.set_yscale("log")
    left.set_xlabel("architectures evaluated")
    left.set_ylabel("regret (points of validation accuracy)")
    left.set_title("mean of all searches")
    left.legend(fontsize=8.5)
    rng = np.random.default_rng(0)
    for place, (name, colour) in enumerate(zip(SEARCHES, ("#777777", *PALETTE), strict=False)):
        measures = [m for m in outcome.values[name] if m.startswith("regret_") and m != "regret_at_half"]
        ends = 100 * np.array([outcome.values[name][m] for m in measures]).ravel()
        right.scatter(ends, place + rng.uniform(-0.22, 0.22, len(ends)), s=16, color=colour, alpha=0.5, linewidths=0)
        right.plot([ends.mean()] * 2, [place - 0.3, place + 0.3], color=colour, linewidth=2.6)
    labels = ["random"]
    for name in list(SEARCHES)[1:]:
        wins, losses, p = _sign_test(outcome, name)
        labels.append(f"{NAMES[name]}\n{wins} better, {losses} worse, p = {p:.2g}")
    right.set_yticks(range(len(SEARCHES)), labels, fontsize=8.5)
    right.invert_yaxis()
    right.grid(axis="y", visible=False)
    right.set_xlabel("regret at the end (points)")
    right.set_title("each search; sign test against random")
    figure.suptitle("What is still to be gained after so many trained children")


# The margins (5 points on average; a lower regret) were set on 2026-11-26, before the first full run. A trial on other
# seeds, eight searches of each kind, had 0.8 against 1.1 points of regret after 100 children. 2026-11-26: the first test
# holds, the second is inconclusive; after some 60 children the controllers of this rate propose little that is new.
@claim(
    "A controller trained by REINFORCE comes to propose better architectures than random search, on average and at best.",
    source="Sec. 4.3, Fig. 6",
    tests=(
        Test("reinforce.late", "random.mean", above=0.05, about="accuracy of its last 100 proposals, on average"),
        Test("random.regret", "reinforce.regret", above=0.0, about="its regret after 100 children is lower"),
    ),
    seeds=5,
    minutes=2.0,
    about="The same table; 400 proposals of a controller that is updated after every four (the paper: 12,800), mean of six "
    "controllers a seed. Random search is without repetition, and 100 are a sixth of the space.",
)
def controller_learns(lab: Lab, seed: int) -> dict[str, dict[str, float]]:
    """What controllers propose over time, against what is drawn at random."""
    space = digits_space()
    table = Table.read(space)
    rounds, evaluations = lab.budget(full=(ROUNDS, 4 * EVALUATIONS), smoke=(1, 16))
    proposals, regrets = [], {"random": [], "reinforce": []}
    drawn = []
    for number in range(rounds):
        found = {
            name: _run(name, space, table, count, seed=1000 * seed + number)
            for name, count in (("random", evaluations // 4), ("reinforce", evaluations))
        }
        for name, regret in regrets.items():
            regret.append(found[name].regret(table.optimum)[evaluations // 4 - 1])
        proposals.append(found["reinforce"].scores)
        drawn.append(np.mean(found["random"].scores))
    mean = np.mean(proposals, 0)
    lab.curve("proposals", range(1, evaluations + 1), mean, "architectures evaluated", "validation accuracy")
    return {
        "random": {"mean": float(np.mean(drawn)), "regret": float(np.mean(regrets["random"]))},
        "reinforce": {
            "early": float(mean[: evaluations // 4].mean()),
            "late": float(mean[-evaluations // 4 :].mean()),
            "regret": float(np.mean(regrets["reinforce"])),
        },
    }


@controller_learns.figure
def draw_controller(figure: Any, outcome: Outcome) -> None:
    """What the controllers propose, and both tests."""
    from jingdu.lab.style import draw_test, smooth

    figure.set_size_inches(10.4, 4.6)
    grid = figure.add_gridspec(2, 2, width_ratios=(1.2, 1))
    left = figure.add_subplot(grid[:, 0])
    for i, (xs, ys) in enumerate(outcome.curves["proposals"]):
        left.plot(xs, 100 * smooth(ys, 20), color="#0072B2", alpha=0.35, linewidth=0.9, label=None if i else "a seed")
    mean = np.mean([ys for _, ys in outcome.curves["proposals"]], 0)
    left.plot(np.arange(1, len(mean) + 1), 100 * smooth(mean.tolist(), 20), color="#0072B2", label="controller, mean")
    level = 100 * float(np.mean(outcome.values["random"]["mean"]))
    left.axhline(level, color="#777777", linestyle=(0, (4, 3)), label="random, mean")
    left.set_xlabel("architectures evaluated")
    left.set_ylabel("validation accuracy of the proposals (%)")
    left.set_title("mean of the last 20 proposals")
    left.legend(loc="lower right")
    for row, judgement in enumerate(outcome.judgements):
        draw_test(figure.add_subplot(grid[row, 1]), outcome, judgement)
    figure.suptitle("A controller that is rewarded for accuracy")


# Live -----------------------------------------------------------------------------------------------

LIVE = ("random", "reinforce", "ageing", "genetic", "bayesian")


@cache
def _live(evaluations: int, steps: int, retrain: int, seed: int) -> dict[str, Any]:
    """Searches that train their children, on one split of the digits; a network that two of them ask for is trained once."""
    everything = examples("train")
    rest, valid = split_off(everything, share=600 / len(everything), seed=seed + 10)
    few, _ = split_off(rest, share=1 - 240 / len(rest), seed=seed + 20)
    how = Training(steps=steps, batch_size=16, lr=0.1, checks=1)
    evaluator = Evaluator(digits_space(), few, valid, how, seed)
    found = {name: _run(name, evaluator.space, evaluator, evaluations, seed) for name in LIVE}
    ranked = sorted(zip(found["random"].scores, found["random"].codes, strict=True))
    chosen = {name: found[name].best for name in LIVE} | {"median": ranked[len(ranked) // 2][1]}
    test, images = examples("test"), Examples(few.images, few.labels)
    errors: dict[str, float] = {}
    trained: dict[tuple[int, ...], Any] = {}
    for name, code in chosen.items():
        if code not in trained:
            # Three trainings each, so that the comparison is of architectures more than of first weights.
            networks = []
            for again in range(3):
                with torch.random.fork_rng(devices=[]):
                    torch.default_generator.manual_seed(100 * seed + again)
                    network = evaluator.space.build(code)
                train_network(network, images, Training(retrain, 16, 0.1, checks=1), seed=100 * seed + again)
                networks.append(network)
            trained[code] = networks
        errors[name] = 1 - float(np.mean([accuracy(network, test) for network in trained[code]]))
    return {
        "found": found,
        "errors": errors,
        "layers": {name: trained[code][0].layers for name, code in chosen.items()},
    }


def _values(lab: Lab, seed: int) -> dict[str, dict[str, float]]:
    live = _live(*lab.budget(full=(40, 48, 200), smoke=(4, 2, 2)), seed)
    values = {name: {"error": error} for name, error in live["errors"].items()}
    for name, found in live["found"].items():
        lab.curve(
            name, range(1, len(found.scores) + 1), found.best_so_far, "children trained", "best validation accuracy"
        )
        values[name]["best"] = max(found.scores)
    return values


# The margin (2 points of test error) was set on 2026-11-26, before the first full run. 2026-11-26: inconclusive: both
# intervals lie above nought and contain 2 points, which is more than "below the median's"; the margin stands.
@claim(
    "The architecture that a search finds has a lower test error than an ordinary one of the same space.",
    source="Sec. 4.1, Tab. 1",
    tests=(
        Test("median.error", "ageing.error", above=0.02, about="ageing evolution's winner is better"),
        Test("median.error", "bayesian.error", above=0.02, about="Bayesian optimisation's winner is better"),
    ),
    seeds=3,
    minutes=3.0,
    about="40 children of 576 trained on 240 digits, compared on 600; the winner, and the median of 40 random ones, are "
    "trained anew three times for 200 steps on the same 240 and tested on 450 others.",
)
def winner_beats_median(lab: Lab, seed: int) -> dict[str, dict[str, float]]:
    """Test errors of what each search found, and of the median architecture."""
    return _values(lab, seed)


@winner_beats_median.figure
def draw_winners(figure: Any, outcome: Outcome) -> None:
    """The test error of each search's winner and of the median, and the first seed's two architectures."""
    from jingdu.papers.cnn.nas import draw_chain

    figure.set_size_inches(10.4, 4.6)
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.25, 1, 1))
    order = ("median", *LIVE)
    for place, name in enumerate(order):
        errors = 100 * np.array(outcome.values[name]["error"])
        colour = "#D55E00" if name == "median" else "#777777" if name == "random" else "#0072B2"
        left.scatter(np.full(len(errors), place), errors, s=22, color=colour, alpha=0.6, linewidths=0)
        left.plot([place - 0.25, place + 0.25], [errors.mean()] * 2, color=colour, linewidth=2.6)
    left.set_xticks(range(len(order)), ["median", "random", "REINFORCE", "ageing", "genetic", "GP"], rotation=35)
    left.set_ylim(0, None)
    left.set_ylabel("test error after retraining (%)")
    left.set_title(f"each of {len(outcome.seeds)} seeds, and their mean")
    budget = (4, 2, 2) if outcome.smoke else (40, 48, 200)
    layers = _live(*budget, outcome.seeds[0])["layers"]
    draw_chain(middle, layers["median"], "the median of 40")
    draw_chain(right, layers["ageing"], "found by ageing evolution")
    figure.suptitle("What 40 trained children buy")


# Set on 2026-11-26, before the first full run. 2026-11-26: inconclusive: 40 children are too few for searches that draw
# the first 10 or 20 at random, and three seeds too few to tell. The table's 30 searches of 100 children tell them apart.
@claim(
    "Trained live, searches reach a higher validation accuracy than random search with the same 40 children.",
    source="AmoebaNet, Fig. 3",
    tests=(
        Test("ageing.best", "random.best", above=0.0, about="ageing evolution finds better"),
        Test("bayesian.best", "random.best", above=0.0, about="Bayesian optimisation finds better"),
    ),
    seeds=3,
    minutes=3.0,
    about="As before; 40 of 576 is little for a population of 20 to learn from.",
)
def live_beats_random(lab: Lab, seed: int) -> dict[str, dict[str, float]]:
    """The best validation accuracy of each search after its last child."""
    return _values(lab, seed)


@live_beats_random.figure
def draw_live(figure: Any, outcome: Outcome) -> None:
    """The best so far of each search."""
    from jingdu.lab.style import PALETTE, draw_test

    figure.set_size_inches(10.4, 4.6)
    grid = figure.add_gridspec(2, 2, width_ratios=(1.2, 1))
    left = figure.add_subplot(grid[:, 0])
    for name, colour in zip(LIVE, ("#777777", *PALETTE), strict=False):
        curves = 100 * np.array([ys for _, ys in outcome.curves[name]])
        left.plot(np.arange(1, curves.shape[1] + 1), curves.mean(0), color=colour, label=NAMES[name])
    left.set_xlabel("children trained")
    left.set_ylabel("best validation accuracy so far (%)")
    left.set_title(f"mean of {len(outcome.seeds)} seeds")
    left.legend(fontsize=8.5)
    for row, judgement in enumerate(outcome.judgements):
        draw_test(figure.add_subplot(grid[row, 1]), outcome, judgement)
    figure.suptitle("The same, trained live")
