"""Neural architecture search: spaces, algorithms, and the networks that were found."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import jingdu
from jingdu.data.draws import Draws
from jingdu.data.embedded import digits
from jingdu.errors import BadInput, Refused, UsageError
from jingdu.papers.cnn.nas import (
    ALGORITHMS,
    AgeingEvolution,
    Bayesian,
    ChainNet,
    Choice,
    Controller,
    Ensemble,
    Evaluator,
    Examples,
    Found,
    Genetic,
    Genotype,
    GridSearch,
    NASCell,
    NASNet,
    RandomSearch,
    ReinforcedController,
    ScheduledDropPath,
    Search,
    SearchSpace,
    Table,
    Training,
    accuracy,
    cell_space,
    chain_space,
    count_cost,
    digits_space,
    draw_chain,
    drop_path,
    expected_improvement,
    genotype_of,
    pad_same,
    score,
    search,
    split_off,
    zoph_le_space,
)
from jingdu.papers.cnn.nas.bayesian import distances
from jingdu.papers.cnn.nas.cells import Pool
from jingdu.papers.cnn.nas.controller import ANCHOR, controller_steps


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


@pytest.mark.parametrize("name", ALGORITHMS)
def test_algorithms_are_functions_of_seed_and_history(name: str) -> None:
    """So a search goes on where it was: told its history again, it proposes the same."""
    make = ALGORITHMS[name]
    options = {"first": 5} if name in ("bayesian", "bananas") else {}
    options |= {"population": 6} if name in ("ageing", "genetic") else {}
    options |= {"sample": 3} if name == "ageing" else {}
    space = chain_space([{"filters": (3, 5), "kernel": (1, 3)}] * 2, image=(1, 7, 7))

    def value(code: tuple[int, ...]) -> float:
        return 0.5 + 0.1 * sum(code)

    first = make(space, seed=3, **options)
    found = search(first, value, 13)
    again = make(space, seed=3, **options)
    for code, told in zip(found.codes, found.scores, strict=True):
        assert again.ask() == code
        again.tell(code, told)
    assert again.ask() == first.ask()


# The controller -------------------------------------------------------------------------------------


def test_the_controllers_probabilities_sum_to_one() -> None:
    space = chain_space([{"filters": (3, 5, 7)}, {"filters": (2, 3)}, {"filters": (5,)}], image=(1, 5, 5))
    assert [choice.name for choice in space.choices] == ["filters_1", "filters_2", "skip_1_2", "skip_1_3", "skip_2_3"]
    # Each layer's own choices, then its anchor, at which its connections are chosen; the third layer has no others.
    assert controller_steps(space) == [0, ANCHOR, 1, ANCHOR, ANCHOR]
    torch.manual_seed(0)
    controller = Controller(space, hidden=11, spread=0.9)
    codes = torch.tensor(list(space.codes()))
    with torch.no_grad():
        same, log_p = controller(codes)
        drawn, p = controller(batch=4000, generator=generator(1))
        again = controller(drawn)[1]
    assert torch.equal(same, codes) and float(log_p.exp().sum()) == pytest.approx(1, abs=1e-5)
    assert log_p.exp().max() > 2 * log_p.exp().min()
    assert torch.allclose(p, again, atol=1e-5)
    counts = torch.zeros(*space.sizes)
    counts.index_put_(tuple(drawn.T), torch.ones(len(drawn)), accumulate=True)
    assert (counts.flatten() / 4000 - log_p.exp()).abs().max() < 0.03


def test_connections_are_chosen_by_attention() -> None:
    """P(j -> i) = sigmoid(v tanh(W_prev h_j + W_curr h_i)), with h from the anchors."""
    space = chain_space([{"filters": (3,)}, {"filters": (2,)}], image=(1, 5, 5))
    controller = Controller(space, hidden=7, spread=0.9)
    y, _ = controller.lstm(torch.stack([controller.start, controller.anchor])[None])
    logit = controller.attend(torch.tanh(controller.previous(y[0, 0]) + controller.current(y[0, 1])))
    _, log_p = controller(torch.tensor([[1], [0]]))
    assert torch.allclose(log_p, torch.cat([F.logsigmoid(logit), F.logsigmoid(-logit)]), atol=1e-6)


def test_the_papers_controller() -> None:
    algorithm = ReinforcedController(zoph_le_space(3))
    assert algorithm.batch == 8 and algorithm.power == 3 and algorithm.optimizer.defaults["lr"] == 6e-4
    cells = [cell for layer in algorithm.controller.lstm.layers for cell in layer.cells]
    assert [cell.hidden for cell in cells] == [35, 35]
    assert max(float(p.detach().abs().max()) for p in algorithm.controller.parameters()) <= 0.08
    with pytest.raises(UsageError, match="batch 0"):
        ReinforcedController(small(), batch=0)


def test_reinforce_moves_along_its_gradient() -> None:
    algorithm = ReinforcedController(small(), batch=3, lr=1.0, decay=0.6)
    algorithm.optimizer = torch.optim.SGD(algorithm.controller.parameters(), lr=1.0)
    algorithm.baseline = 0.2
    codes, scores = [(0, 1, 1), (2, 3, 0), (1, 1, 1)], [0.9, 0.4, 0.7]
    before = [p.detach().clone() for p in algorithm.controller.parameters()]
    _, log_p = algorithm.controller(torch.tensor(codes))
    objective = sum(p * (r**3 - 0.2) for p, r in zip(log_p, scores, strict=True)) / 3
    expected = torch.autograd.grad(objective, list(algorithm.controller.parameters()), allow_unused=True)
    for code, value in zip(codes, scores, strict=True):
        algorithm.tell(code, value)
    for old, new, step in zip(before, algorithm.controller.parameters(), expected, strict=True):
        assert torch.allclose(new, old if step is None else old + step, atol=1e-6)
    assert algorithm.baseline == pytest.approx(0.6 * 0.2 + 0.4 * np.mean([r**3 for r in scores]), abs=1e-6)


def test_reinforce_learns_what_pays() -> None:
    found = search(ReinforcedController(small(), batch=8, lr=0.02), hills, 480)
    assert np.mean(found.scores[-80:]) > np.mean(found.scores[:80]) + 0.3


# Evolution ------------------------------------------------------------------------------------------


def test_the_oldest_dies_and_not_the_worst() -> None:
    codes = [(0, 0, 0), (2, 3, 1), (0, 1, 0), (0, 2, 0)]
    for oldest, left in ((True, codes[1:]), (False, [codes[1], codes[2], codes[3]])):
        algorithm = AgeingEvolution(small(), population=3, sample=3, oldest=oldest)
        for code, value in zip(codes, (0.9, 0.8, 0.7, 0.75) if oldest else (0.1, 0.8, 0.7, 0.75), strict=True):
            algorithm.tell(code, value)
        assert [code for code, _ in algorithm.population] == left
    best_dies = AgeingEvolution(small(), population=3, sample=3)
    for code, value in zip(codes, (0.9, 0.8, 0.7, 0.75), strict=True):
        best_dies.tell(code, value)
    assert max(value for _, value in best_dies.population) == 0.8
    with pytest.raises(UsageError, match="sample 4"):
        AgeingEvolution(small(), population=3, sample=4)


def test_a_child_is_a_mutation_of_the_best_of_the_sample() -> None:
    algorithm = AgeingEvolution(small(), seed=5, population=4, sample=4)
    for code, value in zip([(0, 0, 0), (1, 2, 1), (2, 4, 0), (0, 3, 1)], (0.1, 0.9, 0.2, 0.3), strict=True):
        algorithm.ask()
        algorithm.tell(code, value)
    children = {algorithm.ask() for _ in range(40)}
    assert all(sum(a != b for a, b in zip(child, (1, 2, 1), strict=True)) == 1 for child in children)
    lazy = AgeingEvolution(small(), population=1, sample=1, identity=1.0)
    lazy.ask()
    lazy.tell((1, 2, 1), 0.5)
    assert lazy.ask() == (1, 2, 1)


def test_mutations_of_cells_draw_the_kind_first() -> None:
    """AmoebaNet's two mutations, of an operation and of a hidden state, are as frequent, whatever there is more of."""
    space = cell_space(pairs=3, reduction=False, image=(1, 8, 8))
    algorithm = AgeingEvolution(space, seed=1, population=1, sample=1, fresh=False)
    algorithm.tell(parent := space.sample(generator()), 0.5)
    algorithm.born = 1
    changed = [
        next(space.choices[i].kind for i in range(12) if a[i] != parent[i])
        for a in (algorithm.ask() for _ in range(300))
    ]
    assert 110 < changed.count("state") < 190


