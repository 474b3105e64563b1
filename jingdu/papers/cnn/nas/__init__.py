r"""Neural Architecture Search with Reinforcement Learning. Zoph, Le. 2016. https://arxiv.org/abs/1611.01578

**Problem.** A network's architecture is chosen by hand, by people who try what they have seen to work.

Differs from the paper in:
- nothing yet
"""

from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from jingdu.engine.contracts import Recipe
from jingdu.papers.cnn.alexnet import classify
from jingdu.prediction import Prediction

from .algorithms import Found, GridSearch, RandomSearch, SearchAlgorithm, search
from .bayesian import Bayesian, Ensemble, GaussianProcess, expected_improvement
from .cells import Genotype, NASCell, NASNet, ScheduledDropPath, drop_path, pad_same
from .chain import ChainNet, chain_space, digits_space, zoph_le_space
from .controller import Controller, ReinforcedController
from .evaluation import Evaluator, Examples, Table, Training, accuracy, split_off, train_network
from .evolution import AgeingEvolution, Genetic
from .space import Choice, Cost, SearchSpace, count_cost, score

__all__ = [
    "AgeingEvolution", "Bayesian", "ChainNet", "Choice", "Controller", "Cost", "Ensemble", "Evaluator", "Examples",
    "Found", "GaussianProcess", "Genetic", "Genotype", "GridSearch", "NASCell", "NASNet", "RandomSearch",
    "ReinforcedController", "ScheduledDropPath", "SearchAlgorithm", "SearchSpace", "Table", "Training", "accuracy",
    "build", "chain_space", "count_cost", "digits_space", "drop_path", "expected_improvement", "pad_same", "predict",
    "score", "search", "split_off", "train_network", "zoph_le_space",
]  # fmt: skip

VARIANTS: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    # NASNet, Table 2: N @ penultimate filters
    "nasnet_a_mobile_4at1056": (NASNet, {"repeats": 4, "width": 44, "stem": 32}),
    "nasnet_a_large_6at4032": (NASNet, {"repeats": 6, "width": 168, "stem": 96, "skips": True}),
    # PNASNet, Table 5
    "nas_pnasnet5_large": (
        NASNet,
        {"normal": "pnasnet", "reduction": "pnasnet", "repeats": 4, "width": 216, "stem": 96, "counted": True},
    ),
    # Ours, for grey images of 8x8 pixels: a chain as a search finds them, and NASNet's cells
    "nas_chain_digits": (
        ChainNet,
        {
            "layers": ((12, 3, 3, 1, 1, ()), (12, 3, 3, 1, 1, (1,)), (8, 3, 3, 1, 1, (1, 2))),
            "num_classes": 10,
            "in_channels": 1,
            "grid": 2,
        },
    ),
    "nas_cells_digits": (
        NASNet,
        {"repeats": 1, "width": 5, "stem": None, "num_classes": 10, "in_channels": 1, "dropout": 0.0},
    ),
}


def build(variant: str, **overrides: Any) -> nn.Module:
    """The network of a variant; overrides are the arguments of its class."""
    network, arguments = VARIANTS[variant]
    return network(**{**arguments, **overrides})


recipes: dict[str, Recipe] = {}


def predict(model: nn.Module, inputs: Sequence[str], *, top: int = 5) -> Iterator[Prediction]:
    """The most probable classes of image files."""
    return classify(model, inputs, top=top)
