"""AlexNet's claims, on little worlds of coloured shapes."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from jingdu.data import open_data
from jingdu.data.augment import flip, random_crop
from jingdu.data.draws import Draws
from jingdu.engine.stream import evaluation_batches
from jingdu.lab import Lab, Outcome, Test, claim
from jingdu.lab.style import PALETTE, QUIET, draw_image
from jingdu.papers.cnn.alexnet import SCENES, filter_picture, pca_colour_shift, recipes

STAGE = recipes["laptop"].stages[-1]
SHOWN = 8


def worlds(lab: Lab, seed: int, count: int) -> str:
    """The data of one seed: `count` scenes to learn from and 1,000 to be tested on, which no other seed has."""
    sizes = lab.budget(full=(count, 1000), smoke=(160, 40))
    return f"scenes(fields=('image', 'label'), count={sizes[0]}, test_count={sizes[1]}, seed={seed})"


def pictures(data: str, split: Any) -> tuple[Tensor, np.ndarray]:
    """All images [scenes, 3, 64, 64] in [0, 1] of one split, and their labels."""
    source = open_data(data, split, SCENES)
    rows = np.arange(len(source))
    batch = source.batch(rows, Draws(0, 0, rows))
    return batch["image"], batch["label"].numpy()


def strip(images: Tensor, columns: int = SHOWN, gap: int = 3) -> Tensor:
    """Images side by side on white, in rows of `columns`."""
    padded = torch.nn.functional.pad(images, (0, gap, 0, gap), value=1.0)
    rows = [torch.cat(list(row), dim=2) for row in padded.split(columns)]
    return torch.cat(rows, dim=1)[:, :-gap, :-gap]


# Learned features against ones made by hand -----------------------------------------------------------


def gradient_histograms(images: Tensor) -> np.ndarray:
    """HOG as Dalal and Triggs (2005) settled on it: 9 directions, cells of 8x8, normalised in blocks of 2x2 cells."""
    from skimage.feature import hog

    rows = [hog(x, 9, (8, 8), (2, 2), block_norm="L2-Hys", channel_axis=0) for x in images.numpy()]
    return np.stack(rows).astype(np.float32)


def best_error(make: Any, strengths: list[float], train: tuple[Any, Any], test: tuple[Any, Any]) -> tuple[float, float]:
    """Test error of the classifier `make(C)` with the C that errs least on a held-out quarter, and that C."""
    import warnings

    from sklearn.exceptions import ConvergenceWarning

    x, y = train
    kept = len(y) * 3 // 4

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a strength that does not converge may lose fairly
        held_out = [1 - make(c).fit(x[:kept], y[:kept]).score(x[kept:], y[kept:]) for c in strengths]
        best = strengths[int(np.argmin(held_out))]
        return float(1 - make(best).fit(x, y).score(*test)), best


# The margin of 0.7 is the canon's; both were set on 2026-11-25, before the first full run. That run, with a narrower
# network (0.6 million weights, dropout 0.2, 900 steps), left errors of 2.8, 10.1 and 7.5 %: 0.22 [0.04, 1.23] of HOG's,
# inconclusive. 2026-11-26: with the network as it is now and 600 steps, 3.0, 10.6 and 32.4 %, inconclusive again: seeds
# differ in when a network leaves chance, and the cycle ended before the late ones had learned. So the recipe, and with it
# this claim, has 1,200 steps since. Margins stand.
@claim(
    "A network that learns everything from the pixels errs far less than a linear classifier on hand-made features.",
    source="Table 1, Sec. 6",
    tests=(
        Test("alexnet.error", "hog.error", below=0.7, ratio=True, about="at most 0.7 of the errors of HOG and an SVM"),
        Test("alexnet.error", "pixels.error", below=0.7, ratio=True, about="at most 0.7 of those of softmax on pixels"),
    ),
    seeds=3,
    minutes=12.0,
    about="Which of eight shapes is the largest, in 4,000 cluttered scenes of 64x64 pixels instead of 1.2 million "
    "photographs; a network of 0.7 million weights; histograms of oriented gradients and a linear SVM in the place of "
    "SIFT and Fisher vectors. All see the same images, other ones under each seed; the strengths of the SVM's and the "
    "softmax's regularisation are chosen on a held-out quarter.",
)
def learned_features(lab: Lab, seed: int) -> dict[str, dict[str, float]]:
    """Three classifiers of the same training images."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import LinearSVC

    data = worlds(lab, seed, 4000)
    run = lab.train(STAGE, seed, data=data, steps=lab.budget(full=STAGE.steps, smoke=2))
    (images, labels), (test_images, test_labels) = (pictures(data, split) for split in ("train", "test"))
    few = lab.budget(full=100, smoke=3)
    hog, svm_c = best_error(
        lambda c: LinearSVC(C=c, random_state=seed, max_iter=20 * few),
        lab.budget(full=[0.003, 0.01, 0.03, 0.1], smoke=[0.01]),
        (gradient_histograms(images), labels),
        (gradient_histograms(test_images), test_labels),
    )
    mean = images.mean(0)
    pixels, softmax_c = best_error(
        lambda c: LogisticRegression(C=c, max_iter=few),
        lab.budget(full=[1e-4, 1e-3, 1e-2], smoke=[1e-3]),
        ((images - mean).flatten(1).numpy(), labels),
        ((test_images - mean).flatten(1).numpy(), test_labels),
    )
    first = [int(np.argmax(test_labels == label)) for label in range(SHOWN)]
    lab.image("scenes", strip(test_images[first], columns=4))
    lab.image("filters", filter_picture(run.system.network.conv1.weight.detach(), columns=4))
    return {
        "alexnet": {"error": run.metrics["error"]},
        "hog": {"error": hog, "strength": svm_c},
        "pixels": {"error": pixels, "strength": softmax_c},
    }