def test_genetic_children_have_their_parents_choices_and_the_elite_lives_on() -> None:
    algorithm = Genetic(small(), seed=3, population=3, tournament=3, elite=1, crossover=1.0, mutation=0.0, fresh=False)
    for code, value in zip([(0, 0, 0), (2, 4, 1), (1, 1, 1)], (0.7, 0.9, 0.1), strict=True):
        algorithm.tell(code, value)
    # With tournaments of all, both parents are the best: its only children are mutations of it.
    children = [algorithm.ask() for _ in range(20)]
    assert all(sum(a != b for a, b in zip(child, (2, 4, 1), strict=True)) == 1 for child in children)
    algorithm.tell((0, 1, 0), 0.2)
    assert len(algorithm.parents) == 3
    algorithm.tell((0, 2, 0), 0.3)
    assert [code for code, _ in algorithm.parents] == [(2, 4, 1), (0, 1, 0), (0, 2, 0)]
    wide = Genetic(small(), seed=3, population=3, tournament=1, elite=0, crossover=1.0, mutation=0.0, fresh=False)
    for code in [(0, 0, 0), (2, 4, 1), (0, 0, 0)]:
        wide.tell(code, 0.5)
    crossed = {wide.ask() for _ in range(60)}
    assert any(child not in ((0, 0, 0), (2, 4, 1)) and set(child) <= {0, 1, 2, 4} for child in crossed)
    with pytest.raises(UsageError, match="elite 3"):
        Genetic(small(), population=3, elite=3)


