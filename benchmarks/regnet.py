"""RegNets against timm and torchvision, in inference and training: python -m benchmarks.regnet.

The same weights and input in eager float32. Activations stand beside FLOPs: what a network takes follows them (Sec. 3.5).
"""

import torch

import jingdu
from benchmarks.paired import save
from jingdu.papers.cnn.regnet import AnyNet, complexity

NAMES = ("timm/regnetx_002", "timm/regnety_004", "torchvision/regnet_y_400mf")


def activations(name: str) -> int:
    """Numbers that the convolutions of a network give for one picture of 224x224 pixels."""
    with torch.device("meta"):
        network: AnyNet = jingdu.create(name)
    firsts = [stage[0].conv2.conv for stage in network.stages]
    depths, ratios = [len(stage) for stage in network.stages], [1.0] * len(firsts)
    return complexity(
        network.channels, depths, ratios, [conv.in_channels // conv.groups for conv in firsts]
    ).activations


def cases(rounds: int = 6, batch: int = 4) -> list[dict[str, object]]:
    return [
        jingdu.bench(name, batch=size, train=train, rounds=rounds) | {"activations": activations(name)}
        for name in NAMES
        for size, train in ((1, False), (batch, False), (batch, True))
    ]


if __name__ == "__main__":
    save(cases(), "regnet.json")
