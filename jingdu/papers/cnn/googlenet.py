r"""Going Deeper with Convolutions. Szegedy, Liu, Jia, Sermanet, Reed, Anguelov, Erhan, Vanhoucke, Rabinovich. 2014.
https://arxiv.org/abs/1409.4842

**Problem.** A larger network is a better one, but its weights and multiplications grow with the square of its width.
Sparse connections would be enough in theory; on real machines only dense products are fast.

**Idea.** Build each layer of a few dense parts side by side: convolutions of 1x1, 3x3 and 5x5 pixels and a pool, whose
outputs are concatenated. Convolutions of 1x1 first squeeze the channels that the large kernels see (Fig. 2b):

$$ y = [\,c_1(x),\ c_3(r_3(x)),\ c_5(r_5(x)),\ p_1(\mathrm{pool}(x))\,] $$

so that a 3x3 kernel over 480 channels costs what one over 96 does. Two small classifiers on the way give the lower
layers a gradient in training.

**Showed.** First of ILSVRC 2014 with 6.67 % top-5 error (Tab. 2, seven networks, 144 crops an image), with 22 layers and
about a ninth of AlexNet's weights; the text says a twelfth.

Differs from the paper in:
- The text gives the response normalisation no constants: here k = 1, n = 5 and alpha / n = 2e-5 as in the network that
  BVLC published (caffe/models/bvlc_googlenet), whose weights can be loaded.
- The text gives no initial weights: here they are He's.
- Maps on which a 5x5 pool with stride 3 does not give 4x4 (images of other sizes) are pooled to 4x4 adaptively before an
  auxiliary classifier.
- `port` is torchvision's network: 3x3 in place of 5x5 (known there as a bug, pytorch/vision#906), a last max-pool of
  2x2, adaptive pools before the auxiliary classifiers; with `norm="batch"`, no response normalisation.
- Training is synchronous, on one learning rate for all; one network, where the text averages seven; images are resized
  by one interpolation.
- One convolution for the three of 1x1 that see the same input is no faster than three here (0.8 to 1.2 times on a CPU,
  block by block), so they stay three.
"""

import math
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
from jingdu.engine.contracts import Batch, Recipe, Stage
from jingdu.engine.systems import Classification
from jingdu.errors import UsageError
from jingdu.nn import check_images, each, quick_layout
from jingdu.papers.cnn.alexnet import classify, local_response_norm, ten_crop
from jingdu.prediction import Prediction

__all__ = [
    "TABLE_1",
    "Auxiliary",
    "AuxiliaryHead",
    "GoogLeNet",
    "Inception",
    "Unit",
    "build",
    "crops_144",
    "photometric",
    "predict",
    "scale_and_aspect",
]

# Architecture (Sec. 4, 5) -----------------------------------------------------------------------------

