r"""The paper's controller: a recurrent network that writes architectures, and is paid by their accuracy (Section 3).

It makes the choices of a space one after the other (Fig. 2). A connection between layers is chosen by attention over
what the controller thought at each layer, its anchor (Section 3.3, Eq. in Fig. 4):

$$ P(j \to i) = \sigma(v^\top \tanh(W_{prev} h_j + W_{curr} h_i)). $$

REINFORCE (Section 3.2) with m architectures of probabilities p and rewards R, and b a moving average of R:

$$ \nabla J \approx \frac1m \sum_{k=1}^m \nabla \log p_k \, (R_k - b). $$
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from jingdu.errors import UsageError
from jingdu.papers.language.lstm import recurrent

from .algorithms import SearchAlgorithm
from .space import SearchSpace

ANCHOR = -1
"""In the order of what a controller does, a layer's anchor instead of a choice."""


def layers_between(space: SearchSpace) -> range:
    """The first to the last layer that a choice is about or reads; one without choices of its own may be read too."""
    numbers = [c.layer for c in space.choices] + [c.source for c in space.choices if c.source is not None]
    return range(min(numbers), max(numbers) + 1)


def controller_steps(space: SearchSpace) -> list[int]:
    """The numbers of the choices that the controller makes by a softmax, in order, and each layer's `ANCHOR`.

    A layer's anchor follows its own choices and precedes its connections; a space without connections has none.
    """
    links = any(choice.source is not None for choice in space.choices)
    steps = []
    for layer in layers_between(space):
        steps += [i for i, c in enumerate(space.choices) if c.layer == layer and c.source is None]
        steps += [ANCHOR] if links else []
    return steps


class Controller(nn.Module):
    """Two LSTM layers of 35 units (Section 4.1), an embedding for every value of every choice, and a softmax for each.

    Args:
        space: whose choices it makes.
        hidden, layers: of the LSTM.
        spread: weights start uniform between minus and plus this.
    """

    def __init__(self, space: SearchSpace, hidden: int = 35, layers: int = 2, spread: float = 0.08):
        super().__init__()
        self.sizes = space.sizes
        self.steps = controller_steps(space)
        self.links = [
            [(i, c.source) for i, c in enumerate(space.choices) if c.source is not None and c.layer == layer]
            for layer in layers_between(space)
        ]  # for each anchor in turn: number of the choice, and the layer that may be read
        self.first = layers_between(space).start
        self.start = nn.Parameter(torch.empty(hidden))
        self.anchor = nn.Parameter(torch.empty(hidden))
        self.lstm = recurrent(hidden, hidden, layers)
        self.embeddings = nn.ModuleDict({str(i): nn.Embedding(self.sizes[i], hidden) for i in self.steps if i >= 0})
        self.outputs = nn.ModuleDict({str(i): nn.Linear(hidden, self.sizes[i]) for i in self.steps if i >= 0})
        self.previous = nn.Linear(hidden, hidden, bias=False)
        self.current = nn.Linear(hidden, hidden, bias=False)
        self.attend = nn.Linear(hidden, 1, bias=False)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -spread, spread)

    def forward(
        self, codes: Int64[Tensor, "batch choices"] | None = None, batch: int = 1,
        generator: torch.Generator | None = None,
    ) -> tuple[Int64[Tensor, "batch choices"], Float[Tensor, " batch"]]:  # fmt: skip
        """Codes and their log-probabilities; the codes are drawn where none are given."""
        if codes is not None:  # all that the controller reads is known: one pass over the sequence
            x = [self.start.expand(len(codes), -1)]
            x += [self._read(step, codes[:, step] if step >= 0 else None, len(codes)) for step in self.steps[:-1]]
            thoughts, _ = self.lstm(torch.stack(x, 1))
            return codes, self._run(thoughts.unbind(1), lambda i, log_p: codes[:, i])[1]
        found = self._run(
            self._think(batch), lambda i, log_p: torch.multinomial(log_p.exp(), 1, generator=generator)[:, 0]
        )
        return torch.stack([found[0][i] for i in range(len(self.sizes))], 1), found[1]

    def _read(self, step: int, taken: Tensor | None, batch: int) -> Tensor:
        """What the LSTM sees after a step."""
        return self.anchor.expand(batch, -1) if taken is None else self.embeddings[str(step)](taken)

    def _think(self, batch: int) -> Iterator[Tensor]:
        """Its outputs, one after the other; each reads what was chosen after the one before."""
        x, state, self._taken = self.start.expand(batch, -1), None, None
        for step in self.steps:
            y, state = self.lstm(x[:, None], state)
            yield y[:, 0]
            x = self._read(step, self._taken, batch)

    def _run(
        self, thoughts: Iterable[Tensor], choose: Callable[[int, Tensor], Tensor]
    ) -> tuple[dict[int, Tensor], Tensor]:
        """The values of all choices by number, and the log-probability of all of them, from the LSTM's outputs."""
        chosen: dict[int, Tensor] = {}
        parts, anchors = [], []

        def decide(i: int, log_p: Tensor) -> Tensor:
            chosen[i] = choose(i, log_p)
            parts.append(log_p.gather(1, chosen[i][:, None])[:, 0])
            return chosen[i]

        for step, h in zip(self.steps, thoughts, strict=True):
            if step != ANCHOR:
                self._taken = decide(step, self.outputs[str(step)](h).log_softmax(1))
                continue
            anchors.append(h)
            self._taken, links = None, self.links[len(anchors) - 1]
            if links:
                # [batch, earlier layers, hidden]
                before = torch.stack([anchors[source - self.first] for _, source in links], 1)
                logit = self.attend(torch.tanh(self.previous(before) + self.current(h)[:, None]))
                log_p = F.logsigmoid(torch.cat([-logit, logit], 2))
                for place, (i, _) in enumerate(links):
                    decide(i, log_p[:, place])
        return chosen, torch.stack(parts).sum(0)


