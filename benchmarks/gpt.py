"""GPT against transformers, forward and in training: python -m benchmarks.gpt."""

import jingdu
from benchmarks.paired import save


def cases(rounds: int = 8) -> list[dict[str, object]]:
    """The same weights and tokens in eager float32."""
    return [
        jingdu.bench("gpt1", "transformers", batch=batch, train=train, rounds=rounds)
        for batch, train in ((1, False), (1, True))
    ]


if __name__ == "__main__":
    save(cases(), "gpt.json")
