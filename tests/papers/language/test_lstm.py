"""LSTM's own parts: gates, dropouts, tied and adaptive softmax, the adding problem."""

import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import jingdu
from jingdu.data.draws import Draws
from jingdu.engine import train
from jingdu.errors import UsageError
from jingdu.papers.language.lstm import (
    LSTMCell,
    Regression,
    SampledSoftmax,
    VariationalDropout,
    adding,
    encoder_decoder,
    predict,
    recipes,
)
from jingdu.papers.language.rnn import Recurrent, generate
from jingdu.verbs import change

BATCH, TIME, INPUTS, HIDDEN = 5, 7, 3, 11


def draw(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# The cell -------------------------------------------------------------------------------------------


def test_error_flows_back_unchanged_through_an_open_cell() -> None:
    """The constant error carousel: with f = 1, the gradient of c_T with respect to c_0 by the cell alone is one."""
    cell = LSTMCell(INPUTS, HIDDEN, forget_bias=None).double()
    torch.nn.init.zeros_(cell.weight_hh)  # nothing goes back through the gates
    c0 = torch.zeros(BATCH, HIDDEN, dtype=torch.float64, requires_grad=True)
    state = (torch.zeros_like(c0), c0)
    for t in range(50):
        state = cell(draw(BATCH, INPUTS, seed=t).double(), state)
    (gradient,) = torch.autograd.grad(state[1].sum(), c0)
    assert torch.equal(gradient, torch.ones_like(c0))


@pytest.mark.parametrize("peepholes", [False, True])
def test_truncated_gradient_goes_back_through_the_cell_alone(peepholes: bool) -> None:
    """Gates take h and c as constants: from c_T to c_0 there is the product of the forget gates, from h_0 nothing."""
    torch.manual_seed(1)
    whole = LSTMCell(INPUTS, HIDDEN, peepholes=peepholes).double()
    torch.manual_seed(1)
    cell = LSTMCell(INPUTS, HIDDEN, peepholes=peepholes, truncated=True).double()
    assert cell.kernel() is None
    start = [draw(BATCH, HIDDEN, seed=s).double().requires_grad_() for s in (2, 3)]
    state, product, same = tuple(start), torch.ones(BATCH, HIDDEN, dtype=torch.float64), tuple(start)
    for t in range(6):
        x = draw(BATCH, INPUTS, seed=t).double()
        f = (cell.project(x) + state[0] @ cell.weight_hh.t()).chunk(4, 1)[1]
        product = product * (f if cell.weight_peep is None else f + cell.weight_peep[1] * state[1]).sigmoid()
        state, same = cell(x, state), whole(x, same)
    assert all(torch.equal(a, b) for a, b in zip(state, same, strict=True))
    to_h, to_c = torch.autograd.grad(state[1].sum(), start, allow_unused=True, retain_graph=True)
    assert to_h is None and torch.allclose(to_c, product.detach())
    assert torch.autograd.grad(same[1].sum(), start)[0].abs().min() > 0
    to_weight = torch.autograd.grad(state[1].sum(), cell.weight_hh)[0].chunk(4)
    assert all(part.abs().sum() > 0 for part in to_weight[:3]) and not to_weight[3].any()  # o is not on the way


def test_forget_bias_is_the_forget_gates_alone() -> None:
    plain, other = LSTMCell(INPUTS, HIDDEN), LSTMCell(INPUTS, HIDDEN, forget_bias=1.0)
    other.load_state_dict(plain.state_dict())
    x, state = draw(BATCH, INPUTS), (draw(BATCH, HIDDEN, seed=2), draw(BATCH, HIDDEN, seed=3))
    assert not torch.allclose(plain(x, state)[1], other(x, state)[1])
    with torch.no_grad():
        plain.bias_ih[HIDDEN : 2 * HIDDEN] += 1
    assert all(torch.allclose(a, b) for a, b in zip(plain(x, state), other(x, state), strict=True))


def test_input_gates_may_start_closed() -> None:
    net = jingdu.create("lstm_adding", hidden=HIDDEN, layers=2, direction="both", input_bias=-3.0)
    for cell in (cell for layer in net.recurrent.layers for cell in layer.cells):
        i, *others = cell.bias_ih.detach().chunk(4)
        assert (i + 3).abs().max() < HIDDEN**-0.5 and all(part.abs().max() < HIDDEN**-0.5 for part in others)
        assert i.std() > 0.01 and cell.bias_ih.requires_grad
    with pytest.raises(UsageError, match="biases=1"):
        jingdu.create("lstm_adding", biases=0)


@pytest.mark.parametrize("options, quick", [
    ({}, True), ({"forget_bias": 1.0}, True), ({"forget_bias": 1.0, "biases": 1}, True),
    ({"forget_bias": 1.0, "biases": 0}, True), ({"projection": 4, "biases": 1}, True), ({"forget_bias": None}, False),
    ({"peepholes": True}, False), ({"cell_clip": 0.3}, False), ({"truncated": True}, False), ({"projection": 4, "projection_clip": 0.3}, False),
])  # fmt: skip
def test_torchs_loop_is_used_where_it_is_the_same(options: dict, quick: bool) -> None:
    net = Recurrent(partial(LSTMCell, hidden=HIDDEN, **options), INPUTS, 2, "both")
    assert (net.layers[0].forwards.kernel() is not None) == quick
    x, lengths = 3 * draw(BATCH, TIME, INPUTS), torch.tensor([7, 1, 4, 6, 3])
    y1, s1 = net(x, None, lengths)
    y2, s2 = net.use_kernels(False)(x, None, lengths)
    assert torch.allclose(y1, y2, rtol=1e-4, atol=1e-6) and y1.shape == (BATCH, TIME, net.outputs)
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(s1, s2, strict=True))


