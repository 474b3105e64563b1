"""DeiT's claims, on handwritten digits."""

from typing import Any

from jingdu.data.preprocess import Preprocess
from jingdu.engine.contracts import Stage
from jingdu.lab import Lab, Outcome, Test, claim

DIGITS = Preprocess(mean=(0.305,), std=(0.376,), channels=1)
SIZES = "width=48, depth=3, heads=3, image_size=8, patch=2"
ARMS = {
    "no teacher": ("deit.MixedClassification()", "deit_mini"),
    "soft": ("deit.Distillation(kind='soft', alpha=0.9)", "deit_mini"),
    "hard": ("deit.Distillation()", "deit_mini"),
    "token": ("deit.Distillation()", "deit_mini_distilled"),
}
"""System and network of each student. A soft lesson is divided by the ten classes, so that 0.9 makes both terms equal."""
LABELS = {"no teacher": "no teacher", "soft": "soft labels", "hard": "hard labels", "token": "token"}


def _teacher(lab: Lab) -> Stage:
    return Stage(
        system="deit.MixedClassification()",
        networks={"network": "resnet20_cifar(width=8, depths=(1, 1, 1))"},
        data="digits",
        preprocess=DIGITS,
        batch_size=64,
        steps=lab.budget(full=200, smoke=2),
        lr=0.1,
        schedule="onecycle",
        weight_decay=1e-4,
    )


def _student(lab: Lab, system: str, networks: dict[str, str]) -> Stage:
    return Stage(
        system=system,
        networks=networks,
        data="digits",
        preprocess=DIGITS,
        batch_size=64,
        steps=lab.budget(full=600, smoke=2),
        optimizer="adamw",
        lr=4e-3,
        weight_decay=0.05,
        schedule="cosine(warmup=30)",
        clip=1.0,
    )


def _similarity(network: Any) -> list[float]:
    """Cosines of the two tokens behind each block, on test digits."""
    import torch

    from jingdu.data import open_data
    from jingdu.engine.stream import evaluation_batches
    from jingdu.papers.vit.deit import token_similarity

    with torch.no_grad():
        batch = next(evaluation_batches(open_data("digits", "test", DIGITS), 256, DIGITS))
        return token_similarity(network.eval(), batch["image"]).tolist()


# The margins (2 points, 0.3 points) are the canon's, set on 2026-11-26 before the first full run.
@claim(
    "A token that learns a convolutional teacher's hard labels makes a vision transformer better than no teacher does, and no "
    "worse than hard labels for the class token.",
    source="Tab. 3, Sec. 5.2",
    tests=(
        Test(
            "no teacher.error",
            "token.error",
            above=0.02,
            about="the token's student errs less than one without a teacher",
        ),
        Test("token.error", "hard.error", below=0.003, about="and no more than one whose class token is taught"),
        Test("token.similarity", 1, below=0.0, about="the two tokens are not the same behind the last block"),
    ),
    seeds=3,
    minutes=4.0,
    about="scikit-learn's 1,347 training digits of 8x8 pixels, all students with mixup and CutMix on every batch; the teacher is a "
    "ResNet of 8 layers that learned from the same images, mixed in the same way.",
)
def distillation_token(lab: Lab, seed: int) -> dict[str, dict[str, float]]:
    """Train a ResNet, and four transformers of which three learn from it; compare their test errors."""
    teacher = lab.train(_teacher(lab), seed=seed)
    values = {"teacher": {"error": teacher.metrics["error"]}}
    for arm, (system, network) in ARMS.items():
        networks = {"network": f"{network}({SIZES})"}
        if arm != "no teacher":
            networks["teacher"] = f"resnet20_cifar(weights={str(teacher.folder)!r})"
        run = lab.train(_student(lab, system, networks), seed=seed)
        values[arm] = {name: value for name, value in run.metrics.items() if name.endswith("error")}
        if arm == "token":
            cosines = _similarity(run.system.network)
            values[arm]["similarity"] = cosines[-1]
            lab.curve("similarity", range(1, len(cosines) + 1), cosines, "block", "cosine of the two tokens")
    return values


@distillation_token.figure
def draw(figure: Any, outcome: Outcome) -> None:
    """The students' test errors, and how alike the two tokens are behind each block."""
    from jingdu.lab.style import PALETTE, draw_dots

    left, right = figure.subplots(1, 2, width_ratios=(1.7, 1))
    draw_dots(left, outcome, LABELS, "error", scale=100)
    best = 100 * sum(outcome.values["teacher"]["error"]) / len(outcome.seeds)
    left.axhline(best, color="#666666", linestyle=(0, (4, 3)), linewidth=1.2)
    left.annotate(
        f"teacher: {best:.1f} %", (0.02, best), xycoords=("axes fraction", "data"), xytext=(0, 4), textcoords="offset points",
        color="#666666",
    )  # fmt: skip
    left.set_ylim(bottom=0)
    left.set_ylabel("test error (%)")
    left.set_title(f"four students, {len(outcome.seeds)} seeds each")
    for xs, ys in outcome.curves["similarity"]:
        right.plot(xs, ys, color=PALETTE[0], marker="o", markersize=4, linewidth=1.2)
    right.set_xticks(outcome.curves["similarity"][0][0])
    right.set_ylim(top=1.02)
    right.axhline(1.0, color="#999999", linewidth=1)
    right.set_xlabel("behind block")
    right.set_ylabel("cosine")
    right.set_title("class and distillation token")
    figure.suptitle("A teacher's labels, and a token that learns them")
