"""GPT's claims, on Python's standard library: read it, then tell from few examples which package a function is from."""

import dataclasses
from typing import Any

import numpy as np

from jingdu.engine.contracts import Stage
from jingdu.lab import Lab, Outcome, Test, claim
from jingdu.lab.style import PALETTE, QUIET
from jingdu.names import Call
from jingdu.papers.language.gpt import PACKAGES, recipes

SIZES = {"width": 128, "layers": 4, "spread": 0.06}
READING, TASK = (
    dataclasses.replace(stage, networks={"network": str(Call.parse(stage.networks["network"]).with_arguments(**SIZES))})
    for stage in recipes["laptop"].stages
)
"""The laptop recipe's stages, with the canon's million of weights."""
READING_STEPS, TASK_STEPS = 2000, 150
RATES = {"fine-tuned": 3e-4, "without-auxiliary": 3e-4, "frozen": 5e-3, "scratch": 1e-3}
"""Learning rates of the task: what was read must not be lost in a few large steps, what starts from nothing needs them."""
FEW = "bpe.tokens(of='pydoc_topics', vocabulary=300, length=64)"
"""Text for smoke runs."""
ARMS = {
    "fine-tuned": "pre-trained,\nfine-tuned",
    "without-auxiliary": "the same without\nthe second aim",
    "frozen": "pre-trained, one\nlinear layer learns",
    "scratch": "not\npre-trained",
}


def _task(fold: int, budget: int, **options: Any) -> Stage:
    """The laptop recipe's second stage on other labelled functions; `options` are of the system."""
    data = Call.parse(TASK.data).with_arguments(fold=fold)
    return dataclasses.replace(TASK, data=str(data), system=str(Call("gpt.FineTuning", options)), steps=budget)


# The margins (10 points; better than the probe; 1 point) are the canon's, dated 2026-11-25, before the first full run.
# 2026-11-26: weights that start wider and another learning rate, without which a network of this size had read nothing
# after 400 steps (its loss was that of single tokens), and so nothing could be shown; the margins stay. The first full run
# failed then: half a million weights that had read for 500 steps (4.9 nats a token) and were fine-tuned with steps of 1e-3
# erred in 71.4 %, those from nothing in 70.1 %. From 2026-11-26 on the canon's million of weights, 2,000 steps (3.4 nats),
# and the rates above, from a trial with the first seed; the margins stay. So 57.5 % against 64.6 %: the sign under two of
# three seeds. Logistic regression over the words of whole functions errs in 29 %: from 200 examples, the state of one last
# token is a poor way to find out which words occur, read before or not.
@claim(
    "A network that has read text without labels learns a task from few labelled examples far better than one that has not.",
    source="Table 5, Sec. 5",
    tests=(
        Test("fine-tuned.error", "scratch.error", below=-0.10, about="10 points fewer errors than from scratch"),
        Test("fine-tuned.error", "frozen.error", below=0.0, about="fewer errors than a linear layer on frozen states"),
        Test(
            "fine-tuned.error", "without-auxiliary.error", below=0.01,
            about="with the second aim at most 1 point more errors than without",
        ),
    ),
    seeds=3,
    minutes=25.0,
    about="A GPT of a million weights reads the standard library for 2,000 steps, then sees 200 functions, without names "
    "and comments, and which of eight packages each is from; it is tested on 240 functions of modules that it has not "
    "read. Chance errs in 87.5 %. Every arm takes the same 150 steps over the same functions, "
    "at a learning rate that suits it.",
)  # fmt: skip
def pre_training_helps(lab: Lab, seed: int) -> dict[str, dict[str, float]]:
    """One network that has read, four ways to learn the task."""
    steps = lab.budget(full=(READING_STEPS, TASK_STEPS), smoke=(2, 2))
    small = lab.budget(full={}, smoke={"networks": {"network": _narrow(READING)}, "batch_size": 32, "data": FEW})
    read = lab.train(READING, seed, steps=steps[0], **small)
    lab.curve("reading", *read.series("loss"), "step", "loss (nats a token)")
    start = str(read.folder)
    options: dict[str, dict[str, Any]] = {
        "fine-tuned": {"start": start},
        "without-auxiliary": {"start": start, "auxiliary": 0.0},
        "frozen": {"start": start, "auxiliary": 0.0, "frozen": True},
        "scratch": {},
    }
    values = {}
    for arm, chosen in options.items():
        stage = _task(seed, steps[1], **chosen)
        changes: dict[str, Any] = {"lr": RATES[arm]}
        if lab.smoke:
            data = Call.parse(stage.data).with_arguments(tokenizer=FEW, labelled=16, tested=16)
            changes |= {"networks": {"network": _narrow(stage)}, "batch_size": 4, "data": str(data)}
        run = lab.train(stage, seed, **changes)
        values[arm] = {"error": run.metrics["error"], "loss": run.metrics["loss"]}
        lab.curve(arm, *run.series("error"), "step", "training error")
    return values


def _narrow(stage: Stage) -> str:
    """The stage's network with a tenth of its width, for smoke runs."""
    return str(Call.parse(stage.networks["network"]).with_arguments(width=16, layers=1, heads=2))


@pre_training_helps.figure
def draw_errors(figure: Any, outcome: Outcome) -> None:
    """Errors of the four ways beside the loss while reading."""
    figure.set_size_inches(9.5, 4.2)
    left, right = figure.subplots(1, 2, width_ratios=(1.9, 1))
    for place, (arm, colour) in enumerate(zip(ARMS, (0, 5, 2, 1), strict=True)):
        errors = 100 * np.asarray(outcome.values[arm]["error"])
        left.bar(place, errors.mean(), width=0.62, color=PALETTE[colour], alpha=0.85)
        left.scatter(np.full(len(errors), place), errors, s=16, color="white", edgecolors=PALETTE[colour], zorder=3)
        left.annotate(
            f"{errors.mean():.0f} %", (place, errors.max()), xytext=(0, 5), textcoords="offset points", ha="center"
        )
    chance = 100 * (1 - 1 / len(PACKAGES))
    left.axhline(chance, color=QUIET, linewidth=1, linestyle=(0, (4, 3)))
    left.annotate("chance", (0.01, chance), xycoords=("axes fraction", "data"), va="bottom", color=QUIET)
    left.set_xticks(range(len(ARMS)), list(ARMS.values()))
    left.set(ylabel="test error (%)", ylim=(0, 100))
    left.grid(axis="x", visible=False)
    left.set_title("which package is this function from?")
    for xs, ys in outcome.curves["reading"]:
        right.plot(xs, ys, color=PALETTE[0], linewidth=0.8, alpha=0.5)
    right.set(xlabel="step", ylabel="loss (nats a token)")
    right.set_title("reading")
    figure.suptitle("Read first, then learn from 200 examples")
