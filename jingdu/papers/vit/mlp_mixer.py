r"""MLP-Mixer: An all-MLP Architecture for Vision. Tolstikhin, Houlsby, Kolesnikov, Beyer, Zhai, Unterthiner, Yung, Steiner,
Keysers, Uszkoreit, Lucic, Dosovitskiy. 2021. https://arxiv.org/abs/2105.01601

**Problem.** Convolutions, and then attention, rule vision: both bring ways to gather what lies at other places of an image.
Are they needed, or is a network of plain matrix multiplications enough where there is much data?

**Idea.** A layer of a vision network mixes features at one place, or between places, or does both at once. Do the two one
after the other, each by an MLP of two layers. The image is a table $X$ of $S$ patches times $C$ channels, as in ViT; one MLP
acts on its columns and is the same for all channels, one on its rows and is the same for all patches (Eq. 1):

$$ U_{*,i} = X_{*,i} + W_2\, \sigma(W_1\, \mathrm{LN}(X)_{*,i}), \quad
   Y_{j,*} = U_{j,*} + W_4\, \sigma(W_3\, \mathrm{LN}(U)_{j,*}) $$

Places need no code: the first MLP's weights belong to places. The cost is linear in the number of patches.

**Showed.** Pre-trained on 303 million photos, Mixer-H/14 has 87.94 % on ImageNet, close to ViT and BiT (Tab. 2); with more
data it gains more than they do (Fig. 2). It does not care in what order patches, and pixels in them, come (Fig. 4).

Differs from the paper in:
- The MLPs have the exact GELU, as timm's; the authors' code has its approximation (`activation="gelu_tanh"`). What is read
  from the authors' .npz files has that.
- MLPs start as ViT's (Glorot's uniform weights), in place of LeCun's normal ones.
- For a larger image the text gives W1 and W2 copies on the diagonal, and not which patches make a block: here each copy sees
  one tile of the image, as the network saw its images before.
- `mlp_mixer_mini` is ours.
- The recipe for ImageNet has RandAugment as DeiT has it.
"""

import copy
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int64
from torch import Tensor, nn

from jingdu.data import open_data
from jingdu.data.base import Batch, Data
from jingdu.data.draws import Draws, generator, permutation
from jingdu.data.preprocess import Preprocess
from jingdu.engine.contracts import Recipe, Stage
from jingdu.errors import BadInput, UsageError, unknown
from jingdu.nn import check_images, each
from jingdu.papers.cnn.alexnet import classify
from jingdu.papers.cnn.nas.cells import drop_path
from jingdu.papers.vit.vit.layers import MLP, PatchEmbed
from jingdu.prediction import Prediction, origin_of

__all__ = [
    "Across", "MLPMixer", "MixerBlock", "Shuffled", "TokenMLP", "build", "enlarge", "permute", "permuted", "predict",
    "read_weights", "shuffled", "tiles",
]  # fmt: skip

# The network (Sec. 2) ---------------------------------------------------------------------------------


class Across(nn.Linear):
    """A linear layer along the tokens: every channel's column of the table goes through the same matrix.

    Its weight stands to the left of the table, so that neither the table nor the result has to be transposed.
    """

    def forward(self, x: Float[Tensor, "batch inputs width"]) -> Float[Tensor, "batch outputs width"]:
        bias = self.bias[:, None]
        if len(x) == 1:  # which has no batch to share between threads
            return torch.addmm(bias, self.weight, x[0])[None]
        return torch.baddbmm(bias, self.weight.expand(len(x), -1, -1), x)


class TokenMLP(MLP):
    """ViT's MLP, along the tokens.

    Its last bias is a number a patch, the same for all channels: every norm takes it out again, so it changes no output.

    Args:
        tokens: rows of the table.
        inner: units between the layers.
        activation: gelu, or gelu_tanh.
        dropout: behind each layer.
    """

    def __init__(self, tokens: int, inner: int, activation: str = "gelu", dropout: float | int = 0.0):
        super().__init__(tokens, inner, activation, dropout)
        self.expand, self.contract = Across(tokens, inner), Across(inner, tokens)


