"""GRU against torch.nn.GRU and GRUCell where the product is reset; the paper's form and its encoder-decoder in numpy."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import jingdu
from jingdu.papers.language.gru import GRUCell
from tests.parity.references import assert_close, randomise_

LENGTHS = torch.tensor([13, 1, 7, 12, 3])


def draw(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make(tmp_path: Path, inputs: int = 100, hidden: int = 128, **options: Any) -> tuple[nn.GRU, nn.Module]:
    """torch's network with random weights, and ours with the same from its file."""
    theirs = {"bidirectional": options.get("direction") == "both", "batch_first": options.get("batch_first", True)}
    theirs |= {"num_layers": options.get("layers", 1), "bias": options.get("biases", 2) > 0}
    reference = nn.GRU(inputs, hidden, **theirs)
    randomise_(reference, torch.Generator().manual_seed(3))
    save_file(reference.state_dict(), tmp_path / "gru.safetensors")
    return reference, jingdu.create(
        "torch/gru", weights=tmp_path / "gru.safetensors", inputs=inputs, hidden=hidden, **options
    )


SMALL = {"inputs": 17, "hidden": 23}
OPTIONS = [
    {},
    {**SMALL, "layers": 3, "direction": "both"},
    {**SMALL, "layers": 2, "batch_first": False},
    {**SMALL, "biases": 0, "direction": "both"},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("use_kernels", [True, False])
@pytest.mark.parametrize("batch", [5, 1])
def test_outputs_and_states(options: dict[str, Any], use_kernels: bool, batch: int, tmp_path: Path) -> None:
    reference, ours = make(tmp_path, **options)
    ours.use_kernels(use_kernels)
    x = draw(*((batch, 13) if options.get("batch_first", True) else (13, batch)), options.get("inputs", 100))
    h = draw(len(ours.layers) * ours.directions, batch, options.get("hidden", 128), seed=2)
    for state in (None, h):
        y, (last,) = ours(x, None if state is None else (state,))
        expected, expected_last = reference(x, state)
        assert_close(y, expected)
        assert_close(last, expected_last)


@pytest.mark.parametrize("options", OPTIONS[1:3])
@pytest.mark.parametrize("use_kernels", [True, False])
def test_several_lengths_are_a_packed_sequence(options: dict[str, Any], use_kernels: bool, tmp_path: Path) -> None:
    reference, ours = make(tmp_path, **options)
    ours.use_kernels(use_kernels)
    first = options.get("batch_first", True)
    x = draw(5, 13, 17) if first else draw(13, 5, 17)
    expected, expected_last = reference(pack_padded_sequence(x, LENGTHS, batch_first=first, enforce_sorted=False))
    expected, _ = pad_packed_sequence(expected, batch_first=first)
    y, (last,) = ours(x, None, LENGTHS)
    assert_close(y, expected)
    assert_close(last, expected_last)


@pytest.mark.parametrize("use_kernels", [True, False])
def test_gradients(use_kernels: bool, tmp_path: Path) -> None:
    reference, ours = make(tmp_path, **OPTIONS[1])
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
    reference, ours = nn.GRUCell(17, 23), GRUCell(17, 23)
    ours.load_state_dict(reference.state_dict())
    x, h = draw(5, 17), draw(5, 23, seed=2)
    assert_close(ours(x, (h,))[0], reference(x, h))


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def papers_cell(w: dict[str, np.ndarray], x: np.ndarray, h: np.ndarray) -> np.ndarray:
    """Equations 5 to 8, with biases: reset before the recurrent product."""
    wr, wz, wn = np.split(w["weight_ih"], 3)
    ur, uz, un = np.split(w["weight_hh"], 3)
    b = np.zeros(3 * h.shape[1]) + w.get("bias_ih", 0) + w.get("bias_hh", 0)
    br, bz, bn = np.split(b, 3)
    r = _sigmoid(x @ wr.T + h @ ur.T + br)
    z = _sigmoid(x @ wz.T + h @ uz.T + bz)
    new = np.tanh(x @ wn.T + (r * h) @ un.T + bn)
    return z * h + (1 - z) * new


@pytest.mark.parametrize("biases", [0, 1, 2])
def test_papers_cell(biases: int) -> None:
    torch.manual_seed(4)
    cell = GRUCell(7, 11, biases, "before").double()
    x, h = draw(3, 7).double(), draw(3, 11, seed=2).double()
    expected = papers_cell({name: p.detach().numpy() for name, p in cell.named_parameters()}, x.numpy(), h.numpy())
    assert np.allclose(cell(x, (h,))[0].detach().numpy(), expected, rtol=1e-9)


def test_encoder_decoder() -> None:
    """The appendix step by step, one pair at a time."""
    sizes = {
        "source_vocabulary": 13,
        "target_vocabulary": 17,
        "embedding": 5,
        "hidden": 11,
        "maxout_units": 7,
        "rank": 3,
    }
    torch.manual_seed(5)
    model = jingdu.create("gru_phrases", **sizes).double()
    randomise_(model, torch.Generator().manual_seed(6))
    w = {name: p.detach().numpy() for name, p in model.named_parameters()}
    part = lambda prefix: {k.removeprefix(prefix): v for k, v in w.items() if k.startswith(prefix)}  # noqa: E731
    draws = torch.Generator().manual_seed(7)
    source, target = torch.randint(13, (3, 6), generator=draws), torch.randint(17, (3, 4), generator=draws)
    lengths = torch.tensor([6, 2, 4])
    found = model(source, target, lengths).detach().numpy()
    for row in range(3):
        h = np.zeros((1, 11))
        for t in range(int(lengths[row])):
            h = papers_cell(part("encoder.layers.0.forwards."), w["source_embedding.weight"][source[row, t]][None], h)
        c = np.tanh(h @ w["summary.weight"].T + w["summary.bias"])
        h = np.tanh(c @ w["start.weight"].T + w["start.bias"])
        for t in range(4):
            e = w["target_embedding.weight"][target[row, t]][None]
            h = papers_cell(part("decoder."), np.concatenate([e, c], 1), h)
            s = (
                h @ w["from_state.weight"].T
                + w["from_state.bias"]
                + e @ w["from_symbol.weight"].T
                + c @ w["from_summary.weight"].T
            )
            s = np.stack([s[0, 2 * i : 2 * i + 2].max() for i in range(7)])
            logits = (s @ w["low_rank.weight"].T) @ w["output.weight"].T + w["output.bias"]
            assert np.allclose(found[row, t], logits, rtol=1e-9)
