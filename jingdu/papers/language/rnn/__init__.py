r"""Finding Structure in Time. Elman. 1990. https://doi.org/10.1207/s15516709cog1402_1

**Problem.** Language happens in time. A network with a window sees time as a row of places: the window's
length is fixed, and the same word in the next place is another pattern altogether.

**Idea.** Give the network its own past. The hidden layer is copied after every step, and the copy is an input of
the next one. With $x_t$ the input and $h_t$ the hidden layer,

$$ h_t = \tanh(W_x x_t + b_x + W_h h_{t-1} + b_h), $$

so one set of weights reads sequences of any length. Nobody says what is to be remembered: the network learns it
while it learns to predict the next input.

**Showed.** It predicts the third bit of an exclusive-or whose bits come one after the other (Fig. 3). Over letters
without spaces its error is high where a word begins and falls within it (Fig. 6). Trained to predict words of small
sentences, its hidden states fall into nouns and verbs, and these into animates, inanimates and so on (Fig. 7).

Differs from the paper in:
- The hidden layer is a tanh, as in today's libraries, not a logistic function; the output is a softmax with
  cross-entropy over unit vectors, not logistic units with a squared error (letters were vectors of 5 bits).
- The gradient goes back through time. The paper's goes one step, through the copy to nothing behind it: `truncate=1`.
- Two bias vectors where torch has them; the paper's one is `biases=1`.
- Layers, directions, lengths, the encoder-decoder and the generation loop came later. They are here because this is
  the oldest paper of those that share them.

Reading order: `scan` (the cell, the recurrence, layers), `models` (what is built around it), `generation` (one symbol
after the other), `elman` (the paper's sequences), `text` (symbols, windows and streams), `training` (carried state).
"""

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from jingdu.engine.contracts import Recipe, Stage
from jingdu.errors import UsageError
from jingdu.prediction import Prediction, origin_of

from .elman import LEXICON, TEMPLATES, sentences, xor
from .generation import Choose, Generator, State, generate, greedy, sample, steps
from .models import Conditioned, EncoderDecoder, LanguageModel, ManyToMany, ManyToOne, masked_nats
from .scan import Cell, Hidden, Layer, Recurrent, RNNCell, scan
from .text import Streams, Symbols, Text, read_corpus, streams, windows
from .training import Stateful, Translation

__all__ = [
    "LEXICON", "TEMPLATES", "Cell", "Conditioned", "EncoderDecoder", "Generator", "Hidden", "LanguageModel",
    "Layer", "ManyToMany", "ManyToOne", "RNNCell", "Recurrent", "State", "Stateful", "Streams", "Symbols",
    "Text", "Translation", "build", "continue_text", "generate", "greedy", "language_model", "many_to_one", "masked_nats", "predict",
    "read_corpus", "recurrent", "sample", "scan", "sentences", "steps", "streams", "windows", "xor",
]  # fmt: skip


def recurrent(
    inputs: int, hidden: int, layers: int = 1, nonlinearity: str = "tanh", biases: int = 2,
    direction: str = "forwards", batch_first: bool = True, truncate: int | None = None,
) -> Recurrent:  # fmt: skip
    """Layers of Elman's cell. The arguments are those of `RNNCell` and `Recurrent`."""
    cell = partial(RNNCell, hidden=hidden, nonlinearity=nonlinearity, biases=biases)
    return Recurrent(cell, inputs, layers, direction, batch_first=batch_first, truncate=truncate)


def language_model(
    vocabulary: int, hidden: int, embedding: int | None = None, layers: int = 1, nonlinearity: str = "tanh",
    biases: int = 1, truncate: int | None = None,
) -> LanguageModel:  # fmt: skip
    """Predicts the next symbol; symbols are unit vectors, unless there is a learned `embedding`."""
    inner = recurrent(embedding or vocabulary, hidden, layers, nonlinearity, biases, truncate=truncate)
    return LanguageModel(inner, vocabulary, embedding)


def many_to_one(inputs: int, hidden: int, outputs: int, **options: Any) -> ManyToOne:
    """One output after the whole sequence; `options` are those of `recurrent`."""
    return ManyToOne(recurrent(inputs, hidden, **options), outputs)


