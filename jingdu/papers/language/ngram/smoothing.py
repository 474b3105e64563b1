"""Smoothing: from counts to probabilities (Sec. 2 and 3 of the long version).

As in Sec. 2.8, a method is a share alpha for each n-gram that was seen, and a weight gamma for each
history, on the order below. `interpolate` gives the lower order's share to all words, `back_off` to the
unseen ones alone. c(h) sums c(hw) over w; N1+(h.) counts the distinct w; V is the vocabulary's size.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float64, Int64

from .counting import Counts, histories_of, look_up

Smoothing = Literal[
    "maximum-likelihood", "additive", "jelinek-mercer", "katz", "witten-bell", "witten-bell-back-off",
    "absolute-discounting", "absolute-discounting-back-off", "kneser-ney", "kneser-ney-back-off",
    "modified-kneser-ney", "modified-kneser-ney-back-off", "stupid-back-off", "arpa",
]  # fmt: skip
"""`arpa` is no estimator: the tables were read from a file."""
Buckets = Literal["average", "count", "one"]
Smoothed = tuple[Float64[np.ndarray, " ngrams"], Float64[np.ndarray, " histories"]]
Weights = list[tuple[Float64[np.ndarray, "_"], Float64[np.ndarray, "_"]]]


def interpolate(level: Counts, alpha: np.ndarray, gamma: np.ndarray, lower: np.ndarray) -> Smoothed:
    """p(w|h) = alpha(w|h) + gamma(h) p(w|h'). `lower` is p(w|h') of each n-gram; returns p and gamma."""
    return alpha + gamma[level.history] * lower, gamma


def back_off(level: Counts, alpha: np.ndarray, lower: np.ndarray) -> Smoothed:
    """p(w|h) = alpha(w|h) where hw was seen, else gamma(h) p(w|h') with the gamma that makes the sum 1.

    A history that has seen all words keeps all; where nothing is left for the unseen, one count is set aside.
    """
    full = level.types == level.size - 1
    kept = level.sums(alpha)
    scale = np.where(full, 1 / kept, np.where(kept > 1 - 1e-12, level.total / (level.total + 1) / kept, 1.0))
    free = np.where(full, 1.0, 1 - level.sums(lower))
    return alpha * scale[level.history], np.where(full, 0.0, (1 - kept * scale) / free)


# The methods, in the order of Section 2: each returns alpha and gamma ------------------------------


def maximum_likelihood(level: Counts) -> Smoothed:
    """c(hw) / c(h), and nothing for the unseen."""
    return level.count / level.total[level.history], np.zeros(len(level.histories))


def additive(level: Counts, added: float) -> Smoothed:
    """(c(hw) + added) / (c(h) + added V) (Sec. 2.1): there is no lower order, gamma is a weight on 1/V."""
    total, words = level.total, level.size - 1
    return level.count / (total + added * words)[level.history], added * words / (total + added * words)


def jelinek_mercer(level: Counts, bounds: np.ndarray, weights: np.ndarray, buckets: Buckets) -> Smoothed:
    """lambda(h) c(hw) / c(h), and 1 - lambda(h) (Sec. 2.3)."""
    share = weights[np.searchsorted(bounds, statistic(level, buckets), side="right")]
    return share[level.history] * maximum_likelihood(level)[0], 1 - share


def katz(level: Counts) -> Smoothed:
    """d_c c(hw) / c(h) with Good-Turing's d_1 .. d_k; larger counts are trusted (Sec. 2.4)."""
    kept = np.array([1.0, *(discounts := katz_discounts(level.count)), 1.0])
    alpha = kept[np.minimum(level.count, len(discounts) + 1)] * maximum_likelihood(level)[0]
    return alpha, 1 - level.sums(alpha)


def witten_bell(level: Counts) -> Smoothed:
    """c(hw) / (c(h) + N1+(h.)): a new word is as frequent as first occurrences were (Sec. 2.5)."""
    total = level.total + level.types
    return level.count / total[level.history], level.types / total


def absolute_discounting(level: Counts, count: Int64[np.ndarray, " ngrams"], discounts: np.ndarray) -> Smoothed:
    """(c(hw) - D) / c(h), and all that was taken (Sec. 2.6); `count` is of continuations in Sec. 2.7 and 3."""
    taken, total = discounts[np.minimum(count, len(discounts)) - 1], level.sums(count)
    return (count - taken) / total[level.history], level.sums(taken) / total


# Discounts from counts of counts -------------------------------------------------------------------


def counts_of_counts(count: Int64[np.ndarray, " ngrams"], highest: int) -> Float64[np.ndarray, " highest"]:
    """n_1 .. n_highest: how many n-grams occur once, twice, ..."""
    return np.bincount(np.minimum(count, highest + 1), minlength=highest + 2)[1 : highest + 1].astype(np.float64)


def absolute_discounts(count: Int64[np.ndarray, " ngrams"]) -> Float64[np.ndarray, " one"]:
    """D = n1 / (n1 + 2 n2), for all counts (Sec. 2.6); 1/2 where n1 or n2 is zero and says nothing."""
    n1, n2 = counts_of_counts(count, 2)
    return np.array([n1 / (n1 + 2 * n2) if n1 and n2 else 0.5])


def modified_discounts(count: Int64[np.ndarray, " ngrams"]) -> Float64[np.ndarray, " three"]:
    """D1, D2, D3+: D_r = r - (r+1) Y n_{r+1} / n_r with Y = n1 / (n1 + 2 n2) (Sec. 3).

    Where that is undefined (an n_r is zero) or no discount (outside 0 .. r), all three are the one D.
    """
    n = counts_of_counts(count, 4)
    if n.all():
        r = np.arange(1, 4)
        found = r - (r + 1) * n[0] / (n[0] + 2 * n[1]) * n[1:] / n[:-1]
        if ((found > 0) & (found < r)).all():
            return found
    return np.repeat(absolute_discounts(count), 3)


def katz_discounts(count: Int64[np.ndarray, " ngrams"], highest: int = 5) -> Float64[np.ndarray, " k"]:
    """d_1 .. d_k (Sec. 2.4), so that n-grams of count r lose what Good-Turing's r* = (r+1) n_{r+1} / n_r says.

    k is `highest`, or the next below for which every d_r is a discount; the result may be empty.
    """
    for k in range(highest, 0, -1):
        n, r = counts_of_counts(count, k + 1), np.arange(1, k + 1)
        if n.all() and (rest := (k + 1) * n[k] / n[0]) < 1:
            found = ((r + 1) * n[1:] / n[:-1] / r - rest) / (1 - rest)
            if ((found > 0) & (found < 1)).all():
                return found
    return np.ones(0)


# Parameters from held-out data ---------------------------------------------------------------------


def statistic(level: Counts, buckets: Buckets) -> Float64[np.ndarray, " histories"]:
    """By what histories share a weight: their count (Bahl et al. 1983), or count a distinct word (1996, Sec. 3.1)."""
    return {"count": level.total, "average": level.total / level.types, "one": np.ones(len(level.total))}[buckets]


def held_out_weights(
    levels: Sequence[Counts], tokens: Int64[np.ndarray, " tokens"], buckets: Buckets = "average", fewest: int = 100
) -> Weights:
    """The lambdas that make held-out `tokens` most probable (Sec. 2.3): for each order, bounds and weights.

    Histories of like statistic share a lambda, so that each bucket has `fewest` held-out tokens. The
    lambdas of all orders are found together by Baum-Welch: a token comes from the highest order with
    probability lambda, else from the orders below.
    """
    context = histories_of(tokens, len(levels), levels[0].size - 1)
    weights, bounds, likelihoods, buckets_of = [], [], [], []
    for level, (history, row) in zip(levels, look_up(levels, context, tokens), strict=True):
        value = statistic(level, buckets)[history]
        bounds.append(_walls(value[history >= 0], fewest))
        weights.append(np.full(len(bounds[-1]) + 1, 0.5))
        likelihoods.append(np.where(row >= 0, level.count[row] / level.total[history], 0.0))
        buckets_of.append(np.where(history >= 0, np.searchsorted(bounds[-1], value, side="right"), -1))
    gain, before = math.inf, -math.inf
    while gain > 1e-6 and len(tokens):  # bits a token
        p, ends_here = np.full(len(tokens), 1 / (levels[0].size - 1)), []
        for weight, likelihood, bucket in zip(weights, likelihoods, buckets_of, strict=True):
            share = np.append(weight, 0.0)[bucket]  # an unseen history has no say
            lower, p = p, share * likelihood + (1 - share) * p
            ends_here.append(1 - (1 - share) * lower / p)
        reaches = np.ones(len(tokens))
        for k in reversed(range(len(levels))):
            seen, rows = buckets_of[k] >= 0, len(weights[k])
            arrived = np.bincount(buckets_of[k][seen], reaches[seen], minlength=rows)
            ended = np.bincount(buckets_of[k][seen], (reaches * ends_here[k])[seen], minlength=rows)
            found = np.divide(ended, arrived, out=weights[k].copy(), where=arrived > 0)
            weights[k] = np.clip(found, 1e-6, 1 - 1e-6)  # so that no word becomes impossible
            reaches = reaches * (1 - ends_here[k])
        now = float(np.log2(p).mean())
        gain, before = now - before, now
    return list(zip(bounds, weights, strict=True))


def _walls(values: np.ndarray, fewest: int) -> Float64[np.ndarray, " bounds"]:
    """Lower bounds of all buckets but the first, so that each holds at least `fewest` of the values."""
    bounds, filled = [], 0
    for value, number in zip(*np.unique(values, return_counts=True), strict=True):
        if filled >= fewest:
            bounds.append(value)
            filled = 0
        filled += number
    return np.array(bounds[:-1] if filled < fewest else bounds, dtype=np.float64)


def held_out_discounts(
    levels: Sequence[Counts], tokens: Int64[np.ndarray, " tokens"], smoothing: Smoothing
) -> list[Float64[np.ndarray, " discounts"]]:
    """The discounts of each order that make held-out `tokens` most probable, for interpolation (Sec. 4).

    One D an order, or D1, D2, D3+ for the modified form. The paper searches with Powell's method; here it is
    L-BFGS-B, since p is a polynomial of the discounts, from the estimated ones.
    """
    from scipy.optimize import minimize

    kinds, start = (3, modified_discounts) if smoothing == "modified-kneser-ney" else (1, absolute_discounts)
    context, terms, first = histories_of(tokens, len(levels), levels[0].size - 1), [], []
    for level, (history, row) in zip(levels, look_up(levels, context, tokens), strict=True):
        count = level.count if smoothing == "absolute-discounting" else level.continuations
        kind = np.minimum(count, kinds) - 1
        after = np.stack([level.sums(kind == r) for r in range(kinds)], axis=1)  # N1(h.), N2(h.), N3+(h.)
        own = (row >= 0)[:, None] * (kind[row][:, None] == np.arange(kinds))
        arrays = (
            np.where(row >= 0, count[row], 0.0),
            1.0 * own,
            after[history],
            level.sums(count)[history],
            history >= 0,
        )
        terms.append([torch.from_numpy(array) for array in arrays])
        first.append(start(count))

    def surprise(flat: np.ndarray) -> tuple[float, np.ndarray]:
        discounts = torch.from_numpy(flat).requires_grad_()
        p = torch.full((len(tokens),), 1 / (levels[0].size - 1), dtype=torch.float64)
        for d, (count, own, after, total, seen) in zip(discounts.view(-1, kinds), terms, strict=True):
            p = torch.where(seen, (count - own @ d + (after @ d) * p) / total, p)
        loss = -p.log().mean()
        (slope,) = torch.autograd.grad(loss, discounts)
        return loss.item(), slope.numpy()

    if not len(tokens):
        return first
    bounds = [(1e-3, r + 1 - 1e-3) for r in range(kinds)] * len(levels)
    found = minimize(surprise, np.concatenate(first), jac=True, method="L-BFGS-B", bounds=bounds)
    return list(found.x.reshape(-1, kinds))


# Estimation ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Table:
    """One order of an estimated model: p where hw is listed, else backoff(h) p(w|h').

    Interpolated models have this form too, with backoff = gamma.
    """

    size: int
    histories: Int64[np.ndarray, " histories"]
    backoff: Float64[np.ndarray, " histories"]
    keys: Int64[np.ndarray, " ngrams"]
    probability: Float64[np.ndarray, " ngrams"]


def estimate(
    levels: Sequence[Counts],
    smoothing: Smoothing,
    *,
    added: float = 1.0,
    discounts: Sequence[np.ndarray] | None = None,
    weights: Weights | None = None,
    buckets: Buckets = "average",
    lowest: Literal["uniform", "unigram"] = "uniform",
) -> list[Table]:
    """Smoothed probabilities of all orders from their counts.

    Args:
        added: what `additive` adds to every count; 1 is Laplace's.
        discounts: of each order, for absolute discounting and Kneser-Ney, in place of the estimated ones: the
            last of them is for all higher counts too.
        weights: of Jelinek-Mercer smoothing, from `held_out_weights` with the same `buckets`.
        lowest: what ends the recursion (Sec. 2.3): unigrams smoothed with 1/V each, or unigrams as they are.
    """
    uniform, tables = np.full(1, 1 / (levels[0].size - 1)), []
    p = uniform
    for k, level in enumerate(levels):
        lower = p[level.shorter]
        count = level.continuations if "kneser-ney" in smoothing else level.count
        match smoothing.removesuffix("-back-off"):
            case "additive":
                alpha, gamma = additive(level, added)
                lower = uniform
            case "jelinek-mercer":
                alpha, gamma = jelinek_mercer(level, *(weights or [])[k], buckets)
            case "katz":
                alpha, gamma = katz(level)
            case "witten-bell":
                alpha, gamma = witten_bell(level)
            case "absolute-discounting" | "kneser-ney":
                alpha, gamma = absolute_discounting(
                    level, count, discounts[k] if discounts else absolute_discounts(count)
                )
            case "modified-kneser-ney":
                alpha, gamma = absolute_discounting(
                    level, count, discounts[k] if discounts else modified_discounts(count)
                )
            case _:
                alpha, gamma = maximum_likelihood(level)
        if k == 0 and lowest == "unigram":
            p, backoff = count / count.sum(), np.zeros(1)
        elif smoothing == "stupid-back-off":  # a score: nothing is taken from the seen to pay for the 0.4
            p, backoff = alpha, np.full(len(level.histories), 0.4 if k else 0.0)
        elif smoothing.endswith("-back-off") or smoothing == "katz":
            p, backoff = back_off(level, alpha, lower)
        else:
            p, backoff = interpolate(level, alpha, gamma, lower)
        tables.append(Table(level.size, level.histories, backoff, level.keys, p))
    return tables
