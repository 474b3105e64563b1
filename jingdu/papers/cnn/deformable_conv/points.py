"""What the taps look at (Fig. 5 and 6)."""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image, ImageDraw
from torch import Tensor, nn

from jingdu.data.images import decode, normalise, prepare
from jingdu.data.preprocess import Preprocess
from jingdu.errors import UsageError

from .convolution import DeformConv2d, tap_places


def deformable_layers(network: nn.Module) -> list[DeformConv2d]:
    """The deformable convolutions of a network, in their order."""
    return [module for module in network.modules() if isinstance(module, DeformConv2d)]


@torch.no_grad()
def sampling_points(
    network: nn.Module, image: Float[Tensor, "channels height width"], place: tuple[float, float], levels: int = 3
) -> Float[Tensor, "points 2"]:
    """Figure 6: where the last `levels` deformable layers read for one place: 9 points a layer, each of which reads 9 more.

    Args:
        network: in eval mode.
        image: normalised.
        place: down and across, as shares of the picture's height and width.
        levels: how many layers back; fewer where the network has fewer.

    Returns rows and columns in pixels of the image. A place between pixels follows the taps of the nearest one; of
    several groups of channels, the first is shown. Raises UsageError for a network without deformable layers.
    """
    layers = deformable_layers(network)[-levels:]
    if not layers:
        raise UsageError("this network has no deformable layers: there are no sampling points")
    heard: dict[DeformConv2d, Tensor] = {}
    sizes: dict[DeformConv2d, tuple[int, int]] = {}

    def hear(layer: Any, inputs: Any) -> None:
        heard[layer], sizes[layer] = layer.moves(inputs[0])[0], tuple(inputs[0].shape[2:])

    handles = [layer.register_forward_pre_hook(hear) for layer in layers]
    try:
        network(image[None])
    finally:
        for handle in handles:
            handle.remove()
    whole = torch.tensor(image.shape[1:], dtype=torch.float32)
    points = torch.tensor([place]).clamp(0, 1) * whole - 0.5
    for layer in reversed(layers):
        y, x = tap_places(heard[layer].cpu(), layer.kernel, layer.stride, layer.padding, layer.dilation)
        taps = torch.stack((y, x), -1)[0, ..., 0, :]  # [height, width, taps, 2]
        side = torch.tensor(taps.shape[:2])
        # Pixels of the image -> outputs of the layer -> pixels of its input -> pixels of the image.
        own = ((points + 0.5) * side / whole - 0.5).round().long().clamp(min=torch.zeros(2).long(), max=side - 1)
        points = (taps[own[:, 0], own[:, 1]].flatten(0, 1) + 0.5) * whole / torch.tensor(sizes[layer]) - 0.5
    return points


def overlay(
    model: nn.Module, path: Path, place: tuple[float, float], levels: int, out: Path, preprocess: Preprocess
) -> int:
    """Write the picture with the points; returns how many distinct pixels they are."""
    view = prepare(decode(path, preprocess.channels), preprocess)
    points = sampling_points(model, normalise(view, preprocess).to(next(model.parameters()).device), place, levels)
    pixels = (view.expand(3, -1, -1).permute(1, 2, 0) * 255).round().byte().numpy()
    zoom = max(1, 448 // max(view.shape[1:]))
    picture = Image.fromarray(pixels).resize((view.shape[2] * zoom, view.shape[1] * zoom), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(picture)
    radius = max(2, picture.width // 150)

    def dot(y: float, x: float, colour: str, radius: int) -> None:
        x, y = (x + 0.5) * zoom, (y + 0.5) * zoom
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour, outline="black")

    for y, x in points.tolist():
        dot(y, x, "#D55E00", radius)
    dot(place[0] * view.shape[1] - 0.5, place[1] * view.shape[2] - 0.5, "#009E73", 2 * radius)
    picture.save(out)
    return len({(round(y), round(x)) for y, x in points.tolist()})
