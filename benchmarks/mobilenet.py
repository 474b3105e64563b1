"""MobileNet, both versions, against torchvision and timm, in inference and training: python -m benchmarks.mobilenet."""

import jingdu
from benchmarks.paired import save

PAIRS = (("mobilenet_v1_100", "timm"), ("mobilenet_v2_100", "timm"), ("mobilenet_v2_100", "torchvision"))


def cases(rounds: int = 10, batch: int = 8) -> list[dict[str, object]]:
    """The same weights and input in eager float32, and ours by `optimize_for_inference` against their plain float32."""
    rows = [
        jingdu.bench(variant, library, batch=size, train=train, rounds=rounds)
        for variant, library in PAIRS
        for size, train in ((1, False), (batch, False), (batch, True))
    ]
    return rows + [jingdu.bench(variant, "timm", batch=batch, optimize=True, rounds=rounds) for variant, _ in PAIRS[:2]]


if __name__ == "__main__":
    save(cases(), "mobilenet.json")
