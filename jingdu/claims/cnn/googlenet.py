"""GoogLeNet's claims, on little worlds of coloured shapes."""

from typing import Any

import numpy as np

from jingdu.engine.contracts import Stage
from jingdu.lab import Lab, Outcome, Test, claim
from jingdu.papers.cnn.googlenet import SCENES

STEPS = 900
ABOUT = (
    "Which of eight shapes is seen, in 4,000 scenes of one shape and 48x48 pixels, other ones under each seed; 900 steps of "
    "SGD with 64 images under one cycle of rates up to 0.03. GoogLeNet's channels are an eighth of Table 1's, with batch norms."
)


def _scenes(lab: Lab, seed: int) -> str:
    count, test_count = lab.budget(full=(4000, 1000), smoke=(160, 40))
    return (
        f"scenes(max_shapes=1, background='gradient', fields=('image', 'label'), count={count}, "
        f"test_count={test_count}, seed={seed})"
    )


def _error(lab: Lab, seed: int, network: str) -> dict[str, float]:
    """Test error of a network, its weights, and the multiplications of one picture."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    stage = Stage(
        networks={"network": network},
        data=_scenes(lab, seed),
        preprocess=SCENES,
        augment=("random_crop", "flip"),
        batch_size=64,
        steps=lab.budget(full=STEPS, smoke=2),
        lr=0.03,
        schedule="onecycle(rise=0.15)",
        weight_decay=1e-4,
    )
    run = lab.train(stage, seed=seed)
    model = run.system.network
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, SCENES.size, SCENES.size))
    xs, ys = run.series("error")
    lab.curve(network, xs, ys, "step", "training error")
    weights = sum(p.numel() for p in model.parameters())
    return {"error": run.metrics["error"], "weights": float(weights), "multiplications": counter.get_total_flops() / 2}


# The margins of both claims were set on 2026-11-26, before the first full run. One seed beforehand with cluttered scenes of
# 64x64 pixels, 400 steps and no fewer than 4 channels, not 8, in a branch: errors of 44 % for GoogLeNet, which was still
# falling, 31 for AlexNet, 8 for the twin of single branches; so the scenes are simpler since. One more at a rate of 0.1, at which
# GoogLeNet unlearned what it had learned (82 %), AlexNet had 42, the twin 22; so all have AlexNet's rate since. The first full
# runs had 300 steps, after which GoogLeNet was still falling: 61 % against AlexNet's 28 and the twin's 20, inconclusive both;
# 900 steps from 2026-11-26 on, the margins as they were. Then two seeds of GoogLeNet err in 13 % and one stays at 61, while
# AlexNet and the twin have learned all: with an eighth of its channels, some branches are 4 wide behind 22 layers.
@claim(
    "GoogLeNet errs no more than AlexNet, with a sixth of the weights or fewer.",
    source="Sec. 1, Tab. 2",
    tests=(
        Test("GoogLeNet.error", "AlexNet.error", below=0.01, about="its test error is not higher by a point"),
        Test("AlexNet.weights", "GoogLeNet.weights", above=6.0, ratio=True, about="AlexNet has six times its weights"),
    ),
    seeds=3,
    minutes=6.0,
    about=ABOUT + " AlexNet is the narrow one of its own claim.",
)
def fewer_weights(lab: Lab, seed: int) -> dict[str, dict[str, float]]:
    """Train both alike."""
    return {
        "GoogLeNet": _error(lab, seed, "googlenet_scenes"),
        "AlexNet": _error(lab, seed, "alexnet_scenes(dropout=0.1)"),
    }


@claim(
    "One 3x3 convolution in place of each Inception block, with as many multiplications, does not err less.",
    source="Sec. 3, 4",
    tests=(
        Test("single 3x3.error", "GoogLeNet.error", above=-0.01, about="its test error is not lower by a point"),
        Test(
            "single 3x3.multiplications", "GoogLeNet.multiplications", above=0.9, ratio=True,
            about="it multiplies as often, within a tenth",
        ),
    ),
    seeds=3,
    minutes=4.0,
    about=ABOUT + " The twin has a 3x3 convolution with a batch norm for each block, as wide as multiplications allow.",
)  # fmt: skip
def branches(lab: Lab, seed: int) -> dict[str, dict[str, float]]:
    """Train GoogLeNet and its twin of single branches alike."""
    return {
        "GoogLeNet": _error(lab, seed, "googlenet_scenes"),
        "single 3x3": _error(lab, seed, "googlenet_scenes(single=True)"),
    }


def _draw(figure: Any, outcome: Outcome, title: str) -> None:
    """Errors and costs at the left, learning at the right."""
    from jingdu.lab.style import PALETTE, smooth

    left, right = figure.subplots(1, 2, width_ratios=(1, 1.25))
    arms = list(outcome.values)
    rows = 100 * np.array([outcome.values[name]["error"] for name in arms])
    left.plot(np.arange(len(arms)), rows, color="#BBBBBB", linewidth=1, zorder=1)
    labels = []
    for place, (name, row, colour) in enumerate(zip(arms, rows, PALETTE, strict=False)):
        left.scatter(np.full(len(row), place), row, color=colour, s=36, alpha=0.7, zorder=3)
        left.plot([place - 0.15, place + 0.15], [row.mean()] * 2, color=colour, linewidth=3, zorder=4)
        left.annotate(
            f"{row.mean():.1f} %", (place + 0.2, row.mean()), va="center", color=colour, weight="bold",
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}, zorder=5,
        )  # fmt: skip
        weights, products = (outcome.values[name][measure][0] for measure in ("weights", "multiplications"))
        labels.append(f"{name}\n{weights:,.0f} weights\n{products / 1e6:.1f} M products")
    left.set_xticks(np.arange(len(arms)), labels)
    left.set_xlim(-0.6, len(arms) - 0.3)
    left.set_ylim(bottom=0)
    left.set_ylabel("test error (%)")
    left.set_title(f"{len(outcome.seeds)} seeds, joined, and their means")
    for name, (_, curves), colour in zip(arms, outcome.curves.items(), PALETTE, strict=False):
        lines = [100 * smooth(ys, 15) for _, ys in curves]
        for line in lines:
            right.plot(np.arange(1, len(line) + 1), line, color=colour, alpha=0.3, linewidth=1)
        right.plot(np.arange(1, len(lines[0]) + 1), np.mean(lines, 0), color=colour, label=name)
    right.set_xlabel("step")
    right.set_ylabel("training error (%), mean of the last 15 steps")
    right.set_title("learning")
    right.legend(loc="upper right")
    figure.suptitle(title)


@fewer_weights.figure
def draw_fewer_weights(figure: Any, outcome: Outcome) -> None:
    """GoogLeNet and AlexNet."""
    _draw(figure, outcome, "A narrow GoogLeNet and a narrow AlexNet")


@branches.figure
def draw_branches(figure: Any, outcome: Outcome) -> None:
    """Inception blocks and their twins."""
    _draw(figure, outcome, "Four branches, or one of the same cost")
