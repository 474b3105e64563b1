"""MAE's claims: on handwritten digits what pre-training is worth, and which share to hide; and what seeing less saves."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

import jingdu
from jingdu.data import open_data
from jingdu.data.draws import Draws
from jingdu.data.images import normalise
from jingdu.lab import Lab, Outcome, Test, claim
from jingdu.lab.style import PALETTE, QUIET, draw_image
from jingdu.papers.vit.mae import DIGITS, recipes, view

READING, TUNING, PROBING = (recipes[f"laptop{part}"].stages[0] for part in ("", "-tuning", "-probing"))
STEPS, LABELS = 800, 100
SHARES = (0.25, 0.5, 0.75, 0.9)


def _read(lab: Lab, seed: int, masked: float) -> Any:
    """An autoencoder that has seen all training digits, without their labels."""
    stage = dataclasses.replace(READING, networks={"network": f"mae_mini(masked={masked})"})
    return lab.train(stage, seed, steps=lab.budget(full=STEPS, smoke=2))


def _tuned(lab: Lab, seed: int, start: str | None, decay: float) -> Any:
    """The classifier that learns from a few labelled digits, and what it begins with."""
    begin = "" if start is None else f"start={start!r}, "
    stage = dataclasses.replace(
        TUNING, data=f"mae.few_labels(of='digits', count={LABELS}, fold={seed}, size=16, channels=1)"
    )
    return lab.train(
        stage, seed, system=f"beit.FineTuning({begin}layer_decay={decay})", steps=lab.budget(full=TUNING.steps, smoke=2)
    )


def _show(lab: Lab, name: str, network: Any, masked: float, count: int) -> None:
    """A strip for the picture: test digits above, what is seen of them, and what is made of it."""
    rows = np.arange(0, 12 * count, 12)
    images = normalise(open_data("digits", "test", DIGITS).batch(rows, Draws(0, 0, rows))["image"], DIGITS)
    noise = torch.rand(count, 16, generator=torch.Generator().manual_seed(4))
    found = view(network.eval(), images, DIGITS, noise, masked)
    strips = [torch.nn.functional.pad(x[:, 0], (1, 1, 1, 1), value=1.0) for x in found[:3]]
    lab.image(name, torch.cat([strip.permute(1, 0, 2).flatten(1) for strip in strips]))


# Pre-training on scenes of 32x32 pixels was tried first, as little as fits here (2026-11-26): after 32,000 of them nothing
# was learned that helps, 83.6 % errors from 300 labels against 84.3 %. Digits of 16 patches ask for what is seen to be
# known: there one seed went from 50 % to 26 % errors, after 96,000 digits.
# The margin (3 points) is the canon's, dated 2026-11-26, before the first full run; its verdict is the first test, and a
# start from nothing at one rate was put beside it, which suits that better. The same day: three seeds gave 12.5 points
# [5.0, 20.0] at the same rates, and 10.6 [1.2, 20.0] at one rate, inconclusive; five seeds since. The margin stands.
@claim(
    "A network that was pre-trained to rebuild hidden patches learns a task from fewer labels than the same one from nothing.",
    source="Table 3, Sec. 4.1",
    tests=(
        Test(
            "from nothing.error", "pre-trained.error", above=0.03,
            about="3 points fewer errors than from nothing, at the same rates",
        ),
        Test(
            "from nothing, one rate.error", "pre-trained.error", above=0.03,
            about="and than from nothing with all layers at one rate",
        ),
    ),
    seeds=5,
    minutes=5.0,
    about="Networks of 0.1 million weights on scikit-learn's digits, at 16x16 pixels in 16 patches. One has rebuilt the 1,347 "
    "training digits from 4 patches each for 800 steps of 64, without labels. All learn from the same 100 labelled ones, "
    "120 steps of 50, and name the 450 test digits.",
)  # fmt: skip
def pretraining_helps(lab: Lab, seed: int) -> dict[str, dict[str, float]]:
    """Pre-train one network, fine-tune it, and the same from nothing with the decay of rates and without."""
    read = _read(lab, seed, 0.75)
    lab.curve("rebuilding", *read.series("loss"), "step", "loss of hidden patches")
    if seed == 0:
        _show(lab, "rebuilt", read.system.network, 0.75, 9)
    values = {}
    for name, start, decay in (
        ("pre-trained", str(read.folder), 0.75), ("from nothing", None, 0.75), ("from nothing, one rate", None, 1.0),
    ):  # fmt: skip
        run = _tuned(lab, seed, start, decay)
        lab.curve(name, *run.series("loss"), "step", "training loss (nats)")
        values[name] = {"error": run.metrics["error"]}
    return values


@pretraining_helps.figure
def draw_help(figure: Any, outcome: Outcome) -> None:
    """What it rebuilds, how all learn, and where they end."""
    from jingdu.lab.style import draw_curves, draw_dots

    figure.set_size_inches(10.5, 6.4)
    grid = figure.add_gridspec(2, 2, height_ratios=(1, 1.25))
    top = figure.add_subplot(grid[0, :])
    draw_image(top, outcome, "rebuilt", title="test digits; the quarter that is seen; what the network makes of it")
    left, right = figure.add_subplot(grid[1, 0]), figure.add_subplot(grid[1, 1])
    names = ("pre-trained", "from nothing", "from nothing, one rate")
    draw_curves(left, outcome, names, window=10)
    left.set_title(f"learning from {LABELS} labels")
    draw_dots(right, outcome, dict(zip(names, ("pre-trained", "from\nnothing", "from nothing,\none rate"), strict=True)),
              "error", scale=100)  # fmt: skip
    right.set_ylabel("errors on test digits (%)")
    right.set_ylim(0, 118 * max(map(max, (outcome.values[name]["error"] for name in names))))
    figure.suptitle("Rebuilding what is hidden teaches what a few labels cannot")


# The canon's verdict (25 % is not the best share) as a test of the paper's share against it, dated 2026-11-26, before the
# first full run. 2026-11-26: inconclusive. The probe is best at 75 %, as the paper's; fine-tuned, where the paper too finds a
# wide range good, 25 % has 2.0 points fewer errors in the mean [-0.8, 4.8], and 90 %, a single patch, is bad for both.
@claim(
    "Much is to be hidden: with 75 % of the patches hidden a network learns more than with 25 %, for fine-tuning and probes.",
    source="Fig. 5, Sec. 4.1",
    tests=(
        Test("75 %.error", "25 %.error", below=0.0, about="fine-tuned: fewer errors with 75 % hidden than with 25 %"),
        Test("75 %.probe_error", "25 %.probe_error", below=0.0, about="linear probe: fewer errors with 75 % than with 25 %"),
    ),
    seeds=3,
    minutes=6.0,
    about="The networks and digits of pretraining_helps. Of 16 patches 12, 8, 4 and 1 are seen (rounded down), for 800 steps "
    "each. Then fine-tuning on 100 labels, and a linear classifier of the frozen network's class token on all 1,347 labels, by "
    "LARS behind a batch norm, 100 steps of 256.",
)  # fmt: skip
def share_to_hide(lab: Lab, seed: int) -> dict[str, dict[str, float]]:
    """Pre-train with four shares hidden, and measure each network in two ways."""
    values = {}
    for share in SHARES:
        read = _read(lab, seed, share)
        if seed == 0:
            _show(lab, f"{share:.0%}", read.system.network, share, 4)
        system = f"beit.FineTuning(start={str(read.folder)!r}, fresh=('head',), frozen=True)"
        probe = lab.train(PROBING, seed, system=system, steps=lab.budget(full=100, smoke=2), lr=5.0)
        values[f"{100 * share:.0f} %"] = {
            "error": _tuned(lab, seed, str(read.folder), 0.75).metrics["error"], "probe_error": probe.metrics["error"],
        }  # fmt: skip
    return values


@share_to_hide.figure
def draw_shares(figure: Any, outcome: Outcome) -> None:
    """Both errors by share, as Figure 5; and what the networks rebuild."""
    figure.set_size_inches(10.5, 5.6)
    grid = figure.add_gridspec(2, 4, height_ratios=(1.5, 1))
    for place, (measure, title) in enumerate(
        (("error", f"fine-tuned on {LABELS} labels"), ("probe_error", "linear probe"))
    ):
        axes = figure.add_subplot(grid[0, 2 * place : 2 * place + 2])
        errors = 100 * np.array([outcome.values[f"{100 * share:.0f} %"][measure] for share in SHARES])
        axes.plot(range(4), errors, color="#BBBBBB", linewidth=1)
        axes.plot(range(4), errors.mean(1), color=PALETTE[place], marker="D", linewidth=2.5)
        for x, mean in enumerate(errors.mean(1)):
            axes.annotate(
                f"{mean:.1f}", (x, mean), xytext=(0, 10), textcoords="offset points", ha="center", color=PALETTE[place],
                weight="bold", bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
            )  # fmt: skip
        axes.set_xticks(range(4), [f"{share:.0%}" for share in SHARES])
        axes.set_ylim(0, 1.15 * errors.max())
        axes.set(xlabel="share of patches that is hidden", ylabel="test errors (%)", title=title)
    for place, share in enumerate(SHARES):
        axes = figure.add_subplot(grid[1, place])
        draw_image(axes, outcome, f"{share:.0%}", title=f"{share:.0%} hidden")
    figure.suptitle(
        f"How much to hide (grey: {len(outcome.seeds)} seeds; thick: their mean). Below: digits, what is seen, what is rebuilt"
    )


def _seconds(works: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """The shortest time of each piece of work; they take turns, so that none has the quieter moments."""
    best = dict.fromkeys(works, float("inf"))
    for _ in range(rounds):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            best[name] = min(best[name], time.perf_counter() - start)
    return best


# The encoder's margin is the canon's; that of the whole step (0.6, where Table 2 has 0.36 of a large encoder and eight
# blocks of the decoder) was set beside it on 2026-11-26, before the first full run.
@claim(
    "An encoder that sees the visible patches alone takes less than half of the time of one that sees mask tokens as well.",
    source="Table 1c, 2",
    tests=(
        Test(
            "visible alone.encoder", "with mask tokens.encoder", below=0.45, ratio=True,
            about="the encoder, forth and back: 0.45 of the time at most",
        ),
        Test("visible alone.step", "with mask tokens.step", below=0.6, ratio=True, about="a whole step: 0.6 at most"),
    ),
    seeds=3,
    minutes=0.7,
    about="An encoder of 6 blocks of width 192 and a decoder of one of 96 on 4 pictures of 224x224 pixels in 196 patches, of "
    "which 49 are visible: forward and backward, the shortest of some rounds in turns. Seeds draw weights and noise.",
)  # fmt: skip
def seeing_less_is_faster(lab: Lab, seed: int) -> dict[str, dict[str, float]]:
    """Time the encoder and a training step of both networks, and count their operations."""
    sizes = lab.budget(
        full={"width": 192, "depth": 6, "heads": 3, "decoder": (96, 1, 3)},
        smoke={"width": 24, "depth": 1, "heads": 2, "decoder": (24, 1, 2)},
    )
    torch.manual_seed(seed)
    images, noise = torch.randn(4, 3, 224, 224), torch.rand(4, 196)
    works: dict[tuple[str, str], Callable[[], Any]] = {}
    for name, where in (("visible alone", "decoder"), ("with mask tokens", "encoder")):
        network = jingdu.create("mae_pretrain_base", mask_tokens=where, **sizes)
        works[name, "encoder"] = lambda network=network: network.encode(images, noise)[0].square().sum().backward()
        works[name, "step"] = lambda network=network: network.loss(images, network(images, noise)).backward()
    values: dict[str, dict[str, float]] = {}
    for part in ("encoder", "step"):
        ours = {name: work for (name, kind), work in works.items() if kind == part}
        for name, work in ours.items():
            with FlopCounterMode(display=False) as counter:
                work()
            values.setdefault(name, {})[f"{part}_flops"] = float(counter.get_total_flops())
        for name, seconds in _seconds(ours, lab.budget(full=12, smoke=1)).items():
            values[name][part] = seconds
    return values


@seeing_less_is_faster.figure
def draw_time(figure: Any, outcome: Outcome) -> None:
    """Times and operations of both, as shares of those with mask tokens."""
    figure.set_size_inches(9.0, 3.6)
    axes = figure.subplots()
    rows = [("encoder", "the encoder: time"), ("encoder_flops", "the encoder: operations"), ("step", "a training step: time"),
            ("step_flops", "a training step: operations")]  # fmt: skip
    for place, (measure, _) in enumerate(rows):
        less, more = (np.asarray(outcome.values[name][measure]) for name in ("visible alone", "with mask tokens"))
        shares = 100 * less / more
        colour = PALETTE[0] if "flops" not in measure else PALETTE[5]
        axes.barh(place, shares.mean(), color=colour, height=0.62, alpha=0.85)
        axes.scatter(shares, np.full(len(shares), place), s=16, color="white", edgecolors=colour, zorder=3)
        axes.annotate(f"{shares.mean():.0f} %", (shares.max() + 1.5, place), va="center", weight="bold", color=colour)
    axes.axvline(100, color=QUIET, linestyle=(0, (4, 3)), linewidth=1.2)
    axes.annotate("with mask tokens in the encoder ", (100, 3.4), ha="right", va="center", color=QUIET, fontsize=9)
    axes.axvline(25, color=QUIET, linestyle=(0, (1, 3)), linewidth=1.2)
    axes.annotate(" a quarter of the patches", (25, -0.62), color=QUIET, fontsize=9, va="center")
    axes.set_yticks(range(4), [label for _, label in rows])
    axes.set_ylim(3.7, -0.9)
    axes.set_xlim(0, 108)
    axes.set_xlabel("of the same with mask tokens in the encoder (%)")
    axes.grid(axis="y", visible=False)
    figure.suptitle("What it saves to show the encoder the visible patches alone")
