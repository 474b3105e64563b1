"""GPT against transformers: forward, in training, and one token after the other: python -m benchmarks.gpt [CASE ...].

transformers' GPT keeps no keys and values, so its text takes a whole forward for each token.
"""

import sys
import warnings
from typing import Any

import jingdu
from benchmarks.paired import save
from jingdu.speed.case import bench_decoding

CASES = ("forward", "training", "decoding")


def case(name: str, rounds: int = 8) -> list[dict[str, Any]]:
    """The same weights and tokens."""
    if name in ("forward", "training"):
        return [jingdu.bench("gpt1", "transformers", batch=1, train=name == "training", rounds=rounds)]
    return bench_decoding("gpt1", "transformers")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    for word in sys.argv[1:] or CASES:
        save(case(word), f"gpt-{word}.json")
