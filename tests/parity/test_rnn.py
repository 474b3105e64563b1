"""Elman's network against torch.nn.RNN and RNNCell: outputs, states, gradients, sequences of several lengths."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import jingdu
from jingdu.papers.language.rnn import RNNCell
from tests.parity.references import assert_close, randomise_

LENGTHS = torch.tensor([13, 1, 7, 12, 3])


def draw(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make(tmp_path: Path, inputs: int = 100, hidden: int = 128, **options: object) -> tuple[nn.RNN, nn.Module]:
    """torch's network with random weights, and ours with the same from its file."""
    theirs = {"bidirectional": options.get("direction") == "both", "batch_first": options.get("batch_first", True)}
    theirs |= {"num_layers": options.get("layers", 1), "nonlinearity": options.get("nonlinearity", "tanh")}
    theirs |= {"bias": options.get("biases", 2) > 0}
    reference = nn.RNN(inputs, hidden, **theirs)
    randomise_(reference, torch.Generator().manual_seed(3))
    save_file(reference.state_dict(), tmp_path / "rnn.safetensors")
    name = "torch/rnn" if options.get("biases", 2) == 2 else "rnn_cell_100_128"
    return reference, jingdu.create(name, weights=tmp_path / "rnn.safetensors", inputs=inputs, hidden=hidden, **options)


OPTIONS = [
    {},
    {"inputs": 17, "hidden": 23, "layers": 3, "direction": "both"},
    {"inputs": 17, "hidden": 23, "layers": 2, "nonlinearity": "relu", "batch_first": False},
    {"inputs": 17, "hidden": 23, "biases": 1, "direction": "both"},
    {"inputs": 17, "hidden": 23, "biases": 0, "layers": 2},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("use_kernels", [True, False])
@pytest.mark.parametrize("batch", [5, 1])
def test_outputs_and_states(options: dict, use_kernels: bool, batch: int, tmp_path: Path) -> None:
    reference, ours = make(tmp_path, **options)
    ours.use_kernels(use_kernels)
    shape = (batch, 13) if options.get("batch_first", True) else (13, batch)
    x = draw(*shape, options.get("inputs", 100))
    h = draw(len(ours.layers) * ours.directions, batch, options.get("hidden", 128), seed=2)
    for state in (None, h):
        y, (last,) = ours(x, None if state is None else (state,))
        expected, expected_last = reference(x, state)
        assert_close(y, expected)
        assert_close(last, expected_last)


@pytest.mark.parametrize("options", OPTIONS[1:4])
@pytest.mark.parametrize("use_kernels", [True, False])
def test_several_lengths_are_a_packed_sequence(options: dict, use_kernels: bool, tmp_path: Path) -> None:
    reference, ours = make(tmp_path, **options)
    ours.use_kernels(use_kernels)
    first = options.get("batch_first", True)
    x = draw(5, 13, 17) if first else draw(13, 5, 17)
    packed = pack_padded_sequence(x, LENGTHS, batch_first=first, enforce_sorted=False)
    expected, expected_last = reference(packed)
    expected, _ = pad_packed_sequence(expected, batch_first=first)
    y, (last,) = ours(x, None, LENGTHS)
    assert_close(y, expected)
    assert_close(last, expected_last)


@pytest.mark.parametrize("use_kernels", [True, False])
def test_gradients(use_kernels: bool, tmp_path: Path) -> None:
    reference, ours = make(tmp_path, **OPTIONS[1])
    ours.use_kernels(use_kernels)
    reference, ours = reference.double(), ours.double()
    for (_, p), q in zip(sorted(ours.named_parameters()), _in_order(reference, ours), strict=True):
        p.data.copy_(q)  # `create` made them float32: these are the exact ones
    x = draw(5, 13, 17).double()
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    for model, given in zip((ours, reference), inputs, strict=True):
        y, last = model.train()(given)
        (y.square().sum() + sum(part.sum() for part in last)).backward()
    assert_close(inputs[0].grad, inputs[1].grad, relative=1e-9)
    for (_, p), q in zip(sorted(ours.named_parameters()), _in_order(reference, ours), strict=True):
        assert_close(p.grad, q.grad, relative=1e-9)


def _in_order(reference: nn.RNN, ours: nn.Module) -> list[torch.Tensor]:
    def theirs(key: str) -> str:
        _, layer, direction, name = key.split(".")
        return f"{name}_l{layer}" + ("_reverse" if direction == "backwards" else "")

    return [getattr(reference, theirs(key)) for key, _ in sorted(ours.named_parameters())]


def test_cell() -> None:
    reference, ours = nn.RNNCell(17, 23), RNNCell(17, 23)
    ours.load_state_dict(reference.state_dict())
    x, h = draw(5, 17), draw(5, 23, seed=2)
    assert_close(ours(x, (h,))[0], reference(x, h))
    assert_close(ours(x)[0], reference(x))


def test_one_bias_is_the_sum_of_torchs_two(tmp_path: Path) -> None:
    reference, ours = make(tmp_path, **OPTIONS[3])
    cell = ours.layers[0].backwards
    assert cell.bias_hh is None
    assert_close(cell.bias_ih, reference.bias_ih_l0_reverse + reference.bias_hh_l0_reverse)
