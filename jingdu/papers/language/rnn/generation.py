"""One token after the other: the contract of every network that generates, and the loop over it.

A network that generates has two methods. `init_state(batch, capacity)` is what it remembers before the first token,
where `capacity` is the most tokens that it will ever be shown (a recurrent network needs no more room for them and
ignores it). `step(tokens, state, lengths)` reads `tokens`, int64 [batch, n], of which each row's first `lengths` are real
and the rest padding (None: all are real); it returns the logits [batch, vocabulary] after each row's last real token, and
the new state. What it was given may be overwritten.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


@runtime_checkable
class State(Protocol):
    """What a network remembers of a batch of sequences."""

    def select(self, rows: Int64[Tensor, " new_batch"]) -> Any:
        """The state of other rows: each entry names the row that it continues (beam search repeats and drops rows)."""
        ...


@runtime_checkable
class Generator(Protocol):
    """A network that generates."""

    def init_state(self, batch: int, capacity: int) -> Any: ...

    def step(self, tokens: Tensor, state: Any, lengths: Tensor | None = None) -> tuple[Tensor, Any]: ...


Choose = Callable[[Tensor, torch.Generator | None], Tensor]
"""(logits [batch, vocabulary], generator) -> the next token of each row, int64 [batch]."""


def greedy(
    logits: Float[Tensor, "batch vocabulary"], generator: torch.Generator | None = None
) -> Int64[Tensor, " batch"]:
    """The most probable token."""
    return logits.argmax(-1)


def sample(
    logits: Float[Tensor, "batch vocabulary"],
    generator: torch.Generator | None = None,
    temperature: float | int = 1.0,
) -> Int64[Tensor, " batch"]:
    """A token drawn from softmax(logits / temperature).

    Raises ValueError for a temperature that is not positive: at its limit, 0, this is `greedy`.
    """
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}: it must be positive; greedy is its limit at 0")
    weights = torch.softmax(logits.float() / temperature, -1)
    return torch.multinomial(weights, 1, generator=generator).squeeze(1)


def steps(
    model: Generator,
    prompts: Sequence[Int64[Tensor, "_"]],
    length: int,
    *,
    choose: Choose = greedy,
    stop: Iterable[int] = (),
    generator: torch.Generator | None = None,
) -> Iterator[tuple[Int64[Tensor, " batch"], Bool[Tensor, " batch"]]]:
    """The continuations of all prompts, a token of each at a time: to print text while it comes.

    Arguments are those of `generate`. Each item is the new tokens, and which rows they belong to: the others had ended.
    Rows that have ended stay in the batch until all have: their further tokens are computed and thrown away.
    Raises ValueError for an empty prompt or a negative length.
    """
    sizes = [len(prompt) for prompt in prompts]
    if length < 0 or not all(sizes):
        raise ValueError(f"length {length}, prompts of {sizes} tokens: give no negative length, and a token or more")
    if not sizes or not length:
        return
    tokens = pad_sequence(list(prompts), batch_first=True)
    lengths = None if min(sizes) == max(sizes) else tokens.new_tensor(sizes)
    state = model.init_state(len(sizes), max(sizes) + length - 1)  # the last token is not read
    ends = tokens.new_tensor(list(stop))
    running = torch.ones(len(sizes), dtype=torch.bool, device=tokens.device)
    for _ in range(length):
        with torch.no_grad():
            logits, state = model.step(tokens, state, lengths)
            chosen = choose(logits, generator)
        yield chosen, running
        if len(ends):
            running = running & ~torch.isin(chosen, ends)
            if not running.any():
                return
        tokens, lengths = chosen[:, None], None


def generate(
    model: Generator,
    prompts: Sequence[Int64[Tensor, "_"]],
    length: int,
    *,
    choose: Choose = greedy,
    stop: Iterable[int] = (),
    generator: torch.Generator | None = None,
    each: Callable[[Int64[Tensor, " batch"], Bool[Tensor, " batch"]], Any] | None = None,
) -> list[Tensor]:
    """Continue each prompt by at most `length` tokens, all prompts at once.

    The network is used in the mode that it is in; for text it should be in eval mode.

    Args:
        model: what reads and predicts.
        prompts: at least one token each, of any lengths, on the network's device.
        length: the most new tokens of a row.
        choose: the next tokens from logits; `greedy`, `sample`, or `functools.partial(sample, temperature=0.7)`.
        stop: tokens that end a row.
        generator: what `choose` draws from.
        each: called after each step with the new tokens and which rows they belong to.

    Returns the new tokens of each row; a row that was ended by a token of `stop` has it as its last.
    Raises ValueError for an empty prompt or a negative length.
    """
    made, kept = [], []
    for chosen, running in steps(model, prompts, length, choose=choose, stop=stop, generator=generator):
        if each is not None:
            each(chosen, running)
        made.append(chosen)
        kept.append(running)
    if not made:
        return [prompt[:0] for prompt in prompts]
    tokens, counts = torch.stack(made, 1), torch.stack(kept).sum(0).tolist()
    return [row[:count] for row, count in zip(tokens, counts, strict=True)]
