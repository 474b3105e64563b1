"""The game: its value and its optimum in densities, its losses in samples, and the System that plays it (Sec. 3-4)."""

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from jingdu.engine.contracts import Batch, Objective, System
from jingdu.errors import UsageError
from jingdu.papers.generative.gan.networks import draw
from jingdu.papers.generative.gan.parzen import ParzenWindow

GeneratorLoss = Literal["non-saturating", "minimax"]


# In densities (Sec. 4) -----------------------------------------------------------------------------


def optimal_discriminator(p_data: Float[Tensor, "*points"], p_g: Float[Tensor, "*points"]) -> Float[Tensor, "*points"]:
    """Proposition 1: D* = p_data / (p_data + p_g). Where both are zero, which no sample reaches, 1/2."""
    total = p_data + p_g
    return torch.where(total > 0, p_data / total, 0.5)


def value(
    d: Float[Tensor, "*points"], p_data: Float[Tensor, "*points"], p_g: Float[Tensor, "*points"], volume: float = 1.0
) -> Float[Tensor, ""]:
    """V(D, G) in nats (Eq. 3) for probabilities or densities on points that each stand for `volume`.

    A D or 1 - D of zero counts as the smallest positive float, so that its logarithm is finite.
    """
    smallest = torch.finfo(d.dtype).tiny
    real, fake = d.clamp_min(smallest), (1 - d).clamp_min(smallest)
    return volume * (torch.xlogy(p_data, real) + torch.xlogy(p_g, fake)).sum()


def jensen_shannon(p: Float[Tensor, "*points"], q: Float[Tensor, "*points"], volume: float = 1.0) -> Float[Tensor, ""]:
    """JSD(p || q) in nats (Eq. 6): 0 for equal distributions, log 2 for disjoint ones. `volume` as in `value`."""
    middle = (p + q) / 2
    to_middle = torch.xlogy(p, p) - torch.xlogy(p, middle) + torch.xlogy(q, q) - torch.xlogy(q, middle)
    return 0.5 * volume * to_middle.sum()


# In samples (Sec. 3, Algorithm 1) ------------------------------------------------------------------


def discriminator_loss(
    real: Float[Tensor, "*reals"], fake: Float[Tensor, "*fakes"], smoothing: float = 0.0
) -> Float[Tensor, ""]:
    """-V from logits: D ascends E log D(x) + E log(1 - D(G(z))) (Algorithm 1).

    With l the logit, log D = -softplus(-l) and log(1 - D) = -softplus(l), which never underflow.
    `smoothing` lowers the real target from 1 (one-sided; https://arxiv.org/abs/1606.03498, Sec. 3.4).
    """
    on_real = (
        F.softplus(-real) if smoothing == 0 else (1 - smoothing) * F.softplus(-real) + smoothing * F.softplus(real)
    )
    return on_real.mean() + F.softplus(fake).mean()


def generator_loss(fake: Float[Tensor, "*fakes"], kind: GeneratorLoss | str = "non-saturating") -> Float[Tensor, ""]:
    """What G descends, from D's logits on its samples.

    "minimax" is E log(1 - D(G(z))), G's half of Eq. 1; its gradient vanishes where D is sure.
    "non-saturating" is -E log D(G(z)): the same fixed point, strong gradients early (end of Sec. 3).
    """
    return -F.softplus(fake).mean() if kind == "minimax" else F.softplus(-fake).mean()