class MixerBlock(nn.Module):
    """Equation 1: one MLP across patches, one across channels, each with a norm before it and a shortcut around it.

    Args:
        patches: S, rows of the table.
        width: C, its columns.
        tokens: D_S, units of the MLP across patches.
        channels: D_C, units of the MLP across channels.
        activation: of both.
        dropout: of both.
        drop: probability that an image skips a branch in training (stochastic depth).
    """

    def __init__(
        self, patches: int, width: int, tokens: int, channels: int, activation: str = "gelu", dropout: float | int = 0.0,
        drop: float | int = 0.0,
    ):  # fmt: skip
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, 1e-6), nn.LayerNorm(width, 1e-6)
        self.tokens = TokenMLP(patches, tokens, activation, dropout)
        self.channels = MLP(width, channels, activation, dropout)
        self.drop = drop

    def forward(self, x: Float[Tensor, "batch patches width"]) -> Float[Tensor, "batch patches width"]:
        rate = self.drop if self.training else 0.0
        x = x + drop_path(self.tokens(self.norm1(x)), rate)
        return x + drop_path(self.channels(self.norm2(x)), rate)


class MLPMixer(nn.Module):
    """Figure 1: patches, blocks, a norm, the mean over the patches, and a linear head. No class token, no positions.

    Args:
        num_classes: of the head; 0 has none, and gives what the head would read.
        image_size: side of the images in pixels, or height and width. The weights are those of this many patches.
        patch: side of a patch.
        width: C, of a token.
        depth: blocks.
        in_channels: of the images.
        tokens: D_S, units of the MLPs across patches; None is half the width, as in all of Table 1.
        channels: D_C, units of the MLPs across channels; None is four times the width.
        activation: gelu, or gelu_tanh as in the authors' code.
        dropout: of the MLPs.
        drop: probability that an image skips a branch of the last block; earlier blocks have less, evenly.

    Raises UsageError for an image that patches do not divide.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        image_size: int | Sequence[int] = 224,
        patch: int = 16,
        width: int = 768,
        depth: int = 12,
        in_channels: int = 3,
        tokens: int | None = None,
        channels: int | None = None,
        activation: str = "gelu",
        dropout: float | int = 0.0,
        drop: float | int = 0.0,
    ):
        super().__init__()
        self.image_size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        if any(side % patch or side < patch for side in self.image_size):
            raise UsageError(
                f"images of {self.image_size[0]} x {self.image_size[1]} pixels do not divide into patches of {patch}: "
                "choose another image_size or patch"
            )
        self.grid = tuple(side // patch for side in self.image_size)
        """Patches down and across."""
        self.patches = PatchEmbed(patch, width, in_channels)
        inner = (width // 2 if tokens is None else tokens, 4 * width if channels is None else channels)
        self.blocks = nn.ModuleList(
            MixerBlock(self.grid[0] * self.grid[1], width, *inner, activation, dropout, drop * i / max(depth - 1, 1))
            for i in range(depth)
        )
        self.norm = nn.LayerNorm(width, 1e-6)
        self.head = nn.Linear(width, num_classes) if num_classes else nn.Identity()
        self.initialise()

    def initialise(self) -> None:
        """MLPs as ViT's: Glorot's uniform weights, near-zero biases. The head starts at zero (Sec. 2)."""

        def start(mlp: nn.Module) -> None:
            for layer in (mlp.expand, mlp.contract):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.normal_(layer.bias, std=1e-6)

        each(self, MLP, start)
        if isinstance(self.head, nn.Linear):
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    def _check(self, x: Tensor) -> None:
        check_images(x, self.patches.projection, self.patches.patch)
        here, size = tuple(x.shape[2:]), self.image_size
        if here == size:
            return
        times = here[0] // size[0]
        inner = self.blocks[0].tokens.expand.out_features if len(self.blocks) else 0
        remedy = (
            f"create it with image_size={list(here)} and tokens={times**2 * inner}, which copies them for each tile"
            if here == (times * size[0], times * size[1])
            else "resize the images; only a whole multiple of both sides can have the same weights"
        )
        raise UsageError(
            f"images are {here[0]} x {here[1]}, and this network's weights belong to the patches of {size[0]} x {size[1]}: "
            + remedy
        )

    def features(self, x: Float[Tensor, "batch channels height width"]) -> list[Tensor]:
        """The tokens behind each block, [batch, patches, width], shallow to deep; the last ones are not normalised.

        Raises UsageError for images of another size, and for what is no batch of pictures.
        """
        self._check(x)
        tokens, found = self.patches(x), []
        for block in self.blocks:
            tokens = block(tokens)
            found.append(tokens)
        return found

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch out"]:
        self._check(x)
        tokens = self.patches(x)
        for block in self.blocks:
            tokens = block(tokens)
        return self.head(self.norm(tokens).mean(1))

    @property
    def resized(self) -> Mapping[str, Callable[[Tensor], Tensor]]:
        """What loading may fit to the network's size, and how: the MLPs across patches, to images of several tiles."""
        parts = ("expand.weight", "expand.bias", "contract.weight", "contract.bias")
        return {
            f"blocks.{i}.tokens.{part}": partial(
                enlarge, grid=self.grid, part=part, units=block.tokens.expand.out_features
            )
            for i, block in enumerate(self.blocks)
            for part in parts
        }


