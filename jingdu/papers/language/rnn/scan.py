r"""The recurrence: a cell, its scan along a sequence, and a stack of layers in one or two directions.

Letters: a sequence of `time` steps; `inputs` and `hidden` are the sizes of $x_t$ and $h_t$. A cell's state is a tuple of
tensors [batch, size] whose first is its output: (h,) here, (h, c) for an LSTM.
"""

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from jingdu.errors import UsageError, unknown

Step = Callable[[Tensor, tuple[Tensor, ...]], tuple[Tensor, ...]]
"""(projected input of one step [batch, projected], state) -> state."""
Direction = Literal["forwards", "backwards", "both"]


class Hidden(tuple[Tensor, ...]):
    """What a stack carries from step to step: for each part of its cells' state [layers * directions, batch, size]."""

    def select(self, rows: Int64[Tensor, " new_batch"]) -> "Hidden":
        """The state of other rows, which may repeat."""
        return Hidden(x[:, rows] for x in self)

    def detach(self) -> "Hidden":
        """The same values, where back-propagation through time ends."""
        return Hidden(x.detach() for x in self)


# The scan --------------------------------------------------------------------------------------------


def scan(
    cell: Step,
    x: Float[Tensor, "time batch projected"],
    state: tuple[Tensor, ...],
    lengths: Int64[Tensor, " batch"] | None = None,
    *,
    reverse: bool = False,
    truncate: int | None = None,
) -> tuple[Float[Tensor, "time batch hidden"], tuple[Tensor, ...]]:
    """Apply `cell` at every step. Nothing but what depends on the last step is in this loop: `x` is projected already.

    Args:
        cell: one step.
        x: the inputs, projected by the cell's input weights in one product.
        state: before the first step.
        lengths: how many steps of each row are real: a row's state stops there, and its further outputs are zero.
        reverse: from each row's true end to its start.
        truncate: let gradients through at most this many steps back; 1 is Elman's, whose context is a copied input.

    Returns the outputs and the last state.
    """
    time = len(x)
    real = whole = None
    if lengths is not None:
        real = (torch.arange(time, device=x.device)[:, None] < lengths)[..., None]
        whole = int(lengths.min())
    outputs: list[Tensor] = [x] * time  # every place is written below
    steps = x.unbind(0)
    for count, t in enumerate(range(time - 1, -1, -1) if reverse else range(time)):
        if truncate is not None and count % truncate == 0:
            state = tuple(s.detach() for s in state)
        new = cell(steps[t], state)
        outputs[t] = new[0]
        if whole is not None and t >= whole:  # some rows are over, or (in reverse) have not begun
            outputs[t] = new[0].masked_fill(~real[t], 0)
            new = tuple(torch.where(real[t], a, b) for a, b in zip(new, state, strict=True))
        state = new
    return torch.stack(outputs), state


# The cell --------------------------------------------------------------------------------------------


