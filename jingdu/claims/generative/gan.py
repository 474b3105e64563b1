"""GAN's claims: what the theory says of the end of the game, and the likelihood of its samples."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from jingdu.lab import Lab, Outcome, Test, claim
from jingdu.lab.style import PALETTE
from jingdu.papers.generative.gan import (
    DIGITS,
    GAN,
    ParzenWindow,
    draw,
    jensen_shannon,
    optimal_discriminator,
    recipes,
    value,
)

# The end of the game --------------------------------------------------------------------------------

MEAN, STD = 3.0, 0.5
"""Of the data, a Gaussian on the line; the generator starts near N(0, 1)."""
GRID = torch.linspace(-4, 7, 2201)
ROUNDS, BATCH = 4000, 256


class Affine(nn.Module):
    """a z + b of normal noise."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.ones(1)), nn.Parameter(torch.zeros(1))

    def sample_noise(self, count: int, generator: torch.Generator | None = None) -> Float[Tensor, "count 1"]:
        return torch.randn(count, 1, generator=generator)

    def forward(self, z: Float[Tensor, "count 1"]) -> Float[Tensor, "count 1"]:
        return self.a * z + self.b


class Small(nn.Module):
    """Two hidden layers; logits."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))

    def forward(self, x: Float[Tensor, "count 1"]) -> Float[Tensor, " count"]:
        return self.layers(x).squeeze(1)


def normal(x: Tensor, mean: float, std: float) -> Tensor:
    """The density of N(mean, std^2)."""
    return torch.exp(-0.5 * ((x - mean) / std) ** 2) / (std * math.sqrt(2 * math.pi))


def play(seed: int, rounds: int) -> Iterator[tuple[int, GAN]]:
    """Algorithm 1 with Adam, whose rate falls to zero in a line; the system after every 20th round."""
    generator = torch.Generator().manual_seed(seed)
    system = GAN(Affine(), Small())
    players = [torch.optim.Adam(network.parameters(), 5e-3, (0.5, 0.99))
               for network in (system.discriminator, system.generator)]  # fmt: skip
    for step in range(rounds):
        batch = {"image": MEAN + STD * torch.randn(BATCH, 1, generator=generator)}
        for optimizer, objective in zip(players, system.objectives, strict=True):
            optimizer.param_groups[0]["lr"] = 5e-3 * (1 - step / rounds)
            loss, _ = system(batch, objective.name)
            grads = torch.autograd.grad(loss, list(getattr(system, objective.name).parameters()))
            for p, grad in zip(getattr(system, objective.name).parameters(), grads, strict=True):
                p.grad = grad
            optimizer.step()
        if step % 20 == 19 or step == rounds - 1:
            yield step + 1, system


# The margins are the canon's; set on 2026-11-24, before the first run.
@claim(
    "Where the game ends, the samples have the data's distribution, D is one half everywhere, and V(D, G) is -log 4.",
    source="Prop. 1 and Theorem 1, Sec. 4",
    tests=(
        Test("game.distance_of_d", 0, below=0.05, about="the mean D on data and samples is within 0.05 of one half"),
        Test("game.distance_of_v", 0, below=0.1, about="V(D, G) is within 0.1 nats of -log 4"),
        Test("game.distance_of_identity", 0, below=1e-3, about="V(D*, G) is 2 JSD - log 4, by integration"),
    ),
    seeds=5,
    minutes=1.0,
    about="A Gaussian on the line, an affine generator and a small discriminator: both densities are known, so that "
    "D* and the Jensen-Shannon divergence are too.",
)
def equilibrium(lab: Lab, seed: int) -> dict[str, dict[str, float]]:
    steps, values, divergences = [], [], []
    for step, system in play(seed, lab.budget(full=ROUNDS, smoke=40)):
        a, b = abs(system.generator.a.item()), system.generator.b.item()
        p_data, p_g = normal(GRID, MEAN, STD), normal(GRID, b, a)
        width = (GRID[1] - GRID[0]).item()
        with torch.no_grad():
            logits = system.discriminator(GRID[:, None])
        # V by integration over the line: E log D + E log (1 - D), from logits
        real = -nn.functional.softplus(-logits)
        fake = -nn.functional.softplus(logits)
        steps.append(step)
        values.append(width * (p_data * real + p_g * fake).sum().item())
        divergences.append(jensen_shannon(p_data, p_g, width).item())
    best = optimal_discriminator(p_data, p_g)
    identity = value(best, p_data, p_g, width).item() - (2 * divergences[-1] - math.log(4))
    d = logits.sigmoid()
    mean_d = [width * (p * d).sum().item() for p in (p_data, p_g)]
    lab.curve("value", steps, values, "round", "V(D, G) (nats)")
    lab.curve("divergence", steps, divergences, "round", "JSD (nats)")
    shown = (p_data > 1e-4) | (p_g > 1e-4)
    for name, y in (("data", p_data), ("samples", p_g), ("D", d), ("D*", best)):
        lab.curve(name, GRID[shown][::10], y[shown][::10], "x", name)
    return {
        "game": {
            "distance_of_d": max(abs(m - 0.5) for m in mean_d),
            "distance_of_v": abs(values[-1] + math.log(4)),
            "distance_of_identity": abs(identity),
            "divergence": divergences[-1],
            "mean": b,
            "deviation": a,
        }
    }


@equilibrium.figure
def draw_equilibrium(figure: Any, outcome: Outcome) -> None:
    """The value over the game, and like the paper's Figure 1(d) where it ended."""
    left, right = figure.subplots(1, 2)
    for xs, ys in outcome.curves["value"]:
        left.plot(xs, ys, color=PALETTE[0], alpha=0.6, linewidth=1)
    left.axhline(-math.log(4), color="#444444", linestyle="--", linewidth=1)
    left.annotate("-log 4", (0.99, -math.log(4)), xycoords=("axes fraction", "data"), ha="right", va="bottom")
    left.set_title("the game's value, a line a seed")
    left.set_xlabel("round")
    left.set_ylabel("V(D, G) (nats)")
    left.set_ylim(-2.2, 0.1)
    for name, colour, style in (("data", "#444444", ":"), ("samples", PALETTE[2], "-"), ("D", PALETTE[0], "--")):
        for number, (xs, ys) in enumerate(outcome.curves[name]):
            label = {"data": "data", "samples": "samples", "D": "D(x)"}[name] if number == 0 else None
            right.plot(xs, ys, style, color=colour, linewidth=1.2, alpha=0.8, label=label)
    right.axhline(0.5, color="grey", linewidth=0.5)
    right.set_title("where it ended")
    right.set_xlabel("x")
    right.set_ylabel("density, or D(x)")
    right.legend()


