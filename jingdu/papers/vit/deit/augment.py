"""How one image stands for many (Section 6, Data-Augmentation): RandAugment, random erasing, colour jitter.

They are functions of a batch of images in [0, 1] and its draws, as an engine's stage names them. What an image goes
through depends on its own draws alone; the images that an operation is drawn for go through it together.

RandAugment is Cubuk et al. 2019 (arXiv 1909.13719) as timm's `rand-m9-mstd0.5-inc1` has it, which DeiT, Swin, MAE and
ConvNeXt train with: fifteen operations on pixels of 8 bits, each the same as Pillow's (timm/data/auto_augment.py).
Random erasing is Zhong et al. 2017 (arXiv 1708.04896; timm/data/random_erasing.py).
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from jingdu.data.draws import Draws
from jingdu.data.preprocess import IMAGENET
from jingdu.errors import UsageError

__all__ = ["OPERATIONS", "colour_jitter", "rand_augment", "random_erasing"]

# Letters: n images, c channels, h and w their sides. An operation takes n amounts, one an image.
Pixels = UInt8[Tensor, "n c h w"]


def _amounts(amount: Tensor, dtype: torch.dtype) -> Tensor:
    return amount.to(dtype)[:, None, None, None]


# Operations on values ---------------------------------------------------------------------------------


def _look_up(x: Tensor, table: Tensor) -> Tensor:
    """Each pixel's entry in its channel's table of 256."""
    return table.to(torch.uint8).gather(2, x.flatten(2).long()).view_as(x)


def _histogram(x: Tensor) -> Tensor:
    """How many pixels of each value a channel has, [n, c, 256]."""
    rows = torch.arange(x.shape[0] * x.shape[1], device=x.device)[:, None] * 256
    return torch.bincount((x.flatten(0, 1).flatten(1) + rows).flatten(), minlength=256 * len(rows)).view(
        *x.shape[:2], 256
    )


def auto_contrast(x: UInt8[Tensor, "n c h w"], amount: Float[Tensor, " n"]) -> UInt8[Tensor, "n c h w"]:
    """Stretch each channel's values to 0 .. 255."""
    flat = x.flatten(2)
    low, high = (value.double()[..., None] for value in (flat.amin(2), flat.amax(2)))
    values = torch.arange(256, dtype=torch.float64, device=x.device)
    scale = 255 / (high - low).clamp(min=1)
    table = (values * scale - low * scale).trunc().clamp(0, 255)
    return _look_up(x, torch.where(high > low, table, values))