class Cell(nn.Module):
    r"""What the cells of a recurrent network share: `gates` linear maps of $x_t$ and of $h_{t-1}$, stacked.

    Args:
        inputs: size of x.
        hidden: size of h.
        gates: how many maps.
        biases: vectors a map: 2, one beside each matrix, as in torch; 1, as papers write it; or 0.
        output: size of what the next step sees, where it is not h itself.
    """

    def __init__(self, inputs: int, hidden: int, gates: int = 1, biases: int = 2, output: int | None = None):
        super().__init__()
        if min(inputs, hidden) < 1 or biases not in (0, 1, 2):
            raise UsageError(
                f"a cell of inputs={inputs}, hidden={hidden}, biases={biases}: give sizes from 1; 0 to 2 biases"
            )
        self.inputs, self.hidden, self.gates, self.output = inputs, hidden, gates, output or hidden
        self.weight_ih = nn.Parameter(torch.empty(gates * hidden, inputs))
        self.weight_hh = nn.Parameter(torch.empty(gates * hidden, self.output))
        self.bias_ih = nn.Parameter(torch.empty(gates * hidden)) if biases else None
        self.bias_hh = nn.Parameter(torch.empty(gates * hidden)) if biases == 2 else None
        self.initialise()

    def initialise(self) -> None:
        r"""Uniform on $\pm 1/\sqrt{hidden}$, as torch does."""
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -1 / math.sqrt(self.hidden), 1 / math.sqrt(self.hidden))

    @property
    def sizes(self) -> tuple[int, ...]:
        """The size of each tensor of the state; the first is the output's."""
        return (self.output,)

    @property
    def bias(self) -> Tensor | None:
        """All that is added to the maps."""
        return self.bias_ih if self.bias_ih is None or self.bias_hh is None else self.bias_ih + self.bias_hh

    def project(self, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch projected"]:
        """The part of the maps that needs no state: one product for a whole sequence."""
        return F.linear(x, self.weight_ih, self.bias)

    def step(self) -> Step:
        """The cell as a function, for `scan`. What is made of its weights is made once here."""
        raise TypeError("a cell defines its step")

    def kernel(self) -> tuple[Callable[..., Any], list[Tensor]] | None:
        """torch's own loop over this cell and the weights in its order, where torch has one that does the same."""
        return None

    def torch_weights(self) -> list[Tensor]:
        """Matrices and biases as torch's kernels take them: two biases or none."""
        if self.bias_ih is None:
            return [self.weight_ih, self.weight_hh]
        other = torch.zeros_like(self.bias_ih) if self.bias_hh is None else self.bias_hh
        return [self.weight_ih, self.weight_hh, self.bias_ih, other]

    def forward(self, x: Float[Tensor, "batch inputs"], state: tuple[Tensor, ...] | None = None) -> tuple[Tensor, ...]:
        """One step: the new state, of which the first tensor is the output. None is a state of zeros."""
        if state is None:
            state = tuple(x.new_zeros(len(x), size) for size in self.sizes)
        return self.step()(self.project(x), state)


class RNNCell(Cell):
    r"""$h_t = \tanh(W_x x_t + b_x + W_h h_{t-1} + b_h)$; `nonlinearity` may be relu instead."""

    def __init__(
        self, inputs: int, hidden: int, nonlinearity: Literal["tanh", "relu"] | str = "tanh", biases: int = 2
    ):  # fmt: skip
        super().__init__(inputs, hidden, 1, biases)
        if nonlinearity not in ("tanh", "relu"):
            raise unknown("nonlinearity", nonlinearity, ("tanh", "relu"))
        self.nonlinearity = nonlinearity

    def step(self) -> Step:
        weight = self.weight_hh.t()
        squash = torch.tanh if self.nonlinearity == "tanh" else torch.relu
        return lambda x, state: (squash(torch.addmm(x, state[0], weight)),)

    def kernel(self) -> tuple[Callable[..., Any], list[Tensor]]:
        return (torch._VF.rnn_tanh if self.nonlinearity == "tanh" else torch._VF.rnn_relu), self.torch_weights()


# Layers ----------------------------------------------------------------------------------------------


class Layer(nn.Module):
    """A cell along a sequence, and in the direction "both" another one from its end, their outputs side by side.

    Where torch has a loop of its own for the cell (`Cell.kernel`) it is used, unless `use_kernels` is False.
    """

    def __init__(self, cell: Callable[[int], Cell], inputs: int, direction: Direction, truncate: int | None):
        super().__init__()
        self.forwards = cell(inputs) if direction != "backwards" else None
        self.backwards = cell(inputs) if direction != "forwards" else None
        self.truncate, self.use_kernels = truncate, True

    @property
    def cells(self) -> list[Cell]:
        """The cell of each direction."""
        return [cell for cell in (self.forwards, self.backwards) if cell is not None]

    def forward(
        self,
        x: Float[Tensor, "time batch inputs"],
        state: tuple[Tensor, ...],
        lengths: Int64[Tensor, " batch"] | None = None,
    ) -> tuple[Float[Tensor, "time batch outputs"], tuple[Tensor, ...]]:
        """Outputs, and the state after the last step: tensors [directions, batch, size], as the one given."""
        kernels = [cell.kernel() for cell in self.cells]
        if self.use_kernels and self.truncate is None and self.forwards is not None and None not in kernels:
            return _by_kernel(kernels, x, state, lengths)
        found = [
            scan(
                cell.step(), cell.project(x), tuple(s[i] for s in state), lengths,
                reverse=cell is self.backwards, truncate=self.truncate,
            )
            for i, cell in enumerate(self.cells)
        ]  # fmt: skip
        outputs = [y for y, _ in found]
        last = tuple(torch.stack(parts) for parts in zip(*(state for _, state in found), strict=True))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1), last