# The likelihood of samples ---------------------------------------------------------------------------

SAMPLES, STEPS, UNITS = 10_000, 1000, 128
"""Samples of each model; steps of each Gibbs chain; hidden units of the machine, as many as the generator's layers."""


def digits(split: str) -> Float[Tensor, "images 64"]:
    """The images of scikit-learn's digits, in [0, 1]."""
    from jingdu.data import open_data
    from jingdu.data.draws import Draws

    data = open_data("digits", split, DIGITS)
    rows = np.arange(len(data))
    return data.batch(rows, Draws(0, 0, rows))["image"].flatten(1)


def restricted_boltzmann_machine(images: Tensor, seed: int, epochs: int, steps: int, count: int) -> Tensor:
    """Samples of scikit-learn's BernoulliRBM: chains from noise, at last the probabilities and not draws of them.

    Probabilities suit the machine better here: a window around black and white pixels is far from grey ones.
    """
    from sklearn.neural_network import BernoulliRBM

    machine = BernoulliRBM(UNITS, learning_rate=0.05, batch_size=20, n_iter=epochs, random_state=seed)
    machine.fit(images.numpy())
    weights, hidden, visible = (torch.from_numpy(np.asarray(x)).float() for x in (
        machine.components_, machine.intercept_hidden_, machine.intercept_visible_))  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    v = torch.rand(count, images.shape[1], generator=generator).round()
    for _ in range(steps):
        h = torch.bernoulli((v @ weights.T + hidden).sigmoid(), generator=generator)
        p = (h @ weights + visible).sigmoid()
        v = torch.bernoulli(p, generator=generator)
    return p


