"""The n-gram model: probabilities, scores and continuations of text; and the pass over text that makes it."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from jingdu.engine.contracts import Batch
from jingdu.errors import Refused, UsageError, unknown

from .arpa import read_arpa, write_arpa
from .counting import Counts, count_ngrams, find, histories_of, look_up
from .smoothing import Buckets, Smoothing, Table, estimate, held_out_discounts, held_out_weights
from .text import END, UNKNOWN, Case, Tokens, close_vocabulary, encode, growing_index, sentences


@dataclass(frozen=True)
class Scores:
    """A text's tokens with their log10 probabilities (with stupid back-off, of its scores)."""

    tokens: tuple[str, ...]
    log10: Float64[np.ndarray, " tokens"]
    known: Bool[np.ndarray, " tokens"]
    """False where a token was scored as `<unk>`."""

    @property
    def total(self) -> float:
        return float(self.log10.sum())

    @property
    def perplexity(self) -> float:
        """Per token, each sentence's `</s>` included and `<s>` not; nan where there is no token."""
        return _perplexity(self.total, len(self.tokens))


def _perplexity(log10: float, tokens: int) -> float:
    return math.nan if not tokens else math.inf if log10 == -math.inf else 10 ** (-log10 / tokens)


class NGram:
    """A word's probability given the `order` - 1 words before it.

    Args:
        order: n: 1 for unigrams, 2 for bigrams, 3 for trigrams, ...
        smoothing: the estimator. `stupid-back-off` gives scores that do not sum to 1.
        min_count: words that occur less often are `<unk>`; the vocabulary is closed.
        tokens: how text becomes words and sentences: prose, code, spaces or characters (see `sentences`).
        case: take letters as they are (kept), as small ones (lower) or as capitals (upper).
        added: additive smoothing's count.
        discount: one fixed D, or discounts from held-out data, for absolute discounting and Kneser-Ney;
            by default they are estimated from counts of counts.
        buckets: which histories share a Jelinek-Mercer weight: of like average count, of like count, or all ("one").
    """

    def __init__(
        self,
        order: int = 3,
        smoothing: Smoothing | str = "modified-kneser-ney",
        min_count: int = 2,
        tokens: Tokens | str = "prose",
        case: Case | str = "kept",
        added: float = 1.0,
        discount: float | Literal["held-out"] | None = None,
        buckets: Buckets | str = "average",
    ):
        for name, value, known in (("smoothing", smoothing, Smoothing), ("tokens", tokens, Tokens),
                                   ("case", case, Case), ("buckets", buckets, Buckets)):  # fmt: skip
            if value not in get_args(known):
                raise unknown(name, value, get_args(known))
        if order < 1 or min_count < 1:
            raise UsageError(f"order {order}, min_count {min_count}: give 1 or more")
        if discount == "held-out" and smoothing not in ("absolute-discounting", "kneser-ney", "modified-kneser-ney"):
            raise UsageError(f"discounts of {smoothing} cannot be tuned: choose interpolated (modified) Kneser-Ney")
        if not 0 < added < math.inf or (isinstance(discount, int | float) and not 0 < discount < 1):
            raise UsageError(f"added {added}, discount {discount}: added is positive, a discount between 0 and 1")
        self.order, self.smoothing, self.min_count, self.tokens, self.case = order, smoothing, min_count, tokens, case
        self.added, self.discount, self.buckets = added, discount, buckets
        self.words, self.index = [UNKNOWN, END], {UNKNOWN: 0, END: 1}
        self.tables: list[Table] = []

    @property
    def normalised(self) -> bool:
        """Whether the numbers are probabilities: they are not with stupid back-off."""
        return self.smoothing != "stupid-back-off"

    @property
    def sizes(self) -> tuple[int, ...]:
        """The number of stored n-grams of each order."""
        return tuple(len(table.keys) for table in self.tables)

    # Estimation ------------------------------------------------------------------------------------

    def fit(self, text: Iterable[Sequence[str]], held_out: Iterable[Sequence[str]] | None = None) -> "NGram":
        """Count and smooth sentences of words. `held_out` ones are for weights or discounts alone."""
        index = growing_index()
        numbers = encode(text, index)
        words, numbers = close_vocabulary(list(index), numbers, self.min_count)
        closed = {word: i for i, word in enumerate(words)}
        return self.fit_tokens(words, numbers, None if held_out is None else encode(held_out, closed))

    def fit_tokens(
        self, words: Sequence[str], tokens: Int64[np.ndarray, " tokens"],
        held_out: Int64[np.ndarray, " others"] | None = None, levels: Sequence[Counts] | None = None,
    ) -> "NGram":  # fmt: skip
        """The same for a vocabulary and numbers from `encode`; `levels` are the tokens' counts, if at hand.

        Raises UsageError where there is nothing to count.
        """
        if not len(tokens):
            raise UsageError("there is no text to count: give at least one sentence")
        if self.smoothing == "arpa":
            raise UsageError("smoothing 'arpa' is for tables that were read from a file: choose an estimator")
        size = len(words) + 1
        levels = count_ngrams(tokens, self.order, size) if levels is None else levels
        options: dict[str, Any] = {"added": self.added, "buckets": self.buckets}
        if self.smoothing == "jelinek-mercer" or self.discount == "held-out":
            others = levels
            if held_out is None:
                tenth = (np.cumsum(tokens == 1) - (tokens == 1)) % 10 == 9
                held_out, others = tokens[tenth], count_ngrams(tokens[~tenth], self.order, size)
            if self.smoothing == "jelinek-mercer":
                options["weights"] = held_out_weights(others, held_out, self.buckets)
            else:
                options["discounts"] = held_out_discounts(others, held_out, self.smoothing)
        elif self.discount is not None:
            options["discounts"] = [np.array([self.discount])] * self.order
        self.words, self.index = list(words), {word: i for i, word in enumerate(words)}
        self.tables = estimate(levels, self.smoothing, **options)
        return self

    # Probabilities ---------------------------------------------------------------------------------

    def probability(
        self, histories: Int64[np.ndarray, "batch context"], words: Int64[np.ndarray, " batch"]
    ) -> Float64[np.ndarray, " batch"]:
        """p(word | history), by word numbers; `<s>` is len(self.words), and pads a sentence's start.

        A history that was never seen says nothing: p(w|h) = p(w|h'). So does one shorter than order - 1.
        """
        uniform = self._uniform()
        p = np.full(len(words), uniform)
        for table, (history, row) in zip(self.tables, look_up(self.tables, histories, words), strict=False):
            lower = uniform if self.smoothing == "additive" else p
            p = np.where(history >= 0, table.backoff[history], self._unseen) * lower
            p = np.where(row >= 0, table.probability[row], p)
        return p

    def distribution(self, history: Int64[np.ndarray, " context"]) -> Float64[np.ndarray, " vocabulary"]:
        """p(. | history) by word numbers, `<unk>` and `</s>` included."""
        p, row = np.full(len(self.words), self._uniform()), 0
        for k, table in enumerate(self.tables[: len(history) + 1]):
            if k:
                row = int(find(table.histories, np.array([row * table.size + history[-k]]))[0])
            if self.smoothing == "additive":
                p[:] = self._uniform()
            p *= table.backoff[row] if row >= 0 else self._unseen
            low, high = np.searchsorted(table.keys, [row * table.size, (row + 1) * table.size])
            p[table.keys[low:high] % table.size] = table.probability[low:high]
        return p

    @property
    def _unseen(self) -> float:
        return 1.0 if self.normalised else 0.4

    def _uniform(self) -> float:
        if not self.tables:
            raise UsageError("this n-gram model has counted nothing: fit it, or load a run or an ARPA file")
        return 1 / len(self.words)

    def score(self, text: str) -> Scores:
        """The log10 probability of each token of a text, each sentence's `</s>` included."""
        found = sentences(text, self.tokens, self.case)
        numbers = encode(found, self.index)
        p = self.probability(histories_of(numbers, self.order, len(self.words)), numbers)
        with np.errstate(divide="ignore"):
            log10 = np.log10(p)
        return Scores(tuple(chain.from_iterable((*words, END) for words in found)), log10, numbers != 0)

    def evaluate(self, texts: Iterable[str]) -> dict[str, float]:
        """Measures over all texts: see `Counting.compute`."""
        counting = Counting(self)
        counting.update({"text": list(texts)})
        return counting.compute()

    def perplexity(self, texts: Iterable[str]) -> float:
        """Per token of all texts, `</s>` included and `<s>` not. Raises UsageError for scores that are none."""
        if not self.normalised:
            raise UsageError("stupid-back-off gives scores and not probabilities: they have no perplexity")
        return self.evaluate(texts)["perplexity"]

    # Generation ------------------------------------------------------------------------------------

    def history(self, prefix: str) -> Int64[np.ndarray, " context"]:
        """The last order - 1 words of a text whose last sentence goes on; `<s>` before its first word."""
        last = (sentences(prefix, self.tokens, self.case) or [[]])[-1]
        padded = [len(self.words)] * (self.order - 1) + [self.index.get(word, 0) for word in last]
        return np.array(padded[len(padded) - self.order + 1 :], dtype=np.int64)

    def continuations(self, prefix: str, top: int = 10) -> list[tuple[str, float]]:
        """The `top` most probable next words with their probabilities."""
        p = self.distribution(self.history(prefix))
        return [(self.words[i], float(p[i])) for i in np.argsort(-p, kind="stable")[:top]]

    def _speakable(self, history: Sequence[int]) -> Float64[np.ndarray, " vocabulary"]:
        """ln p(. | history) without `<unk>`, which cannot be said; `</s>` where nothing can."""
        p = self.distribution(np.array(history[len(history) - self.order + 1 :], dtype=np.int64))
        p[0] = 0.0
        p[1] = p[1] if p.any() else 1.0
        with np.errstate(divide="ignore"):
            return np.log(p)

    def sample(self, prefix: str, tokens: int, generator: torch.Generator, temperature: float = 1.0) -> list[str]:
        """Draw up to `tokens` words, one by one, until `</s>`. Low temperatures favour probable words."""
        words = self.history(prefix).tolist()
        start = len(words)
        while len(words) < start + tokens:
            log_p = self._speakable(words)
            p = torch.from_numpy(np.exp((log_p - log_p.max()) / temperature))
            word = int(torch.multinomial(p, 1, generator=generator))
            if word == 1:
                break
            words.append(word)
        return [self.words[word] for word in words[start:]]

    def beam_search(self, prefix: str, tokens: int, beams: int = 5) -> list[tuple[list[str], float]]:
        """The `beams` best continuations found, with their log10 probabilities, best first.

        Each has `tokens` words or ends at `</s>`, which counts and is not shown.
        """
        start = tuple(self.history(prefix).tolist())
        alive: list[tuple[float, tuple[int, ...]]] = [(0.0, start)]
        done: list[tuple[float, tuple[int, ...]]] = []
        for _ in range(tokens):
            longer = []
            for total, words in alive:
                log_p = self._speakable(words)
                best = np.argsort(-log_p, kind="stable")[:beams]
                longer += [(total + float(log_p[w]), (*words, int(w))) for w in best if log_p[w] > -math.inf]
            longer = sorted(longer, key=_by_total)[:beams]
            done = sorted(done + [h for h in longer if h[1][-1] == 1], key=_by_total)[:beams]
            alive = [h for h in longer if h[1][-1] != 1]
            # A longer sentence is never more probable, so what is better already stays better.
            if not alive or (len(done) == beams and done[-1][0] >= alive[0][0]):
                break
        found = [(total / math.log(10), words[len(start) :]) for total, words in sorted(done + alive, key=_by_total)]
        return [([self.words[word] for word in words if word != 1], total) for total, words in found[:beams]]

    # Files and state -------------------------------------------------------------------------------

    def write_arpa(self, path: str | Path) -> Path:
        """Write an ARPA file. Raises UsageError for additive smoothing and stupid back-off.

        What those give to unseen words is no multiple of their lower order's probability.
        """
        if self.smoothing in ("additive", "stupid-back-off"):
            raise UsageError(
                f"an ARPA file cannot hold {self.smoothing}: choose a model that backs off or interpolates"
            )
        self._uniform()
        return write_arpa(path, self.words, self.tables)

    def read_file(self, path: str | Path) -> "NGram":
        """Become the model of an ARPA file: what `--weights FILE` does. Raises BadInput, with the line.

        The file does not say how text becomes words: `tokens` stay this model's. Where all words are small
        letters, or all are capitals, text is taken so.
        """
        self.words, self.tables = read_arpa(path)
        self.index = {word: i for i, word in enumerate(self.words)}
        self.order, self.smoothing = len(self.tables), "arpa"
        letters = "".join(self.words[2:])
        if self.case == "kept" and letters.lower() != letters.upper():
            self.case = "lower" if letters == letters.lower() else "upper" if letters == letters.upper() else "kept"
        return self

    def state_dict(self) -> dict[str, Any]:
        """Options, vocabulary and tables: tensors and plain values."""
        options = ("order", "smoothing", "min_count", "tokens", "case", "added", "discount", "buckets")
        tables = [
            {name: torch.from_numpy(array) for name, array in asdict(table).items() if name != "size"}
            for table in self.tables
        ]
        return {"options": {name: getattr(self, name) for name in options}, "words": list(self.words), "tables": tables}

    def load_state_dict(self, state: Mapping[str, Any]) -> "NGram":
        """Take over a `state_dict`, options too. Raises Refused where it is none."""
        try:
            self.__dict__.update(vars(NGram(**state["options"])))
            self.words = list(state["words"])
            self.index = {word: i for i, word in enumerate(self.words)}
            self.tables = [
                Table(len(self.words) + 1, **{name: tensor.numpy() for name, tensor in table.items()})
                for table in state["tables"]
            ]
        except (KeyError, TypeError, AttributeError) as error:
            raise Refused(f"no state of an n-gram model ({type(error).__name__}: {error})") from None
        return self


