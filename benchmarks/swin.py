"""Swin-T against timm and torchvision, in inference and training: python -m benchmarks.swin [optimised].

The same weights and images in eager float32; `optimised` is ours by `optimize_for_inference` against their plain float32.
"""

import sys

import jingdu
from benchmarks.paired import compare, save
from jingdu.speed.case import difference, inference, make_pair

LIBRARIES = ("timm", "torchvision")


def cases(rounds: int = 8, batch: int = 2) -> list[dict[str, object]]:
    return [
        jingdu.bench("swin_tiny", library, batch=batch, train=train, rounds=rounds)
        for library in LIBRARIES
        for train in (False, True)
    ]


def optimised(rounds: int = 8, batch: int = 2) -> list[dict[str, object]]:
    """Without compilation, which takes minutes."""
    pair = make_pair("swin_tiny", "timm", batch)
    (x,) = pair.inputs
    quick = jingdu.optimize_for_inference(pair.ours, x, compile=False, cache=False)
    works = inference(quick, (x,)), inference(pair.reference, (x,))
    title = f"swin_tiny against timm, batch {batch}, optimised inference against plain float32"
    more = {"difference": difference(works[0](), works[1]()), "optimization": quick.optimization.as_json()}
    return [compare(*works, title, rounds) | more]


if __name__ == "__main__":
    if "optimised" in sys.argv:
        save(optimised(), "swin-optimised.json")
    else:
        save(cases(), "swin.json")
