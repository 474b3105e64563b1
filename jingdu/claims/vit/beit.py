"""BEiT's claims, on moved digits: visual words before labels, and how they are hidden."""

from pathlib import Path
from typing import Any

from jingdu.engine import read_log
from jingdu.engine.contracts import Recipe, Stage
from jingdu.lab import Lab, Outcome, Test, claim
from jingdu.papers.vit.beit import DIGITS

SIZE, PATCH, LABELS = 20, 4, 300
STEPS, TUNING = 300, 200
RATE = 2e-3
"""Of the task, from nothing and from words alike."""


def _data(masking: str | None) -> str:
    return (
        f"beit.views(of='affine_digits(copies=1)', size={SIZE}, patch={PATCH}, channels=1, mirror=False, "
        f"masking={masking!r})"
    )


def _learning(lab: Lab, masking: str) -> tuple[Stage, Stage]:
    """Words by k-means, and a network that names them in the gaps."""
    words = Stage(
        name="tokenizer", method="fit", system=f"beit.Clustering(passes={lab.budget(full=5, smoke=2)})",
        networks={"tokenizer": "beit_codebook_mini"}, data=_data(None), batch_size=256,
    )  # fmt: skip
    reading = Stage(
        name="pre-training", system="beit.PreTraining(words_of='tokenizer')",
        networks={"network": "beit_mini_mim", "tokenizer": "beit_codebook_mini"}, data=_data(masking),
        preprocess=DIGITS, batch_size=64, steps=lab.budget(full=STEPS, smoke=2), optimizer="adamw", lr=3e-3,
        weight_decay=0.05, schedule="cosine(warmup=30)", clip=3.0,
    )  # fmt: skip
    return words, reading


def _naming(lab: Lab, system: str) -> Stage:
    """The ten digits, from 300 labelled ones, which are moved anew in every epoch."""
    copies = lab.budget(full=4, smoke=1)
    return Stage(
        name="fine-tuning", system=system, networks={"network": "beit_mini"},
        data=f"beit.few(of='affine_digits(size={SIZE}, copies={copies})', count={LABELS}, channels=1)", preprocess=DIGITS, batch_size=50,
        steps=lab.budget(full=TUNING, smoke=2), optimizer="adamw", lr=RATE, weight_decay=0.05,
        schedule="cosine(warmup=20)", clip=1.0,
    )  # fmt: skip


def _pretrained(lab: Lab, masking: str, seed: int) -> Any:
    last = _naming(lab, "beit.FineTuning(start='pre-training', layer_decay=0.75)")
    return lab.train(Recipe((*_learning(lab, masking), last), minutes=0.0, expect={}), seed=seed)


def _fillings(folder: Path) -> Any:
    """Five test digits: the image, what is seen, the gaps filled, and the image in words."""
    from random import Random

    import numpy as np

    import jingdu
    from jingdu.data import open_data
    from jingdu.data.draws import Draws
    from jingdu.data.images import page
    from jingdu.papers.vit.beit import fill, hide

    network = jingdu.create("beit_mini_mim", weights=folder)
    words = jingdu.create("beit_codebook_mini", weights=folder)
    rows = np.arange(5)
    images = open_data("affine_digits", "test", DIGITS).batch(rows, Draws(0, 0, rows))["image"]
    random = Random(0)
    masks = [hide(network.grid, random)[None] for _ in rows]
    found = [fill(network, image[None], mask, DIGITS, words) for image, mask in zip(images, masks, strict=True)]
    return page([one.pictures for one in found], side=80)


def _words(folder: Path) -> dict[str, float]:
    """Of the hidden patches of test digits: how many words were right, and the share of the most frequent one."""
    found = next(line["eval"] for line in reversed(read_log(folder)) if "eval" in line)
    return {"accuracy": 1 - found["word_error"], "chance": 1 - found["chance_error"]}


# The margin (2 points) was set on 2026-11-26, before the first full run. Tried before it, with one seed each: scenes of 24 pixels
# with one shape, clutter or plain ground, 300 and 400 steps. There 300 labels teach such a network nothing, with words or without
# (81 to 85 % error where chance is 87.5 %), so digits take their place. The same day, the full run, inconclusive: 72.4 % against
# 80.5 %, better under all three seeds, and their interval, 1.5 to 14.6 points, reaches below the margin, which stands.
@claim(
    "A network that first names the words of hidden patches learns a task from few labels better than one from nothing.",
    source="Tab. 1, Sec. 3.1",
    tests=(Test("scratch.error", "pretrained.error", above=0.02, about="pre-trained, the test error is lower"),),
    seeds=3,
    minutes=6.0,
    about="Moved digits of 20x20 pixels and a BEiT of 0.2 million weights in place of ImageNet and 87 million; 64 words of 2x2 "
    "pixels of a view of half the size, by k-means; 300 steps of 64 digits without labels; 200 steps of 50 out of 300 with labels, "
    "at the same rate for both, which decays by layer after pre-training.",
)
def words_before_labels(lab: Lab, seed: int) -> dict[str, dict[str, float]]:
    """Pre-train on digits without labels, then learn to name them from 300; and learn that from nothing."""
    run = _pretrained(lab, "blocks", seed)
    reading = run.folder / "pre-training"
    scratch = lab.train(_naming(lab, "beit.FineTuning"), seed=seed)
    for name, trained in (("pretrained", run), ("scratch", scratch)):
        steps = [line for line in trained.log if "loss" in line]
        lab.curve(name, [line["step"] for line in steps], [line["error"] for line in steps], "step", "training error")
    if seed == 0:
        lab.image("gaps", _fillings(reading))
    return {"pretrained": {"error": run.metrics["error"]}, "scratch": {"error": scratch.metrics["error"]}}


