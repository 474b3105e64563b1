"""ParNet-S fused against itself in training form, and against torchvision's ResNet-34 and -50: python -m benchmarks.parnet.

The networks of the other comparisons are not the same work. In top-1 on ImageNet ParNet-S (75.2 % in its paper) stands
between torchvision's first weights of the two (73.3 and 76.1), and the question is how long one picture takes.
"""

from typing import Any

import torch

import jingdu
from benchmarks.paired import compare, save
from jingdu.papers.cnn.parnet import fuse
from jingdu.speed.case import inference
from jingdu.speed.references import import_torchvision, randomise_


def cases(rounds: int = 9, side: int = 224) -> list[dict[str, Any]]:
    """One picture and four, in eager float32."""
    network = randomise_(jingdu.create("parnet_s_train"), torch.Generator().manual_seed(0)).eval()
    quick, rows = fuse(network), []
    models = import_torchvision().models
    others = {
        f"ResNet-{layers} of torchvision": getattr(models, f"resnet{layers}")(weights=None).eval()
        for layers in (34, 50)
    }
    for batch in (1, 4):
        x = torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(1))
        work = f"{batch} pictures of 3x{side}x{side}, inference"
        for name, reference in {"itself unfused": network, **others}.items():
            row = compare(
                inference(quick, (x,)),
                inference(reference, (x,)),
                f"parnet_s fused, batch {batch}, {name}",
                rounds,
                2,
                work,
            )
            rows.append(row)
    return rows


if __name__ == "__main__":
    save(cases(), "parnet.json")