def gaussian(images: Tensor, seed: int, count: int) -> Tensor:
    """Samples of a normal distribution with the images' mean and covariance."""
    rng = np.random.default_rng(seed)
    found = rng.multivariate_normal(images.mean(0).numpy(), np.cov(images.numpy().T), size=count)
    return torch.from_numpy(found).float()


# Set on 2026-11-24, before the first run: two standard errors, as the canon asks.
@claim(
    "A GAN's samples have a higher Parzen-window likelihood than those of a restricted Boltzmann machine.",
    source="Tab. 1",
    tests=(
        Test(
            "gan.errors_over_machine", 0, above=2.0,
            about="GAN over the machine, in standard errors of the two means",
        ),
    ),
    seeds=4,
    minutes=2.5,
    about="Digits of 8x8 pixels; the paper compares with deep belief nets, stacked auto-encoders and GSNs on MNIST. "
    "A normal distribution, and the training images themselves as samples, are measured beside them.",
)  # fmt: skip
def likelihood(lab: Lab, seed: int) -> dict[str, dict[str, float]]:
    """Ten thousand samples of each model; the width of each window by one half of the test images, scored by the other."""
    (stage,) = recipes["laptop"].stages
    run = lab.train(stage, seed=seed, **({"steps": 4} if lab.smoke else {}))
    train, test = digits("train"), digits("test")
    count, steps, epochs = lab.budget(full=(SAMPLES, STEPS, 60), smoke=(200, 2, 1))
    with torch.no_grad():
        of_gan = draw(run.system.generator, count, torch.Generator().manual_seed(seed)).flatten(1)
    of = {
        "gan": of_gan,
        "machine": restricted_boltzmann_machine(train, seed, epochs, steps, count),
        "normal": gaussian(train, seed, count),
        "training images": train,
    }
    found: dict[str, dict[str, float]] = {}
    for name, samples in of.items():
        window = ParzenWindow.cross_validated(samples, test[::2])
        mean, error = window.score(test[1::2])
        found[name] = {"log_likelihood": mean, "standard_error": error, "sigma": window.sigma}
        lab.image(name, samples[:36].clamp(0, 1).view(3, 12, 8, 8).permute(0, 2, 1, 3).reshape(24, 96))
    both = math.hypot(found["gan"]["standard_error"], found["machine"]["standard_error"])
    difference = found["gan"]["log_likelihood"] - found["machine"]["log_likelihood"]
    found["gan"]["errors_over_machine"] = difference / both
    return found


@likelihood.figure
def draw_likelihood(figure: Any, outcome: Outcome) -> None:
    """Samples of the first seed, and the likelihoods of all."""
    figure.set_size_inches(8.4, 4.4)
    grid = figure.add_gridspec(4, 2, width_ratios=(1, 1.3))
    names = list(outcome.images)
    for row, name in enumerate(names):
        axes = figure.add_subplot(grid[row, 0])
        axes.imshow(outcome.images[name], cmap="gray_r", vmin=0, vmax=1)
        axes.set_axis_off()
        axes.set_title(name, fontsize=9)
    axes = figure.add_subplot(grid[:, 1])
    for place, name in enumerate(names):
        values, errors = (outcome.values[name][key] for key in ("log_likelihood", "standard_error"))
        spread = np.linspace(-0.15, 0.15, len(values)) if len(values) > 1 else [0.0]
        axes.errorbar(values, [place + s for s in spread], xerr=errors, fmt="o", color=PALETTE[place], markersize=4)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.grid(False, axis="y")
    axes.set_xlabel("log-likelihood (nats) by seed, with standard errors")
