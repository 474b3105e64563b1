r"""Improving Language Understanding by Generative Pre-Training. Radford, Narasimhan, Salimans, Sutskever. 2018.
https://cdn.openai.com/research-covers/language-unsupervised/language_understanding_paper.pdf

**Problem.** Text is plentiful, labelled text is not. Word vectors carry over from one to the other, but what stands above
them was still built and learned anew for every task.

**Idea.** Train one Transformer decoder to predict the next token of books (Eq. 1), then go on with the same weights on
the task, which is written as one sequence of tokens with a start, a delimiter and an end (Fig. 1). Only one linear
layer is new; it reads the state at the end token (Eq. 3), and predicting the tokens stays a second aim (Eq. 5):

$$ L_3(\mathcal C) = L_2(\mathcal C) + \lambda\, L_1(\mathcal C), \qquad
   L_2 = \sum \log P(y \mid x^1 \ldots x^m), \quad L_1 = \sum_i \log P(x^i \mid x^{i-k} \ldots x^{i-1}) $$

**Showed.** Best published results on 9 of 12 tasks, among them Story Cloze (86.5 %, +8.9) and RACE (59.0 %, +5.7);
without pre-training the mean over tasks falls from 74.7 to 59.9 (Tab. 5).

Differs from the paper in:
- Positions have a table of their own. The released code keeps them in the table of the words, and its softmax runs over
  all of it in fine-tuning; here it runs over the words and the three marks.
- Of a padded batch, positions count the real tokens of a row, so padding on either side changes nothing.
- The laptop recipes learn a byte-level vocabulary from their own text; the paper's is of characters, lower-cased.
"""

import ast
import textwrap
from collections.abc import Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from jingdu.data.base import Batch, Tensors
from jingdu.data.draws import Draws, permutation
from jingdu.data.embedded import stdlib
from jingdu.engine.contracts import Recipe, Stage, System
from jingdu.engine.loop import load_system
from jingdu.engine.training import open_source
from jingdu.errors import Missing, UsageError
from jingdu.metrics.classification import Accuracy
from jingdu.nn import each
from jingdu.papers.language.bpe import read_tokenizer
from jingdu.papers.language.rnn import Choose, generate, greedy, sample, steps
from jingdu.papers.language.transformer import Cache, attention
from jingdu.prediction import Prediction, origin_of

__all__ = [
    "GPT", "MLP", "Block", "CausalSelfAttention", "FineTuning", "build", "complete", "example", "label", "multiple_choice", "pair", "predict",
    "similarity", "single", "snippets", "take_up", "tokenizer_of",
]  # fmt: skip


# The decoder (Sec. 3.1, 4.1) --------------------------------------------------------------------------


class CausalSelfAttention(nn.Module):
    """Multi-head attention of a sequence to its own past, with one projection for queries, keys and values."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        if width % heads:
            raise UsageError(f"width {width} does not divide into {heads} heads")
        self.heads, self.dropout = heads, dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)

    def forward(
        self,
        x: Float[Tensor, "batch time width"],
        mask: Bool[Tensor, "batch 1 1 time"] | None = None,
        state: Cache | None = None,
        layer: int = 0,
    ) -> Float[Tensor, "batch time width"]:
        q, k, v = rearrange(self.qkv(x), "b t (three h d) -> three b h t d", three=3, h=self.heads)
        if state is not None:
            k, v, mask = state.append(layer, k, v)
        dropout = self.dropout if self.training else 0.0
        # The mask of a state holds the past already.
        y = attention(q, k, v, mask=mask, causal=state is None or mask is None, dropout=dropout)
        return self.project(rearrange(y, "b h t d -> b t (h d)"))


class MLP(nn.Module):
    """The position-wise network, four times as wide inside, with the tanh form of GELU (Hendrycks & Gimpel 2016)."""

    def __init__(self, width: int):
        super().__init__()
        self.expand, self.project = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Float[Tensor, "batch time width"]) -> Float[Tensor, "batch time width"]:
        return self.project(F.gelu(self.expand(x), approximate="tanh"))


class Block(nn.Module):
    """Equation 2's transformer_block: each sublayer's output is added to its input, and the sum is normalised."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.attention, self.norm1 = CausalSelfAttention(width, heads, dropout), nn.LayerNorm(width)
        self.mlp, self.norm2 = MLP(width), nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Float[Tensor, "batch time width"],
        mask: Bool[Tensor, "batch 1 1 time"] | None = None,
        state: Cache | None = None,
        layer: int = 0,
    ) -> Float[Tensor, "batch time width"]:
        x = self.norm1(x + self.dropout(self.attention(x, mask, state, layer)))
        return self.norm2(x + self.dropout(self.mlp(x)))


