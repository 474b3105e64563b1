r"""U-Net: Convolutional Networks for Biomedical Image Segmentation. Ronneberger, Fischer, Brox. 2015.
https://arxiv.org/abs/1505.04597

**Problem.** To find cells, each pixel needs a class. A network that classifies the window around a pixel is slow,
and must choose: a large window has context but pools away the place, a small one has the place and no context. And of
biomedical images there are thirty, not thousands.

**Idea.** A contracting path sees the context; an expanding one brings it back to full size, and at each level gets the
features $x_l$ of its own size from the other side, so that place and context meet (Fig. 1):

$$ u_l = f_l\big([\,\mathrm{crop}(x_l),\ \mathrm{up}(u_{l+1})\,]\big), \qquad x_{l+1} = g_l(\mathrm{pool}(x_l)) $$

Smooth deformations make many images of few, and pixels in the gaps between touching cells weigh more (Eq. 2):

$$ w(x) = w_c(x) + w_0 \exp\Big(-\frac{(d_1(x) + d_2(x))^2}{2\sigma^2}\Big) $$

**Showed.** First of the ISBI challenge of neuronal membranes, with a warping error of 0.000353 (Tab. 1); an
intersection over union of 0.92 and 0.78 on two sets of the cell tracking challenge, the second bests 0.83 and 0.46
(Tab. 2).

Differs from the paper in:
- What comes across stands first in each concatenation and no ReLU follows an up-convolution, as Figure 1 shows. The
  authors' Caffe network (phseg_v5.prototxt of u-net-release-2015-10-02) has the other order, ReLUs there, and 128
  channels in the last up-convolution.
- Dropout of 0.5 acts on the outputs of the last two levels of the contracting path, as in that file; the text says
  "at the end of the contracting path".
- Every convolution of 3x3 is initialised by its number of inputs, and an up-convolution by one pixel's.
- The gaps' weight is that of the background alone; both classes of an image have the same sum of w_c.
- The text gives no learning rate and no number of steps; the recipe's are ours.
- Tiles of the result are multiples of 16 pixels, not 388, so that they are what one pass would give.
- The variants with padding and batch norms are those of https://github.com/milesial/Pytorch-UNet.

Reading order: `network` (the blocks and the U), `tiles` (images of any size), `training` (loss and deformations),
`cells` (data), `window` (what it is compared with).
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from jingdu.data.images import decode, expand_inputs, normalise, to_tensor
from jingdu.data.preprocess import Preprocess
from jingdu.engine.contracts import Recipe, Stage
from jingdu.errors import UsageError
from jingdu.papers.cnn.unet.cells import Cells, Pairs, cells, draw_cells, pairs
from jingdu.papers.cnn.unet.network import DoubleConv, Down, Style, UNet, Up, contract, enlarge, expand, join
from jingdu.papers.cnn.unet.tiles import mirror, segment
from jingdu.papers.cnn.unet.training import Segmentation, deform, displacements, warp, weight_map
from jingdu.papers.cnn.unet.window import SlidingWindow
from jingdu.prediction import Prediction, origin_of

__all__ = [
    "Cells",
    "DoubleConv",
    "Down",
    "Pairs",
    "Segmentation",
    "SlidingWindow",
    "Style",
    "UNet",
    "Up",
    "build",
    "cells",
    "contract",
    "deform",
    "displacements",
    "draw_cells",
    "enlarge",
    "expand",
    "join",
    "mirror",
    "pairs",
    "predict",
    "segment",
    "warp",
    "weight_map",
]

MILESIAL = {"in_channels": 3, "padding": "same", "norm": "batch", "dropout": 0.0}

VARIANTS: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    # Figure 1, for grey images and for RGB
    "unet_original_1in_2out": (UNet, {}),
    "unet_original_3in_2out": (UNet, {"in_channels": 3}),
    # https://github.com/milesial/Pytorch-UNet
    "unet_padded_bn_3in_2out": (UNet, MILESIAL),
    "unet_padded_bn_bilinear_3in_2out": (UNet, {**MILESIAL, "up": "bilinear"}),
    # Ours, for small images of cells; and a network of [1] with as many multiplications
    "unet_cells": (UNet, {"width": 8, "depth": 3, "padding": "same", "norm": "batch", "dropout": 0.0}),
    "unet_sliding_window": (SlidingWindow, {}),
}


def build(variant: str, **overrides: Any) -> nn.Module:
    """The network of a variant; overrides are the arguments of its class."""
    network, arguments = VARIANTS[variant]
    return network(**{**arguments, **overrides})


def example(variant: str, batch: int) -> Tensor:
    """Noise in the shape of the paper's tile (Fig. 1)."""
    channels = 3 if "3in" in variant else 1
    return torch.randn((batch, channels, 572, 572), generator=torch.Generator().manual_seed(0))


GREY = Preprocess(channels=1, mean=(0.5,), std=(0.2,))
"""Images keep their size."""

