"""LSTM against torch.nn.LSTM and LSTMCell, projections included; what torch lacks against the equations in numpy."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import jingdu
from jingdu.papers.language.lstm import AdaptiveSoftmax, LSTMCell
from tests.parity.references import assert_close, randomise_

LENGTHS = torch.tensor([13, 1, 7, 12, 3])


def draw(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make(tmp_path: Path, inputs: int = 100, hidden: int = 128, **options: Any) -> tuple[nn.LSTM, nn.Module]:
    """torch's network with random weights, and ours with the same from its file."""
    theirs = {"bidirectional": options.get("direction") == "both", "batch_first": options.get("batch_first", True)}
    theirs |= {"num_layers": options.get("layers", 1), "proj_size": options.get("projection", 0)}
    theirs |= {"bias": options.get("biases", 2) > 0}
    reference = nn.LSTM(inputs, hidden, **theirs)
    randomise_(reference, torch.Generator().manual_seed(3))
    save_file(reference.state_dict(), tmp_path / "lstm.safetensors")
    name = "torch/lstm" if options.get("biases", 2) == 2 else "lstm_cell_100_128"
    return reference, jingdu.create(
        name, weights=tmp_path / "lstm.safetensors", inputs=inputs, hidden=hidden, **options
    )


SMALL = {"inputs": 17, "hidden": 23}
OPTIONS = [
    {},
    {**SMALL, "layers": 3, "direction": "both"},
    {**SMALL, "layers": 2, "projection": 11, "direction": "both", "batch_first": False},
    {**SMALL, "biases": 1, "layers": 2},
    {**SMALL, "biases": 0, "direction": "both"},
]


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("use_kernels", [True, False])
@pytest.mark.parametrize("batch", [5, 1])
def test_outputs_and_states(options: dict[str, Any], use_kernels: bool, batch: int, tmp_path: Path) -> None:
    reference, ours = make(tmp_path, **options)
    ours.use_kernels(use_kernels)
    x = draw(*((batch, 13) if options.get("batch_first", True) else (13, batch)), options.get("inputs", 100))
    given = tuple(draw(len(ours.layers) * ours.directions, batch, size, seed=2) for size in ours.sizes)
    for state in (None, given):
        y, last = ours(x, state)
        expected, expected_last = reference(x, state)
        assert_close(y, expected)
        for a, b in zip(last, expected_last, strict=True):
            assert_close(a, b)


@pytest.mark.parametrize("options", OPTIONS[1:4])
@pytest.mark.parametrize("use_kernels", [True, False])
def test_several_lengths_are_a_packed_sequence(options: dict[str, Any], use_kernels: bool, tmp_path: Path) -> None:
    reference, ours = make(tmp_path, **options)
    ours.use_kernels(use_kernels)
    first = options.get("batch_first", True)
    x = draw(5, 13, 17) if first else draw(13, 5, 17)
    expected, expected_last = reference(pack_padded_sequence(x, LENGTHS, batch_first=first, enforce_sorted=False))
    expected, _ = pad_packed_sequence(expected, batch_first=first)
    y, last = ours(x, None, LENGTHS)
    assert_close(y, expected)
    for a, b in zip(last, expected_last, strict=True):
        assert_close(a, b)


@pytest.mark.parametrize("options", OPTIONS[1:3])
@pytest.mark.parametrize("use_kernels", [True, False])
def test_gradients(options: dict[str, Any], use_kernels: bool, tmp_path: Path) -> None:
    reference, ours = make(tmp_path, **options)
    reference, ours = reference.double(), ours.use_kernels(use_kernels).double()
    pairs = [(p, getattr(reference, _theirs(key))) for key, p in ours.named_parameters()]
    for p, q in pairs:
        p.data.copy_(q)  # `create` made them float32: these are the exact ones
    inputs = [draw(5, 13, 17).double().requires_grad_() for _ in range(2)]
    for model, given in zip((ours, reference), inputs, strict=True):
        y, last = model.train()(given)
        (y.square().sum() + sum(part.sum() for part in last)).backward()
    assert_close(inputs[0].grad, inputs[1].grad, relative=1e-9)
    for p, q in pairs:
        assert_close(p.grad, q.grad, relative=1e-9)


def _theirs(key: str) -> str:
    _, layer, direction, name = key.split(".")
    return f"{name}_l{layer}" + ("_reverse" if direction == "backwards" else "")


def test_cell() -> None:
    reference, ours = nn.LSTMCell(17, 23), LSTMCell(17, 23)
    ours.load_state_dict(reference.state_dict())
    x, state = draw(5, 17), (draw(5, 23, seed=2), draw(5, 23, seed=3))
    for a, b in zip(ours(x, state), reference(x, state), strict=True):
        assert_close(a, b)


def test_projection_has_torchs_number_of_parameters() -> None:
    """torch has a bias more than Sak et al.'s LSTMP: 16,384 parameters of ELMo's layer."""
    with torch.device("meta"):
        ours = jingdu.create("lstm_cell_100_128", inputs=512, hidden=4096, projection=512)
        single = jingdu.create("lstm_cell_100_128", inputs=512, hidden=4096, projection=512, biases=1)
    counts = [sum(p.numel() for p in model.parameters()) for model in (ours, single)]
    assert counts == [18_907_136, 18_907_136 - 16_384]