@words_before_labels.figure
def draw_words(figure: Any, outcome: Outcome) -> None:
    """What stands in the gaps of five digits, and the test errors."""
    from jingdu.lab.style import draw_dots, draw_image

    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    draw_image(
        left, outcome, "gaps", title="digit, what is seen of it, its words with\nthose named in the gaps, its own words"
    )
    draw_dots(right, outcome, {"scratch": "from nothing", "pretrained": "words first"}, "error", scale=100)
    right.set_ylabel("test error (%)")
    right.set_ylim(0, 100)
    right.set_title(f"{len(outcome.seeds)} seeds and their mean; chance is 90 %")
    figure.suptitle("Visual words before labels")


# The margin (5 times) was set on 2026-11-26, before the first full run, for words that are all rare. It was then seen that nearly
# half of the words of digits are the empty one, and five times that is more than all: the margin stands, and cannot be met here.
# It had been a test of words_before_labels, and became a claim of its own after that claim's first seed: as one, they fail.
@claim(
    "The network names the words of hidden patches at least five times as often as by always naming the most frequent one.",
    source="Sec. 2.3",
    tests=(Test("words.accuracy", "words.chance", above=5.0, ratio=True, about="words that are named right"),),
    seeds=3,
    minutes=4.0,
    about="The networks of the claim above. Nearly half of the words of digits are the empty one.",
)
def words_are_named(lab: Lab, seed: int) -> dict[str, dict[str, float]]:
    """Of the hidden patches of test digits: how many words were right, and the share of the most frequent one."""
    run = _pretrained(lab, "blocks", seed)
    steps = [line for line in read_log(run.folder / "pre-training") if "loss" in line]
    lab.curve("words", [line["step"] for line in steps], [line["loss"] for line in steps], "step", "loss (nats a word)")
    return {"words": _words(run.folder / "pre-training")}


@words_are_named.figure
def draw_names(figure: Any, outcome: Outcome) -> None:
    """How the loss fell, and how many words are right."""
    import numpy as np

    from jingdu.lab.style import PALETTE, smooth

    left, right = figure.subplots(1, 2)
    for (_, losses), colour in zip(outcome.curves["words"], PALETTE, strict=False):
        left.plot(np.arange(1, len(losses) + 1), smooth(losses, 9), color=colour)
    left.set_xlabel("step")
    left.set_ylabel("loss (nats a word), mean of 9 steps")
    left.set_title(f"{len(outcome.seeds)} seeds")
    names = {"chance": "the most frequent\nword for all", "accuracy": "named by\nthe network"}
    for place, name in enumerate(names):
        values = 100 * np.array(outcome.values["words"][name])
        right.scatter(np.full(len(values), place), values, color=PALETTE[place], s=30, alpha=0.6, linewidths=0)
        right.plot((place - 0.2, place + 0.2), (values.mean(),) * 2, color=PALETTE[place], linewidth=2.6)
        right.annotate(
            f"{values.mean():.1f}", (place, values.max()), xytext=(0, 6), textcoords="offset points", ha="center",
            color=PALETTE[place], weight="bold",
        )  # fmt: skip
    right.set_xticks(range(2), list(names.values()))
    right.set_xlim(-0.6, 1.6)
    right.set_ylim(0, 100)
    right.set_ylabel("words of hidden patches that are right (%)")
    figure.suptitle("Naming hidden words")


# The margin (1 point) was set on 2026-11-26, before the first full run.
@claim(
    "Blocks of hidden patches teach at least as much as scattered ones.",
    source="Tab. 4",
    tests=(
        Test(
            "scattered.error",
            "blocks.error",
            above=-0.01,
            about="after blocks the test error is not higher by more than a point",
        ),
    ),
    seeds=3,
    minutes=6.0,
    about="As in the first claim; both masks hide as many patches.",
)
def blocks_or_scattered(lab: Lab, seed: int) -> dict[str, dict[str, float]]:
    """Pre-train with either mask, then learn to name digits from 300 labels."""
    values = {}
    for masking in ("blocks", "scattered"):
        run = _pretrained(lab, masking, seed)
        values[masking] = {"error": run.metrics["error"], "words": _words(run.folder / "pre-training")["accuracy"]}
    if seed == 0:
        lab.image("masks", _masks())
    return values


def _masks() -> Any:
    """Six of either kind, in a row each."""
    from random import Random

    import torch
    import torch.nn.functional as F

    from jingdu.papers.vit.beit import hide

    random = Random(0)
    grid = (SIZE // PATCH,) * 2
    rows = [torch.cat([F.pad(1 - 0.6 * hide(grid, random, how=how).float(), (0, 1, 0, 1), value=1.0) for _ in range(6)], 1)
            for how in ("blocks", "scattered")]  # fmt: skip
    return torch.cat(rows, 0).repeat_interleave(8, 0).repeat_interleave(8, 1)


@blocks_or_scattered.figure
def draw_masks(figure: Any, outcome: Outcome) -> None:
    """Masks of either kind, and the test errors."""
    from jingdu.lab.style import draw_dots, draw_image

    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    draw_image(left, outcome, "masks", title="hidden patches: above in blocks, below scattered")
    draw_dots(right, outcome, {"scattered": "scattered", "blocks": "blocks"}, "error", scale=100)
    right.set_ylabel("test error (%) from 300 labels")
    right.set_title(f"{len(outcome.seeds)} seeds and their mean")
    figure.suptitle("How patches are hidden in pre-training")
