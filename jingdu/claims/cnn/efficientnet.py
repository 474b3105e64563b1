"""EfficientNet's claim, on scenes that can be rendered at any size."""

from typing import Any

from jingdu.data.preprocess import Preprocess
from jingdu.engine.contracts import Stage
from jingdu.lab import Lab, Outcome, Test, claim
from jingdu.papers.cnn.efficientnet import SCENES
from jingdu.papers.cnn.nas import count_cost

STEPS = 250
BASE = "rows=((1, 3, 1, 1, 16), (2, 3, 2, 3, 24), (2, 5, 2, 3, 40)), ends=(16, 64), dropout=0.0, drop_connect=0.0"
ARMS = {
    "base": (1.0, 1.0, 24),
    "depth": (4.0, 1.0, 24),
    "width": (1.0, 2.1, 24),
    "resolution": (1.0, 1.0, 44),
    "compound": (1.44, 1.2, 28),
}
"""Name -> depth, width, pixels. All but the base do 3.5 to 3.7 times its work; compound is about phi = 2."""
SINGLE = ("depth", "width", "resolution")


def _stage(lab: Lab, depth: float, width: float, size: int) -> Stage:
    return Stage(
        networks={"network": f"efficientnet_b0(depth={depth}, width={width}, {BASE})"},
        data=f"scenes(fields=('image', 'label'), test_count={lab.budget(full=2000, smoke=20)})",
        preprocess=Preprocess(size=size, resize=size, mean=SCENES.mean, std=SCENES.std),
        augment=("flip",),
        batch_size=32,
        steps=lab.budget(full=STEPS, smoke=2),
        lr=0.1,
        schedule="onecycle",
        weight_decay=5e-4,
    )


def _views(lab: Lab) -> None:
    """One scene after the other as the base, the compound and the largest pictures show it, side by side."""
    import numpy as np
    import torch

    from jingdu.data import open_data
    from jingdu.data.draws import Draws

    rows, tall, indices = [], 132, np.arange(3)
    for size in (24, 28, 44):
        preprocess = Preprocess(size=size, resize=size)
        source = open_data("scenes(fields=('image', 'label'))", "test", preprocess)
        images = source.batch(indices, Draws(0, 0, indices))["image"]
        rows.append(torch.nn.functional.interpolate(images, size=(tall, tall), mode="nearest"))
    lab.image("views", torch.stack(rows, 1).permute(2, 0, 3, 1, 4).flatten(1, 2).flatten(2))


# The margins (half a point, better than the mean, 5 %) were set on 2026-11-26, before the first full run. Tried before it,
# with one seed: these networks. Compound had 13 % error, width 16, depth 42, and resolution alone 9: of 24 pixels the small
# shapes have few, so that a base of more might be fairer to the others. Networks and margins were left as they are.
# 2026-11-26: the full run, inconclusive; margins stand. Compound beats depth and width, and the mean of the three by 15
# points; resolution alone is 3 points better in the mean, in all three seeds.
@claim(
    "Growing depth, width and resolution together gives a better network than growing one of them by the same work.",
    source="Sec. 3.3, Fig. 8, Tab. 7",
    tests=(
        Test("compound.accuracy", "single.accuracy", above=0.0, about="compound beats the mean of the three"),
        *(
            Test("compound.accuracy", f"{name}.accuracy", above=-0.005, about=f"compound is as good as {name} alone")
            for name in SINGLE
        ),
        Test("work.ratio", 0, below=1.05, about="all four do the same work within 5 %"),
    ),
    seeds=3,
    minutes=5.0,
    about="Five MBConv blocks that tell the largest shape in scenes of 24x24 pixels, and four networks of 3.5 to 3.7 times "
    "their work: 4 times the blocks, 2.1 times the channels, pictures of 44x44 pixels, or 1.44 times the blocks, 1.2 times "
    "the channels and 28x28 pixels (phi = 2); 250 steps of SGD under one cycle, the same scenes for all.",
)
def compound_scaling(lab: Lab, seed: int) -> dict[str, dict[str, float]]:
    """Train the base network and its four larger ones for the same number of steps, and compare their accuracies."""
    values = {}
    if seed == 0:
        _views(lab)
    for name, (depth, width, size) in ARMS.items():
        run = lab.train(_stage(lab, depth, width, size), seed=seed)
        cost = count_cost(run.system.network, (3, size, size))
        accuracy = 1 - run.metrics["error"]
        values[name] = {"accuracy": accuracy, "work": float(cost.flops), "weights": float(cost.parameters)}
    work = [values[name]["work"] for name in (*SINGLE, "compound")]
    mean = sum(values[name]["accuracy"] for name in SINGLE) / len(SINGLE)
    return {**values, "single": {"accuracy": mean}, "work": {"ratio": max(work) / min(work)}}


@compound_scaling.figure
def draw(figure: Any, outcome: Outcome) -> None:
    """The pictures that the networks see, and their accuracies."""
    import numpy as np

    from jingdu.lab.style import PALETTE, draw_image

    left, right = figure.subplots(1, 2, width_ratios=(0.8, 1))
    draw_image(left, outcome, "views", title="three scenes at 24, 28 and 44 pixels")
    names = ("base", *SINGLE, "compound")
    for place, name in enumerate(names):
        accuracies = 100 * np.array(outcome.values[name]["accuracy"])
        colour = {"base": "#888888", "compound": PALETTE[1]}.get(name, PALETTE[0])
        right.scatter(np.full(len(accuracies), place), accuracies, color=colour, alpha=0.45, linewidths=0, s=34)
        right.plot([place - 0.25, place + 0.25], [accuracies.mean()] * 2, color=colour, linewidth=2.6)
        right.annotate(
            f"{accuracies.mean():.1f}", (place, accuracies.max()), xytext=(0, 9), textcoords="offset points", ha="center",
            color=colour, weight="bold",
        )  # fmt: skip
    right.set_xticks(range(len(names)), names, fontsize=9.5)
    right.margins(x=0.08, y=0.18)
    right.set_ylabel("test accuracy (%)")
    base = outcome.values["base"]["work"][0]
    times = outcome.values["compound"]["work"][0] / base
    right.set_title(f"all others: {times:.1f} x the base's work")
    right.set_xlabel(f"dots: {len(outcome.seeds)} seeds; lines: their mean")
    figure.suptitle("The same work in four ways")
