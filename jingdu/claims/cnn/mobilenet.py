"""MobileNet's claim, on digits that are turned, sheared, moved and of all sizes."""

from jingdu.engine.contracts import Stage
from jingdu.lab import Lab
from jingdu.papers.cnn.mobilenet import DIGITS

STEPS, LONG = 300, 900
ROWS = "rows=((24, 1, 1), (48, 2, 2), (96, 2, 2)), stem=(16, 1), dropout=0.0"
ARMS = {
    "separable": (f"mobilenet_v1_100({ROWS})", STEPS),
    "separable, 3 times the steps": (f"mobilenet_v1_100({ROWS})", LONG),
    "thin": (f"mobilenet_v1_full({ROWS}, alpha=0.37)", STEPS),
    "full": (f"mobilenet_v1_full({ROWS})", STEPS),
}
"""Name -> network and steps."""


def _stage(lab: Lab, network: str, steps: int) -> Stage:
    return Stage(
        networks={"network": network},
        data="affine_digits",
        preprocess=DIGITS,
        batch_size=64,
        steps=lab.budget(full=steps, smoke=2),
        lr=0.05,
        schedule="onecycle",
        weight_decay=5e-4,
        decay="dense",
    )
