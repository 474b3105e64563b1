"""ConvNeXt's claims: against Swin and a ResNet, and the road from there, on digits."""

from typing import Any

from jingdu.engine.contracts import Stage
from jingdu.lab import Lab, Outcome, Test, claim
from jingdu.papers.cnn.convnext import DIGITS, STEPS

SIDE, BATCH, UPDATES = DIGITS.size, 32, 400
GREY = "in_channels=1, num_classes=10"
ARMS = {
    "convnext": f"convnext_mini(widths=(16, 32, 64), scale=None, {GREY})",
    "swin": f"swin_mini(image_size={SIDE}, width=16, heads=(1, 2, 4), window=4, {GREY})",
    "resnet": f"convnext_roadmap(steps=0, depths=((3, 3, 3), (3, 3, 3)), widths=(11, 16), stem=2, {GREY})",
}
"""Three stages from patches of 2x2 pixels, or a stem of stride 2: 144 to 159 thousand weights, 1.25 to 1.51 million
multiply-adds of convolutions and linear layers; Swin's attention has a tenth of a million more."""
LABELS = {"convnext": "ConvNeXt", "swin": "Swin", "resnet": "ResNet"}


def _stage(lab: Lab, network: str) -> Stage:
    return Stage(
        networks={"network": network},
        data="digits",
        preprocess=DIGITS,
        batch_size=BATCH,
        steps=lab.budget(full=UPDATES, smoke=2),
        optimizer="adamw",
        lr=2e-3,
        weight_decay=0.05,
        schedule="cosine(warmup=40)",
        clip=5.0,
    )


def _milliseconds(lab: Lab, networks: dict[str, Any]) -> dict[str, float]:
    """What 16 pictures take, the networks in turn."""
    import statistics

    import torch

    from jingdu.speed.paired import alternate

    x = torch.randn(16, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))

    def work(network: Any) -> Any:
        def run() -> Any:
            with torch.inference_mode():
                return network(x)

        return run

    works = {name: work(network.eval()) for name, network in networks.items()}
    times = alternate(works, lab.budget(full=25, smoke=2), 3)
    return {name: 1000 * statistics.median(values) for name, values in times.items()}


# The margins (half a point against Swin, the sign against ResNet, no slower than Swin) were set on 2026-11-26, before the first
# full run. The same day, the full run, inconclusive: Swin is worse by 2.6 points [1.0, 4.2]; the ResNet is as good (0.6 points
# better [-1.1, 2.3]), though ConvNeXt learns sooner; and Swin takes 1.27 times as long [0.92, 1.75] on a machine that others
# used at the time. On turned and moved digits of 24 pixels, tried before for one seed and 400 steps, the ResNet was far ahead
# (12 %, ConvNeXt 51 %, Swin 88 %): narrow networks that start at weights of 0.02 learn slowly there. Margins stand.
@claim(
    "A convolutional network with a transformer's habits is as accurate as Swin and more so than a ResNet, and no slower.",
    source="Tab. 1, Fig. 1",
    tests=(
        Test("swin.error", "convnext.error", above=-0.005, about="Swin is not better by more than half a point"),
        Test("resnet.error", "convnext.error", above=0.0, about="the ResNet is worse"),
        Test(
            "swin.milliseconds",
            "convnext.milliseconds",
            above=1.0,
            ratio=True,
            about="Swin takes longer for 16 pictures",
        ),
    ),
    seeds=3,
    minutes=5.0,
    about="scikit-learn's digits at 16x16 pixels in place of ImageNet; three stages; the same 400 steps "
    "of 32 digits by AdamW for all. No layer scale, which starts too slowly for so few steps.",
)
def against_swin(lab: Lab, seed: int) -> dict[str, dict[str, float]]:
    """Train the three alike; error, weights, multiply-adds, and the time of a batch."""
    from jingdu.papers.cnn.nas import count_cost

    values, networks = {}, {}
    for name, text in ARMS.items():
        run = lab.train(_stage(lab, text), seed=seed)
        steps = [line for line in run.log if "loss" in line]
        lab.curve(
            name, [line["step"] for line in steps], [line["error"] for line in steps], "step", "training error (%)"
        )
        networks[name] = run.system.network
        cost = count_cost(networks[name], (1, SIDE, SIDE))
        values[name] = {"error": run.metrics["error"], "weights": cost.parameters, "multiply_adds": cost.flops}
    for name, taken in _milliseconds(lab, networks).items():
        values[name]["milliseconds"] = taken
    return values