# Bayesian optimisation ------------------------------------------------------------------------------


def test_expected_improvement_is_the_mean_of_what_is_gained() -> None:
    mean, deviation = torch.tensor([0.1, 0.5, -0.4]).double(), torch.tensor([0.3, 0.05, 0.7]).double()
    draws = mean + deviation * torch.randn(400_000, 3, generator=generator(), dtype=torch.float64)
    gained = (draws - 0.4).clamp_min(0).mean(0)
    assert torch.allclose(expected_improvement(mean, deviation, 0.4), gained, atol=2e-3)


def test_path_distance_is_the_share_of_paths_not_in_both() -> None:
    a, b = torch.tensor([[1.0, 1, 0, 0]]), torch.tensor([[1.0, 0, 1, 1], [1, 1, 0, 0]])
    assert distances(a, b, "path").tolist() == [[0.75, 0.0]]


def test_an_ensemble_learns_and_its_members_differ_where_nothing_is_known() -> None:
    x = (torch.rand(60, 7, generator=generator()) > 0.5).float()
    y = (x[:, 0] - 0.5 * x[:, 1] + 0.2 * x[:, 2] * x[:, 3]).double()
    ensemble = Ensemble(seed=2).fit(x, y)
    mean, near = ensemble.predict(x)
    assert float(((mean - y) ** 2).mean()) < 0.05 * float(y.var())
    _, far = ensemble.predict(3 - 5 * x)
    assert float(far.mean()) > 3 * float(near.mean())