# Larger images (appendix on fine-tuning) --------------------------------------------------------------


def tiles(grid: Sequence[int], times: int) -> Int64[Tensor, "tiles patches"]:
    """Which patches of an image lie in each of `times` x `times` equal tiles, row by row.

    Args:
        grid: patches of the whole image, down and across.
        times: tiles a side.

    Raises UsageError where tiles would cut patches.
    """
    if times < 1 or any(side % times for side in grid):
        raise UsageError(f"{grid[0]} x {grid[1]} patches do not divide into {times} x {times} tiles")
    places = torch.arange(grid[0] * grid[1]).view(*grid)
    return rearrange(places, "(a h) (b w) -> (a b) (h w)", a=times, b=times)


def enlarge(tensor: Tensor, grid: Sequence[int], part: str, units: int) -> Tensor:
    """A tensor of an MLP across the patches of a small image, for one whose sides are several times as long.

    Weights get copies on their diagonal, one a tile, and zeros elsewhere; so the network begins as the old one on each tile,
    with the mean of their tokens at its head. Its MLPs have as many times more units as there are tiles.

    Args:
        tensor: of the small network.
        grid: patches of the large image, down and across.
        part: expand.weight [units, patches], expand.bias [units], contract.weight [patches, units], contract.bias [patches].
        units: of the large network's MLP.

    Raises UsageError where the large image is no square number of small ones, or `units` not as many times as large.
    """
    small = {"expand.weight": tensor.shape[-1], "contract.bias": len(tensor), "contract.weight": len(tensor)}.get(part)
    ratio = units / len(tensor) if small is None else grid[0] * grid[1] / small
    times = round(ratio**0.5)
    if times**2 != ratio or units % times**2:
        raise UsageError(
            f"the MLP of {list(tensor.shape)} cannot be copied for {grid[0]} x {grid[1]} patches and {units} units"
        )
    places = tiles(grid, times)
    if part == "expand.bias":
        return tensor.repeat(times**2)
    if part == "contract.bias":
        return torch.empty_like(places.flatten(), dtype=tensor.dtype).index_copy_(
            0, places.flatten(), tensor.repeat(times**2)
        )
    weight = tensor if part == "expand.weight" else tensor.T
    found = weight.new_zeros(times**2 * len(weight), places.numel())
    for tile, columns in enumerate(places):
        found[tile * len(weight) : (tile + 1) * len(weight), columns] = weight
    return found if part == "expand.weight" else found.T.contiguous()


# Permuted images (Sec. 3.3, Fig. 4) -------------------------------------------------------------------


def permute(
    images: Float[Tensor, "batch channels height width"],
    patch: int,
    patches: Int64[Tensor, " count"] | None = None,
    pixels: Int64[Tensor, " inside"] | None = None,
) -> Float[Tensor, "batch channels height width"]:
    """Images whose patches, and the pixels in each of them, come in another order, the same for all images.

    With patches of one pixel, `patches` is an order of all pixels.

    Args:
        images: whose sides patches divide.
        patch: side of a patch in pixels.
        patches: for each place, row by row, the patch that comes there; None leaves them.
        pixels: for each place in a patch the pixel that comes there; None leaves them.
    """
    height = images.shape[2] // patch
    table = rearrange(images, "b c (h p) (w q) -> b c (h w) (p q)", p=patch, q=patch)
    table = table if patches is None else table[:, :, patches]
    table = table if pixels is None else table[..., pixels]
    return rearrange(table, "b c (h w) (p q) -> b c (h p) (w q)", h=height, p=patch)


