"""GPT-2 against transformers: forward, in training, and one token after the other: python -m benchmarks.gpt2 [CASE ...]."""

import sys
import warnings
from typing import Any

import jingdu
from benchmarks.paired import save
from jingdu.speed.case import bench_decoding

CASES = ("forward", "training", "decoding", "bf16")


def case(name: str, rounds: int = 8) -> list[dict[str, Any]]:
    """The same weights and tokens."""
    if name in ("forward", "training"):
        return [jingdu.bench("gpt2", "transformers", batch=1, train=name == "training", rounds=rounds)]
    # A CPU without bf16 units emulates them in the reference's products of many rows: fewer tokens say as much.
    return bench_decoding("gpt2", "transformers", **({"dtype": "bf16", "length": 24} if name == "bf16" else {}))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    for word in sys.argv[1:] or CASES:
        save(case(word), f"gpt2-{word}.json")
