r"""Generative Adversarial Nets. Goodfellow, Pouget-Abadie, Mirza, Xu, Warde-Farley, Ozair, Courville, Bengio.
2014. https://arxiv.org/abs/1406.2661

**Problem.** A model that writes down a likelihood pays for it: normalising constants that cannot be
summed, Markov chains that must mix, or a bound instead of the quantity itself.

**Idea.** Ask only for a sampler. A network $G$ turns noise into an image; a second network $D$ says how
probable it is that an image came from the data. They play one game (Eq. 1):

$$ \min_G \max_D V(D, G) = E_{x \sim p_{data}} \log D(x) + E_{z \sim p_z} \log(1 - D(G(z))) $$

For a fixed $G$ the best $D$ is $D^*(x) = p_{data}(x) / (p_{data}(x) + p_g(x))$ (Prop. 1), and there
$V(D^*, G) = 2\,\mathrm{JSD}(p_{data} \| p_g) - \log 4$ (Eq. 4-6): the game's only solution is $p_g = p_{data}$, where
$D = 1/2$ everywhere.

**Showed.** Samples of MNIST, the Toronto Face Database and CIFAR-10 without a Markov chain or inference; a
Parzen-window log-likelihood of 225 +- 2 on MNIST, against 214 of deep GSNs and 138 of a DBN (Tab. 1).

Sizes, ranges and rates are those of the authors' https://github.com/goodfeli/adversarial (mnist.yaml,
cifar10_convolutional.yaml, parzen_ll.py), trained there with pylearn2.

Differs from the paper in:
- The two players take turns, as Algorithm 1 says; the released code moves both at once.
- The discriminator's loss is the sum of Eq. 1; the released code halves it. The `paper` recipes give D
  half of the published learning rate, which for SGD is the same.
- The released code names no last epoch; the recipes stop where its momentum stops rising (250 epochs).
- CIFAR images are standardised by constants, not each by its own norm (`gcn: 55.` there).
- The Toronto faces (no longer distributed) and the fully connected CIFAR pair have no variant.

Reading order: `game` (the two players and what theory says of them), `networks`, `parzen` (how samples are scored).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from jingdu.data.images import load_image
from jingdu.data.preprocess import Preprocess
from jingdu.engine.contracts import Recipe, Stage
from jingdu.errors import UsageError
from jingdu.papers.generative.gan.game import (
    GAN,
    Marginals,
    discriminator_loss,
    generator_loss,
    jensen_shannon,
    optimal_discriminator,
    value,
)
from jingdu.papers.generative.gan.networks import (
    ConvDiscriminator,
    ConvGenerator,
    Discriminator,
    Generator,
    Maxout,
    MaxoutConv,
    NoiseToImage,
    draw,
    interpolations,
    maxout,
)
from jingdu.papers.generative.gan.parzen import SIGMAS, ParzenWindow
from jingdu.prediction import Prediction, origin_of

__all__ = [
    "GAN",
    "SIGMAS",
    "ConvDiscriminator",
    "ConvGenerator",
    "Discriminator",
    "Generator",
    "Marginals",
    "Maxout",
    "MaxoutConv",
    "NoiseToImage",
    "ParzenWindow",
    "build",
    "discriminator_loss",
    "draw",
    "generator_loss",
    "interpolations",
    "jensen_shannon",
    "maxout",
    "optimal_discriminator",
    "predict",
    "value",
]

VARIANTS: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    # mnist.yaml
    "gan_mnist_generator": (Generator, {}),
    "gan_mnist_discriminator": (Discriminator, {}),
    # cifar10_convolutional.yaml
    "gan_cifar_generator": (ConvGenerator, {}),
    "gan_cifar_discriminator": (ConvDiscriminator, {}),
    # Ours: the MNIST pair cut down to 8x8 images, with weaker dropout and weights for the smaller fan-in
    "gan_digits_generator": (Generator, {"image": (1, 8, 8), "hidden": (128, 128), "noise": 16, "irange": 0.15}),
    "gan_digits_discriminator": (
        Discriminator,
        {"image": (1, 8, 8), "hidden": (64, 64), "keep": (0.9, 0.8), "irange": 0.15},
    ),
}


def build(variant: str, **overrides: Any) -> nn.Module:
    """The network of a variant; overrides are the arguments of its class."""
    network, arguments = VARIANTS[variant]
    return network(**{**arguments, **overrides})


DIGITS = Preprocess(size=8, resize=8, channels=1)
GREY = Preprocess(size=28, resize=28, channels=1)
"""Not normalised: the generator's sigmoid draws in [0, 1]."""

# mnist.yaml and cifar10_convolutional.yaml: ExponentialDecay and MomentumAdjustor
RAMP = "exponential(factor=1.000004, minimum=1e-6, momentum_start=0.5, momentum_end=0.7, momentum_epochs=250)"
MNIST = "/path/to/mnist"

