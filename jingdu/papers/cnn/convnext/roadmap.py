"""From ResNet-50 to ConvNeXt-T, step by step (Section 2, Figure 2): one network, and how far it has come."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from jingdu.errors import UsageError
from jingdu.nn import check_images, each, quick_layout
from jingdu.papers.cnn.nas.cells import drop_path

from .layers import LayerNorm2d
from .model import spread

__all__ = ["STEPS", "Road", "RoadBlock", "Step"]


class Step(NamedTuple):
    """A change, and what the network with all changes up to it has on ImageNet (Table 10)."""

    name: str
    about: str
    accuracy: float
    """Top-1 in per cent, the mean of three runs of 300 epochs."""
    flops: float
    """Thousand million multiply-adds at 224 pixels, as convolutions and linear layers have them."""


STEPS = (
    Step("resnet", "ResNet-50, trained as a transformer is", 78.8, 4.09),
    Step("ratio", "blocks of the stages 3, 3, 9, 3 and not 3, 4, 6, 3 (2.2)", 79.4, 4.53),
    Step("patchify", "a stem of 4x4 patches, no max-pool (2.2)", 79.5, 4.42),
    Step("depthwise", "3x3 convolutions are depthwise (2.3)", 78.3, 2.35),
    Step("width", "96 channels and not 64 (2.3)", 80.5, 5.27),
    Step("inverted", "blocks are wide inside, not at their ends (2.4)", 80.6, 4.64),
    Step("up", "the depthwise convolution comes first (2.5)", 79.9, 4.07),
    Step("kernel", "of 7x7 pixels (2.5)", 80.6, 4.15),
    Step("gelu", "GELU and not ReLU (2.6)", 80.6, 4.15),
    Step("activations", "one activation a block (2.6)", 81.3, 4.15),
    Step("norms", "one norm a block (2.6)", 81.4, 4.15),
    Step("layernorm", "layer norms and not batch norms (2.6)", 81.5, 4.15),
    Step("downsample", "downsampling between stages, with norms; this is ConvNeXt-T (2.6)", 82.0, 4.46),
)
"""In the order of Section 2; 3x3 before 7x7 and other kernels tried on the way are left out."""


class RoadBlock(nn.Module):
    """A residual block of three convolutions, from ResNet's bottleneck to ConvNeXt's block.

    Args:
        inputs: channels.
        width: of the stage: of a bottleneck's inside, or of an inverted one's ends.
        stride: of the convolution over places.
        taken: names of the steps that are taken.
        drop: probability that an image skips the block in training.
        scale: where layer scale starts, which comes with the last step; None has none.
    """

    def __init__(
        self, inputs: int, width: int, stride: int, taken: frozenset[str], drop: float = 0.0, scale: float | None = 1e-6
    ):
        super().__init__()
        wide = 4 * width
        outputs = width if "inverted" in taken else wide
        if "up" in taken:
            sizes, place = (inputs, inputs, wide, width), 0
        elif "inverted" in taken:
            sizes, place = (inputs, wide, wide, width), 1
        else:
            sizes, place = (inputs, width, width, wide), 1
        kernel = 7 if "kernel" in taken else 3
        few, bias = "norms" in taken, "norms" in taken
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        for i, (a, b) in enumerate(pairwise(sizes)):
            here = i == place
            groups = a if here and "depthwise" in taken else 1
            size = kernel if here else 1
            self.convs.append(nn.Conv2d(a, b, size, stride if here else 1, size // 2, groups=groups, bias=bias))
            self.norms.append(nn.Identity() if few and i > 0 else norm_of(taken, b))
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs or stride != 1:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), norm_of(taken, outputs))
        self.activate = F.gelu if "gelu" in taken else F.relu
        self.active = (1,) if "activations" in taken else (0, 1)
        """Behind which convolutions there is an activation."""
        self.last = "activations" not in taken
        scaled = scale is not None and "downsample" in taken
        self.scale = nn.Parameter(torch.full((outputs,), scale)) if scaled else None
        self.drop = drop

    def forward(self, x: Float[Tensor, "batch inputs height w"]) -> Float[Tensor, "batch outputs less_height less_w"]:
        y = x
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            y = norm(conv(y))
            y = self.activate(y) if i in self.active else y
        y = y if self.scale is None else y * self.scale[:, None, None]
        y = self.shortcut(x) + drop_path(y, self.drop if self.training else 0.0)
        return self.activate(y) if self.last else y


def norm_of(taken: frozenset[str], width: int) -> nn.Module:
    return LayerNorm2d(width) if "layernorm" in taken else nn.BatchNorm2d(width)


class Road(nn.Module):
    """The network after some of the steps, all of which make it ConvNeXt-T.

    The text does not say where a stem has norms and activations on the way, or a block biases: here the stem keeps its norm
    to the end and loses its activation with the blocks' ("activations"); biases come where norms go ("norms"). Layer scale
    comes with the last step.

    Args:
        steps: how many of `STEPS` are taken; 0 is ResNet-50.
        num_classes: of the head.
        depths: blocks of the stages before the step "ratio", and from it on.
        widths: of the first stage before the step "width", and from it on; each later stage has twice those before.
        in_channels: of the images.
        stem: side of the stem's patches, and stride of the stem before them.
        drop: probability that an image skips the last block; earlier ones have less, evenly.
        scale: where layer scale starts; None has none.

    Raises UsageError for another number of steps.
    """

    def __init__(
        self,
        steps: int = len(STEPS) - 1,
        num_classes: int = 1000,
        depths: Sequence[Sequence[int]] = ((3, 4, 6, 3), (3, 3, 9, 3)),
        widths: Sequence[int] = (64, 96),
        in_channels: int = 3,
        stem: int = 4,
        drop: float | int = 0.0,
        scale: float | None = 1e-6,
    ):
        super().__init__()
        if not 0 <= steps < len(STEPS) or stem not in (1, 2, 4):
            raise UsageError(
                f"steps={steps}, stem={stem}: from 0 to {len(STEPS) - 1} steps, and a stem of 1, 2 or 4 pixels"
            )
        taken = frozenset(step.name for step in STEPS[1 : steps + 1])
        self.taken = taken
        width, depths = widths["width" in taken], depths["ratio" in taken]
        split = "downsample" in taken
        kernel, stride = (stem, stem) if "patchify" in taken else ((7, 2) if stem == 4 else (3, stem))
        patches = "patchify" in taken
        self.stem = nn.Conv2d(in_channels, width, kernel, stride, 0 if patches else kernel // 2, bias="norms" in taken)
        self.stem_norm = norm_of(taken, width)
        self.pool = nn.MaxPool2d(3, 2, 1) if stem == 4 and not patches else nn.Identity()
        rates = iter(spread(drop, sum(depths)))
        self.downsamples, self.stages = nn.ModuleList(), nn.ModuleList()
        inputs = width
        for number, depth in enumerate(depths):
            wide = width << number
            self.downsamples.append(
                nn.Sequential(LayerNorm2d(inputs), nn.Conv2d(inputs, wide, 2, 2)) if split and number else nn.Identity()
            )
            inputs = wide if split else inputs
            outputs = wide if "inverted" in taken else 4 * wide
            blocks = []
            for j in range(depth):
                strided = number > 0 and j == 0 and not split
                blocks.append(RoadBlock(inputs, wide, 2 if strided else 1, taken, next(rates), scale))
                inputs = outputs
            self.stages.append(nn.Sequential(*blocks))
        self.norm = nn.LayerNorm(inputs, 1e-6) if split else nn.Identity()
        self.head = nn.Linear(inputs, num_classes)
        self.smallest = stem * 2 ** (len(depths) - 1)

        def start(layer: nn.Module) -> None:
            nn.init.trunc_normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

        each(self, (nn.Conv2d, nn.Linear), start)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        check_images(x, self.stem, self.smallest)
        x = self.stem_norm(self.stem(quick_layout(x, fewest=1)))
        if "activations" not in self.taken:
            x = F.gelu(x) if "gelu" in self.taken else F.relu(x)
        x = self.pool(x)
        for downsample, stage in zip(self.downsamples, self.stages, strict=True):
            x = stage(downsample(x))
        return self.head(self.norm(x.mean((2, 3))))
