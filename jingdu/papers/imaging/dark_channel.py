r"""Single Image Haze Removal Using Dark Channel Prior. He, Sun, Tang. 2009 (IEEE TPAMI 33(12), 2011).
https://doi.org/10.1109/CVPR.2009.5206515. With the filter by which its authors replaced its slow step: Guided Image
Filtering, He, Sun, Tang, ECCV 2010 ("GF" below).

**Problem.** Haze mixes the light of a scene with that of the air, the more the farther it is (Eq. 1):

$$ I(x) = J(x)\, t(x) + A\, (1 - t(x)), \qquad t(x) = e^{-\beta d(x)} $$

From one picture $I$, the scene $J$, the transmission $t$ and the airlight $A$ are all unknown.

**Idea.** In pictures without haze nearly every patch $\Omega(x)$ has a pixel that is almost black in one colour: a
shadow, a colourful thing, a dark one. The least value of a patch, its dark channel, is then zero (Eq. 5). What is not zero
in a hazy picture is the air's, and says how much of it there is (Eq. 11, 12):

$$ \tilde t(x) = 1 - \omega \min_{y \in \Omega(x)} \min_c \frac{I^c(y)}{A^c} $$

That is constant over patches. To follow the edges of the picture, $t$ is found as an alpha matte is: closest to
$\tilde t$ among those that are locally linear in the colours (Eq. 13-15; Levin's matting Laplacian), or by one guided filter.

**Showed.** Of the dark channels of 5,000 outdoor photographs about 75 % of the pixels are zero and 90 % below 25 of 255
(Fig. 4); pictures that others needed pairs or depth for become clear from one (Fig. 7-12).

Differs from the paper in:
- The guided filter is the default, as its authors later had it; `refine="matting"` is the paper's, and slower.
- The conjugate gradients of soft matting start from the guided filter's result, and are divided by the diagonal; the
  text's are preconditioned otherwise.
- The least of a patch is found by doubling windows, which takes as many steps as the logarithm of their side; the text
  names van Herk's, which takes a fixed number.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from jingdu.data.images import decode, expand_inputs, to_tensor
from jingdu.data.preprocess import Preprocess
from jingdu.engine.contracts import Batch, Recipe, Stage
from jingdu.errors import UsageError
from jingdu.prediction import Prediction

__all__ = [
    "DarkChannel", "Dehazed", "Dehazing", "airlight", "box_mean", "build", "coarse_transmission", "dark_channel",
    "guided_filter", "haze", "matting_laplacian", "minimum_filter", "predict", "psnr", "recover", "smooth_depth",
    "soft_matting",
]  # fmt: skip

# The model of haze (Sec. 2) ------------------------------------------------------------------------------


def haze(
    clear: Float[Tensor, "batch 3 height width"],
    transmission: Float[Tensor, "batch 1 height width"],
    light: Float[Tensor, "batch 3"],
) -> Float[Tensor, "batch 3 height width"]:
    """Equation 1: what a camera sees of a clear scene through air that scatters the light `light`."""
    return clear * transmission + light[:, :, None, None] * (1 - transmission)


def recover(
    hazy: Float[Tensor, "batch 3 height width"],
    transmission: Float[Tensor, "batch 1 height width"],
    light: Float[Tensor, "batch 3"],
    t_min: float = 0.1,
) -> Float[Tensor, "batch 3 height width"]:
    """Equation 16: the scene; where almost nothing of it comes through, a transmission of `t_min` keeps noise small."""
    light = light[:, :, None, None]
    return ((hazy - light) / transmission.clamp(min=t_min) + light).clamp(0, 1)


def smooth_depth(
    batch: int, height: int, width: int, generator: torch.Generator | None = None
) -> Float[Tensor, "batch 1 height width"]:
    """Random depths to make haze with: from 0 (near) to 1 (far), smooth, farther towards the top. Ours, for tests."""
    noise = torch.rand(batch, 1, 4, 5, generator=generator)
    up = torch.linspace(1, 0, 4).view(4, 1)
    depth = F.interpolate(noise + 1.5 * up, size=(height, width), mode="bicubic", align_corners=True)
    low, high = depth.amin((2, 3), keepdim=True), depth.amax((2, 3), keepdim=True)
    return (depth - low) / (high - low)


# The dark channel (Sec. 3, 4.1, 4.4) ---------------------------------------------------------------------


def _least_along(x: Tensor, size: int, axis: int) -> Tensor:
    """The least of `size` neighbours along an axis; outside there is nothing that could be less."""
    pad = [0, 0, size // 2, size // 2] if axis == 2 else [size // 2, size // 2]
    x, span = F.pad(x, pad, value=torch.inf), 1
    while span < size:
        step = min(span, size - span)
        rest = x.shape[axis] - step
        x, span = torch.minimum(x.narrow(axis, 0, rest), x.narrow(axis, step, rest)), span + step
    return x


def minimum_filter(
    x: Float[Tensor, "batch channels height width"], patch: int = 15
) -> Float[Tensor, "batch channels height width"]:
    """The least value of the `patch` x `patch` pixels around each, those outside left out. Raises UsageError for an even patch."""
    if patch < 1 or patch % 2 == 0:
        raise UsageError(f"patch {patch}: a patch has a middle, so its side is 1, 3, 5, ...")
    return _least_along(_least_along(x, patch, 3), patch, 2)


def dark_channel(
    images: Float[Tensor, "batch 3 height width"], patch: int = 15
) -> Float[Tensor, "batch 1 height width"]:
    """Equation 5: the least value of any colour in the patch around each pixel."""
    return minimum_filter(images.amin(1, keepdim=True), patch)


def airlight(images: Float[Tensor, "batch 3 height width"], dark: Float[Tensor, "batch 1 height width"], share: float = 0.001
             ) -> Float[Tensor, "batch 3"]:  # fmt: skip
    """Section 4.4: of the `share` of pixels whose dark channel is brightest, the colour of the one that is brightest itself."""
    count = max(1, int(share * dark[0].numel()))
    haziest = dark.flatten(1).topk(count).indices  # [batch, count]
    colours = images.flatten(2).gather(2, haziest[:, None].expand(-1, 3, -1))
    brightest = colours.sum(1).argmax(1)
    return colours[torch.arange(len(images), device=images.device), :, brightest]


def coarse_transmission(
    images: Float[Tensor, "batch 3 height width"], light: Float[Tensor, "batch 3"], patch: int = 15, omega: float = 0.95
) -> Float[Tensor, "batch 1 height width"]:
    """Equation 12: each colour is divided by the air's before the least is taken; `omega` leaves far things a little haze."""
    return 1 - omega * dark_channel(images / light.clamp(min=1e-3)[:, :, None, None], patch)