@learned_features.figure
def draw_features(figure: Any, outcome: Outcome) -> None:
    """What is to be told apart, the three errors, and like Figure 3 what the first layer came to look for."""
    figure.set_size_inches(10, 4.2)
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.35, 1.7, 1))
    draw_image(left, outcome, "scenes", "a test scene of each class")
    names = {"pixels": "softmax\non pixels", "hog": "linear SVM\non HOG", "alexnet": "AlexNet"}
    for place, (arm, colour) in enumerate(zip(names, (PALETTE[6], PALETTE[1], PALETTE[0]), strict=True)):
        errors = 100 * np.asarray(outcome.values[arm]["error"])
        middle.bar(place, errors.mean(), width=0.62, color=colour, alpha=0.85)
        middle.scatter(np.full(len(errors), place), errors, s=16, color="white", edgecolors=colour, zorder=3)
        middle.annotate(
            f"{errors.mean():.1f} %", (place, errors.max()), xytext=(0, 5), textcoords="offset points", ha="center"
        )
    middle.set_xticks(range(len(names)), list(names.values()))
    middle.set_ylabel("test error (%)")
    middle.set_ylim(0, 105)
    middle.grid(axis="x", visible=False)
    middle.set_title(f"test error, a dot a seed ({len(outcome.seeds)})")
    draw_image(right, outcome, "filters", "the kernels of conv1")
    figure.suptitle("Learned features against hand-made ones")


# What dropout and augmentation are for ----------------------------------------------------------------

FEW, STEPS = 1000, 500


def _train_error(system: Any, data: str) -> float:
    """Error on the training images as they are, by the network as it is after training."""
    with torch.no_grad():
        for batch in evaluation_batches(open_data(data, "train", SCENES), 250, SCENES):
            system.update(batch)
    return system.compute()["error"]


