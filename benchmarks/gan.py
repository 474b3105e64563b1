"""A GAN's training step and its samples against a plain pair of networks in torch: python -m benchmarks.gan."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import jingdu
from benchmarks.paired import compare, save
from jingdu.papers.generative.gan import GAN, draw


class PlainMaxout(nn.Module):
    """As it is mostly written: reshape and max."""

    def __init__(self, inputs: int, units: int, pieces: int):
        super().__init__()
        self.units, self.pieces, self.linear = units, pieces, nn.Linear(inputs, units * pieces)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x).view(len(x), self.units, self.pieces).max(2)[0]


def plain_pair() -> tuple[nn.Module, nn.Module]:
    """mnist.yaml in nn.Sequential."""
    g = nn.Sequential(
        nn.Linear(100, 1200), nn.ReLU(), nn.Linear(1200, 1200), nn.ReLU(), nn.Linear(1200, 784), nn.Sigmoid()
    )
    d = nn.Sequential(
        nn.Dropout(0.2), PlainMaxout(784, 240, 5), nn.Dropout(0.5), PlainMaxout(240, 240, 5), nn.Dropout(0.5),
        nn.Linear(240, 1),
    )  # fmt: skip
    return g, d


def cases(rounds: int = 30, batch: int = 100) -> list[dict[str, Any]]:
    """One step of Algorithm 1 (k = 1) by SGD with momentum, and sampling, with the MNIST pair."""
    real = torch.rand(batch, 1, 28, 28)
    system = GAN(jingdu.create("gan_mnist_generator"), jingdu.create("gan_mnist_discriminator"))
    g, d = plain_pair()
    ours = [torch.optim.SGD(p.parameters(), 1e-4, 0.5) for p in (system.discriminator, system.generator)]
    theirs = [torch.optim.SGD(p.parameters(), 1e-4, 0.5) for p in (d, g)]

    def our_step() -> None:
        for optimizer, objective in zip(ours, ("discriminator", "generator"), strict=True):
            optimizer.zero_grad()
            for p in system.discriminator.parameters():
                p.requires_grad_(objective == "discriminator")
            system({"image": real}, objective)[0].backward()
            optimizer.step()

    def their_step() -> None:
        theirs[0].zero_grad()
        fake = g(torch.rand(batch, 100))
        loss = F.binary_cross_entropy_with_logits(d(real.flatten(1)), torch.ones(batch, 1))
        (loss + F.binary_cross_entropy_with_logits(d(fake.detach()), torch.zeros(batch, 1))).backward()
        theirs[0].step()
        theirs[1].zero_grad()
        F.binary_cross_entropy_with_logits(d(g(torch.rand(batch, 100))), torch.ones(batch, 1)).backward()
        theirs[1].step()

    def their_samples() -> None:
        with torch.no_grad():
            g(torch.rand(500, 100)).view(500, 1, 28, 28)

    return [
        compare(our_step, their_step, "gan_mnist, a training step, plain torch", rounds=rounds),
        compare(
            lambda: draw(system.generator, 500), their_samples, "gan_mnist, 500 samples, plain torch", rounds=rounds
        ),
    ]


if __name__ == "__main__":
    save(cases(), "gan.json")
