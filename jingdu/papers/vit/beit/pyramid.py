"""To segmentation (Section 3.2): four maps of different sizes, out of tokens that all have the patches' size."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from jingdu.errors import UsageError

from .model import BEiT

__all__ = ["Pyramid"]


class Pyramid(nn.Module):
    """Tokens of four blocks as maps at strides of 4, 8, 16 and 32 pixels, for patches of 16 (backbone/beit.py).

    Shallow ones are enlarged by transposed convolutions, the deepest is halved by a max-pool: what UPerNet, or any head
    over a pyramid of features, takes.

    Args:
        width: of a token.
    """

    def __init__(self, width: int):
        super().__init__()
        self.four = nn.Sequential(
            nn.ConvTranspose2d(width, width, 2, 2),
            nn.BatchNorm2d(width),
            nn.GELU(),
            nn.ConvTranspose2d(width, width, 2, 2),
        )
        self.two = nn.ConvTranspose2d(width, width, 2, 2)
        self.down = nn.MaxPool2d(2)

    def forward(
        self, network: BEiT, x: Float[Tensor, "batch channels height width"], blocks: Sequence[int] | None = None
    ) -> list[Tensor]:
        """Maps [batch, width, height, width] of images, the largest first.

        Args:
            network: whose tokens.
            x: images.
            blocks: four, from 0 and shallow to deep; by default after each quarter of them.
        """
        depth = len(network.blocks)
        blocks = [depth * quarter // 4 - 1 for quarter in range(1, 5)] if blocks is None else blocks
        if len(blocks) != 4:
            raise UsageError(f"a pyramid has four maps, and {len(blocks)} blocks were named")
        tokens = network.features(x)
        maps = [tokens[i][:, 1:].transpose(1, 2).unflatten(2, network.grid) for i in blocks]
        return [self.four(maps[0]), self.two(maps[1]), maps[2], self.down(maps[3])]
