"""The chain space of Section 3.1 and 3.3: convolutions one after the other, each of which may read any earlier layer."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from jingdu.errors import UsageError
from jingdu.nn import check_images, each, quick_layout

from .space import Choice, SearchSpace


class ChainNet(nn.Module):
    """Convolution, batch norm and ReLU, a layer at a time; what no layer reads goes side by side to the classifier.

    Args:
        layers: of each (filters, kernel height, kernel width, stride height, stride width, sources): `sources` are the
            numbers of the earlier layers that it reads, from 1; none means the image.
        num_classes: outputs.
        in_channels: of the image.
        grid: the classifier is a linear map of the means over grid x grid parts of the last maps.

    A layer that reads several has them side by side; smaller maps are padded with zeros at the bottom and right to the
    largest (Section 3.3).
    """

    def __init__(self, layers: Sequence[Sequence[Any]], num_classes: int = 10, in_channels: int = 3, grid: int = 1):
        super().__init__()
        if not layers or grid < 1:
            raise UsageError(f"a chain of {len(layers)} layers and a grid of {grid}: give one or more of each")
        self.grid = grid
        self.layers = tuple((f, h, w, d, a, tuple(sources)) for f, h, w, d, a, sources in layers)
        self.sources: list[tuple[int, ...]] = []
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        widths: list[int] = []
        for n, (filters, height, width, down, across, sources) in enumerate(layers, 1):
            sources = tuple(sorted({int(s) for s in sources}))
            if any(not 1 <= s < n for s in sources):
                raise UsageError(f"layer {n} reads layers {sources}: they are numbered from 1 to {n - 1}")
            if height % 2 == 0 or width % 2 == 0:
                raise UsageError(f"layer {n} has a kernel of {height}x{width}: both sides are odd")
            inputs = sum(widths[s - 1] for s in sources) if sources else in_channels
            self.sources.append(sources)
            padding = (height // 2, width // 2)
            self.convs.append(nn.Conv2d(inputs, filters, (height, width), (down, across), padding, bias=False))
            self.norms.append(nn.BatchNorm2d(filters))
            widths.append(filters)
        read = {s for sources in self.sources for s in sources}
        self.ends = tuple(n for n in range(1, len(layers) + 1) if n not in read)
        self.fc = nn.Linear(sum(widths[n - 1] for n in self.ends) * grid**2, num_classes)
        each(self, nn.Conv2d, lambda m: nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu"))

    def features(self, x: Float[Tensor, "batch channels height width"]) -> list[Tensor]:
        """The output of every layer."""
        check_images(x, self.convs[0])  # the first layer can read nothing but the image
        x, made = quick_layout(x), []
        for conv, norm, sources in zip(self.convs, self.norms, self.sources, strict=True):
            made.append(F.relu(norm(conv(_beside([made[s - 1] for s in sources]) if sources else x)), inplace=True))
        return made

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        made = self.features(x)
        return self.fc(F.adaptive_avg_pool2d(_beside([made[n - 1] for n in self.ends]), self.grid).flatten(1))


def _beside(maps: Sequence[Tensor]) -> Tensor:
    height, width = (max(x.shape[axis] for x in maps) for axis in (2, 3))
    padded = [F.pad(x, (0, width - x.shape[3], 0, height - x.shape[2])) for x in maps]
    return padded[0] if len(padded) == 1 else torch.cat(padded, 1)


def _layers(values: Mapping[str, Any], options: Sequence[Mapping[str, Sequence[Any]]]) -> tuple[tuple[Any, ...], ...]:
    """The layers of `ChainNet` from an architecture's values by name; what has one option is no choice."""
    made = []
    for n, option in enumerate(options, 1):
        own = {name: values.get(f"{name}_{n}", given[0]) for name, given in option.items()}
        height = own.get("height", own.get("kernel", 3))
        width = own.get("width", own.get("kernel", 3))
        down = own.get("down", own.get("stride", 1))
        across = own.get("across", own.get("stride", 1))
        sources = tuple(s for s in range(1, n) if values.get(f"skip_{s}_{n}", s == n - 1))
        made.append((own["filters"], height, width, down, across, sources))
    return tuple(made)


def _arguments(
    values: Mapping[str, Any], options: Any, num_classes: int, in_channels: int, grid: int
) -> dict[str, Any]:
    return {"layers": _layers(values, options), "num_classes": num_classes, "in_channels": in_channels, "grid": grid}


def _network(values: dict[str, Any], **fixed: Any) -> ChainNet:
    return ChainNet(**_arguments(values, **fixed))


def _paths(values: dict[str, Any], options: Any) -> set[tuple[str, ...]]:
    """From the image to the classifier: a layer is its filters, kernel and strides."""
    layers = _layers(values, options)
    ways: list[set[tuple[str, ...]]] = []
    for filters, height, width, down, across, sources in layers:
        name = f"{filters}x{height}x{width}/{down}x{across}"
        before = set().union(*(ways[s - 1] for s in sources)) if sources else {()}
        ways.append({(*way, name) for way in before})
    read = {s for layer in layers for s in layer[5]}
    return set().union(*(ways[n - 1] for n in range(1, len(layers) + 1) if n not in read))


def chain_space(
    options: Sequence[Mapping[str, Sequence[Any]]], skips: bool = True, image: Sequence[int] = (3, 32, 32),
    num_classes: int = 10, grid: int = 1,
) -> SearchSpace:  # fmt: skip
    """Chains of a fixed depth.

    Args:
        options: for each layer what may be chosen: `filters`, and `kernel` (or `height` and `width`) and `stride` (or
            `down` and `across`) with their values.
        skips: each layer may read any earlier one; else it reads the one before it.
        image: its shape [channels, height, width].
        num_classes, grid: as of `ChainNet`.
    """
    options = tuple({name: tuple(values) for name, values in option.items()} for option in options)
    choices = []
    for n, option in enumerate(options, 1):
        if "filters" not in option:
            raise UsageError(f"layer {n} says nothing of its filters")
        choices += [
            Choice(f"{name}_{n}", values, ordered=True, layer=n, kind="layer")
            for name, values in option.items()
            if len(values) > 1
        ]
        if skips:
            choices += [
                Choice(f"skip_{s}_{n}", (False, True), layer=n, source=s, kind="connection") for s in range(1, n)
            ]
    fixed: dict[str, Any] = {"options": options, "num_classes": num_classes, "in_channels": image[0], "grid": grid}
    return SearchSpace(
        choices, partial(_network, **fixed), image=image, paths=partial(_paths, options=options),
        arguments=partial(_arguments, **fixed),
    )  # fmt: skip


def zoph_le_space(depth: int = 6, strides: bool = False, num_classes: int = 10) -> SearchSpace:
    """Section 4.1's space for CIFAR-10: kernels of 1, 3, 5 or 7, filters 24 to 64, strides 1, or 1 to 3 if searched."""
    option: dict[str, Sequence[int]] = {"filters": (24, 36, 48, 64), "height": (1, 3, 5, 7), "width": (1, 3, 5, 7)}
    if strides:
        option |= {"down": (1, 2, 3), "across": (1, 2, 3)}
    return chain_space([option] * depth, num_classes=num_classes)


def digits_space(num_classes: int = 10) -> SearchSpace:
    """576 chains of three layers for grey images of 8x8 pixels: two kernels, widths and a stride, and who reads whom."""
    free = {"filters": (4, 12), "kernel": (1, 3, 5)}
    return chain_space(
        [free, {**free, "stride": (1, 2)}, {"filters": (8,), "kernel": (3,)}],
        image=(1, 8, 8), num_classes=num_classes, grid=2,
    )  # fmt: skip