class GAN(System):
    """Algorithm 1: `k` updates of the discriminator, each on fresh data and noise, then one of the generator.

    Evaluation, on half of the images it is shown, is the paper's: the log-likelihood in nats under a
    Parzen window on `samples` samples, whose width the other half chooses (at most 1,000 images, as in
    parzen_ll.py); also the mean D on data and on samples.

    Args:
        generator: has `sample_noise(count, generator)` and maps noise to images.
        discriminator: maps images to logits [batch]; without batch norm, as real and fake share a pass.
        loss: the generator's.
        k: discriminator updates a step; 1 in the paper's experiments.
        smoothing: of the discriminator's real target.
        samples: size of the Parzen window.
        previous: finished stages; "marginals" sets where the generator's output starts.
    """

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        loss: GeneratorLoss | str = "non-saturating",
        k: int = 1,
        smoothing: float = 0.0,
        samples: int = 10_000,
        previous: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        if loss not in ("non-saturating", "minimax"):
            raise UsageError(f"GAN(loss={loss!r}): write loss='non-saturating' or loss='minimax'")
        if k < 1 or not 0 <= smoothing < 1:
            raise UsageError(f"GAN(k={k}, smoothing={smoothing}): k is at least 1 and smoothing in [0, 1)")
        self.generator, self.discriminator = generator, discriminator
        self.loss, self.smoothing, self.samples = loss, smoothing, samples
        self.objectives = (
            Objective("discriminator", parameters=("discriminator.",), updates=k),
            # The generator needs no data: the last batch only says how many samples to draw.
            Objective("generator", parameters=("generator.",), fresh=False),
        )
        if previous and "marginals" in previous:
            generator.start_at(previous["marginals"].mean)
        self.seen: list[Tensor] = []

    def forward(self, batch: Batch, objective: str) -> tuple[Tensor, dict[str, Any]]:
        real = batch["image"]
        noise = self.generator.sample_noise(len(real))
        if objective == "generator":
            logits = self.discriminator(self.generator(noise))
            return generator_loss(logits, self.loss), {"d_fake": logits.detach().sigmoid().mean()}
        with torch.no_grad():  # D's step sends nothing back to G
            fake = self.generator(noise)
        on_real, on_fake = self.discriminator(torch.cat([real, fake])).split(len(real))
        values = {"d_real": on_real.detach().sigmoid().mean(), "d_fake": on_fake.detach().sigmoid().mean()}
        return discriminator_loss(on_real, on_fake, self.smoothing), values

    def update(self, batch: Batch) -> None:
        self.seen.append(batch["image"])

    def compute(self) -> dict[str, float]:
        """Log-likelihood in nats with its standard error, the window's sigma, and mean D on data and samples.

        Raises ValueError for fewer than 4 images: half of them are the test.
        """
        real, self.seen = torch.cat(self.seen), []
        fake = draw(self.generator, self.samples, torch.Generator(real.device).manual_seed(0))
        held_out = real[::2][:: math.ceil(len(real) / 2000)]  # spread over all, as folders come sorted by class
        window = ParzenWindow.cross_validated(fake.flatten(1), held_out.flatten(1))
        mean, error = window.score(real[1::2].flatten(1))
        d_real = torch.cat([self.discriminator(part) for part in real.split(500)]).sigmoid().mean().item()
        d_fake = torch.cat([self.discriminator(part) for part in fake.split(500)]).sigmoid().mean().item()
        return {
            "log_likelihood": mean, "standard_error": error, "sigma": window.sigma, "d_real": d_real, "d_fake": d_fake,
        }  # fmt: skip


class Marginals:
    """The mean of every pixel, in one pass: a first stage whose result the generator's output bias starts at."""

    passes = 1

    def __init__(self) -> None:
        self.total, self.count = torch.zeros(()), 0

    @property
    def mean(self) -> Float[Tensor, "channels height width"]:
        return (self.total / self.count).float()

    def observe(self, batch: Batch, number: int) -> dict[str, Any]:
        images = batch["image"]
        self.total, self.count = self.total + images.double().sum(0).cpu(), self.count + len(images)
        return {"mean": self.mean.mean().item()}

    def end_pass(self, number: int) -> None:
        """Nothing is left to do after the pass."""

    def update(self, batch: Batch) -> None:
        """Marginals of the training images are not measured on others."""

    def compute(self) -> dict[str, float]:
        return {"mean": self.mean.mean().item()}

    def state_dict(self) -> dict[str, Any]:
        return {"total": self.total, "count": self.count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.total, self.count = state["total"], int(state["count"])