class ReinforcedController(SearchAlgorithm):
    """Section 3.2: draw `batch` architectures, wait for all their scores, take a step of Adam along REINFORCE's gradient.

    Args:
        space, seed: as of `SearchAlgorithm`.
        batch: architectures of one update; 8 in the paper.
        lr: Adam's; 6e-4 in the paper, which has 12,800 children.
        power: a reward is the score to this power; 3 in the paper.
        decay: of the moving average of the rewards.
        entropy: weight of a bonus for being undecided (0 in the paper).
        hidden, layers: of the controller.
    """

    def __init__(
        self, space: SearchSpace, seed: int = 0, batch: int = 8, lr: float = 6e-4, power: float | int = 3,
        decay: float = 0.9, entropy: float = 0.0, hidden: int = 35, layers: int = 2,
    ):  # fmt: skip
        super().__init__(space, seed)
        if batch < 1 or not 0 <= decay < 1:
            raise UsageError(f"batch {batch}, decay {decay}: give 1 or more, and less than 1")
        self.batch, self.power, self.decay, self.entropy = batch, power, decay, entropy
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.controller = Controller(space, hidden, layers)
        self.optimizer = torch.optim.Adam(self.controller.parameters(), lr=lr, fused=True)
        self.waiting: list[tuple[int, ...]] = []
        self.told: list[tuple[tuple[int, ...], float]] = []
        self.baseline: float | None = None

    def ask(self) -> tuple[int, ...]:
        if not self.waiting:
            with torch.no_grad():
                codes, _ = self.controller(batch=self.batch, generator=self.generator)
            self.waiting = [tuple(row) for row in codes.tolist()]
            # What the space does not allow is drawn again, uniformly: the controller learns not to propose it.
            self.waiting = [c if self.space.allows(c) else self.space.sample(self.generator) for c in self.waiting]
        return self.waiting.pop(0)

    def tell(self, code: Sequence[int], score: float) -> None:
        super().tell(code, score)
        self.told.append((tuple(code), float(score) ** self.power))
        if len(self.told) == self.batch:
            self._update()
            self.told = []

    def _update(self) -> None:
        rewards = torch.tensor([reward for _, reward in self.told])
        mean = float(rewards.mean())
        # The first batch has nothing to be compared with but itself.
        baseline = mean if self.baseline is None else self.baseline
        _, log_p = self.controller(torch.tensor([code for code, _ in self.told]))
        loss = -(log_p * (rewards - baseline)).mean()
        if self.entropy:
            # E[log p] is minus the entropy, and its gradient that of log p times log p.
            loss = loss + self.entropy * (log_p * log_p.detach()).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.baseline = self.decay * baseline + (1 - self.decay) * mean


reinforce_small = partial(ReinforcedController, batch=4, lr=0.02, decay=0.8)
"""For a hundred children instead of 12,800: smaller batches, and a rate at which so few updates change something."""
