"""EfficientNet-B0 against torchvision, timm and transformers: python -m benchmarks.efficientnet [optimised].

The same weights and input in eager float32, in inference and training; `optimised` is ours by `optimize_for_inference`
against timm's plain float32.
"""

import sys

import jingdu
from benchmarks.paired import save

NAMES = ("timm/efficientnet_b0", "timm/tf_efficientnet_b0", "torchvision/efficientnet_b0")


def cases(rounds: int = 6, batch: int = 4) -> list[dict[str, object]]:
    return [
        jingdu.bench(name, batch=size, train=train, rounds=rounds)
        for name in NAMES
        for size, train in ((1, False), (batch, False), (batch, True))
    ]


def optimised(rounds: int = 6) -> list[dict[str, object]]:
    return [jingdu.bench(NAMES[0], batch=4, optimize=True, rounds=rounds)]


if __name__ == "__main__":
    if "optimised" in sys.argv:
        save(optimised(), "efficientnet-optimised.json")
    else:
        save(cases(), "efficientnet.json")
