"""MobileNet's claim, on digits that are turned, sheared, moved and of all sizes."""

from typing import Any

from jingdu.engine.contracts import Stage
from jingdu.lab import Lab, Outcome, Test, claim
from jingdu.papers.cnn.mobilenet import DIGITS
from jingdu.papers.cnn.nas import count_cost

STEPS, LONG = 300, 900
ROWS = "rows=((24, 1, 1), (48, 2, 2), (96, 2, 2)), stem=(16, 1), dropout=0.0"
ARMS = {
    "thin": (f"mobilenet_v1_full({ROWS}, alpha=0.38)", LONG),
    "separable": (f"mobilenet_v1_100({ROWS})", LONG),
    "full": (f"mobilenet_v1_full({ROWS})", STEPS),
}
"""Name -> network and steps."""


def _stage(lab: Lab, network: str, steps: int) -> Stage:
    return Stage(
        networks={"network": network},
        data=lab.budget(full="affine_digits", smoke="affine_digits(copies=1)"),
        preprocess=DIGITS,
        batch_size=32,
        steps=lab.budget(full=steps, smoke=2),
        lr=0.05,
        schedule="onecycle",
        weight_decay=5e-4,
        decay="dense",
    )


# The margins (better at all; 3 points; 6 times) were set on 2026-11-26, before the first full run. Tried before it, with one
# seed: 300 steps for all, after which the separable network, of twice as many layers, had learned least: 35 % error, where
# the thin one had 18 and the full one 7. The paper trains to the end; so the small ones have 900 steps.
# 2026-11-26: the full run, inconclusive; the margins stand. Of 900 steps the thin network too makes enough (3.5 % error, the
# separable one 4.7), and 300 are few for the full one (7.2): these nets are too small for their size to matter at the end.
@claim(
    "Depthwise separable convolutions need a fraction of the weights and of the work of full ones for nearly their "
    "accuracy, and have a lower error than a network of full convolutions that is made as small.",
    source="Sec. 3.1, Tab. 4, 5",
    tests=(
        Test("thin.error", "separable.error", above=0.0, about="separable beats full convolutions of as many weights"),
        Test("separable.error", "full.error", below=0.03, about="it comes within 3 points of the full network"),
        Test("full.work", "separable.work", above=6.0, ratio=True, about="full convolutions multiply more"),
        Test("full.weights", "separable.weights", above=6.0, ratio=True, about="full convolutions have more weights"),
    ),
    seeds=3,
    minutes=6.0,
    about="Five blocks of version 1 (24 to 96 channels), their twin with full 3x3 convolutions, and this one with 0.38 "
    "times the channels, which has slightly more weights than the separable network; scikit-learn's digits under random "
    "affine maps at 20x20 pixels, SGD under one cycle, batches of 32. The small networks have 900 steps and the full one "
    "300, of which each costs seven times as much.",
)
def separable(lab: Lab, seed: int) -> dict[str, dict[str, float]]:
    """Train the separable network and both full ones, the small ones for three times as long."""
    values = {}
    for name, (network, steps) in ARMS.items():
        run = lab.train(_stage(lab, network, steps), seed=seed)
        cost = count_cost(run.system.network, (1, 20, 20))
        values[name] = {"error": run.metrics["error"], "weights": float(cost.parameters), "work": float(cost.flops)}
    return values


@separable.figure
def draw(figure: Any, outcome: Outcome) -> None:
    """Test error against the work for one picture; and what trains how fast."""
    import numpy as np

    from jingdu.lab.style import PALETTE

    axes = figure.subplots(1, 1)
    labels = {"thin": "full convolutions, made thin", "separable": "separable", "full": "full convolutions"}
    places = {"thin": (14, 8, "left"), "separable": (-14, 0, "right"), "full": (-14, 4, "right")}
    steps = {name: count for name, (_, count) in ARMS.items()}
    for (name, label), colour in zip(labels.items(), PALETTE, strict=False):
        measures = outcome.values[name]
        errors, work, weights = 100 * np.array(measures["error"]), measures["work"][0] / 1e6, measures["weights"][0]
        axes.scatter(np.full(len(errors), work), errors, color=colour, alpha=0.4, linewidths=0, s=36)
        axes.plot([work], [errors.mean()], color=colour, marker="D", markersize=9)
        dx, dy, side = places[name]
        axes.annotate(
            f"{label}, {steps[name]} steps\n{errors.mean():.1f} %, {weights:,.0f} weights", (work, errors.mean()), xytext=(dx, dy),
            textcoords="offset points", ha=side, va="center", color=colour, weight="bold", fontsize=9.5,
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_xticks((1, 2, 4, 8), ("1", "2", "4", "8"))
    axes.minorticks_off()
    axes.set_xlim(0.36, 11)
    axes.set_ylim(0, 1.25 * max(100 * max(measures["error"]) for measures in outcome.values.values()))
    axes.set_xlabel("millions of multiplications for one picture")
    axes.set_ylabel("test error (%)")
    axes.set_title(f"dots: {len(outcome.seeds)} seeds; diamonds: their mean")
    figure.suptitle("Full and depthwise separable convolutions on moved digits")