@against_swin.figure
def draw(figure: Any, outcome: Outcome) -> None:
    """Learning curves, and error over time as Figure 1 has accuracy over work."""
    from jingdu.lab.style import PALETTE, draw_curves

    left, right = figure.subplots(1, 2, width_ratios=(1.5, 1))
    draw_curves(left, outcome, list(ARMS), LABELS, window=25, scale=100)
    left.set_title("learning, means of 25 steps")
    left.set_ylim(0, None)
    for name, colour in zip(ARMS, PALETTE, strict=False):
        errors = [100 * error for error in outcome.values[name]["error"]]
        times = outcome.values[name]["milliseconds"]
        right.scatter(times, errors, color=colour, s=34, alpha=0.65, linewidths=0)
        right.annotate(
            f"{LABELS[name]}\n{sum(errors) / len(errors):.1f} %", (sum(times) / len(times), max(errors)), xytext=(0, 7),
            textcoords="offset points", ha="center", va="bottom", color=colour, weight="bold",
        )  # fmt: skip
    right.margins(x=0.25, y=0.3)
    right.set_xlabel("milliseconds for 16 pictures")
    right.set_ylabel("test error (%)")
    right.set_title(f"in the end, {len(outcome.seeds)} seeds")
    figure.suptitle("ConvNeXt, Swin and a ResNet of one size, trained alike")


ROAD = f"depths=((2, 1), (1, 2)), widths=(16, 24), stem=2, scale=None, {GREY}"


# The margin (no more than the sign) was set on 2026-11-26, before the first full run. The same day it failed: up to one activation
# a block the road goes up and down where the paper's does, from 96.7 to 97.5 %; with one norm a block, 100 steps are too few for
# narrow branches that start at weights of 0.02 with nothing to scale them up, and its end has 91.9 %. Then 400 steps, as many as
# the other claim's networks have: 99.4 % at its beginning leaves nothing to gain, and its end has 98.0. The margin stands.
@claim(
    "Step by step the road from ResNet to ConvNeXt leads to a lower error at about the same cost.",
    source="Fig. 2, Tab. 10",
    tests=(
        Test("resnet.error", "downsample.error", above=0.0, about="the end of the road is better than its beginning"),
        Test(
            "downsample.multiply_adds", "resnet.multiply_adds", below=1.25, ratio=True, about="and costs about as much"
        ),
    ),
    seeds=3,
    minutes=5.0,
    about="scikit-learn's digits at 16x16 pixels in place of ImageNet; two stages, from patches of 2x2 "
    "where the road has patches; 400 steps of 32 digits by AdamW for each network. No layer scale, which starts too slowly "
    "for so few steps.",
)
def road(lab: Lab, seed: int) -> dict[str, dict[str, float]]:
    """Train the network behind each step alike."""
    from jingdu.papers.cnn.nas import count_cost

    values = {}
    for number, step in lab.budget(full=list(enumerate(STEPS)), smoke=[(0, STEPS[0]), (len(STEPS) - 1, STEPS[-1])]):
        stage = _stage(lab, f"convnext_roadmap(steps={number}, {ROAD})")
        run = lab.train(stage, seed=seed)
        cost = count_cost(run.system.network, (1, SIDE, SIDE))
        values[step.name] = {"error": run.metrics["error"], "weights": cost.parameters, "multiply_adds": cost.flops}
    return values


@road.figure
def draw_road(figure: Any, outcome: Outcome) -> None:
    """Figure 2: accuracy behind each step, ours and the paper's, and what it costs."""
    import numpy as np

    from jingdu.lab.style import PALETTE, QUIET

    figure.set_size_inches(8.8, 6.2)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(2, 1))
    steps = [step for step in STEPS if step.name in outcome.values]
    places = np.arange(len(steps))[::-1]
    ours = 100 - 100 * np.array([outcome.values[step.name]["error"] for step in steps])
    for row in ours.T:
        left.plot(row, places, "o", color=PALETTE[0], alpha=0.3, markersize=4)
    left.plot(ours.mean(1), places, "o-", color=PALETTE[0], label="ours, digits")
    for place, mean in zip(places, ours.mean(1), strict=True):
        left.annotate(
            f"{mean:.1f}", (mean, place), xytext=(0, 6), textcoords="offset points", ha="center", fontsize=8.5
        )
    left.set_yticks(places, [step.about.rpartition(" (")[0] or step.about for step in steps], fontsize=8.5)
    left.set_xlabel("test accuracy (%)")
    left.set_title(f"digits, {len(outcome.seeds)} seeds and their mean")
    right.plot([step.accuracy for step in steps], places, "o-", color=QUIET)
    right.set_xlabel("top-1 on ImageNet (%)")
    right.set_title("in Figure 2")
    figure.suptitle("The road from ResNet to ConvNeXt")
