r"""Learning Phrase Representations using RNN Encoder-Decoder for Statistical Machine Translation. Cho, van Merrienboer,
Gulcehre, Bahdanau, Bougares, Schwenk, Bengio. 2014. https://arxiv.org/abs/1406.1078

**Problem.** A phrase-based translation system scores phrase pairs by how often they were seen together. That says
nothing of pairs that were seen rarely, and nothing of what the phrases mean.

**Idea.** One recurrent network reads the source phrase into one vector c; another writes the target phrase from c, which
it sees at every step (Eq. 3-4). Trained together, they give $p(\text{target} \mid \text{source})$ for any pair. And a unit
that learns when to forget and when to update, with two gates and no cell beside its output (Eq. 5-8):

$$ h_t = z \odot h_{t-1} + (1 - z) \odot \tilde h, \qquad \tilde h = \tanh(W x_t + U (r \odot h_{t-1})), $$

where the update gate $z$ and the reset gate $r$ are logistic functions of $x_t$ and $h_{t-1}$.

**Showed.** As one more feature of a phrase-based English-French system it raises BLEU from 33.30 to 33.87 (Tab. 1), and
phrases of like meaning and grammar get like vectors (Fig. 4-5).

Differs from the paper in:
- The cell's default is torch's and cuDNN's, `reset="after"`: $\tilde h = \tanh(W x + r \odot (U h + b))$. The paper's,
  and the encoder-decoder's here, is `reset="before"`. They are different functions with the same weights' shapes.
- Biases are learned and the gradient's norm is clipped at 1, as in the authors' code,
  https://github.com/lisa-groundhog/GroundHog; the text leaves both out.
- c enters the decoder's candidate outside its reset gate, as in that code; the appendix multiplies it by r too.
- The released code ends phrases by a symbol and starts the decoder from a zero vector; here it starts from a symbol
  that names the target's language, so one network can serve several.
- The bilingual corpus, a phrase table of WMT'14 (348 million of its words), is not ours to ship.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from jingdu.data.base import Batch
from jingdu.data.catalogues import Catalogues, catalogues
from jingdu.data.draws import Draws
from jingdu.engine.contracts import Recipe, Stage
from jingdu.errors import UsageError, unknown
from jingdu.nn import each
from jingdu.papers.generative.gan import maxout
from jingdu.papers.language.rnn import (
    Cell,
    Conditioned,
    ManyToOne,
    Recurrent,
    Symbols,
    generate,
    greedy,
    masked_nats,
    sample,
    scan,
)
from jingdu.papers.language.rnn.scan import Step
from jingdu.prediction import Prediction, origin_of

__all__ = [
    "GRUCell", "Phrases", "RNNEncoderDecoder", "Summary", "build", "log_linear", "log_probability", "phrases", "predict",
    "recurrent",
]  # fmt: skip


class GRUCell(Cell):
    """The hidden unit of Section 2.3; its state is (h,). Gates are stacked as r, z, candidate, as in torch.

    Args:
        inputs, hidden, biases: as in `Cell`.
        reset: the reset gate acts on h before the recurrent product (the paper) or on the product (torch, cuDNN).
    """

    def __init__(self, inputs: int, hidden: int, biases: int = 2, reset: Literal["before", "after"] | str = "after"):
        super().__init__(inputs, hidden, 3, biases)
        if reset not in ("before", "after"):
            raise unknown("place of the reset gate", reset, ("before", "after"))
        self.reset = reset

    @property
    def bias(self) -> Tensor | None:
        """Where the product is reset, its own bias is too, and is not part of the projected input."""
        if self.reset == "before" or self.bias_hh is None or self.bias_ih is None:
            return super().bias
        return self.bias_ih + F.pad(self.bias_hh[: 2 * self.hidden], (0, self.hidden))

    def step(self) -> Step:
        n = self.hidden
        gates, candidate = (weight.t() for weight in self.weight_hh.split([2 * n, n]))
        inner = None if self.bias_hh is None else self.bias_hh[2 * n :]

        def before(x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor]:
            (h,) = state
            x_gates, x_new = x.split([2 * n, n], 1)
            r, z = torch.addmm(x_gates, h, gates).sigmoid().chunk(2, 1)  # Eq. 5-6
            new = torch.addmm(x_new, r * h, candidate).tanh()  # Eq. 8
            return (torch.lerp(new, h, z),)  # Eq. 7

        whole = self.weight_hh.t()

        def after(x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor]:
            (h,) = state
            x_gates, x_new = x.split([2 * n, n], 1)
            h_gates, own = (h @ whole).split([2 * n, n], 1)
            r, z = (x_gates + h_gates).sigmoid().chunk(2, 1)
            new = torch.addcmul(x_new, r, own if inner is None else own + inner).tanh()
            return (torch.lerp(new, h, z),)

        return before if self.reset == "before" else after

    def kernel(self) -> tuple[Any, list[Tensor]] | None:
        return (torch._VF.gru, self.torch_weights()) if self.reset == "after" else None


def recurrent(
    inputs: int, hidden: int, layers: int = 1, direction: str = "forwards", batch_first: bool = True, dropout: float = 0.0,
    **cell: Any,
) -> Recurrent:  # fmt: skip
    """Layers of gated units; `dropout` is between them, `cell` are further arguments of `GRUCell`."""
    between = partial(nn.Dropout, dropout) if dropout else None
    return Recurrent(
        partial(GRUCell, hidden=hidden, **cell), inputs, layers, direction, between, batch_first=batch_first
    )


def many_to_one(inputs: int, hidden: int, outputs: int, **options: Any) -> ManyToOne:
    """One output after the whole sequence; `options` are those of `recurrent`."""
    return ManyToOne(recurrent(inputs, hidden, **options), outputs)


# The encoder-decoder -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Summary:
    """What the decoder remembers: its hidden state, and the source's vector c, which stays."""

    h: Float[Tensor, "batch hidden"]
    c: Float[Tensor, "batch hidden"]

    def select(self, rows: Int64[Tensor, " new_batch"]) -> "Summary":
        return Summary(self.h[rows], self.c[rows])