class GPT(nn.Module):
    """Equation 2: embeddings of tokens and positions, blocks, and the tokens' own embeddings as the output layer.

    Args:
        vocabulary: tokens; rows of the table of embeddings.
        width: of the state at each position.
        layers: blocks.
        heads: of each attention.
        context: positions.
        dropout: on embeddings, attention weights and residuals (Sec. 4.1).
        marks: further rows of the table, for the start, delimiter and end tokens of fine-tuning (Sec. 3.3).
        classes: outputs of the task's linear layer (Eq. 3); None for a language model alone.
    """

    block: type[nn.Module] = Block

    def __init__(
        self,
        vocabulary: int = 40478,
        width: int = 768,
        layers: int = 12,
        heads: int = 12,
        context: int = 512,
        dropout: float = 0.1,
        marks: int = 0,
        classes: int | None = None,
    ):
        super().__init__()
        self.vocabulary, self.heads, self.context, self.marks = vocabulary, heads, context, marks
        self.words = nn.Embedding(vocabulary + marks, width)
        self.places = nn.Embedding(context, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(self.block(width, heads, dropout) for _ in range(layers))
        self.norm: nn.Module = nn.Identity()
        self.head = nn.Linear(width, classes) if classes is not None else None
        self.initialise()

    def initialise(self) -> None:
        """Section 4.1: N(0, 0.02); biases start at zero."""
        each(self, (nn.Linear, nn.Embedding), lambda m: nn.init.normal_(m.weight, std=0.02))
        each(self, nn.Linear, lambda m: nn.init.zeros_(m.bias))

    def hidden(
        self,
        tokens: Int64[Tensor, "batch time"],
        mask: Bool[Tensor, "batch time"] | None = None,
        positions: Int64[Tensor, "_ time"] | None = None,
        state: Cache | None = None,
    ) -> Float[Tensor, "batch time width"]:
        """The state of the last block at every position. Arguments are those of `forward`, or the state of a `step`."""
        time = tokens.shape[1]
        if positions is None:
            positions = (
                torch.arange(time, device=tokens.device)[None]
                if mask is None
                else (mask.long().cumsum(1) - 1).clamp(min=0)
            )
        if time > self.context:
            raise UsageError(f"{time} tokens: this network has positions for {self.context}")
        x = self.dropout(self.words(tokens) + self.places(positions))
        seen = None if mask is None else mask[:, None, None]
        for layer, block in enumerate(self.blocks):
            x = block(x, seen, state, layer)
        return self.norm(x)

    def logits(self, hidden: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch vocabulary"]:
        """The output layer of the language model: the table of embeddings once more (Eq. 2)."""
        return F.linear(hidden, self.words.weight)

    def forward(
        self,
        tokens: Int64[Tensor, "batch time"],
        mask: Bool[Tensor, "batch time"] | None = None,
        positions: Int64[Tensor, "_ time"] | None = None,
        states: bool = False,
    ) -> Float[Tensor, "batch time vocabulary_or_width"]:
        """Logits of the next token at every position.

        Args:
            tokens: their numbers.
            mask: False is padding, on either side: no token sees it.
            positions: from 0; by default a token's place among the real ones of its row.
            states: give what the logits are read from instead.

        Raises UsageError for more tokens than positions.
        """
        hidden = self.hidden(tokens, mask, positions)
        return hidden if states else self.logits(hidden)

    # Generation: the contract of rnn

    def init_state(self, batch: int, capacity: int) -> Cache:
        """Room for the keys and values of `capacity` tokens. Raises UsageError for more than there are positions."""
        if capacity > self.context:
            raise UsageError(
                f"prompt and continuation are {capacity + 1} tokens: this network has positions for {self.context}"
            )
        width = self.words.weight.shape[1] // self.heads
        return Cache.empty(len(self.blocks), batch, self.heads, capacity, width, self.words.weight)

    def step(
        self, tokens: Int64[Tensor, "batch time"], state: Cache, lengths: Int64[Tensor, " batch"] | None = None
    ) -> tuple[Float[Tensor, "batch vocabulary"], Cache]:
        """Read `tokens` behind those of `state`; the logits after each row's last real one."""
        time = tokens.shape[1]
        # What stands behind a row's real tokens may lie beyond the last position; nothing reads it.
        positions = state.positions(time).clamp(max=self.context - 1)
        x = self.hidden(tokens, None, positions, state)
        last = x[:, -1] if lengths is None else x[torch.arange(len(x), device=x.device), lengths - 1]
        return self.logits(last), state.advance(time, lengths)


VARIANTS: dict[str, dict[str, Any]] = {
    # Section 4.1
    "gpt1": {},
}


def build(variant: str, **overrides: Any) -> GPT:
    """The network of a variant; overrides are the arguments of `GPT`."""
    return GPT(**{**VARIANTS[variant], **overrides})


def example(variant: str, batch: int) -> Int64[Tensor, "batch time"]:
    """Tokens as a bench feeds them: 128 of each row."""
    return torch.randint(40478, (batch, 128), generator=torch.Generator().manual_seed(0))


# Tasks as sequences (Sec. 3.3, Fig. 1) ----------------------------------------------------------------


def single(text: Sequence[int], vocabulary: int) -> list[list[int]]:
    """Classification: one sequence, start text end. The marks follow the words: start, delimiter, end."""
    return [[vocabulary, *text, vocabulary + 2]]


def pair(first: Sequence[int], second: Sequence[int], vocabulary: int) -> list[list[int]]:
    """Entailment: one sequence, start premise delimiter hypothesis end."""
    return [[vocabulary, *first, vocabulary + 1, *second, vocabulary + 2]]


def similarity(first: Sequence[int], second: Sequence[int], vocabulary: int) -> list[list[int]]:
    """Similarity has no order: both of them, whose final states are added."""
    return pair(first, second, vocabulary) + pair(second, first, vocabulary)


def multiple_choice(context: Sequence[int], answers: Sequence[Sequence[int]], vocabulary: int) -> list[list[int]]:
    """Question answering: one sequence for each answer, whose scores meet in a softmax."""
    return [sequence for answer in answers for sequence in pair(context, answer, vocabulary)]


class FineTuning(System):
    """Section 3.2: a task's loss, and predicting its tokens as a second one.

    A batch has `tokens` int64 [batch, sequences, time], `mask` of the same shape (False behind the end token), and
    `label` [batch]. The network has a `head`: of one output where the sequences are choices, else of one a class.

    Args:
        network: a GPT with three marks and a head.
        auxiliary: lambda of Equation 5; the paper's is 0.5.
        choices: the sequences are answers to choose from; else their states are added.
        frozen: train the task's linear layer alone, on the states of a network that stays as it is.
        start: the name of an earlier stage, or the folder of a run, whose network is gone on with; None begins from
            nothing.
        previous: the finished stages, by name.
    """

    def __init__(
        self, network: GPT, auxiliary: float = 0.5, choices: bool = False, frozen: bool = False,
        start: str | None = None, previous: dict[str, Any] | None = None,
    ):  # fmt: skip
        super().__init__()
        if network.head is None or network.marks < 3:
            raise UsageError("fine-tuning needs a network with marks=3 and classes, such as gpt1(marks=3, classes=8)")
        self.network, self.auxiliary, self.choices = network, auxiliary, choices
        self.accuracy = Accuracy()
        if start is not None:
            stages = previous or {}
            if start not in stages and not Path(start).is_dir():
                raise UsageError(f"no earlier stage {start!r}, and no run folder: there are {sorted(stages)}")
            take_up(network, (stages[start] if start in stages else load_system(Path(start))).network)
        if frozen:
            network.requires_grad_(False)
            network.head.requires_grad_(True)

    def _read(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits of the task [batch, classes], and the states that they were read from [batch * sequences, time, width]."""
        tokens, mask = (batch[name].flatten(0, 1) for name in ("tokens", "mask"))
        hidden = self.network(tokens, mask, states=True)
        end = mask.long().sum(1) - 1
        states = hidden[torch.arange(len(hidden), device=hidden.device), end].unflatten(0, batch["tokens"].shape[:2])
        states = self.network.dropout(states)
        head = self.network.head
        return (head(states)[..., 0] if self.choices else head(states.sum(1))), hidden

    def forward(self, batch: Batch, objective: str) -> tuple[Tensor, dict[str, Any]]:
        scores, hidden = self._read(batch)
        task = F.cross_entropy(scores.float(), batch["label"])
        values = {"task": task.detach(), "error": (scores.detach().argmax(1) != batch["label"]).float().mean()}
        if not self.auxiliary:
            return task, values
        tokens, mask = (batch[name].flatten(0, 1) for name in ("tokens", "mask"))
        targets = tokens[:, 1:].masked_fill(~mask[:, 1:], -100)
        language = F.cross_entropy(self.network.logits(hidden[:, :-1]).float().flatten(0, 1), targets.flatten())
        return task + self.auxiliary * language, {**values, "language": language.detach()}

    def update(self, batch: Batch) -> None:
        self.accuracy.update(self._read(batch)[0].float(), batch["label"])

    def compute(self) -> dict[str, float]:
        return self.accuracy.compute()


@torch.no_grad()
def take_up(network: nn.Module, trained: nn.Module) -> None:
    """Copy a pre-trained network's weights; what is new (marks, head) keeps its initial values."""
    new = dict(network.named_parameters())
    for name, old in trained.named_parameters():
        new[name][: len(old)] = old


# Labelled text for the laptop -------------------------------------------------------------------------

SHARE = 0.3
"""Of the library's modules that are held out, from the task and from what is read before it."""
PACKAGES = ("asyncio", "concurrent", "email", "idlelib", "importlib", "multiprocessing", "urllib", "xml")
"""Packages of the standard library, whose functions are told apart."""


def snippets(
    split: Literal["train", "test"],
    tokenizer: str,
    length: int = 96,
    labelled: int = 200,
    tested: int = 240,
    fold: int = 0,
) -> Tensors:
    """Functions of the standard library, and which of eight packages each is from: `tokens`, `mask`, `label`.

    The test split has functions of modules that `stdlib(share=0.3)` holds out, so that a network which has read its train
    split has not read them.

    Args:
        split: `labelled` functions of the other modules, or `tested` ones of those; as many of each package.
        tokenizer: the data whose tokenizer is used: "bpe.tokens(of='stdlib(share=0.3)', vocabulary=2048)".
        length: tokens that a function is cut to.
        labelled: how many functions there are to learn from.
        tested: how many there are to be tested on, the same for every fold.
        fold: which ones there are to learn from.

    Raises Missing where Python is installed without one of the packages.
    """
    words = open_source(tokenizer, "train", Stage()).tokenizer
    functions = _by_package(split)
    each_class = (labelled if split == "train" else tested) // len(PACKAGES)
    for name, texts in zip(PACKAGES, functions, strict=True):
        if len(texts) < each_class:
            raise Missing(f"this Python has {len(texts)} functions of {name} for the {split} split, not {each_class}")
    order = [permutation(fold if split == "train" else 0, label, len(f)) for label, f in enumerate(functions)]
    chosen = [(texts[i], label) for label, texts in enumerate(functions) for i in order[label][:each_class]]
    sequences = [single(words.encode(text, disallowed=())[: length - 2], words.n_vocab)[0] for text, _ in chosen]
    tokens = torch.zeros(len(chosen), 1, length, dtype=torch.int64)
    mask = torch.zeros_like(tokens, dtype=torch.bool)
    for row, sequence in enumerate(sequences):
        tokens[row, 0, : len(sequence)], mask[row, 0, : len(sequence)] = torch.tensor(sequence), True
    data = Tensors({"tokens": tokens, "mask": mask, "label": torch.tensor([label for _, label in chosen])}, PACKAGES)
    data.tokenizer = words
    return data


@cache
def _by_package(split: Literal["train", "test"]) -> list[list[str]]:
    """All functions of each of the packages."""
    documents = stdlib(split, share=SHARE)
    rows = [i for i, name in enumerate(documents.names) if name.partition("/")[0] in PACKAGES]
    found = documents.batch(np.array(rows), Draws(0, 0, rows))
    functions: list[list[str]] = [[] for _ in PACKAGES]
    for name, text in zip(found["name"], found["text"], strict=True):
        functions[PACKAGES.index(name.partition("/")[0])] += _functions(text)
    return functions


def _functions(source: str) -> Iterator[str]:
    """The statements of a module's functions, without their names and documentation, from three lines on."""
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node, clean=False) is not None else node.body
            if body and body[-1].end_lineno - body[0].lineno >= 2:
                yield textwrap.dedent("\n".join(lines[body[0].lineno - 1 : body[-1].end_lineno]))


_TOKENS = f"bpe.tokens(of='stdlib(share={SHARE})', vocabulary=2048, length=128)"
_SMALL = "vocabulary=2048, width=96, layers=3, heads=4, context=128, dropout=0.0"

recipes = {
    "laptop": Recipe(
        stages=(
            Stage(
                name="pre-training",
                system="language_modelling",
                networks={"network": f"gpt1({_SMALL})"},
                data=_TOKENS,
                batch_size=16,
                steps=800,
                optimizer="adamw",
                lr=2e-3,
                weight_decay=0.01,
                schedule="cosine(warmup=80)",
                clip=1.0,
            ),
            Stage(
                name="fine-tuning",
                system="gpt.FineTuning(start='pre-training')",
                networks={"network": f"gpt1({_SMALL}, marks=3, classes=8)"},
                data=f'gpt.snippets(tokenizer="{_TOKENS}", length=96)',
                batch_size=16,
                steps=150,
                optimizer="adamw",
                lr=5e-4,
                weight_decay=0.01,
                schedule="cosine(warmup=15)",
                clip=1.0,
            ),
        ),
        minutes=4,
        expect={"error": (0.1, 0.5)},
        about="a small GPT reads the standard library, then learns from 200 functions which of 8 packages one is from",
    ),
    "paper": Recipe(
        stages=(
            Stage(
                name="pre-training",
                system="language_modelling",
                networks={"network": "gpt1"},
                data="bpe.tokens(of='hf:bookcorpus/bookcorpus', vocabulary=40000, family='gpt', length=512)",
                batch_size=64,
                epochs=100,
                optimizer="adamw",
                lr=2.5e-4,
                weight_decay=0.01,
                schedule="cosine(warmup=2000)",
                clip=1.0,
                save_every=5000,
            ),
        ),
        minutes=30 * 24 * 60,
        expect={"perplexity": (17.0, 20.0)},
        machine="8 GPUs",
        about="Section 4.1: 100 epochs over BooksCorpus (--data), sequences of 512 tokens, 64 at a time; 18.4 held out",
    ),
}


# What a user does with it -----------------------------------------------------------------------------


def tokenizer_of(model: nn.Module, path: Path | None) -> Any:
    """The tokenizer at `path`, or the one that lies beside the network's weights. Raises UsageError where there is none."""
    place = path or origin_of(model).tokenizer
    if place is None:
        raise UsageError(
            "these weights have no tokenizer beside them: give --tokenizer FILE (tokenizer.json, a folder with vocab.json "
            "and merges.txt, or a .tiktoken file)"
        )
    tokenizer = read_tokenizer(place)
    if tokenizer.n_vocab > model.words.weight.shape[0]:
        raise UsageError(
            f"{place}: its {tokenizer.n_vocab} tokens are more than the {model.words.weight.shape[0]} of this network"
        )
    return tokenizer


def complete(
    model: GPT,
    inputs: Sequence[str],
    *,
    tokenizer: Path | None,
    length: int,
    choose: Choose,
    seed: int,
    stream: bool,
) -> Iterator[Prediction]:
    """Continuations of texts: all at once, or where `stream` is asked one after the other, in pieces as they come.

    A text may be empty where the vocabulary has a token that ends documents, which then starts one. It ends the
    continuation too. Raises UsageError for what does not fit into the network's positions.
    """
    words = tokenizer_of(model, tokenizer)
    stop = () if words.end is None else (words.end,)
    prompts = [torch.tensor(words.encode(text) or list(stop), dtype=torch.int64) for text in inputs]
    if empty := [text for text, prompt in zip(inputs, prompts, strict=True) if not len(prompt)]:
        raise UsageError(f"the prompt {empty[0]!r} has no tokens: give a letter or more")
    if length < 1 or max(map(len, prompts), default=0) + length > model.context:
        raise UsageError(
            f"length {length}, and a prompt of {max(map(len, prompts), default=0)} tokens: this network has positions for "
            f"{model.context}, and at least one token is made"
        )
    model.eval()
    draws = torch.Generator().manual_seed(seed)
    options = {"choose": choose, "stop": stop, "generator": draws}
    if stream:
        for text, prompt in zip(inputs, prompts, strict=True):
            yield Prediction(text, text, {}, more=True)
            made: list[int] = []
            for chosen, _ in steps(model, [prompt], length, **options):
                before = words.decode(made)
                made.append(int(chosen[0]))
                now = words.decode(made[:-1] if made[-1] in stop else made)
                # Bytes of a character that is not whole yet come with its last one.
                if not now.endswith("\ufffd"):
                    yield Prediction(text, now.removeprefix(before.rstrip("\ufffd")), {}, more=True)
            yield _completed(text, "", prompt, made, words, stop)
        return
    for text, prompt, row in zip(inputs, prompts, generate(model, prompts, length, **options), strict=True):
        made = row.tolist()
        yield _completed(text, text + words.decode(made[:-1] if made[-1] in stop else made), prompt, made, words, stop)


def _completed(text: str, shown: str, prompt: Tensor, made: list[int], words: Any, stop: tuple[int, ...]) -> Prediction:
    ended = bool(made) and made[-1] in stop
    data = {
        "prompt": text,
        "text": words.decode(made[:-1] if ended else made),
        "tokens": made,
        "prompt_tokens": len(prompt),
    }
    return Prediction(text, shown, {**data, "ended": ended})


@torch.no_grad()
def label(model: GPT, inputs: Sequence[str], tokenizer: Path | None, top: int = 5) -> Iterator[Prediction]:
    """The most probable classes of texts, by a network that was fine-tuned; a tab divides the two texts of a pair."""
    words, names = tokenizer_of(model, tokenizer), origin_of(model).classes
    count = model.vocabulary
    for text in inputs:
        first, tab, second = text.partition("\t")
        sequence = pair(words.encode(first), words.encode(second), count) if tab else single(words.encode(first), count)
        tokens = torch.tensor(sequence)
        if tokens.shape[1] > model.context:
            raise UsageError(f"{tokens.shape[1]} tokens with the marks: this network has positions for {model.context}")
        found = model.eval().head(model.hidden(tokens)[:, -1]).softmax(1)[0].topk(min(top, model.head.out_features))
        best = [
            {"class": names[i] if names else f"class {i}", "index": i, "probability": p}
            for p, i in zip(found.values.tolist(), found.indices.tolist(), strict=True)
        ]
        shown = [f"  {entry['probability']:.4f}  {entry['class']}" for entry in best]
        yield Prediction(text, "\n".join([text, *shown]), {"text": text, "top": best})


def predict(
    model: GPT,
    inputs: Sequence[str],
    *,
    length: int = 64,
    temperature: float = 0.8,
    seed: int = 0,
    tokenizer: Path | None = None,
    stream: bool = False,
) -> Iterator[Prediction]:
    """Continuations of texts, or where the network was fine-tuned their classes.

    Args:
        length: the most new tokens.
        temperature: of sampling; 0 takes the most probable token.
        seed: of sampling.
        tokenizer: a file or folder, where none lies beside the weights.
        stream: print the text while it comes.
    """
    if model.head is not None:
        yield from label(model, inputs, tokenizer)
        return
    if temperature < 0:
        raise UsageError(f"temperature is {temperature}: it must be 0 (the most probable token) or more")
    choose = greedy if temperature == 0 else partial(sample, temperature=temperature)
    yield from complete(model, inputs, tokenizer=tokenizer, length=length, choose=choose, seed=seed, stream=stream)
