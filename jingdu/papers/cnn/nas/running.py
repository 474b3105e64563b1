"""A search as what the engine runs: data, space, budget and algorithm in; ranked architectures and the best one trained out."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from jingdu.engine.contracts import Batch
from jingdu.errors import Refused, UsageError, unknown
from jingdu.metrics.classification import Accuracy
from jingdu.names import Call

from .algorithms import Found, GridSearch, RandomSearch, SearchAlgorithm
from .bayesian import Bayesian
from .cell_space import cell_space
from .cells import NASNet
from .chain import ChainNet, digits_space, zoph_le_space
from .controller import ReinforcedController, reinforce_small
from .evaluation import Evaluator, Examples, Training, split_off, train_network
from .evolution import AgeingEvolution, Genetic
from .space import SearchSpace, score

ALGORITHMS: dict[str, Callable[..., SearchAlgorithm]] = {
    "random": RandomSearch,
    "grid": GridSearch,
    "controller": ReinforcedController,
    "reinforce": reinforce_small,
    "ageing": AgeingEvolution,
    "genetic": Genetic,
    "bayesian": Bayesian,
    "bananas": partial(Bayesian, model="ensemble", encoding="path"),
}
"""By the names that a recipe uses; `controller` has the paper's settings, `reinforce` those for a hundred children."""
SPACES: dict[str, Callable[..., SearchSpace]] = {
    "digits": digits_space,
    "chain": zoph_le_space,
    "cells": cell_space,
}


def named(text: str, known: Mapping[str, Callable[..., Any]], what: str, *first: Any, **defaults: Any) -> Any:
    """Call one of `known` as a recipe writes it: "ageing(population=20)". Raises UsageError for what it does not take."""
    call = Call.parse(text)
    if call.name not in known:
        raise unknown(what, call.name, known)
    try:
        return known[call.name](*first, **{**defaults, **call.arguments})
    except TypeError as error:
        raise UsageError(f"{what} {text!r}: {error}") from None


