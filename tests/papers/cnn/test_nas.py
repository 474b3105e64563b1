"""Neural architecture search: spaces, algorithms, and the networks that were found."""

import math

import pytest
import torch
from torch import nn

from jingdu.errors import UsageError
from jingdu.papers.cnn.nas import (
    Choice,
    Found,
    GridSearch,
    RandomSearch,
    SearchSpace,
    count_cost,
    score,
    search,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small(**options: object) -> SearchSpace:
    choices = [
        Choice("kernel", (3, 5, 7), ordered=True),
        Choice("op", ("a", "b", "c", "d", "e")),
        Choice("skip", (False, True)),
    ]
    return SearchSpace(choices, **options)


# Spaces ---------------------------------------------------------------------------------------------


def test_codes_and_values_are_one_to_one() -> None:
    space = small()
    codes = list(space.codes())
    assert len(space) == len(codes) == len(set(codes)) == 30
    assert all(space.encode(space.decode(code)) == code for code in codes)
    assert space.decode((2, 0, 1)) == {"kernel": 7, "op": "a", "skip": True}
    bits = space.one_hot(codes)
    assert bits.shape == (30, 10) and (bits.sum(1) == 3).all() and len(bits.unique(dim=0)) == 30


@pytest.mark.parametrize("code", [(3, 0, 0), (0, 0), (-1, 0, 0), (0, 0, 0, 0)])
def test_codes_of_other_spaces_are_refused(code: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="wanted 3 numbers"):
        small().decode(code)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"kernel": 4, "op": "a", "skip": True}, "kernel=4"),
        ({"kernel": 3, "op": "a"}, "nothing of 'skip'"),
        ({"kernel": 3, "op": "a", "skip": True, "stride": 2}, "stride"),
    ],
)
def test_values_of_other_spaces_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        small().encode(values)


def test_wrong_spaces_are_refused() -> None:
    with pytest.raises(UsageError, match="different ones"):
        Choice("kernel", (3, 3))
    with pytest.raises(UsageError, match="different names"):
        SearchSpace([Choice("a", (1,)), Choice("a", (2,))])
    with pytest.raises(UsageError, match="not allowed"):
        small(allowed=lambda values: False).sample(generator())
    with pytest.raises(UsageError, match="no networks"):
        small().build((0, 0, 0))


def test_samples_are_uniform_over_what_is_allowed() -> None:
    space = small(allowed=lambda values: not (values["kernel"] == 7 and values["skip"]))
    source = generator(3)
    counts: dict[tuple[int, ...], int] = {}
    for _ in range(1250):
        code = space.sample(source)
        counts[code] = counts.get(code, 0) + 1
    assert set(counts) == set(space.codes()) and len(counts) == 25
    assert min(counts.values()) > 20 and max(counts.values()) < 85  # 50 each, 4.5 deviations


def test_a_mutation_changes_so_many_choices() -> None:
    space, source = small(), generator(5)
    for changes in (1, 2, 3):
        seen = {space.mutate((1, 2, 0), source, changes) for _ in range(50)}
        assert all(sum(a != b for a, b in zip(code, (1, 2, 0), strict=True)) == changes for code in seen)
    assert {space.mutate((1, 2, 0), source) for _ in range(120)} == {
        (0, 2, 0), (2, 2, 0), (1, 0, 0), (1, 1, 0), (1, 3, 0), (1, 4, 0), (1, 2, 1),
    }  # fmt: skip
    with pytest.raises(UsageError, match="4 changes"):
        space.mutate((1, 2, 0), source, 4)


def test_a_child_has_its_parents_choices() -> None:
    space, source = small(), generator(7)
    uniform = {space.crossover((0, 0, 0), (2, 4, 1), source) for _ in range(100)}
    assert uniform == {(a, b, c) for a in (0, 2) for b in (0, 4) for c in (0, 1)}
    one = {space.crossover((0, 0, 0), (2, 4, 1), source, points=1) for _ in range(100)}
    assert one == {(0, 0, 1), (0, 4, 1)}
    assert {space.crossover((0, 0, 0), (2, 4, 1), source, points=2) for _ in range(20)} == {(0, 4, 0)}
    with pytest.raises(UsageError, match="3 points"):
        space.crossover((0, 0, 0), (2, 4, 1), source, points=3)


def test_neighbours_differ_in_one_choice_and_ordered_ones_by_one_step() -> None:
    assert set(small().neighbours((0, 1, 1))) == {(1, 1, 1), (0, 0, 1), (0, 2, 1), (0, 3, 1), (0, 4, 1), (0, 1, 0)}


def test_cost_is_that_of_the_layers() -> None:
    network = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1, groups=3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 4 * 5, 7))
    cost = count_cost(network, (3, 7, 9))
    assert cost.parameters == 6 * 9 + 6 + 120 * 7 + 7
    assert cost.flops == 6 * 4 * 5 * 9 + 120 * 7
    assert network.training and not network[0]._forward_hooks
    space = SearchSpace([Choice("width", (5, 11))], lambda values: nn.Conv2d(2, values["width"], 1), image=(2, 3, 3))
    assert space.cost((1,)).flops == 2 * 11 * 9 and space.cost((1,)) is space.cost((1,))


def test_score_trades_accuracy_for_cost() -> None:
    assert score(0.8, 400.0, 400.0) == pytest.approx(0.8)
    assert score(0.8, 800.0, 400.0) == pytest.approx(0.8 * 2**-0.07)
    assert score(0.8, 100.0, 400.0, exponent=0.0) == pytest.approx(0.8)
    with pytest.raises(UsageError, match="positive"):
        score(0.8, 0.0, 400.0)


# Algorithms -----------------------------------------------------------------------------------------


def hills(code: tuple[int, ...]) -> float:
    """An objective with one best code, (2, 3, 1)."""
    return math.exp(-abs(code[0] - 2) - abs(code[1] - 3) / 2) + 0.1 * code[2]


def test_grid_sees_every_code_in_order() -> None:
    space = small()
    found = search(GridSearch(space), hills, 30)
    assert found.codes == list(space.codes())
    assert found.best == (2, 3, 1) and found.ranking[0] == ((2, 3, 1), pytest.approx(1.1))
    assert found.regret(1.1)[-1] == pytest.approx(0)
    assert GridSearch(small(allowed=lambda values: values["skip"])).ask() == (0, 0, 1)


def test_random_search_draws_each_code_once_and_repeats_by_its_seed() -> None:
    found = search(RandomSearch(small(), seed=11), hills, 30)
    assert len(set(found.codes)) == 30
    assert found.codes == search(RandomSearch(small(), seed=11), hills, 30).codes
    assert found.codes != search(RandomSearch(small(), seed=12), hills, 30).codes
    assert len(set(search(RandomSearch(small(), seed=11, again=True), hills, 30).codes)) < 30


def test_best_so_far_and_ranking() -> None:
    found = Found([(0,), (1,), (2,), (1,)], [0.2, 0.5, 0.4, 0.6])
    assert found.best_so_far == [0.2, 0.5, 0.5, 0.6] and found.best == (1,)
    assert found.ranking == [((1,), 0.6), ((2,), 0.4), ((0,), 0.2)]
    with pytest.raises(UsageError, match="nothing"):
        _ = Found().best