def _by_total(hypothesis: tuple[float, tuple[int, ...]]) -> float:
    return -hypothesis[0]


class Counting:
    """One pass of counting (a `Fitted`): the training texts become numbers, and at the end n-gram tables."""

    passes = 1

    def __init__(self, model: NGram):
        self.model = model
        self.index = growing_index()
        self.chunks: list[Tensor] = []
        self._reset()

    def observe(self, batch: Batch, number: int) -> dict[str, Any]:
        """Take the documents of batch["text"] in."""
        found = chain.from_iterable(sentences(text, self.model.tokens, self.model.case) for text in batch["text"])
        self.chunks.append(torch.from_numpy(encode(found, self.index)).int())
        return {"tokens": sum(map(len, self.chunks)), "types": len(self.index)}

    def end_pass(self, number: int) -> None:
        """Close the vocabulary, count and smooth; the texts are no longer needed."""
        tokens = torch.cat([*self.chunks, torch.zeros(0, dtype=torch.int32)]).long().numpy()
        self.model.fit_tokens(*close_vocabulary(list(self.index), tokens, self.model.min_count))
        self.chunks, self.index = [], growing_index()

    def _reset(self) -> None:
        self.log10 = 0.0
        self.tokens = self.words = self.unknown = self.characters = 0

    def update(self, batch: Batch) -> None:
        """Score the documents of batch["text"]."""
        for text in batch["text"]:
            scores = self.model.score(text)
            self.log10 += scores.total
            self.tokens += len(scores.tokens)
            self.words += sum(token != END for token in scores.tokens)
            self.unknown += int((~scores.known).sum())
            self.characters += len(text)

    def compute(self) -> dict[str, float]:
        """Perplexity per token (`</s>` included, `<s>` not), bits per character, the share of words that are `<unk>`.

        Bits are of all tokens, over all characters of the texts, white space too, so that models with other
        vocabularies compare. Stupid back-off has no probabilities: its mean log10 score stands instead.
        """
        measures = {"oov_rate": self.unknown / max(self.words, 1)}
        if self.model.normalised:
            measures["perplexity"] = _perplexity(self.log10, self.tokens)
            measures["bits_per_character"] = -self.log10 / math.log10(2) / max(self.characters, 1)
        else:
            measures["log10_score"] = self.log10 / max(self.tokens, 1)
        self._reset()
        return measures

    def state_dict(self) -> dict[str, Any]:
        tokens = torch.cat([*self.chunks, torch.zeros(0, dtype=torch.int32)])
        return {"model": self.model.state_dict(), "types": list(self.index), "tokens": tokens}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.index, self.chunks = growing_index(state["types"]), [state["tokens"]]
