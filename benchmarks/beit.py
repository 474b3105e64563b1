"""BEiT-base against timm, in inference and training: python -m benchmarks.beit."""

import jingdu
from benchmarks.paired import save


def cases(rounds: int = 8, batch: int = 4) -> list[dict[str, object]]:
    """The same weights and input in eager float32: inference of one picture and of `batch`, and a training step."""
    return [
        jingdu.bench("beit_base_224", "timm", batch=1, rounds=rounds),
        jingdu.bench("beit_base_224", "timm", batch=batch, rounds=rounds),
        jingdu.bench("beit_base_224", "timm", batch=2, train=True, rounds=rounds),
    ]


if __name__ == "__main__":
    save(cases(), "beit.json")
