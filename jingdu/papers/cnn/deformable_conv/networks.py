"""Networks with deformable layers (Sec. 3; v2 Sec. 3.1), and how they learn to label pixels."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from jingdu.engine.contracts import Batch
from jingdu.errors import UsageError
from jingdu.nn import check_images
from jingdu.papers.cnn.resnet import Bottleneck, ResNet
from jingdu.papers.cnn.unet import Segmentation

from .convolution import Border, DeformConv2d


def deform(
    network: ResNet,
    stages: Sequence[str] = ("conv5_x",),
    offset_groups: int = 1,
    mask_scale: float | None = None,
    border: Border = "zero",
    offset_rate: float = 1.0,
) -> ResNet:
    """Make the 3x3 convolutions of some stages of a bottleneck ResNet deformable, in place; returns the network.

    Their weights stay, so a trained network keeps its outputs until the offsets move (v1, and `mask_scale=2`). All
    convolutions of a dilated stage get its dilation, the first too, as in the authors' symbols.

    Args:
        network: trained or not.
        stages: v1 has the last, v2 the last three.
        offset_groups: as in `DeformConv2d`.
        mask_scale: as in `DeformConv2d`.
        border: as in `DeformConv2d`.
        offset_rate: learning rate of the offsets, in multiples of the network's.

    Raises UsageError for a stage that is not there, and for blocks without a bottleneck.
    """
    for name in stages:
        blocks = getattr(network, name, None) if name in network.stages else None
        if blocks is None or not all(isinstance(block, Bottleneck) for block in blocks):
            raise UsageError(f"deform: {name} is no stage of bottlenecks; the network has {', '.join(network.stages)}")
        dilation = max(block.conv2.dilation[0] for block in blocks)
        for block in blocks:
            old = block.conv2
            new = DeformConv2d(
                old.in_channels,
                old.out_channels,
                3,
                old.stride[0],
                dilation,
                dilation,
                False,
                offset_groups,
                mask_scale,
                border,
            )
            new.weight = old.weight
            new.rates["offset"] = offset_rate
            block.conv2 = new.to(old.weight)
    return network


class SmallNet(nn.Module):
    """Three 3x3 convolutions with batch norm, the last two deformable or not: for pictures of some 20 pixels (ours).

    Args:
        widths: channels of the three.
        strides: of the three.
        deformable: whether the last two are.
        mask_scale: as in `DeformConv2d`.
        dense: class scores for every pixel in place of the picture.
    """

    def __init__(
        self, widths: Sequence[int] = (16, 32, 32), strides: Sequence[int] = (1, 2, 2), deformable: bool = True,
        mask_scale: float | None = None, dense: bool = False, num_classes: int = 10, in_channels: int = 1,
    ):  # fmt: skip
        super().__init__()
        for number, (width, stride) in enumerate(zip(widths, strides, strict=True), start=1):
            if deformable and number > 1:
                conv: nn.Module = DeformConv2d(in_channels, width, 3, stride, 1, mask_scale=mask_scale)
            else:
                conv = nn.Conv2d(in_channels, width, 3, stride, 1)
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            self.add_module(f"conv{number}", conv)
            self.add_module(f"bn{number}", nn.BatchNorm2d(width))
            in_channels = width
        self.dense = dense
        self.fc = nn.Linear(in_channels, num_classes)

    def features(self, x: Float[Tensor, "batch channels height width"]) -> list[Tensor]:
        """The rectified outputs of the three convolutions."""
        check_images(x, self.conv1)
        taps = []
        for number in (1, 2, 3):
            x = F.relu(getattr(self, f"bn{number}")(getattr(self, f"conv{number}")(x)))
            taps.append(x)
        return taps

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Tensor:
        """[batch, classes], or with `dense` [batch, classes, height, width]."""
        y = self.features(x)[-1]
        if not self.dense:
            return self.fc(y.mean((2, 3)))
        scores = F.conv2d(y, self.fc.weight[:, :, None, None], self.fc.bias)
        return F.interpolate(scores, size=x.shape[2:], mode="bilinear", align_corners=False)


class Labelling(Segmentation):
    """Softmax cross-entropy of every pixel's class, as DeepLab's (Sec. 3.2), of batches with masks; class 0 is what none covers.

    Batches have `image`, and lists of `masks` [shapes, height, width], which do not overlap, and their `labels`.
    """

    @staticmethod
    def targets(batch: Batch) -> Int64[Tensor, "batch height width"]:
        """The class of every pixel."""
        rows = [
            ((labels + 1)[:, None, None] * masks).sum(0)
            for labels, masks in zip(batch["labels"], batch["masks"], strict=True)
        ]
        return torch.stack(rows)

    def forward(self, batch: Batch, objective: str) -> tuple[Tensor, dict[str, Any]]:
        return super().forward({"image": batch["image"], "label": self.targets(batch)}, objective)

    def update(self, batch: Batch) -> None:
        super().update({"image": batch["image"], "label": self.targets(batch)})


FIFTY: dict[str, Any] = {"block": "bottleneck", "depths": (3, 4, 6, 3)}
ONE_HUNDRED_ONE: dict[str, Any] = {"block": "bottleneck", "depths": (3, 4, 23, 3)}
V1: dict[str, Any] = {"stages": ("conv5_x",), "output_stride": 16}
"""Section 3.2 (1): res5 at stride 16, its three 3x3 convolutions deformable."""
LAST_THREE: dict[str, Any] = {"stages": ("conv3_x", "conv4_x", "conv5_x")}
V2: dict[str, Any] = {"stages": ("conv3_x", "conv4_x", "conv5_x"), "mask_scale": 1.0, "offset_rate": 0.1}
"""v2 Sections 3.1 and 3.2."""

VARIANTS: dict[str, dict[str, Any]] = {
    "deformable_conv_resnet50_dcn_c5": {**FIFTY, **V1},
    "deformable_conv_resnet101_dcn_c5": {**ONE_HUNDRED_ONE, **V1},
    # the authors' R-FCN and DeepLab: 72 offset channels
    "deformable_conv_resnet101_dcn_c5_4groups": {**ONE_HUNDRED_ONE, **V1, "offset_groups": 4},
    "deformable_conv_resnet50_dcn_c3_c5": {**FIFTY, **LAST_THREE},
    "deformable_conv_resnet50_mdcn_c3_c5": {**FIFTY, **V2},
    "deformable_conv_resnet101_mdcn_c3_c5": {**ONE_HUNDRED_ONE, **V2},
    # Ours, for digits of some 20 pixels; the plain one is wider and has as many weights.
    "deformable_conv_digits": {"widths": (16, 32, 32)},
    "deformable_conv_digits_plain": {"widths": (20, 40, 40), "deformable": False},
}
SURGERY = ("stages", "offset_groups", "mask_scale", "border", "offset_rate")
"""Arguments of `deform`."""


def build(variant: str, **overrides: Any) -> ResNet | SmallNet:
    """The network of a variant; overrides are the arguments of `ResNet` and `deform`, or of `SmallNet`."""
    options = {**VARIANTS[variant], **overrides}
    if "widths" in options:
        return SmallNet(**options)
    changes = {name: options.pop(name) for name in SURGERY if name in options}
    return deform(ResNet(**options), **changes)