def _by_kernel(
    kernels: list[tuple[Callable[..., Any], list[Tensor]]], x: Tensor, state: tuple[Tensor, ...], lengths: Tensor | None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """One layer by torch's loop (in C++; cuDNN's on a GPU). Rows of several lengths go in packed."""
    kernel, weights = kernels[0][0], [w for _, weights in kernels for w in weights]
    options = (len(kernels[0][1]) > 2, 1, 0.0, torch.is_grad_enabled(), len(kernels) == 2)
    given = lambda parts: parts[0] if len(parts) == 1 else list(parts)  # noqa: E731
    if lengths is None:
        y, *last = kernel(x, given(state), weights, *options, False)
        return y, tuple(last)
    packed = pack_padded_sequence(x, lengths.cpu(), enforce_sorted=False)
    sorted_state = tuple(s.index_select(1, packed.sorted_indices) for s in state)
    y, *last = kernel(packed.data, packed.batch_sizes, given(sorted_state), weights, *options)
    whole = PackedSequence(y, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices)
    y, _ = pad_packed_sequence(whole, total_length=len(x))
    return y, tuple(s.index_select(1, packed.unsorted_indices) for s in last)


class Recurrent(nn.Module):
    """Layers of a cell, each reading the outputs of the one below.

    Args:
        cell: makes a cell for inputs of a given size: `functools.partial(RNNCell, hidden=128)`.
        inputs: size of x.
        layers: how many.
        direction: forwards, backwards (from each row's true end), or both, side by side.
        between: makes a part that the outputs of every layer but the last go through (dropout), [time, batch, size].
        residual: add a layer's input to its output, from the second layer on.
        batch_first: sequences are [batch, time, size]; else [time, batch, size].
        truncate: let gradients through at most this many steps back.
    """

    def __init__(
        self,
        cell: Callable[[int], Cell],
        inputs: int,
        layers: int = 1,
        direction: Direction | str = "forwards",
        between: Callable[[], nn.Module] | None = None,
        residual: bool = False,
        batch_first: bool = True,
        truncate: int | None = None,
    ):
        super().__init__()
        if direction not in ("forwards", "backwards", "both"):
            raise unknown("direction", direction, ("forwards", "backwards", "both"))
        if layers < 1 or (truncate is not None and truncate < 1):
            raise UsageError(f"layers={layers}, truncate={truncate}: give 1 or more")
        self.direction, self.residual, self.batch_first = direction, residual, batch_first
        self.layers = nn.ModuleList()
        width = inputs
        for _ in range(layers):
            layer = Layer(cell, width, direction, truncate)
            self.layers.append(layer)
            width = sum(c.sizes[0] for c in layer.cells)
        self.between = nn.ModuleList(between() for _ in range(layers - 1)) if between else None
        self.inputs, self.outputs = inputs, width
        self.directions, self.sizes = len(layer.cells), layer.cells[0].sizes

    def use_kernels(self, use: bool = True) -> "Recurrent":
        """Whether to use torch's loops where there are any; the results are the same."""
        for layer in self.layers:
            layer.use_kernels = use
        return self

    def init_state(self, batch: int, capacity: int = 0) -> Hidden:
        """Zeros, for a batch of this size. Sequences may be of any length: `capacity` is ignored."""
        like = next(self.parameters())
        return Hidden(like.new_zeros(len(self.layers) * self.directions, batch, size) for size in self.sizes)

    def layer_outputs(
        self, x: Tensor, state: tuple[Tensor, ...] | None = None, lengths: Int64[Tensor, " batch"] | None = None
    ) -> tuple[list[Tensor], Hidden]:
        """As `forward`, with the outputs of every layer, first to last."""
        x = x.transpose(0, 1) if self.batch_first else x
        if state is None:
            state = self.init_state(x.shape[1])
            state = Hidden(s.to(x.dtype) for s in state)
        found, states = [], []
        for i, layer in enumerate(self.layers):
            if i and self.between is not None:
                x = self.between[i - 1](x)
            own = slice(i * self.directions, (i + 1) * self.directions)
            y, last = layer(x, tuple(s[own] for s in state), lengths)
            x = x + y if self.residual and i else y
            found.append(x.transpose(0, 1) if self.batch_first else x)
            states.append(last)
        return found, Hidden(torch.cat(parts) for parts in zip(*states, strict=True))

    def forward(
        self,
        x: Float[Tensor, "a b inputs"],
        state: tuple[Tensor, ...] | None = None,
        lengths: Int64[Tensor, " batch"] | None = None,
    ) -> tuple[Float[Tensor, "a b outputs"], Hidden]:
        """The last layer's outputs, and every layer's last state.

        Args:
            x: [batch, time, inputs], or [time, batch, inputs] without `batch_first`.
            state: from an earlier part of the same sequences; None is zeros.
            lengths: how many steps of each row are real, 1 or more; outputs are zero behind them.
        """
        found, state = self.layer_outputs(x, state, lengths)
        return found[-1], state
