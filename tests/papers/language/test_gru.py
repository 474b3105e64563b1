"""GRU's own parts: two places of the reset gate, the encoder-decoder, phrases and their scores."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import jingdu
from jingdu.data.catalogues import catalogues
from jingdu.data.draws import Draws
from jingdu.engine import train
from jingdu.errors import UsageError
from jingdu.papers.language.gru import (
    GRUCell,
    Summary,
    encode_pairs,
    log_linear,
    log_probability,
    phrases,
    predict,
    recipes,
)
from jingdu.papers.language.rnn import Recurrent, Symbols, generate
from jingdu.verbs import change

BATCH, TIME, INPUTS, HIDDEN = 5, 7, 3, 11


def draw(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# The cell -------------------------------------------------------------------------------------------


def test_the_two_resets_are_different_functions() -> None:
    before, after = GRUCell(INPUTS, HIDDEN, reset="before"), GRUCell(INPUTS, HIDDEN)
    before.load_state_dict(after.state_dict())
    x, h = draw(BATCH, INPUTS), draw(BATCH, HIDDEN, seed=2)
    assert not torch.allclose(before(x, (h,))[0], after(x, (h,))[0], atol=1e-3)
    with torch.no_grad():  # with r = 1 they are the same
        for cell in (before, after):
            cell.bias_ih[:HIDDEN] = 50
    assert torch.allclose(before(x, (h,))[0], after(x, (h,))[0], atol=1e-5)


@pytest.mark.parametrize("reset", ["before", "after"])
def test_an_open_update_gate_copies_the_state(reset: str) -> None:
    cell = GRUCell(INPUTS, HIDDEN, reset=reset)
    with torch.no_grad():
        cell.bias_ih[HIDDEN : 2 * HIDDEN] = 50
    h = draw(BATCH, HIDDEN, seed=2)
    assert torch.allclose(cell(draw(BATCH, INPUTS), (h,))[0], h)


@pytest.mark.parametrize("reset, quick", [("before", False), ("after", True)])
@pytest.mark.parametrize("biases", [0, 1, 2])
def test_torchs_loop_is_used_where_it_is_the_same(reset: str, quick: bool, biases: int) -> None:
    net = Recurrent(partial(GRUCell, hidden=HIDDEN, reset=reset, biases=biases), INPUTS, 2, "both")
    assert (net.layers[0].forwards.kernel() is not None) == quick
    x, lengths = 3 * draw(BATCH, TIME, INPUTS), torch.tensor([7, 1, 4, 6, 3])
    y1, (h1,) = net(x, None, lengths)
    y2, (h2,) = net.use_kernels(False)(x, None, lengths)
    assert torch.allclose(y1, y2, rtol=1e-4, atol=1e-6) and torch.allclose(h1, h2, rtol=1e-4, atol=1e-6)


def test_unknown_reset() -> None:
    with pytest.raises(UsageError, match="before"):
        GRUCell(INPUTS, HIDDEN, reset="befor")


# The encoder-decoder --------------------------------------------------------------------------------

SIZES = {"source_vocabulary": 13, "target_vocabulary": 17, "embedding": 5, "hidden": 11, "maxout_units": 7, "rank": 3}


def pair(reset: str = "before") -> torch.nn.Module:
    torch.manual_seed(5)
    return jingdu.create("gru_catalogues", **SIZES, reset=reset).eval()


def tokens() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draws = torch.Generator().manual_seed(7)
    lengths = torch.tensor([6, 2, 4])
    return torch.randint(13, (3, 6), generator=draws), lengths, torch.randint(17, (3, 4), generator=draws)


@pytest.mark.parametrize("reset", ["before", "after"])
def test_padding_of_the_source_does_not_count(reset: str) -> None:
    model = pair(reset)
    source, lengths, target = tokens()
    logits = model(source, target, lengths)
    for row, n in enumerate(lengths.tolist()):
        alone = model(source[row : row + 1, :n], target[row : row + 1])
        assert torch.allclose(logits[row : row + 1], alone, rtol=1e-4, atol=1e-6)


def test_the_decoder_sees_c_at_every_step() -> None:
    """With its own state held at zero by an open reset of everything else, c still changes every output."""
    model = pair()
    source, lengths, target = tokens()
    state = model.encode(source, lengths)
    other = Summary(state.h, -state.c)
    y1, e, _ = model.read(target, state)
    y2, _, _ = model.read(target, other)
    assert ((y1 - y2).abs().amax((0, 2)) > 1e-3).all()
    assert (
        (model.logits(y1, e, state.c[:, None]) - model.logits(y1, e, other.c[:, None])).abs().amax((0, 2)) > 1e-4
    ).all()


def test_step_is_forward() -> None:
    model = pair()
    source, lengths, target = tokens()
    logits = model(source, target, lengths)
    reading = model.reading(source, lengths)
    state = reading.init_state(3, 9)
    for t in range(4):
        found, state = reading.step(target[:, t : t + 1], state)
        assert torch.allclose(found, logits[:, t], rtol=1e-4, atol=1e-6)
    sizes = torch.tensor([3, 1, 4])
    found, state = reading.step(target, reading.init_state(3, 9), sizes)
    expected = torch.stack([logits[row, n - 1] for row, n in enumerate(sizes.tolist())])
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-6)
    again, _ = reading.step(target[[2, 0], :1], state.select(torch.tensor([2, 0])))
    longer = torch.cat([target[2], target[2, :1]])[None]
    assert torch.allclose(again[0], model(source[2:, :4], longer)[0, -1], rtol=1e-4, atol=1e-6)


def test_generation_continues_each_source_alone() -> None:
    model = pair()
    source, lengths, _ = tokens()
    start = torch.tensor([1])
    found = generate(model.reading(source, lengths), [start] * 3, 6)
    for row, n in enumerate(lengths.tolist()):
        (alone,) = generate(model.reading(source[row : row + 1, :n]), [start], 6)
        assert torch.equal(found[row], alone)


def test_papers_start() -> None:
    model = jingdu.create("gru_phrases", **{**SIZES, "hidden": 64, "embedding": 50})
    assert model.summary.weight.std().item() == pytest.approx(0.01, rel=0.1)
    for cell in (model.encoder.layers[0].forwards, model.decoder):
        for w in cell.weight_hh.chunk(3):
            assert torch.allclose(w @ w.T, torch.eye(64), atol=1e-4)
        assert not cell.bias_ih.any()


def test_every_parameter_gets_a_gradient() -> None:
    model = pair().train()
    source, lengths, target = tokens()
    model(source, target, lengths).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


# Phrases --------------------------------------------------------------------------------------------


def test_log_probability_is_the_products() -> None:
    model = pair()
    source, lengths, target = tokens()
    mask = torch.arange(4) < torch.tensor([[4], [3], [2]])
    batch = {"source": source, "lengths": lengths, "target": target, "mask": mask}
    found = log_probability(model, batch)
    for row, (n, m) in enumerate(zip(lengths.tolist(), (4, 3, 2), strict=True)):
        p = model(source[row : row + 1, :n], target[row : row + 1, : m - 1]).log_softmax(-1)[0]
        expected = sum(p[t, target[row, t + 1]] for t in range(m - 1))
        assert torch.allclose(found[row], expected, rtol=1e-4)


def test_probabilities_of_all_targets_sum_to_one() -> None:
    """Over a vocabulary of three symbols, one of which ends: all targets of two symbols and shorter ones."""
    torch.manual_seed(1)
    model = jingdu.create("gru_catalogues", **{**SIZES, "source_vocabulary": 3, "target_vocabulary": 3}).eval()
    end, start, total = 2, 0, 0.0
    rows = [[end], *([a, b] for a in (0, 1) for b in (0, 1, end))]
    for row in rows:
        target = torch.tensor([[start, *row]])
        batch = {"source": torch.tensor([[1, 2]]), "lengths": torch.tensor([2]), "target": target, "mask": target >= 0}
        total += log_probability(model, batch).exp().item()
    assert total == pytest.approx(1, rel=1e-4)


def test_log_linear() -> None:
    features = draw(3, 10, 2)
    assert torch.allclose(log_linear(features, torch.tensor([2.0, -1.0])), 2 * features[..., 0] - features[..., 1])


@pytest.mark.parametrize("unit", ["characters", "words"])
def test_phrases_are_the_catalogues_texts(unit: str) -> None:
    data, plain = phrases("test", ("fr", "es"), unit=unit, longest=40), catalogues("test", ("fr", "es"), longest=40)
    assert len(data) == len(plain) > 50
    rows = np.array([3, 41, 7])
    batch, texts = data.batch(rows, Draws(0, 0, rows)), plain.batch(rows, Draws(0, 0, rows))
    symbols = data.tokenizer
    for row in range(3):
        source = batch["source"][row, : batch["lengths"][row]].tolist()
        target = batch["target"][row][batch["mask"][row]].tolist()
        assert symbols.symbols[source[-1]] == symbols.symbols[target[-1]] == "<end>"
        assert symbols.symbols[target[0]] == f"<{texts['target_language'][row]}>"
        found = [symbols.decode(source[:-1]), symbols.decode(target[1:-1])]
        expected = [texts["source"][row], texts["target"][row]]
        if unit == "characters":
            known = ["".join(c if c in symbols.index else "<unk>" for c in text) for text in expected]
            assert found == known
        else:
            assert [len(text.split()) for text in found] == [len(text.split()) for text in expected]
    assert symbols.symbols == phrases("train", ("fr", "es"), unit=unit, longest=40).tokenizer.symbols
    small = phrases("train", ("fr", "es"), unit=unit, vocabulary=30)
    assert small.tokenizer.n_vocab == 30 + 4  # <end> and three languages


def test_unknown_languages_are_refused() -> None:
    symbols = Symbols(["<unk>", "<end>", "<fr>", "a"], "characters")
    with pytest.raises(UsageError, match="fr"):
        encode_pairs(symbols, ["a"], ["a"], ["fx"])


def test_recipe_trains_and_predicts(tmp_path: Path) -> None:
    stage = change(
        recipes["laptop"].stages[0], steps=2, batch_size=8, networks={"network": "gru_catalogues(hidden=8, embedding=6)"},
        data="gru.phrases(languages=('fr', 'es'), vocabulary=90, longest=12)",
    )  # fmt: skip
    run = train(stage, tmp_path / "run", quiet=True)
    assert 3 < run.metrics["loss"] < 6
    model = jingdu.load(tmp_path / "run")
    one, two = predict(model, ["Yes", "Yes ||| Oui"], language="fr", length=7)
    assert len(one.data["translation"]) <= 7
    assert two.data["log_probability"] < 0 and "Yes ||| Oui ||| log p" in two.text
    (sampled,) = predict(model, ["Yes"], language="es", length=7, temperature=1.0, seed=3)
    assert sampled.data == next(predict(model, ["Yes"], language="es", length=7, temperature=1.0, seed=3)).data
    with pytest.raises(UsageError, match="language"):
        list(predict(model, ["Yes"], language="de"))
    with pytest.raises(UsageError, match="from 0"):
        list(predict(model, ["Yes"], length=-1))
    with pytest.raises(UsageError, match="vectors"):
        list(predict(jingdu.create("gru_cell_100_128"), ["Yes"]))
    with pytest.raises(UsageError, match="symbols are"):
        list(predict(pair(), ["Yes"]))


def test_adadelta_is_zeilers() -> None:
    from jingdu.engine.contracts import Objective
    from jingdu.engine.optimise import make_optimizer

    model = torch.nn.Linear(3, 2)
    optimizer = make_optimizer(recipes["paper"].stages[0], model, Objective("loss"))
    assert isinstance(optimizer, torch.optim.Adadelta)
    assert {k: optimizer.defaults[k] for k in ("lr", "rho", "eps")} == {"lr": 1.0, "rho": 0.95, "eps": 1e-6}