def test_clips_bound_what_they_name() -> None:
    cell = LSTMCell(INPUTS, HIDDEN, forget_bias=None, projection=4, cell_clip=0.3, projection_clip=0.1)
    h, c = cell(5 * draw(BATCH, INPUTS), (draw(BATCH, 4), 2 * draw(BATCH, HIDDEN, seed=2)))
    assert c.abs().max().item() == pytest.approx(0.3) and h.abs().max().item() == pytest.approx(0.1)


def test_impossible_cells() -> None:
    with pytest.raises(UsageError, match="positive"):
        LSTMCell(3, 4, cell_clip=-1)
    with pytest.raises(UsageError, match="projection=SIZE"):
        LSTMCell(3, 4, projection_clip=1)
    with pytest.raises(UsageError, match="one shape"):
        jingdu.create("lstm_characters", vocabulary=9, hidden=4, embedding=3, tie=True)
    with pytest.raises(UsageError, match="wings"):
        jingdu.create("lstm_characters", wings=2)
    with pytest.raises(UsageError, match="adaptive or sampled"):
        jingdu.create("lstm_characters", cutoffs=(20,), draws=7)
    with pytest.raises(UsageError, match="1 or more"):
        jingdu.create("lstm_characters", draws=-1)


# Dropout, softmax -----------------------------------------------------------------------------------


def test_dropout_is_between_layers_and_not_after_the_last() -> None:
    torch.manual_seed(1)
    net = jingdu.create("lstm_cell_100_128", inputs=INPUTS, hidden=HIDDEN, layers=2, dropout=0.5)
    one = jingdu.create("lstm_cell_100_128", inputs=INPUTS, hidden=HIDDEN, layers=1, dropout=0.5)
    x = draw(BATCH, TIME, INPUTS)
    assert not torch.equal(net(x)[0], net(x)[0]) and torch.equal(one(x)[0], one(x)[0])
    assert (net(x)[0] != 0).all()
    net.eval()
    assert torch.equal(net(x)[0], net(x)[0])