@pytest.mark.parametrize("model, encoding", [("gp", "hamming"), ("gp", "path"), ("ensemble", "path")])
def test_what_a_model_proposes_is_better_than_what_is_drawn(model: str, encoding: str) -> None:
    space = digits_space()
    best = (1, 2, 1, 1, 0, 1, 0, 1)

    def value(code: tuple[int, ...]) -> float:
        return 1 - 0.1 * sum(abs(a - b) for a, b in zip(code, best, strict=True))

    found = search(Bayesian(space, seed=1, model=model, encoding=encoding, every=4), value, 26)
    random = search(RandomSearch(space, seed=1), value, 26)
    assert np.mean(found.scores[-12:]) > np.mean(random.scores) + 0.08
    assert len(set(found.codes)) == 26


def test_bayesian_options() -> None:
    for wrong in ({"model": "forest"}, {"encoding": "graph"}, {"first": 0}):
        with pytest.raises(UsageError):
            Bayesian(small(), **wrong)
    with pytest.raises(UsageError, match="no paths"):
        small().path_encoding([(0, 0, 0)])


# Chains ---------------------------------------------------------------------------------------------


def test_a_chain_reads_what_it_says() -> None:
    network = ChainNet(
        [(3, 3, 5, 1, 1, ()), (5, 1, 1, 2, 1, (1,)), (7, 3, 3, 1, 1, (1, 2)), (2, 3, 1, 1, 1, ())],
        num_classes=11, in_channels=2, grid=2,
    ).eval()  # fmt: skip
    x = torch.randn(3, 2, 9, 7, generator=generator())
    assert [c.in_channels for c in network.convs] == [2, 3, 8, 2] and network.ends == (3, 4)

    def layer(n: int, y: torch.Tensor) -> torch.Tensor:
        return network.norms[n](network.convs[n](y)).relu()

    one = layer(0, x)
    two = layer(1, one)
    assert two.shape[2:] == (5, 7)
    three = layer(2, torch.cat([one, F.pad(two, (0, 0, 0, 4))], 1))  # the smaller map is padded with zeros
    last = torch.cat([three, layer(3, x)], 1)
    assert torch.allclose(network(x), network.fc(F.adaptive_avg_pool2d(last, 2).flatten(1)), atol=1e-6)
    assert [tuple(f.shape[1:]) for f in network.features(x)] == [(3, 9, 7), (5, 5, 7), (7, 9, 7), (2, 9, 7)]


@pytest.mark.parametrize(
    "layers, message",
    [([], "0 layers"), ([(3, 3, 3, 1, 1, (1,))], "reads layers"), ([(3, 2, 3, 1, 1, ())], "kernel of 2x3")],
)
def test_wrong_chains_are_refused(layers: list[tuple[object, ...]], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ChainNet(layers)


def test_the_papers_space() -> None:
    space = zoph_le_space(4, strides=True)
    assert space.choices[0].values == (24, 36, 48, 64) and space.choices[1].values == (1, 3, 5, 7)
    # Five choices of a layer, and a connection to each earlier one.
    assert len(space.choices) == 4 * 5 + 6
    network = space.build(space.sample(generator(2)))
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 10)


def test_the_space_of_digits() -> None:
    space = digits_space()
    assert len(space) == 576
    code = space.encode({
        "filters_1": 12, "kernel_1": 5, "filters_2": 4, "kernel_2": 1, "stride_2": 2, "skip_1_2": False,
        "skip_1_3": True, "skip_2_3": False,
    })  # fmt: skip
    network = space.build(code)
    assert network.layers == ((12, 5, 5, 1, 1, ()), (4, 1, 1, 2, 2, ()), (8, 3, 3, 1, 1, (1,)))
    assert space.cost(code).flops == count_cost(network, (1, 8, 8)).flops
    assert len(space.path_encoding([code, code])[0]) == 2  # image - 1 - 3, image - 2


