"""Training through the engine: passes that count, then passes that learn."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Int32
from torch import Tensor

from jingdu.engine.contracts import Batch
from jingdu.errors import Refused, UsageError
from jingdu.papers.language.ngram import encode, sentences
from jingdu.papers.language.ngram.text import END

from .evaluation import Question, analogies
from .learning import Architecture, Learner
from .network import Word2Vec, spell
from .vocabulary import Subsampling, find_phrases, sort_words, with_phrases

SPAN = 100_000
"""Words that are learned from at a time."""
LAST = 1e-4
"""The last learning rate as a share of the first."""


def number(
    found: Iterable[Sequence[str]], index: Mapping[str, int]
) -> tuple[Int32[Tensor, " tokens"], Int32[Tensor, " tokens"]]:
    """Sentences as one row of word numbers, and the number of each word's sentence.

    Words that the vocabulary does not have are left out before windows are cut: windows reach over them.

    Args:
        index: word -> its number + 2, and `</s>` -> 1: `ngram.encode` closes each sentence so, and keeps 0 for unknown words.
    """
    tokens = torch.from_numpy(encode(found, index))
    known = tokens > 1
    return (tokens[known] - 2).int(), (tokens == 1).cumsum(0)[known].int()


class Learning:
    """The passes of word2vec over text (a `Fitted`).

    Args:
        network: gives dimensions and objectives; it is made anew once the vocabulary is known. One that knows its words
            already is trained on, with them.
        epochs: passes that learn.
        architecture, window, negative, sample, subsampling: see `Learner`.
        min_count: rarer words are left out.
        lr: the first learning rate; by default 0.025 for skip-gram, 0.05 for cbow. It falls linearly, by the words
            read, to 1e-4 of itself.
        tokens, case: how text becomes sentences of words (see `ngram.sentences`).
        phrases: thresholds of passes that join phrases, first and largest first: (200, 100).
    """

    def __init__(
        self, network: Word2Vec, epochs: int = 5, architecture: Architecture | str = "skip-gram", window: int = 5,
        negative: int = 5, sample: float = 1e-3, subsampling: Subsampling | str = "code", min_count: int = 5, lr: float | None = None, tokens: str = "spaces",
        case: str = "kept", phrases: Sequence[float] = (),
    ):  # fmt: skip
        if epochs < 1 or min_count < 1 or (lr is not None and lr <= 0) or not all(value > 0 for value in phrases):
            raise UsageError(
                f"epochs {epochs}, min_count {min_count}, lr {lr}, phrases {tuple(phrases)}: all are positive"
            )
        self.network, self.epochs, self.min_count = network, epochs, min_count
        self.lr = lr if lr is not None else 0.05 if architecture == "cbow" else 0.025
        self.options = {
            "architecture": architecture,
            "window": window,
            "negative": negative,
            "sample": sample,
            "subsampling": subsampling,
        }
        self.tokens, self.case, self.thresholds = tokens, case, tuple(phrases)
        Learner(Word2Vec(2, 1, output=True), **self.options)  # wrong options are told now
        self.joined: list[set[tuple[str, str]]] = []
        self.words: Counter[str] = Counter()
        self.pairs: Counter[tuple[str, str]] = Counter()
        self.seen = 0
        self._prepare()
        self._reset()

    @property
    def counting(self) -> int:
        """Passes before the first that learns."""
        return len(self.thresholds) + 1

    @property
    def passes(self) -> int:
        return self.counting + self.epochs

    def _resized(self, vocabulary: int, spelling: int) -> Word2Vec:
        """A new network like the given one, for another vocabulary."""
        old, sizes = self.network, {"vocabulary": vocabulary, "spelling": spelling}
        network = Word2Vec(dim=old.input.shape[1], output=old.output is not None, tree=old.inner is not None, **sizes)
        if (origin := getattr(old, "origin", None)) is not None:
            network.origin = replace(origin, overrides={**origin.overrides, **sizes})
        return network

    def _named(self, words: Sequence[str], counts: Tensor) -> Word2Vec:
        network = self._resized(len(words), len(spell(words)))
        network.counts.copy_(counts)
        network.spelling.copy_(spell(words))
        return network

    def _prepare(self) -> None:
        """What follows from the network's words."""
        self.index = {END: 1} | {word: i + 2 for i, word in enumerate(self.network.words) if word != END}
        has_counts = bool(self.network.words) and int(self.network.counts.sum()) > 0
        can_learn = self.network.output is not None or self.network.inner is not None
        self.learner = Learner(self.network, **self.options) if has_counts and can_learn else None

    def _sentences(self, texts: Iterable[str]) -> Iterable[Sequence[str]]:
        for text in texts:
            yield from with_phrases(sentences(text, self.tokens, self.case), self.joined)

    # Training --------------------------------------------------------------------------------------

    def observe(self, batch: Batch, number_of_pass: int) -> dict[str, Any]:
        """Count, or learn from, the documents of batch["text"]."""
        if self.network.output is None and self.network.inner is None:
            raise UsageError("this network has nothing to train against: give it output=True or tree=True")
        found = self._sentences(batch["text"])
        if number_of_pass < self.counting:
            for sentence in found:
                self.words.update(sentence)
                if number_of_pass < len(self.thresholds):
                    self.pairs.update(pairwise(sentence))
            return {"words": self.words.total(), "types": len(self.words)}
        return self.learn(*number(found, self.index))

    def learn(self, words: Int32[Tensor, " tokens"], sentence: Int32[Tensor, " tokens"]) -> dict[str, Any]:
        """Learn from words by number, at the rate that their place among all words to be read asks for."""
        assert self.learner is not None
        total = self.epochs * int(self.network.counts.sum())
        kept, rate = 0, self.lr
        for start in range(0, len(words), SPAN):
            part = slice(start, start + SPAN)
            first, rate = (
                self.lr * max(1 - place / total, LAST) for place in (self.seen, self.seen + len(words[part]))
            )
            kept += self.learner.learn(words[part], sentence[part], first, rate)
            self.seen += len(words[part])
        return {"words": self.seen, "kept": kept, "lr": rate}

    def end_pass(self, number_of_pass: int) -> None:
        """After a pass for phrases: choose them. After the last one that counts: the vocabulary."""
        if number_of_pass < len(self.thresholds):
            self.joined.append(find_phrases(self.words, self.pairs, self.thresholds[number_of_pass]))
        elif number_of_pass == len(self.thresholds):
            if self.network.words:
                self.network.counts.copy_(torch.tensor([max(self.words[word], 1) for word in self.network.words]))
            else:
                words, counts = sort_words(self.words, self.min_count)
                if len(words) < 2:
                    raise UsageError(
                        f"{len(words)} of {len(self.words)} words occur {self.min_count} times: give more text, or a "
                        "smaller min_count"
                    )
                self.network = self._named(words, counts)
            self._prepare()
        if number_of_pass < self.counting:
            self.words, self.pairs = Counter(), Counter()

    # Evaluation ------------------------------------------------------------------------------------

    def _reset(self) -> None:
        self.loss, self.terms = 0.0, 0
        self.questions: list[Question] = []

    def update(self, batch: Batch) -> None:
        """Take the documents of batch["text"], or the questions of batch["analogy"], into account."""
        if "analogy" in batch:
            self.questions += batch["analogy"]
        if "text" in batch and self.learner is not None:
            loss, pairs = self.learner.loss(*number(self._sentences(batch["text"]), self.index))
            self.loss, self.terms = self.loss + loss, self.terms + pairs

    def compute(self) -> dict[str, float]:
        """loss: minus the objective, in nats a pair, without subsampling. analogy: the share of right answers among
        the questions whose words are all known, and known: the share of those."""
        measures = {"loss": self.loss / self.terms} if self.terms else {}
        if self.questions:
            right, asked = analogies(self.network, self.questions)
            measures |= {"analogy": right / max(asked, 1), "known": asked / len(self.questions)}
        self._reset()
        return measures

    # State -----------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        words = list(self.words)
        place = {word: i for i, word in enumerate(words)}
        return {
            "network": self.network.state_dict(),
            "seen": self.seen,
            "phrases": [sorted(map(list, phrases)) for phrases in self.joined],
            "words": words,
            "counts": torch.tensor(list(self.words.values()), dtype=torch.int64),
            "pairs": torch.tensor([[place[a], place[b]] for a, b in self.pairs], dtype=torch.int32).view(-1, 2),
            "pair_counts": torch.tensor(list(self.pairs.values()), dtype=torch.int64),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a `state_dict`. Raises Refused where it is none."""
        try:
            tensors = state["network"]
            if {name: x.shape for name, x in tensors.items()} != {
                name: x.shape for name, x in self.network.state_dict().items()
            }:
                self.network = self._resized(len(tensors["counts"]), len(tensors["spelling"]))
            self.network.load_state_dict(tensors)
            self.seen = int(state["seen"])
            self.joined = [{(a, b) for a, b in phrases} for phrases in state["phrases"]]
            words, pairs = state["words"], state["pairs"].tolist()
            self.words = Counter(dict(zip(words, state["counts"].tolist(), strict=True)))
            self.pairs = Counter(
                {(words[a], words[b]): n for (a, b), n in zip(pairs, state["pair_counts"].tolist(), strict=True)}
            )
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise Refused(f"no state of word2vec ({type(error).__name__}: {error})") from None
        self._prepare()


def fit(
    found: Iterable[Sequence[str]], dim: int = 100, tree: bool = False, seed: int = 0,
    each: Callable[[Word2Vec], object] | None = None, **options: Any,
) -> Word2Vec:  # fmt: skip
    """The vectors of sentences of words, in one call.

    Args:
        found: read once, and kept as numbers.
        dim: numbers of a vector.
        tree: train by the hierarchical softmax instead of negative sampling.
        seed: of everything random.
        each: is told after every epoch.
        options: of `Learning`: epochs, architecture, window, negative, sample, min_count, lr.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        learning = Learning(Word2Vec(0, dim, output=not tree, tree=tree), **options)
        kept = [list(sentence) for sentence in found]
        for sentence in kept:
            learning.words.update(sentence)
        learning.end_pass(0)
        words, places = number(kept, learning.index)
        for _ in range(learning.epochs):
            learning.learn(words, places)
            if each is not None:
                each(learning.network)
    return learning.network
