"""The recurrence against its definition, what is built around it, and text that is read in parts."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import jingdu
from jingdu.data.draws import Draws
from jingdu.engine import Stage, load_system, read_log, train
from jingdu.engine.launch import launch
from jingdu.engine.training import Training
from jingdu.errors import BadInput, UsageError
from jingdu.papers.language.rnn import (
    LEXICON,
    TEMPLATES,
    EncoderDecoder,
    Hidden,
    LanguageModel,
    ManyToMany,
    ManyToOne,
    Recurrent,
    RNNCell,
    Stateful,
    Streams,
    Symbols,
    Translation,
    generate,
    predict,
    recipes,
    scan,
    sentences,
    streams,
    windows,
    xor,
)
from jingdu.verbs import change

BATCH, TIME, INPUTS, HIDDEN = 5, 7, 3, 11


def draw(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def stack(**options: object) -> Recurrent:
    torch.manual_seed(3)
    return Recurrent(partial(RNNCell, hidden=HIDDEN), INPUTS, **options).double()


# The scan ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
@pytest.mark.parametrize("biases", [0, 1, 2])
def test_cell_is_its_equation(nonlinearity: str, biases: int) -> None:
    cell = RNNCell(INPUTS, HIDDEN, nonlinearity, biases).double()
    x, h = draw(BATCH, INPUTS), draw(BATCH, HIDDEN, seed=2)
    a = x @ cell.weight_ih.T + h @ cell.weight_hh.T
    a = a + sum(b for b in (cell.bias_ih, cell.bias_hh) if b is not None)
    assert torch.allclose(cell(x, (h,))[0], torch.tanh(a) if nonlinearity == "tanh" else a.clamp_min(0), rtol=1e-12)
    assert torch.allclose(cell(x)[0], cell(x, (torch.zeros_like(h),))[0])


@pytest.mark.parametrize("reverse", [False, True])
def test_scan_of_lengths_is_each_row_alone(reverse: bool) -> None:
    cell = RNNCell(INPUTS, HIDDEN).double()
    x, h = draw(TIME, BATCH, INPUTS), draw(BATCH, HIDDEN, seed=2)
    lengths = torch.tensor([7, 1, 4, 6, 3])
    y, (last,) = scan(cell.step(), cell.project(x), (h,), lengths, reverse=reverse)
    for row, n in enumerate(lengths.tolist()):
        alone = x[:n, row : row + 1]
        state = h[row : row + 1]
        order = range(n - 1, -1, -1) if reverse else range(n)
        for t in order:
            (state,) = cell(alone[t], (state,))
            assert torch.allclose(y[t, row], state[0], rtol=1e-12)
        assert torch.allclose(last[row], state[0], rtol=1e-12)
        assert not y[n:, row].any()


def test_padding_neither_counts_nor_gets_a_gradient() -> None:
    net = stack(layers=2, direction="both")
    x = draw(BATCH, TIME, INPUTS)
    lengths = torch.tensor([7, 1, 4, 6, 3])
    found = []
    for use_kernels in (True, False):
        for noise in (0.0, 100.0):
            padded = x.clone()
            for row, n in enumerate(lengths.tolist()):
                padded[row, n:] += noise
            padded.requires_grad_()
            y, (h,) = net.use_kernels(use_kernels)(padded, None, lengths)
            (y.square().sum() + h.sum()).backward()
            assert all(not padded.grad[row, n:].any() for row, n in enumerate(lengths.tolist()))
            found.append((y, h, padded.grad))
    for other in found[1:]:
        assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("direction", ["forwards", "backwards", "both"])
@pytest.mark.parametrize("lengths", [None, [7, 1, 4, 6, 3]])
def test_torchs_loop_and_ours_agree(direction: str, lengths: list[int] | None) -> None:
    net = stack(layers=3, direction=direction, batch_first=False)
    x = draw(TIME, BATCH, INPUTS)
    state = Hidden([draw(3 * net.directions, BATCH, HIDDEN, seed=4)])
    given = None if lengths is None else torch.tensor(lengths)
    (y1, s1), (y2, s2) = (net.use_kernels(use)(x, state, given) for use in (True, False))
    assert torch.allclose(y1, y2, rtol=1e-10, atol=1e-12) and torch.allclose(s1[0], s2[0], rtol=1e-10)
    assert y1.shape == (TIME, BATCH, net.outputs) and s1[0].shape == state[0].shape


def test_a_sequence_may_be_read_in_parts() -> None:
    net = stack(layers=2)
    x = draw(BATCH, TIME, INPUTS)
    whole, last = net(x)
    state, parts = None, []
    for part in x.split([3, 1, 3], 1):
        y, state = net(part, state)
        parts.append(y)
    assert torch.allclose(torch.cat(parts, 1), whole, rtol=1e-10) and torch.allclose(state[0], last[0], rtol=1e-10)


@pytest.mark.parametrize("k", [1, 3])
def test_truncation_cuts_the_gradient(k: int) -> None:
    """With k steps, the loss at step t sees the inputs from the last multiple of k on."""
    net = stack(truncate=k)
    x = draw(BATCH, TIME, INPUTS).requires_grad_()
    y, _ = net(x)
    assert torch.allclose(y, stack()(x)[0], rtol=1e-12)
    t = 5
    (gradient,) = torch.autograd.grad(y[:, t].sum(), x)
    reached = gradient.abs().sum((0, 2)) > 0
    assert reached.tolist() == [t // k * k <= i <= t for i in range(TIME)]


def test_the_gradient_of_one_step_is_elmans() -> None:
    """The context is an input like another: W_h's gradient holds h as a constant."""
    net = stack(truncate=1)
    x = draw(BATCH, TIME, INPUTS)
    net(x)[0].square().sum().backward()
    cell = net.layers[0].forwards
    h, expected = torch.zeros(BATCH, HIDDEN, dtype=torch.float64), torch.zeros_like(cell.weight_hh)
    for t in range(TIME):
        new = torch.tanh(cell.project(x[:, t]) + h @ cell.weight_hh.T).detach()
        expected += (2 * new * (1 - new**2)).T @ h
        h = new
    assert torch.allclose(cell.weight_hh.grad, expected, rtol=1e-10)


