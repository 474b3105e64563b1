"""How Section 5 scores a sampler that has no likelihood: a Parzen window over its samples."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

SIGMAS = tuple(10 ** (-1 + i / 9) for i in range(10))
"""The widths that parzen_ll.py tries: ten, evenly spaced in the logarithm, from 0.1 to 1."""


class ParzenWindow:
    r"""The density that Section 5 scores a sampler by: an isotropic Gaussian of width `sigma` on every sample.

    $$ \log p(x) = \log \frac1n \sum_i \exp\left(-\frac{\|x - s_i\|^2}{2\sigma^2}\right) - \frac d2 \log(2\pi\sigma^2) $$

    In nats and float64. It depends strongly on `sigma` and on the number of samples: compare samplers only
    with the same number, each with its own cross-validated width.
    """

    def __init__(self, samples: Float[Tensor, "samples dims"], sigma: float):
        self.samples, self.sigma = samples.double(), float(sigma)

    @classmethod
    def cross_validated(
        cls, samples: Float[Tensor, "samples dims"], held_out: Float[Tensor, "points dims"],
        sigmas: Sequence[float] = SIGMAS,
    ) -> "ParzenWindow":  # fmt: skip
        """The window whose width, of `sigmas`, gives the held-out points the highest likelihood."""
        means = _log_densities(held_out, samples, sigmas).mean(1)
        return cls(samples, sigmas[int(means.argmax())])

    def log_likelihood(self, x: Float[Tensor, "points dims"]) -> Float[Tensor, " points"]:
        """log p of every point, in nats."""
        return _log_densities(x, self.samples, (self.sigma,))[0]

    def score(self, x: Float[Tensor, "points dims"]) -> tuple[float, float]:
        """The mean log p of the points, and its standard error. Raises ValueError for fewer than two points."""
        if len(x) < 2:
            raise ValueError(f"a standard error needs at least 2 points, not {len(x)}")
        found = self.log_likelihood(x)
        return found.mean().item(), found.std().item() / math.sqrt(len(x))


def _log_densities(
    x: Float[Tensor, "points dims"], samples: Float[Tensor, "samples dims"], sigmas: Sequence[float]
) -> Float[Tensor, "sigmas points"]:
    """log p of every point under a window of each width; the distances are measured once, a few rows at a time."""
    centre = samples.double().mean(0)  # small norms keep |x|^2 + |s|^2 - 2 x.s exact
    x, samples = x.double() - centre, samples.double() - centre
    norms = samples.square().sum(1)
    found = []
    for part in x.split(max(1, 2**22 // len(samples))):
        squared = torch.addmm(norms, part, samples.T, alpha=-2).add_(part.square().sum(1, keepdim=True)).clamp_min_(0)
        found.append(torch.stack([torch.logsumexp(squared * (-0.5 / sigma**2), 1) for sigma in sigmas]))
    widths = torch.tensor(sigmas, dtype=torch.float64, device=x.device)[:, None]
    return torch.cat(found, 1) - math.log(len(samples)) - 0.5 * x.shape[1] * (2 * math.pi * widths**2).log()
