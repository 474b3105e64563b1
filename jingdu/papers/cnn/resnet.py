r"""Deep Residual Learning for Image Recognition. He, Zhang, Ren, Sun. 2015. https://arxiv.org/abs/1512.03385

**Problem.** A deeper network contains the shallower one (let the added layers be the identity), so
it should fit the training data at least as well. Trained by gradient descent it does not: beyond
some 20 layers the *training* error rises with depth (Fig. 1, the degradation problem).

**Idea.** Let a few layers learn the change to their input, and add the input back by a shortcut
without parameters (Eq. 1):

$$ y = \mathcal F(x, \{W_i\}) + x $$

To be the identity a block must only drive its weights to zero, which is easy to find.

**Showed.** 152 layers train better than 18; 3.57 % top-5 error on ImageNet by an ensemble (Tab. 5);
on CIFAR-10 a plain 56-layer network is worse than 20 layers, a residual one is better (Fig. 6).

Differs from the paper in:
- The stride of a bottleneck is on its 3x3 convolution, as in every widely used checkpoint ("v1.5",
  https://github.com/facebookarchive/fb.resnet.torch); `stride_on="1x1"` is the text's.
- Projections (shortcut option B) are the default of the ImageNet family, as in the published
  weights; the CIFAR family has option A, as in Section 4.2.
- Images are normalised by channel mean and deviation, not by the per-pixel mean.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from jingdu.data.augment import random_crop
from jingdu.data.draws import Draws
from jingdu.data.preprocess import IMAGENET, Preprocess
from jingdu.engine.contracts import Recipe, Stage
from jingdu.nn import each, quick_layout
from jingdu.papers.cnn.alexnet import classify
from jingdu.papers.cnn.vgg import multi_scale_predict
from jingdu.prediction import Prediction

__all__ = ["BasicBlock", "Bottleneck", "ResNet", "Shortcut", "build", "pad_crop", "predict", "subsample_and_pad"]

ShortcutOption = Literal["A", "B", "C"]


def subsample_and_pad(
    x: Float[Tensor, "batch channels height width"], channels: int, stride: int
) -> Float[Tensor, "batch more_channels less_height less_width"]:
    """Shortcut option A (Sec. 3.3): every `stride`-th pixel, and zeros for the new channels.

    The zeros follow the old channels, as the text's "extra zero entries padded" reads.
    """
    x = x[:, :, ::stride, ::stride]
    return F.pad(x, (0, 0, 0, 0, 0, channels - x.shape[1]))


class Shortcut(nn.Module):
    """The projection of Eq. 2: a strided 1x1 convolution and its batch norm (options B and C)."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Float[Tensor, "batch inputs height width"]) -> Float[Tensor, "batch outputs h w"]:
        return self.bn(self.conv(x))


class _Block(nn.Module):
    """What both blocks share: the shortcut around `residual(x)`, and the ReLU after the addition."""

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: ShortcutOption, residual: bool):
        super().__init__()
        self.outputs, self.stride, self.is_residual = outputs, stride, residual
        self.relu = nn.ReLU(inplace=True)
        changes = inputs != outputs or stride != 1
        self.shortcut: nn.Module | None = None
        if residual and (shortcut == "C" or (shortcut == "B" and changes)):
            self.shortcut = Shortcut(inputs, outputs, stride)
        self.pads = residual and changes and shortcut == "A"

    def residual(self, x: Tensor) -> Tensor:
        raise TypeError("a block defines its residual function")

    def forward(self, x: Float[Tensor, "batch inputs height width"]) -> Float[Tensor, "batch outputs h w"]:
        y = self.residual(x)
        if not self.is_residual:  # the plain twin of Sec. 4.1
            return self.relu(y)
        if self.shortcut is not None:
            x = self.shortcut(x)
        elif self.pads:
            x = subsample_and_pad(x, self.outputs, self.stride)
        return self.relu(y + x)


class BasicBlock(_Block):
    """Two 3x3 convolutions (Fig. 5 left)."""

    expansion = 1

    def __init__(
        self, inputs: int, width: int, stride: int = 1, dilation: int = 1, shortcut: ShortcutOption = "B",
        residual: bool = True, stride_on: str = "3x3",
    ):  # fmt: skip
        super().__init__(inputs, width, stride, shortcut, residual)
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, dilation, dilation, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, dilation, dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def residual(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))


