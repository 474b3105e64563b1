"""What a network looks at (Section 4.5, Appendix D.7, D.8): attention maps, rollout, distances; alike positions."""

import torch
from jaxtyping import Float
from torch import Tensor

from jingdu.papers.language.transformer import attention_weights

from .model import ViT

__all__ = ["attention_distance", "attention_maps", "position_similarity", "rollout"]


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