class RNNEncoderDecoder(nn.Module):
    r"""Section 2.2 and the appendix: $c = \tanh(V h_T)$, $h'_0 = \tanh(V' c)$; the decoder's input is
    $[e(y_{t-1}); c]$, and its output a maxout layer over $O_h h'_t + O_y e(y_{t-1}) + O_c c$ before the softmax.

    Args:
        source_vocabulary, target_vocabulary: symbols of each side.
        embedding: size of a symbol's vector, "rank 100" in the text.
        hidden: size of both networks' states.
        maxout_units: maxout units of two pieces.
        rank: of the softmax's matrix.
        reset: as in `GRUCell`.
        spread: weights start normal with this deviation, recurrent ones orthogonal (Sec. 4.1.1); None is torch's start.
    """

    def __init__(
        self,
        source_vocabulary: int,
        target_vocabulary: int,
        embedding: int = 100,
        hidden: int = 1000,
        maxout_units: int = 500,
        rank: int = 100,
        reset: str = "before",
        spread: float | None = 0.01,
    ):
        super().__init__()
        self.source_embedding = nn.Embedding(source_vocabulary, embedding)
        self.target_embedding = nn.Embedding(target_vocabulary, embedding)
        cell = partial(GRUCell, hidden=hidden, biases=1, reset=reset)
        self.encoder, self.decoder = Recurrent(cell, embedding), cell(embedding + hidden)
        self.summary, self.start = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)
        self.from_state = nn.Linear(hidden, 2 * maxout_units)
        self.from_symbol = nn.Linear(embedding, 2 * maxout_units, bias=False)
        self.from_summary = nn.Linear(hidden, 2 * maxout_units, bias=False)
        self.low_rank = nn.Linear(maxout_units, rank, bias=False)
        self.output = nn.Linear(rank, target_vocabulary)
        if spread is not None:
            self.initialise(spread)

    def initialise(self, spread: float) -> None:
        """Normal weights, orthogonal recurrent matrices, biases of zero."""
        for p in self.parameters():
            nn.init.normal_(p, std=spread) if p.ndim > 1 else nn.init.zeros_(p)
        each(self, GRUCell, lambda cell: [nn.init.orthogonal_(w) for w in cell.weight_hh.chunk(3)])

    def encode(self, source: Int64[Tensor, "batch source"], lengths: Int64[Tensor, " batch"] | None = None) -> Summary:
        """c, and the decoder's state before the first symbol."""
        _, (h,) = self.encoder(self.source_embedding(source), None, lengths)
        c = self.summary(h[-1]).tanh()
        return Summary(self.start(c).tanh(), c)

    def read(
        self, target: Int64[Tensor, "batch time"], state: Summary, lengths: Int64[Tensor, " batch"] | None = None
    ) -> tuple[Float[Tensor, "batch time hidden"], Float[Tensor, "batch time embedding"], Summary]:
        """The decoder's states after each symbol, the symbols' vectors, and the new state."""
        e = self.target_embedding(target)
        # c is the same at every step: it is projected once
        for_symbol, for_c = self.decoder.weight_ih.split([e.shape[-1], state.c.shape[-1]], 1)
        x = F.linear(e.transpose(0, 1), for_symbol, self.decoder.bias) + F.linear(state.c, for_c)
        y, (h,) = scan(self.decoder.step(), x, (state.h,), lengths)
        return y.transpose(0, 1), e, Summary(h, state.c)

    def logits(
        self, y: Float[Tensor, "*batch hidden"], e: Float[Tensor, "*batch embedding"], c: Float[Tensor, "*whole hidden"]
    ) -> Float[Tensor, "*batch vocabulary"]:
        """The output layer."""
        s = self.from_state(y) + self.from_symbol(e) + self.from_summary(c)
        return self.output(self.low_rank(maxout(s, 2)))

    def forward(
        self,
        source: Int64[Tensor, "batch source"],
        target: Int64[Tensor, "batch time"],
        lengths: Int64[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch time vocabulary"]:
        """Logits of the symbol after each of `target`; `lengths` are the source's."""
        y, e, state = self.read(target, self.encode(source, lengths))
        return self.logits(y, e, state.c[:, None])

    def step(
        self, tokens: Int64[Tensor, "batch time"], state: Summary, lengths: Int64[Tensor, " batch"] | None = None
    ) -> tuple[Float[Tensor, "batch vocabulary"], Summary]:
        """See `rnn.generation`."""
        y, e, state = self.read(tokens, state, lengths)
        if lengths is None:
            return self.logits(y[:, -1], e[:, -1], state.c), state
        rows = torch.arange(len(y), device=y.device)
        return self.logits(y[rows, lengths - 1], e[rows, lengths - 1], state.c), state

    def reading(
        self, source: Int64[Tensor, "batch source"], lengths: Int64[Tensor, " batch"] | None = None
    ) -> Conditioned:
        """The decoder after these sources, for `generate`: each prompt is how its row's target begins."""
        return Conditioned(self, self.encode(source, lengths))


# Scoring phrases ------------------------------------------------------------------------------------


def log_probability(model: nn.Module, batch: Batch) -> Float[Tensor, " batch"]:
    """log p(target | source) of each pair, in nats: the feature that the paper adds to a phrase table (Sec. 3.1).

    Args:
        model: an encoder-decoder, the paper's or `rnn.EncoderDecoder`.
        batch: of `Phrases`.
    """
    logits = model(batch["source"], batch["target"][:, :-1], batch["lengths"])
    return -masked_nats(logits, batch["target"][:, 1:], batch["mask"][:, 1:]).sum(1)


def log_linear(
    features: Float[Tensor, "*candidates features"], weights: Float[Tensor, " features"]
) -> Float[Tensor, "*candidates"]:
    """Equation 9: the log of a translation's unnormalised score, a weighted sum of its features' logarithms."""
    return features @ weights


# Pairs of phrases -----------------------------------------------------------------------------------


class Phrases:
    """Pairs of texts as numbers, padded: `source` and its `lengths`, `target` and its `mask`.

    A target begins with the symbol of its language and ends with `<end>`; a source ends with `<end>` too.
    """

    classes = None

    def __init__(self, pairs: Catalogues, symbols: Symbols):
        self.pairs, self.tokenizer = pairs, symbols

    def __len__(self) -> int:
        return len(self.pairs)

    def batch(self, indices: np.ndarray, draws: Draws) -> Batch:
        texts = self.pairs.batch(indices, draws)
        return encode_pairs(self.tokenizer, texts["source"], texts["target"], texts["target_language"])


def encode_pairs(symbols: Symbols, sources: Sequence[str], targets: Sequence[str], languages: Sequence[str]) -> Batch:
    """Texts as a batch of `Phrases`. Raises UsageError for a language that the symbols do not name."""
    if strange := [name for name in languages if f"<{name}>" not in symbols.index]:
        raise unknown("target language", strange[0], [s[1:-1] for s in symbols.symbols if s[0] == "<" and len(s) > 2])
    end = symbols.index["<end>"]
    number = lambda text: [i for i in symbols.encode(text) if symbols.symbols[i] != "<eos>"]  # noqa: E731
    source = [torch.tensor([*number(text), end]) for text in sources]
    target = [
        torch.tensor([symbols.index[f"<{name}>"], *number(text), end])
        for text, name in zip(targets, languages, strict=True)
    ]
    lengths, sizes = (torch.tensor([len(row) for row in rows]) for rows in (source, target))
    padded = pad_sequence(target, batch_first=True)
    mask: Bool[Tensor, "batch time"] = torch.arange(padded.shape[1]) < sizes[:, None]
    return {"source": pad_sequence(source, batch_first=True), "lengths": lengths, "target": padded, "mask": mask}


def phrases(
    split: Literal["train", "test"],
    languages: Sequence[str] | None = None,
    pairs: str = "from-english",
    unit: str = "characters",
    vocabulary: int | None = None,
    longest: int | None = 60,
) -> Phrases:
    """Django's messages in pairs of languages, as numbers of symbols that both sides share.

    Args:
        split, languages, pairs, longest: as in `jingdu.data.catalogues`.
        unit: characters or words.
        vocabulary: at most so many symbols of the training texts.
    """
    train = catalogues("train", languages, pairs, longest)
    used = {text[name] for text in train.texts for name in train.languages if name in text}
    learned = Symbols.learn(sorted(used), unit, vocabulary).symbols
    marks = ["<unk>", "<end>", *(f"<{name}>" for name in train.languages)]
    symbols = Symbols([*marks, *(symbol for symbol in learned if symbol not in marks)], unit)
    return Phrases(train if split == "train" else catalogues(split, languages, pairs, longest), symbols)


VARIANTS: dict[str, tuple[Any, dict[str, Any]]] = {
    # torch.nn.GRU(100, 128)
    "gru_cell_100_128": (recurrent, {"inputs": 100, "hidden": 128}),
    # Section 4.1.1
    "gru_phrases": (RNNEncoderDecoder, {"source_vocabulary": 15_000, "target_vocabulary": 15_000}),
    # Ours: characters of Django's messages; the adding problem of the LSTM paper
    "gru_catalogues": (
        RNNEncoderDecoder,
        {"source_vocabulary": 160, "target_vocabulary": 160, "embedding": 48, "hidden": 192, "maxout_units": 96, "rank": 48,
         "spread": None},
    ),
    "gru_adding": (many_to_one, {"inputs": 2, "hidden": 64, "outputs": 1}),
}  # fmt: skip


def build(variant: str, **overrides: Any) -> nn.Module:
    """The network of a variant; overrides are the arguments of its class or function in this module."""
    make, arguments = VARIANTS[variant]
    return make(**{**arguments, **overrides})


ROMANCE = ("ca", "es", "fr", "gl", "it", "pt", "pt_BR", "ro")

recipes = {
    "laptop": Recipe(
        stages=(
            Stage(
                system="rnn.Translation",
                networks={"network": "gru_catalogues"},
                data=f"gru.phrases(languages={ROMANCE}, vocabulary=140, longest=32)",
                batch_size=64,
                steps=700,
                optimizer="adam",
                lr=2e-3,
                schedule="cosine",
                clip=1.0,
            ),
        ),
        minutes=2.5,
        expect={"loss": (1.9, 2.6)},
        about="Django's messages, from English into eight Romance languages by characters",
    ),
    "paper": Recipe(
        stages=(
            Stage(
                system="rnn.Translation",
                networks={"network": "gru_phrases"},
                data="gru.phrases(languages=('fr',), unit='words', vocabulary=15000)",
                batch_size=64,
                epochs=60,
                optimizer="adadelta",
                lr=1.0,
                momentum=0.95,
                eps=1e-6,
                clip=1.0,
            ),
        ),
        minutes=30,
        expect={"loss": (1.0, 9.0)},
        machine="1 GPU",
        about="Sec. 4.1.1's network, units, start and Adadelta, on the English-French messages of Django: the paper's phrase "
        "table of WMT'14 is not shipped. The paper trained for three days",
    ),
}


def predict(
    model: nn.Module,
    inputs: Sequence[str],
    *,
    language: str = "fr",
    length: int = 100,
    temperature: float = 0.0,
    seed: int = 0,
) -> Iterator[Prediction]:
    """Translate phrases, or score pairs written `source ||| target` as phrase tables are.

    Args:
        language: of the translation.
        length: its most symbols.
        temperature: of sampling; 0 takes the most probable symbol.
        seed: of sampling.

    Raises UsageError for a network that does not translate, a language it does not know, and impossible numbers.
    """
    if not isinstance(model, RNNEncoderDecoder):
        raise UsageError(f"{origin_of(model).variant} reads vectors and not text: predict takes an encoder-decoder")
    path = origin_of(model).tokenizer
    if path is None:
        raise UsageError("nothing beside these weights says what the symbols are: give a run folder of ours")
    if length < 0 or not 0 <= temperature < math.inf:
        raise UsageError(f"length {length}, temperature {temperature}: give numbers from 0 on")
    return _answers(model, inputs, Symbols.read(path), language, length, temperature, seed)


def _answers(
    model: RNNEncoderDecoder, inputs: Sequence[str], symbols: Symbols, language: str, length: int, temperature: float,
    seed: int,
) -> Iterator[Prediction]:  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    choose = partial(sample, temperature=temperature) if temperature else greedy
    end = symbols.index.get("<end>", -1)
    for text in inputs:
        source, pair, target = (part.strip() for part in text.partition("|||"))
        batch = encode_pairs(symbols, [source], [target], [language])
        with torch.no_grad():
            if pair:
                score = float(log_probability(model, batch))
                yield Prediction(text, f"{source} ||| {target} ||| log p {score:.3f}", {"log_probability": score})
                continue
            decoder = model.reading(batch["source"])
            made = generate(decoder, [batch["target"][0, :1]], length, choose=choose, stop=(end,), generator=generator)[
                0
            ]
        made = symbols.decode([i for i in made.tolist() if i != end])
        yield Prediction(text, f"{source} -> {made}", {"translation": made})
