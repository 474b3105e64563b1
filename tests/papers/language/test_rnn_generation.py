"""The generation loop, on networks whose continuations are known."""

from functools import partial

import pytest
import torch
from torch import Tensor

from jingdu.papers.language.rnn import State, generate, greedy, sample

VOCABULARY = 11


class Sum:
    """Its state is the sum of all tokens of a row; the next token is that sum, modulo the vocabulary."""

    class Total:
        def __init__(self, values: Tensor):
            self.values = values

        def select(self, rows: Tensor) -> "Sum.Total":
            return Sum.Total(self.values[rows])

    def __init__(self) -> None:
        self.capacity, self.read, self.steps, self.asked = 0, 0, 0, []

    def init_state(self, batch: int, capacity: int) -> "Sum.Total":
        self.capacity = capacity
        return self.Total(torch.zeros(batch, dtype=torch.int64))

    def step(self, tokens: Tensor, state: "Sum.Total", lengths: Tensor | None = None) -> tuple[Tensor, "Sum.Total"]:
        self.steps, self.read = self.steps + 1, self.read + tokens.shape[1]
        self.asked.append(lengths)
        real = torch.ones_like(tokens) if lengths is None else torch.arange(tokens.shape[1]) < lengths[:, None]
        state = self.Total(state.values + (tokens * real).sum(1))
        return torch.nn.functional.one_hot(state.values % VOCABULARY, VOCABULARY).float(), state


def by_hand(prompt: list[int], length: int, stop: tuple[int, ...] = ()) -> list[int]:
    row, made = list(prompt), []
    while len(made) < length and not (made and made[-1] in stop):
        made.append(sum(row) % VOCABULARY)
        row.append(made[-1])
    return made


PROMPTS = [[3], [1, 2, 5], [7, 0], [10, 10, 10, 10, 9]]


def tensors(rows: list[list[int]]) -> list[Tensor]:
    return [torch.tensor(row) for row in rows]


@pytest.mark.parametrize("rows", [PROMPTS, PROMPTS[1:2], [[1, 2], [4, 5], [6, 7]]])
def test_each_row_continues_as_if_alone(rows: list[list[int]]) -> None:
    found = generate(Sum(), tensors(rows), 7)
    assert [row.tolist() for row in found] == [by_hand(row, 7) for row in rows]


def test_padding_is_announced_only_where_there_is_some() -> None:
    model = Sum()
    generate(model, tensors(PROMPTS), 3)
    assert model.asked[0].tolist() == [1, 3, 2, 5] and model.asked[1:] == [None, None]
    model = Sum()
    generate(model, tensors([[1, 2], [3, 4]]), 3)
    assert model.asked == [None, None, None]


def test_a_network_is_asked_once_a_token_and_told_how_many_there_will_be() -> None:
    model = Sum()
    generate(model, tensors(PROMPTS), 7)
    assert (model.steps, model.read, model.capacity) == (7, 5 + 6, 5 + 6)


def test_rows_end_by_stop_tokens_and_the_batch_with_its_last_row() -> None:
    stop = (6, 8)
    expected = [by_hand(row, 30, stop) for row in PROMPTS]
    assert len({len(row) for row in expected}) > 2 and max(map(len, expected)) < 30
    model, told = Sum(), []
    found = generate(model, tensors(PROMPTS), 30, stop=stop, each=lambda t, r: told.append((t.tolist(), r.tolist())))
    assert [row.tolist() for row in found] == expected
    assert model.steps == max(map(len, expected))
    streamed = [[tokens[i] for tokens, running in told if running[i]] for i in range(len(PROMPTS))]
    assert streamed == expected


def test_nothing_to_do_asks_nothing() -> None:
    model = Sum()
    assert generate(model, [], 3) == []
    assert [len(row) for row in generate(model, tensors(PROMPTS), 0)] == [0, 0, 0, 0]
    assert model.steps == 0


def test_impossible_wishes() -> None:
    with pytest.raises(ValueError, match="token or more"):
        generate(Sum(), [torch.tensor([1]), torch.zeros(0, dtype=torch.int64)], 3)
    with pytest.raises(ValueError, match="length -1"):
        generate(Sum(), tensors(PROMPTS), -1)
    with pytest.raises(ValueError, match="temperature"):
        sample(torch.zeros(2, 3), temperature=0)


def test_sample_draws_by_the_softmax() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]]).expand(20_000, 4)
    for temperature in (1.0, 0.5):
        drawn = sample(logits, torch.Generator().manual_seed(1), temperature)
        shares = torch.bincount(drawn, minlength=4) / len(drawn)
        assert torch.allclose(shares, torch.softmax(logits[0] / temperature, 0), atol=0.015)
    assert torch.equal(greedy(logits), torch.full((20_000,), 2))


def test_a_generator_fixes_what_is_drawn() -> None:
    class Flat(Sum):
        def step(self, tokens: Tensor, state: Sum.Total, lengths: Tensor | None = None) -> tuple[Tensor, Sum.Total]:
            return torch.zeros(len(tokens), VOCABULARY), state

    draw = partial(sample, temperature=0.7)
    one, two, three = (
        torch.cat(generate(Flat(), tensors(PROMPTS), 13, choose=draw, generator=torch.Generator().manual_seed(seed)))
        for seed in (5, 5, 6)
    )
    assert torch.equal(one, two) and not torch.equal(one, three)


def test_no_graph_is_kept_and_states_are_states() -> None:
    weight = torch.ones(1, requires_grad=True)
    seen = []

    class Learned(Sum):
        def step(self, tokens: Tensor, state: Sum.Total, lengths: Tensor | None = None) -> tuple[Tensor, Sum.Total]:
            logits, state = super().step(tokens, state, lengths)
            seen.append(logits * weight)
            return seen[-1], state

    generate(Learned(), tensors(PROMPTS), 2)
    assert not any(logits.requires_grad for logits in seen)
    state = Sum().init_state(3, 1)
    assert isinstance(state, State)
