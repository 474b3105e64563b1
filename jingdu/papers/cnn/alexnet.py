r"""ImageNet Classification with Deep Convolutional Neural Networks. Krizhevsky, Sutskever, Hinton. 2012.
https://papers.nips.cc/paper/2012/file/c399862d3b9d6b76c8436e924a68c45b-Paper.pdf

**Problem.** A million labelled photos show what their classes look like better than anyone can write
down, but the systems of 2011 learned only the last step: a linear classifier over descriptors made by hand.

**Idea.** Learn everything from the pixels up. A convolutional network large enough for the data (60
million weights, five convolutional layers, three dense ones) is trained by backpropagation alone, with
what makes that possible: ReLUs, which do not saturate; two GPUs, each of which holds half of the
kernels; dropout and augmentation against overfitting; and competition between neighbouring kernel maps
at the same place (Sec. 3.3):

$$ b^i_{x,y} = a^i_{x,y} \Big/ \Big(k + \alpha \sum_{j=\max(0,\,i-n/2)}^{\min(N-1,\,i+n/2)} (a^j_{x,y})^2\Big)^\beta $$

**Showed.** 37.5 % top-1 and 17.0 % top-5 error on the ILSVRC-2010 test set, against 45.7 % and 25.7 % for Fisher
vectors of SIFT descriptors (Tab. 1); 15.3 % top-5 in the ILSVRC-2012 competition (Tab. 2).

Differs from the paper in:
- Images are 227x227: with the text's 224, kernels of 11 at stride 4 do not give 55x55 outputs.
- An adaptive average pool to 6x6 stands before fc6. At 227 it changes nothing; it admits other sizes.
- Dropout acts on the inputs of fc6 and fc7, in torchvision's order; the authors' own layer file
  (cuda-convnet2, layers-imagenet-1gpu.cfg) drops their outputs. Outside training there is no difference.
- The response normalisation sums over neighbours in all 96 or 256 maps, not within one GPU's half.
- One mean a channel is subtracted from the images, not one a pixel.
- The learning rate is cut at fixed steps, not by hand when the validation error stalls.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from jingdu.data.draws import Draws
from jingdu.data.images import decode, expand_inputs, normalise, prepare, resize_shorter, to_tensor
from jingdu.data.preprocess import IMAGENET, Preprocess
from jingdu.engine.contracts import Recipe, Stage
from jingdu.errors import UsageError
from jingdu.nn import check_images, each, quick_layout
from jingdu.prediction import Prediction, origin_of

__all__ = [
    "COLOUR_EIGENVALUES",
    "COLOUR_EIGENVECTORS",
    "AlexNet",
    "build",
    "classify",
    "filter_picture",
    "local_response_norm",
    "pca_colour_shift",
    "predict",
    "random_patch",
    "random_window",
    "ten_crop",
    "ten_crop_predict",
]

# Architecture (Sec. 3) --------------------------------------------------------------------------------


def local_response_norm(
    x: Float[Tensor, "batch channels height width"], k: float = 2.0, n: int = 5, alpha: float = 1e-4, beta: float = 0.75
) -> Float[Tensor, "batch channels height width"]:
    """Section 3.3: divide each activation by a power of what its `n` neighbouring maps sum to at its place.

    `n` is odd. torch's layer of that name divides `alpha` by `n`, the paper does not. Here the sum is a 1x1 convolution
    with a band matrix, and the power an exponential of a logarithm, which processors vectorise: a fraction of that
    layer's time on a CPU.
    """
    place = torch.arange(x.shape[1], device=x.device)
    band = (place[:, None] - place).abs() <= n // 2
    sums = F.conv2d(x.square(), (alpha * band.to(x))[:, :, None, None], x.new_full(place.shape, k))
    return x * (sums.log() * -beta).exp()


class AlexNet(nn.Module):
    """Figure 2: five convolutions, three dense layers.

    Args:
        widths: kernels of conv1 .. conv5, then units of fc6 and fc7.
        groups: of conv2, conv4 and conv5. Two groups are the two GPUs: kernel maps that see only those on their
            own GPU, while conv3 and the dense layers see both halves (Sec. 3.2).
        first: kernel size, stride and padding of conv1.
        grid: side of the maps that fc6 sees.
        lrn: whether conv1 and conv2 are followed by response normalisation.
        dropout: share of the inputs of fc6 and fc7 that is dropped in training (Sec. 4.2).
        init: standard deviation of the initial weights, and the bias with which conv2, conv4, conv5, fc6 and fc7
            start (Sec. 5); None keeps torch's own initialisation.
    """

    def __init__(
        self,
        widths: Sequence[int] = (96, 256, 384, 384, 256, 4096, 4096),
        groups: int = 2,
        first: tuple[int, int, int] = (11, 4, 0),
        grid: int = 6,
        lrn: bool = True,
        dropout: float = 0.5,
        init: tuple[float, float] | None = (0.01, 1.0),
        num_classes: int = 1000,
        in_channels: int = 3,
    ):
        super().__init__()
        kernel, stride, padding = first
        self.conv1 = nn.Conv2d(in_channels, widths[0], kernel, stride, padding)
        self.conv2 = nn.Conv2d(widths[0], widths[1], 5, padding=2, groups=groups)
        self.conv3 = nn.Conv2d(widths[1], widths[2], 3, padding=1)
        self.conv4 = nn.Conv2d(widths[2], widths[3], 3, padding=1, groups=groups)
        self.conv5 = nn.Conv2d(widths[3], widths[4], 3, padding=1, groups=groups)
        self.lrn = lrn
        self.pool = nn.MaxPool2d(3, 2)  # windows overlap (Sec. 3.4)
        # conv1 must leave 15 pixels, of which the pools make 7, 3 and 1.
        self.smallest = kernel + 14 * stride - 2 * padding
        self.grid = nn.AdaptiveAvgPool2d(grid)
        self.dropout = nn.Dropout(dropout)
        self.fc6 = nn.Linear(widths[4] * grid**2, widths[5])
        self.fc7 = nn.Linear(widths[5], widths[6])
        self.fc8 = nn.Linear(widths[6], num_classes)
        if init is not None:
            self.initialise(*init)

    def initialise(self, std: float = 0.01, bias: float = 1.0) -> None:
        """Section 5: Gaussian weights; positive biases where they give the ReLUs something to work on."""
        each(self, (nn.Conv2d, nn.Linear), lambda m: nn.init.normal_(m.weight, std=std))
        each(self, (nn.Conv2d, nn.Linear), lambda m: nn.init.zeros_(m.bias))
        for layer in (self.conv2, self.conv4, self.conv5, self.fc6, self.fc7):
            nn.init.constant_(layer.bias, bias)

    def features(self, x: Float[Tensor, "batch channels height width"]) -> list[Tensor]:
        """The rectified outputs of conv1 .. conv5, before normalisation and pooling.

        Raises UsageError for images of other channels than conv1's, or smaller than `smallest` pixels.
        """
        check_images(x, self.conv1, self.smallest)
        x, taps = quick_layout(x), []
        for number, conv in enumerate((self.conv1, self.conv2, self.conv3, self.conv4, self.conv5), start=1):
            x = F.relu(conv(x))
            taps.append(x)
            if number <= 2:
                x = self.pool(local_response_norm(x) if self.lrn else x)
        return taps

    def descriptor(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch units"]:
        """The rectified outputs of fc7: images that lie close in this space look alike (Sec. 6.1, Fig. 4)."""
        x = self.grid(self.pool(self.features(x)[-1])).flatten(1)
        x = F.relu(self.fc6(self.dropout(x)))
        return F.relu(self.fc7(self.dropout(x)))

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        return self.fc8(self.descriptor(x))


VARIANTS: dict[str, dict[str, Any]] = {
    # Section 3.5 and Figure 2
    "alexnet": {},
    # Krizhevsky, "One weird trick for parallelizing convolutional neural networks", arXiv 1404.5997, footnote 1;
    # padding and initialisation as in torchvision
    "alexnet_one_weird_trick": {
        "widths": (64, 192, 384, 256, 256, 4096, 4096), "groups": 1, "first": (11, 4, 2), "lrn": False, "init": None,
    },
    # The same layers on one GPU
    "alexnet_ungrouped": {"groups": 1},
    # Ours, for pictures of 64x64 and eight classes. N(0, 0.01) is for layers of the paper's width and raw RGB values:
    # here it is too little for any signal to reach fc8.
    "alexnet_scenes": {
        "widths": (24, 64, 96, 96, 128, 512, 512), "first": (7, 2, 0), "grid": 2, "init": (0.07, 0.0), "num_classes": 8,
    },
}  # fmt: skip


def build(variant: str, **overrides: Any) -> AlexNet:
    """The network of a variant; overrides are the arguments of `AlexNet`."""
    return AlexNet(**{**VARIANTS[variant], **overrides})


# Reducing overfitting (Sec. 4) ------------------------------------------------------------------------


def random_window(image: Image.Image, size: int, draws: Draws) -> Image.Image:
    """A `size` x `size` window at a random place; `draws` has one row. Raises UsageError for a smaller image."""
    if min(image.size) < size:
        raise UsageError(
            f"an image of {image.size[0]} x {image.size[1]} pixels has no window of {size}: resize to more"
        )
    left, top = (int(draws.integers(side - size + 1)) for side in image.size)
    return image.crop((left, top, left + size, top + size))


def central_square(image: Image.Image, preprocess: Preprocess) -> Image.Image:
    """Section 2: the shorter side scaled to 256 (`preprocess.resize`), and the centre 256x256 of that."""
    side = preprocess.shorter_side
    if side is None:
        raise UsageError("crops are cut from images of a known size: set preprocess.size")
    image = resize_shorter(image, side, preprocess.interpolation)
    left, top = ((length - side) // 2 for length in image.size)
    return image.crop((left, top, left + side, top + side))


def random_patch(image: Image.Image, draws: Draws, preprocess: Preprocess) -> Float[Tensor, "channels size size"]:
    """Section 4.1: a random `preprocess.size` patch of the central square, [0, 1]. Mirroring is `flip`."""
    square = central_square(image, preprocess)
    return to_tensor(random_window(square, int(preprocess.size or square.width), draws))


COLOUR_EIGENVALUES = (0.2175, 0.0188, 0.0045)
COLOUR_EIGENVECTORS = (
    (-0.5675, 0.7192, 0.4009),
    (-0.5808, -0.0045, -0.8140),
    (-0.5836, -0.6948, 0.4203),
)
"""Of the covariance of ImageNet's RGB values in [0, 1]; rows are red, green, blue, columns the eigenvectors.