# Set on 2026-11-25, before the first full run: 3 points of the difference between test and training error.
# 2026-11-26: that run has the sign under all seeds, and is inconclusive: under seed 0 the network with dropout and
# augmentation was far from done (29 % training error), and its gap nearly as large as the other's.
@claim(
    "Without dropout and augmentation the network overfits: the gap between its test and training error is larger.",
    source="Sec. 4.1, 4.2",
    tests=(Test("neither.gap", "both.gap", above=0.03, about="a gap larger by 3 points without either"),),
    seeds=3,
    minutes=8.0,
    about="1,000 scenes to learn from, so that there is something to overfit. Both networks start from the same "
    "weights and see the same images for the same number of steps; one with shifts, mirror images, the shift of "
    "colours and a dropout of 0.1, the other without. Both errors are of the finished network on images as they are.",
)
def overfitting(lab: Lab, seed: int) -> dict[str, dict[str, float]]:
    """The same training with and without what Section 4 adds to it."""
    data = worlds(lab, seed, FEW)
    arms = {
        "both": {},
        "neither": {"augment": (), "networks": {"network": "alexnet_scenes(dropout=0.0)"}},
    }
    values = {}
    for arm, changes in arms.items():
        steps = lab.budget(full=STEPS, smoke=2)
        run = lab.train(STAGE, seed, data=data, steps=steps, evaluate_every=max(steps // 5, 1), **changes)
        lab.curve(arm, *run.series("eval.loss"), "step", "test loss (nats)")
        train = _train_error(run.system, data)
        test = run.metrics["error"]
        values[arm] = {"train_error": train, "test_error": test, "gap": test - train, "test_loss": run.metrics["loss"]}
    lab.image("views", _views(data))
    return values


def _views(data: str) -> Tensor:
    """A training scene as it is, and as later epochs see it."""
    images, labels = pictures(data, "train")
    image = images[int(np.argmax(labels == SHOWN - 1))]  # a crescent: it shows that it is mirrored
    copies = image.expand(SHOWN, -1, -1, -1)
    draws = Draws(0, 1, range(SHOWN))
    seen = pca_colour_shift(flip(random_crop(copies, draws), draws), draws)
    return strip(torch.cat([image[None], seen[1:]]), columns=4)


@overfitting.figure
def draw_overfitting(figure: Any, outcome: Outcome) -> None:
    """A scene and its augmented views; training and test error of each network; test loss along the way."""
    figure.set_size_inches(10.5, 4.2)
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.25, 1.6, 1.3))
    draw_image(left, outcome, "views", "a scene, and views of it")
    arms = {"neither": ("neither", PALETTE[1]), "both": ("dropout and\naugmentation", PALETTE[0])}
    for place, (arm, (_, colour)) in enumerate(arms.items()):
        pairs = [100 * np.asarray(outcome.values[arm][name]) for name in ("train_error", "test_error")]
        count = len(pairs[0])
        for number, (train, test) in enumerate(zip(*pairs, strict=True)):
            height = place + 0.16 * (number - (count - 1) / 2)
            middle.plot([train, test], [height, height], color=colour, linewidth=2.2, alpha=0.6)
            middle.plot(train, height, "o", color="white", markeredgecolor=colour, zorder=3)
            middle.plot(test, height, "o", color=colour, zorder=3)
        gap = pairs[1].mean() - pairs[0].mean()
        middle.annotate(
            f"a gap of {gap:.1f} points", (min(p.min() for p in pairs), place + 0.08 * count + 0.1),
            ha="left", va="bottom", color=colour, weight="bold", fontsize=9.5,
        )  # fmt: skip
    middle.set_yticks(range(len(arms)), [label for label, _ in arms.values()])
    middle.set_ylim(-0.5, 1.7)
    largest = 100 * max(max(outcome.values[arm]["test_error"]) for arm in arms)
    middle.set_xlim(-0.05 * largest, 1.1 * largest)
    middle.grid(axis="y", visible=False)
    middle.set_xlabel("error (%)")
    middle.set_title("training (○) and test error (●), a line a seed")
    for arm, (label, colour) in arms.items():
        curves = outcome.curves[arm]
        for xs, ys in curves:
            right.plot(xs, ys, color=colour, linewidth=0.9, alpha=0.4)
        right.plot(curves[0][0], np.mean([ys for _, ys in curves], 0), color=colour, label=label.replace("\n", " "))
    right.set(xlabel="step", ylabel="test loss (nats)")
    right.axhline(np.log(SHOWN), color=QUIET, linewidth=1, linestyle=(0, (4, 3)))
    right.annotate("chance", (0.98, np.log(SHOWN)), xycoords=("axes fraction", "data"), ha="right", va="bottom")
    right.set_title("test loss")
    right.set_ylim(0, 2.7)
    right.legend(loc="upper left")
    figure.suptitle("What dropout and augmentation are for, with 1,000 training images")
