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
- Weights start by He's rule, with which a network of any of these depths and widths learns. `init` is the deviation
  of a Gaussian, as in the text, or "xavier", to which its authors came later (Sec. 3.1). The text's variance of 0.01
  is a deviation of 0.1, which would make the first scores of column A some 10^6; the recipes take 0.01 for what was meant.
- Only where input channels agree can column A's first four convolutions start a deeper network: conv1_1, conv2_1,
  conv3_1, conv3_2 go to the layers of the same name (Sec. 3.1).
- The nets trained at many scales start from column A; the text fine-tunes them from nets trained at S = 384, for a
  time that it does not give.
- The `_bn` variants have a batch norm after each convolution. They are torchvision's, not the paper's.
- The learning rate is cut at fixed steps, not when the validation error stalls.
- An adaptive average pool to 7x7 stands before fc6, as in torchvision. At 224 pixels it changes nothing; it admits
  other sizes. With `dense`, a network does to other sizes what Section 3.2 says, as timm's do.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
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
from jingdu.engine.systems import Classification
from jingdu.errors import UsageError
from jingdu.nn import each, quick_layout
from jingdu.papers.cnn.alexnet import classify, local_response_norm, random_window
from jingdu.prediction import Prediction

__all__ = [
    "VGG",
    "Grown",
    "build",
    "grid_crops",
    "grow",
    "mirrored_predict",
    "multi_crop_predict",
    "multi_scale_predict",
    "predict",
    "scale_jitter",
    "three_scales",
]

# Architecture (Sec. 2) --------------------------------------------------------------------------------


