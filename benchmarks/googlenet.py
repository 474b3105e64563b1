"""GoogLeNet against torchvision's, in inference and training: python -m benchmarks.googlenet."""

import jingdu
from benchmarks.paired import save


def cases(rounds: int = 8, batch: int = 4) -> list[dict[str, object]]:
    """The same weights and input in eager float32: inference of one picture and of `batch`, the latter also as
    `optimize_for_inference` makes it, and a training step."""
    name = "torchvision/googlenet"
    return [
        jingdu.bench(name, batch=1, rounds=rounds),
        jingdu.bench(name, batch=batch, rounds=rounds),
        jingdu.bench(name, batch=batch, rounds=rounds, optimize=True),
        jingdu.bench(name, batch=batch, train=True, rounds=rounds),
    ]


if __name__ == "__main__":
    save(cases(), "googlenet.json")