# Cells ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [7, 8, 9, 11])
def test_same_padding_and_strided_averages_are_tensorflows(side: int) -> None:
    """The output has ceil(side / 2) pixels, and an average is over the pixels that are there."""
    x = torch.randn(1, 2, side, side + 2, generator=generator(), dtype=torch.float64)
    kernel, stride = 3, 2
    rows = range(math.ceil(side / stride))
    before = max((len(rows) - 1) * stride + kernel - side, 0) // 2
    across = max((math.ceil((side + 2) / 2) - 1) * stride + kernel - side - 2, 0) // 2
    y = Pool(2, 2, "avg3", 2)(x)
    assert y.shape[2:] == (math.ceil(side / 2), math.ceil((side + 2) / 2))
    for i, j in itertools.product(rows, range(y.shape[3])):
        top, left = i * stride - before, j * stride - across
        window = x[:, :, max(top, 0) : top + 3, max(left, 0) : left + 3]
        assert torch.allclose(y[:, :, i, j], window.mean((2, 3)))
        assert torch.allclose(Pool(2, 2, "max3", 2)(x)[:, :, i, j], window.amax((2, 3)))
    assert pad_same(x, 1, 2) is x


def test_a_cell_is_what_its_genotype_says() -> None:
    genotype = Genotype(((0, "sep3", 1, "none"), (2, "max3", 0, "avg3")), out=(2, 3))
    cell = NASCell(genotype, (5, 7), 3).eval()
    before, last = torch.randn(2, 5, 9, 7, generator=generator()), torch.randn(2, 7, 9, 7, generator=generator(1))
    a, b = cell.previous(before.relu()), cell.current(last.relu())
    first = cell.pair0_left(a.relu()) + b
    second = F.max_pool2d(first, 3, 1, 1) + F.avg_pool2d(a, 3, 1, 1, count_include_pad=False)
    assert torch.allclose(cell(before, last), torch.cat([first, second], 1), atol=1e-6)
    part = cell.pair0_left
    z = F.conv2d(a.relu(), part.depthwise1.weight, padding=1, groups=3)
    z = part.bn1(F.conv2d(z, part.pointwise1.weight)).relu()
    assert torch.allclose(part(a.relu()), part.bn2(part.pointwise2(part.depthwise2(z))), atol=1e-6)
    assert part.bn1.eps == 1e-3


