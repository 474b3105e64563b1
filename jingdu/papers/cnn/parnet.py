r"""Non-deep Networks. Goyal, Bochkovskiy, Deng, Koltun. 2021. https://arxiv.org/abs/2110.07641

**Problem.** Layers wait for each other: however many processors there are, a network takes at least its depth in
steps. Are the dozens of layers of accurate networks needed?

**Idea.** Go wide in structure instead: three streams of a few layers each, at three resolutions, that do not wait for each
other and are fused once near the end, so that the longest way from picture to class is 12 layers. Within a layer, branches
that a single convolution can hold in the end: in training a block is (Fig. 2a, after RepVGG; $z$ is the batch norm of $x$)

$$ y = \mathrm{SiLU}\big(\mathrm{BN}(w_3 * x) + \mathrm{BN}(w_1 * x) + z \cdot \sigma(W \bar z)\big), $$

where the skip branch's squeeze and excitation (SSE, $\bar z$ is the mean over the picture) looks at all of it without a
layer more. Afterwards both convolutions and their norms are one 3x3 convolution (Sec. 3.3).

**Showed.** Over 80 % top-1 on ImageNet, 96 % on CIFAR-10 and 81 % on CIFAR-100 with a depth of 12; 48 AP on COCO with it as
the backbone (abstract). The streams run on three GPUs, or in parallel on one.

Differs from the paper in:
- The activation is SiLU as in the text. The authors' released configurations say `[[swish]]`, which their code, as it is
  published, does not take for `swish`: it builds ReLUs. `nondeepnetworks/parnet_s` and its like are that network, for their files.
- Widths of S are 92, 192, 384, as in the released configuration.
- Sides of pictures are multiples of 32: of others, the two branches of a downsampling block differ by a pixel.
- RandAugment and random erasing are not in the recipes (they are other papers', which are not here yet).
- Streams in parallel on one GPU (`parallel`), and on several (`spread`), are written and not measured: this was made on CPUs.
"""

import copy
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from jingdu.data.preprocess import IMAGENET, Preprocess
from jingdu.engine.contracts import Recipe, Stage
from jingdu.errors import UsageError
from jingdu.nn import check_images, each, quick_layout
from jingdu.papers.cnn.alexnet import classify
from jingdu.prediction import Prediction

__all__ = [
    "Block", "ConvNorm", "Fusion", "ParNet", "build", "depth", "fuse", "fused_kernel", "interleave", "predict", "shuffle",
    "spread",
]  # fmt: skip

Activation = Literal["silu", "relu"]

# Blocks (Sec. 3.1) ---------------------------------------------------------------------------------------


