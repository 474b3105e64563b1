"""Draws belong to samples: nothing around them changes them, and they are as random as they say."""

import numpy as np
import pytest
import torch
from scipy import stats

from jingdu.data.draws import Draws, generator, permutation

ROWS = np.arange(4003)


def everything(draws: Draws) -> list[torch.Tensor]:
    return [draws.uniform(3, low=-2.0, high=5.0), draws.normal(2), draws.integers(7, 2, 1), draws.uniform()]


@pytest.mark.parametrize("chosen", [[5], [11, 5, 0, 7], list(range(13))])
def test_a_row_depends_on_its_own_seed_epoch_and_index(chosen):
    whole, part = everything(Draws(3, 2, np.arange(13))), everything(Draws(3, 2, chosen))
    for a, b in zip(whole, part, strict=True):
        assert torch.equal(a[torch.tensor(chosen)], b)


@pytest.mark.parametrize("other", [(4, 2, 0), (3, 1, 0), (3, 2, 100), (2, 3, 0)])
def test_another_seed_epoch_or_index_gives_other_numbers(other):
    seed, epoch, first = other
    ours = Draws(3, 2, np.arange(13)).uniform(3)
    theirs = Draws(seed, epoch, np.arange(13) + first).uniform(3)
    assert not (ours == theirs).any()


def test_later_draws_do_not_repeat_earlier_ones():
    draws = Draws(0, 0, [17])
    seen = torch.cat([draws.uniform(101).flatten() for _ in range(20)])
    assert len(seen.unique()) == len(seen)


def test_take_goes_on_from_where_it_stands_and_leaves_the_rest_alone():
    draws, same = Draws(1, 4, np.arange(11)), Draws(1, 4, np.arange(11))
    draws.uniform(5), same.uniform(5)
    part = draws.take([8, 2])
    assert len(part) == 2
    own = part.normal(3)
    expected = same.normal(3)
    assert torch.equal(own, expected[[8, 2]])
    assert torch.equal(draws.normal(3), expected)


def test_shapes_and_types():
    draws = Draws(0, 0, np.arange(7))
    assert draws.uniform().shape == (7,)
    assert draws.uniform(2, 3).shape == (7, 2, 3)
    assert draws.normal(5).dtype == torch.float32
    assert draws.integers(9, 5).dtype == torch.int64
    assert Draws(0, 0, []).uniform(3).shape == (0, 3)


@pytest.mark.parametrize("across", ["samples", "draws"])
def test_uniform_is_uniform(across):
    numbers = Draws(11, 0, ROWS).uniform() if across == "samples" else Draws(11, 0, [6]).uniform(4003)[0]
    assert stats.kstest(numbers.numpy(), "uniform").pvalue > 0.01


@pytest.mark.parametrize("across", ["samples", "draws"])
def test_normal_is_normal(across):
    numbers = Draws(5, 1, ROWS).normal(std=2.0) if across == "samples" else Draws(5, 1, [6]).normal(4003, std=2.0)[0]
    assert stats.kstest(numbers.numpy(), "norm", args=(0, 2)).pvalue > 0.01


def test_integers_are_uniform_and_in_range():
    numbers = Draws(7, 3, ROWS).integers(13, 3).numpy()
    assert numbers.min() == 0 and numbers.max() == 12
    assert stats.chisquare(np.bincount(numbers.ravel(), minlength=13)).pvalue > 0.01


def test_neighbouring_samples_epochs_and_draws_are_uncorrelated():
    first, second = Draws(0, 0, ROWS).uniform(2).T.numpy()
    for other in (second, np.roll(first, 1), Draws(0, 1, ROWS).uniform().numpy(), Draws(1, 0, ROWS).uniform().numpy()):
        # The correlation of 4,003 independent pairs has deviation 0.016.
        assert abs(np.corrcoef(first, other)[0, 1]) < 0.05


def test_uniform_stays_below_its_upper_end():
    # Near 100, float32 has steps of 2^-17: without care the largest numbers are rounded up to 101 itself.
    numbers = Draws(0, 0, np.arange(1000)).uniform(2000, low=100.0, high=101.0)
    assert float(numbers.min()) >= 100 and float(numbers.max()) < 101


def test_a_permutation_is_one_and_differs_by_epoch_and_seed():
    orders = [permutation(seed, epoch, 997) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    for order in orders:
        assert np.array_equal(np.sort(order), np.arange(997))
    assert np.array_equal(orders[0], permutation(0, 0, 997))
    for a, b in ((0, 1), (0, 2), (1, 2)):
        # Two independent orders agree in about one place.
        assert (orders[a] == orders[b]).sum() < 8
    assert abs(stats.spearmanr(orders[0], orders[1]).statistic) < 0.1


def test_a_permutation_is_not_tied_to_the_draws_of_its_epoch():
    order = permutation(0, 0, 997)
    assert abs(np.corrcoef(order, Draws(0, 0, np.arange(997)).uniform().numpy())[0, 1]) < 0.1


def test_generators_are_functions_of_their_parts():
    numbers = [torch.rand(5, generator=generator(*parts)) for parts in ((0, 1), (0, 1), (1, 0), (0, 1, 0))]
    assert torch.equal(numbers[0], numbers[1])
    assert not torch.equal(numbers[0], numbers[2])
    assert not torch.equal(numbers[0], numbers[3])
