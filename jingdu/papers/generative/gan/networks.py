"""The pairs of networks of Section 5, for MNIST and CIFAR-10, and how samples are drawn from a generator."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from jingdu.errors import UsageError

Prior = Literal["uniform", "unit", "gaussian"]


def _uniform(module: nn.Module, irange: float) -> None:
    """Every weight uniform on [-irange, irange], every bias zero (pylearn2's `irange`)."""
    for parameter in module.parameters():
        if parameter.ndim > 1:
            nn.init.uniform_(parameter, -irange, irange)
        else:
            nn.init.zeros_(parameter)


def maxout(x: Tensor, pieces: int, axis: int = -1) -> Tensor:
    """The largest of every `pieces` neighbours along `axis`, which shrinks by that factor.

    Maxout networks, https://arxiv.org/abs/1302.4389, Sec. 3; neighbours, as pylearn2 lays its pieces out.
    """
    axis %= x.ndim
    return x.unflatten(axis, (-1, pieces)).amax(axis + 1)


class Maxout(nn.Module):
    """A linear map to units * pieces, then the max over the pieces."""

    def __init__(self, inputs: int, units: int, pieces: int):
        super().__init__()
        self.pieces = pieces
        self.linear = nn.Linear(inputs, units * pieces)

    def forward(self, x: Float[Tensor, "batch inputs"]) -> Float[Tensor, "batch units"]:
        return maxout(self.linear(x), self.pieces)


class MaxoutConv(nn.Module):
    """A convolution to units * pieces channels, the max over the pieces, then an overlapping max-pool.

    The pool keeps windows that reach over the edge, as cuda-convnet does (33 -> 16 by 4/2).
    """

    def __init__(self, inputs: int, units: int, pieces: int, kernel: int, padding: int, pool: int):
        super().__init__()
        self.pieces = pieces
        self.conv = nn.Conv2d(inputs, units * pieces, kernel, padding=padding)
        self.pool = nn.MaxPool2d(pool, 2, ceil_mode=True)

    def forward(self, x: Float[Tensor, "batch inputs height width"]) -> Float[Tensor, "batch units h w"]:
        return self.pool(maxout(self.conv(x), self.pieces, axis=1))


class NoiseToImage(nn.Module):
    """What both generators share: the prior p_z.

    "uniform" is on (-sqrt 3, sqrt 3), "gaussian" the standard normal, both of variance one; "unit" is
    uniform on (0, 1).
    """

    def __init__(self, noise: int, prior: Prior):
        super().__init__()
        self.noise, self.prior = noise, prior

    def sample_noise(self, count: int, generator: torch.Generator | None = None) -> Float[Tensor, "count noise"]:
        """`count` draws from p_z; without a `generator`, from torch's own."""
        like = next(self.parameters())
        make = torch.randn if self.prior == "gaussian" else torch.rand
        z = make(count, self.noise, generator=generator, dtype=like.dtype, device=like.device)
        return z.mul_(2).sub_(1).mul_(math.sqrt(3)) if self.prior == "uniform" else z


class Generator(NoiseToImage):
    """mnist.yaml: noise, ReLU layers, a sigmoid for every pixel.

    Args:
        image: channels, height and width.
        hidden: units of the ReLU layers.
        noise: size of z.
        prior: p_z; see `NoiseToImage`.
        irange: weights start uniform on [-irange, irange].
    """

    def __init__(
        self,
        image: tuple[int, int, int] = (1, 28, 28),
        hidden: Sequence[int] = (1200, 1200),
        noise: int = 100,
        prior: Prior = "uniform",
        irange: float = 0.05,
    ):
        super().__init__(noise, prior)
        self.image = tuple(image)
        sizes = (noise, *hidden)
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.output = nn.Linear(sizes[-1], math.prod(image))
        _uniform(self, irange)

    @torch.no_grad()
    def start_at(self, mean: Float[Tensor, "channels height width"]) -> None:
        """Set the output bias so that an otherwise silent network draws the data's mean image.

        Means are kept in [1e-7, 1 - 1e-7] (pylearn2's init_sigmoid_bias_from_marginals).
        """
        self.output.bias.copy_(torch.logit(mean.flatten().double(), eps=1e-7))

    def forward(self, z: Float[Tensor, "batch noise"]) -> Float[Tensor, "batch channels height width"]:
        for layer in self.hidden:
            z = F.relu(layer(z))
        return self.output(z).sigmoid().unflatten(1, self.image)


class Discriminator(nn.Module):
    """mnist.yaml: two maxout layers and a logit, with dropout before each of the three.

    nn.Dropout(1 - keep) scales what it keeps by 1/keep: the 1.25 and 2 of the file's input scales.

    Args:
        image: channels, height and width.
        hidden: units of the maxout layers.
        pieces: linear pieces of a unit.
        keep: probabilities of keeping an input and a hidden unit in training.
        irange: weights start uniform on [-irange, irange].
    """

    def __init__(
        self,
        image: tuple[int, int, int] = (1, 28, 28),
        hidden: Sequence[int] = (240, 240),
        pieces: int = 5,
        keep: tuple[float, float] = (0.8, 0.5),
        irange: float = 0.005,
    ):
        super().__init__()
        self.image = tuple(image)
        self.drop_input, self.drop_hidden = nn.Dropout(1 - keep[0]), nn.Dropout(1 - keep[1])
        sizes = (math.prod(image), *hidden)
        self.hidden = nn.ModuleList(Maxout(a, b, pieces) for a, b in pairwise(sizes))
        self.logit = nn.Linear(sizes[-1], 1)
        _uniform(self, irange)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch"]:
        x = self.drop_input(x.flatten(1))
        for layer in self.hidden:
            x = self.drop_hidden(layer(x))
        return self.logit(x).squeeze(1)


class ConvGenerator(NoiseToImage):
    """cifar10_convolutional.yaml: ReLU, sigmoid, 80 maps of 10x10, one transposed convolution; no final squashing.

    Its bias belongs to the pixel (`tied_b: 0`), its images are standardised ones. `grid` is the side of the
    maps and `maps` their number; the image's side is 3 * (grid - 1) + 5.
    """

    def __init__(
        self,
        hidden: tuple[int, int] = (8000, 8000),
        maps: int = 80,
        grid: int = 10,
        channels: int = 3,
        noise: int = 100,
        prior: Prior = "gaussian",
        irange: float = 0.05,
    ):
        super().__init__(noise, prior)
        if hidden[1] != maps * grid**2:
            raise UsageError(f"ConvGenerator: hidden[1] = {hidden[1]} is not maps * grid^2 = {maps * grid**2}")
        self.maps = (maps, grid, grid)
        self.image = (channels, 3 * grid + 2, 3 * grid + 2)
        self.hidden = nn.ModuleList([nn.Linear(noise, hidden[0]), nn.Linear(hidden[0], hidden[1])])
        self.deconv = nn.ConvTranspose2d(maps, channels, kernel_size=5, stride=3, bias=False)
        self.bias = nn.Parameter(torch.empty(self.image))
        _uniform(self, irange)
        nn.init.zeros_(self.bias)

    def forward(self, z: Float[Tensor, "batch noise"]) -> Float[Tensor, "batch channels height width"]:
        h = self.hidden[1](F.relu(self.hidden[0](z))).sigmoid()
        return self.deconv(h.unflatten(1, self.maps)) + self.bias


class ConvDiscriminator(nn.Module):
    """cifar10_convolutional.yaml: three maxout convolutions, a maxout layer, a logit; dropout before each.

    On 32x32: 33 -> 16, 15 -> 7, 9 -> 5 (convolution -> pool). `units` are those of the three convolutions and
    of the dense layer; `keep` and `irange` as in `Discriminator`.
    """

    def __init__(
        self,
        image: tuple[int, int, int] = (3, 32, 32),
        units: tuple[int, int, int, int] = (32, 32, 192, 500),
        keep: tuple[float, float] = (0.8, 0.5),
        irange: float = 0.005,
    ):
        super().__init__()
        self.image = tuple(image)
        self.drop_input, self.drop_hidden = nn.Dropout(1 - keep[0]), nn.Dropout(1 - keep[1])
        self.hidden = nn.ModuleList(
            [
                MaxoutConv(image[0], units[0], pieces=2, kernel=8, padding=4, pool=4),
                MaxoutConv(units[0], units[1], pieces=2, kernel=8, padding=3, pool=4),
                MaxoutConv(units[1], units[2], pieces=2, kernel=5, padding=3, pool=2),
            ]
        )
        with torch.no_grad():
            x = torch.zeros(1, *image)
            for layer in self.hidden:
                x = layer(x)
        self.dense = Maxout(x.numel(), units[3], pieces=5)
        self.logit = nn.Linear(units[3], 1)
        _uniform(self, irange)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch"]:
        x = self.drop_input(x)
        for layer in self.hidden:
            x = self.drop_hidden(layer(x))
        return self.logit(self.drop_hidden(self.dense(x.flatten(1)))).squeeze(1)


@torch.no_grad()
def draw(
    network: nn.Module, count: int, generator: torch.Generator | None = None, batch: int = 500
) -> Float[Tensor, "count channels height width"]:
    """`count` samples of a generator, at most `batch` at a time."""
    sizes = [min(batch, count - start) for start in range(0, count, batch)]
    return torch.cat([network(network.sample_noise(size, generator)) for size in sizes])


@torch.no_grad()
def interpolations(
    network: nn.Module, rows: int, steps: int, generator: torch.Generator | None = None
) -> Float[Tensor, "rows steps channels height width"]:
    """Figure 3: in each row, images along the straight line in z from one draw to another."""
    start, end = network.sample_noise(2 * rows, generator).chunk(2)
    between = torch.linspace(0, 1, steps, dtype=start.dtype, device=start.device)[:, None]
    z = start[:, None] + between * (end - start)[:, None]
    return network(z.flatten(0, 1)).unflatten(0, (rows, steps))