# Windows and colours (GF Sec. 3) -------------------------------------------------------------------------


def _sum_along(x: Tensor, radius: int, axis: int) -> Tensor:
    """Sums over `radius` neighbours to either side along an axis, of those that are there: differences of running sums."""
    side, sums = x.shape[axis], x.cumsum(axis)
    found = torch.empty_like(x)
    last = sums.narrow(axis, side - 1, 1)
    inside = min(radius, side - 1)
    first = min(radius + 1, side)
    found.narrow(axis, 0, first)[:] = last
    if side > radius:
        found.narrow(axis, 0, side - radius)[:] = sums.narrow(axis, radius, side - radius)
        found.narrow(axis, side - inside, inside)[:] = last
        found.narrow(axis, radius + 1, side - radius - 1).sub_(sums.narrow(axis, 0, side - radius - 1))
    return found


def box_mean(
    x: Float[Tensor, "batch channels height width"], radius: int
) -> Float[Tensor, "batch channels height width"]:
    """The mean of the window of 2 `radius` + 1 pixels a side around each pixel, as far as it lies on the picture.

    The work does not depend on the radius.
    """
    ones = x.new_ones(x.shape[2:])
    counts = _sum_along(ones[:, :1], radius, -2) * _sum_along(ones[:1], radius, -1)

    def one(own: Tensor) -> Tensor:
        # Running sums stay small, and keep their digits, around the middle of the values.
        middle = own.mean()
        return _sum_along(_sum_along(own - middle, radius, -1), radius, -2).div_(counts).add_(middle)

    # One map after the other: each stays in the processor's cache.
    return torch.stack([one(own) for own in x.flatten(0, 1)]).view(x.shape)


