"""Section 1: what a U-Net is compared with, a network that classifies each pixel by the window around it.

Ciresan, Gambardella, Giusti, Schmidhuber: Deep neural networks segment neuronal membranes in electron microscopy
images. NIPS 2012, [1] of the paper.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from jingdu.nn import check_images
from jingdu.papers.cnn.unet.tiles import mirror

__all__ = ["SlidingWindow"]


class SlidingWindow(nn.Module):
    """A convolutional classifier of windows, applied to all windows of an image at once.

    Its layers are 3x3 convolutions with batch norms and ReLUs, each before a 2x2 max-pool, then a dense layer over 3x3
    pixels and one for the classes. Where a window's classifier has strides, this one takes all pixels and dilates the
    layers behind it, which gives the same numbers for every pixel (Giusti et al. 2013).

    Args:
        widths: channels of the convolutions.
        hidden: units of the dense layer.
    """

    def __init__(
        self, num_classes: int = 2, in_channels: int = 1, widths: Sequence[int] = (8, 16, 16), hidden: int = 32
    ):
        super().__init__()
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        self.window = 1
        for level, outputs in enumerate((*widths, hidden)):
            self.convs.append(nn.Conv2d(in_channels, outputs, 3, dilation=1 << level, bias=False))
            self.norms.append(nn.BatchNorm2d(outputs))
            in_channels = outputs
            self.window += (2 << level) + (1 << level if level < len(widths) else 0)
        self.score = nn.Conv2d(hidden, num_classes, 1)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes height width"]:
        check_images(x, self.convs[0])
        before = (self.window - 1) // 2
        x = mirror(x, before, self.window - 1 - before, before, self.window - 1 - before)
        for level, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = F.relu(norm(conv(x)))
            if level < len(self.convs) - 1:
                x = F.max_pool2d(x, 2, stride=1, dilation=1 << level)
        return self.score(x)
