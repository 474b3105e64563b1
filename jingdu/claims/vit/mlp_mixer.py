"""MLP-Mixer's claims, on handwritten digits: the order of pixels, and what more images are worth."""

from typing import Any

from jingdu.engine.contracts import Stage
from jingdu.lab import Lab, Outcome, Test, claim
from jingdu.papers.vit.mlp_mixer import DIGITS

BATCH, STEPS = 64, 250
ARMS = {"mixer": "mlp_mixer_mini", "cnn": "resnet20_cifar(width=12, depths=(2, 2, 2), in_channels=1)"}
"""Of 1.0 and 0.9 million multiply-adds a digit."""
LABELS = {"mixer": "Mixer", "cnn": "ResNet-14"}
OWN: dict[str, dict[str, Any]] = {
    "mixer": {"optimizer": "adamw", "lr": 2e-3, "weight_decay": 0.1, "schedule": "cosine(warmup=30)", "clip": 1.0},
    "cnn": {"lr": 0.1, "weight_decay": 1e-4, "schedule": "onecycle"},
}
"""Each network learns as its laptop recipe says."""


def _stage(lab: Lab, arm: str, how: str, count: int, seed: int) -> Stage:
    return Stage(
        networks={"network": ARMS[arm]},
        data=f"mlp_mixer.shuffled(how={how!r}, count={count}, seed={seed})",
        preprocess=DIGITS,
        batch_size=BATCH,
        steps=lab.budget(full=STEPS, smoke=2),
        **OWN[arm],
    )


ORDERS = ("original", "patches", "pixels")


# The margins were set on 2026-11-26, before the first full run. The same day, the full run, inconclusive: Mixer loses 0.2 points
# [-0.8, 1.2] by the order of patches, the convolutional network 0.7 more than Mixer over both orders, but not in seed 3. With
# 450 digits to test on, a point is four digits. Margins stand.
@claim(
    "Another order of patches and of the pixels in them costs Mixer nothing; a convolutional network loses by it.",
    source="Sec. 3.3, Fig. 4",
    tests=(
        Test("mixer.twin_difference", 0, below=1e-4, about="permuted weights see permuted digits as before, exactly"),
        Test(
            "mixer.drop_patches",
            0,
            below=0.01,
            about="patches and pixels in them in another order: Mixer loses no point",
        ),
        Test("cnn.drop", "mixer.drop", above=0.0, about="over both orders the convolutional network loses more"),
    ),
    seeds=8,
    minutes=5.0,
    about="1,000 digits of 8x8 pixels in patches of 2x2, in place of JFT-300M and ImageNet; ResNet-14 as the convolutional "
    "network, of as many multiply-adds; 250 steps of 64 digits.",
)
def permutations(lab: Lab, seed: int) -> dict[str, dict[str, float]]:
    """Train both on digits as they are, with patches and their pixels reordered, and with all pixels reordered."""
    import numpy as np
    import torch

    from jingdu.data import open_data
    from jingdu.data.draws import Draws
    from jingdu.papers.vit.mlp_mixer import permute, permuted, shuffled

    values: dict[str, dict[str, float]] = {}
    for arm in ARMS:
        values[arm] = {}
        for how in ORDERS:
            run = lab.train(_stage(lab, arm, how, 1000, seed), seed=seed)
            values[arm][how] = 1 - run.metrics["error"]
            if (arm, how) == ("mixer", "original"):
                network = run.system.network.eval()
        for how in ORDERS[1:]:
            values[arm][f"drop_{how}"] = values[arm]["original"] - values[arm][how]
        values[arm]["drop"] = (values[arm]["drop_patches"] + values[arm]["drop_pixels"]) / 2
    rows = np.arange(64)
    digits = open_data("digits", "test", DIGITS).batch(rows, Draws(0, 0, rows))["image"]
    random = torch.Generator().manual_seed(seed)
    patches, pixels = torch.randperm(16, generator=random), torch.randperm(4, generator=random)
    with torch.no_grad():
        plain, twin = network(digits), permuted(network, patches, pixels)(permute(digits, 2, patches, pixels))
    values["mixer"]["twin_difference"] = float((plain - twin).abs().max() / plain.abs().max().clamp(min=1e-6))
    if seed == 0:
        for how in ORDERS:
            seen = shuffled("test", how=how, seed=seed)
            row = np.flatnonzero(seen.rows == 3)
            lab.image(how, seen.batch(row, Draws(0, 0, row))["image"][0])
    return values