recipes = {
    "laptop": Recipe(
        stages=(
            Stage(
                system="unet.Segmentation",
                networks={"network": "unet_cells"},
                data="unet.cells(size=64, cells=8)",
                preprocess=GREY,
                batch_size=5,
                steps=250,
                lr=0.05,
                schedule="onecycle",
                weight_decay=1e-4,
            ),
        ),
        minutes=1,
        # Three seeds gave 0.79, 0.80 and 0.68, and 0.16, 0.20 and 0.29 (claims/cnn/unet.py).
        expect={"iou": (0.65, 1.0), "merged": (0.0, 0.35)},
        about="a narrow U-Net with padding and batch norms on thirty drawn images of touching cells, 64x64 pixels",
    ),
    "paper": Recipe(
        stages=(
            Stage(
                system="unet.Segmentation",
                networks={"network": "unet_original_1in_2out"},
                data="unet.pairs(path='/path/to/isbi')",
                preprocess=GREY,
                batch_size=1,
                steps=60_000,
                lr=1e-4,
                momentum=0.99,
                workers=4,
                save_every=1000,
            ),
        ),
        minutes=10 * 60,
        expect={"pixel_error": (0.04, 0.09)},
        machine="1 GPU of 6 GB",
        about="Section 3: one large image a batch and a momentum of 0.99, on a folder of images and masks "
        "(--data \"unet.pairs(path='FOLDER')\"); ten hours, 0.0611 pixel error on the ISBI test stack (Table 1)",
    ),
}


# What a user does with it -------------------------------------------------------------------------

PALETTE = (
    (0, 0, 0),
    (0, 158, 115),
    (213, 94, 0),
    (0, 114, 178),
    (240, 228, 66),
    (204, 121, 167),
    (86, 180, 233),
    (230, 159, 0),
)
"""Colours of the classes in a map, again from the second on where there are more (Okabe and Ito)."""


def _colours(count: int) -> list[int]:
    places = [0, *(1 + (number - 1) % (len(PALETTE) - 1) for number in range(1, count))]
    return [value for place in places for value in PALETTE[place]]


def _targets(paths: Sequence[Path], out: Path) -> list[Path]:
    """The file of each result: `out`, or files of the inputs' names in the folder `out` where there are several."""
    if len(paths) == 1:
        return [out]
    if out.suffix:
        raise UsageError(f"{len(paths)} images need a folder for their maps: give --out FOLDER, not {out}")
    return [out / f"{path.stem}.png" for path in paths]


def predict(
    model: nn.Module,
    inputs: Sequence[str],
    *,
    out: Path = Path("classes.png"),
    probabilities: Path | None = None,
    tile: int = 384,
) -> Iterator[Prediction]:
    """The class of each pixel of image files of any size, as pictures, and how much of each class there is.

    Args:
        out: the picture to write, a PNG file whose values are the classes, shown in colours; for several images a
            folder.
        probabilities: a .safetensors file to write, with [classes, height, width] of each image under its name.
        tile: sides of the pieces in which an image is segmented, in pixels: smaller ones need less memory.

    Raises UsageError for no inputs, BadInput for a file that is no image.
    """
    from safetensors.torch import save_file

    if not inputs:
        raise UsageError("there are no inputs: name image files, or folders of them")
    if tile < 1:
        raise UsageError(f"tile is {tile}: give 1 pixel or more")
    origin, paths = origin_of(model), expand_inputs(inputs)
    first = next(model.parameters())
    preprocess = origin.preprocess or Preprocess(channels=1 if first.shape[1] == 1 else 3)
    model.eval()
    kept: dict[str, Tensor] = {}
    for path, target in zip(paths, _targets(paths, Path(out)), strict=True):
        image = normalise(to_tensor(decode(path, preprocess.channels)), preprocess)[None].to(first.device)
        with torch.no_grad():
            logits = segment(model, image, tile) if isinstance(model, UNet) else model(image)
        shares = logits[0].softmax(0).cpu()
        found = shares.argmax(0)
        _write_map(found, len(shares), target)
        kept[str(path)] = shares
        yield Prediction(str(path), *_told(path, found, origin.classes, len(shares)), (target,))
    if probabilities is not None:
        Path(probabilities).parent.mkdir(parents=True, exist_ok=True)
        save_file({name: x.contiguous() for name, x in kept.items()}, probabilities)
        text = f"probabilities of {len(kept)} images"
        yield Prediction(str(probabilities), text, {"images": len(kept)}, (Path(probabilities),))


def _write_map(found: Tensor, classes: int, target: Path) -> None:
    picture = Image.fromarray(found.to(torch.uint8).numpy(), mode="P")
    picture.putpalette(_colours(classes))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        picture.save(target, "PNG")
    except OSError as error:
        raise UsageError(f"cannot write {target} ({error}): choose another --out") from None


def _told(path: Path, found: Tensor, names: Sequence[str] | None, count: int) -> tuple[str, dict[str, Any]]:
    """What is in a map, for a person and for a program: shares of the picture, and connected parts."""
    from scipy.ndimage import label

    known = names if names is not None and len(names) == count else [f"class {number}" for number in range(count)]
    lines, classes = [f"{path}: {found.shape[1]} x {found.shape[0]} pixels"], []
    for number, name in enumerate(known):
        where = np.asarray(found == number)
        parts = int(label(where)[1])
        share = float(where.mean())
        classes.append({"class": name, "index": number, "share": share, "parts": parts})
        lines.append(f"  {share:7.2%}  {name}" + (f", {parts} connected parts" if number else ""))
    height, width = found.shape
    return "\n".join(lines), {"file": str(path), "height": height, "width": width, "classes": classes}