@pytest.mark.parametrize(
    "pairs, out, message",
    [
        (((0, "sep3", 2, "none"),), (2,), "there are 0 to 1"),
        (((0, "sep4", 1, "none"),), (2,), "sep4"),
        (((0, "sep3", 1, "none"),), (3,), "go out"),
        (((0, "sep3", 1, "none"),), (), "go out"),
    ],
)
def test_wrong_cells_are_refused(pairs: tuple, out: tuple, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Genotype(pairs, out)


def test_features_are_the_last_maps_of_each_size() -> None:
    network = NASNet(repeats=2, width=4, stem=5, num_classes=3).eval()
    seen = {}
    for name, _ in network.cells:
        getattr(network, name).register_forward_hook(lambda m, i, y, name=name: seen.__setitem__(name, y))
    getattr(network, network.first).register_forward_hook(lambda m, i, y: seen.__setitem__("stem", y))
    taps = network.features(torch.randn(2, 3, 65, 97, generator=generator()))
    names = ["stem", "cell_stem_0", "cell_1", "cell_3", "cell_5"]
    assert len(taps) == 5 and all(tap is seen[name] for tap, name in zip(taps, names, strict=True))
    assert [tuple(tap.shape[1:]) for tap in taps] == [(5, 32, 48), (4, 16, 24), (24, 8, 12), (48, 4, 6), (96, 2, 3)]
    assert torch.equal(network(torch.ones(1, 3, 33, 35)), network(torch.ones(1, 3, 33, 35)))


def test_drop_path_zeroes_whole_images_and_grows_with_depth_and_training() -> None:
    torch.manual_seed(0)
    y = drop_path(torch.ones(2000, 2, 3, 3), 0.3)
    kept = y.flatten(1)
    assert ((kept == 0).all(1) | (kept == kept[:, :1]).all(1)).all()
    assert float((kept[:, 0] == 0).float().mean()) == pytest.approx(0.3, abs=0.05)
    assert float(y.max()) == pytest.approx(1 / 0.7)
    network = NASNet(repeats=1, width=5, stem=None, num_classes=3, in_channels=1, drop_path=0.4)
    system = ScheduledDropPath(network, steps=4)
    batch = {"image": torch.randn(3, 1, 8, 8), "label": torch.tensor([0, 1, 2])}
    rates = []
    for _ in range(6):
        system(batch, "loss")
        rates.append([getattr(network, name).rate for name, _ in network.cells])
        system.after_update("loss")
    assert rates[0] == [0.0] * 5 and rates[4] == rates[5] == pytest.approx([0.08, 0.16, 0.24, 0.32, 0.4])
    assert rates[2] == pytest.approx([0.04, 0.08, 0.12, 0.16, 0.2])


def test_codes_of_one_cell_are_one_network() -> None:
    space = cell_space(pairs=2, image=(1, 8, 8), width=4, num_classes=7)
    assert len(space.choices) == 2 * 2 * 4
    values = space.decode(space.sample(generator(4)))
    code = space.encode(values)
    for part in ("", "_state"):
        names = [f"normal_1_{side}{part}" for side in ("left", "right")]
        values[names[0]], values[names[1]] = values[names[1]], values[names[0]]
    other = space.encode(values)
    assert space.canonical(code) == space.canonical(other)
    assert space.path_encoding([code, other])[0].equal(space.path_encoding([code, other])[1])
    assert space.build(code)(torch.randn(2, 1, 8, 8)).shape == (2, 7)
    genotype = genotype_of(values, "normal", 2)
    assert genotype.out == ((3,) if 2 in genotype.pairs[1] else (2, 3))


# Evaluation -----------------------------------------------------------------------------------------


def few(count: int = 150) -> tuple[Examples, Examples]:
    data = digits("train")
    rows = np.arange(count)
    batch = data.batch(rows, Draws(0, 0, rows))
    return split_off(Examples((batch["image"] - 0.305) / 0.376, batch["label"]), 0.4)


def test_the_validation_images_are_others() -> None:
    train, valid = few(150)
    assert len(train) == 90 and len(valid) == 60
    images = {image.numpy().tobytes() for image in train.images}
    assert not images & {image.numpy().tobytes() for image in valid.images}
    with pytest.raises(UsageError, match="leaves none"):
        split_off(train, 0.001)


def test_a_child_learns_and_results_are_kept() -> None:
    train, valid = few(200)
    evaluator = Evaluator(digits_space(), train, valid, Training(steps=40, batch_size=11, crop=1), seed=3)
    code = (1, 1, 1, 1, 0, 1, 0, 1)
    value = evaluator(code)
    assert value > 0.5 and evaluator.steps == 40
    assert evaluator(code) == value and evaluator.steps == 40
    assert Evaluator(digits_space(), train, valid, evaluator.how, seed=3)(code) == value
    assert accuracy(evaluator.child(code), valid) == pytest.approx(value, abs=0.02)
    again = Evaluator(digits_space(), train, valid, evaluator.how)
    again.load_state_dict(evaluator.state_dict())
    assert again(code) == value and again.steps == 0
    with pytest.raises(UsageError, match="fewer than a batch"):
        Evaluator(digits_space(), train, valid, Training(batch_size=256))(code)


def test_children_worse_than_the_median_stop_early() -> None:
    train, valid = few()
    evaluator = Evaluator(digits_space(), train, valid, Training(steps=8, batch_size=11, checks=4, median=True))
    evaluator.curves = [[1.0, 1.0, 1.0, 1.0]] * 5
    evaluator((0, 0, 0, 0, 0, 0, 0, 0))
    assert evaluator.steps == 2 and len(evaluator.curves[-1]) == 1
    evaluator.curves = [[0.0, 0.0, 0.0, 0.0]] * 5
    evaluator((1, 0, 0, 0, 0, 0, 0, 0))
    assert evaluator.steps == 2 + 8


def test_shared_weights_are_where_a_child_begins() -> None:
    train, valid = few()
    how = Training(steps=3, batch_size=11, lr=0.0, share=True)
    evaluator = Evaluator(digits_space(), train, valid, how)
    first = evaluator.trained((1, 1, 1, 1, 0, 1, 0, 1))[1]
    second = evaluator.trained((1, 1, 1, 2, 0, 1, 0, 1))[1]  # another kernel in the second layer
    assert second.convs[0].weight.equal(first.convs[0].weight)
    assert second.convs[2].weight.equal(first.convs[2].weight)
    apart = Evaluator(digits_space(), train, valid, Training(steps=3, batch_size=11, lr=0.0))
    assert not apart.trained((1, 1, 1, 2, 0, 1, 0, 1))[1].convs[0].weight.equal(first.convs[0].weight)
    with pytest.raises(UsageError, match="several processes"):
        evaluator.many([(0,) * 8])


def test_processes_score_as_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jingdu.papers.cnn.nas.evaluation.START", "fork")  # in no time; the default begins from nothing
    train, valid = few()
    codes = [(0, 0, 0, 0, 0, 0, 0, 0), (1, 1, 1, 1, 0, 1, 0, 1), (0, 0, 0, 0, 0, 0, 0, 0)]
    make = lambda: Evaluator(digits_space(), train, valid, Training(steps=5, batch_size=11))  # noqa: E731
    alone = make().many(codes, processes=1)
    assert alone[0] == alone[2]
    assert make().many(codes, processes=2) == alone


def test_the_shipped_table_is_of_the_space_of_digits(tmp_path: Path) -> None:
    space = digits_space()
    table = Table.read(space)
    assert set(table.rows) == set(space.codes()) and len(table.rows) == 576
    values = np.array(list(table.rows.values()))
    assert values.min() > 0.2 and values.max() == pytest.approx(max(table.optimum, values[:, 1].max()))
    assert values[:, 0].std() > 0.02 and np.corrcoef(values.T)[0, 1] > 0.8
    again = Table.read(space, table.write(tmp_path / "table.json"))
    assert again.rows == table.rows and again((0,) * 8) == table((0,) * 8) and again.test((0,) * 8) == values[0, 1]
    with pytest.raises(BadInput, match="not those of this space"):
        Table.read(small(), tmp_path / "table.json")
    with pytest.raises(UsageError, match="no code"):
        Table(space, {})((0,) * 8)


def test_the_table_is_made_again_by_its_command() -> None:
    """One of its rows; another machine rounds otherwise, and a few steps amplify that."""
    from jingdu.papers.cnn.nas.digits import problem

    evaluator, test = problem()
    table = Table.read(evaluator.space)
    code = (1, 1, 1, 1, 0, 1, 0, 1)
    value, network = evaluator.trained(code)
    assert value == pytest.approx(table(code), abs=0.05)
    assert accuracy(network, test) == pytest.approx(table.test(code), abs=0.05)


# A search as a run ----------------------------------------------------------------------------------

TINY = "steps=4, batch_size=16, checks=1, retrain=6"


def test_a_run_ranks_architectures_and_trains_the_best(tmp_path: Path) -> None:
    system = f"nas.Search(algorithm='ageing(population=2, sample=2)', evaluations=4, share=True, {TINY})"
    run = jingdu.train("nas", tmp_path / "run", system=system, quiet=True)
    assert run.metrics["children"] == 4 and 0 <= run.metrics["error"] < 1
    assert jingdu.evaluate("nas_chain_digits", tmp_path / "run") == run.metrics
    network = jingdu.load(tmp_path / "run")
    (report,) = jingdu.predict(
        "nas_chain_digits", [str(tmp_path / "run")], weights=tmp_path / "run", out=tmp_path / "r.png"
    )
    assert report.data["evaluations"] == 4 and (tmp_path / "r.png").exists()
    ranking = report.data["ranking"]
    assert [row["score"] for row in ranking] == sorted((row["score"] for row in ranking), reverse=True)
    space = digits_space()
    best = space.encode(ranking[0]["architecture"])
    assert network.layers == space.build(best).layers
    (about,) = jingdu.predict("nas_chain_digits", [], weights=tmp_path / "run")
    assert "layer 3: 3x3/1, 8 filters" in about.text and about.data["flops"] == space.cost(best).flops
    from PIL import Image

    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "digit.png")
    (prediction,) = jingdu.predict("nas_chain_digits", [str(tmp_path / "digit.png")], weights=tmp_path / "run", top=3)
    assert len(prediction.data["top"]) == 3


