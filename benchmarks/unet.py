"""U-Net on a tile of 572x572 pixels against plain modules of torch, laid out as Pytorch-UNet's: python -m benchmarks.unet."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import jingdu
from benchmarks.paired import compare, save
from jingdu.speed.case import difference, inference, training_step
from jingdu.weights import detect
from jingdu.weights.filling import fill_network


class _Pair(nn.Module):
    def __init__(self, inputs: int, outputs: int, middle: int | None = None):
        super().__init__()
        middle = middle or outputs
        layers = []
        for channels, more in ((inputs, middle), (middle, outputs)):
            layers += [nn.Conv2d(channels, more, 3, padding=1, bias=False), nn.BatchNorm2d(more), nn.ReLU(inplace=True)]
        self.double_conv = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.double_conv(x)


class _Lower(nn.Module):
    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.maxpool_conv = nn.Sequential(nn.MaxPool2d(2), _Pair(inputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return self.maxpool_conv(x)


class _Higher(nn.Module):
    def __init__(self, inputs: int, outputs: int, bilinear: bool):
        super().__init__()
        if bilinear:
            self.up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
            self.conv = _Pair(inputs, outputs, inputs // 2)
        else:
            self.up = nn.ConvTranspose2d(inputs, inputs // 2, 2, stride=2)
            self.conv = _Pair(inputs, outputs)

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        x = self.up(x)
        rows, columns = (other.shape[axis] - x.shape[axis] for axis in (2, 3))
        x = F.pad(x, [columns // 2, columns - columns // 2, rows // 2, rows - rows // 2])
        return self.conv(torch.cat([other, x], dim=1))


class _Last(nn.Module):
    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Plain(nn.Module):
    """A padded U-Net with batch norms whose tensors have the names of https://github.com/milesial/Pytorch-UNet, where `width` is 64."""

    def __init__(self, channels: int, classes: int, bilinear: bool = False, width: int = 64):
        super().__init__()
        less, w = 2 if bilinear else 1, width
        self.inc = _Pair(channels, w)
        self.down1, self.down2, self.down3 = _Lower(w, 2 * w), _Lower(2 * w, 4 * w), _Lower(4 * w, 8 * w)
        self.down4 = _Lower(8 * w, 16 * w // less)
        self.up1, self.up2 = _Higher(16 * w, 8 * w // less, bilinear), _Higher(8 * w, 4 * w // less, bilinear)
        self.up3, self.up4 = _Higher(4 * w, 2 * w // less, bilinear), _Higher(2 * w, w, bilinear)
        self.outc = _Last(w, classes)

    def forward(self, x: Tensor) -> Tensor:
        taps = [self.inc(x)]
        for down in (self.down1, self.down2, self.down3, self.down4):
            taps.append(down(taps[-1]))
        x = taps.pop()
        for up in (self.up1, self.up2, self.up3, self.up4):
            x = up(x, taps.pop())
        return self.outc(x)


def cases(size: int = 252, rounds: int = 6) -> list[dict[str, Any]]:
    """The same weights and picture in eager float32: an inference, and on a quarter of it one as `optimize_for_inference`
    makes it and a training step. A tile of 572x572, the paper's, takes five times as long."""
    theirs, ours = Plain(3, 2), jingdu.create("unet_padded_bn_3in_2out")
    state = theirs.state_dict()
    fill_network(ours, state, detect(state, None, "unet", "milesial", ours.state_dict(), ours.origin.variant))
    x = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    small = x[:, :, ::2, ::2].contiguous()
    gap = difference(inference(ours, (x,))(), inference(theirs, (x,))())
    quick = jingdu.optimize_for_inference(ours.eval(), small, compile=False, cache=False)
    rows = []
    for name, work, network, picture in (
        ("inference", inference, ours, x),
        ("optimised inference", inference, quick, small),
        ("training step", training_step, ours, small),
    ):
        title = f"unet_padded_bn_3in_2out, {name}, one picture of {picture.shape[2]}x{picture.shape[3]}, plain torch"
        works = work(network, (picture,)), work(theirs, (picture,))
        rows.append(compare(*works, title, rounds=rounds) | {"difference": gap})
    return rows


if __name__ == "__main__":
    save(cases(), "unet.json")
