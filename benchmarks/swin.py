"""Swin-T against timm and torchvision, in inference and training: python -m benchmarks.swin [optimised].

The same weights and images in eager float32; `optimised` is ours by `optimize_for_inference` against their plain float32.
"""

import sys

import jingdu
from benchmarks.paired import save

LIBRARIES = ("timm", "torchvision")


def cases(rounds: int = 8, batch: int = 2) -> list[dict[str, object]]:
    return [
        jingdu.bench("swin_tiny", library, batch=batch, train=train, rounds=rounds)
        for library in LIBRARIES
        for train in (False, True)
    ]


def optimised(rounds: int = 8, batch: int = 2) -> list[dict[str, object]]:
    return [jingdu.bench("swin_tiny", "timm", batch=batch, optimize=True, rounds=rounds)]


if __name__ == "__main__":
    if "optimised" in sys.argv:
        save(optimised(), "swin-optimised.json")
    else:
        save(cases(), "swin.json")