PAIRS = ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))
"""The entries of a symmetric 3x3 matrix, as they are kept: six channels."""


def _solve(matrix: Float[Tensor, "batch 6 h w"], vector: Float[Tensor, "more 3 h w"]) -> Float[Tensor, "more 3 h w"]:
    """Solve systems with symmetric positive matrices (`PAIRS`), by L D L^T: cofactors lose all digits of flat windows."""
    a, b, c, d, e, f = matrix.unbind(1)
    ba, ca = b / a, c / a
    dd = d - b * ba
    ee = e - b * ca
    ed = ee / dd
    x, y, z = vector.unbind(1)
    y = y - ba * x
    z = (z - ca * x - ed * y) / (f - c * ca - ee * ed)
    y = y / dd - ed * z
    return torch.stack((x / a - ba * y - ca * z, y, z), 1)


def guided_filter(
    guide: Float[Tensor, "batch 3 height width"],
    x: Float[Tensor, "batch 1 height width"],
    radius: int = 30,
    eps: float = 1e-3,
    subsample: int = 1,
) -> Float[Tensor, "batch 1 height width"]:
    """GF Equations 14-16: in every window, `x` by ridge regression on the guide's three colours; then the mean of all windows.

    Args:
        guide: whose edges the result gets, in [0, 1].
        x: what is filtered.
        radius: of the windows in pixels: 2 radius + 1 a side.
        eps: a variance of the guide below it counts as flat.
        subsample: regress on means of so many pixels a side, and spread the coefficients bilinearly: many times faster,
            and about the same (He and Sun, Fast Guided Filter, 2015, https://arxiv.org/abs/1505.00996).
    """
    height, width = guide.shape[2:]
    whole = colours = guide - guide.mean((2, 3), keepdim=True)  # for the digits of the variances
    if subsample > 1:
        radius = max(1, round(radius / subsample))
        colours, x = (F.avg_pool2d(m, subsample, ceil_mode=True, count_include_pad=False) for m in (colours, x))
    products = [colours[:, i] * colours[:, j] for i, j in PAIRS]
    stack = torch.cat((colours, x, colours * x, torch.stack(products, 1)), 1)
    mean, level, mixed, squares = box_mean(stack, radius).split((3, 1, 3, 6), 1)
    covariance = squares - torch.stack([mean[:, i] * mean[:, j] for i, j in PAIRS], 1)
    covariance[:, [0, 3, 5]] += eps
    slope = _solve(covariance, mixed - mean * level)
    offset = level - (slope * mean).sum(1, keepdim=True)
    found = box_mean(torch.cat((slope, offset), 1), radius)
    if subsample > 1:
        found = F.interpolate(found, scale_factor=subsample, mode="bilinear")[:, :, :height, :width]
    slope, offset = found.split((3, 1), 1)
    return (slope * whole).sum(1, keepdim=True) + offset


