"""What a network looks at (Section 4.5, Appendix D.7, D.8): attention maps, rollout, distances; alike positions."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from jingdu.data.images import expand_inputs, load_image, page, write_picture
from jingdu.data.preprocess import IMAGENET, Preprocess
from jingdu.errors import UsageError
from jingdu.papers.language.transformer import attention_weights
from jingdu.prediction import Prediction, origin_of

from .model import ViT

__all__ = [
    "attention_distance",
    "attention_maps",
    "overlay",
    "own_preprocess",
    "position_similarity",
    "rollout",
    "show_attention",
]


@torch.no_grad()
def attention_maps(
    network: ViT, images: Float[Tensor, "batch channels height width"]
) -> list[Float[Tensor, "batch heads tokens tokens"]]:
    """Each block's attention weights: row by query, column by key; the class token comes first."""
    found = []
    tokens = network.embed(images)
    for block in network.blocks:
        q, k, _ = block.attention.split(block.norm1(tokens))
        found.append(attention_weights(q, k))
        tokens = block(tokens)
    return found


def rollout(
    maps: list[Float[Tensor, "batch heads tokens tokens"]], grid: tuple[int, int]
) -> Float[Tensor, "batch down across"]:
    """How much of each patch reaches the class token through all blocks (Abnar and Zuidema 2020; Appendix D.7).

    Each block passes on half of what comes to it and half of what its heads, in the mean, gather.

    Args:
        maps: of `attention_maps`.
        grid: patches down and across.

    Returns shares that sum to one, or to less by what stays with the class token.
    """
    eye = torch.eye(maps[0].shape[-1], dtype=maps[0].dtype, device=maps[0].device)
    flow = eye
    for weights in maps:
        flow = (0.5 * weights.mean(1) + 0.5 * eye) @ flow
    return flow[:, 0, 1:].unflatten(1, grid)


def attention_distance(
    maps: list[Float[Tensor, "batch heads tokens tokens"]], grid: tuple[int, int], patch: int
) -> Float[Tensor, "depth heads"]:
    """Figure 7, right: the mean distance in pixels between a patch and those that it looks at, by block and head."""
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    places = torch.stack((rows.flatten(), columns.flatten()), 1).float() * patch
    apart = torch.cdist(places, places).to(maps[0])
    found = []
    for weights in maps:
        seen = weights[:, :, 1:, 1:]
        found.append(((seen * apart).sum(-1) / seen.sum(-1)).mean((0, 2)))
    return torch.stack(found)


@torch.no_grad()
def position_similarity(network: ViT) -> Float[Tensor, "down across down across"]:
    """Figure 7, centre: cosines between the positions of all patches."""
    table = torch.nn.functional.normalize(network.positions[0, 1:], dim=1)
    return (table @ table.T).unflatten(1, network.grid).unflatten(0, network.grid)


def overlay(
    image: Float[Tensor, "channels height width"], heat: Float[Tensor, "down across"]
) -> Float[Tensor, "3 height width"]:
    """Figure 6: an image in [0, 1] lit where the heat of its patches is high, and dark elsewhere."""
    heat = F.interpolate(heat[None, None], image.shape[1:], mode="bilinear", align_corners=False)[0]
    return image.expand(3, -1, -1) * (0.15 + 0.85 * heat / heat.max().clamp(min=1e-12))


def own_preprocess(model: ViT, preprocess: Preprocess | None) -> Preprocess:
    """How image files become a network's input: as `preprocess` says (ImageNet's by default), at the network's own size.

    Raises UsageError for a network whose images are no squares.
    """
    found = preprocess or IMAGENET
    if model.image_size[0] != model.image_size[1]:
        raise UsageError(f"this network takes images of {model.image_size}, and files are cut into squares")
    if found.size == model.image_size[0]:
        return found
    size, channels = model.image_size[0], model.patches.projection.in_channels
    resize = size if preprocess is not None and preprocess.size is None else None
    return Preprocess(size, resize, found.mean, found.std, found.interpolation, 1 if channels == 1 else 3)


def show_attention(model: ViT, inputs: Sequence[str], out: Path) -> Iterator[Prediction]:
    """A picture with a row for each image file: the image, rollout, and where the class token looks in the first,
    middle and last block (the mean of its heads).

    Raises UsageError for no inputs, for a network whose images are no squares, and where `out` cannot be written;
    BadInput for a file that is no image.
    """
    if not inputs:
        raise UsageError("there are no inputs: name image files, or folders of them")
    preprocess = own_preprocess(model, origin_of(model).preprocess)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (preprocess.mean, preprocess.std))
    place, chosen = next(model.parameters()).device, (0, (len(model.blocks) - 1) // 2, len(model.blocks) - 1)
    paths, rows, found = expand_inputs(inputs), [], []
    model.eval()
    for path in paths:
        image = load_image(path, preprocess)
        maps = attention_maps(model, image[None].to(place))
        heats = [rollout(maps, model.grid), *(maps[i].mean(1)[:, 0, 1:].unflatten(1, model.grid) for i in chosen)]
        shown = (image * std + mean).clamp(0, 1)
        rows.append([shown, *(overlay(shown, heat[0].float().cpu()) for heat in heats)])
        place_of_most = divmod(int(heats[0].argmax()), model.grid[1])
        found.append((path, place_of_most))
    write_picture(page(rows, side=224), out)
    blocks = ", ".join(str(i + 1) for i in chosen)
    for path, (down, across) in found:
        text = (
            f"{path}: the image, rollout (most from patch {down + 1} down, {across + 1} across), and the class token's "
            f"attention in blocks {blocks}"
        )
        data = {"file": str(path), "most": [down, across], "grid": list(model.grid), "blocks": [i + 1 for i in chosen]}
        yield Prediction(str(path), text, data, (out,))
