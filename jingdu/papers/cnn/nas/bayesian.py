r"""Bayesian optimisation: a model of the score, and a candidate that it finds promising.

A Gaussian process over codes has the covariance $k(a, b) = s^2 \exp(-d(a, b) / \ell)$, with d the share of choices in
which a and b differ (Hamming), or of the paths that only one of them has. Expected improvement over the best score y* is

$$ \mathrm{EI}(x) = (\mu - y^*) \Phi(z) + \sigma \phi(z), \qquad z = (\mu - y^*) / \sigma. $$

BANANAS (https://arxiv.org/abs/1910.11858) has an ensemble of networks on the path encoding instead, and draws every
candidate's score from what the ensemble says of it (independent Thompson sampling).
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64
from torch import Tensor

from jingdu.errors import UsageError, unknown

from .algorithms import SearchAlgorithm
from .evolution import unseen
from .space import SearchSpace

LENGTHS = (0.1, 0.25, 0.6, 1.5)
NOISES = (1e-3, 3e-2)
"""Length scales, and noise as a share of the variance, among which the likelihood chooses."""


def distances(
    a: Float[Tensor, "n bits"], b: Float[Tensor, "m bits"], kind: str = "hamming", choices: int = 1
) -> Float64[Tensor, "n m"]:
    """From 0 to 1: the share of `choices` that differ (one-hot codes), or of the paths of either that not both have."""
    a, b = a.double(), b.double()
    common = a @ b.T
    if kind == "hamming":
        return 1 - common / choices
    either = a.sum(1)[:, None] + b.sum(1)[None] - common
    return 1 - common / either.clamp_min(1)


class GaussianProcess:
    """A posterior over scores: zero mean after the scores were brought to mean 0 and deviation 1.

    Of the given length scales and noises it has those that make the scores most likely: `length`, `noise`, and the log
    marginal `likelihood` of the standardised scores.

    Args:
        x: codes as bits.
        y: their scores.
        kind: of distance, as of `distances`.
        choices: of the space, for the Hamming distance.
        lengths, noises: to choose from.
    """

    def __init__(
        self, x: Float[Tensor, "n bits"], y: Float64[Tensor, " n"], kind: str = "hamming", choices: int = 1,
        lengths: Sequence[float] = LENGTHS, noises: Sequence[float] = NOISES,
    ):  # fmt: skip
        self.x, self.kind, self.choices = x, kind, choices
        self.mean = float(y.mean())
        self.deviation = float(y.std(correction=0)) or 1.0
        z = (y - self.mean) / self.deviation
        d = distances(x, x, kind, choices)
        grid = [(length, noise) for length in lengths for noise in noises]
        eye = torch.eye(len(z), dtype=torch.float64)
        covariance = torch.stack([torch.exp(-d / length) + noise * eye for length, noise in grid])
        factor = torch.linalg.cholesky(covariance)
        weights = torch.cholesky_solve(z[:, None].expand(len(grid), -1, 1), factor)[..., 0]
        half = factor.diagonal(dim1=1, dim2=2).log().sum(1)
        likelihood = -0.5 * (weights @ z) - half - 0.5 * len(z) * math.log(2 * math.pi)
        best = int(likelihood.argmax())
        self.length, self.noise = grid[best]
        self.factor, self.weights, self.likelihood = factor[best], weights[best], float(likelihood[best])

    def posterior(self, x: Float[Tensor, "m bits"]) -> tuple[Float64[Tensor, " m"], Float64[Tensor, " m"]]:
        """Mean and deviation of the scores (without noise) of some codes."""
        cross = torch.exp(-distances(self.x, x, self.kind, self.choices) / self.length)
        half = torch.linalg.solve_triangular(self.factor, cross, upper=False)
        variance = (1 - (half**2).sum(0)).clamp_min(1e-12)
        return self.mean + self.deviation * (self.weights @ cross), self.deviation * variance.sqrt()


def expected_improvement(
    mean: Float64[Tensor, " m"], deviation: Float64[Tensor, " m"], best: float
) -> Float64[Tensor, " m"]:
    """E max(score - best, 0) of a normal score."""
    gap = mean - best
    z = gap / deviation
    density = torch.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)
    return gap * torch.special.ndtr(z) + deviation * density


class Ensemble:
    """BANANAS' predictor: fully connected networks, trained at once, that differ in how they start.

    Args:
        members, layers, width: five networks; ten layers of 20 in the paper, fewer here for fewer examples.
        steps, lr: of Adam, on all examples at a time.
        seed: of the weights.
    """

    def __init__(
        self, members: int = 5, layers: int = 2, width: int = 20, steps: int = 100, lr: float = 0.01, seed: int = 0
    ):
        self.members, self.layers, self.width, self.steps, self.lr = members, layers, width, steps, lr
        self.generator = torch.Generator().manual_seed(seed)

    def fit(self, x: Float[Tensor, "n bits"], y: Float64[Tensor, " n"]) -> "Ensemble":
        sizes = [x.shape[1], *[self.width] * self.layers, 1]
        self.weights = []
        for a, b in pairwise(sizes):
            weight = torch.randn(self.members, a, b, generator=self.generator) * math.sqrt(2 / a)
            self.weights += [weight.requires_grad_(), torch.zeros(self.members, 1, b, requires_grad=True)]
        self.mean, self.deviation = float(y.mean()), float(y.std(correction=0)) or 1.0
        target = ((y - self.mean) / self.deviation).float()
        optimizer = torch.optim.Adam(self.weights, lr=self.lr, fused=True)
        for _ in range(self.steps):
            optimizer.zero_grad()
            F.mse_loss(self._run(x), target.expand(self.members, -1)).mul(self.members).backward()
            optimizer.step()
        return self

    def _run(self, x: Tensor) -> Tensor:
        h = x.expand(self.members, *x.shape)
        for i in range(0, len(self.weights), 2):
            h = torch.baddbmm(self.weights[i + 1], h, self.weights[i])
            h = F.relu(h) if i + 2 < len(self.weights) else h
        return h[..., 0]

    @torch.no_grad()
    def predict(self, x: Float[Tensor, "m bits"]) -> tuple[Float64[Tensor, " m"], Float64[Tensor, " m"]]:
        """Mean and deviation over the members."""
        scores = self._run(x).double() * self.deviation + self.mean
        return scores.mean(0), scores.std(0, correction=0)


class Bayesian(SearchAlgorithm):
    """The candidate with the largest acquisition, under a model of all scores so far.

    Args:
        space, seed: as of `SearchAlgorithm`.
        model: "gp" with expected improvement, or "ensemble" with independent Thompson sampling.
        encoding: "hamming" (one-hot choices) or "path".
        first: how many codes are drawn at random before a model is asked.
        candidates: so many are looked at: half are mutations of the best `incumbents`, half are drawn at random.
        every: an ensemble is trained anew after so many scores (10 in BANANAS); a process always.
    """

    def __init__(
        self, space: SearchSpace, seed: int = 0, model: str = "gp", encoding: str = "hamming", first: int = 10,
        candidates: int = 100, incumbents: int = 15, every: int = 10,
    ):  # fmt: skip
        super().__init__(space, seed)
        if model not in ("gp", "ensemble"):
            raise unknown("model", model, ("gp", "ensemble"))
        if encoding not in ("hamming", "path"):
            raise unknown("encoding", encoding, ("hamming", "path"))
        if min(first, candidates, incumbents, every) < 1:
            raise UsageError("first, candidates, incumbents and every are 1 or more")
        self.model, self.encoding, self.first, self.every = model, encoding, first, every
        self.candidates, self.incumbents = candidates, incumbents
        self.queue: list[tuple[int, ...]] = []

    def ask(self) -> tuple[int, ...]:
        if len(self.history) < self.first:
            code = unseen(self, lambda: self.space.sample(self.generator))
        elif self.model == "ensemble":
            if not self.queue:
                self.queue = self._choose(self.every)
            code = self.queue.pop(0)
        else:
            code = self._choose(1)[0]
        return code

    def _propose(self) -> list[tuple[int, ...]]:
        ranked = sorted(self.history, key=lambda pair: -pair[1])[: self.incumbents]
        seen, found = self.seen, {}
        which = torch.randint(len(ranked), (self.candidates,), generator=self.generator).tolist()
        for i in range(self.candidates):
            if i % 2:
                code = self.space.sample(self.generator)
            else:
                parent = ranked[which[i]][0]
                code = self.space.mutate(parent, self.generator, changes=1 if i % 4 else min(2, self._open))
            key = self.space.canonical(code)
            if key not in seen:
                found.setdefault(key, code)
        return list(found.values()) or [self.space.sample(self.generator)]

    @property
    def _open(self) -> int:
        return sum(size > 1 for size in self.space.sizes)

    def _choose(self, count: int) -> list[tuple[int, ...]]:
        proposed = self._propose()
        known = [code for code, _ in self.history]
        y = torch.tensor([value for _, value in self.history], dtype=torch.float64)
        encode = self.space.one_hot if self.encoding == "hamming" else self.space.path_encoding
        bits = encode([*known, *proposed])
        x, new = bits[: len(known)], bits[len(known) :]
        if self.model == "gp":
            process = GaussianProcess(x, y, self.encoding, len(self.space.sizes))
            value = expected_improvement(*process.posterior(new), float(y.max()))
        else:
            seed = int(torch.randint(2**31, (1,), generator=self.generator))
            mean, deviation = Ensemble(seed=seed).fit(x, y).predict(new)
            noise = torch.randn(len(mean), generator=self.generator, dtype=torch.float64)
            value = mean + deviation * noise
        return [proposed[i] for i in value.topk(min(count, len(proposed))).indices.tolist()]