def equalize(x: UInt8[Tensor, "n c h w"], amount: Float[Tensor, " n"]) -> UInt8[Tensor, "n c h w"]:
    """Spread each channel's values so that their histogram becomes as flat as it can."""
    counts = _histogram(x)
    last = counts.gather(2, x.flatten(2).amax(2, keepdim=True).long())
    step = (x.shape[2] * x.shape[3] - last) // 255
    table = (step // 2 + counts.cumsum(2) - counts) // step.clamp(min=1)
    return _look_up(x, torch.where(step > 0, table.clamp(max=255), torch.arange(256, device=x.device)))


def invert(x: UInt8[Tensor, "n c h w"], amount: Float[Tensor, " n"]) -> UInt8[Tensor, "n c h w"]:
    """The negative."""
    return 255 - x


def posterize(x: UInt8[Tensor, "n c h w"], amount: Float[Tensor, " n"]) -> UInt8[Tensor, "n c h w"]:
    """Keep the `amount` highest bits."""
    return x & _amounts(256 - 2 ** (8 - amount), torch.uint8)


def solarize(x: UInt8[Tensor, "n c h w"], amount: Float[Tensor, " n"]) -> UInt8[Tensor, "n c h w"]:
    """Invert the values from `amount` on."""
    # A value and its negative differ in all bits; torch.where on bytes takes 20 times as long.
    return x ^ (x.to(torch.int16) >= _amounts(amount, torch.int16)).to(torch.uint8) * 255


def solarize_add(x: UInt8[Tensor, "n c h w"], amount: Float[Tensor, " n"]) -> UInt8[Tensor, "n c h w"]:
    """Add `amount` to the values below 128."""
    return x + (x < 128).to(torch.uint8) * _amounts(amount, torch.uint8)


# Operations that blend with a duller image ------------------------------------------------------------


def _blend(dull: Tensor, x: Tensor, amount: Tensor) -> Tensor:
    """`dull` at 0, `x` at 1, beyond it further away."""
    dull = dull.float()
    return (x - dull).mul_(_amounts(amount, torch.float32)).add_(dull).clamp_(0, 255).to(torch.uint8)


def _grey(x: Tensor) -> Tensor:
    """ITU-R BT.601 in 16 bits, as Pillow's mode L, [n, 1, h, w]."""
    if x.shape[1] == 1:
        return x
    red, green, blue = x.to(torch.int32).split(1, 1)
    return ((19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16).to(torch.uint8)


def colour(x: UInt8[Tensor, "n c h w"], amount: Float[Tensor, " n"]) -> UInt8[Tensor, "n c h w"]:
    """Saturation: grey at 0."""
    return _blend(_grey(x), x, amount)


def contrast(x: UInt8[Tensor, "n c h w"], amount: Float[Tensor, " n"]) -> UInt8[Tensor, "n c h w"]:
    """The mean grey at 0."""
    mean = _grey(x).double().mean((1, 2, 3), keepdim=True)
    return _blend((mean + 0.5).floor(), x, amount)


def brightness(x: UInt8[Tensor, "n c h w"], amount: Float[Tensor, " n"]) -> UInt8[Tensor, "n c h w"]:
    """Black at 0."""
    return _blend(torch.zeros_like(x), x, amount)


def sharpness(x: UInt8[Tensor, "n c h w"], amount: Float[Tensor, " n"]) -> UInt8[Tensor, "n c h w"]:
    """Smoothed at 0, by a kernel of 3x3 whose centre weighs 5 of 13; pixels of the border stay."""
    if min(x.shape[2:]) < 3:
        return x
    values = x.to(torch.int16)
    sums = values[:, :, :-2] + values[:, :, 1:-1] + values[:, :, 2:]
    sums = sums[..., :-2] + sums[..., 1:-1] + sums[..., 2:] + 4 * values[:, :, 1:-1, 1:-1]
    smooth = x.float()
    smooth[:, :, 1:-1, 1:-1] = sums.float().div_(13).add_(0.5).floor_()
    return _blend(smooth, x, amount)


# Operations that move pixels --------------------------------------------------------------------------


def _cubic(before: Tensor, here: Tensor, after: Tensor, last: Tensor, t: Tensor) -> Tensor:
    """Between `here` and `after`: Pillow's cubic (libImaging/Geometry.c), whose slope at a point is that of its neighbours."""
    third, fourth = 2 * (before - here) + after - last, here - before + last - after
    return here + t * (after - before + t * (third + t * fourth))


def slide(
    x: UInt8[Tensor, "n c h w"], shift: Float[Tensor, "n h"], fill: UInt8[Tensor, " colours"]
) -> UInt8[Tensor, "n c h w"]:
    """Each row from `shift` pixels further right, bicubic; what comes from outside is `fill`."""
    c, w = x.shape[1], x.shape[3]
    whole = shift.floor()
    t = (shift - whole).float()[:, None, :, None]
    # A pixel's four neighbours stand side by side: they are four views of rows that are three pixels longer.
    places = torch.arange(-1, w + 2, device=x.device) + whole.long()[:, None, :, None]
    rows = x.gather(3, places.clamp(0, w - 1).expand(-1, c, -1, -1)).float()
    values = _cubic(rows[..., :w], rows[..., 1 : w + 1], rows[..., 2 : w + 2], rows[..., 3:], t)
    centres = torch.arange(w, device=x.device) + 0.5 + shift[:, None, :, None]
    inside = (centres >= 0) & (centres < w)
    return torch.where(inside, values.clamp(0, 255).to(torch.uint8), fill.view(1, -1, 1, 1))


def _centres(side: int, amount: Tensor) -> Tensor:
    return torch.arange(side, dtype=torch.float64, device=amount.device) + 0.5


def shear_x(x: UInt8[Tensor, "n c h w"], amount: Float[Tensor, " n"], fill: Tensor) -> UInt8[Tensor, "n c h w"]:
    """Rows come from further right by `amount` pixels a pixel down."""
    return slide(x, amount[:, None] * _centres(x.shape[2], amount), fill)


def shear_y(x: UInt8[Tensor, "n c h w"], amount: Float[Tensor, " n"], fill: Tensor) -> UInt8[Tensor, "n c h w"]:
    """Columns come from further down by `amount` pixels a pixel to the right."""
    return shear_x(x.mT, amount, fill).mT


def translate_x(x: UInt8[Tensor, "n c h w"], amount: Float[Tensor, " n"], fill: Tensor) -> UInt8[Tensor, "n c h w"]:
    """Pixels come from `amount` widths further right."""
    return slide(x, (amount * x.shape[3])[:, None].expand(-1, x.shape[2]), fill)


def translate_y(x: UInt8[Tensor, "n c h w"], amount: Float[Tensor, " n"], fill: Tensor) -> UInt8[Tensor, "n c h w"]:
    """Pixels come from `amount` heights further down."""
    return translate_x(x.mT, amount, fill).mT


def rotate(x: UInt8[Tensor, "n c h w"], amount: Float[Tensor, " n"], fill: Tensor) -> UInt8[Tensor, "n c h w"]:
    """By `amount` degrees counter-clockwise about the centre, bicubic.

    By Pillow itself: sixteen neighbours that stand in no order take it a fifth of the time that gathering them does.
    """
    colours = fill.expand(x.shape[1]).tolist()
    turned = []
    for image, degrees in zip(x.permute(0, 2, 3, 1).cpu().numpy(), amount.tolist(), strict=True):
        picture = Image.fromarray(image[..., 0] if len(colours) == 1 else image)
        colour = colours[0] if len(colours) == 1 else tuple(colours)
        picture = picture.rotate(degrees, Image.Resampling.BICUBIC, fillcolor=colour)
        turned.append(torch.from_numpy(np.array(picture)).view(*x.shape[2:], -1))
    return torch.stack(turned).permute(0, 3, 1, 2).to(x.device)


# RandAugment ------------------------------------------------------------------------------------------

Amount = Callable[[Tensor, Tensor], Tensor]
"""An operation's amount, from levels 0 .. 10 and signs."""

OPERATIONS: dict[str, tuple[Callable[..., Tensor], Amount]] = {
    "auto_contrast": (auto_contrast, lambda level, sign: level),
    "equalize": (equalize, lambda level, sign: level),
    "invert": (invert, lambda level, sign: level),
    "rotate": (rotate, lambda level, sign: sign * (level / 10 * 30)),
    "posterize": (posterize, lambda level, sign: 4 - (level / 10 * 4).trunc()),
    "solarize": (solarize, lambda level, sign: 256 - (level / 10 * 256).trunc()),
    "solarize_add": (solarize_add, lambda level, sign: (level / 10 * 110).trunc()),
    "colour": (colour, lambda level, sign: (1 + sign * (level / 10 * 0.9)).clamp(min=0.1)),
    "contrast": (contrast, lambda level, sign: (1 + sign * (level / 10 * 0.9)).clamp(min=0.1)),
    "brightness": (brightness, lambda level, sign: (1 + sign * (level / 10 * 0.9)).clamp(min=0.1)),
    "sharpness": (sharpness, lambda level, sign: (1 + sign * (level / 10 * 0.9)).clamp(min=0.1)),
    "shear_x": (shear_x, lambda level, sign: sign * (level / 10 * 0.3)),
    "shear_y": (shear_y, lambda level, sign: sign * (level / 10 * 0.3)),
    "translate_x": (translate_x, lambda level, sign: sign * (level / 10 * 0.45)),
    "translate_y": (translate_y, lambda level, sign: sign * (level / 10 * 0.45)),
}
"""timm's increasing operations: what each does, and how much at a level. Those that move pixels take a colour too."""
PART = 1 << 18
"""Numbers that are worked on at once."""
MOVES = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")


def operate(
    x: UInt8[Tensor, "n c h w"], name: str, amount: Float[Tensor, " n"], fill: Tensor
) -> UInt8[Tensor, "n c h w"]:
    """The operation `name` on images of 8 bits, by `amount`; `fill` is the colour of what comes from outside."""
    function = OPERATIONS[name][0]
    return function(x, amount, fill) if name in MOVES else function(x, amount)


def rand_augment(
    images: Float[Tensor, "batch channels height width"],
    draws: Draws,
    magnitude: float | int = 9,
    std: float | int = 0.5,
    operations: int = 2,
    p: float | int = 0.5,
    fill: float | Sequence[float] = IMAGENET.mean,
) -> Float[Tensor, "batch channels height width"]:
    """Some of fifteen operations on each image, drawn with replacement; pixels become multiples of 1/255.

    Args:
        magnitude: mean level, of 10.
        std: deviation of the levels.
        operations: how many are drawn.
        p: probability that a drawn one is done.
        fill: colour of what comes from outside, in [0, 1]: one value, or one a channel.

    Raises UsageError for images neither grey nor RGB, and another number of colours.
    """
    channels = images.shape[1]
    colours = [fill] if isinstance(fill, float | int) else list(fill)
    if channels not in (1, 3) or len(colours) not in (1, channels):
        raise UsageError(
            f"rand_augment: images of {channels} channels, fill of {len(colours)} values: wanted 1 or 3, alike"
        )
    paint = (images.new_tensor(colours) * 255).round().clamp(0, 255).to(torch.uint8)
    which = draws.integers(len(OPERATIONS), operations)
    done = draws.uniform(operations) < p
    level = (magnitude + std * draws.normal(operations)).double().clamp(0, 10)
    sign = 1 - 2 * draws.integers(2, operations)
    # In parts that the processor's cache holds: one large image, or many small ones.
    parts = images.split(max(PART // math.prod(images.shape[1:]), 1))
    x = torch.cat([(part * 255).round_().clamp_(0, 255).to(torch.uint8) for part in parts])
    for turn in range(operations):
        for number, (name, (_, amount_of)) in enumerate(OPERATIONS.items()):
            rows = ((which[:, turn] == number) & done[:, turn]).nonzero().squeeze(1)
            if len(rows):
                amount = amount_of(level[rows, turn], sign[rows, turn]).to(x.device)
                rows = rows.to(x.device)
                x[rows] = operate(x[rows], name, amount, paint)
    return torch.cat([part.to(images.dtype).div_(255) for part in x.split(len(parts[0]))])


# Random erasing and colour jitter ---------------------------------------------------------------------


def random_erasing(
    images: Float[Tensor, "batch channels height width"],
    draws: Draws,
    p: float | int = 0.25,
    area: tuple[float, float] = (0.02, 1 / 3),
    ratio: tuple[float, float] = (0.3, 1 / 0.3),
    mean: float | Sequence[float] = IMAGENET.mean,
    std: float | Sequence[float] = IMAGENET.std,
) -> Float[Tensor, "batch channels height width"]:
    """Noise in place of a rectangle of each image, with probability `p`.

    Each pixel of it is normal with the data's mean and deviation: standard normal in what the network sees.

    Args:
        area: smallest and largest share of the image.
        ratio: lowest and highest of its height to its width, uniform in the logarithm. Ten tries are made to find one
            that is smaller than the image.
        mean: of the data, as the stage's `preprocess` has it.
        std: of the data, likewise.
    """
    channels, height, width = images.shape[1:]
    chosen = draws.uniform() < p
    share = draws.uniform(10, low=area[0], high=area[1]) * (height * width)
    shape = draws.uniform(10, low=math.log(ratio[0]), high=math.log(ratio[1])).exp()
    tall, wide = (share * shape).sqrt().round().long(), (share / shape).sqrt().round().long()
    fits = (tall < height) & (wide < width)
    down, across = draws.uniform(2).unbind(1)
    seeds = draws.integers(1 << 31)
    mean, std = (torch.as_tensor(value, dtype=torch.float32).view(-1, 1, 1) for value in (mean, std))
    images = images.clone()
    first = fits.int().argmax(1)
    for i in (chosen & fits.any(1)).nonzero().squeeze(1).tolist():
        h, w = int(tall[i, first[i]]), int(wide[i, first[i]])
        top, left = int(down[i] * (height - h + 1)), int(across[i] * (width - w + 1))
        noise = torch.randn((channels, h, w), generator=torch.Generator().manual_seed(int(seeds[i])))
        images[i, :, top : top + h, left : left + w] = (mean + std * noise).to(images)
    return images


def _luma(x: Tensor) -> Tensor:
    """The grey of one image, [1, h, w], by torchvision's weights."""
    return x if len(x) == 1 else (0.2989 * x[0] + 0.587 * x[1] + 0.114 * x[2])[None]


JITTERS: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda x: x.new_zeros(()),
    lambda x: _luma(x).mean(),
    _luma,
)
"""What brightness, contrast and saturation move an image towards."""


def colour_jitter(
    images: Float[Tensor, "batch channels height width"],
    draws: Draws,
    brightness: float | int = 0.3,
    contrast: float | int = 0.3,
    saturation: float | int = 0.3,
) -> Float[Tensor, "batch channels height width"]:
    """Brightness, contrast and saturation of each image, in an order of its own, times up to 1 +- these.

    The authors' default of 0.3 has no effect beside RandAugment, as timm leaves it out there (transforms_factory.py).
    As torchvision's ColorJitter without hue. Raises UsageError for images neither grey nor RGB.
    """
    if images.shape[1] not in (1, 3):
        raise UsageError(f"colour_jitter is for grey or RGB, and the images have {images.shape[1]} channels")
    spread = torch.tensor((brightness, contrast, saturation), dtype=torch.float32)
    factors = ((1 - spread).clamp(min=0) + draws.uniform(3) * (1 + spread - (1 - spread).clamp(min=0))).to(images)
    order = draws.uniform(3).argsort(1)
    found = []
    for x, turns, amounts in zip(images, order.tolist(), factors.tolist(), strict=True):
        for number in turns:
            dull = JITTERS[number](x)
            x = torch.lerp(dull, x, amounts[number]).clamp_(0, 1)
        found.append(x)
    return torch.stack(found)
