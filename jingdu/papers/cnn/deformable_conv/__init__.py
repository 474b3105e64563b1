r"""Deformable Convolutional Networks. Dai, Qi, Xiong, Li, Zhang, Hu, Wei. 2017. https://arxiv.org/abs/1703.06211
With its second version: Deformable ConvNets v2: More Deformable, Better Results. Zhu, Hu, Lin, Dai. 2018.
https://arxiv.org/abs/1811.11168 ("v2" below).

**Problem.** A convolution looks at a fixed square of its input, whatever stands there. Objects turn, bend and come in
all sizes; the network can only learn that from many examples, or be given it by hand (scales, rotations).

**Idea.** Beside a convolution, a second small one looks at the same place and says by how much each of the kernel's $K$
taps should move (Eq. 2); v2 also lets it say how much each tap counts (v2 Eq. 1, $\Delta m_k \in [0, 1]$; v1 has 1):

$$ y(p) = \sum_{k=1}^{K} w_k \cdot x(p + p_k + \Delta p_k) \cdot \Delta m_k $$

Places between pixels are read bilinearly, so the offsets $\Delta p$ learn by the ordinary gradient. They start at zero.
The bins of RoI pooling move in the same way (Eq. 5).

**Showed.** VOC 2007 detection by R-FCN from 79.6 to 82.3 mAP@0.5 and from 63.1 to 67.8 at 0.7; COCO by Faster R-CNN from
30.3 to 35.0 AP; DeepLab on VOC 2012 from 70.7 to 75.9 mean IoU (github.com/msracver/Deformable-ConvNets). The
distance between the taps grows with the size of the object under them (Tab. 2).

Differs from the paper in:
- The variants are classifiers: the deformable backbones of its detectors, with a ResNet's last layer. The detectors are
  other papers'. Its position-sensitive pooling is R-FCN's (Dai et al. 2016), which is not in this library yet, and lives here.
- No kernel of its own: the four pixels around every tap are summed by `embedding_bag`, and one product of matrices
  follows. On a GPU, a compiled kernel that fuses the two would be faster. There is no double backward.
- What lies outside the picture is zero, and taps within a pixel of it are still read in part, as in v2's operator; v1's
  is `border="clamp"`.
- The modulation starts at 1/2 as in the ports that published weights need (`mask_scale=1`), or at 1 as in the authors' example
  (`mask_scale=2`). v2 lets the offsets learn at a tenth of the rate (`offset_rate`), v1 at the rate of all.

Reading order: `convolution` (the idea), `pooling` (regions), `networks` (where the layers go), `points` (pictures of them).
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from jingdu.data.images import expand_inputs
from jingdu.data.preprocess import IMAGENET, Preprocess
from jingdu.engine.contracts import Recipe, Stage
from jingdu.papers.cnn.alexnet import classify
from jingdu.papers.cnn.resnet import ResNet
from jingdu.prediction import Prediction, origin_of

from .convolution import DeformConv2d, bilinear_corners, deform_conv2d, effective_dilation
from .networks import VARIANTS, Labelling, SmallNet, build, deform
from .points import deformable_layers, overlay, sampling_points
from .pooling import DeformPSRoIPool, DeformRoIPool, deform_roi_pool, mimicking_loss, region_crops

__all__ = [
    "VARIANTS",
    "DeformConv2d",
    "DeformPSRoIPool",
    "DeformRoIPool",
    "Labelling",
    "SmallNet",
    "bilinear_corners",
    "build",
    "deform",
    "deform_conv2d",
    "deform_roi_pool",
    "deformable_layers",
    "effective_dilation",
    "mimicking_loss",
    "overlay",
    "predict",
    "region_crops",
    "sampling_points",
]

PIXELS = Preprocess(size=20, resize=20, mean=(0.143,), std=(0.265,), channels=1)
"""Mean and deviation of `affine_digits`."""

recipes = {
    "laptop": Recipe(
        stages=(
            Stage(
                networks={"network": "deformable_conv_digits"},
                data="affine_digits",
                preprocess=PIXELS,
                batch_size=64,
                steps=500,
                lr=0.05,
                schedule="onecycle",
                weight_decay=5e-4,
            ),
        ),
        minutes=2.5,
        expect={"error": (0.0, 0.12)},
        about="three convolutions, two of them deformable, on digits that are turned, sheared, moved and of all sizes",
    ),
    "paper": Recipe(
        stages=(
            Stage(
                networks={"network": "deformable_conv_resnet50_mdcn_c3_c5"},
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
        minutes=14 * 24 * 60,
        expect={"error": (0.20, 0.25)},
        machine="8 GPUs",
        about="the backbone by ResNet's recipe on an ImageNet folder (--data). The paper starts its detectors from trained "
        "ResNets (`deform`), whose recipes are its hosts'",
    ),
}


def predict(
    model: ResNet | SmallNet,
    inputs: Sequence[str],
    *,
    top: int = 5,
    points: Path | None = None,
    place: tuple[float, float] = (0.5, 0.5),
    levels: int = 3,
) -> Iterator[Prediction]:
    """The most probable classes of image files, and where the network looked.

    Args:
        top: how many classes to give.
        points: a folder: also write each picture with the points that the deformable layers read for one place.
        place: of that, down and across, as shares of the picture; the green dot.
        levels: layers back: 9, 81 or 729 points.
    """
    yield from classify(model, inputs, top=top)
    if points is None:
        return
    points.mkdir(parents=True, exist_ok=True)
    for path in expand_inputs(inputs):
        out = points / f"{path.stem}-points.png"
        count = overlay(model, path, place, levels, out, origin_of(model).preprocess or IMAGENET)
        yield Prediction(str(path), f"{path}: {count} pixels are read", {"file": str(path), "pixels": count}, (out,))