class Bottleneck(_Block):
    """1x1 to a quarter of the channels, 3x3, 1x1 back (Fig. 5 right)."""

    expansion = 4

    def __init__(
        self, inputs: int, width: int, stride: int = 1, dilation: int = 1, shortcut: ShortcutOption = "B",
        residual: bool = True, stride_on: str = "3x3",
    ):  # fmt: skip
        super().__init__(inputs, 4 * width, stride, shortcut, residual)
        first, second = (1, stride) if stride_on == "3x3" else (stride, 1)
        self.conv1 = nn.Conv2d(inputs, width, 1, first, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, second, dilation, dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)

    def residual(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        return self.bn3(self.conv3(x))


class ResNet(nn.Module):
    """Table 1 (ImageNet) and Section 4.2 (CIFAR): a stem, stages of blocks, global average pool, `fc`.

    Args:
        block: "basic" or "bottleneck".
        depths: blocks of each stage, conv2_x onwards.
        width: channels of the first stage; they double from stage to stage.
        stem: "imagenet" is 7x7/2 and a 3x3/2 max-pool, "cifar" is 3x3.
        shortcut: A, B or C of Section 3.3; None makes the plain twin without shortcuts.
        stride_on: the bottleneck's convolution that carries the stride.
        output_stride: input size over that of the last feature map; a smaller one than the
            default replaces strides by dilation (for detection and segmentation).
    """

    def __init__(
        self,
        block: Literal["basic", "bottleneck"],
        depths: Sequence[int],
        num_classes: int = 1000,
        in_channels: int = 3,
        width: int = 64,
        stem: Literal["imagenet", "cifar"] = "imagenet",
        shortcut: ShortcutOption | None = "B",
        stride_on: Literal["3x3", "1x1"] = "3x3",
        output_stride: int | None = None,
    ):
        super().__init__()
        kind = {"basic": BasicBlock, "bottleneck": Bottleneck}[block]
        large = stem == "imagenet"
        self.conv1 = nn.Conv2d(in_channels, width, 7 if large else 3, 2 if large else 1, 3 if large else 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(3, 2, 1) if large else nn.Identity()

        natural = (4 if large else 1) * 2 ** (len(depths) - 1)
        if output_stride not in (None, *(natural >> i for i in range(len(depths)))):
            raise ValueError(f"output_stride {output_stride} is none of {[natural >> i for i in range(len(depths))]}")
        channels, reached, dilation = width, 4 if large else 1, 1
        self.stages = [f"conv{i + 2}_x" for i in range(len(depths))]
        self.channels = []
        for i, (name, depth) in enumerate(zip(self.stages, depths, strict=True)):
            stride, before = 1 if i == 0 else 2, dilation
            if stride == 2 and reached == output_stride:
                stride, dilation = 1, 2 * dilation
            reached *= stride
            blocks = []
            for j in range(depth):
                # The first block of a dilated stage still sees its input at the former dilation.
                options = {"shortcut": shortcut or "A", "residual": shortcut is not None, "stride_on": stride_on}
                blocks.append(
                    kind(channels, width << i, stride if j == 0 else 1, before if j == 0 else dilation, **options)
                )
                channels = (width << i) * kind.expansion
            self.add_module(name, nn.Sequential(*blocks))
            self.channels.append(channels)
        self.fc = nn.Linear(channels, num_classes)
        self.initialise()

    def initialise(self, zero_last_gamma: bool = False) -> None:
        """He initialisation by fan-out ([13] of the paper); batch norms start as the identity.

        `zero_last_gamma` starts every block as the identity (Goyal et al. 2017, Sec. 5.1).
        """
        each(self, nn.Conv2d, lambda m: nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu"))
        if zero_last_gamma:
            each(self, BasicBlock, lambda m: nn.init.zeros_(m.bn2.weight))
            each(self, Bottleneck, lambda m: nn.init.zeros_(m.bn3.weight))

    def features(self, x: Float[Tensor, "batch channels height width"]) -> list[Tensor]:
        """The output of every stage, shallow to deep: c2 .. c5 at strides 4, 8, 16, 32 (CIFAR: 1, 2, 4).

        `self.channels` holds their channel counts.
        """
        x = self.pool(self.relu(self.bn1(self.conv1(quick_layout(x)))))
        taps = []
        for name in self.stages:
            x = getattr(self, name)(x)
            taps.append(x)
        return taps

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        return self.fc(self.features(x)[-1].mean((2, 3)))


def _cifar(n: int, shortcut: ShortcutOption | None = "A") -> dict[str, Any]:
    """Section 4.2: 6n+2 layers, widths 16, 32, 64, ten classes."""
    return {
        "block": "basic", "depths": (n, n, n), "num_classes": 10, "width": 16, "stem": "cifar", "shortcut": shortcut,
    }  # fmt: skip


VARIANTS: dict[str, dict[str, Any]] = {
    # Table 1
    "resnet18": {"block": "basic", "depths": (2, 2, 2, 2)},
    "resnet34": {"block": "basic", "depths": (3, 4, 6, 3)},
    "resnet50": {"block": "bottleneck", "depths": (3, 4, 6, 3)},
    "resnet101": {"block": "bottleneck", "depths": (3, 4, 23, 3)},
    "resnet152": {"block": "bottleneck", "depths": (3, 8, 36, 3)},
    # Table 6
    **{f"resnet{6 * n + 2}_cifar": _cifar(n) for n in (3, 5, 7, 9, 18, 200)},
    # Section 4.1 and Figure 6: the same layers without shortcuts
    "resnet_plain18": {"block": "basic", "depths": (2, 2, 2, 2), "shortcut": None},
    "resnet_plain34": {"block": "basic", "depths": (3, 4, 6, 3), "shortcut": None},
    **{f"resnet_plain{6 * n + 2}_cifar": _cifar(n, shortcut=None) for n in (3, 5, 7, 9, 18)},
}


def build(variant: str, **overrides: Any) -> ResNet:
    """The network of a variant; overrides are the arguments of `ResNet`."""
    return ResNet(**{**VARIANTS[variant], **overrides})


def pad_crop(images: Float[Tensor, "batch c h w"], draws: Draws, padding: int = 4) -> Float[Tensor, "batch c h w"]:
    """Section 4.2: pad `padding` zeros on each side and cut a random window of the old size."""
    return random_crop(images, draws, padding=padding)


DIGITS = Preprocess(mean=(0.305,), std=(0.376,), channels=1)
"""Mean and deviation of the training digits' pixels."""

recipes = {
    "laptop": Recipe(
        stages=(
            Stage(
                networks={"network": "resnet20_cifar(width=8)"},
                data="digits",
                preprocess=DIGITS,
                augment=("resnet.pad_crop(padding=1)",),
                batch_size=64,
                epochs=15,
                lr=0.1,
                schedule="onecycle",
                weight_decay=1e-4,
                save_every=10,
            ),
        ),
        minutes=0.5,
        expect={"error": (0.0, 0.04)},
        about="ResNet-20 of width 8 on scikit-learn's digits",
    ),
    "cifar": Recipe(
        stages=(
            Stage(
                networks={"network": "resnet20_cifar"},
                data="hf:uoft-cs/cifar10",
                preprocess=Preprocess(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616)),
                augment=("resnet.pad_crop", "flip"),
                batch_size=128,
                steps=64_000,
                lr=0.1,
                schedule="multistep(at=(0.5, 0.75))",
                weight_decay=1e-4,
                decay="all",
                save_every=2000,
                evaluate_every=4000,
            ),
        ),
        minutes=600,
        expect={"error": (0.08, 0.095)},
        about="Section 4.2: 64k iterations, the rate cut at 32k and 48k; 8.75 % error for 20 layers (Table 6)",
    ),
    "paper": Recipe(
        stages=(
            Stage(
                networks={"network": "resnet50"},
                data="imagenet",
                preprocess=IMAGENET,
                crop="vgg.scale_jitter(low=256, high=480)",
                augment=("flip", "alexnet.pca_colour_shift"),
                batch_size=256,
                steps=600_000,
                lr=0.1,
                schedule="multistep(at=(0.5, 0.75))",
                weight_decay=1e-4,
                decay="all",
                channels_last=True,
                workers=8,
                save_every=5000,
                evaluate_every=20_000,
            ),
        ),
        minutes=8 * 24 * 60,
        expect={"error": (0.22, 0.26)},
        machine="8 GPUs",
        about="Section 3.4 on an ImageNet folder (--data); the plateau rule is written as cuts at fixed steps",
    ),
}


SCALES = (224, 256, 384, 480, 640)
"""Shorter sides in pixels of the paper's multi-scale testing (Section 3.4)."""


def _score_scales(model: nn.Module, images: Sequence[Image.Image], preprocess: Preprocess) -> Tensor:
    return multi_scale_predict(model, images, SCALES, preprocess)


def predict(
    model: ResNet,
    inputs: Sequence[str],
    *,
    top: int = 5,
    crops: Literal["centre", "ten", "scales"] = "centre",
) -> Iterator[Prediction]:
    """The most probable classes of image files.

    Args:
        top: how many classes to give.
        crops: one centre crop, the average of ten, or of whole pictures at five scales (Section 3.4).
    """
    if crops == "scales":
        return classify(model, inputs, top=top, crops=_score_scales)
    return classify(model, inputs, top=top, crops=crops)