@pytest.mark.parametrize("time", [0, 1])
def test_variational_dropout_has_one_mask_for_all_steps(time: int) -> None:
    torch.manual_seed(1)
    drop, x = VariationalDropout(0.4, time), torch.ones(31, 37, 5)
    y = drop(x)
    first = y.select(time, 0)
    assert all(torch.equal(y.select(time, t), first) for t in range(x.shape[time]))
    assert y.unique().tolist() == pytest.approx([0.0, 1 / 0.6]) and y.mean().item() == pytest.approx(1, abs=0.1)
    assert drop.eval()(x) is x


def test_dropouts_of_a_language_model() -> None:
    tokens = torch.randint(13, (3, TIME), generator=torch.Generator().manual_seed(1))
    for variational in (False, True):
        torch.manual_seed(2)
        model = jingdu.create("lstm_zaremba_small", vocabulary=13, hidden=8, dropout=0.5, variational=variational)
        seen = []
        model.output.register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0]))  # noqa: B023
        model(tokens)
        dropped = seen[0] == 0
        assert 0.2 < dropped.float().mean() < 0.8
        assert (dropped == dropped[:, :1]).all() == variational


def test_zaremba_start_and_sizes() -> None:
    model = jingdu.create("lstm_zaremba_small")
    assert all(
        p.abs().max() <= 0.1 and p.std().item() == pytest.approx(0.1 / 3**0.5, rel=0.1) for p in model.parameters()
    )
    assert [len(model.recurrent.layers), model.recurrent.sizes] == [2, (200, 200)]
    assert model.recurrent.layers[0].forwards.bias_hh is None


def test_sampled_softmax_is_the_definition() -> None:
    torch.manual_seed(1)
    softmax = SampledSoftmax(5, 17, 6)
    y, targets = draw(2, 3, 5), torch.randint(17, (2, 3), generator=torch.Generator().manual_seed(2))
    assert torch.allclose(
        softmax.eval().nats(y, targets), -softmax(y).log_softmax(-1).gather(-1, targets[..., None])[..., 0]
    )
    torch.manual_seed(3)
    found = softmax.train().nats(y, targets)
    torch.manual_seed(3)
    drawn = softmax.sample().tolist()
    assert len(set(drawn)) == len(drawn) <= 6
    p = [(math.log(k + 2) - math.log(k + 1)) / math.log(18) for k in range(17)]
    assert sum(p) == pytest.approx(1)
    scores = softmax(y) - torch.tensor([math.log(1 - (1 - v) ** 6) for v in p])
    for row, column in np.ndindex(2, 3):
        among = sorted({*drawn, int(targets[row, column])})
        expected = scores[row, column, among].logsumexp(0) - scores[row, column, targets[row, column]]
        assert torch.allclose(found[row, column], expected, rtol=1e-4)


def test_sampled_symbols_are_as_probable_as_is_said() -> None:
    torch.manual_seed(1)
    softmax, counts = SampledSoftmax(5, 17, 6), torch.zeros(17)
    for _ in range(2000):
        counts[softmax.sample()] += 1
    assert torch.allclose(counts / 2000, softmax.log_included(torch.arange(17)).exp(), atol=0.05)


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_tied_and_adaptive_models_train() -> None:
    tokens = torch.randint(29, (4, 9), generator=torch.Generator().manual_seed(1))
    for options in (
        {"tie": True},
        {"cutoffs": (5, 17)},
        {"draws": 60},
        {"projection": 6, "biases": 2, "residual": True},
    ):
        torch.manual_seed(2)
        model = jingdu.create("lstm_characters", vocabulary=29, hidden=16, layers=2, **options)
        optimizer = torch.optim.Adam(model.parameters(), 0.05)
        losses = []
        for _ in range(40):
            nats, _ = model(tokens[:, :-1], None, tokens[:, 1:])
            optimizer.zero_grad()
            nats.mean().backward()
            assert all(p.grad is not None for p in model.parameters())
            optimizer.step()
            losses.append(nats.mean().item())
        assert losses[-1] < 0.5 * losses[0], options
        logits, state = model(tokens)
        assert logits.shape == (4, 9, 29) and state[0].shape[-1] == options.get("projection", 16)
        made = generate(model.eval(), [tokens[0, :3], tokens[1, :1]], 5)
        assert [len(row) for row in made] == [5, 5]


