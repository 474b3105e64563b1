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
        data="scenes(fields=('image', 'label'), test_count=2000)",
        preprocess=Preprocess(size=size, resize=size, mean=SCENES.mean, std=SCENES.std),
        augment=("flip",),
        batch_size=32,
        steps=lab.budget(full=STEPS, smoke=2),
        lr=0.1,
        schedule="onecycle",
        weight_decay=5e-4,
    )