class Search:
    """Each pass over the data trains one child; one more pass trains the best of them on all training images.

    A `Fitted` that reads all its training images at once: the stage's `batch_size` is at least their number.

    Args:
        network: of the kind that the space makes (nas_chain_digits, nas_cells_digits); it is replaced by the winner.
        space: by a name of `SPACES`, with arguments: "cells(pairs=3)".
        algorithm: by a name of `ALGORITHMS`, with arguments.
        evaluations: how many children.
        valid: the share of the training images on which children are compared.
        target, exponent: with a target the score is accuracy (multiply-adds / target)^exponent.
        retrain: steps of the winner's training.
        seed: of the search and the children; by default the stage's.
        training: a child's steps, batch_size, lr and whatever else `Training` has.

    The images that a run is evaluated on are not seen before it is over.
    """

    def __init__(
        self, network: nn.Module, space: str = "digits", algorithm: str = "ageing(population=12, sample=4)",
        evaluations: int = 40, valid: float = 0.25, target: float | int | None = None, exponent: float = -0.07,
        retrain: int = 600, seed: int | None = None, **training: Any,
    ):  # fmt: skip
        if evaluations < 1 or retrain < 1 or (target is not None and target <= 0):
            raise UsageError(f"evaluations {evaluations}, retrain {retrain}, target {target}: all are positive")
        self.network, self.evaluations, self.valid = network, evaluations, valid
        self.target, self.exponent, self.retrain = target, exponent, retrain
        self.space_text, self.algorithm_text = space, algorithm
        self.space: SearchSpace = named(space, SPACES, "space")
        if not isinstance(network, ChainNet if Call.parse(space).name != "cells" else NASNet):
            raise UsageError(f"the space {space!r} makes no {type(network).__name__}: name another network")
        try:
            self.how = Training(**training)
        except TypeError as error:
            raise UsageError(f"training of children: {error}") from None
        self._begin(int(torch.randint(2**31, (1,))) if seed is None else seed)
        self.accuracy = Accuracy()

    def _begin(self, seed: int) -> None:
        self.seed, self.found, self.accuracies = seed, Found(), []
        self.algorithm: SearchAlgorithm = named(self.algorithm_text, ALGORITHMS, "algorithm", self.space, seed=seed)
        self.evaluator: Evaluator | None = None
        self.kept: Mapping[str, Any] | None = None
        self.pass_read = -1
        self.arguments: dict[str, Any] | None = None

    @property
    def passes(self) -> int:
        return self.evaluations + 1

    # Searching -------------------------------------------------------------------------------------

    def observe(self, batch: Batch, number: int) -> dict[str, Any]:
        """Train the child that the algorithm asks for; in the last pass the winner."""
        if number == self.pass_read:
            raise UsageError("a search reads its data at once: give a batch_size of all training images")
        self.pass_read = number
        examples = Examples(batch["image"], batch["label"])
        if number == self.evaluations:
            return self._finish(examples)
        if self.evaluator is None:
            train, valid = split_off(examples, self.valid, self.seed)
            self.evaluator = Evaluator(self.space, train, valid, self.how, self.seed)
            if self.kept is not None:
                self.evaluator.load_state_dict(self.kept)
        code = self.algorithm.ask()
        accuracy, cost = self.evaluator(code), self.space.cost(code)
        value = accuracy if self.target is None else score(accuracy, cost.flops, self.target, self.exponent)
        self._tell(code, value, accuracy)
        return {
            "score": value, "accuracy": accuracy, "best": max(self.found.scores), "parameters": cost.parameters,
            "flops": cost.flops, "code": list(code), "architecture": self.space.decode(code),
        }  # fmt: skip

    def _tell(self, code: tuple[int, ...], value: float, accuracy: float) -> None:
        self.algorithm.tell(code, value)
        self.found.codes.append(code)
        self.found.scores.append(value)
        self.accuracies.append(accuracy)

    def _finish(self, examples: Examples) -> dict[str, Any]:
        best = self.found.best
        self._become(self.space.arguments(best))
        steps = train_network(self.network, examples, replace(self.how, steps=self.retrain, checks=1), self.seed)
        return {"steps": steps, "code": list(best), "architecture": self.space.decode(best)}

    def _become(self, arguments: dict[str, Any]) -> None:
        """Replace the network by one with these arguments."""
        self.arguments = arguments
        old = self.network
        self.network = type(old)(**arguments)
        if (origin := getattr(old, "origin", None)) is not None:
            self.network.origin = replace(origin, overrides=arguments)

    def end_pass(self, number: int) -> None:
        """Nothing: a pass is one batch."""

    # Evaluation and state --------------------------------------------------------------------------

    @torch.no_grad()
    def update(self, batch: Batch) -> None:
        """Ask the network about test images."""
        self.network.eval()
        self.accuracy.update(self.network(batch["image"]), batch["label"])

    def compute(self) -> dict[str, float]:
        """The network's measures on the test images; of the search the best score and how many children it took."""
        measures = self.accuracy.compute()
        if self.found.scores:
            cost = self.space.cost(self.found.best)
            measures |= {
                "best_score": max(self.found.scores), "children": float(len(self.found.scores)),
                "parameters": float(cost.parameters), "flops": float(cost.flops),
            }  # fmt: skip
        return measures

    def state_dict(self) -> dict[str, Any]:
        """What was found; the algorithm's own state follows from it."""
        kept = self.evaluator.state_dict() if self.evaluator is not None else self.kept
        return {
            "seed": self.seed,
            "codes": [list(code) for code in self.found.codes],
            "scores": list(self.found.scores),
            "accuracies": list(self.accuracies),
            "evaluator": kept or {},
            "arguments": self.arguments or {},
            "network": self.network.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a `state_dict`: the algorithm is told its history again. Raises Refused where it is none."""
        try:
            self._begin(int(state["seed"]))
            told = zip(state["codes"], state["scores"], state["accuracies"], strict=True)
            for code, value, accuracy in told:
                if self.algorithm.ask() != tuple(code):
                    raise Refused(f"{self.algorithm_text!r} proposes other architectures here than it did in this run")
                self._tell(tuple(code), float(value), float(accuracy))
            self.kept = state["evaluator"] or None
            if state["arguments"]:
                self._become(dict(state["arguments"]))
            self.network.load_state_dict(state["network"])
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, UsageError) as error:
            raise Refused(f"no state of a search ({type(error).__name__}: {error})") from None