def matting_laplacian(image: Float[Tensor, "3 height width"], eps: float = 1e-7) -> Any:
    r"""Equation 14, Levin's matting Laplacian on the 3x3 windows $w_k$ inside a picture in [0, 1].

    $$ L_{ij} = \sum_{k \mid i,j \in w_k} \delta_{ij} - \tfrac19 \left(1 + (I_i - \mu_k)^T
       (\Sigma_k + \tfrac{\varepsilon}{9} U_3)^{-1} (I_j - \mu_k)\right) $$

    Args:
        image: at least 3x3 pixels.
        eps: 1e-7 in Levin's code (Levin, Lischinski, Weiss, TPAMI 2008).

    Returns a scipy.sparse.dia_array in float64 with a row for each pixel in reading order: 25 diagonals, as a pixel shares
    windows with those up to two rows and columns away. Raises UsageError for a smaller picture.
    """
    import numpy as np
    from scipy.sparse import dia_array

    rows, columns = image.shape[1:]
    if min(rows, columns) < 3:
        raise UsageError(f"a picture of {rows} x {columns} pixels has no window of 3x3")
    places = [(i, j) for i in range(3) for j in range(3)]
    inner = [image.double()[:, i : rows - 2 + i, j : columns - 2 + j] for i, j in places]
    mean = sum(inner) / 9
    near = torch.stack([part - mean for part in inner])  # [9, 3, height - 2, width - 2]
    covariance = torch.stack([(near[:, i] * near[:, j]).mean(0) for i, j in PAIRS])
    covariance[[0, 3, 5]] += eps / 9
    shaped = _solve(covariance[None], near)
    bands: dict[int, Tensor] = {}
    for (i, j), left in zip(places, near, strict=True):
        for (k, m), right in zip(places, shaped, strict=True):
            # scipy keeps a diagonal's entries by their column: that of the pixel (k, m) of the window.
            band = bands.setdefault((k - i) * columns + m - j, image.new_zeros(rows, columns, dtype=torch.float64))
            part = (1 + (left * right).sum(0)) / -9
            band[k : rows - 2 + k, m : columns - 2 + m] += part + 1 if (i, j) == (k, m) else part
    data = np.stack([band.flatten().numpy() for band in bands.values()])
    return dia_array((data, list(bands)), shape=(rows * columns, rows * columns))


def soft_matting(
    image: Float[Tensor, "3 height width"],
    coarse: Float[Tensor, "1 height width"],
    strength: float = 1e-4,
    start: Float[Tensor, "1 height width"] | None = None,
    tolerance: float = 1e-2,
    steps: int = 2000,
) -> Float[Tensor, "1 height width"]:
    """Equation 15: the t that solves (L + lambda U) t = lambda coarse, by conjugate gradients (scipy, on the CPU).

    Args:
        image: whose edges the result gets.
        coarse: the transmission by patches.
        strength: lambda, how near to it the result stays.
        start: where to begin; by default at `coarse`.
        tolerance: it ends when the residual's norm is that share of the right side's.
        steps: or after so many.
    """
    from scipy.sparse import diags_array
    from scipy.sparse.linalg import cg

    matrix = matting_laplacian(image.cpu())
    matrix.setdiag(matrix.diagonal() + strength)
    first = (coarse if start is None else start).flatten().double().cpu().numpy()
    wanted = strength * coarse.flatten().double().cpu().numpy()
    found, _ = cg(matrix, wanted, first, rtol=tolerance, maxiter=steps, M=diags_array(1 / matrix.diagonal()))
    return torch.from_numpy(found).to(coarse).view_as(coarse)


# All of it -----------------------------------------------------------------------------------------------

Refinement = Literal["guided", "matting", "none"]


@dataclass(frozen=True)
class Dehazed:
    """What is found of hazy pictures."""

    clear: Float[Tensor, "batch 3 height width"]
    transmission: Float[Tensor, "batch 1 height width"]
    light: Float[Tensor, "batch 3"]
    """The airlight's colour."""

    @property
    def depth(self) -> Float[Tensor, "batch 1 height width"]:
        """Equation 2: the distance, in units of the haze's scattering length."""
        return -self.transmission.clamp(min=1e-3).log()


