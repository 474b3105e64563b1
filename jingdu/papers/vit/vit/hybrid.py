"""The hybrid's first part (Section 3.1): a ResNet whose feature maps are cut into patches.

It is BiT's kind of ResNet (Kolesnikov et al. 2020, arXiv 1912.11370) with the norms behind the convolutions: group norms
in place of batch norms, and standardised weights (Qiao et al. 2019, arXiv 1903.10520), whose patches are pixels at
stride 16.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from jingdu.nn import check_images
from jingdu.papers.cnn.nas.cells import pad_same

__all__ = ["Backbone", "HybridEmbed", "StandardisedConv2d"]

GROUPS = 32


class StandardisedConv2d(nn.Conv2d):
    """A convolution, padded as TensorFlow's SAME, whose kernels have mean 0 and variance 1 when they are used.

    Args:
        inputs: channels.
        outputs: channels.
        kernel: side.
        stride: of the outputs.
        eps: added to a kernel's variance.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, eps: float = 1e-8):
        super().__init__(inputs, outputs, kernel, stride, bias=False)
        self.eps = eps

    def forward(self, x: Float[Tensor, "batch inputs height width"]) -> Float[Tensor, "batch outputs h w"]:
        kernel = F.batch_norm(self.weight.reshape(1, len(self.weight), -1), None, None, training=True, eps=self.eps)
        x = pad_same(x, self.kernel_size[0], self.stride[0])
        return F.conv2d(x, kernel.view_as(self.weight), None, self.stride)


class ConvNorm(nn.Module):
    """A standardised convolution and its group norm."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1):
        super().__init__()
        self.conv = StandardisedConv2d(inputs, outputs, kernel, stride)
        self.norm = nn.GroupNorm(GROUPS, outputs)

    def forward(self, x: Float[Tensor, "batch inputs height width"]) -> Float[Tensor, "batch outputs h w"]:
        return self.norm(self.conv(x))


class Bottleneck(nn.Module):
    """ResNet's bottleneck of these: the stride is the 3x3's, the shortcut is projected where a stage begins."""

    def __init__(self, inputs: int, outputs: int, stride: int, first: bool):
        super().__init__()
        self.shortcut = ConvNorm(inputs, outputs, 1, stride) if first else nn.Identity()
        self.layer1 = ConvNorm(inputs, outputs // 4, 1)
        self.layer2 = ConvNorm(outputs // 4, outputs // 4, 3, stride)
        self.layer3 = ConvNorm(outputs // 4, outputs, 1)

    def forward(self, x: Float[Tensor, "batch inputs height width"]) -> Float[Tensor, "batch outputs h w"]:
        y = F.relu(self.layer2(F.relu(self.layer1(x))))
        return F.relu(self.layer3(y) + self.shortcut(x))


class Backbone(nn.Module):
    """The stem (7x7, stride 2, max-pool) and stages of bottlenecks.

    Args:
        depths: bottlenecks of each stage; three stages end at stride 16, and the paper moves the fourth's blocks into the
            third: 3, 4, 9.
        width: channels of the stem; the first stage has four times as many, and each later one twice those before.
        in_channels: of the images.
    """

    def __init__(self, depths: Sequence[int] = (3, 4, 9), width: int = 64, in_channels: int = 3):
        super().__init__()
        self.stem = ConvNorm(in_channels, width, 7, 2)
        self.stages = nn.ModuleList()
        inputs = width
        for number, depth in enumerate(depths):
            outputs = 4 * width << number
            blocks = [
                Bottleneck(outputs if i else inputs, outputs, 2 if number and not i else 1, not i) for i in range(depth)
            ]
            self.stages.append(nn.Sequential(*blocks))
            inputs = outputs
        self.stride = 4 << (len(depths) - 1)
        """Pixels of the image for one of the last maps."""
        self.channels = inputs

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch {self.channels} h w"]:
        x = F.relu(self.stem(x))
        x = F.max_pool2d(pad_same(x, 3, 2, float("-inf")), 3, 2)
        for stage in self.stages:
            x = stage(x)
        return x


class HybridEmbed(nn.Module):
    """Tokens of a backbone's last maps, in place of `PatchEmbed`.

    Args:
        backbone: gives the maps.
        width: of a token.
    """

    def __init__(self, backbone: Backbone, width: int):
        super().__init__()
        self.backbone = backbone
        self.projection = nn.Conv2d(backbone.channels, width, 1)
        self.patch = backbone.stride

    def check(self, x: Tensor) -> None:
        check_images(x, self.backbone.stem.conv, self.patch)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch patches tokens_width"]:
        return self.projection(self.backbone(x)).flatten(2).transpose(1, 2)