def test_encoder_decoder_of_lstms() -> None:
    net = encoder_decoder(13, 8, layers=2, embedding=4, target_vocabulary=17, forget_bias=1.0)
    draws = torch.Generator().manual_seed(2)
    source, target = torch.randint(13, (3, 6), generator=draws), torch.randint(17, (3, 5), generator=draws)
    lengths = torch.tensor([6, 2, 4])
    logits = net(source, target, lengths)
    assert logits.shape == (3, 5, 17)
    alone = net(source[1:2, :2], target[1:2])
    assert torch.allclose(logits[1:2], alone, rtol=1e-4, atol=1e-6)
    found = generate(net.reading(source, lengths), [torch.tensor([1])] * 3, 4)
    assert len(found) == 3


# The adding problem ---------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [2, 9, 100])
def test_adding_marks_one_number_in_each_half(length: int) -> None:
    data = adding("train", length, count=500)
    rows = np.arange(500)
    batch = data.batch(rows, Draws(3, 0, rows))
    x, y = batch["x"], batch["y"]
    assert x.shape == (500, length, 2) and y.shape == (500, 1)
    half = length // 2
    assert (x[:, :half, 1].sum(1) == 1).all() and (x[:, half:, 1].sum(1) == 1).all()
    assert torch.allclose(y[:, 0], (x[..., 0] * x[..., 1]).sum(1))
    assert y.var().item() == pytest.approx(1 / 6, rel=0.2)
    assert not torch.equal(data.batch(rows, Draws(3, 1, rows))["x"], x)


def test_adding_test_sequences_are_always_the_same() -> None:
    data = adding("test", 20)
    rows = np.array([5, 1900])
    assert torch.equal(data.batch(rows, Draws(3, 0, rows))["x"], data.batch(rows, Draws(4, 2, rows))["x"])
    with pytest.raises(UsageError, match="length=1"):
        adding("train", 1)


def test_guessing_one_costs_a_sixth() -> None:
    class One(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.ones(len(x), 1)

    system, data = Regression(One()), adding("test", 20)
    for first in range(0, 2000, 700):
        rows = np.arange(first, min(first + 700, 2000))
        system.update(data.batch(rows, Draws(0, 0, rows)))
    assert system.compute()["mse"] == pytest.approx(1 / 6, rel=0.07)


# Recipes --------------------------------------------------------------------------------------------


def test_recipes_train_and_predict(tmp_path: Path) -> None:
    stage = change(recipes["adding"].stages[0], steps=2, data="lstm.adding(length=6)", batch_size=8)
    assert 0 < train(stage, tmp_path / "adding", quiet=True).metrics["mse"] < 5
    arguments = "of='pydoc_topics', unit='characters', vocabulary=128, length=8, batch=4"
    stage = change(
        recipes["laptop"].stages[0], steps=3, batch_size=4, networks={"network": "lstm_characters(hidden=8)"},
        data=f"rnn.Streams({arguments})", eval_data="rnn.streams(of='sentences', unit='characters', length=20, batch=4)",
        system="rnn.Stateful(batch=4)",
    )  # fmt: skip
    run = train(stage, tmp_path / "run", quiet=True)
    assert run.metrics["bits_per_byte"] > 3
    (one,) = predict(jingdu.load(tmp_path / "run"), ["The cat"], length=5, seed=2)
    assert len(one.data["continuation"]) == 5 and len(one.data["nats"]) == 7


def test_zarembas_rate_holds_and_then_falls() -> None:
    from jingdu.engine.optimise import make_schedule

    schedule = make_schedule(recipes["paper"].stages[0].schedule)
    rates = [schedule(int(epoch * 10), 390, 10.0)["lr"] for epoch in (0, 5.9, 6, 7, 38)]
    assert rates == pytest.approx([1, 1, 1 / 1.2, 1 / 1.2**2, 1 / 1.2**33])