@torch.no_grad()
def permuted(
    network: MLPMixer, patches: Int64[Tensor, " count"] | None = None, pixels: Int64[Tensor, " inside"] | None = None
) -> MLPMixer:
    """A copy whose weights are permuted so that it gives for permuted images what the network gives for the images.

    That there is one, and that at the start it is as probable as the network, is why Mixer learns from permuted images as
    well as from others. No such copy exists of a convolution.

    Args:
        network: stays as it is.
        patches: as in `permute`.
        pixels: as in `permute`.
    """
    found = copy.deepcopy(network)
    if pixels is not None:
        kernel = found.patches.projection.weight
        kernel.copy_(kernel.flatten(2)[..., pixels].view_as(kernel))
    for block in found.blocks if patches is not None else ():
        into, out = block.tokens.expand, block.tokens.contract
        into.weight.copy_(into.weight[:, patches])
        out.weight.copy_(out.weight[patches])
        out.bias.copy_(out.bias[patches])
    return found


How = Literal["original", "patches", "pixels"]
"""As they are; patches and the pixels in each of them in another order; all pixels in another order."""


class Shuffled:
    """Images of other data in another order of their pixels, the same for all; or the first of a shuffled series."""

    def __init__(self, source: Data, how: How, patch: int, seed: int, rows: np.ndarray):
        self.source, self.how, self.patch, self.seed, self.rows = source, how, patch, seed, rows
        self.classes = source.classes

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: np.ndarray, draws: Draws) -> Batch:
        batch = self.source.batch(self.rows[np.asarray(indices)], draws)
        images = batch["image"]
        size = 1 if self.how == "pixels" else self.patch
        random = generator(self.seed)
        count = images[0, 0].numel() // size**2
        if self.how != "original":
            patches, pixels = torch.randperm(count, generator=random), torch.randperm(size**2, generator=random)
            batch = {**batch, "image": permute(images, size, patches, pixels)}
        return batch


def shuffled(
    split: str,
    of: str = "digits",
    how: How | str = "patches",
    patch: int = 2,
    count: int | None = None,
    seed: int = 0,
    channels: Literal[1, 3] = 1,
) -> Shuffled:
    """Labelled images whose patches, and pixels in them, are in one other order.

    Args:
        split: train or test.
        of: data by name, or a folder of images by class.
        how: see `How`.
        patch: side of a patch in pixels.
        count: how many training images, drawn by `seed`; a larger number holds a smaller one's. None: all.
        seed: of the order, and of the draw.
        channels: 1 or 3.

    Raises UsageError for another `how`, a count that is not there, and what `open_data` raises.
    """
    if how not in get_args(How):
        raise unknown("order", str(how), get_args(How))
    source = open_data(of, split, Preprocess(channels=channels))
    wanted = len(source) if count is None or split != "train" else count
    if not 1 <= wanted <= len(source):
        raise UsageError(f"shuffled(count={count}): {of} has {len(source)} training images")
    rows = permutation(seed, 0, len(source))[:wanted]
    return Shuffled(source, how, patch, seed, rows)


# Sizes (Tab. 1) ---------------------------------------------------------------------------------------

SMALL = {"width": 512, "depth": 8}
LARGE = {"width": 1024, "depth": 24}

VARIANTS: dict[str, dict[str, Any]] = {
    # Table 1; first is what `create("mlp_mixer")` gives, and what the authors published beside L/16
    "mlp_mixer_b16": {},
    "mlp_mixer_s32": {**SMALL, "patch": 32},
    "mlp_mixer_s16": SMALL,
    "mlp_mixer_b32": {"patch": 32},
    "mlp_mixer_l32": {**LARGE, "patch": 32},
    "mlp_mixer_l16": LARGE,
    "mlp_mixer_h14": {"width": 1280, "depth": 32, "patch": 14},
    # Ours, for digits of 8x8 pixels
    "mlp_mixer_mini": {
        "width": 48, "depth": 3, "patch": 2, "image_size": 8, "in_channels": 1, "num_classes": 10,
    },
}  # fmt: skip


def build(variant: str, **overrides: Any) -> MLPMixer:
    """The network of a variant; overrides are the arguments of `MLPMixer`."""
    return MLPMixer(**{**VARIANTS[variant], **overrides})


