r"""Dynamic Routing Between Capsules. Sabour, Frosst, Hinton. 2017. https://arxiv.org/abs/1710.09829

**Problem.** A neuron of a convolutional network says that something is there, and pools throw away where. That a nose and a
mouth lie as they do in a face is a matter of their poses, which a network must then learn anew for every viewpoint.

**Idea.** A capsule is a group of neurons whose output is a vector: its length says how probable it is that an entity is
there, its direction how it lies. Each capsule $u_i$ predicts those of the layer above by matrices, $\hat u_{j|i} = W_{ij}
u_i$, and sends its output where predictions agree. In a few rounds (Eq. 1-3, Procedure 1)

$$ c_i = \mathrm{softmax}_j(b_i), \quad s_j = \sum_i c_{ij}\,\hat u_{j|i}, \quad
   v_j = \frac{|s_j|^2}{1 + |s_j|^2}\frac{s_j}{|s_j|}, \quad b_{ij} \leftarrow b_{ij} + \hat u_{j|i} \cdot v_j $$

**Showed.** 0.25 % error on MNIST with three rounds, 0.39 % for a convolutional network with four times the weights; of two
digits that overlap 5.2 % are misread, not 8.1 % (Tab. 1); trained on shifted digits alone, 79 % of digits under affine
maps are read, not 66 % (Sec. 5.2).

Differs from the paper in:
- Gradients flow through all rounds, as in the authors' code (https://github.com/Sarasra/models, research/capsules). Ports
  that let them through the last round alone have `gradients="last"`.
- `authors` adds what that code has and the text has not: a bias for each component of the upper capsules, and primary
  capsules that go through one round of routing with equal shares themselves, which divides their input by 32.
- `leaky` is that code's option too: a share of each capsule may go to none of those above.
- The norm is safe at zero: a square root of a sum of squares has no gradient there.
- `grouping="mixed"` makes a capsule of 8 values that lie side by side in memory, so of one channel at neighbouring
  pixels, as a widespread port does (XifengGuo/CapsNet-Pytorch). Its weights need it.
- The text names no smaller networks: the ones for scikit-learn's digits are ours.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from PIL import Image
from torch import Tensor, nn

from jingdu.data import open_data
from jingdu.data.augment import random_affine, random_crop
from jingdu.data.base import Batch, Data
from jingdu.data.draws import Draws
from jingdu.data.images import expand_inputs, load_image
from jingdu.data.preprocess import Preprocess
from jingdu.engine.contracts import Recipe, Stage, System
from jingdu.errors import UsageError
from jingdu.nn import check_images
from jingdu.prediction import Prediction, origin_of

__all__ = [
    "BaselineCNN",
    "CapsNet",
    "Capsules",
    "Moved",
    "Overlapping",
    "build",
    "margin_loss",
    "moved",
    "overlapping",
    "perturbations",
    "predict",
    "route",
    "squash",
    "votes",
]

# Capsules (Sec. 2) ------------------------------------------------------------------------------------


def squash(s: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
    """Equation 1: the same direction, and a length below 1. At zero both it and its gradient are zero."""
    square = s.square().sum(-1, keepdim=True)
    return s * (square / (1 + square) * torch.rsqrt(square + 1e-20))


def votes(
    u: Float[Tensor, "batch inputs below"], weight: Float[Tensor, "outputs inputs dim below"]
) -> Float[Tensor, "batch outputs inputs dim"]:
    """Equation 2: what each capsule predicts of each one above. One product of matrices for each capsule below."""
    outputs, inputs, dim, below = weight.shape
    matrices = weight.permute(1, 3, 0, 2).reshape(inputs, below, outputs * dim)
    return torch.bmm(u.transpose(0, 1), matrices).unflatten(2, (outputs, dim)).permute(1, 2, 0, 3)


def route(
    votes: Float[Tensor, "batch outputs inputs dim"],
    rounds: int = 3,
    bias: Float[Tensor, "outputs dim"] | None = None,
    leaky: bool = False,
    gradients: Literal["all", "last"] = "all",
) -> tuple[Float[Tensor, "batch outputs dim"], Float[Tensor, "batch outputs inputs"]]:
    """Procedure 1: the capsules above, and with what shares those below were sent to them.

    Args:
        rounds: 1 sends everything to all alike.
        bias: added to s in each round (the authors' code).
        leaky: one more share, of a logit that stays 0, which goes nowhere.
        gradients: through all rounds, or the last alone.
    """
    if rounds < 1:
        raise UsageError(f"routing takes 1 round or more, not {rounds}")
    logits = votes.new_zeros(votes.shape[:3])
    for turn in range(rounds):
        last = turn == rounds - 1
        seen = votes.detach() if gradients == "last" and not last else votes
        # A capsule below divides itself among those above: the softmax is over them.
        spare = logits.new_zeros(len(logits), 1, logits.shape[2]) if leaky else logits[:, :0]
        shares = torch.cat((spare, logits), 1).softmax(1)[:, spare.shape[1] :]
        s = torch.matmul(shares[:, :, None], seen)[:, :, 0]
        v = squash(s if bias is None else s + bias)
        if not last:
            logits = logits + torch.matmul(seen, v[..., None])[..., 0]
    return v, shares


def margin_loss(
    lengths: Float[Tensor, "batch classes"], present: Float[Tensor, "batch classes"], down: float = 0.5
) -> Float[Tensor, " batch"]:
    """Equation 4: classes that are there should be longer than 0.9, the others, which count `down`, shorter than 0.1."""
    there = present * F.relu(0.9 - lengths).square()
    return (there + down * (1 - present) * F.relu(lengths - 0.1).square()).sum(1)


class CapsNet(nn.Module):
    """Figures 1 and 2: a convolution, primary capsules, one capsule for each class, and a decoder of what they say.

    Args:
        image: channels, height and width.
        conv: channels and kernel of conv1, with stride 1 and no padding.
        primary: types of primary capsules, components of each, kernel and stride.
        dim: components of a class' capsule.
        rounds: of routing.
        decoder: units of its two hidden layers; None: no decoder.
        authors, leaky, grouping, gradients: see the module's docstring and `route`.
    """

    def __init__(
        self,
        image: Sequence[int] = (1, 28, 28),
        num_classes: int = 10,
        conv: Sequence[int] = (256, 9),
        primary: Sequence[int] = (32, 8, 9, 2),
        dim: int = 16,
        rounds: int = 3,
        decoder: Sequence[int] | None = None,
        authors: bool = False,
        leaky: bool = False,
        grouping: Literal["channels", "mixed"] = "channels",
        gradients: Literal["all", "last"] = "all",
    ):
        super().__init__()
        self.image, self.rounds, self.authors, self.leaky = tuple(image), rounds, authors, leaky
        self.grouping, self.gradients = grouping, gradients
        channels, kernel = conv
        self.types, self.below, second, stride = primary
        self.conv1 = nn.Conv2d(image[0], channels, kernel)
        self.primary = nn.Conv2d(channels, self.types * self.below, second, stride)
        grid = [(side - kernel + 1 - second) // stride + 1 for side in image[1:]]
        if min(grid) < 1:
            raise UsageError(f"images of {image[1]} x {image[2]} pixels are too small for these kernels")
        self.weight = nn.Parameter(torch.empty(num_classes, self.types * grid[0] * grid[1], dim, self.below))
        self.bias = nn.Parameter(torch.zeros(num_classes, dim)) if authors else None
        self.decoder: nn.Module | None = None
        if decoder is not None:
            first, then = decoder
            self.decoder = nn.Sequential(
                nn.Linear(num_classes * dim, first), nn.ReLU(), nn.Linear(first, then), nn.ReLU(),
                nn.Linear(then, math.prod(image)), nn.Sigmoid(),
            )  # fmt: skip
        self.initialise()

    def initialise(self) -> None:
        """The authors' code: Gaussians of 0.05 for conv1, 0.1 for capsules, biases of 0.1. Convolutions here keep
        torch's own rule, which fits all sizes, and so does the decoder."""
        nn.init.normal_(self.weight, std=0.1)
        if self.bias is not None:
            nn.init.constant_(self.bias, 0.1)

    def primary_capsules(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch capsules below"]:
        """Section 4: 32 types at each of 6x6 places; a capsule's components are 8 channels at one place."""
        return self._capsules_of(self._rectified(x))

    def _rectified(self, x: Tensor) -> Tensor:
        check_images(x, self.conv1)
        if tuple(x.shape[1:]) != self.image:
            raise UsageError(
                f"images have shape {list(x.shape[1:])}: each place has its matrices, for {list(self.image)}"
            )
        return F.relu(self.conv1(x))

    def _capsules_of(self, x: Tensor) -> Tensor:
        if self.authors:
            share = 1 / (self.types + self.leaky)
            x = F.conv2d(x, self.primary.weight * share, self.primary.bias, self.primary.stride)
        else:
            x = self.primary(x)
        if self.grouping == "mixed":
            return squash(x.reshape(len(x), -1, self.below))
        return squash(x.unflatten(1, (self.types, self.below)).flatten(3).transpose(2, 3).flatten(1, 2))

    def features(self, x: Float[Tensor, "batch channels height width"]) -> list[Tensor]:
        """The rectified outputs of conv1, and the primary capsules [batch, capsules, components]."""
        x = self._rectified(x)
        return [x, self._capsules_of(x)]

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes dim"]:
        """The capsule of each class; its length says whether the class is there."""
        u = self.primary_capsules(x)
        return route(votes(u, self.weight), self.rounds, self.bias, self.leaky, self.gradients)[0]

    def reconstruct(
        self, capsules: Float[Tensor, "batch classes dim"], label: Int64[Tensor, " batch"] | None = None
    ) -> Float[Tensor, "batch channels height width"]:
        """Section 4.1: the image as the capsule of one class tells it, by default the longest; the others are masked.

        Raises UsageError without a decoder.
        """
        if self.decoder is None:
            raise UsageError("this network has no decoder: create one with decoder=(512, 1024)")
        label = capsules.norm(dim=-1).argmax(1) if label is None else label
        masked = capsules * F.one_hot(label, capsules.shape[1])[..., None]
        return self.decoder(masked.flatten(1)).unflatten(1, self.image)


class BaselineCNN(nn.Module):
    """Section 5.1: what capsules are compared with: three convolutions without pools, two dense layers, dropout."""

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 1,
        size: Sequence[int] = (28, 28),
        channels: Sequence[int] = (256, 256, 128),
        units: Sequence[int] = (328, 192),
        kernel: int = 5,
        stride: int = 1,
        dropout: float = 0.5,
    ):
        super().__init__()
        inputs, layers = in_channels, []
        for number, outputs in enumerate(channels):
            layers += [nn.Conv2d(inputs, outputs, kernel, stride if number else 1, kernel // 2), nn.ReLU()]
            inputs = outputs
        self.convolutions = nn.Sequential(*layers)
        sides = [math.ceil(side / stride ** (len(channels) - 1)) for side in size]
        self.fc1 = nn.Linear(inputs * sides[0] * sides[1], units[0])
        self.fc2, self.fc3 = nn.Linear(*units), nn.Linear(units[1], num_classes)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        x = F.relu(self.fc1(self.convolutions(x).flatten(1)))
        return self.fc3(self.dropout(F.relu(self.fc2(x))))


MNIST = {"decoder": (512, 1024)}

VARIANTS: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    # Section 4
    "capsnet_mnist": (CapsNet, {}),
    "capsnet_mnist_with_decoder": (CapsNet, MNIST),
    # The authors' code
    "capsnet_mnist_routing_bias": (CapsNet, {"authors": True}),
    "capsnet_mnist_routing_bias_with_decoder": (CapsNet, {**MNIST, "authors": True}),
    # Section 5.1
    "capsnet_baseline_cnn": (BaselineCNN, {}),
    # Ours, for digits of 8x8 pixels on a canvas of 12x12
    "capsnet_digits": (CapsNet, {"image": (1, 12, 12), "conv": (32, 5), "primary": (6, 8, 5, 2), "dim": 16}),
    "capsnet_digits_cnn": (
        BaselineCNN, {"size": (12, 12), "channels": (24, 32, 32), "units": (96, 48), "kernel": 5, "stride": 2},
    ),
}  # fmt: skip


def build(variant: str, **overrides: Any) -> nn.Module:
    """The network of a variant; overrides are the arguments of its class."""
    network, arguments = VARIANTS[variant]
    return network(**{**arguments, **overrides})


# What is learned (Sec. 3, 4.1) ------------------------------------------------------------------------


class Capsules(System):
    """The margin loss, and where there is a decoder the sum of squared differences of what it paints, times
    `reconstruction` (Sec. 4.1).

    `label` is [batch], or [batch, objects] with `parts` [batch, objects, channels, height, width] to be painted. Evaluation
    is the share of images whose longest capsules are not those of all their objects, and the squared difference a pixel.

    Args:
        scale: of the margin loss; the authors' code has 0.5.
    """

    def __init__(self, network: CapsNet, reconstruction: float | int = 0.0005, scale: float | int = 1):
        super().__init__()
        self.network, self.reconstruction, self.scale = network, reconstruction, scale
        self._forget()

    def _forget(self) -> None:
        self.count, self.wrong, self.squares, self.pixels = 0, 0, 0.0, 0

    def _measure(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
        """Margin losses and errors [batch], and squared differences summed over the pixels of all objects."""
        capsules = self.network(batch["image"])
        lengths = capsules.norm(dim=-1)
        labels = batch["label"].view(len(lengths), -1)
        present = F.one_hot(labels, lengths.shape[1]).sum(1)
        found = torch.zeros_like(present).scatter_(1, lengths.topk(labels.shape[1]).indices, 1)
        wrong = (found != present).any(1).float()
        squares = None
        if self.network.decoder is not None:
            parts = batch["parts"].unbind(1) if "parts" in batch else (batch["image"],)
            painted = [self.network.reconstruct(capsules, label) for label in labels.unbind(1)]
            squares = sum((a - b).square().flatten(1).sum(1) for a, b in zip(painted, parts, strict=True))
        return margin_loss(lengths, present.to(lengths)), wrong, squares

    def forward(self, batch: Batch, objective: str) -> tuple[Tensor, dict[str, Any]]:
        margin, wrong, squares = self._measure(batch)
        loss = self.scale * margin.mean()
        if squares is not None:
            loss = loss + self.reconstruction * squares.mean()
        return loss, {"error": wrong.mean()}

    def update(self, batch: Batch) -> None:
        _, wrong, squares = self._measure(batch)
        self.count += len(wrong)
        self.wrong += int(wrong.sum())
        if squares is not None:
            self.squares += float(squares.detach().double().sum())
            self.pixels += batch["label"].numel() * batch["image"][0].numel()

    def compute(self) -> dict[str, float]:
        if not self.count:
            raise UsageError("nothing to evaluate: the evaluation data gave no images")
        values = {"error": self.wrong / self.count}
        if self.pixels:
            values["reconstruction"] = self.squares / self.pixels
        self._forget()
        return values


# Images (Sec. 5, 6) -------------------------------------------------------------------------------


def _on_canvas(
    images: Float[Tensor, "batch channels height width"], canvas: int
) -> Float[Tensor, "batch channels {canvas} {canvas}"]:
    """Images in the middle of a black square."""
    spare = [canvas - side for side in images.shape[2:]]
    if min(spare) < 0:
        raise UsageError(f"images of {list(images.shape[2:])} pixels do not fit on a canvas of {canvas}")
    return F.pad(images, (spare[1] // 2, spare[1] - spare[1] // 2, spare[0] // 2, spare[0] - spare[0] // 2))


class Moved:
    """Images on a black canvas, shifted by whole pixels; or turned, scaled and shifted, which is what affNIST is of MNIST.

    `fixed` images are functions of the index alone; others of (seed, epoch, index).
    """

    def __init__(self, source: Data, canvas: int, shift: int, affine: bool, fixed: bool):
        self.source, self.canvas, self.shift, self.affine, self.fixed = source, canvas, shift, affine, fixed
        self.classes = source.classes

    def __len__(self) -> int:
        return len(self.source)

    def batch(self, indices: np.ndarray, draws: Draws) -> Batch:
        draws = Draws(0, 0, indices) if self.fixed else draws
        batch = self.source.batch(np.asarray(indices), draws)
        images = _on_canvas(batch["image"], self.canvas)
        if self.affine:
            images = random_affine(images, draws, 30, (0.8, 1.2), 0, self.shift / self.canvas)
        else:
            images = random_crop(images, draws, padding=self.shift)
        return {"image": images, "label": batch["label"]}


def moved(split: str, source: str = "digits", canvas: int = 12, shift: int = 2, affine: bool = False) -> Moved:
    """Images shifted by up to `shift` pixels on a black canvas (Sec. 5.1), new in every epoch; test images are fixed.

    Args:
        split: train or test.
        source: data by name, or a folder of images by class, which are read as grey.
        canvas: side in pixels.
        affine: turned by up to 30 degrees and scaled by 0.8 to 1.2 as well (Sec. 5.2).
    """
    return Moved(open_data(source, split, Preprocess(channels=1)), canvas, shift, affine, split == "test")


class Overlapping:
    """Two images of different classes, each shifted, on top of each other (Sec. 6): `image`, `label` [batch, 2], and the
    two alone, `parts` [batch, 2, 1, canvas, canvas]."""

    def __init__(self, source: Data, canvas: int, shift: int, fixed: bool):
        self.source, self.canvas, self.shift, self.fixed = source, canvas, shift, fixed
        self.classes = source.classes
        rows = np.arange(len(source))
        self.labels = source.batch(rows, Draws(0, 0, rows))["label"].numpy()

    def __len__(self) -> int:
        return len(self.source)

    def batch(self, indices: np.ndarray, draws: Draws) -> Batch:
        indices = np.asarray(indices)
        draws = Draws(0, 0, indices) if self.fixed else draws
        others = []
        for index, place in zip(indices, draws.uniform().tolist(), strict=True):
            different = np.flatnonzero(self.labels != self.labels[index])
            others.append(different[int(place * len(different))])
        parts, labels = [], []
        for rows in (indices, np.array(others)):
            batch = self.source.batch(rows, draws)
            parts.append(random_crop(_on_canvas(batch["image"], self.canvas), draws, padding=self.shift))
            labels.append(batch["label"])
        both = torch.stack(parts, 1)
        return {"image": both.sum(1).clamp(max=1), "label": torch.stack(labels, 1), "parts": both}


def overlapping(split: str, source: str = "digits", canvas: int = 12, shift: int = 2) -> Overlapping:
    """Pairs of overlapping images of different classes; new in every epoch for training. Arguments as of `moved`; the
    paper's MultiMNIST has a canvas of 36 and shifts of 4."""
    return Overlapping(open_data(source, split, Preprocess(channels=1)), canvas, shift, split == "test")


# What a capsule means (Sec. 5.1) --------------------------------------------------------------------


@torch.no_grad()
def perturbations(
    network: CapsNet, capsules: Float[Tensor, "classes dim"], reach: float = 0.25, steps: int = 11
) -> Float[Tensor, "dim steps channels height width"]:
    """Figure 4: the longest capsule's reconstruction, with one component at a time moved by -`reach` .. `reach`."""
    label = int(capsules.norm(dim=-1).argmax())
    dim = capsules.shape[1]
    moves = torch.linspace(-reach, reach, steps, device=capsules.device)
    changed = capsules.expand(dim, steps, *capsules.shape).clone()
    place = torch.arange(dim, device=capsules.device)
    changed[place, :, label, place] += moves
    labels = torch.full((dim * steps,), label, device=capsules.device)
    return network.reconstruct(changed.flatten(0, 1), labels).unflatten(0, (dim, steps))


PIXELS = Preprocess(channels=1)
"""As they are, in [0, 1]: the decoder paints them through a sigmoid."""

recipes = {
    "laptop": Recipe(
        stages=(
            Stage(
                system="capsnet.Capsules",
                networks={"network": "capsnet_digits(decoder=(64, 128))"},
                data="capsnet.moved",
                preprocess=PIXELS,
                batch_size=64,
                steps=900,
                optimizer="adam",
                lr=2e-3,
                schedule="onecycle",
            ),
        ),
        minutes=1,
        expect={"error": (0.0, 0.1)},
        about="small capsules on scikit-learn's digits, shifted on a canvas of 12x12 pixels",
    ),
    "paper": Recipe(
        stages=(
            Stage(
                system="capsnet.Capsules",
                networks={"network": "capsnet_mnist_with_decoder"},
                data="/path/to/mnist",
                preprocess=Preprocess(size=28, resize=28, channels=1),
                augment=("random_crop(padding=2)",),
                batch_size=128,
                epochs=1000,
                optimizer="adam",
                lr=1e-3,
                schedule="step(every=4.3, factor=0.96)",
                save_every=2000,
            ),
        ),
        minutes=24 * 60,
        expect={"error": (0.002, 0.005)},
        machine="1 GPU",
        about="Section 5 on a folder of MNIST images (--data FOLDER or hf:mnist), shifted by up to 2 pixels; 0.25 % error (Table 1)",
    ),
}


# What a user does with it -------------------------------------------------------------------------


def _write(images: Float[Tensor, "rows columns channels height width"], path: Path, enlarge: int = 4) -> None:
    """Images row by row, a white line between."""
    tiles = F.pad(images.float().cpu(), (0, 1, 0, 1), value=1.0)
    page = torch.cat([torch.cat(list(row), 2) for row in tiles], 1).clamp(0, 1)
    array = (page * 255).round().byte().permute(1, 2, 0).squeeze(2).numpy()
    picture = Image.fromarray(array)
    picture = picture.resize((enlarge * picture.width, enlarge * picture.height), Image.Resampling.NEAREST)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path, "PNG")
    except OSError as error:
        raise UsageError(f"cannot write {path} ({error}): choose another file") from None


def predict(
    model: CapsNet,
    inputs: Sequence[str],
    *,
    threshold: float = 0.5,
    out: Path | None = None,
    perturb: Path | None = None,
) -> Iterator[Prediction]:
    """The lengths of the classes' capsules: any number of them may be there, or none.

    Args:
        threshold: the length from which on a class is said to be there.
        out: a .png file to write: each image, and what the decoder paints of each class that is there.
        perturb: a .png file to write: what each component of the first image's longest capsule means (Figure 4).

    Raises UsageError for no inputs, or a picture asked of a network without a decoder.
    """
    if not inputs:
        raise UsageError("there are no inputs: name image files, or folders of them")
    origin, place = origin_of(model), next(model.parameters()).device
    preprocess = replace(origin.preprocess or PIXELS, size=model.image[1], resize=model.image[1])
    known = origin.classes
    model.eval()
    rows = []
    for path in expand_inputs(inputs):
        image = load_image(path, preprocess).to(place)
        with torch.no_grad():
            (capsules,) = model(image[None])
        lengths = capsules.norm(dim=-1)
        if perturb is not None and not rows:
            _write(perturbations(model, capsules), Path(perturb))
        found = [int(i) for i in lengths.argsort(descending=True)]
        names = {i: known[i] if known is not None and len(known) == len(lengths) else f"class {i}" for i in found}
        there = [i for i in found if lengths[i] >= threshold]
        with torch.no_grad():
            labels = [torch.tensor([i], device=place) for i in there] if out is not None else []
            painted = [model.reconstruct(capsules[None], label)[0] for label in labels]
        rows.append([image, *painted])
        lines = [str(path), *(f"  {lengths[i]:.3f}  {names[i]}{'  there' if i in there else ''}" for i in found[:5])]
        classes = [
            {"class": names[i], "index": i, "length": float(lengths[i]), "pose": capsules[i].tolist()} for i in found
        ]
        yield Prediction(str(path), "\n".join(lines), {"file": str(path), "present": len(there), "classes": classes})
    if perturb is not None:
        text = f"each row moves one of {model.weight.shape[2]} components"
        yield Prediction(str(perturb), text, {"components": model.weight.shape[2]}, (Path(perturb),))
    if out is not None:
        columns = max(map(len, rows))
        blank = torch.zeros_like(rows[0][0])
        _write(torch.stack([torch.stack([*row, *[blank] * (columns - len(row))]) for row in rows]), Path(out))
        yield Prediction(
            str(out), "images and what is painted of each class there", {"images": len(rows)}, (Path(out),)
        )
