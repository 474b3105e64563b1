"""ResNet-18 and -50 against torchvision and timm, in inference and training: python -m benchmarks.resnet."""

import jingdu
from benchmarks.paired import save


def cases(rounds: int = 20, batch: int = 8) -> list[dict[str, object]]:
    """The same weights and input in eager float32."""
    return [
        jingdu.bench(variant, library, batch=batch, train=train, rounds=rounds)
        for library in ("torchvision", "timm")
        for variant in ("resnet18", "resnet50")
        for train in (False, True)
    ]


if __name__ == "__main__":
    save(cases(), "resnet.json")
