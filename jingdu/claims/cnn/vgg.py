"""VGG's claims, on digits that are turned, sheared, moved and of all sizes."""

from typing import Any

from jingdu.data.preprocess import Preprocess
from jingdu.engine.contracts import Stage
from jingdu.lab import Lab, Outcome, Test, claim

DATA = "affine_digits"
PIXELS = Preprocess(size=20, mean=(0.143,), std=(0.265,), channels=1)
STEPS, WIDTH = 400, 12
KERNELS = {"3x3": (3, 3), "5x5": (5,)}
"""Of each of three blocks."""
CONVOLUTIONS = (2, 4, 6, 8)


def _stage(lab: Lab, blocks: tuple[tuple[int, ...], ...], grid: int) -> Stage:
    """A narrow network of these blocks. Batch norms let all of them learn at one rate: without, the deeper ones would be
    compared in how they start."""
    widths = (*(WIDTH,) * len(blocks), 32, 32)
    return Stage(
        networks={"network": f"vgg13_bn(blocks={blocks}, widths={widths}, grid={grid}, dropout=0.0)"},
        data=DATA,
        preprocess=PIXELS,
        batch_size=64,
        steps=lab.budget(full=STEPS, smoke=2),
        lr=0.05,
        schedule="onecycle",
        weight_decay=5e-4,
    )


def _examples(lab: Lab) -> None:
    """Some of the digits side by side."""
    import numpy as np

    from jingdu.data import open_data
    from jingdu.data.draws import Draws

    rows, columns = 7, 5
    indices = np.arange(rows * columns)
    pictures = open_data(DATA, "test", PIXELS).batch(indices, Draws(0, 0, indices))["image"][:, 0]
    lab.image("digits", pictures.unflatten(0, (rows, columns)).permute(0, 2, 1, 3).flatten(2).flatten(0, 1))


# The margin (2 points, with fewer weights) was set on 2026-11-25, before the first full run. Tried before it, with one
# seed: widths of 8 to 32, rates of 0.01 to 0.1, and nets without batch norm, which at these widths learn too unevenly
# to be compared. 2026-11-26: the full run, inconclusive; the margin stands. Of its 9 % error a quarter goes away, as of the
# paper's 36 % a fifth. Afterwards, three other seeds at a width of 8 gave no gain: there the pairs learn unevenly too.
@claim(
    "Two 3x3 convolutions classify better than one 5x5 that sees as far, with fewer weights.",
    source="Sec. 2.3, 4.1",
    tests=(
        Test("5x5.error", "3x3.error", above=0.02, about="pairs of 3x3 have a lower test error"),
        Test("5x5.weights", "3x3.weights", above=1.0, ratio=True, about="pairs of 3x3 have fewer weights"),
    ),
    seeds=5,
    minutes=2.0,
    about="Three pairs of 3x3 convolutions of 12 channels against three 5x5 ones, with batch norm, on scikit-learn's "
    "digits under random affine maps at 20x20 pixels; 400 steps of SGD under one cycle, alike for both.",
)
def stacks_of_3x3(lab: Lab, seed: int) -> dict[str, dict[str, float]]:
    """Train column B in small and its shallow twin of 5x5 kernels alike, and compare their errors."""
    values = {}
    if seed == 0:
        _examples(lab)
    for name, kernels in KERNELS.items():
        run = lab.train(_stage(lab, (kernels,) * 3, grid=1), seed=seed)
        weights = sum(parameter.numel() for parameter in run.system.network.parameters())
        values[name] = {"error": run.metrics["error"], "weights": float(weights)}
    return values


