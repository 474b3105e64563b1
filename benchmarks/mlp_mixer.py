"""Mixers against timm, in inference and training: python -m benchmarks.mlp_mixer.

The same weights and input in eager float32. timm transposes the table before and after the MLP across patches; ours
multiplies it from the left. The rest is the same few matrix products, so that little can be gained.
"""

import jingdu
from benchmarks.paired import save

CASES = (
    ("timm/mixer_s16_224", 1, False), ("timm/mixer_s16_224", 4, False), ("timm/mixer_s16_224", 2, True),
    ("timm/mixer_b16_224", 1, False),
)  # fmt: skip
"""Network, pictures at once, training."""


def cases(rounds: int = 8) -> list[dict[str, object]]:
    return [jingdu.bench(name, batch=batch, train=train, rounds=rounds) for name, batch, train in CASES]


if __name__ == "__main__":
    save(cases(), "mlp_mixer.json")
