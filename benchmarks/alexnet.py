"""AlexNet's single tower against torchvision, in inference and training: python -m benchmarks.alexnet."""

import jingdu
from benchmarks.paired import save


def cases(rounds: int = 30) -> list[dict[str, object]]:
    """The same weights and input in eager float32: one image, which reads 61 million weights, and eight."""
    return [
        jingdu.bench("alexnet_one_weird_trick", "torchvision", batch=batch, train=train, rounds=rounds)
        for train in (False, True)
        for batch in (1, 8)
    ]


if __name__ == "__main__":
    save(cases(), "alexnet.json")