def test_a_search_goes_on_where_it_was_cut() -> None:
    batch = {"image": few(160)[0].images, "label": few(160)[0].labels}

    def make() -> Search:
        options = {"steps": 3, "batch_size": 16, "checks": 1, "retrain": 5, "median": True, "share": True}
        return Search(
            jingdu.create("nas_chain_digits"), algorithm="genetic(population=3, elite=1)", evaluations=7, seed=5, target=9e4,
            **options,
        )  # fmt: skip

    whole, part = make(), make()
    for number in range(3):
        assert whole.observe(batch, number) == part.observe(batch, number)
    other = make()
    other.load_state_dict(part.state_dict())
    for number in range(3, 8):
        torch.manual_seed(number)
        a = whole.observe(batch, number)
        torch.manual_seed(number)
        assert other.observe(batch, number) == a
    a, b = whole.network.state_dict(), other.network.state_dict()
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    assert whole.network.origin.overrides["layers"] == other.network.layers
    best = max(range(7), key=whole.found.scores.__getitem__)
    cost = whole.space.cost(whole.found.codes[best]).flops
    assert whole.found.scores[best] == pytest.approx(score(whole.accuracies[best], cost, 9e4))
    with pytest.raises(UsageError, match="at once"):
        whole.observe(batch, 7)
    state = whole.state_dict()
    state["codes"][3] = [0] * 8 if state["codes"][3] != [0] * 8 else [1] * 8
    with pytest.raises(Refused, match="proposes other"):
        make().load_state_dict(state)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"space": "graph"}, "space"),
        ({"algorithm": "annealing"}, "algorithm"),
        ({"algorithm": "ageing(populaton=3)"}, "populaton"),
        ({"space": "cells"}, "name another network"),
        ({"stpes": 3}, "stpes"),
        ({"evaluations": 0}, "positive"),
    ],
)
def test_wrong_searches_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Search(jingdu.create("nas_chain_digits"), **options)


