r"""Beam search: a few of the most probable beginnings go on at the same time (Section 6.1).

It uses the generation contract alone (`init_state`, `step`, the state's `select`), so it searches every network that
generates: `Transformer.reading(source)`, or a language model.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Int64
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from jingdu.papers.language.rnn import Generator

__all__ = ["Hypothesis", "beam_search", "gnmt", "power"]

Until = Literal["sure", "likely", "enough"]
Penalty = Callable[[int], float]
"""Length -> what a log-probability is divided by; it grows or falls throughout."""


def gnmt(length: int, alpha: float = 0.6) -> float:
    r"""$((5 + |Y|) / 6)^\alpha$ (Wu et al. 2016, Eq. 14), the paper's; |Y| counts the end."""
    return ((5 + length) / 6) ** alpha


def power(length: int, alpha: float = 1.0) -> float:
    r"""$|Y|^\alpha$, as transformers and fairseq have it; 1 is the mean log-probability of a token."""
    return length**alpha


@dataclass(frozen=True)
class Hypothesis:
    """A continuation that was found."""

    tokens: Int64[Tensor, " length"]
    """New tokens; the last one is the end, unless the search had its limit there."""
    log_probability: float
    score: float
    """The log-probability divided by the penalty of the length: what decides."""


@dataclass
class _Sentence:
    """One prompt's beams. A path is a pair: the path before its last token, and that token."""

    number: int
    limit: int
    paths: list[Any] = field(default_factory=lambda: [None])
    alive: list[float] = field(default_factory=lambda: [0.0])
    """Log-probabilities of the paths, best first."""
    ended: list[tuple[float, float, Any]] = field(default_factory=list)
    """(score, log-probability, path) of finished ones, best first."""

    def keep(self, beams: int) -> None:
        self.ended = sorted(self.ended, key=lambda entry: -entry[0])[:beams]

    def is_done(self, length: int, beams: int, best: int, penalty: Penalty, until: Until) -> bool:
        """Whether nothing better is to come, with `length` tokens in each living path."""
        if length >= self.limit:
            return True
        if until == "enough":
            return len(self.ended) == beams
        if until == "likely":
            return len(self.ended) == beams and self.ended[-1][0] >= self.alive[0] / penalty(length)
        # A longer path is less probable; only a smaller division can raise its score.
        bound = self.alive[0] / max(penalty(length + 1), penalty(self.limit))
        return len(self.ended) >= best and self.ended[best - 1][0] >= bound


@torch.no_grad()
def beam_search(
    model: Generator,
    prompts: Sequence[Int64[Tensor, "_"]],
    length: int | Sequence[int],
    *,
    stop: int,
    beams: int = 4,
    penalty: Penalty = gnmt,
    best: int = 1,
    until: Until = "sure",
) -> list[list[Hypothesis]]:
    """The `best` continuations of each prompt, best first, all prompts at once.

    Of all continuations of the living beams the most probable `beams` are looked at: those that end are set aside
    with their score, and the most probable that do not end live on. A prompt whose search is over leaves the batch.

    Args:
        model: what reads and predicts.
        prompts: at least one token each, on the network's device.
        length: the most new tokens, of all rows or of each. A beam that has so many counts as it stands.
        stop: the token that ends a continuation.
        beams: how many live.
        penalty: of the length: `gnmt`, `power`, or `functools.partial(gnmt, alpha=1.0)`.
        best: how many to return, at most `beams`.
        until: when a prompt's search is over. "sure": no living beam can become one of the `best`. "likely": `beams` have
            ended, and no living one would be among them were it to end now (transformers' default). "enough": `beams`
            have ended.

    Raises ValueError for numbers that make no search.
    """
    sizes = [len(prompt) for prompt in prompts]
    limits = [length] * len(sizes) if isinstance(length, int) else list(length)
    if beams < 1 or not 1 <= best <= beams or len(limits) != len(sizes) or min([*limits, *sizes, 1]) < 1:
        raise ValueError(
            f"{beams} beams, the {best} best, prompts of {sizes} tokens and at most {limits} new ones: all at least 1, "
            "and no more wanted than there are beams"
        )
    if not sizes:
        return []
    tokens = pad_sequence(list(prompts), batch_first=True)
    lengths = None if min(sizes) == max(sizes) else tokens.new_tensor(sizes)
    state = model.init_state(len(sizes), max(sizes) + max(limits) - 1)  # the last token is not read
    everyone = [_Sentence(i, limit) for i, limit in enumerate(limits)]
    living, live = everyone, 1
    for n in range(1, max(limits) + 1):
        logits, state = model.step(tokens, state, lengths)
        if logits.shape[1] < 2 * beams:
            raise ValueError(f"{beams} beams in a vocabulary of {logits.shape[1]}: it must have twice as many tokens")
        before = torch.tensor([p for s in living for p in s.alive], device=logits.device)
        # Twice as many as beams: at most one continuation of each ends, so enough go on.
        found, place = _best(logits, before, len(living), 2 * beams)
        vocabulary, parents, chosen, going = logits.shape[1], [], [], []
        for i, (sentence, totals, places) in enumerate(zip(living, found.tolist(), place.tolist(), strict=True)):
            paths, alive, rows = [], [], []
            for rank, (total, at) in enumerate(zip(totals, places, strict=True)):
                row, token = divmod(at, vocabulary)
                path = (sentence.paths[row], token)
                if token == stop or n == sentence.limit:
                    if rank < beams:
                        sentence.ended.append((total / penalty(n), total, path))
                elif len(paths) < beams:
                    paths.append(path)
                    alive.append(total)
                    rows.append(i * live + row)
            sentence.paths, sentence.alive = paths, alive
            sentence.keep(beams)
            if not sentence.is_done(n, beams, best, penalty, until):
                going.append(sentence)
                parents += rows
                chosen += [path[1] for path in paths]
        if not going:
            break
        if parents != list(range(len(living) * live)):
            state = state.select(tokens.new_tensor(parents))
        tokens, lengths = tokens.new_tensor(chosen)[:, None], None
        living, live = going, beams
    return [_result(sentence, best, tokens) for sentence in everyone]


def _best(logits: Tensor, before: Tensor, sentences: int, count: int) -> tuple[Tensor, Tensor]:
    """Log-probabilities of each sentence's most probable continuations, and row * vocabulary + token of each."""
    total = before[:, None] + logits.float().log_softmax(1)
    return total.view(sentences, -1).topk(count)


def _result(sentence: _Sentence, best: int, like: Tensor) -> list[Hypothesis]:
    return [Hypothesis(like.new_tensor(_spelled(path)), p, score) for score, p, path in sentence.ended[:best]]


def _spelled(path: Any) -> list[int]:
    tokens = []
    while path is not None:
        path, token = path
        tokens.append(token)
    return tokens[::-1]