@stacks_of_3x3.figure
def draw_pairs(figure: Any, outcome: Outcome) -> None:
    """What is told apart, and the test errors of both nets, seed by seed."""
    from jingdu.lab.style import draw_image

    left, right = figure.subplots(1, 2, width_ratios=(0.62, 1))
    draw_image(left, outcome, "digits", title="some of the test digits")
    names = ("5x5", "3x3")
    errors = [[100 * error for error in outcome.values[name]["error"]] for name in names]
    for pair in zip(*errors, strict=True):
        right.plot((0, 1), pair, color="#999999", marker="o", markersize=4, linewidth=1)
    means = [sum(side) / len(side) for side in errors]
    right.plot((0, 1), means, color="#0072B2", marker="D", markersize=8, linewidth=2.5)
    for place, mean in enumerate(means):
        right.annotate(
            f"{mean:.1f} %", (place, mean), xytext=(-12 if place == 0 else 12, 0), textcoords="offset points",
            ha="right" if place == 0 else "left", va="center", color="#0072B2", weight="bold",
        )  # fmt: skip
    weights = [outcome.values[name]["weights"][0] for name in names]
    right.set_xticks(
        (0, 1), [f"three 5x5 convolutions\n{weights[0]:,.0f} weights", f"six 3x3 in pairs\n{weights[1]:,.0f} weights"]
    )
    right.set_xlim(-0.55, 1.55)
    right.set_ylim(0, 1.12 * max(map(max, errors)))
    right.set_ylabel("test error (%)")
    right.set_title(f"grey: {len(outcome.seeds)} seeds; blue: their mean")
    figure.suptitle("One large kernel, or two small ones that see as far")


# Set on 2026-11-25, before the first full run.
@claim(
    "With everything else held fixed, the error falls with depth.",
    source="Tab. 3, Sec. 4.1",
    tests=(Test("depth.spearman", 0, above=0.0, about="rank correlation of depth and accuracy"),),
    seeds=5,
    minutes=6.0,
    about="Two blocks of one to four 3x3 convolutions of 12 channels, with batch norm, on scikit-learn's digits under "
    "random affine maps at 20x20 pixels; 400 steps of SGD under one cycle, alike for all.",
)
def depth(lab: Lab, seed: int) -> dict[str, dict[str, float]]:
    """Train nets of 2, 4, 6 and 8 convolutions alike; Spearman's correlation of their depth and accuracy."""
    from scipy.stats import spearmanr

    values = {}
    for count in CONVOLUTIONS:
        run = lab.train(_stage(lab, ((3,) * (count // 2),) * 2, grid=5), seed=seed)
        steps = [line for line in run.log if "loss" in line]
        xs, ys = [line["step"] for line in steps], [line["error"] for line in steps]
        lab.curve(f"{count} convolutions", xs, ys, "step", "training error")
        values[f"{count} convolutions"] = {"error": run.metrics["error"]}
    accuracies = [1 - measures["error"] for measures in values.values()]
    # Equal accuracies have no order.
    rank = float(spearmanr(CONVOLUTIONS, accuracies).statistic) if len(set(accuracies)) > 1 else 0.0
    return {**values, "depth": {"spearman": rank}}


@depth.figure
def draw_depth(figure: Any, outcome: Outcome) -> None:
    """Test error by depth, and how the nets learned."""
    import numpy as np

    from jingdu.lab.style import PALETTE, smooth

    left, right = figure.subplots(1, 2)
    names = [f"{count} convolutions" for count in CONVOLUTIONS]
    errors = 100 * np.array([outcome.values[name]["error"] for name in names])  # [depth, seed]
    left.plot(CONVOLUTIONS, errors, color="#BBBBBB", linewidth=1)
    left.plot(CONVOLUTIONS, errors.mean(1), color="#0072B2", marker="D", linewidth=2.5)
    for count, mean in zip(CONVOLUTIONS, errors.mean(1), strict=True):
        left.annotate(
            f"{mean:.1f}", (count, mean), xytext=(0, 11), textcoords="offset points", ha="center", color="#0072B2",
            weight="bold", bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
        )  # fmt: skip
    left.set_xticks(CONVOLUTIONS)
    left.set_xlim(1.2, 8.8)
    left.set_xlabel("3x3 convolutions")
    left.set_ylabel("test error (%)")
    left.set_ylim(0, 1.12 * errors.max())
    left.set_title(f"grey: {len(outcome.seeds)} seeds; blue: their mean")
    for name, colour in zip(names, PALETTE, strict=False):
        curves = [smooth(ys, 15) for _, ys in outcome.curves[name]]
        mean = 100 * np.mean(curves, 0)
        right.plot(np.arange(1, len(mean) + 1), mean, color=colour, label=name)
    right.set_xlabel("step")
    right.set_ylabel("training error (%), mean of the last 15 steps")
    right.legend(loc="upper right")
    right.set_title("learning")
    figure.suptitle("Only the depth differs")
