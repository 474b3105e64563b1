"""Mixers against timm, in inference and training: python -m benchmarks.mlp_mixer [NAME].

The same weights and input in eager float32. timm transposes the table before and after the MLP across patches; ours
multiplies it from the left.
"""

import sys

import jingdu
from benchmarks.paired import save


def cases(names: list[str], rounds: int = 6, batch: int = 4) -> list[dict[str, object]]:
    return [
        jingdu.bench(name, batch=size, train=train, rounds=rounds)
        for name in names
        for size, train in ((1, False), (batch, False), (batch, True))
    ]


if __name__ == "__main__":
    save(cases(sys.argv[1:] or ["timm/mixer_s16_224", "timm/mixer_b16_224"]), "mlp_mixer.json")
