r"""Very Deep Convolutional Networks for Large-Scale Image Recognition. Simonyan, Zisserman. 2014.
https://arxiv.org/abs/1409.1556

**Problem.** After AlexNet the error fell by many changes at once: smaller first kernels, denser testing, more
scales. What depth alone is worth was not known.

**Idea.** Hold everything but the depth fixed. Every convolution is 3x3 with stride 1, the smallest that knows
left from right; a stack of $n$ of them sees $(2n+1) \times (2n+1)$ pixels, as one large kernel does, but with $n$
nonlinearities and, at $C$ channels (Sec. 2.3),

$$ n \cdot 3^2 C^2 = 9nC^2 \quad\text{weights instead of}\quad (2n+1)^2 C^2 $$

So depth can grow from 11 to 19 layers at little cost.

**Showed.** Top-5 error of a single network at one scale falls from 10.4 % (A, 11 layers) to 8.0 % (E, 19 layers;
Tab. 3), and to 7.1 % with dense and multi-crop evaluation (Tab. 5).

Differs from the paper in:
- One mean a channel is subtracted and the deviation divided by, as the published weights of others expect.
- Weights start by He's rule; the text starts column A from N(0, 0.01) and the deeper ones from A.
- The `_bn` variants have a batch norm after each convolution. They are torchvision's, not the paper's.
- The learning rate is cut at fixed steps, not when the validation error stalls.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from jingdu.data.draws import Draws
from jingdu.data.images import normalise, resize_shorter, to_tensor
from jingdu.data.preprocess import IMAGENET, Preprocess
from jingdu.engine.contracts import Recipe, Stage
from jingdu.errors import UsageError
from jingdu.nn import each
from jingdu.papers.cnn.alexnet import classify, random_window
from jingdu.prediction import Prediction

__all__ = ["VGG", "build", "mirrored_predict", "multi_scale_predict", "predict", "scale_jitter"]


class VGG(nn.Module):
    """Table 1: five blocks of 3x3 convolutions, each before a 2x2 max-pool; three dense layers.

    Args:
        depths: convolutions in each block.
        widths: channels of each block.
        ones: how many convolutions at the end of a block are 1x1 (column C: one, in the last three blocks).
        batch_norm: a batch norm after each convolution (not the paper's).
        units: of fc6 and fc7.
    """

    def __init__(
        self,
        depths: Sequence[int],
        widths: Sequence[int] = (64, 128, 256, 512, 512),
        ones: Sequence[int] = (0, 0, 0, 0, 0),
        batch_norm: bool = False,
        num_classes: int = 1000,
        in_channels: int = 3,
        units: int = 4096,
    ):
        super().__init__()
        self.depths = tuple(depths)
        channels = in_channels
        for block, (depth, width, pointwise) in enumerate(zip(depths, widths, ones, strict=True), start=1):
            for number in range(1, depth + 1):
                kernel = 1 if number > depth - pointwise else 3
                self.add_module(f"conv{block}_{number}", nn.Conv2d(channels, width, kernel, padding=kernel // 2))
                self.add_module(f"bn{block}_{number}", nn.BatchNorm2d(width) if batch_norm else nn.Identity())
                channels = width
        self.grid = nn.AdaptiveAvgPool2d(7)  # the identity at the 224 pixels of the paper
        self.fc6, self.fc7 = nn.Linear(channels * 49, units), nn.Linear(units, units)
        self.fc8 = nn.Linear(units, num_classes)
        self.dropout = nn.Dropout(0.5)
        each(self, nn.Conv2d, lambda m: nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu"))
        each(self, nn.Linear, lambda m: nn.init.normal_(m.weight, std=0.01))
        each(self, (nn.Conv2d, nn.Linear), lambda m: nn.init.zeros_(m.bias))

    def taps(self, x: Float[Tensor, "batch channels height width"], names: Sequence[str]) -> dict[str, Tensor]:
        """Rectified outputs by name, relu1_2 .. relu5_4, as perceptual losses read them."""
        found = {}
        for block, depth in enumerate(self.depths, start=1):
            for number in range(1, depth + 1):
                x = F.relu(getattr(self, f"bn{block}_{number}")(getattr(self, f"conv{block}_{number}")(x)))
                if f"relu{block}_{number}" in names:
                    found[f"relu{block}_{number}"] = x
            x = F.max_pool2d(x, 2) if block < len(self.depths) else x
        if strange := set(names) - set(found):
            raise UsageError(f"no layer {sorted(strange)[0]!r}: names are relu1_1 .. relu5_{self.depths[-1]}")
        return found

    def features(self, x: Float[Tensor, "batch channels height width"]) -> list[Tensor]:
        """The last rectified output of each block, before its pooling."""
        return list(self.taps(x, [f"relu{block}_{depth}" for block, depth in enumerate(self.depths, start=1)]).values())

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        x = self.grid(F.max_pool2d(self.features(x)[-1], 2)).flatten(1)
        x = self.dropout(F.relu(self.fc6(x)))
        return self.fc8(self.dropout(F.relu(self.fc7(x))))


VARIANTS: dict[str, dict[str, Any]] = {
    # Table 1: columns A, B, C, D, E
    "vgg11": {"depths": (1, 1, 2, 2, 2)},
    "vgg13": {"depths": (2, 2, 2, 2, 2)},
    "vgg16_c": {"depths": (2, 2, 3, 3, 3), "ones": (0, 0, 1, 1, 1)},
    "vgg16": {"depths": (2, 2, 3, 3, 3)},
    "vgg19": {"depths": (2, 2, 4, 4, 4)},
    "vgg11_bn": {"depths": (1, 1, 2, 2, 2), "batch_norm": True},
    "vgg13_bn": {"depths": (2, 2, 2, 2, 2), "batch_norm": True},
    "vgg16_bn": {"depths": (2, 2, 3, 3, 3), "batch_norm": True},
    "vgg19_bn": {"depths": (2, 2, 4, 4, 4), "batch_norm": True},
}


def build(variant: str, **overrides: Any) -> VGG:
    """The network of a variant; overrides are the arguments of `VGG`."""
    return VGG(**{**VARIANTS[variant], **overrides})


def scale_jitter(
    image: Image.Image, draws: Draws, preprocess: Preprocess, low: int = 256, high: int = 512
) -> Float[Tensor, "channels size size"]:
    """Section 3.1: the shorter side becomes S pixels, uniform on `low` .. `high`; a random window is cut, in [0, 1].

    The window has `preprocess.size`; `draws` has one row. Raises UsageError where S may be smaller than the window.
    """
    size = preprocess.size
    if size is None or not size <= low <= high:
        raise UsageError(f"scale_jitter: low {low} and high {high} must be ordered and at least preprocess.size {size}")
    side = low + int(draws.integers(high - low + 1))
    return to_tensor(random_window(resize_shorter(image, side, preprocess.interpolation), size, draws))


# Testing (Sec. 3.2) -----------------------------------------------------------------------------------

Network = Callable[[Tensor], Tensor]


def mirrored_predict(
    network: Network, images: Float[Tensor, "batch channels height width"]
) -> Float[Tensor, "batch classes"]:
    """Class probabilities of normalised images of any size, averaged over the softmax of each and of its mirror image."""
    return (network(images).softmax(1) + network(images.flip(3)).softmax(1)) / 2


def multi_scale_predict(
    network: Network, images: Sequence[Image.Image], scales: Sequence[int], preprocess: Preprocess
) -> Float[Tensor, "images classes"]:
    """Section 4.2: whole, uncropped pictures at several scales; the probabilities are averaged.

    Args:
        network: maps normalised images of any size to logits: fully convolutional, or pooled before its last layer.
        images: decoded pictures, of any sizes.
        scales: lengths of the shorter side in pixels (Q in the text).
        preprocess: mean, deviation and interpolation; its size is not used.
    """

    def view(image: Image.Image, scale: int) -> Tensor:
        return normalise(to_tensor(resize_shorter(image, scale, preprocess.interpolation)), preprocess)[None]

    rows = [torch.stack([mirrored_predict(network, view(image, s)) for s in scales]).mean(0) for image in images]
    return torch.cat(rows)


recipes = {
    "paper": Recipe(
        stages=(
            Stage(
                networks={"network": "vgg11"},
                data="imagenet",
                preprocess=IMAGENET,
                crop="vgg.scale_jitter(low=256, high=512)",
                augment=("flip", "alexnet.pca_colour_shift"),
                batch_size=256,
                steps=370_000,
                lr=0.01,
                schedule="multistep(at=(0.35, 0.65, 0.9))",
                weight_decay=5e-4,
                decay="all",
                channels_last=True,
                workers=8,
                save_every=5000,
            ),
        ),
        minutes=14 * 24 * 60,
        expect={"error": (0.27, 0.31)},
        machine="4 GPUs",
        about="Section 3.1 on an ImageNet folder (--data): 370k iterations, the rate divided by 10 three times",
    ),
}


def predict(
    model: VGG, inputs: Sequence[str], *, top: int = 5, crops: Literal["centre", "ten"] = "centre"
) -> Iterator[Prediction]:
    """The most probable classes of image files.

    Args:
        top: how many classes to give.
        crops: one centre crop, or the average of ten.
    """
    return classify(model, inputs, top=top, crops=crops)