@pytest.mark.parametrize("options", [
    {"forget_bias": None}, {"peepholes": True}, {"forget_bias": None, "peepholes": True, "biases": 1},
    {"forget_bias": 1.0, "biases": 0}, {"projection": 5, "cell_clip": 0.4, "projection_clip": 0.2},
    {"forget_bias": 1.5, "peepholes": True, "projection": 5, "cell_clip": 0.4},
])  # fmt: skip
def test_what_torch_lacks_is_the_equations(options: dict[str, Any]) -> None:
    """Gers et al. 2002, Eq. 1-6; Sak et al. 2014, Eq. 1-7; the clips of tensorflow's LSTMCell."""
    torch.manual_seed(4)
    cell = LSTMCell(7, 11, **options).double()
    w = {name: p.detach().numpy() for name, p in cell.named_parameters()}
    x, h, c = (draw(3, size, seed=s).double().numpy() for s, size in enumerate((7, options.get("projection", 11), 11)))
    a = x @ w["weight_ih"].T + h @ w["weight_hh"].T + w.get("bias_ih", 0) + w.get("bias_hh", 0)
    sigmoid = lambda z: 1 / (1 + np.exp(-z))  # noqa: E731
    forgets = options.get("forget_bias", 0.0) is not None
    parts = np.split(a, 4 if forgets else 3, axis=1)
    i, g, o = parts[0], parts[-2], parts[-1]
    peep = w.get("weight_peep")
    if peep is not None:
        i = i + peep[0] * c
    f = 1.0
    if forgets:
        f = parts[1] + options.get("forget_bias", 0.0) + (0 if peep is None else peep[1] * c)
        f = sigmoid(f)
    c = f * c + sigmoid(i) * np.tanh(g)
    if bound := options.get("cell_clip"):
        c = np.clip(c, -bound, bound)
    o = o if peep is None else o + peep[-1] * c
    h1 = sigmoid(o) * np.tanh(c)
    if "projection" in options:
        h1 = h1 @ w["weight_hr"].T
    if bound := options.get("projection_clip"):
        h1 = np.clip(h1, -bound, bound)
    found = cell(*(torch.from_numpy(v) for v in (x,)), tuple(torch.from_numpy(v) for v in _state(options)))
    assert np.allclose(found[0].detach().numpy(), h1, rtol=1e-9)
    assert np.allclose(found[1].detach().numpy(), c, rtol=1e-9)


def _state(options: dict[str, Any]) -> tuple[np.ndarray, ...]:
    sizes = (options.get("projection", 11), 11)
    return tuple(draw(3, size, seed=s).double().numpy() for s, size in enumerate(sizes, start=1))


class WordLanguageModel(nn.Module):
    """pytorch/examples, word_language_model/model.py, as its keys and its forward pass are."""

    def __init__(self, words: int, size: int, layers: int):
        super().__init__()
        self.encoder = nn.Embedding(words, size)
        self.rnn = nn.LSTM(size, size, layers)
        self.decoder = nn.Linear(size, words)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.rnn(self.encoder(tokens.t()))[0]).transpose(0, 1)


@pytest.mark.parametrize(
    "variant, sizes",
    [("lstm_zaremba_small", {}), ("lstm_zaremba_medium", {"vocabulary": 37, "hidden": 19, "layers": 3})],
)
def test_language_model(variant: str, sizes: dict[str, int], tmp_path: Path) -> None:
    whole = {"vocabulary": 10_000, "hidden": 200, "layers": 2, **sizes}
    reference = WordLanguageModel(whole["vocabulary"], whole["hidden"], whole["layers"]).eval()
    randomise_(reference, torch.Generator().manual_seed(5))
    torch.save(reference.state_dict(), tmp_path / "model.pt")
    ours = jingdu.create(variant, weights=tmp_path / "model.pt", **sizes)
    tokens = torch.randint(whole["vocabulary"], (3, 13), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert_close(ours(tokens)[0], reference(tokens))
        nats, _ = ours(tokens[:, :-1], None, tokens[:, 1:])
        expected = nn.functional.cross_entropy(reference(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    assert_close(nats.mean(), expected)


def test_adaptive_softmax_is_torchs() -> None:
    ours = AdaptiveSoftmax(17, 41, (5, 23)).double()
    y, targets = draw(3, 7, 17).double(), torch.randint(41, (3, 7), generator=torch.Generator().manual_seed(1))
    assert_close(ours(y), ours.softmax.log_prob(y.view(-1, 17)).view(3, 7, 41), relative=1e-12)
    assert_close(ours.nats(y, targets).mean(), ours.softmax(y.view(-1, 17), targets.view(-1)).loss, relative=1e-12)
    assert_close(ours.nats(y, targets), -ours(y).gather(2, targets[..., None])[..., 0], relative=1e-9)
