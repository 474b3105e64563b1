r"""Neural Architecture Search with Reinforcement Learning. Zoph, Le. 2016. https://arxiv.org/abs/1611.01578

**Problem.** A network's architecture is chosen by hand, by people who try what they have seen to work.

**Idea.** Write an architecture as a sequence of choices (Section 3.1), train each one that is proposed for a while, and
let a search algorithm learn from the scores what to propose next.

Differs from the paper in:
- Random search, grids, evolution and Bayesian optimisation stand beside the paper's controller, behind one interface.

Reading order: `space` (architectures as choices), `algorithms` (ask and tell).
"""

from collections.abc import Iterator, Sequence
from typing import Any

from jingdu.engine.contracts import Recipe
from jingdu.errors import UsageError
from jingdu.prediction import Prediction

from .algorithms import Found, GridSearch, RandomSearch, SearchAlgorithm, search
from .space import Choice, Cost, SearchSpace, count_cost, score

__all__ = [
    "Choice", "Cost", "Found", "GridSearch", "RandomSearch", "SearchAlgorithm", "SearchSpace", "build", "count_cost",
    "predict", "score", "search",
]  # fmt: skip


def build(variant: str = "nas", **overrides: Any) -> SearchSpace:
    """A space of choices: overrides are the choices' values by name."""
    return SearchSpace([Choice(name, tuple(values)) for name, values in (overrides or {"depth": (1, 2)}).items()])


recipes: dict[str, Recipe] = {}


def predict(model: SearchSpace, inputs: Sequence[str]) -> Iterator[Prediction]:
    """The cost of architectures."""
    if inputs:
        raise UsageError(f"{inputs[0]!r}: a space reads no input")
    yield Prediction("", f"{len(model):,} architectures", {"architectures": len(model)})