Source: facebookarchive/fb.resnet.torch, datasets/imagenet.lua. The columns are orthonormal, and the variances that
follow for red, green and blue are 0.2837^2, 0.2763^2 and 0.2898^2.
"""


def pca_colour_shift(
    images: Float[Tensor, "batch 3 height width"], draws: Draws, std: float = 0.1
) -> Float[Tensor, "batch 3 height width"]:
    r"""Section 4.1: add to every pixel of an image $[p_1, p_2, p_3][\alpha_1\lambda_1, \alpha_2\lambda_2, \alpha_3\lambda_3]^T$.

    The eigenvectors $p_i$ and eigenvalues $\lambda_i$ are those of ImageNet's colours; $\alpha_i$ is Gaussian with
    deviation `std`, drawn once an image. Images are in [0, 1] and may leave it a little.
    Raises UsageError for images that are not RGB.
    """
    if images.shape[1] != 3:
        raise UsageError(f"pca_colour_shift is for red, green and blue, and the images have {images.shape[1]} channels")
    vectors, values = torch.tensor(COLOUR_EIGENVECTORS), torch.tensor(COLOUR_EIGENVALUES)
    shift = (draws.normal(3, std=std) * values) @ vectors.T
    return images + shift.to(images)[:, :, None, None]


# Testing (Sec. 4.1, 6) --------------------------------------------------------------------------------


def ten_crop(
    images: Float[Tensor, "batch channels height width"], size: int
) -> Float[Tensor, "10 batch channels {size} {size}"]:
    """Section 4.1: the corners top left, top right, bottom left, bottom right, the centre; then those of the mirror image.

    Raises UsageError for images smaller than `size`.
    """
    height, width = images.shape[2:]
    if min(height, width) < size:
        raise UsageError(f"images of {height} x {width} pixels have no crops of {size}")
    bottom, right = height - size, width - size
    corners = [(0, 0), (0, right), (bottom, 0), (bottom, right), (round(bottom / 2), round(right / 2))]
    return torch.stack(
        [x[:, :, top : top + size, left : left + size] for x in (images, images.flip(3)) for top, left in corners]
    )


def ten_crop_predict(
    network: Callable[[Tensor], Tensor], images: Float[Tensor, "batch channels height width"], size: int
) -> Float[Tensor, "batch classes"]:
    """Section 4.1: class probabilities, averaged over the softmax of ten crops of each normalised image."""
    crops = ten_crop(images, size)
    return network(crops.flatten(0, 1)).softmax(1).unflatten(0, crops.shape[:2]).mean(0)


Score = Callable[[nn.Module, Sequence[Image.Image], Preprocess], Tensor]
"""Class probabilities [images, classes] of pictures: score(model, pictures, preprocess)."""


def _normalised(model: nn.Module, images: Tensor, preprocess: Preprocess) -> Tensor:
    return normalise(images, preprocess).to(next(model.parameters()).device)


def _score_centre(model: nn.Module, images: Sequence[Image.Image], preprocess: Preprocess) -> Tensor:
    views = [_normalised(model, prepare(image, preprocess), preprocess) for image in images]
    alike = len({view.shape for view in views}) == 1
    return torch.cat([model(x).softmax(1) for x in ([torch.stack(views)] if alike else [v[None] for v in views])])


def _score_ten(model: nn.Module, images: Sequence[Image.Image], preprocess: Preprocess) -> Tensor:
    squares = torch.stack([to_tensor(central_square(image, preprocess)) for image in images])
    return ten_crop_predict(model, _normalised(model, squares, preprocess), preprocess.size or squares.shape[-1])


def classify(
    model: nn.Module,
    inputs: Sequence[str],
    *,
    top: int = 5,
    crops: Literal["centre", "ten"] | Score = "centre",
    batch_size: int = 16,
) -> Iterator[Prediction]:
    """The `top` most probable classes of image files (and of the images in folders), in their order.

    Puts `model` into evaluation mode. Classes without names are "class 7". Without a preprocessing of the weights'
    own, images are prepared as torchvision does for ImageNet. A `Score` in place of `crops` looks at the pictures
    in another way. Raises UsageError for no inputs, BadInput for a file that is no image, or no file.
    """
    if not inputs:
        raise UsageError("there are no inputs: name image files, or folders of them")
    origin = origin_of(model)
    preprocess = origin.preprocess or IMAGENET
    score = {"centre": _score_centre, "ten": _score_ten}[crops] if isinstance(crops, str) else crops
    paths = expand_inputs(inputs)
    model.eval()
    for start in range(0, len(paths), batch_size):
        chunk = paths[start : start + batch_size]
        with torch.no_grad():
            probabilities = score(model, [decode(path, preprocess.channels) for path in chunk], preprocess)
        names = _class_names(origin.classes, probabilities.shape[1])
        for path, row in zip(chunk, probabilities, strict=True):
            found = row.topk(min(top, len(row)))
            best = [
                {"class": names[i], "index": i, "probability": p}
                for p, i in zip(found.values.tolist(), found.indices.tolist(), strict=True)
            ]
            lines = [f"  {entry['probability']:.4f}  {entry['class']}" for entry in best]
            yield Prediction(str(path), "\n".join([str(path), *lines]), {"file": str(path), "top": best})


def _class_names(known: Sequence[str] | None, count: int) -> Sequence[str]:
    if known is not None and len(known) == count:
        return known
    if count == 1000:
        from jingdu.data.imagenet import class_names

        return class_names()
    return [f"class {i}" for i in range(count)]


def filter_picture(
    weight: Float[Tensor, "filters channels height width"], columns: int = 16
) -> Float[Tensor, "3 picture_height picture_width"]:
    """Figure 3: first-layer kernels side by side, each stretched to [0, 1], a white line around each.

    Kernels have three channels, or one, which is shown in grey. Raises UsageError for others.
    """
    if weight.shape[1] not in (1, 3):
        raise UsageError(f"kernels of {weight.shape[1]} channels have no colours: filters are shown for 1 or 3")
    low, high = weight.amin((1, 2, 3), keepdim=True), weight.amax((1, 2, 3), keepdim=True)
    tiles = (weight - low) / (high - low).clamp(min=1e-12)
    tiles = F.pad(tiles.expand(-1, 3, -1, -1), (0, 1, 0, 1), value=1.0)
    missing = -len(tiles) % columns
    tiles = torch.cat([tiles, tiles.new_ones(missing, *tiles.shape[1:])])
    rows = [torch.cat(list(row), dim=2) for row in tiles.split(columns)]
    return F.pad(torch.cat(rows, dim=1), (1, 0, 1, 0), value=1.0)


# What a user does with it -----------------------------------------------------------------------------


@torch.no_grad()
def _write_descriptors(model: AlexNet, inputs: Sequence[str], target: Path) -> Prediction:
    from safetensors.torch import save_file

    preprocess = origin_of(model).preprocess or IMAGENET
    paths = expand_inputs(inputs)
    model.eval()
    rows = {}
    for path in paths:
        view = prepare(decode(path, preprocess.channels), preprocess)
        rows[str(path)] = model.descriptor(_normalised(model, view[None], preprocess))[0].cpu()
    target.parent.mkdir(parents=True, exist_ok=True)
    save_file(rows, target)
    text = f"fc7 of {len(rows)} images, {model.fc7.out_features} values each"
    return Prediction(str(target), text, {"images": len(rows), "length": model.fc7.out_features}, (target,))


@torch.no_grad()
def _draw_filters(model: AlexNet, target: Path, enlarge: int = 6) -> Prediction:
    picture = filter_picture(model.conv1.weight.detach().float().cpu())
    array = (picture * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    image = Image.fromarray(array)
    target.parent.mkdir(parents=True, exist_ok=True)
    image.resize((enlarge * image.width, enlarge * image.height), Image.Resampling.NEAREST).save(target, "PNG")
    count, _, height, width = model.conv1.weight.shape
    data = {"filters": count, "height": height, "width": width}
    return Prediction(str(target), f"the {count} kernels of conv1, {height} x {width} each", data, (target,))


SCENES = Preprocess(size=64, resize=64, mean=(0.391, 0.384, 0.377), std=(0.12,))
"""Mean of the pixels of `scenes`; one number for all channels gives the narrow conv1 a signal of about one."""

recipes = {
    "laptop": Recipe(
        stages=(
            Stage(
                # A layer of 512 units has fewer to spare than one of 4096: at 0.5 it does not leave chance in this time.
                networks={"network": "alexnet_scenes(dropout=0.1)"},
                data="scenes(fields=('image', 'label'))",
                preprocess=SCENES,
                augment=("random_crop", "flip", "alexnet.pca_colour_shift"),
                batch_size=64,  # with 32 the first third of the run stays at chance
                steps=1200,
                lr=0.03,
                schedule="onecycle(rise=0.15)",
                weight_decay=5e-4,
                decay="all",
            ),
        ),
        minutes=3,
        # Three seeds gave 0.4, 0.4 and 0.3 % (claims/cnn/alexnet.py); at 600 steps one that left chance late, 32 %.
        expect={"error": (0.0, 0.03)},
        about="a narrow AlexNet tells the largest shape in 4,000 scenes of 64x64 pixels",
    ),
    "paper": Recipe(
        stages=(
            Stage(
                networks={"network": "alexnet"},
                data="imagenet",
                # "The (centered) raw RGB values of the pixels" (Sec. 2): weights that start from N(0, 0.01) need them.
                preprocess=replace(IMAGENET, size=227, std=(1 / 255,)),
                crop="alexnet.random_patch",
                augment=("flip", "alexnet.pca_colour_shift"),
                batch_size=128,
                epochs=90,
                lr=0.01,
                schedule="multistep(at=(0.33, 0.66, 0.9))",
                weight_decay=5e-4,
                decay="all",
                workers=8,
                save_every=5000,
            ),
        ),
        minutes=6 * 24 * 60,
        expect={"error": (0.40, 0.44)},
        machine="2 GPUs of 3 GB",
        about="Section 5 on an ImageNet folder (--data)",
    ),
}


def predict(
    model: AlexNet,
    inputs: Sequence[str],
    *,
    top: int = 5,
    crops: Literal["centre", "ten"] = "centre",
    features: Path | None = None,
    filters: Path | None = None,
) -> Iterator[Prediction]:
    """The most probable classes of image files; on request their descriptors, and what the first layer looks for.

    Args:
        top: how many classes to give.
        crops: one centre crop, or the average over ten (Section 4.1).
        features: a .safetensors file to write, with the outputs of fc7 (Section 6.1) under each file's name.
        filters: a .png file to write, with the kernels of conv1 (Figure 3). It needs no inputs.

    Raises UsageError where there is nothing to do, and what `classify` raises.
    """
    if filters is not None:
        yield _draw_filters(model, filters)
    if inputs or filters is None or features is not None:
        yield from classify(model, inputs, top=top, crops=crops)
        if features is not None:
            yield _write_descriptors(model, inputs, features)