def read_weights(path: Path) -> tuple[Mapping[str, Any], Mapping[str, Tensor]] | None:
    """The sizes and tensors of one of the authors' files (.npz); None for files of other formats.

    Its names are those of flax (MixerBlock_0/token_mixing/Dense_0/kernel); its matrices are [in, out], its patches' kernel
    is [patch, patch, channels, width]. The network has their tanh form of GELU. Raises BadInput where it is damaged.
    """
    if path.suffix != ".npz" or not zipfile.is_zipfile(path):
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: torch.from_numpy(np.asarray(file[name], dtype=np.float32)) for name in file.files}
        stem, head = arrays["stem/kernel"], arrays["head/kernel"]
        depth = len({name.partition("/")[0] for name in arrays if name.startswith("MixerBlock_")})
        first = "MixerBlock_0/{}_mixing/Dense_0/kernel"
        patches, tokens = arrays[first.format("token")].shape
        channels = arrays[first.format("channel")].shape[1]
        found = {
            "patches.projection.weight": stem.permute(3, 2, 0, 1), "patches.projection.bias": arrays["stem/bias"],
            "norm.weight": arrays["pre_head_layer_norm/scale"], "norm.bias": arrays["pre_head_layer_norm/bias"],
            "head.weight": head.T, "head.bias": arrays["head/bias"],
        }  # fmt: skip
        for i in range(depth):
            for number, mlp in enumerate(("token", "channel")):
                norm, ours = f"MixerBlock_{i}/LayerNorm_{number}", f"blocks.{i}.norm{number + 1}"
                found |= {f"{ours}.weight": arrays[f"{norm}/scale"], f"{ours}.bias": arrays[f"{norm}/bias"]}
                for place, layer in enumerate(("expand", "contract")):
                    dense, ours = f"MixerBlock_{i}/{mlp}_mixing/Dense_{place}", f"blocks.{i}.{mlp}s.{layer}"
                    found |= {f"{ours}.weight": arrays[f"{dense}/kernel"].T, f"{ours}.bias": arrays[f"{dense}/bias"]}
    except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
        raise BadInput(path, f"no Mixer of vision_transformer's code ({error})") from None
    sizes = {
        "num_classes": head.shape[1], "patch": stem.shape[0], "width": stem.shape[3], "in_channels": stem.shape[2],
        "depth": depth, "tokens": tokens, "channels": channels, "image_size": round(patches**0.5) * stem.shape[0],
        "activation": "gelu_tanh",
    }  # fmt: skip
    return sizes, {name: x.contiguous() for name, x in found.items()}


# Training and use -------------------------------------------------------------------------------------

HALF = Preprocess(size=224, resize=224, mean=(0.5,) * 3, std=(0.5,) * 3)
"""The authors' preprocessing: pixels from -1 to 1."""
DIGITS = Preprocess(size=8, resize=8, mean=(0.305,), std=(0.376,), channels=1)
"""Mean and deviation of the training digits' pixels."""

recipes = {
    "laptop": Recipe(
        stages=(
            Stage(
                networks={"network": "mlp_mixer_mini"},
                data="digits",
                preprocess=DIGITS,
                batch_size=64,
                epochs=30,
                optimizer="adamw",
                lr=2e-3,
                weight_decay=0.1,
                schedule="cosine(warmup=30)",
                clip=1.0,
            ),
        ),
        minutes=0.3,
        expect={"error": (0.0, 0.06)},
        about="three blocks over sixteen patches of scikit-learn's digits",
    ),
    "paper": Recipe(
        stages=(
            Stage(
                name="pre-training",
                system="deit.MixedClassification(mixup=0.5, cutmix=0, label_smoothing=0)",
                networks={"network": "mlp_mixer_b16(drop=0.1)"},
                data="imagenet",
                preprocess=HALF,
                crop="vgg.scale_jitter(low=224, high=480)",
                augment=("flip", "deit.rand_augment(magnitude=15)"),
                batch_size=4096,
                epochs=300,
                optimizer="adamw",
                lr=1e-3,
                weight_decay=0.1,
                schedule="linear(warmup=10000)",
                clip=1.0,
                workers=8,
                save_every=2000,
            ),
        ),
        minutes=3 * 24 * 60,
        expect={"error": (0.23, 0.30)},
        machine="8 TPU chips",
        about="Table 3: ImageNet alone, from an ImageNet folder (--data); the paper's best weights saw 303 million photos",
    ),
}


def predict(model: MLPMixer, inputs: Sequence[str], *, top: int = 5) -> Iterator[Prediction]:
    """The most probable classes of image files. Weights that say nothing of it see pixels from -1 to 1, as the authors'.

    Args:
        top: how many classes to give.
    """
    origin = origin_of(model)
    if origin.preprocess is None and model.patches.projection.in_channels == 3:
        side = model.image_size[0]
        model.origin = replace(origin, preprocess=replace(HALF, size=side, resize=side))
    return classify(model, inputs, top=top)
