"""Elman's network against torch.nn.RNN with the same weights: python -m benchmarks.rnn.

`cases` is for any recurrent paper: its network by torch's own loop where it uses that, and by our readable scan.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import jingdu
from benchmarks.paired import compare, save

BATCH, TIME, HIDDEN = 32, 64, 256


def work(network: nn.Module, x: torch.Tensor, train: bool) -> Callable[[], None]:
    """One forward pass, or forward and backward to weights and input."""
    given = x.clone().requires_grad_(train)

    def once() -> None:
        if not train:
            with torch.no_grad():
                network(given)
            return
        network.zero_grad(set_to_none=True)
        given.grad = None
        network(given)[0].square().sum().backward()

    return once


def cases(variant: str, kind: type[nn.Module], rounds: int = 20, hidden: int = HIDDEN) -> list[dict[str, Any]]:
    """Ours and torch's `kind` side by side, of one layer of `hidden` units, in inference and training."""
    reference = kind(hidden, hidden, batch_first=True)
    ours = jingdu.create(variant, inputs=hidden, hidden=hidden)
    cell = ours.layers[0].forwards
    with torch.no_grad():
        for name, parameter in cell.named_parameters():
            parameter.copy_(getattr(reference, f"{name}_l0"))
    x = torch.randn(BATCH, TIME, hidden)
    assert torch.allclose(ours(x)[0], reference(x)[0], atol=1e-5)
    rows = []
    for train in (False, True):
        for use_kernels in (True, False):
            ours.use_kernels(use_kernels)
            how = "torch's loop" if use_kernels else "our scan"
            name = f"{variant} with {hidden} units, {'training' if train else 'inference'}, {how}, torch.nn.{kind.__name__}"
            row = compare(
                work(ours, x, train), work(reference, x, train), name, rounds,
                work=f"{BATCH} sequences of {TIME} steps",
            )  # fmt: skip
            rows.append(row | {"tokens_per_second": BATCH * TIME / row["ours"]})
    return rows


if __name__ == "__main__":
    save(cases("rnn_cell_100_128", nn.RNN), "rnn.json")