@dataclass
class DarkChannel:
    """The method, with its numbers. The prior fails on skies, white walls and snow: there `omega` and `t_min` keep it mild.

    Args:
        patch: side in pixels of the patches of the dark channel.
        omega: share of the haze that is taken away.
        t_min: the least transmission that is believed.
        refine: how the transmission gets the picture's edges.
        radius: of the guided filter, in pixels; several times that of the patches.
        eps: of the guided filter.
        subsample: of the guided filter; 4 is several times faster.
        strength: lambda of soft matting.
    """

    patch: int = 15
    omega: float = 0.95
    t_min: float = 0.1
    refine: Refinement = "guided"
    radius: int = 30
    eps: float = 1e-3
    subsample: int = 1
    strength: float = 1e-4

    needs_weights: ClassVar[bool] = False
    """Nothing is learned."""

    def __post_init__(self) -> None:
        if self.refine not in ("guided", "matting", "none"):
            raise UsageError(f"refine {self.refine!r}: guided, matting or none")
        if not 0 <= self.omega <= 1 or not 0 < self.t_min <= 1:
            raise UsageError(f"omega {self.omega}, t_min {self.t_min}: shares, and t_min above 0")

    @torch.no_grad()
    def __call__(self, images: Float[Tensor, "batch 3 height width"]) -> Dehazed:
        """Hazy pictures in [0, 1], as they are stored: the model holds for linear light, the paper works on sRGB values."""
        light = airlight(images, dark_channel(images, self.patch))
        t = coarse_transmission(images, light, self.patch, self.omega)
        if self.refine != "none":
            coarse, t = t, guided_filter(images, t, self.radius, self.eps, self.subsample)
            if self.refine == "matting":
                some = [
                    soft_matting(*rows, self.strength, start) for *rows, start in zip(images, coarse, t, strict=True)
                ]
                t = torch.stack(some)
        t = t.clamp(0, 1)
        return Dehazed(recover(images, t, light, self.t_min), t, light)

    def state_dict(self) -> dict[str, Any]:
        """Nothing is learned; a run of the recipe keeps that."""
        return {"learned": 0}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if set(state) != {"learned"}:
            raise ValueError(f"{sorted(state)} are not of a method without weights")


def build(variant: str = "dark_channel", **overrides: Any) -> DarkChannel:
    """The method; overrides are the arguments of `DarkChannel`."""
    return DarkChannel(**overrides)


def psnr(images: Float[Tensor, "batch *rest"], truth: Float[Tensor, "batch *rest"]) -> Float[Tensor, " batch"]:
    """Peak signal to noise ratio in decibels, of values in [0, 1]."""
    return -10 * (images - truth).square().flatten(1).mean(1).clamp(min=1e-12).log10()


class Dehazing:
    """The run of a method that learns nothing (a `Fitted`): one pass measures the prior on clear photographs, and evaluation
    lays haze over others, whose depth is random, and takes it off again."""

    passes = 1

    def __init__(self, model: DarkChannel, thickness: float = 2.0):
        self.model, self.thickness = model, thickness
        self.sums = [0.0, 0.0, 0.0]
        self.rows: list[tuple[float, float, float]] = []

    def observe(self, batch: Batch, number: int) -> dict[str, Any]:
        """Figure 4: shares of the dark channel's pixels that are 0, and below 25 of 255, over all pictures so far."""
        for image in batch["image"]:
            dark = dark_channel(image[None], self.model.patch)
            shares = (1.0, float((dark < 0.5 / 255).float().mean()), float((dark < 25 / 255).float().mean()))
            self.sums = [a + b for a, b in zip(self.sums, shares, strict=True)]
        count, zero, below = self.sums
        return {"zero": zero / count, "below_25": below / count}

    def end_pass(self, number: int) -> None:
        """There is nothing to make of it."""

    def update(self, batch: Batch) -> None:
        for image in batch["image"]:
            t = torch.exp(-self.thickness * smooth_depth(1, *image.shape[1:]))
            hazy = haze(image[None], t, image.new_tensor([[0.85, 0.88, 0.92]]))
            found = self.model(hazy)
            gain = psnr(found.clear, image[None]) - psnr(hazy, image[None])
            self.rows.append(
                (float(gain), float((found.transmission - t).abs().mean()), float(psnr(hazy, image[None])))
            )

    def compute(self) -> dict[str, float]:
        """Means: decibels gained by taking synthetic haze off, error of the transmission, decibels of the hazy picture."""
        rows, self.rows = torch.tensor(self.rows), []
        return dict(zip(("gain_db", "t_error", "hazy_db"), rows.mean(0).tolist(), strict=True))

    def state_dict(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "sums": self.sums}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.sums = [float(value) for value in state["sums"]]


