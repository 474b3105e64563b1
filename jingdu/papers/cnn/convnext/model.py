"""The networks: four stages (Table 9), and one of a single width as ViT has it (Section 3.3)."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from jingdu.errors import UsageError
from jingdu.nn import check_images, each, quick_layout

from .layers import ConvNeXtBlock, Downsample, LayerNorm2d, Stem

__all__ = ["ConvNeXt", "Isotropic", "Pyramid", "Stage"]


@torch.no_grad()
def initialise(network: nn.Module, head: nn.Module, head_scale: float) -> None:
    """Appendix A.1: all weights are normal, 0.02, cut off; biases are zero; the head is made smaller by a factor."""

    def start(layer: nn.Module) -> None:
        nn.init.trunc_normal_(layer.weight, std=0.02)
        nn.init.zeros_(layer.bias)

    each(network, (nn.Conv2d, nn.Linear), start)
    if isinstance(head, nn.Linear):
        head.weight.mul_(head_scale)


def spread(drop: float | int, count: int) -> list[float]:
    """Rates of stochastic depth, from 0 at the first of `count` blocks to `drop` at the last."""
    return [drop * i / max(count - 1, 1) for i in range(count)]


class Stage(nn.Module):
    """Blocks of one width, behind a downsampling in all stages but the first."""

    def __init__(
        self, inputs: int | None, width: int, drops: Sequence[float], *, kernel: int, scale: float | None, eps: float
    ):
        super().__init__()
        self.downsample = None if inputs is None else Downsample(inputs, width, eps)
        self.blocks = nn.Sequential(*(ConvNeXtBlock(width, kernel, scale, drop, eps) for drop in drops))

    def forward(self, x: Float[Tensor, "batch inputs height w"]) -> Float[Tensor, "batch outputs less_height less_w"]:
        return self.blocks(x if self.downsample is None else self.downsample(x))


class ConvNeXt(nn.Module):
    """Patches, stages between which the side halves, the mean over the pixels, a norm, and a linear head.

    Args:
        num_classes: of the head; 0 has none, and gives what the head would read.
        depths: blocks of each stage.
        widths: channels of each stage.
        in_channels: of the images.
        patch: side of the stem's patches.
        kernel: side of the depthwise convolutions'.
        scale: where layer scale starts; None has none.
        drop: probability that an image skips the last block; earlier ones have less, evenly.
        head_scale: by which the head's first weights are multiplied; 0.001 in fine-tuning.
        eps: of the norms.
        head_eps: of the last one; None is as `eps`.

    Raises UsageError for depths and widths that do not belong together.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        depths: Sequence[int] = (3, 3, 9, 3),
        widths: Sequence[int] = (96, 192, 384, 768),
        in_channels: int = 3,
        patch: int = 4,
        kernel: int = 7,
        scale: float | None = 1e-6,
        drop: float | int = 0.0,
        head_scale: float | int = 1.0,
        eps: float = 1e-6,
        head_eps: float | None = None,
    ):
        super().__init__()
        if len(depths) != len(widths) or not depths:
            raise UsageError(f"depths {list(depths)} and widths {list(widths)}: each stage has one of both")
        self.channels = list(widths)
        """Of the maps that `features` gives."""
        self.smallest = patch * 2 ** (len(depths) - 1)
        self.stem = Stem(in_channels, widths[0], patch, eps)
        rates = iter(spread(drop, sum(depths)))
        self.stages = nn.ModuleList()
        for inputs, width, depth in zip((None, *widths), widths, depths, strict=False):
            drops = [next(rates) for _ in range(depth)]
            self.stages.append(Stage(inputs, width, drops, kernel=kernel, scale=scale, eps=eps))
        self.norm = nn.LayerNorm(widths[-1], eps if head_eps is None else head_eps)
        self.head = nn.Linear(widths[-1], num_classes) if num_classes else nn.Identity()
        initialise(self, self.head, head_scale)

    def features(self, x: Float[Tensor, "batch channels height width"]) -> list[Tensor]:
        """The maps behind each stage, shallow to deep: at strides 4, 8, 16 and 32. `self.channels` holds their channels.

        Raises UsageError for images smaller than one of the last map's pixels, and for what is no batch of pictures.
        """
        check_images(x, self.stem.conv, self.smallest)
        x, found = self.stem(quick_layout(x, fewest=1)), []
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        return found

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch out"]:
        return self.head(self.norm(self.features(x)[-1].mean((2, 3))))

    def layer_depth(self, name: str) -> int:
        """The depth of a parameter, for rates that decay from layer to layer (the authors' optim_factory.py).

        Three blocks of the third stage are a layer, as are all of another stage; a downsampling belongs to its stage's
        first one. So the three larger networks have twelve, behind the stem (0) and before the norm and the head (13).
        """
        part, *more = name.split(".")
        if part == "stem":
            return 0
        layers = [1] * len(self.stages)
        if len(layers) > 2:
            layers[2] = -(-len(self.stages[2].blocks) // 3)
        if part != "stages":
            return sum(layers) + 1
        stage = int(more[0])
        block = int(more[2]) if more[1] == "blocks" else 0
        return 1 + sum(layers[:stage]) + (block // 3 if stage == 2 else 0)


class Isotropic(nn.Module):
    """Section 3.3: patches of 16x16 pixels, and blocks of one width and at one side: what ViT is, of convolutions.

    Args:
        num_classes: of the head; 0 has none, and gives what the head would read.
        depth: blocks.
        width: channels.
        in_channels: of the images.
        patch: side of a patch.
        kernel: side of the depthwise convolutions'.
        scale: where layer scale starts; None has none.
        drop: probability that an image skips the last block; earlier ones have less, evenly.
        head_scale: by which the head's first weights are multiplied.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        depth: int = 18,
        width: int = 384,
        in_channels: int = 3,
        patch: int = 16,
        kernel: int = 7,
        scale: float | None = None,
        drop: float | int = 0.0,
        head_scale: float | int = 1.0,
    ):
        super().__init__()
        self.stem = nn.Conv2d(in_channels, width, patch, patch)
        self.blocks = nn.ModuleList(ConvNeXtBlock(width, kernel, scale, rate) for rate in spread(drop, depth))
        self.norm = nn.LayerNorm(width, 1e-6)
        self.head = nn.Linear(width, num_classes) if num_classes else nn.Identity()
        initialise(self, self.head, head_scale)

    def features(self, x: Float[Tensor, "batch channels height width"]) -> list[Tensor]:
        """The maps behind each block, all at the stride of a patch. Raises as `ConvNeXt.features`."""
        check_images(x, self.stem, self.stem.kernel_size[0])
        x, found = self.stem(quick_layout(x, fewest=1)), []
        for block in self.blocks:
            x = block(x)
            found.append(x)
        return found

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch out"]:
        check_images(x, self.stem, self.stem.kernel_size[0])
        x = self.stem(quick_layout(x, fewest=1))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x.mean((2, 3))))


class Pyramid(nn.Module):
    """Maps of some stages for detection and segmentation (Section 3.4): each with a norm of its own.

    Args:
        network: gives the maps.
        stages: which, from 0.
    """

    def __init__(self, network: ConvNeXt, stages: Sequence[int] = (0, 1, 2, 3)):
        super().__init__()
        self.network, self.stages = network, tuple(stages)
        self.channels = [network.channels[stage] for stage in self.stages]
        self.norms = nn.ModuleList(LayerNorm2d(width) for width in self.channels)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> list[Tensor]:
        """Maps [batch, channels, height / stride, width / stride], shallow to deep."""
        maps = self.network.features(x)
        return [norm(maps[stage]) for norm, stage in zip(self.norms, self.stages, strict=True)]