def test_cells_are_searched_too() -> None:
    batch = {"image": few(100)[0].images, "label": few(100)[0].labels}
    network = jingdu.create("nas_cells_digits")
    options = {"steps": 1, "batch_size": 16, "checks": 1, "retrain": 1}
    system = Search(network, "cells(pairs=2, width=4, image=(1, 8, 8))", "random", evaluations=1, **options)
    logged = system.observe(batch, 0)
    system.observe(batch, 1)
    made = jingdu.create("nas_cells_digits", **system.network.origin.overrides)
    assert made.state_dict().keys() == system.network.state_dict().keys()
    assert count_cost(made, (1, 8, 8)).flops == logged["flops"]


def test_a_chain_is_drawn_with_all_its_connections() -> None:
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    draw_chain(axes, ((4, 3, 3, 1, 1, ()), (5, 1, 1, 2, 2, ()), (8, 3, 3, 1, 1, (1,))))
    assert [text.get_text() for text in axes.texts if text.get_text()] == [
        "image", "3x3, 4 filters", "1x1 /2, 5 filters", "3x3, 8 filters", "classifier",
    ]  # fmt: skip
    assert sum(not text.get_text() for text in axes.texts) == 5


@pytest.mark.parametrize("space", [digits_space(), cell_space(pairs=2, width=4, reduction=False, image=(1, 8, 8))])
def test_arguments_build_the_network_of_a_code(space: SearchSpace) -> None:
    code = space.sample(torch.Generator().manual_seed(3))
    network = space.build(code)
    again = type(network)(**space.arguments(code))
    again.load_state_dict(network.state_dict())
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(again.eval()(x), network.eval()(x))


def test_a_space_that_does_not_say_its_arguments() -> None:
    with pytest.raises(UsageError, match="arguments="):
        SearchSpace([Choice("a", (1, 2))]).arguments((0,))