VARIANTS: dict[str, tuple[Any, dict[str, Any]]] = {
    # torch.nn.RNN(100, 128)
    "rnn_cell_100_128": (recurrent, {"inputs": 100, "hidden": 128}),
    # The paper's three tasks. Its hidden layers had 2, 20 and 150 units; the first two are larger here.
    "rnn_xor": (language_model, {"vocabulary": 2, "hidden": 16}),
    "rnn_letters": (language_model, {"vocabulary": 26, "hidden": 128}),
    "rnn_words": (language_model, {"vocabulary": 31, "hidden": 150}),
    # Ours, to compare with an LSTM of 64 cells and as many parameters
    "rnn_adding": (many_to_one, {"inputs": 2, "hidden": 130, "outputs": 1}),
}


def build(variant: str, **overrides: Any) -> nn.Module:
    """The network of a variant; overrides are the arguments of its function in this module."""
    make, arguments = VARIANTS[variant]
    return make(**{**arguments, **overrides})


recipes = {
    "laptop": Recipe(
        stages=(
            Stage(
                system="language_modelling",
                networks={"network": "rnn_letters"},
                data="rnn.windows(of='pydoc_topics', unit='letters', length=64)",
                batch_size=32,
                steps=1500,
                optimizer="adam",
                lr=2e-3,
                schedule="cosine",
                clip=1.0,
            ),
        ),
        minutes=1.0,
        expect={"loss": (1.5, 2.2)},
        about="letters of Python's help topics without the spaces between words, the gradient through 64 steps",
    ),
    "paper": Recipe(
        stages=(
            Stage(
                system="rnn.Stateful(batch=1)",
                networks={"network": "rnn_words(truncate=1)"},
                data="rnn.Streams(of='sentences', unit='words', length=1, batch=1)",
                eval_data="rnn.streams(of='sentences', unit='words', length=1, batch=1)",
                batch_size=1,
                epochs=6,
                lr=0.02,
                momentum=0.0,
            ),
        ),
        minutes=8,
        expect={"loss": (1.8, 2.4)},
        about="10,000 sentences of the paper's grammar read six times, one word a step and the gradient through one step; "
        "the paper does not give its rate",
    ),
}


def predict(
    model: nn.Module, inputs: Sequence[str], *, length: int = 80, temperature: float = 0.7, seed: int = 0
) -> Iterator[Prediction]:
    """How well the network foresees each text, and how it goes on.

    Args:
        length: symbols to continue by; 0 only scores.
        temperature: of sampling; 0 takes the most probable symbol.
        seed: of sampling.
    """
    return continue_text(model, inputs, length=length, temperature=temperature, seed=seed)


def continue_text(
    model: nn.Module, inputs: Sequence[str], *, length: int, temperature: float, seed: int
) -> Iterator[Prediction]:
    """What `predict` gives for a language model over `Symbols`; later papers' networks use it too.

    Raises UsageError for a network or text that has no symbols, and for impossible numbers.
    """
    if not isinstance(model, LanguageModel):
        raise UsageError(f"{origin_of(model).variant} reads vectors and not text: predict takes a language model")
    path = origin_of(model).tokenizer
    if path is None:
        raise UsageError("nothing beside these weights says what the symbols are: give a run folder of ours")
    if length < 0 or not 0 <= temperature < math.inf:
        raise UsageError(f"length {length}, temperature {temperature}: give numbers from 0 on")
    symbols = Symbols.read(path)
    generator = torch.Generator().manual_seed(seed)
    choose: Choose = partial(sample, temperature=temperature) if temperature else greedy
    for text in inputs:
        ids = torch.tensor(symbols.encode(text), dtype=torch.int64)
        if not len(ids):
            raise UsageError(f"{text!r} has no {symbols.unit}: give some text to go on from")
        with torch.no_grad():
            nats = model(ids[None, :-1], None, ids[None, 1:])[0][0].tolist() if len(ids) > 1 else []
        made = symbols.decode(generate(model, [ids], length, choose=choose, generator=generator)[0].tolist())
        pieces = [symbols.symbols[i] for i in ids.tolist()]
        mean = f"{sum(nats) / len(nats):.3f} nats a symbol" if nats else "one symbol, nothing to foresee"
        data = {"symbols": pieces, "nats": [None, *nats], "continuation": made}
        yield Prediction(text, f"{text} [{made}]\n{mean}", data)
