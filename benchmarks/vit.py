"""ViTs against timm and torchvision, in inference and training: python -m benchmarks.vit.

The same weights and input in eager float32. torchvision's blocks go through nn.MultiheadAttention, whose fast path in
evaluation is the one to beat.
"""

import sys

import jingdu
from benchmarks.paired import save

CASES = (
    ("timm/vit_tiny_patch16_224", 1, False), ("timm/vit_tiny_patch16_224", 8, False), ("timm/vit_tiny_patch16_224", 8, True),
    ("timm/vit_base_patch16_224", 1, False), ("torchvision/vit_b_32", 2, False), ("torchvision/vit_b_32", 2, True),
)  # fmt: skip
"""Network, pictures at once, training."""


def cases(rounds: int = 6) -> list[dict[str, object]]:
    return [jingdu.bench(name, batch=batch, train=train, rounds=rounds) for name, batch, train in CASES]


def optimized(rounds: int = 6) -> list[dict[str, object]]:
    """What `jingdu.optimize_for_inference` reaches against timm's plain network."""
    return [jingdu.bench("timm/vit_base_patch16_224", batch=batch, optimize=True, rounds=rounds) for batch in (1, 4)]


if __name__ == "__main__":
    if "optimized" in sys.argv[1:]:
        save(optimized(), "vit-optimised.json")
    else:
        save(cases(), "vit.json")