def test_layers_between_and_residual() -> None:
    class Double(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * x

    x = draw(BATCH, TIME, INPUTS)
    plain, other = stack(layers=3), stack(layers=3, between=Double, residual=True)
    found, _ = other.layer_outputs(x)
    a = x
    for i, layer in enumerate(plain.layers):
        given = a if i == 0 else 2 * a
        y, _ = layer(given.transpose(0, 1), tuple(s[i : i + 1] for s in plain.init_state(BATCH)))
        a = y.transpose(0, 1) + (given if i else 0)
        assert torch.allclose(found[i], a, rtol=1e-10)


def test_states_can_be_selected_and_detached() -> None:
    state = Hidden([draw(2, BATCH, HIDDEN).requires_grad_() * 1, draw(2, BATCH, 4, seed=2)])
    rows = torch.tensor([4, 0, 0, 2])
    chosen = state.select(rows)
    assert isinstance(chosen, Hidden) and all(torch.equal(a, b[:, rows]) for a, b in zip(chosen, state, strict=True))
    assert state[0].requires_grad and not state.detach()[0].requires_grad


def test_impossible_networks() -> None:
    with pytest.raises(UsageError, match="tanh"):
        RNNCell(3, 4, "tan")
    with pytest.raises(UsageError, match="hidden=0"):
        RNNCell(3, 0)
    with pytest.raises(UsageError, match="both"):
        stack(direction="bth")
    with pytest.raises(UsageError, match="layers=0"):
        stack(layers=0)
    with pytest.raises(UsageError, match="forwards"):
        LanguageModel(stack(direction="both"), INPUTS)
    with pytest.raises(UsageError, match="shape"):
        LanguageModel(stack(), 17, INPUTS, tie=True)
    with pytest.raises(UsageError, match="same layers"):
        EncoderDecoder(stack(), stack(layers=2), 5, 6)


# What is built around it ----------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["forwards", "backwards", "both"])
def test_many_to_one_reads_at_the_true_end(direction: str) -> None:
    net = ManyToOne(stack(layers=2, direction=direction), 2).double()
    x, lengths = draw(BATCH, TIME, INPUTS), torch.tensor([7, 1, 4, 6, 3])
    found = net(x, lengths)
    assert found.shape == (BATCH, 2)
    for row, n in enumerate(lengths.tolist()):
        assert torch.allclose(found[row : row + 1], net(x[row : row + 1, :n]), rtol=1e-10)


def test_many_to_many() -> None:
    net = ManyToMany(stack(), 2).double()
    x = draw(BATCH, TIME, INPUTS)
    y, state = net(x)
    assert torch.allclose(y[:, -1], net.output(state[0][-1]), rtol=1e-10) and y.shape == (BATCH, TIME, 2)


def small(**options: object) -> LanguageModel:
    torch.manual_seed(5)
    return jingdu.create("rnn_letters", vocabulary=13, hidden=8, **options).eval()


def test_unit_vectors_are_an_embedding_of_the_identity() -> None:
    units, learned = small(), small(embedding=13)
    learned.load_state_dict({**units.state_dict(), "embedding.weight": torch.eye(13)})
    tokens = torch.randint(13, (BATCH, TIME), generator=torch.Generator().manual_seed(2))
    assert torch.equal(units(tokens)[0], learned(tokens)[0])


def test_language_model_gives_the_loss_of_its_logits() -> None:
    model = small()
    tokens = torch.randint(13, (BATCH, TIME + 1), generator=torch.Generator().manual_seed(2))
    logits, _ = model(tokens[:, :-1])
    nats, _ = model(tokens[:, :-1], None, tokens[:, 1:])
    expected = -logits.log_softmax(-1).gather(2, tokens[:, 1:, None])[..., 0]
    assert torch.allclose(nats, expected, rtol=1e-5)


def test_tied_matrices_are_one() -> None:
    model = LanguageModel(Recurrent(partial(RNNCell, hidden=8), 8), 13, 8, tie=True)
    assert model.output.weight is model.embedding.weight
    assert sum(p.numel() for p in model.parameters()) == 13 * 8 + 13 + 2 * 64 + 2 * 8


def test_generation_is_the_networks_own_prediction() -> None:
    model = small(layers=2)
    prompts = [torch.tensor(row) for row in ([3], [1, 2, 5, 12], [7, 0])]
    found = generate(model, prompts, 6)
    for prompt, made in zip(prompts, found, strict=True):
        row = prompt.tolist()
        for token in made.tolist():
            assert int(model(torch.tensor([row]))[0][0, -1].argmax()) == token
            row.append(token)


def pair(**options: object) -> EncoderDecoder:
    torch.manual_seed(6)
    make = lambda: Recurrent(partial(RNNCell, hidden=8), 4, layers=2)  # noqa: E731
    return EncoderDecoder(make(), make(), 13, 17, **options).eval()


def test_encoder_decoder_knows_the_source_by_its_last_state() -> None:
    net = pair()
    draws = torch.Generator().manual_seed(2)
    source, target = torch.randint(13, (3, 6), generator=draws), torch.randint(17, (3, 5), generator=draws)
    lengths = torch.tensor([6, 2, 4])
    logits = net(source, target, lengths)
    for row, n in enumerate(lengths.tolist()):
        state = net.encoder(net.embedding(source[row : row + 1, :n]))[1]
        expected = net.decoder(target[row : row + 1], state)[0]
        assert torch.allclose(logits[row : row + 1], expected, rtol=1e-4, atol=1e-6)
    changed = source.clone()
    changed[1, 3] += 1  # behind the end
    assert torch.equal(net(changed % 13, target, lengths), logits)
    found = generate(net.reading(source, lengths), [torch.tensor([1])] * 3, 4)
    again = net(source, torch.stack([torch.cat([torch.tensor([1]), row]) for row in found]), lengths)
    assert torch.equal(again.argmax(-1)[:, :-1], torch.stack(found))


def test_translation_counts_no_padding() -> None:
    system = Translation(pair()).eval()
    draws = torch.Generator().manual_seed(2)
    source, target = torch.randint(13, (3, 6), generator=draws), torch.randint(17, (3, 5), generator=draws)
    lengths, mask = torch.tensor([6, 2, 4]), torch.arange(5) < torch.tensor([[5], [3], [2]])
    batch = {"source": source, "lengths": lengths, "target": target, "mask": mask}
    loss, _ = system(batch, "loss")
    logits = system.network(source, target[:, :-1], lengths)
    picked = torch.cat(
        [F.cross_entropy(logits[i, : n - 1], target[i, 1:n], reduction="none") for i, n in enumerate((5, 3, 2))]
    )
    assert torch.allclose(loss, picked.mean(), rtol=1e-5)
    system.update(batch)
    assert system.compute()["loss"] == pytest.approx(loss.item(), rel=1e-5)


# The paper's sequences ------------------------------------------------------------------------------


def test_every_third_bit_is_the_exclusive_or() -> None:
    tokens = xor("train", count=100, bits=12).fields["tokens"]
    assert tokens.shape == (100, 12)
    assert torch.equal(tokens[:, 2::3], tokens[:, 0::3] ^ tokens[:, 1::3])
    assert 0.4 < tokens[:, 0].float().mean() < 0.6
    assert xor("train", count=100, bits=12, length=1).fields["tokens"].shape == (1100, 2)
    assert not torch.equal(xor("test", count=1000, bits=12).fields["tokens"], tokens)
    with pytest.raises(ValueError, match="multiple of 3"):
        xor("train", bits=10)


def test_sentences_follow_the_grammar() -> None:
    words = sentences("train", 10_000).split()
    assert len(set(words)) == 29 and abs(len(words) - 27_500) < 300  # the paper's had 27,354
    frames = [[LEXICON[name] for name in template.split()] for template in TEMPLATES]
    ends = {0}  # where a sentence may end, read from the start
    for place in range(len(words)):
        if place in ends:
            for frame in frames:
                if all(word in names for word, names in zip(words[place : place + 3], frame, strict=False)):
                    ends.add(place + len(frame))
    assert len(words) in ends
    assert sentences("test", 100) != sentences("train", 10)


# Text ------------------------------------------------------------------------------------------------


@pytest.fixture
def corpus(tmp_path: Path) -> str:
    lines = [f"the {a} {b} the {c}." for a in ("old", "né") for b in ("sees", "hits") for c in ("cat", "dog")] * 12
    (tmp_path / "c.txt").write_text("\n".join(lines), "utf-8")
    return f"text(path={str(tmp_path / 'c.txt')!r})"


@pytest.mark.parametrize("unit", ["letters", "characters", "words"])
def test_symbols_come_back(unit: str, tmp_path: Path) -> None:
    text = "The cat\nsees the cat."
    symbols = Symbols.learn([text], unit)
    expected = {"letters": "thecatseesthecat", "characters": text, "words": text + "\n"}[unit]
    assert symbols.decode(symbols.encode(text)) == expected
    (tmp_path / "tokenizer.json").write_text(symbols.to_json(), "utf-8")
    again = Symbols.read(tmp_path / "tokenizer.json")
    assert (again.symbols, again.unit) == (symbols.symbols, unit)
    (tmp_path / "other.json").write_text(json.dumps({"model": {"type": "BPE", "vocab": {}}}))
    with pytest.raises(BadInput, match="symbols"):
        Symbols.read(tmp_path / "other.json")


def test_a_tokenizer_file_is_one_of_the_tokenizers_library(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    for unit, text in (("letters", "The cat."), ("characters", "a é\nb?"), ("words", "the cat zzz")):
        symbols = Symbols.learn(["the a cat é\nb"], unit)
        theirs = tokenizers.Tokenizer.from_str(symbols.to_json())
        ours = symbols.encode(text)[: -1 if unit == "words" else None]
        assert theirs.encode(text).ids == ours


def test_vocabulary_keeps_the_most_frequent(corpus: str) -> None:
    data = windows("train", corpus, "words", vocabulary=6, length=10)
    assert data.tokenizer.symbols[:3] == ["<unk>", "the", "<eos>"] and data.tokenizer.n_vocab == 6
    assert int(data.fields["tokens"].max()) == 5
    with pytest.raises(UsageError, match="letters"):
        windows("train", corpus, "letter")
    with pytest.raises(UsageError, match="too few"):
        windows("train", corpus, "words", length=10_000)


@pytest.mark.parametrize("unit", ["letters", "characters", "words"])
def test_windows_predict_every_symbol_once(corpus: str, unit: str) -> None:
    data = windows("train", corpus, unit, length=9)
    tokens = data.fields["tokens"]
    text = Path(corpus[len("text(path='") : -2]).read_text("utf-8")
    whole = data.tokenizer.encode(text[: text.find("\n", int(len(text) * 0.9)) + 1])
    assert torch.cat([tokens[0, :1], tokens[:, 1:].flatten()]).tolist() == whole[: 1 + 9 * len(tokens)]
    spelled = data.tokenizer.decode(tokens[:, 1:].flatten().tolist())
    if unit != "words":
        assert int(data.fields["bytes"].sum()) == len(spelled.encode())


def test_streams_go_on_where_they_ended(corpus: str) -> None:
    data = streams("train", corpus, "characters", length=9, batch=4)
    play = Streams(corpus, "characters", length=9, batch=4)
    net, pieces = torch.nn.Identity(), []
    for number in range(play.steps_per_epoch):
        batch = play.play(net)
        assert batch["row"].tolist() == [0, 1, 2, 3] and batch["start"].tolist() == [number == 0] * 4
        assert not pieces or torch.equal(pieces[-1][:, -1], batch["tokens"][:, 0])
        pieces.append(batch["tokens"])
    assert torch.equal(play.play(net)["tokens"], pieces[0])
    rows = np.arange(len(data))
    assert torch.equal(data.batch(rows, Draws(0, 0, rows))["tokens"], torch.cat(pieces))
    other = Streams(corpus, "characters", length=9, batch=4)
    other.load_state_dict(play.state_dict())
    assert torch.equal(other.play(net)["tokens"], pieces[1])
    with pytest.raises(UsageError, match="too few"):
        streams("train", corpus, "characters", length=900, batch=40)


# Training ---------------------------------------------------------------------------------------------


def test_carried_states_are_those_of_the_whole_stream(corpus: str) -> None:
    data = streams("train", corpus, "characters", length=9, batch=4)
    torch.manual_seed(1)
    model = jingdu.create("rnn_letters", vocabulary=data.tokenizer.n_vocab, hidden=8)
    system = Stateful(model, batch=4)
    tokens = data.fields["tokens"].view(-1, 4, 10)[:5]
    whole = torch.cat([tokens[0, :, :1], *(part[:, 1:] for part in tokens)], 1)
    nats, _ = model(whole[:, :-1], None, whole[:, 1:])
    for number in range(5):
        for rows in ([1, 0], [3, 2]):  # parts of a batch, in any order
            batch = data.batch(np.array([4 * number + row for row in rows]), Draws(0, 0, rows))
            loss, _ = system(batch, "loss")
            assert torch.allclose(loss, nats[rows, 9 * number : 9 * number + 9].mean(), rtol=1e-4)
        system.after_update("loss")
    assert set(dict(system.named_buffers())) == {"trained0", "evaluated0"}
    assert "evaluated0" not in system.state_dict() and system.state_dict()["trained0"].any()


def test_the_gradient_ends_where_the_batch_begins(corpus: str) -> None:
    play = Streams(corpus, "characters", length=9, batch=4)
    model = jingdu.create("rnn_letters", vocabulary=play.tokenizer.n_vocab, hidden=8)
    system = Stateful(model, batch=4)
    for _ in range(2):  # the second would raise if the first one's graph were still needed
        loss, _ = system(play.play(system), "loss")
        loss.backward()


def test_evaluation_in_parts_of_any_size_is_the_same(corpus: str) -> None:
    data = streams("test", corpus, "characters", length=5, batch=4)
    model = jingdu.create("rnn_letters", vocabulary=data.tokenizer.n_vocab, hidden=8).eval()
    found = []
    for size in (4, 3, 1, 4):
        system = Stateful(model, batch=4)
        with torch.no_grad():
            for first in range(0, len(data), size):
                rows = np.arange(first, min(first + size, len(data)))
                system.update(data.batch(rows, Draws(0, 0, rows)))
        found.append(system.compute())
    assert found[0] == found[3] and found[0]["loss"] == pytest.approx(found[1]["loss"], rel=1e-5)
    assert found[0]["loss"] == pytest.approx(found[2]["loss"], rel=1e-5) and found[0]["bits_per_byte"] > 0


def stateful(corpus: str, **changes: Any) -> Stage:
    arguments = f"of={corpus!r}, length=9, batch=4"
    options = {"batch_size": 4, "steps": 7, "lr": 0.1, "precision": "float64", **changes}
    return change(
        recipes["paper"].stages[0], system="rnn.Stateful(batch=4)", networks={"network": "rnn_letters(vocabulary=20, hidden=8)"},
        data=f"rnn.Streams({arguments})", eval_data=f"rnn.streams({arguments})", **options,
    )  # fmt: skip


def measured(corpus: str, out: str) -> list[Any]:
    """A run's losses and what its checkpoint carries, in this process of a group."""
    run = train(stateful(corpus), Path(out), device="cpu", quiet=True)
    lines = read_log(run.folder)
    found = load_system(run.folder).trained0
    return [[line["loss"] for line in lines if "gradient_norm" in line], run.metrics["loss"], found.tolist()]


@pytest.mark.slow
def test_processes_share_the_streams(corpus: str, tmp_path: Path) -> None:
    together, _ = launch(measured, 2, corpus, str(tmp_path / "two"))
    run = train(stateful(corpus, accumulate=2), tmp_path / "one", device="cpu", quiet=True)
    losses = [line["loss"] for line in read_log(run.folder) if "gradient_norm" in line]
    assert together[0] == pytest.approx(losses, rel=1e-9) and together[1] == pytest.approx(
        run.metrics["loss"], rel=1e-9
    )
    assert torch.allclose(torch.tensor(together[2]), load_system(run.folder).trained0.float(), atol=1e-6)


def test_a_stateful_run_resumes_to_the_same_bits(corpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = stateful(corpus)
    stage = change(stage, save_every=3)
    whole = train(stage, tmp_path / "whole", device="cpu", quiet=True)
    advance = Training.advance

    def dying(self: Training) -> dict[str, Any]:
        if self.step == 5:
            raise RuntimeError("as a kill would")
        return advance(self)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "advance", dying)
        with pytest.raises(RuntimeError, match="kill"):
            train(stage, tmp_path / "cut", device="cpu", quiet=True)
    again = train(stage, tmp_path / "cut", device="cpu", quiet=True, resume=True)
    assert again.metrics == whole.metrics
    losses = [[line["loss"] for line in read_log(run.folder) if "gradient_norm" in line] for run in (whole, again)]
    assert losses[0][-4:] == losses[1][-4:] and len(losses[0]) == 7


def test_recipe_trains_and_predicts(tmp_path: Path) -> None:
    stage = change(recipes["laptop"].stages[0], steps=3, batch_size=8, networks={"network": "rnn_letters(hidden=8)"})
    run = train(stage, tmp_path / "run", quiet=True)
    assert 2.5 < run.metrics["loss"] < 3.5 and run.metrics["bits_per_byte"] > 0
    model = jingdu.load(tmp_path / "run")
    (one, two) = predict(model, ["The cat", "s"], length=5, seed=2)
    assert one.data["symbols"] == list("thecat") and len(one.data["nats"]) == 6 and len(one.data["continuation"]) == 5
    assert two.data["nats"] == [None]
    assert next(predict(model, ["The cat"], length=5, seed=2)).data == one.data
    (greedy,) = predict(model, ["x"], length=0, temperature=0)
    assert greedy.data["continuation"] == ""
    for bad in ({"length": -1}, {"temperature": -1.0}):
        with pytest.raises(UsageError, match="from 0"):
            list(predict(model, ["x"], **bad))
    with pytest.raises(UsageError, match="no letters"):
        list(predict(model, ["123"]))
    with pytest.raises(UsageError, match="vectors"):
        list(predict(jingdu.create("rnn_cell_100_128"), ["x"]))
    with pytest.raises(UsageError, match="symbols are"):
        list(predict(small(), ["x"]))