WORDS = {
    "original": "as they are", "patches": "patches and pixels\nin them reordered", "pixels": "all pixels\nreordered",
}  # fmt: skip


@permutations.figure
def draw_permutations(figure: Any, outcome: Outcome) -> None:
    """Figure 4: the three orders of one digit above, accuracies under them."""
    import numpy as np

    from jingdu.lab.style import PALETTE, draw_image

    figure.set_size_inches(8.4, 6.0)
    grid = figure.add_gridspec(2, 3, height_ratios=(1, 2.2))
    for column, how in enumerate(ORDERS):
        if how in outcome.images:
            draw_image(figure.add_subplot(grid[0, column]), outcome, how, "")
    axes = figure.add_subplot(grid[1, :])
    for arm, colour, shift in zip(ARMS, PALETTE, (-0.06, 0.06), strict=False):
        table = 100 * np.array([outcome.values[arm][how] for how in ORDERS])
        places = np.arange(3) + shift
        for row in table.T:
            axes.plot(places, row, "o", color=colour, alpha=0.35, markersize=4.5)
        means = table.mean(1)
        axes.plot(places, means, color=colour, label=LABELS[arm])
        for place, mean in zip(places, means, strict=True):
            axes.annotate(
                f"{mean:.1f}", (place, mean), xytext=(-9 if shift < 0 else 9, 9), textcoords="offset points",
                ha="right" if shift < 0 else "left", va="center", color=colour, weight="bold",
            )  # fmt: skip
    axes.set_xticks(range(3), [WORDS[how] for how in ORDERS])
    axes.set_xlim(-0.5, 2.5)
    axes.set_ylabel("test accuracy (%)")
    axes.legend(loc="lower left")
    axes.set_title(f"dots: {len(outcome.seeds)} seeds, each with an order of its own; lines: their means")
    figure.suptitle("What the order of an image's parts is worth")


COUNTS = (64, 125, 250, 500, 1000)


# The margin (no more than the sign) was set on 2026-11-26, before the first full run. The same day, with three seeds: all have
# the sign, and the interval reaches over zero (1.3 points a doubling [-1.2, 3.9]), inconclusive; six seeds since. With them
# 1.4 [0.2, 2.5], and in seed 3 the convolutional network gains as much: inconclusive.
@claim(
    "Mixer gains more by more images than a convolutional network, which needs fewer.",
    source="Fig. 2, right",
    tests=(
        Test(
            "mixer.slope", "cnn.slope", above=0.0, about="points of accuracy for each doubling of the training images"
        ),
        Test("cnn.few", "mixer.few", above=0.0, about="with 64 digits the convolutional network is ahead"),
    ),
    seeds=6,
    minutes=4.0,
    about="64 to 1,000 digits of 8x8 pixels in place of 10 to 303 million photos, the same 250 steps for all; ResNet-14, of as "
    "many multiply-adds, in place of BiT; the test is on digits like those of training, with no transfer.",
)
def data_size(lab: Lab, seed: int) -> dict[str, dict[str, float]]:
    """Train both on five numbers of digits, and fit a line to accuracy over the logarithm of the number."""
    import numpy as np

    values = {}
    for arm in ARMS:
        accuracies = []
        for count in COUNTS:
            accuracies.append(1 - lab.train(_stage(lab, arm, "original", count, seed), seed=seed).metrics["error"])
        lab.curve(arm, COUNTS, accuracies, "training digits", "test accuracy (%)")
        slope = float(np.polyfit(np.log2(COUNTS), accuracies, 1)[0])
        values[arm] = {"slope": slope, "few": accuracies[0], "many": accuracies[-1]}
    return values


@data_size.figure
def draw_sizes(figure: Any, outcome: Outcome) -> None:
    """Figure 2, right: accuracy over the number of images."""
    from jingdu.lab.style import draw_curves

    axes = figure.subplots(1, 1)
    axes.set_xscale("log", base=2)
    names = {
        arm: f"{LABELS[arm]}: {100 * sum(outcome.values[arm]['slope']) / len(outcome.seeds):.1f} points a doubling"
        for arm in ARMS
    }
    draw_curves(axes, outcome, list(ARMS), names, scale=100)
    axes.set_xticks(COUNTS, [f"{count:,}" for count in COUNTS])
    axes.set_title(f"thin lines: {len(outcome.seeds)} seeds; thick ones: their means")
    figure.suptitle("What more images are worth")