class VGG(nn.Module):
    """Table 1: blocks of small convolutions, each before a 2x2 max-pool; three dense layers.

    Args:
        blocks: for each block the kernel sizes of its convolutions; all have stride 1 and keep the size.
        widths: channels of each block, then units of fc6 and fc7.
        norm: "lrn" is AlexNet's response normalisation after conv1_1 (column A-LRN); "batch" a batch norm after each
            convolution (not the paper's).
        init: "he", "xavier", or the deviation of Gaussian weights. Biases start at zero.
        dropout: share of the outputs of fc6 and fc7 that is dropped in training.
        grid: side of the maps that fc6 sees.
        dense: the class scores are the mean of the class map, whatever the image's size (Sec. 3.2).
    """

    def __init__(
        self,
        blocks: Sequence[Sequence[int]],
        widths: Sequence[int] = (64, 128, 256, 512, 512, 4096, 4096),
        norm: Literal["lrn", "batch"] | None = None,
        init: Literal["he", "xavier"] | float = "he",
        dropout: float = 0.5,
        grid: int = 7,
        dense: bool = False,
        num_classes: int = 1000,
        in_channels: int = 3,
    ):
        super().__init__()
        *channels, fc6, fc7 = widths
        self.convolutions: list[list[str]] = []
        for block, (kernels, width) in enumerate(zip(blocks, channels, strict=True), start=1):
            names = [f"{block}_{number}" for number in range(1, len(kernels) + 1)]
            for name, kernel in zip(names, kernels, strict=True):
                self.add_module(f"conv{name}", nn.Conv2d(in_channels, width, kernel, padding=kernel // 2))
                self.add_module(f"bn{name}", nn.BatchNorm2d(width) if norm == "batch" else nn.Identity())
                in_channels = width
            self.convolutions.append(names)
        self.lrn, self.grid, self.dense = norm == "lrn", grid, dense
        self.fc6, self.fc7 = nn.Linear(in_channels * grid**2, fc6), nn.Linear(fc6, fc7)
        self.fc8 = nn.Linear(fc7, num_classes)
        self.dropout = nn.Dropout(dropout)
        self.initialise(init)

    def initialise(self, init: Literal["he", "xavier"] | float = "he") -> None:
        """Section 3.1, and the rules that made its detour by column A needless.

        "he": variance 2 / inputs (He et al. 2015); "xavier": uniform, variance 2 / (inputs + outputs) (Glorot and
        Bengio 2010); a number: the deviation of a Gaussian.
        """

        def start(layer: nn.Module) -> None:
            if init == "he":
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            elif init == "xavier":
                nn.init.xavier_uniform_(layer.weight)
            else:
                nn.init.normal_(layer.weight, std=init)
            nn.init.zeros_(layer.bias)

        each(self, (nn.Conv2d, nn.Linear), start)

    def rectified(self, x: Float[Tensor, "batch channels height width"]) -> Iterator[tuple[str, Tensor]]:
        """The rectified outputs of all convolutions, one after the other, and their names: relu1_1 and so on."""
        x = quick_layout(x)
        for names in self.convolutions:
            if names is not self.convolutions[0]:
                x = F.max_pool2d(x, 2)
            for name in names:
                x = getattr(self, f"bn{name}")(getattr(self, f"conv{name}")(x))
                x = F.relu(x, inplace=True)
                yield f"relu{name}", x
                if self.lrn and name == "1_1":
                    x = local_response_norm(x)

    def taps(self, x: Float[Tensor, "batch channels height width"], names: Sequence[str]) -> dict[str, Tensor]:
        """Rectified outputs by name, relu1_2 .. relu5_4, as perceptual losses read them. No layer after the last of
        `names` is computed. Raises UsageError for a name that the network has not."""
        known = [f"relu{name}" for block in self.convolutions for name in block]
        if strange := [name for name in names if name not in known]:
            raise UsageError(f"no layer {strange[0]!r}: the network has {', '.join(known)}")
        found: dict[str, Tensor] = {}
        for name, output in self.rectified(x) if names else ():
            if name in names:
                found[name] = output
            if len(found) == len(set(names)):
                break
        return found

    def features(self, x: Float[Tensor, "batch channels height width"]) -> list[Tensor]:
        """The last rectified output of each block, before its pooling."""
        return list(self.taps(x, [f"relu{block[-1]}" for block in self.convolutions]).values())

    def pooled(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch maps h w"]:
        """The maps after the last max-pool: what the dense layers see."""
        for _, output in self.rectified(x):
            x = output
        return F.max_pool2d(x, 2)

    def head(self, x: Float[Tensor, "*places inputs"]) -> Float[Tensor, "*places classes"]:
        """fc6, fc7, fc8."""
        x = self.dropout(F.relu(self.fc6(x), inplace=True))
        return self.fc8(self.dropout(F.relu(self.fc7(x), inplace=True)))

    def class_map(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes h w"]:
        """Section 3.2: the dense layers as convolutions of 7x7 and 1x1 pixels, so scores for every window of the image.

        Maps that are smaller than `grid` are first stretched to it, as timm does.
        """
        x = self.pooled(x)
        height, width = (max(side, self.grid) for side in x.shape[2:])
        if (height, width) != x.shape[2:]:
            x = F.adaptive_avg_pool2d(x, (height, width))
        # Each column of `unfold` is a window in the order channel, height, width, as fc6 sees a flattened map.
        scores = self.head(F.unfold(x, self.grid).mT)
        return scores.mT.unflatten(2, (height - self.grid + 1, width - self.grid + 1))

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        if self.dense:
            return self.class_map(x).mean((2, 3))
        return self.head(F.adaptive_avg_pool2d(self.pooled(x), self.grid).flatten(1))


COLUMNS: dict[str, dict[str, Any]] = {
    # Table 1: columns A, A-LRN, B, C, D, E
    "vgg11": {"blocks": ((3,), (3,), (3, 3), (3, 3), (3, 3))},
    "vgg11_lrn": {"blocks": ((3,), (3,), (3, 3), (3, 3), (3, 3)), "norm": "lrn"},
    "vgg13": {"blocks": ((3, 3),) * 5},
    "vgg16_c": {"blocks": ((3, 3), (3, 3), (3, 3, 1), (3, 3, 1), (3, 3, 1))},
    "vgg16": {"blocks": ((3, 3), (3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3))},
    "vgg19": {"blocks": ((3, 3), (3, 3), (3, 3, 3, 3), (3, 3, 3, 3), (3, 3, 3, 3))},
    # Section 4.1: column B with one 5x5 convolution for each pair of 3x3
    "vgg8_5x5": {"blocks": ((5,),) * 5},
}
# torchvision's, with a batch norm after each convolution
VARIANTS: dict[str, dict[str, Any]] = COLUMNS | {
    f"{name}_bn": {**COLUMNS[name], "norm": "batch"} for name in ("vgg11", "vgg13", "vgg16", "vgg19")
}


def build(variant: str, **overrides: Any) -> VGG:
    """The network of a variant; overrides are the arguments of `VGG`."""
    return VGG(**{**VARIANTS[variant], **overrides})


# Training (Sec. 3.1) ----------------------------------------------------------------------------------


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


@torch.no_grad()
def grow(deeper: VGG, shallower: VGG) -> list[str]:
    """Section 3.1: start a deeper network from a trained one; the layers between keep their random weights.

    Its first four convolutions and all dense layers are copied to the layers of the same name, whose names are
    returned. Raises UsageError, before anything is copied, where one of them is not there or has another shape.
    """
    first = [f"conv{name}" for block in shallower.convolutions for name in block][:4]
    names = [*first, "fc6", "fc7", "fc8"]
    for name in names:
        source, target = getattr(shallower, name), getattr(deeper, name, None)
        shape = None if target is None else target.weight.shape
        if shape != source.weight.shape:
            here = "not there" if shape is None else f"{tuple(shape)}"
            raise UsageError(
                f"grow: {name} is {tuple(source.weight.shape)} in the shallower network, {here} in the deeper"
            )
    for name in names:
        getattr(deeper, name).load_state_dict(getattr(shallower, name).state_dict())
    return names


class Grown(Classification):
    """A classifier whose network starts from that of the recipe's stage before (`grow`); without one, as it is."""

    def __init__(self, network: VGG, previous: Mapping[str, Any]):
        super().__init__(network)
        for before in list(previous.values())[-1:]:
            grow(network, before.network)


# Testing (Sec. 3.2, 4) --------------------------------------------------------------------------------

Network = Callable[[Tensor], Tensor]


def three_scales(low: int, high: int) -> tuple[int, int, int]:
    """Section 4.2: shorter sides Q of pictures for a network trained with S from `low` to `high` pixels.

    S - 32, S, S + 32 for one S; else the smallest, the middle and the largest.
    """
    return (low - 32, low, low + 32) if low == high else (low, (low + high) // 2, high)


def mirrored_predict(
    network: Network, images: Float[Tensor, "batch channels height width"]
) -> Float[Tensor, "batch classes"]:
    """Class probabilities of normalised images of any size, averaged over the softmax of each and of its mirror image."""
    return (network(images).softmax(1) + network(images.flip(3)).softmax(1)) / 2


def _view(image: Image.Image, scale: int, preprocess: Preprocess) -> Float[Tensor, "1 channels height width"]:
    """The whole picture with a shorter side of `scale` pixels, normalised."""
    return normalise(to_tensor(resize_shorter(image, scale, preprocess.interpolation)), preprocess)[None]


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
    views = ([_view(image, scale, preprocess) for scale in scales] for image in images)
    return torch.cat([torch.stack([mirrored_predict(network, x) for x in some]).mean(0) for some in views])


def grid_crops(
    images: Float[Tensor, "batch channels height width"], size: int, across: int = 5
) -> Float[Tensor, "crops batch channels {size} {size}"]:
    """Section 3.2: windows at the places of a regular grid of `across` x `across`, then those of the mirror image.

    Raises UsageError for images smaller than `size`.
    """
    height, width = images.shape[2:]
    if min(height, width) < size:
        raise UsageError(f"images of {height} x {width} pixels have no crops of {size}")
    tops, lefts = (torch.linspace(0, side - size, across).round().int().tolist() for side in (height, width))
    return torch.stack(
        [
            x[:, :, top : top + size, left : left + size]
            for x in (images, images.flip(3))
            for top in tops
            for left in lefts
        ]
    )


def multi_crop_predict(
    network: Network, images: Sequence[Image.Image], scales: Sequence[int], preprocess: Preprocess
) -> Float[Tensor, "images classes"]:
    """Section 3.2: 50 crops of each picture at each scale; the probabilities are averaged.

    Arguments as of `multi_scale_predict`; crops have `preprocess.size`. Raises UsageError where that is None, or more
    than the smallest scale.
    """
    if preprocess.size is None:
        raise UsageError("crops are cut from images of a known size: set preprocess.size")
    size = preprocess.size
    views = ([grid_crops(_view(image, scale, preprocess), size) for scale in scales] for image in images)
    return torch.stack([torch.stack([network(x[:, 0]).softmax(1).mean(0) for x in some]).mean(0) for some in views])


def _scales_of(preprocess: Preprocess) -> tuple[int, int, int]:
    """256, 384 and 512 pixels for networks of 224 (Sec. 4.2); others in proportion."""
    if preprocess.size is None:
        raise UsageError("pictures are scaled for networks of a known size: set preprocess.size")
    return three_scales(*(round(side * preprocess.size / 224) for side in (256, 512)))


def _densely(model: VGG) -> Network:
    return lambda x: model.class_map(x.to(model.fc8.weight.device)).mean((2, 3))


def _score_dense(model: VGG, images: Sequence[Image.Image], preprocess: Preprocess) -> Tensor:
    scales = [preprocess.shorter_side or min(image.size) for image in images]
    rows = [multi_scale_predict(_densely(model), [i], [s], preprocess) for i, s in zip(images, scales, strict=True)]
    return torch.cat(rows)


def _score_scales(model: VGG, images: Sequence[Image.Image], preprocess: Preprocess) -> Tensor:
    return multi_scale_predict(_densely(model), images, _scales_of(preprocess), preprocess)


def _score_grid(model: VGG, images: Sequence[Image.Image], preprocess: Preprocess) -> Tensor:
    return multi_crop_predict(_densely(model), images, _scales_of(preprocess), preprocess)


def _score_all(model: VGG, images: Sequence[Image.Image], preprocess: Preprocess) -> Tensor:
    return (_score_scales(model, images, preprocess) + _score_grid(model, images, preprocess)) / 2


SCORES = {"dense": _score_dense, "scales": _score_scales, "grid": _score_grid, "all": _score_all}
"""Ways of testing beside AlexNet's "centre" and "ten"."""


SCENES = Preprocess(size=64, resize=64, mean=(0.391, 0.384, 0.377), std=(0.2, 0.2, 0.2))
"""Mean of the pixels of `scenes`, and one number for the scale of the rest."""
NARROW = "widths=(8, 16, 32, 64, 64, 256, 256), grid=2, dropout=0.2"


def _scenes(name: str, network: str, **changes: Any) -> Stage:
    return Stage(
        name=name,
        networks={"network": network},
        data="scenes(fields=('image', 'label'))",
        preprocess=SCENES,
        augment=("random_crop", "flip", "alexnet.pca_colour_shift"),
        batch_size=32,
        steps=800,
        lr=0.02,
        schedule="onecycle(rise=0.15)",
        weight_decay=5e-4,
        decay="all",
        **changes,
    )


def _imagenet(name: str, network: str, low: int, high: int, **changes: Any) -> Stage:
    return Stage(
        name=name,
        networks={"network": network},
        data="imagenet",
        preprocess=IMAGENET,
        crop=f"vgg.scale_jitter(low={low}, high={high})",
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
        **changes,
    )


recipes = {
    "laptop": Recipe(
        stages=(
            _scenes("shallow", f"vgg11({NARROW})"),
            _scenes("deep", f"vgg16({NARROW})", system="vgg.Grown"),
        ),
        minutes=4,
        expect={"error": (0.0, 0.04)},
        about="a narrow column A, and from its layers a narrow D, tell the largest shape in 4,000 scenes of 64x64 pixels",
    ),
    "paper": Recipe(
        stages=(
            _imagenet("shallow", "vgg11(init=0.01)", low=256, high=256),
            _imagenet("deep", "vgg16(init=0.01)", low=256, high=512, system="vgg.Grown"),
        ),
        minutes=4 * 7 * 24 * 60,
        expect={"error": (0.26, 0.30)},
        machine="4 GPUs",
        about="Section 3.1 on an ImageNet folder (--shallow.data and --deep.data): column A at one scale, then D at "
        "many; 370k iterations each, the rate divided by 10 three times",
    ),
}


def predict(
    model: VGG,
    inputs: Sequence[str],
    *,
    top: int = 5,
    crops: Literal["centre", "ten", "dense", "scales", "grid", "all"] = "centre",
) -> Iterator[Prediction]:
    """The most probable classes of image files.

    Args:
        top: how many classes to give.
        crops: one centre crop; the average of AlexNet's ten; the whole picture (dense, Section 3.2); that at three
            scales; a grid of 50 crops at each of them; or all, the average of these two (Table 5).
    """
    return classify(model, inputs, top=top, crops=SCORES.get(crops, crops))
