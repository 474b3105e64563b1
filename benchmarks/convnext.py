"""ConvNeXts against timm, torchvision and transformers, in inference and training: python -m benchmarks.convnext.

The same weights and input in eager float32. Ours lie in memory with the channels innermost from the stem to the head, where
the linear layers need them; the references' maps go there and back, and their first blocks are copied. timm's small sizes
have 1x1 convolutions in place of linear layers.
"""

import jingdu
from benchmarks.paired import save

CASES = (
    ("timm/convnext_pico", 1, False), ("timm/convnext_pico", 4, False), ("timm/convnext_pico", 2, True),
    ("timm/convnext_tiny", 1, False), ("timm/convnext_tiny", 4, False), ("timm/convnext_tiny", 1, True),
    ("torchvision/convnext_tiny", 1, False),
)  # fmt: skip
"""Network, pictures at once, training."""


def cases(rounds: int = 7) -> list[dict[str, object]]:
    rows = [jingdu.bench(name, batch=batch, train=train, rounds=rounds) for name, batch, train in CASES]
    return [*rows, jingdu.bench("convnext_tiny", "transformers", batch=1, rounds=rounds)]


if __name__ == "__main__":
    save(cases(), "convnext.json")
