"""Beam search against one that is written out, over the whole sequence at every step."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from jingdu.papers.language.rnn import generate
from jingdu.papers.language.transformer import Transformer, beam_search, gnmt, power

VOCABULARY, END = 17, 1


class Chain(nn.Module):
    """A language model whose next token depends on the last two: random, and quick to ask."""

    def __init__(self, seed: int, ends: float = 0.0):
        super().__init__()
        self.table = 2 * torch.randn(VOCABULARY, VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(seed))
        self.table[:, :, END] += ends
        self.asked = 0

    def init_state(self, batch: int, capacity: int) -> "Chain.State":
        self.capacity = capacity
        return Chain.State(torch.zeros(batch, dtype=torch.int64), torch.zeros(batch, dtype=torch.int64))

    def step(self, tokens: Tensor, state: Any, lengths: Tensor | None = None) -> tuple[Tensor, Any]:
        self.asked += len(tokens)
        n = torch.full((len(tokens),), tokens.shape[1]) if lengths is None else lengths
        both = torch.cat([state.last[:, None], tokens], 1)
        rows = torch.arange(len(tokens))
        state = Chain.State(both[rows, n], state.count + n)
        assert (state.count <= self.capacity).all()
        return self.table[both[rows, n - 1], both[rows, n]], state

    class State:
        def __init__(self, last: Tensor, count: Tensor):
            self.last, self.count = last, count

        def select(self, rows: Tensor) -> "Chain.State":
            return Chain.State(self.last[rows], self.count[rows])

    def log_p(self, tokens: list[int]) -> list[float]:
        padded = [0, *tokens]
        return self.table[padded[-2], padded[-1]].log_softmax(0).tolist()


def written_out(
    model: Chain, prompt: list[int], length: int, beams: int, penalty: Callable[[int], float]
) -> list[tuple[float, list[int]]]:
    """Never stops early; the tokens of every beam are read anew at each step."""
    alive: list[tuple[float, list[int]]] = [(0.0, [])]
    ended: list[tuple[float, list[int]]] = []
    for n in range(1, length + 1):
        grown = [(p + q, [*path, token]) for p, path in alive for token, q in enumerate(model.log_p([*prompt, *path]))]
        grown.sort(key=lambda entry: -entry[0])
        ended += [(p / penalty(n), path) for p, path in grown[:beams] if path[-1] == END or n == length]
        alive = [entry for entry in grown if entry[1][-1] != END][:beams]
    ended.sort(key=lambda entry: -entry[0])
    return ended[:beams]


PENALTIES = [gnmt, partial(gnmt, alpha=0.0), power, partial(power, alpha=2.0), partial(power, alpha=-1.0)]


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("beams", [1, 3, 5])
@pytest.mark.parametrize("ends", [-3.0, 0.0, 3.0])
def test_the_same_as_written_out(penalty: Any, beams: int, ends: float) -> None:
    model = Chain(beams, ends)
    prompts, lengths = [[3, 4], [5], [2, 7, 11], [6, 2]], [9, 7, 11, 1]
    found = beam_search(
        model, [torch.tensor(p) for p in prompts], lengths, stop=END, beams=beams, penalty=penalty, best=beams
    )
    for prompt, length, ours in zip(prompts, lengths, found, strict=True):
        theirs = written_out(model, prompt, length, beams, penalty)
        assert [h.tokens.tolist() for h in ours] == [path for _, path in theirs]
        assert [h.score for h in ours] == pytest.approx([score for score, _ in theirs], rel=1e-4)
        for h in ours:
            assert h.score == pytest.approx(h.log_probability / penalty(len(h.tokens)))


@pytest.mark.parametrize("penalty", PENALTIES)
def test_stopping_early_loses_nothing(penalty: Any) -> None:
    asked = []
    for seed in range(12):
        model = Chain(seed, ends=1.5)
        ((best,),) = beam_search(model, [torch.tensor([4])], 40, stop=END, beams=4, penalty=penalty)
        asked.append(model.asked)
        score, path = written_out(model, [4], 40, 4, penalty)[0]
        assert best.tokens.tolist() == path and best.score == pytest.approx(score, rel=1e-4)
    if penalty is gnmt:
        assert max(asked) < 1 + 39 * 4 and sum(asked) / 12 < 80


def test_other_ways_to_stop() -> None:
    asked = {}
    for until in ("sure", "likely", "enough"):
        model = Chain(3, ends=1.5)
        asked[until] = beam_search(
            model, [torch.tensor([4])], 60, stop=END, beams=4, best=4, penalty=power, until=until
        )
        asked[until] = model.asked
    assert asked["enough"] <= asked["likely"] <= asked["sure"]


def test_a_prompt_that_is_done_leaves_the_batch() -> None:
    together, alone = Chain(5, ends=1.0), Chain(5, ends=1.0)
    prompts = [torch.tensor([i]) for i in range(2, 10)]
    whole = beam_search(together, prompts, 30, stop=END)
    parts = [beam_search(alone, [p], 30, stop=END)[0] for p in prompts]
    assert [h[0].tokens.tolist() for h in whole] == [h[0].tokens.tolist() for h in parts]
    assert together.asked == alone.asked


def test_one_beam_until_it_ends_is_greedy() -> None:
    model = Chain(6)
    prompts = [torch.tensor([4, 3]), torch.tensor([5])]
    found = beam_search(model, prompts, 12, stop=END, beams=1, until="enough")
    greedy = generate(model, prompts, 12, stop=(END,))
    assert [h[0].tokens.tolist() for h in found] == [row.tolist() for row in greedy]


def test_nothing_that_ended() -> None:
    model = Chain(7, ends=-math.inf)
    ((first, second),) = beam_search(model, [torch.tensor([4])], 5, stop=END, best=2)
    assert len(first.tokens) == len(second.tokens) == 5 and END not in first.tokens
    assert first.score == pytest.approx(first.log_probability / gnmt(5)) and first.score >= second.score


def test_penalties() -> None:
    assert gnmt(1) == 1 and gnmt(7) == pytest.approx(2**0.6) and gnmt(7, 0.0) == 1
    assert power(8) == 8 and power(8, 0.5) == pytest.approx(math.sqrt(8)) and power(8, 0.0) == 1


def test_numbers_that_make_no_search() -> None:
    model, prompts = Chain(1), [torch.tensor([2]), torch.tensor([3])]
    for options in ({"beams": 0}, {"best": 5}, {"best": 0}):
        with pytest.raises(ValueError, match="at least 1"):
            beam_search(model, prompts, 5, stop=END, **options)
    for lengths in (0, [3, 0], [3]):
        with pytest.raises(ValueError, match="at least 1"):
            beam_search(model, prompts, lengths, stop=END)
    with pytest.raises(ValueError, match="at least 1"):
        beam_search(model, [torch.tensor([], dtype=torch.int64)], 5, stop=END)
    with pytest.raises(ValueError, match="twice"):
        beam_search(model, prompts, 5, stop=END, beams=9)
    assert beam_search(model, [], 5, stop=END) == []


def test_translations_of_several_sources() -> None:
    """A Transformer's beams: cached, of sentences with different lengths, with and without padding."""
    torch.manual_seed(3)
    model = Transformer(VOCABULARY, 12, 20, 3, 2).eval()
    for p in model.parameters():
        nn.init.normal_(p, std=0.6)
    source = torch.randint(2, VOCABULARY, (3, 7))
    source[1, 5:] = 0
    starts = [torch.tensor([0])] * 3
    together = beam_search(model.reading(source), starts, [9, 12, 5], stop=END, best=3)
    for i, (length, n) in enumerate([(9, 7), (12, 5), (5, 7)]):
        (alone,) = beam_search(model.reading(source[i : i + 1, :n]), starts[:1], length, stop=END, best=3)
        assert [h.tokens.tolist() for h in alone] == [h.tokens.tolist() for h in together[i]]
        for h in alone:
            target = torch.cat([starts[0], h.tokens])[None]
            logits = model(source[i : i + 1, :n], target[:, :-1]).log_softmax(-1)
            total = logits.gather(2, target[:, 1:, None]).sum().item()
            assert h.log_probability == pytest.approx(total, abs=1e-4)