CONVOLUTIONS: dict[int, Callable[..., nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
POOLS: dict[int, Callable[..., nn.Module]] = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
NORMS: dict[int, Callable[..., nn.Module]] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
"""By the number of dimensions of a picture: a later network for video inflates these blocks."""


class Unit(nn.Module):
    """A convolution that keeps the size at stride 1, and a ReLU: "including those inside the Inception modules" (Sec. 5).

    Args:
        kernel: its side, odd, the same along all dimensions.
        norm: "batch" puts a batch norm between (not the paper's), with torchvision's epsilon of 1e-3.
        dims: 2 for pictures, 3 for video.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int = 1,
        norm: Literal["batch"] | None = None,
        dims: int = 2,
    ):
        super().__init__()
        self.conv = CONVOLUTIONS[dims](inputs, outputs, kernel, stride, kernel // 2, bias=norm is None)
        self.bn = NORMS[dims](outputs, eps=1e-3) if norm == "batch" else nn.Identity()

    def forward(self, x: Float[Tensor, "batch inputs *size"]) -> Float[Tensor, "batch outputs *less"]:
        return F.relu(self.bn(self.conv(x)), inplace=True)


class Inception(nn.Module):
    """Figure 2b: four branches side by side, concatenated in the order 1x1, 3x3, 5x5, pool.

    Args:
        widths: a row of Table 1: #1x1, #3x3 reduce, #3x3, #5x5 reduce, #5x5, pool proj.
        large: kernel of the third branch.
        unit: makes a convolution with its activation, unit(inputs, outputs, kernel).
        pool: a max-pool over 3 pixels that keeps the size.
    """

    def __init__(
        self,
        inputs: int,
        widths: Sequence[int],
        large: int = 5,
        unit: Callable[[int, int, int], nn.Module] = Unit,
        pool: nn.Module | None = None,
    ):
        super().__init__()
        one, reduce3, three, reduce5, five, project = widths
        self.one = unit(inputs, one, 1)
        self.reduce3, self.three = unit(inputs, reduce3, 1), unit(reduce3, three, 3)
        self.reduce5, self.five = unit(inputs, reduce5, 1), unit(reduce5, five, large)
        self.pool = nn.MaxPool2d(3, 1, 1) if pool is None else pool
        self.project = unit(inputs, project, 1)
        self.outputs = one + three + five + project

    def forward(self, x: Float[Tensor, "batch inputs *size"]) -> Float[Tensor, "batch outputs *size"]:
        branches = (self.one(x), self.three(self.reduce3(x)), self.five(self.reduce5(x)), self.project(self.pool(x)))
        return torch.cat(branches, 1)


class AuxiliaryHead(nn.Module):
    """Section 5: a classifier on the way: a 5x5 average pool with stride 3, a 1x1 convolution, two dense layers."""

    def __init__(
        self, inputs: int, num_classes: int, channels: int = 128, units: int = 1024, dropout: float = 0.7,
        norm: Literal["batch"] | None = None, adaptive: bool = False,
    ):  # fmt: skip
        super().__init__()
        self.adaptive = adaptive
        self.conv = Unit(inputs, channels, 1, norm=norm)
        self.fc1, self.fc2 = nn.Linear(16 * channels, units), nn.Linear(units, num_classes)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "batch inputs height width"]) -> Float[Tensor, "batch classes"]:
        if not self.adaptive and min(x.shape[2:]) >= 5:
            x = F.avg_pool2d(x, 5, 3)
        x = self.conv(F.adaptive_avg_pool2d(x, 4)).flatten(1)  # 14x14 pixels are 4x4 already
        return self.fc2(self.dropout(F.relu(self.fc1(x))))


TABLE_1: dict[str, tuple[int, ...]] = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}
"""Block -> #1x1, #3x3 reduce, #3x3, #5x5 reduce, #5x5, pool proj."""
AFTER_POOLS = ("3a", "4a", "5a")
"""The blocks before which a max-pool stands."""


class GoogLeNet(nn.Module):
    """Table 1: a stem, nine Inception blocks with max-pools between them, an average over all places, one dense layer.

    Args:
        width: times all numbers of channels (Table 1 is 1), but none is below 8.
        norm: "batch" puts a batch norm behind each convolution and leaves the response normalisation out.
        aux: two auxiliary classifiers, which answer in training only.
        port: torchvision's network (see the module's docstring).
        transform_input: takes pictures normalised as ImageNet's and brings them to [-1, 1], which the weights that
            torchvision publishes were trained with.
        dropout: share of the dense layer's inputs that is dropped in training.
        single: one 3x3 convolution of about as many multiplications in place of each Inception block.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_channels: int = 3,
        width: float | int = 1,
        norm: Literal["batch"] | None = None,
        aux: bool = False,
        port: bool = False,
        transform_input: bool = False,
        dropout: float = 0.4,
        single: bool = False,
    ):
        super().__init__()

        def unit(inputs: int, outputs: int, kernel: int, stride: int = 1) -> Unit:
            return Unit(inputs, outputs, kernel, stride, norm)

        def wide(channels: int) -> int:
            return max(round(width * channels), 8)

        self.conv1 = unit(in_channels, wide(64), 7, 2)
        self.conv2_reduce = unit(wide(64), wide(64), 1)
        self.conv2 = unit(wide(64), wide(192), 3)
        channels = nominal = wide(192)
        self.channels = [channels]
        for name, row in TABLE_1.items():
            widths = tuple(map(wide, row))
            block = Inception(nominal, widths, 3 if port else 5, unit)
            nominal = block.outputs
            if single:
                block = unit(channels, _equal_width(block), 3)
                block.outputs = block.conv.out_channels
            self.add_module(f"inception{name}", block)
            channels = block.outputs
            if name in ("3b", "4e", "5b"):
                self.channels.append(channels)
            if aux and name in ("4a", "4d"):
                head = AuxiliaryHead(channels, num_classes, wide(128), wide(1024), norm=norm, adaptive=port)
                self.add_module("aux1" if name == "4a" else "aux2", head)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(channels, num_classes)
        self.norm, self.aux, self.port, self.transform_input = norm, aux, port, transform_input
        self.initialise()

    def initialise(self) -> None:
        """He's rule, biases of zero; the dense layers that give classes start small."""
        each(self, (nn.Conv2d, nn.Linear), lambda m: nn.init.kaiming_normal_(m.weight, nonlinearity="relu"))
        each(self, (nn.Conv2d, nn.Linear), lambda m: None if m.bias is None else nn.init.zeros_(m.bias))
        nn.init.normal_(self.fc.weight, std=0.01)
        each(self, AuxiliaryHead, lambda m: nn.init.normal_(m.fc2.weight, std=0.01))

    def _normalised(self, x: Tensor) -> Tensor:
        """Section 3.3 of AlexNet, where the paper has it and batch norms do not stand in for it."""
        return x if self.norm == "batch" else local_response_norm(x, k=1.0, alpha=2e-5)

    def blocks(self, x: Float[Tensor, "batch channels height width"]) -> Iterator[tuple[str, Tensor]]:
        """The output of conv2 ("2") and of each Inception block ("3a" .. "5b"), one after the other.

        Raises UsageError for images of other channels than conv1's.
        """
        check_images(x, self.conv1.conv)
        if self.transform_input:
            mean, std = (x.new_tensor(values).view(3, 1, 1) for values in (IMAGENET.mean, IMAGENET.std))
            x = (x * std + mean - 0.5) / 0.5
        # From one picture on, in training too: 1.1 to 1.9 times as fast on a CPU.
        x = F.max_pool2d(self.conv1(quick_layout(x, fewest=1)), 3, 2, ceil_mode=True)
        x = self.conv2(self.conv2_reduce(self._normalised(x)))
        yield "2", x
        x = self._normalised(x)
        for name in TABLE_1:
            if name in AFTER_POOLS:
                last = self.port and name == "5a"
                x = F.max_pool2d(x, 2 if last else 3, 2, ceil_mode=True)
            x = getattr(self, f"inception{name}")(x)
            yield name, x

    def features(self, x: Float[Tensor, "batch channels height width"]) -> list[Tensor]:
        """What stands before each max-pool behind the stem and at the end: conv2, 3b, 4e and 5b, at strides 4, 8, 16, 32.

        `self.channels` holds their channel counts.
        """
        return [output for name, output in self.blocks(x) if name in ("2", "3b", "4e", "5b")]

    def forward(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes"] | tuple[Tensor, Tensor, Tensor]:
        """Logits; in training, with auxiliary classifiers, those after 4a and 4d too."""
        asides = []
        for name, output in self.blocks(x):
            x = output
            if self.aux and self.training and name in ("4a", "4d"):
                asides.append((self.aux1 if name == "4a" else self.aux2)(x))
        logits = self.fc(self.dropout(x.mean((2, 3))))
        return (logits, *asides) if asides else logits


def _equal_width(block: Inception) -> int:
    """Channels of a chain of 3x3 convolutions that multiply about as often as Inception blocks: 9 c^2 for each pixel."""
    units = (block.one, block.reduce3, block.three, block.reduce5, block.five, block.project)
    return round(math.sqrt(sum(unit.conv.weight.numel() for unit in units) / 9))


PORT = {"norm": "batch", "port": True, "dropout": 0.2}

VARIANTS: dict[str, dict[str, Any]] = {
    # Table 1
    "googlenet": {},
    "googlenet_with_aux": {"aux": True},
    # torchvision/models/googlenet.py (0.28)
    "googlenet_bn_torchvision": PORT,
    "googlenet_bn_torchvision_with_aux": {**PORT, "aux": True},
    # Ours, for small pictures and eight classes
    "googlenet_scenes": {"width": 0.125, "num_classes": 8, "norm": "batch", "dropout": 0.0},
}


def build(variant: str, **overrides: Any) -> GoogLeNet:
    """The network of a variant; overrides are the arguments of `GoogLeNet`."""
    return GoogLeNet(**{**VARIANTS[variant], **overrides})


# Training (Sec. 5, 6) -----------------------------------------------------------------------------


class Auxiliary(Classification):
    """Softmax cross-entropy; that of the auxiliary classifiers is added with a weight of 0.3 (Sec. 5)."""

    weight = 0.3

    def forward(self, batch: Batch, objective: str) -> tuple[Tensor, dict[str, Any]]:
        output = self.network(batch["image"])
        logits, *asides = output if isinstance(output, tuple) else (output,)
        loss = F.cross_entropy(logits.float(), batch["label"])
        values = {"error": (logits.detach().argmax(1) != batch["label"]).float().mean()}
        for number, aside in enumerate(asides, start=1):
            found = F.cross_entropy(aside.float(), batch["label"])
            values[f"aux{number}_loss"] = found.detach()
            loss = loss + self.weight * found
        return loss, values


def scale_and_aspect(
    image: Image.Image,
    draws: Draws,
    preprocess: Preprocess,
    area: tuple[float | int, float | int] = (0.08, 1),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Float[Tensor, "channels size size"]:
    """Section 6: a patch whose area is uniform between 8 % and all of the image's, its aspect ratio between 3/4 and 4/3.

    It is resized to `preprocess.size` pixels a side, in [0, 1]; `draws` has one row. The ratio is uniform in its
    logarithm. Where ten tries do not fit into the image, the largest central patch of an allowed ratio is taken.
    """
    size = preprocess.size
    if size is None:
        raise UsageError("scale_and_aspect: patches become images of a known size: set preprocess.size")
    width, height = image.size
    shares = draws.uniform(10, low=float(area[0]), high=float(area[1]))[0].tolist()
    shapes = draws.uniform(10, low=math.log(ratio[0]), high=math.log(ratio[1])).exp()[0].tolist()
    across, down = draws.uniform(2)[0].tolist()
    for share, shape in zip(shares, shapes, strict=True):
        wide, high = (round(math.sqrt(share * width * height * r)) for r in (shape, 1 / shape))
        if 0 < wide <= width and 0 < high <= height:
            left, top = int(across * (width - wide + 1)), int(down * (height - high + 1))
            break
    else:
        wide = min(width, max(round(height * ratio[1]), 1))
        high = min(height, max(round(width / ratio[0]), 1))
        left, top = (width - wide) // 2, (height - high) // 2
    how = {
        "nearest": Image.Resampling.NEAREST,
        "bilinear": Image.Resampling.BILINEAR,
        "bicubic": Image.Resampling.BICUBIC,
        "lanczos": Image.Resampling.LANCZOS,
    }
    return to_tensor(image.resize((size, size), how[preprocess.interpolation], (left, top, left + wide, top + high)))


def photometric(
    images: Float[Tensor, "batch channels height width"], draws: Draws, strength: float = 0.4
) -> Float[Tensor, "batch channels height width"]:
    """Section 6, "the photometric distortions by Andrew Howard" (arXiv 1312.5402): brightness, contrast and colour.

    Each is changed by a factor uniform in 1 - `strength` .. 1 + `strength`, in a random order for each image.
    """

    def mixed(images: Tensor, other: Tensor, factor: Tensor) -> Tensor:
        return other + (images - other) * factor.view(-1, 1, 1, 1)

    factors = 1 + strength * (2 * draws.uniform(3) - 1).to(images)
    order = draws.uniform(3).argsort(1).to(images.device)
    grey = images.new_tensor((0.299, 0.587, 0.114)).view(3, 1, 1)
    for turn in range(3):
        shade = (images * grey).sum(1, keepdim=True) if images.shape[1] == 3 else images
        others = (images.new_zeros(1), shade.mean((1, 2, 3), keepdim=True), shade)
        changed = [mixed(images, other, factors[:, kind]) for kind, other in enumerate(others)]
        images = torch.stack(changed)[order[:, turn], torch.arange(len(images), device=images.device)].clamp(0, 1)
    return images


# Testing (Sec. 7) ---------------------------------------------------------------------------------


def crops_144(image: Image.Image, preprocess: Preprocess) -> Float[Tensor, "144 channels size size"]:
    """Section 7: four scales, three squares of each, six views of each square, and their mirror images; in [0, 1].

    The shorter side becomes 256, 288, 320 and 352 pixels (for 224, others in proportion); the squares are the left, the
    central and the right one (in portraits top, centre, bottom); the views are the four corners, the centre, and the
    whole square resized.
    """
    size = preprocess.size
    if size is None:
        raise UsageError("crops are cut from images of a known size: set preprocess.size")
    views = []
    for scale in (256, 288, 320, 352):
        side = round(scale * size / 224)
        scaled = resize_shorter(image, side, preprocess.interpolation)
        spare = (scaled.width - side, scaled.height - side)
        for part in (0.0, 0.5, 1.0):
            left, top = (round(part * extra) for extra in spare)
            square = scaled.crop((left, top, left + side, top + side))
            pixels = to_tensor(square)[None]
            corners = ten_crop(pixels, size)[:5, 0]  # the mirror images come below
            whole = to_tensor(resize_shorter(square, size, preprocess.interpolation))[None]
            views += [corners, whole]
    found = torch.cat(views)
    return torch.cat((found, found.flip(3)))


def _score_144(model: nn.Module, images: Sequence[Image.Image], preprocess: Preprocess) -> Tensor:
    place = next(model.parameters()).device
    views = (normalise(crops_144(image, preprocess), preprocess).to(place).split(24) for image in images)
    return torch.stack([torch.cat([model(part).softmax(1) for part in parts]).mean(0) for parts in views])


SCENES = Preprocess(size=48, resize=48, mean=(0.391, 0.384, 0.377), std=(0.2,))
"""Mean of the pixels of `scenes`, and one number for the scale of the rest."""

recipes = {
    "laptop": Recipe(
        stages=(
            Stage(
                networks={"network": "googlenet_scenes"},
                data="scenes(max_shapes=1, background='gradient', fields=('image', 'label'))",
                preprocess=SCENES,
                augment=("random_crop", "flip"),
                batch_size=64,
                steps=300,
                lr=0.03,  # at 0.1 it unlearns what it has learned
                schedule="onecycle(rise=0.15)",
                weight_decay=1e-4,
            ),
        ),
        minutes=1,
        # Three seeds gave 0.62, 0.71 and 0.51, all still falling (claims/cnn/googlenet.py): deep and thin, it learns slowly.
        expect={"error": (0.0, 0.75)},
        about="a narrow GoogLeNet with batch norms begins to name the shape in 4,000 scenes of 48x48 pixels; --steps for more",
    ),
    "paper": Recipe(
        stages=(
            Stage(
                system="googlenet.Auxiliary",
                networks={"network": "googlenet_with_aux"},
                data="imagenet",
                preprocess=IMAGENET,
                crop="googlenet.scale_and_aspect",
                augment=("flip", "googlenet.photometric"),
                batch_size=256,
                epochs=240,
                lr=0.01,
                schedule="step(every=8, factor=0.96)",
                weight_decay=2e-4,
                ema=0.9999,
                workers=8,
                save_every=5000,
            ),
        ),
        minutes=7 * 24 * 60,
        expect={"error": (0.29, 0.34), "top5_error": (0.09, 0.12)},
        machine="a few GPUs",
        about="Section 6 on an ImageNet folder (--data): momentum 0.9, the rate 4 % lower every 8 epochs, averaged weights; "
        "one network and one crop had 10.07 % top-5 error (Table 3)",
    ),
}


def predict(
    model: GoogLeNet,
    inputs: Sequence[str],
    *,
    top: int = 5,
    crops: Literal["centre", "ten", "144"] = "centre",
) -> Iterator[Prediction]:
    """The most probable classes of image files.

    Args:
        top: how many classes to give.
        crops: one centre crop; the average of AlexNet's ten; or of the paper's 144 (Section 7).
    """
    return classify(model, inputs, top=top, crops=_score_144 if crops == "144" else crops)
