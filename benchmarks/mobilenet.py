"""MobileNet, both versions, against torchvision and timm: python -m benchmarks.mobilenet [optimised].

The same weights and input in eager float32, in inference and training; `optimised` is ours by `optimize_for_inference`
against their plain float32.
"""

import sys

import jingdu
from benchmarks.paired import save

PAIRS = (("mobilenet_v1_100", "timm"), ("mobilenet_v2_100", "timm"), ("mobilenet_v2_100", "torchvision"))


def cases(rounds: int = 8, batch: int = 4) -> list[dict[str, object]]:
    return [
        jingdu.bench(variant, library, batch=size, train=train, rounds=rounds)
        for variant, library in PAIRS
        for size, train in ((1, False), (batch, False), (batch, True))
    ]


def optimised(rounds: int = 8, batch: int = 4) -> list[dict[str, object]]:
    return [jingdu.bench("mobilenet_v2_100", "timm", batch=batch, optimize=True, rounds=rounds)]


if __name__ == "__main__":
    if "optimised" in sys.argv:
        save(optimised(), "mobilenet-optimised.json")
    else:
        save(cases(), "mobilenet.json")
