"""VGG-11 and -16 against torchvision and timm, in inference and training: python -m benchmarks.vgg [LIBRARY [VARIANT]].

Each run of a library and variant is a file of its own: the networks are half a gigabyte each, and a training step of both
takes four times that.
"""

import sys

import jingdu
from benchmarks.paired import save


def cases(library: str, variant: str, rounds: int = 12, batch: int = 4) -> list[dict[str, object]]:
    """The same weights and input in eager float32: inference of one picture and of `batch`, and a training step."""
    return [
        jingdu.bench(variant, library, batch=1, rounds=rounds),
        jingdu.bench(variant, library, batch=batch, rounds=rounds),
        jingdu.bench(variant, library, batch=batch, train=True, rounds=rounds),
    ]


if __name__ == "__main__":
    libraries, variants = sys.argv[1:2] or ("torchvision", "timm"), sys.argv[2:3] or ("vgg11", "vgg16")
    rows = [row for library in libraries for variant in variants for row in cases(library, variant)]
    save(rows, "-".join(["vgg", *sys.argv[1:3]]) + ".json")