class ConvNorm(nn.Module):
    """A convolution without bias and its batch norm."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Float[Tensor, "batch inputs height width"]) -> Float[Tensor, "batch outputs h w"]:
        return self.bn(self.conv(x))

    def folded(self) -> tuple[Tensor, Tensor]:
        """Kernel and bias of the convolution that does both in evaluation."""
        scale = self.bn.weight / (self.bn.running_var + self.bn.eps).sqrt()
        return self.conv.weight * scale[:, None, None, None], self.bn.bias - self.bn.running_mean * scale


def shuffle(
    x: Float[Tensor, "batch channels height width"], groups: int
) -> Float[Tensor, "batch channels height width"]:
    """The first channel of every group, the second of every group, .. (ShuffleNet): so the next groups see all."""
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


def interleave(
    a: Float[Tensor, "batch channels height width"], b: Float[Tensor, "batch channels height width"]
) -> Float[Tensor, "batch twice_channels height width"]:
    """Concatenated, a channel of one and a channel of the other: a first half of groups sees half of both."""
    return torch.stack((a, b), 2).flatten(1, 2)


class Block(nn.Module):
    """Figure 2: the RepVGG-SSE block (a), and for another width or size the downsampling (b) and fusion (c) blocks.

    Args:
        inputs: channels.
        outputs: channels. With as many as inputs and no stride, there is a skip branch, which is squeezed and excited
            (a). Otherwise all of it is multiplied by twice the excitation of the input (b, c).
        stride: 1 or 2; the 1x1 convolution of a stride 2 sees the means of 2x2 pixels.
        groups: of all convolutions; their channels are shuffled afterwards (c).
        sse: whether there is squeeze and excitation.
        activation: SiLU is the text's.
        fused: one 3x3 convolution with bias in place of both and their norms.
    """

    def __init__(
        self, inputs: int, outputs: int, stride: int = 1, groups: int = 1, sse: bool = True,
        activation: Activation = "silu", fused: bool = False,
    ):  # fmt: skip
        super().__init__()
        self.groups = groups
        self.activation = {"silu": F.silu, "relu": F.relu}[activation]
        self.point = self.pooled = self.skip = self.squeeze = None
        if fused:
            self.dense: nn.Module = nn.Conv2d(inputs, outputs, 3, stride, 1, groups=groups)
        else:
            self.dense = ConvNorm(inputs, outputs, 3, stride, groups)
            branch = ConvNorm(inputs, outputs, 1, 1, groups)
            if stride == 1:
                self.point = branch
            else:
                self.pooled = branch
        if inputs == outputs and stride == 1:
            self.skip = nn.BatchNorm2d(inputs)
        if sse:
            self.squeeze = nn.Conv2d(inputs, outputs, 1, groups=groups, bias=False)

    def excite(self, x: Float[Tensor, "batch inputs height width"]) -> Float[Tensor, "batch outputs 1 1"]:
        """The sigmoid of a linear map of the means over the picture; there is no nonlinearity between."""
        return self.squeeze(x.mean((2, 3), keepdim=True)).sigmoid()

    def forward(self, x: Float[Tensor, "batch inputs height width"]) -> Float[Tensor, "batch outputs h w"]:
        y = self.dense(x)
        if self.point is not None:
            y = y + self.point(x)
        if self.pooled is not None:
            y = y + self.pooled(F.avg_pool2d(x, 2))
        if self.skip is not None:
            z = self.skip(x)
            y = y + z if self.squeeze is None else torch.addcmul(y, z, self.excite(z))
        elif self.squeeze is not None:
            y = y * (2 * self.excite(x))
        y = self.activation(y, inplace=not torch.is_grad_enabled())
        return shuffle(y, self.groups) if self.groups > 1 else y


class Fusion(nn.Module):
    """Figure 2c: two maps of one size are normalised each, interleaved, and go through a block of two groups."""

    def __init__(self, inputs: int, outputs: int, stride: int, **options: Any):
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(inputs)
        self.block = Block(2 * inputs, outputs, stride, groups=2, **options)

    def forward(
        self, own: Float[Tensor, "batch inputs height width"], above: Float[Tensor, "batch inputs height width"]
    ) -> Float[Tensor, "batch outputs h w"]:
        return self.block(interleave(self.bn1(own), self.bn2(above)))


# The network (Sec. 3.2) ----------------------------------------------------------------------------------


class ParNet(nn.Module):
    """Figure 3: three downsampling steps feed three streams, whose results meet from the finest on.

    Args:
        widths: channels of the three streams, and of the last block.
        blocks: of each stream.
        sse: whether blocks squeeze and excite (Tab. 8 is without).
        streams: how many of the three there are, from the coarsest (Tab. 9).
        activation: SiLU is the text's.
        dropout: before the dense layer.
        fused: in the form for use; see `fuse`.
    """

    def __init__(
        self, widths: Sequence[int] = (92, 192, 384, 1280), blocks: Sequence[int] = (4, 5, 5), sse: bool = True, streams: int = 3,
        activation: Activation = "silu", dropout: float = 0.0, fused: bool = False, num_classes: int = 1000, in_channels: int = 3,
    ):  # fmt: skip
        super().__init__()
        if not 1 <= streams <= len(blocks) or len(widths) != len(blocks) + 1:
            raise UsageError(
                f"{streams} streams of {len(blocks)}, {len(widths)} widths: one for each, and one for the last block"
            )
        options: dict[str, Any] = {"sse": sse, "activation": activation, "fused": fused}
        *inner, last = widths
        steps = [in_channels, min(64, inner[0]), *inner]
        self.initial = nn.ModuleList(Block(a, b, 2, **options) for a, b in pairwise(steps))
        self.first = len(blocks) - streams
        """The number of the finest stream that there is."""
        self.streams = nn.ModuleList(
            nn.Sequential(*(Block(width, width, **options) for _ in range(count if number >= self.first else 0)))
            for number, (width, count) in enumerate(zip(inner, blocks, strict=True))
        )
        rest = inner[self.first :]
        self.down = Block(rest[0], rest[1], 2, **options) if streams > 1 else None
        self.fusions = nn.ModuleList(Fusion(a, b, 2, **options) for a, b in pairwise(rest[1:]))
        if streams > 1:
            self.fusions.append(Fusion(rest[-1], rest[-1], 1, **options))
        self.last = Block(rest[-1], last, 2, **options)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(last, num_classes)
        self.multiple = 4 << len(inner)
        self.channels = [*inner, last]
        self.parallel = False
        """Run the streams side by side, where the picture is on a GPU."""
        self.initialise()

    def initialise(self) -> None:
        """He initialisation by fan-out; biases start at zero."""
        each(self, nn.Conv2d, lambda m: nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu"))
        each(self, nn.Conv2d, lambda m: None if m.bias is None else nn.init.zeros_(m.bias))

    def _streams(self, maps: list[Tensor]) -> list[Tensor]:
        """Each stream of its map; on a GPU, with `parallel`, at the same time; on several GPUs (`spread`) too."""
        places = [next(stream.parameters(), x).device for stream, x in zip(self.streams, maps, strict=True)]
        alone = not self.parallel or maps[0].device.type != "cuda" or len(set(places)) > 1
        if alone:  # what a GPU is told to do does not wait for another
            moved = (stream(x.to(place)) for stream, x, place in zip(self.streams, maps, places, strict=True))
            return [y.to(maps[0].device, non_blocking=True) for y in list(moved)]
        now = torch.cuda.current_stream(places[0])
        queues = [torch.cuda.Stream(places[0]) for _ in maps]
        found = []
        for queue, stream, x in zip(queues, self.streams, maps, strict=True):
            queue.wait_stream(now)
            with torch.cuda.stream(queue):
                found.append(stream(x))
        for queue in queues:
            now.wait_stream(queue)
        return found

    def features(self, x: Float[Tensor, "batch channels height width"]) -> list[Tensor]:
        """The streams' maps from fine to coarse, at strides 4, 8, 16 (less where there are fewer), and the last, at 32.

        Raises UsageError for pictures whose sides are no multiples of 32.
        """
        first = self.initial[0].dense
        check_images(x, first.conv if isinstance(first, ConvNorm) else first)
        if x.shape[2] % self.multiple or x.shape[3] % self.multiple:
            raise UsageError(f"pictures of {x.shape[2]} x {x.shape[3]} pixels: sides are multiples of {self.multiple}")
        x, maps = quick_layout(x), []
        for number, block in enumerate(self.initial):
            x = block(x)
            if number:
                maps.append(x)
        found = self._streams(maps)[self.first :]
        y = found[0]
        if self.down is not None:
            y = self.down(y)
            for fusion, own in zip(self.fusions, found[1:], strict=True):
                y = fusion(own, y)
        return [*found, self.last(y)]

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        return self.fc(self.dropout(self.features(x)[-1].mean((2, 3))))


def spread(network: ParNet, devices: Sequence[torch.device | str]) -> ParNet:
    """Put each stream on a device of its own (Sec. 3.4), in place; all else on the first. Raises UsageError for another number."""
    if len(devices) != len(network.streams):
        raise UsageError(f"{len(network.streams)} streams need as many devices, not {len(devices)}")
    network.to(devices[0])
    for stream, device in zip(network.streams, devices, strict=True):
        stream.to(device)
    return network


# The form for use (Sec. 3.3) -----------------------------------------------------------------------------


@torch.no_grad()
def fused_kernel(block: Block) -> tuple[Tensor, Tensor]:
    """Kernel and bias of the 3x3 convolution that a block's two convolutions and their norms are in evaluation.

    A 1x1 kernel is the middle of a 3x3 one. Behind a mean of 2x2 pixels, it is a quarter of itself on each of the four that
    a kernel of stride 2 sees at its lower right.
    """
    kernel, bias = block.dense.folded()
    if block.point is not None:
        small, more = block.point.folded()
        return kernel + F.pad(small, (1, 1, 1, 1)), bias + more
    small, more = block.pooled.folded()
    return kernel + F.pad(small.expand(-1, -1, 2, 2) / 4, (1, 0, 1, 0)), bias + more


def fuse(network: nn.Module) -> nn.Module:
    """A copy in evaluation mode whose blocks have one convolution each; it computes the same. Fused blocks stay."""
    network = copy.deepcopy(network).eval()
    blocks = [m for m in network.modules() if isinstance(m, Block) and isinstance(m.dense, ConvNorm)]
    for block in blocks:
        old = block.dense.conv
        conv = nn.Conv2d(old.in_channels, old.out_channels, 3, old.stride, 1, groups=old.groups).to(old.weight)
        with torch.no_grad():
            for target, value in zip((conv.weight, conv.bias), fused_kernel(block), strict=True):
                target.copy_(value)
        block.dense, block.point, block.pooled = conv, None, None
    return network


def depth(network: nn.Module, x: Tensor) -> int:
    """Layers with weights on the longest way from the input to the output, which is what a network is deep (Sec. 1).

    Convolutions and dense layers count, as autograd saw them; layers side by side count once. `x` is an input.
    """
    with torch.enable_grad():
        root = network(x.requires_grad_()).grad_fn
    longest: dict[Any, int] = {}
    waiting = [root]
    while waiting:
        node = waiting[-1]
        before = [edge for edge, _ in node.next_functions if edge is not None]
        unknown = [edge for edge in before if edge not in longest]
        if unknown:
            waiting += unknown
            continue
        own = node.name().startswith(("Convolution", "MkldnnConvolution", "Addmm"))
        longest[node] = own + max((longest[edge] for edge in before), default=0)
        waiting.pop()
    return longest[root]


SIZES: dict[str, dict[str, Any]] = {
    # Table A1; S as released
    "parnet_s": {"widths": (92, 192, 384, 1280)},
    "parnet_m": {"widths": (128, 256, 512, 2048)},
    "parnet_l": {"widths": (160, 320, 640, 2560), "dropout": 0.1},
    "parnet_xl": {"widths": (200, 400, 800, 3200), "dropout": 0.1},
}
VARIANTS: dict[str, dict[str, Any]] = {
    **{name: {**options, "fused": True} for name, options in SIZES.items()},
    **{f"{name}_train": options for name, options in SIZES.items()},
    # Ours, for pictures of 32x32
    "parnet_scenes": {"widths": (12, 24, 48, 96), "num_classes": 8},
}


def build(variant: str, **overrides: Any) -> ParNet:
    """The network of a variant; overrides are the arguments of `ParNet`."""
    return ParNet(**{**VARIANTS[variant], **overrides})


SCENES = Preprocess(size=32, resize=32, mean=(0.391, 0.384, 0.377), std=(0.2, 0.2, 0.2))
"""Mean of the pixels of `scenes`, and one number for the scale of the rest."""

recipes = {
    "laptop": Recipe(
        stages=(
            Stage(
                networks={"network": "parnet_scenes"},
                data="scenes(fields=('image', 'label'))",
                preprocess=SCENES,
                augment=("random_crop(padding=2)", "flip"),
                batch_size=32,
                steps=1200,
                lr=0.1,
                schedule="cosine(warmup=50)",
                weight_decay=1e-4,
            ),
        ),
        minutes=3,
        expect={"error": (0.0, 0.06)},
        about="a narrow ParNet of depth 12 tells the largest shape in 4,000 scenes of 32x32 pixels",
    ),
    "paper": Recipe(
        stages=(
            Stage(
                system="classification(label_smoothing=0.1)",
                networks={"network": "parnet_s_train"},
                data="imagenet",
                preprocess=IMAGENET,
                crop="vgg.scale_jitter(low=256, high=480)",
                augment=("flip",),
                batch_size=1024,
                epochs=120,
                lr=0.4,
                schedule="cosine",
                weight_decay=1e-4,
                ema=0.9999,
                precision="bf16",
                channels_last=True,
                workers=8,
                save_every=1000,
                evaluate_every=10_000,
            ),
        ),
        minutes=2 * 24 * 60,
        expect={"error": (0.24, 0.30)},
        machine="8 GPUs",
        about="Appendix A on an ImageNet folder (--data): SGD, cosine, label smoothing, 120 epochs (200 for XL). The released "
        "scripts say a rate of 0.001 for a batch of 1024, without scaling it, at which SGD hardly moves; this one is ResNet's in "
        "proportion, and untested at this scale",
    ),
}


def predict(
    model: ParNet, inputs: Sequence[str], *, top: int = 5, crops: Literal["centre", "ten"] = "centre"
) -> Iterator[Prediction]:
    """The most probable classes of image files, by the fused network.

    Args:
        top: how many classes to give.
        crops: one centre crop, or the average of ten.
    """
    quick = fuse(model)
    quick.origin = model.origin
    return classify(quick, inputs, top=top, crops=crops)
