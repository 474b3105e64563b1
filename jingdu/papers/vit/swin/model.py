"""The network of Figure 3: four stages, between which patches are merged."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from jingdu.errors import UsageError, unknown
from jingdu.nn import check_images, each
from jingdu.papers.vit.vit import PatchEmbed, ViTBlock, resize_positions

from .windows import Shift, Size, WindowAttention, resize_bias

__all__ = ["PatchMerging", "Pyramid", "Stage", "Swin", "attention_cost"]


class PatchMerging(nn.Module):
    """Section 3.1: each 2x2 neighbours, one behind the other, are mapped to one token of twice the width.

    They come column by column: (0, 0), (1, 0), (0, 1), (1, 1) of (row, column). A map with an odd side is padded.
    """

    def __init__(self, width: int, eps: float = 1e-5):
        super().__init__()
        self.norm = nn.LayerNorm(4 * width, eps)
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Float[Tensor, "batch height width channels"]) -> Float[Tensor, "batch h w more_channels"]:
        _, height, width, _ = x.shape
        if height % 2 or width % 2:
            x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
        x = x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2))  # [batch, h, 2, w, 2, channels]
        return self.reduction(self.norm(x.permute(0, 1, 3, 4, 2, 5).flatten(3)))


class Stage(nn.Module):
    """Blocks of one resolution, behind a merging of patches in all stages but the first.

    Every second block's windows are displaced by half a window (Equation 3).

    Args:
        width: of a token in the blocks.
        heads: of each attention.
        grid: tokens down and across of the maps that the stage is made for.
        window: side of a window; where the grid is smaller there is one window, of the grid's size.
        drops: probability that an image skips a branch, for each block.
        merge: whether the stage begins with a merging.
        shift: how windows are displaced; see `Shift`.
        options: what else `WindowAttention` takes (relative, biases, attention_dropout), and `ViTBlock`.
    """

    def __init__(
        self, width: int, heads: int, grid: Size, window: int, drops: Sequence[float], *, merge: bool, shift: Shift | str,
        eps: float, relative: bool, biases: bool, attention_dropout: float | int, **options: Any,
    ):  # fmt: skip
        super().__init__()
        self.merge = PatchMerging(width // 2, eps) if merge else None
        sides = (min(window, grid[0]), min(window, grid[1]))
        self.blocks = nn.ModuleList()
        for number, drop in enumerate(drops):
            looks = WindowAttention(
                width, heads, sides, shift=shift if number % 2 else "none", biases=biases, relative=relative,
                dropout=attention_dropout,
            )  # fmt: skip
            self.blocks.append(ViTBlock(width, heads, attention=looks, eps=eps, drop=drop, **options))

    def forward(self, x: Float[Tensor, "batch height width channels"]) -> Float[Tensor, "batch h w more_channels"]:
        if self.merge is not None:
            x = self.merge(x)
        for block in self.blocks:
            x = block(x)
        return x


class Swin(nn.Module):
    """Patches without a class token, stages of windowed attention, the mean of the last tokens, and a linear head.

    It takes images of any size of at least a patch; `image_size` says where a window is as large as the map. Pixels behind
    the last whole patch are left out.

    Args:
        num_classes: of the head; 0 has none, and gives what the head would read.
        image_size: side of the images in pixels, or height and width.
        patch: side of a patch.
        width: of a token in the first stage; it doubles from stage to stage.
        depths: blocks of each stage.
        heads: of the attentions of each stage.
        window: side of a window, in tokens.
        in_channels: of the images.
        positions: whether absolute positions are added to the patches (the ablation of Table 4); then images have `image_size`.
        shift: how windows are displaced; see `Shift`.
        relative: whether there is a bias by relative position.
        dropout: behind the patches, and in the blocks.
        drop: probability that an image skips a branch of the last block; earlier blocks have less, evenly.
        eps: of the norms.
        biases: of the projections to queries, keys and values.
        attention_dropout: of the attention weights.
        block: what `ViTBlock` takes further: ratio, activation.

    Raises UsageError for an image smaller than a patch, and another shift.
    """

    undecayed = ("positions",)
    """A table, as the windows' biases are: without weight decay (swin_transformer.py, no_weight_decay)."""

    def __init__(
        self,
        num_classes: int = 1000,
        image_size: int | Sequence[int] = 224,
        patch: int = 4,
        width: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        heads: Sequence[int] = (3, 6, 12, 24),
        window: int = 7,
        in_channels: int = 3,
        positions: bool = False,
        shift: Shift | str = "cyclic",
        relative: bool = True,
        dropout: float | int = 0.0,
        drop: float | int = 0.0,
        eps: float = 1e-5,
        biases: bool = True,
        attention_dropout: float | int = 0.0,
        **block: Any,
    ):
        super().__init__()
        if shift not in get_args(Shift):
            raise unknown("shift", str(shift), get_args(Shift))
        if len(depths) != len(heads):
            raise UsageError(f"depths are of {len(depths)} stages, heads of {len(heads)}")
        self.image_size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        self.patches = PatchEmbed(patch, width, in_channels)
        self.patch_norm = nn.LayerNorm(width, eps)
        self.grid: Size = (self.image_size[0] // patch, self.image_size[1] // patch)
        """Patches down and across."""
        if not all(self.grid):
            raise UsageError(f"images of {self.image_size[0]} x {self.image_size[1]} pixels have no patch of {patch}")
        self.positions = nn.Parameter(torch.empty(1, self.grid[0] * self.grid[1], width)) if positions else None
        self.dropout = nn.Dropout(dropout)
        rates = [drop * (i / max(sum(depths) - 1, 1)) for i in range(sum(depths))]
        self.stages = nn.ModuleList()
        grid = self.grid
        for number, (depth, count) in enumerate(zip(depths, heads, strict=True)):
            if number:
                grid = (-(-grid[0] // 2), -(-grid[1] // 2))
            start = sum(depths[:number])
            self.stages.append(Stage(
                width << number, count, grid, window, rates[start : start + depth], merge=number > 0, shift=shift, eps=eps,
                relative=relative, biases=biases, attention_dropout=attention_dropout, dropout=dropout, **block,
            ))  # fmt: skip
        self.channels = [width << number for number in range(len(depths))]
        """Of the maps that `features` gives."""
        self.norm = nn.LayerNorm(self.channels[-1], eps)
        self.head = nn.Linear(self.channels[-1], num_classes) if num_classes else nn.Identity()
        self.initialise()

    def initialise(self) -> None:
        """As the authors' code: linear weights and positions N(0, 0.02), cut off at two; zero biases."""
        each(self, nn.Linear, lambda layer: nn.init.trunc_normal_(layer.weight, std=0.02))
        each(self, nn.Linear, lambda layer: layer.bias is None or nn.init.zeros_(layer.bias))
        self.patches.projection.reset_parameters()  # a convolution is left as torch has it
        if self.positions is not None:
            nn.init.trunc_normal_(self.positions, std=0.02)

    def embed(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch down across token_width"]:
        """The patches of images, normalised, as a map."""
        check_images(x, self.patches.projection, self.patches.patch)
        down, across = (side // self.patches.patch for side in x.shape[2:])
        if self.positions is not None and (down, across) != self.grid:
            raise UsageError(
                f"images are {x.shape[2]} x {x.shape[3]}, and this network has positions for {self.image_size[0]} x "
                f"{self.image_size[1]}: create it with image_size=, which interpolates them"
            )
        tokens = self.patch_norm(self.patches(x))
        if self.positions is not None:
            tokens = tokens + self.positions
        return self.dropout(tokens).unflatten(1, (down, across))

    def features(self, x: Float[Tensor, "batch channels height width"]) -> list[Tensor]:
        """The map of every stage, [batch, channels, height, width], shallow to deep: strides 4, 8, 16, 32; not normalised.

        `self.channels` holds their channel counts. Raises UsageError for what is no batch of pictures.
        """
        found, x = [], self.embed(x)
        for stage in self.stages:
            x = stage(x)
            found.append(x.permute(0, 3, 1, 2))
        return found

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch out"]:
        x = self.embed(x)
        for stage in self.stages:
            x = stage(x)
        return self.head(self.norm(x).mean((1, 2)))

    @property
    def resized(self) -> Mapping[str, Callable[[Tensor], Tensor]]:
        """What loading may fit to the network's size, and how: biases of other windows, positions of other images."""
        found: dict[str, Callable[[Tensor], Tensor]] = {
            "positions": lambda table: resize_positions(table, self.grid, first=0)
        }
        for name, module in self.named_modules():
            if isinstance(module, WindowAttention):
                found[f"{name}.table"] = lambda table, window=module.window: resize_bias(table, window)
        return found


class Pyramid(nn.Module):
    """Maps for detectors and UPerNet (Section 4.2, 4.3): those of some stages, each behind a norm of its own.

    Args:
        network: the backbone; its own last norm and head are not used.
        stages: which, from 0.
    """

    def __init__(self, network: Swin, stages: Sequence[int] = (0, 1, 2, 3)):
        super().__init__()
        self.network = network
        self.norms = nn.ModuleDict({str(n): nn.LayerNorm(network.channels[n], network.norm.eps) for n in stages})

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> list[Tensor]:
        """[batch, channels, height, width] of each stage, shallow to deep."""
        maps = self.network.features(x)
        return [norm(maps[int(n)].permute(0, 2, 3, 1)).permute(0, 3, 1, 2) for n, norm in self.norms.items()]


def attention_cost(tokens: int, width: int, window: int | None = None) -> int:
    r"""Equations 1 and 2: multiplications of one attention over `tokens`, $4 n C^2 + 2 n^2 C$, in windows $4 n C^2 + 2 M^2 n C$.

    Args:
        tokens: of the map, n = hw.
        width: of a token, C.
        window: side M of a window; None looks at all tokens.
    """
    return 4 * tokens * width**2 + 2 * (tokens if window is None else window**2) * tokens * width