recipes = {
    "laptop": Recipe(
        stages=(
            Stage(
                "measure", method="fit", system="dark_channel.Dehazing", networks={"model": "dark_channel"},
                data="photos(size=256, count=40, test_count=16, scale=(1, 1))", preprocess=Preprocess(size=256), batch_size=4,
            ),
        ),
        minutes=0.2,
        expect={"gain_db": (2.0, 12.0), "t_error": (0.0, 0.2)},
        about="nothing is learned: the dark channel of shipped photographs is measured, and haze is laid over others and taken off",
    ),
    "paper": Recipe(
        stages=(
            Stage(
                "measure", method="fit", system="dark_channel.Dehazing", networks={"model": "dark_channel"},
                data="./photographs", preprocess=Preprocess(size=500, resize=500), batch_size=1,
            ),
        ),
        minutes=30,
        expect={"gain_db": (3.0, 12.0)},
        about="Fig. 4 on a folder of your own outdoor photographs without haze (--data): zero and below_25 in log.jsonl; the "
        "paper's are 0.75 and 0.90, of 5,000 pictures",
    ),
}  # fmt: skip


def _written(image: Tensor, path: Path) -> Path:
    """An image [channels, height, width] in [0, 1] as a file."""
    values = (image.clamp(0, 1) * 255).round().byte()
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((values[0] if len(values) == 1 else values.permute(1, 2, 0)).numpy()).save(path)
    return path


def predict(
    model: DarkChannel,
    inputs: Sequence[str],
    *,
    out: Path | None = None,
    refine: Refinement = "guided",
    omega: float = 0.95,
    t_min: float = 0.1,
    maps: bool = False,
) -> Iterator[Prediction]:
    """Clear pictures of hazy image files.

    Args:
        out: the file to write, or of several inputs the folder; by default INPUT-clear.png beside each.
        refine: guided (fast), matting (the paper's) or none.
        omega: share of the haze that is taken away; less keeps far things far.
        t_min: the least transmission that is believed; more keeps skies quiet.
        maps: also write the transmission, and the depth from near (black) to far (white).
    """
    if not inputs:
        raise UsageError("there are no inputs: name image files, or folders of them")
    method = replace(model, refine=refine, omega=omega, t_min=t_min)
    paths = expand_inputs(inputs)
    one = out is not None and len(paths) == 1 and bool(out.suffix)
    for path in paths:
        found = method(to_tensor(decode(path, 3))[None])
        target = out if one else (out or path.parent) / f"{path.stem}-clear.png"
        files = [_written(found.clear[0], target)]
        if maps:
            depth = found.depth[0] / max(float(found.depth.max()), 1e-6)
            for name, picture in (("transmission", found.transmission[0]), ("depth", depth)):
                files.append(_written(picture, target.with_name(f"{target.stem}-{name}.png")))
        light, t = found.light[0].tolist(), found.transmission
        data = {"file": str(path), "airlight": light, "transmission": float(t.mean()), "least": float(t.min())}
        colour = ", ".join(f"{value:.2f}" for value in light)
        text = f"{path}: airlight ({colour}), mean transmission {data['transmission']:.2f}, least {data['least']:.2f}"
        yield Prediction(str(path), text, data, tuple(files))
