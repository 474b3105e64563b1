"""RegNet's claims: the errors of two design spaces on digits, and what says how long a network takes."""

import time
from typing import Any

from jingdu.engine.contracts import Stage
from jingdu.lab import Lab, Outcome, Test, claim
from jingdu.papers.cnn.regnet import DIGITS, complexity, design_space, edf, sample_networks, sizes_of

COUNT, EPOCHS = 10, 3
BAND = (250_000, 350_000)
"""Multiply-adds of all networks, for one picture."""
SPACES = ("anynetx_a", "regnetx")
NAMES = {"anynetx_a": "AnyNetX-A", "regnetx": "RegNetX"}
OPTIONS = {"stem": 8, "num_classes": 10, "in_channels": 1}


def _space(name: str) -> Any:
    ranges = {"widths": range(8, 129, 8), "depths": (1, 2, 3, 4), "ratios": (1, 2, 4), "groups": (1, 2, 4, 8, 16)}
    return design_space(name, **ranges, stages=3)


def _sample(name: str, count: int, band: tuple[float, float], seed: int, size: int) -> list[Any]:
    """Sizes of networks of a space within a band."""
    from jingdu.data.draws import generator

    space = _space(name)
    codes = sample_networks(space, count, band, generator(seed, SPACES.index(name)), size=size, **OPTIONS)
    return [sizes_of(space.decode(code)) for code in codes]


def _stage(lab: Lab, sizes: Any) -> Stage:
    widths, depths, ratios, groups = (tuple(column) for column in sizes)
    network = f"regnet_anynet(widths={widths}, depths={depths}, ratios={ratios}, groups={groups}, stem=8)"
    return Stage(
        networks={"network": network},
        data="digits",
        preprocess=DIGITS,
        batch_size=64,
        steps=lab.budget(full=EPOCHS * (1347 // 64), smoke=1),
        lr=0.1,
        schedule="cosine(warmup=5)",
        weight_decay=5e-4,
    )


# The margin (lower at all) was set on 2026-11-26, before the first full run.
@claim(
    "Networks of the space with linear widths have lower errors than those of the space without constraints, at equal work.",
    source="Sec. 3.2, 3.3, Fig. 9",
    tests=(Test("AnyNetX-A.error", "RegNetX.error", above=0.0, about="the mean error of RegNetX is lower"),),
    seeds=3,
    minutes=5.0,
    about="10 random networks of three stages of each space, of 250 to 350 thousand multiply-adds, three epochs each on "
    "scikit-learn's digits at 32x32 pixels. A seed is another sample of networks, and other weights. The paper trains 500 "
    "networks of 400 million multiply-adds for ten epochs of ImageNet.",
)
def better_space(lab: Lab, seed: int) -> dict[str, dict[str, float]]:
    """Train a sample of each space alike; the mean of its errors, and their distribution."""
    values = {}
    for name in SPACES:
        sizes = _sample(name, lab.budget(full=COUNT, smoke=2), BAND, seed, 32)
        errors = [lab.train(_stage(lab, one), seed=seed).metrics["error"] for one in sizes]
        lab.curve(NAMES[name], *edf(errors), "error", "share of the networks")
        values[NAMES[name]] = {"error": sum(errors) / len(errors), "least": min(errors)}
    return values


@better_space.figure
def draw(figure: Any, outcome: Outcome) -> None:
    """The distributions of errors, seed by seed and together."""
    import numpy as np

    axes = figure.subplots(1, 1)
    for name, colour in zip(NAMES.values(), ("#D55E00", "#0072B2"), strict=True):
        seeds = [100 * np.array(xs) for xs, _ in outcome.curves[name]]
        for errors in seeds:
            axes.step(
                errors, np.arange(1, len(errors) + 1) / len(errors), where="post", color=colour, alpha=0.3, linewidth=1
            )
        together = np.sort(np.concatenate(seeds))
        label = f"{name}: {together.mean():.1f} % in the mean"
        axes.step(together, np.arange(1, len(together) + 1) / len(together), where="post", color=colour, label=label)
    axes.set_xscale("log")
    axes.set_xticks((2, 5, 10, 20, 50, 90), ("2", "5", "10", "20", "50", "90"))
    axes.minorticks_off()
    axes.set_xlabel("test error (%)")
    axes.set_ylabel("share of the networks with at most this error")
    axes.legend(loc="upper left")
    figure.suptitle(
        f"Two design spaces on digits, {len(outcome.seeds)} seeds: thin lines are seeds, thick all together"
    )


# The margin (more at all) was set on 2026-11-26, before the first full run.
@claim(
    "How long a network takes follows its activations more closely than its FLOPs.",
    source="Sec. 3.5, Fig. 12",
    tests=(Test("activations.rank", "flops.rank", above=0.0, about="rank correlation with the time of a batch"),),
    seeds=5,
    minutes=2.0,
    about="40 random networks of AnyNetX-A of half a million to ten million multiply-adds, batches of 32 pictures of 64x64 "
    "pixels, eager float32 on one thread of a CPU, the median of five runs. The paper times a GPU.",
)
def activations(lab: Lab, seed: int) -> dict[str, dict[str, float]]:
    """Time the forward pass of a sample of networks; Spearman's correlation with activations, and with FLOPs."""
    import torch
    from scipy.stats import spearmanr

    from jingdu.papers.cnn.regnet import AnyNet

    sizes = _sample("anynetx_a", lab.budget(full=40, smoke=3), (5e5, 1e7), seed, 64)
    x, costs, seconds = torch.zeros(lab.budget(full=32, smoke=1), 1, 64, 64), [], []
    for one in sizes:
        network = AnyNet(*one, **OPTIONS).eval()
        runs = []
        with torch.inference_mode():
            for _ in range(lab.budget(full=6, smoke=2)):
                start = time.perf_counter()
                network(x)
                runs.append(time.perf_counter() - start)
        costs.append(complexity(*one, size=64, **OPTIONS))
        seconds.append(sorted(runs[1:])[len(runs[1:]) // 2])
    milliseconds = [1000 * value for value in seconds]
    lab.curve("activations", [cost.activations for cost in costs], milliseconds, "activations", "milliseconds")
    lab.curve("flops", [cost.flops for cost in costs], milliseconds, "multiply-adds", "milliseconds")
    ranks = {name: [getattr(cost, name) for cost in costs] for name in ("activations", "flops")}
    return {name: {"rank": float(spearmanr(values, seconds).statistic)} for name, values in ranks.items()}


@activations.figure
def draw_times(figure: Any, outcome: Outcome) -> None:
    """The time of a batch against both counts."""
    panels = figure.subplots(1, 2, sharey=True)
    for axes, name, colour in zip(panels, ("activations", "flops"), ("#0072B2", "#D55E00"), strict=True):
        for xs, ys in outcome.curves[name]:
            axes.scatter([x / 1e6 for x in xs], ys, color=colour, s=14, alpha=0.5, linewidths=0)
        mean = sum(outcome.values[name]["rank"]) / len(outcome.seeds)
        axes.set_title(f"rank correlation {mean:.2f}")
        axes.set_xlabel({"activations": "activations (millions)", "flops": "multiply-adds (millions)"}[name])
        axes.set_xscale("log")
        axes.set_yscale("log")
    panels[0].set_ylabel("milliseconds for 32 pictures")
    figure.suptitle(f"What says how long a network takes: {len(outcome.seeds)} samples of random networks")