recipes = {
    "laptop": Recipe(
        stages=(
            Stage(
                system="gan.GAN(loss='non-saturating')",
                networks={"generator": "gan_digits_generator", "discriminator": "gan_digits_discriminator"},
                data="digits",
                preprocess=DIGITS,
                batch_size=100,
                steps=3000,
                optimizer="adam",
                lr=2e-3,
                betas=(0.5, 0.999),
                ema=0.998,
            ),
        ),
        minutes=0.5,
        expect={"log_likelihood": (23.0, 30.0), "d_real": (0.4, 0.7), "d_fake": (0.3, 0.6)},
        about="the MNIST pair cut down, on scikit-learn's digits; Adam and averaged weights, to be done in 3,000 steps",
    ),
    "paper": Recipe(
        stages=(
            Stage(name="marginals", method="fit", system="gan.Marginals", data=MNIST, preprocess=GREY, batch_size=1000),
            Stage(
                system="gan.GAN(loss='non-saturating')",
                networks={"generator": "gan_mnist_generator", "discriminator": "gan_mnist_discriminator"},
                data=MNIST,
                preprocess=GREY,
                batch_size=100,
                epochs=250,
                lr=0.1,
                momentum=0.5,
                schedule=RAMP,
                per_objective={"discriminator": {"lr": 0.05}},
                save_every=5000,
            ),
        ),
        minutes=600,
        expect={"log_likelihood": (205.0, 245.0)},
        about="mnist.yaml on a folder of MNIST images (--data FOLDER or hf:mnist); 225 +- 2 nats in Table 1",
    ),
    "cifar": Recipe(
        stages=(
            Stage(
                system="gan.GAN(loss='non-saturating')",
                networks={"generator": "gan_cifar_generator", "discriminator": "gan_cifar_discriminator"},
                data="hf:uoft-cs/cifar10",
                preprocess=Preprocess(32, 32, mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616)),
                batch_size=128,
                epochs=250,
                lr=0.004,
                momentum=0.5,
                schedule=RAMP,
                per_objective={"discriminator": {"lr": 0.002}},
                save_every=2000,
            ),
        ),
        minutes=1200,
        expect={"d_real": (0.5, 1.0), "d_fake": (0.0, 0.5)},
        machine="1 GPU",
        about="cifar10_convolutional.yaml; the paper shows its samples (Figure 2d) and gives no number",
    ),
}


# What a user does with it ---------------------------------------------------------------------------


def predict(
    model: nn.Module,
    inputs: Sequence[str],
    *,
    count: int = 64,
    seed: int = 0,
    out: Path = Path("samples.png"),
    interpolate: bool = False,
) -> Iterator[Prediction]:
    """A picture of samples (a generator, without inputs), or how real images look to a discriminator.

    Args:
        count: samples in the picture.
        seed: of the noise.
        out: the picture that is written.
        interpolate: each row walks in a straight line from one noise to another (Figure 3).
    """
    if not hasattr(model, "sample_noise"):
        return _judge(model, inputs)
    if inputs:
        raise UsageError(f"a generator draws from noise and reads no input: leave {inputs[0]!r} out")
    if count < 1:
        raise UsageError(f"count is {count}: give 1 or more")
    return _paint(model, count, seed, Path(out), interpolate)


def _paint(model: nn.Module, count: int, seed: int, out: Path, interpolate: bool) -> Iterator[Prediction]:
    columns = math.ceil(math.sqrt(count))
    source = torch.Generator(next(model.parameters()).device).manual_seed(seed)
    if interpolate:
        rows = math.ceil(count / columns)
        images = interpolations(model, rows, columns, source).flatten(0, 1)
        what = f"{rows} walks of {columns} images"
    else:
        images = draw(model, count, source)
        what = f"{count} samples"
    preprocess = origin_of(model).preprocess or Preprocess()
    mean, std = (images.new_tensor(values).view(-1, 1, 1) for values in (preprocess.mean, preprocess.std))
    _grid((images * std + mean).clamp(0, 1).cpu(), columns, out)
    yield Prediction("noise", f"{what}, seed {seed}: {out}", {"images": len(images), "seed": seed}, (out,))


def _grid(images: Float[Tensor, "count channels height width"], columns: int, out: Path) -> None:
    """Write images row by row, one black pixel apart, as a picture at least 512 pixels wide."""
    count, channels, height, width = images.shape
    rows = math.ceil(count / columns)
    page = torch.zeros(rows * columns, channels, height + 1, width + 1)
    page[:count, :, :height, :width] = images
    page = rearrange(page, "(r c) ch h w -> (r h) (c w) ch", r=rows)[:-1, :-1]
    picture = Image.fromarray((page.squeeze(2) * 255).round().byte().numpy())
    scale = max(1, math.ceil(512 / picture.width))
    picture = picture.resize((scale * picture.width, scale * picture.height), Image.Resampling.NEAREST)
    try:
        picture.save(out)
    except (OSError, ValueError) as error:  # ValueError: Pillow knows no format of that ending
        raise UsageError(f"cannot write {out} ({error}): choose another --out") from None


def _judge(model: nn.Module, inputs: Sequence[str]) -> Iterator[Prediction]:
    channels, side = model.image[0], model.image[1]
    preprocess = origin_of(model).preprocess or Preprocess()
    # The network fixes the size, whatever the training data's own was.
    preprocess = replace(preprocess, size=side, resize=preprocess.resize or side, channels=channels)
    with torch.no_grad():
        for name in inputs:
            image = load_image(name, preprocess).to(next(model.parameters()).device)
            d = model(image[None]).sigmoid().item()
            yield Prediction(name, f"D = {d:.3f} ({'data' if d > 0.5 else 'generated'})", {"d": d})
