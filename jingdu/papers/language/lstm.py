r"""Long Short-Term Memory. Hochreiter, Schmidhuber. 1997. https://doi.org/10.1162/neco.1997.9.8.1735
The forget gate: Gers, Schmidhuber, Cummins 2000, https://doi.org/10.1162/089976600300015015.

**Problem.** Error that flows back through a recurrent network is multiplied at every step by the weights and the
slope of the squashing. Over a hundred steps it vanishes or explodes, so the network cannot learn what to keep.

**Idea.** Keep a cell state whose self-connection has the weight one, so that error flows through it unchanged (the
constant error carousel, Sec. 3.2), and let gates decide what enters it and what of it is shown (Sec. 4):

$$ c_t = f_t \odot c_{t-1} + i_t \odot g_t, \qquad h_t = o_t \odot \tanh(c_t), $$

where $g_t = \tanh(\cdot)$ and the gates $i_t, f_t, o_t = \sigma(\cdot)$ see $x_t$ and $h_{t-1}$. In 1997 $f_t = 1$; the
forget gate lets a cell be emptied, and is what the name means today.

**Showed.** It learns to add two numbers 100, 500 and 1,000 steps apart (Tab. 7), and to bridge 1,000 steps without
noise (Tab. 2), where back-propagation through time and real-time recurrent learning fail beyond some ten.

Differs from the paper in:
- The default is today's cell: a forget gate, and the whole gradient through time. `forget_bias=None` is the paper's cell
  without forget gates; `truncated=True` its gradient, which is cut where it leaves a memory block and kept in its cells.
- Cells are squashed by tanh; the paper's g runs from -2 to 2 and its h from -1 to 1. Blocks have one cell.
- The gates are stacked in torch's order, i, f, g, o. TensorFlow's is i, g, f, o with 1 added to f: `forget_bias=1`.
- The adding problem is Le et al.'s (2015, https://arxiv.org/abs/1504.00941): numbers from 0 to 1, all of one length.
- The language models are Zaremba et al.'s (2014, https://arxiv.org/abs/1409.2329), the projection Sak et al.'s (2014,
  https://arxiv.org/abs/1402.1128), peepholes those of Gers et al. (2002), the same mask at every step Gal and
  Ghahramani's (2016, https://arxiv.org/abs/1512.05287), the adaptive softmax Grave et al.'s (2017,
  https://arxiv.org/abs/1609.04309), the sampled one Jean et al.'s (2014, https://arxiv.org/abs/1412.2007).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from jingdu.data.base import Batch
from jingdu.data.draws import Draws
from jingdu.engine.contracts import Recipe, Stage, System
from jingdu.errors import UsageError
from jingdu.nn import each
from jingdu.papers.language.rnn import (
    Cell,
    EncoderDecoder,
    LanguageModel,
    ManyToOne,
    Recurrent,
    continue_text,
    masked_nats,
)
from jingdu.papers.language.rnn.scan import Step
from jingdu.prediction import Prediction

__all__ = [
    "AdaptiveSoftmax", "Adding", "LSTMCell", "Regression", "SampledSoftmax", "VariationalDropout", "adding", "build",
    "encoder_decoder", "language_model", "many_to_one", "predict", "recurrent",
]  # fmt: skip


class LSTMCell(Cell):
    """The gates and the cell; its state is (h, c).

    Args:
        inputs, hidden: sizes of x and c.
        biases: as in `Cell`.
        forget_bias: added to the forget gate's input; None is the cell of 1997, which forgets nothing.
        peepholes: the gates see the cell, each by a weight of its own: i and f the old one, o the new one.
        projection: h is a linear map of the output to this size, and is what the next step sees.
        cell_clip, projection_clip: c, and the projected h, are kept within these bounds (ELMo's are 3).
        truncated: gates take h and c as constants (Sec. 4), so error goes back in time through the cell alone.
    """

    def __init__(
        self,
        inputs: int,
        hidden: int,
        biases: int = 2,
        forget_bias: float | int | None = 0.0,
        peepholes: bool = False,
        projection: int | None = None,
        cell_clip: float | int | None = None,
        projection_clip: float | int | None = None,
        truncated: bool = False,
    ):
        self.forgets = forget_bias is not None
        super().__init__(inputs, hidden, 4 if self.forgets else 3, biases, projection)
        if any(clip is not None and clip <= 0 for clip in (cell_clip, projection_clip)):
            raise UsageError(f"cell_clip={cell_clip}, projection_clip={projection_clip}: give positive bounds")
        if projection_clip is not None and projection is None:
            raise UsageError("projection_clip bounds a projection: give projection=SIZE too")
        self.forget_bias = forget_bias or 0.0
        self.cell_clip, self.projection_clip, self.truncated = cell_clip, projection_clip, truncated
        self.weight_peep = nn.Parameter(torch.empty(self.gates - 1, hidden)) if peepholes else None
        self.weight_hr = nn.Parameter(torch.empty(projection, hidden)) if projection else None
        self.initialise()

    @property
    def sizes(self) -> tuple[int, ...]:
        return (self.output, self.hidden)

    @property
    def bias(self) -> Tensor | None:
        return self._with_forget_bias(super().bias)

    def _with_forget_bias(self, bias: Tensor | None) -> Tensor | None:
        """1 in the forget gate at the start lets error through; torch's own start has f near one half (Sec. 3.2)."""
        if not self.forget_bias:
            return bias
        bias = self.weight_ih.new_zeros(4 * self.hidden) if bias is None else bias
        i, f, g, o = bias.chunk(4)
        return torch.cat([i, f + self.forget_bias, g, o])

    def step(self) -> Step:
        into, out, peep = self.weight_hh.t(), self.weight_hr, self.weight_peep
        cell_clip, projection_clip = self.cell_clip, self.projection_clip
        out = None if out is None else out.t()

        def one(x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
            h, c = state
            seen = c  # by the gates
            if self.truncated:
                h, seen = h.detach(), c.detach()
            parts = torch.addmm(x, h, into).chunk(self.gates, 1)
            i, g, o = parts[0], parts[-2], parts[-1]
            if peep is not None:
                i = i + peep[0] * seen
            kept = c
            if self.forgets:
                f = parts[1] if peep is None else parts[1] + peep[1] * seen
                kept = f.sigmoid() * c
            c = torch.addcmul(kept, i.sigmoid(), g.tanh())
            if cell_clip is not None:
                c = c.clamp(-cell_clip, cell_clip)
            if peep is not None:
                o = o + peep[-1] * c
            h = o.sigmoid() * c.tanh()
            if out is not None:
                h = h @ out
                if projection_clip is not None:
                    h = h.clamp(-projection_clip, projection_clip)
            return h, c

        return one

    def kernel(self) -> tuple[Callable[..., Any], list[Tensor]] | None:
        """torch's LSTM forgets, projects, and knows neither peepholes nor clipping nor the paper's gradient."""
        if not self.forgets or self.weight_peep is not None or self.cell_clip or self.projection_clip or self.truncated:
            return None
        matrices, biases = self.torch_weights()[:2], self.torch_weights()[2:]
        if biases or self.forget_bias:
            first = self._with_forget_bias(biases[0] if biases else None)
            biases = [first, biases[1] if biases else torch.zeros_like(first)]
        return torch._VF.lstm, [*matrices, *biases, *([self.weight_hr] if self.weight_hr is not None else [])]


class VariationalDropout(nn.Module):
    """Dropout with one mask for all steps of a sequence, whose axis is `time`."""

    def __init__(self, p: float, time: int):
        super().__init__()
        self.p, self.time = p, time

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.p:
            return x
        shape = [1 if axis == self.time else size for axis, size in enumerate(x.shape)]
        return x * F.dropout(x.new_ones(shape), self.p)


class AdaptiveSoftmax(nn.Module):
    """Log-probabilities of a large vocabulary: the frequent symbols first, the others in ever smaller clusters.

    Args:
        inputs: size of what it reads.
        vocabulary: how many symbols, in the order of their frequency.
        cutoffs: where the clusters end: (2000, 6000) makes three.
    """

    def __init__(self, inputs: int, vocabulary: int, cutoffs: Sequence[int]):
        super().__init__()
        self.softmax = nn.AdaptiveLogSoftmaxWithLoss(inputs, vocabulary, list(cutoffs))

    def forward(self, y: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch vocabulary"]:
        return self.softmax.log_prob(y.flatten(0, -2)).unflatten(0, y.shape[:-1])

    def nats(
        self, y: Float[Tensor, "batch time inputs"], targets: Int64[Tensor, "batch time"]
    ) -> Float[Tensor, "batch time"]:
        """Cross-entropies of the targets, for which only their own clusters are computed."""
        return -self.softmax(y.flatten(0, 1), targets.flatten()).output.view(targets.shape)


class SampledSoftmax(nn.Module):
    r"""A softmax over a large vocabulary that is trained against a sample of it; in evaluation it is a whole one.

    Symbol k of V is drawn with $p_k = \log(1 + 1/(k + 1)) / \log(V + 1)$, Zipf's law, `draws` times, so that it is in the
    sample with $q_k = 1 - (1 - p_k)^{draws}$. Which of the sample and the target is the target then has the probabilities
    $\operatorname{softmax}(y_k - \log q_k)$: as in TensorFlow's sampled_softmax_loss, but for the number of draws, there
    as many as it takes to find so many different symbols.

    Args:
        inputs: size of what it reads.
        vocabulary: how many symbols, in the order of their frequency.
        draws: how many symbols are drawn for a batch; those drawn twice count once.
    """

    def __init__(self, inputs: int, vocabulary: int, draws: int):
        super().__init__()
        if draws < 1:
            raise UsageError(f"draws={draws}: give 1 or more")
        self.draws, self.linear = draws, nn.Linear(inputs, vocabulary)

    def forward(self, y: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch vocabulary"]:
        return self.linear(y)

    def sample(self) -> Int64[Tensor, " samples"]:
        """The different symbols among `draws` ones."""
        size, device = self.linear.out_features, self.linear.weight.device
        k = torch.rand(self.draws, device=device).mul(math.log(size + 1)).exp().long() - 1  # p's inverted sum
        return k.clamp(max=size - 1).unique()

    def log_included(self, k: Int64[Tensor, "*symbols"]) -> Float[Tensor, "*symbols"]:
        """log q of these symbols."""
        p = torch.log1p(1 / (k + 1)) / math.log(self.linear.out_features + 1)
        return torch.log(-torch.expm1(self.draws * torch.log1p(-p)))

    def nats(
        self, y: Float[Tensor, "batch time inputs"], targets: Int64[Tensor, "batch time"]
    ) -> Float[Tensor, "batch time"]:
        """Cross-entropies of the targets; in training, against a new sample."""
        if not self.training:
            return masked_nats(self(y), targets)
        k, weight, bias = self.sample(), self.linear.weight, self.linear.bias
        others = F.linear(y, weight[k], bias[k]).float() - self.log_included(k)
        others = others.masked_fill(targets[..., None] == k, -math.inf)  # the target is there already
        own = ((y * weight[targets]).sum(-1) + bias[targets]).float() - self.log_included(targets)
        return torch.cat([own[..., None], others], -1).logsumexp(-1) - own


# Networks -------------------------------------------------------------------------------------------


def recurrent(
    inputs: int, hidden: int, layers: int = 1, direction: str = "forwards", batch_first: bool = True,
    dropout: float = 0.0, variational: bool = False, residual: bool = False, **cell: Any,
) -> Recurrent:  # fmt: skip
    """Layers of LSTM cells.

    Args:
        inputs, layers, direction, batch_first, residual: as in `Recurrent`.
        hidden: size of each layer's cell.
        dropout: of the outputs of all layers but the last (Zaremba et al.: never from one step to the next).
        variational: the same mask at every step of a sequence.
        cell: further arguments of `LSTMCell`.
    """
    kind = partial(VariationalDropout, dropout, 0) if variational else partial(nn.Dropout, dropout)
    between = kind if dropout else None
    return Recurrent(
        partial(LSTMCell, hidden=hidden, **cell), inputs, layers, direction, between, residual, batch_first
    )


def many_to_one(inputs: int, hidden: int, outputs: int, input_bias: float | int = 0.0, **options: Any) -> ManyToOne:
    """One output after the whole sequence.

    Args:
        inputs, hidden, outputs: sizes.
        input_bias: added to the input gates' biases at the start. Below zero, cells do not drift away before anything
            was learned (Sec. 4, "internal state drift").
        options: further arguments of `recurrent`.

    Raises UsageError for an input_bias where there are no biases.
    """
    network = recurrent(inputs, hidden, **options)
    for cell in (cell for layer in network.layers for cell in layer.cells if input_bias):
        if cell.bias_ih is None:
            raise UsageError(f"input_bias={input_bias} starts a bias: give biases=1 or 2")
        nn.init.uniform_(cell.bias_ih[:hidden], input_bias - hidden**-0.5, input_bias + hidden**-0.5)
    return ManyToOne(network, outputs)


def language_model(
    vocabulary: int, hidden: int, layers: int = 2, embedding: int | None = None, dropout: float = 0.0,
    variational: bool = False, tie: bool = False, cutoffs: Sequence[int] = (), draws: int | None = None,
    spread: float | None = None, **cell: Any,
) -> LanguageModel:  # fmt: skip
    """Zaremba et al.'s: embeddings, layers of cells with one bias, a softmax; dropout before and after every layer.

    Args:
        vocabulary, hidden, layers: sizes.
        embedding: size of the embeddings; by default `hidden`.
        dropout, variational: as in `recurrent`, and before the first layer and after the last.
        tie: embeddings and softmax share their matrix.
        cutoffs: of an adaptive softmax.
        draws: of a sampled softmax. Without this and without cutoffs it is a whole one.
        spread: all weights start uniform on [-spread, spread]; None is torch's start.
        cell: further arguments of `LSTMCell` and `recurrent`.
    """
    inner = recurrent(
        embedding or hidden, hidden, layers, dropout=dropout, variational=variational, **{"biases": 1, **cell}
    )
    drop = (VariationalDropout(dropout, 1) if variational else nn.Dropout(dropout)) if dropout else None
    if cutoffs and draws:
        raise UsageError(f"cutoffs={cutoffs}, draws={draws}: a softmax is adaptive or sampled: give one of them")
    output = AdaptiveSoftmax(inner.outputs, vocabulary, cutoffs) if cutoffs else None
    output = SampledSoftmax(inner.outputs, vocabulary, draws) if draws else output
    model = LanguageModel(inner, vocabulary, embedding or hidden, drop, tie, output)
    if spread is not None:
        for parameter in model.parameters():
            nn.init.uniform_(parameter, -spread, spread)
    else:
        each(model, nn.Embedding, lambda m: nn.init.normal_(m.weight, std=1 / math.sqrt(m.embedding_dim)))
    return model


def encoder_decoder(
    vocabulary: int, hidden: int, layers: int = 1, embedding: int | None = None, dropout: float = 0.0,
    target_vocabulary: int | None = None, **cell: Any,
) -> EncoderDecoder:  # fmt: skip
    """One LSTM reads, another writes from its last state: the translation of whole sequences without attention.

    Args:
        vocabulary, target_vocabulary: symbols of the source, and of the target (by default as many).
        hidden, layers, embedding, dropout, cell: as in `language_model`, for both.
    """
    make = lambda: recurrent(embedding or hidden, hidden, layers, dropout=dropout, **cell)  # noqa: E731
    drop = nn.Dropout(dropout) if dropout else None
    return EncoderDecoder(make(), make(), vocabulary, target_vocabulary or vocabulary, drop)


PTB = {"vocabulary": 10_000, "layers": 2}
"""Zaremba et al. on the Penn Treebank, whose 10,000 words include <unk> and <eos>."""

VARIANTS: dict[str, tuple[Callable[..., nn.Module], dict[str, Any]]] = {
    # torch.nn.LSTM(100, 128)
    "lstm_cell_100_128": (recurrent, {"inputs": 100, "hidden": 128}),
    # Zaremba et al. 2014, Section 4.1: not regularised, medium, large
    "lstm_zaremba_small": (language_model, {**PTB, "hidden": 200, "spread": 0.1}),
    "lstm_zaremba_medium": (language_model, {**PTB, "hidden": 650, "dropout": 0.5, "spread": 0.05}),
    "lstm_zaremba_large": (language_model, {**PTB, "hidden": 1500, "dropout": 0.65, "spread": 0.04}),
    # Ours: characters of a text, and the adding problem
    "lstm_characters": (language_model, {"vocabulary": 128, "hidden": 192, "layers": 1, "forget_bias": 1.0}),
    "lstm_adding": (many_to_one, {"inputs": 2, "hidden": 64, "outputs": 1, "forget_bias": 4.0, "input_bias": -3.0}),
}


def build(variant: str, **overrides: Any) -> nn.Module:
    """The network of a variant; overrides are the arguments of its function in this module."""
    make, arguments = VARIANTS[variant]
    return make(**{**arguments, **overrides})


# The adding problem ---------------------------------------------------------------------------------


class Adding:
    """Sequences of pairs (number, mark): two numbers are marked, one in each half, and the target is their sum.

    `x` [length, 2], numbers uniform on [0, 1); `y` [1]. To answer 1 always costs a squared error of 1/6.
    """

    classes = None

    def __init__(self, length: int, count: int, epoch: int | None):
        self.length, self.count, self.epoch = length, count, epoch

    def __len__(self) -> int:
        return self.count

    def batch(self, indices: np.ndarray, draws: Draws) -> Batch:
        if self.epoch is not None:  # the test sequences are the same for all seeds
            draws = Draws(1997, self.epoch, indices)
        half = self.length // 2
        numbers, rows = draws.uniform(self.length), torch.arange(len(indices))
        first, second = draws.integers(half), half + draws.integers(self.length - half)
        marks = torch.zeros_like(numbers)
        marks[rows, first] = marks[rows, second] = 1
        return {"x": torch.stack([numbers, marks], -1), "y": (numbers * marks).sum(1, keepdim=True)}


def adding(split: Literal["train", "test"], length: int = 100, count: int = 64_000) -> Adding:
    """The adding problem (Sec. 5.4); training sequences are new in every epoch.

    Args:
        split: train, or test (2,000 sequences, always the same).
        length: of a sequence.
        count: training sequences of an epoch.

    Raises UsageError for sequences too short for two marks.
    """
    if length < 2:
        raise UsageError(f"adding(length={length}): two numbers are marked: give 2 or more")
    return Adding(length, count, None) if split == "train" else Adding(length, 2000, 0)


class Regression(System):
    """Squared error of one network's outputs for `x` against `y`; evaluation is their mean, `mse`."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        self.total, self.count = 0.0, 0

    def forward(self, batch: Batch, objective: str) -> tuple[Tensor, dict[str, Any]]:
        return F.mse_loss(self.network(batch["x"]), batch["y"]), {}

    def update(self, batch: Batch) -> None:
        self.total += float((self.network(batch["x"]) - batch["y"]).double().square().sum())
        self.count += batch["y"].numel()

    def compute(self) -> dict[str, float]:
        mse, self.total, self.count = self.total / max(self.count, 1), 0.0, 0
        return {"mse": mse}


# Recipes --------------------------------------------------------------------------------------------


def _words(variant: str, steps: int, epochs: int, hold: int, factor: float, clip: float) -> Recipe:
    """Zaremba et al. add up the loss of the steps where ours is their mean, so rate and clip are `steps` times theirs."""
    arguments = f"of=\"text(path='ptb')\", unit='words', vocabulary=10000, length={steps}, batch=20"
    return Recipe(
        stages=(
            Stage(
                system="rnn.Stateful(batch=20)",
                networks={"network": variant},
                data=f"rnn.Streams({arguments})",
                eval_data=f"rnn.streams({arguments})",
                batch_size=20,
                epochs=epochs,
                lr=1.0 * steps,
                momentum=0.0,
                schedule=f"step(every=1, factor={factor}, hold={hold})",
                clip=clip / steps,
                save_every=1000,
            ),
        ),
        minutes={"lstm_zaremba_small": 60, "lstm_zaremba_medium": 90, "lstm_zaremba_large": 360}[variant],
        expect={"perplexity": {"lstm_zaremba_small": (105.0, 120.0), "lstm_zaremba_medium": (79.0, 87.0),
                               "lstm_zaremba_large": (75.0, 83.0)}[variant]},
        machine="2 CPU cores" if variant == "lstm_zaremba_small" else "1 GPU",
        about="Zaremba et al. on your Penn Treebank (a folder ptb/ with train/ and test/ of its .txt files); the paper's "
        "test perplexities are 114.5, 82.7 and 78.4",
    )  # fmt: skip


_STREAMS = "of='pydoc_topics', unit='characters', vocabulary=128, length=64, batch=32"
recipes = {
    "laptop": Recipe(
        stages=(
            Stage(
                system="rnn.Stateful(batch=32)",
                networks={"network": "lstm_characters"},
                data=f"rnn.Streams({_STREAMS})",
                eval_data=f"rnn.streams({_STREAMS})",
                batch_size=32,
                steps=1000,
                optimizer="adam",
                lr=4e-3,
                schedule="cosine",
                clip=1.0,
            ),
        ),
        minutes=1.5,
        expect={"bits_per_byte": (1.95, 2.06)},
        about="characters of Python's help topics, the state carried from batch to batch; measured: 2.005 bits a byte",
    ),
    "adding": Recipe(
        stages=(
            Stage(
                system="lstm.Regression",
                networks={"network": "lstm_adding"},
                data="lstm.adding(length=100)",
                batch_size=64,
                steps=2500,
                optimizer="adam",
                lr=2e-3,
                clip=1.0,
            ),
        ),
        minutes=1.5,
        expect={"mse": (0.0, 0.03)},
        about="Sec. 5.4 at a lag of up to 100 steps; three seeds gave 0.001",
    ),
    "paper": _words("lstm_zaremba_medium", steps=35, epochs=39, hold=6, factor=1 / 1.2, clip=5),
    "small": _words("lstm_zaremba_small", steps=20, epochs=13, hold=4, factor=0.5, clip=5),
    "large": _words("lstm_zaremba_large", steps=35, epochs=55, hold=14, factor=1 / 1.15, clip=10),
}


def predict(
    model: nn.Module, inputs: Sequence[str], *, length: int = 200, temperature: float = 0.7, seed: int = 0
) -> Iterator[Prediction]:
    """How well a language model foresees each text, and how it goes on.

    Args:
        length: symbols to continue by; 0 only scores.
        temperature: of sampling; 0 takes the most probable symbol.
        seed: of sampling.
    """
    return continue_text(model, inputs, length=length, temperature=temperature, seed=seed)
