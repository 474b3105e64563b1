r"""Neural Architecture Search with Reinforcement Learning. Zoph, Le. 2016. https://arxiv.org/abs/1611.01578

With what searches the same way since: the space of cells, NASNet (Zoph, Vasudevan, Shlens, Le. 2017,
https://arxiv.org/abs/1707.07012), ageing evolution, AmoebaNet (Real, Aggarwal, Huang, Le. 2018,
https://arxiv.org/abs/1802.01548), and a Bayesian one, BANANAS (White, Neiswanger, Savani. 2019,
https://arxiv.org/abs/1910.11858).

**Problem.** A network's architecture is chosen by hand, by people who try variations of what they have seen to work.

**Idea.** An architecture is a sequence of choices, so a recurrent network, the controller, can write it down. Train
each child that it writes for a while, and take its accuracy R on held-out images as the reward. The accuracy has no
gradient with respect to the choices $a_1 \dots a_T$, but its expectation has one with respect to their probabilities,

$$ \nabla_\theta E[R] \approx \frac1m \sum_{k=1}^m \sum_{t=1}^T \nabla_\theta \log P(a_t \mid a_{t-1 \dots 1}; \theta) (R_k - b), $$

with b a moving average of the rewards (Section 3.2). What proposes architectures and learns from scores may as well be
evolution, or a model of the score: all stand behind one interface, ask and tell.

**Showed.** After 12,800 children a network for CIFAR-10 with 3.65 % test error, and a recurrent cell with a perplexity
of 62.4 on the Penn Treebank. Cells found on CIFAR-10 build networks for ImageNet with 82.7 % top-1 accuracy (NASNet);
ageing evolution reaches high accuracies sooner than the controller and random search (AmoebaNet, Fig. 3).

Differs from the paper in:
- The space of recurrent cells (Section 3.4) is left out; pooling and normalisation layers are not chosen.
- Children are trained one after the other (or in some processes), not on 800 GPUs, and the number of layers does not grow
  during the search. Their classifier sees the mean of the last maps; the text does not say what the paper's sees.
- A search counts evaluations, and evaluates no network twice where it can avoid that: results are kept.
- The space of cells has six operations of NASNet's thirteen: identity, separable convolutions of 3x3, 5x5 and 7x7, average
  and max-pooling of 3x3. A cell's output is what no pair reads, its two inputs excepted.
- NASNet and PNASNet have no auxiliary classifier. Weights trained in TensorFlow were trained with averages that leave
  padding out; timm's networks count it as zeros where an average has a stride, and so do ours under timm's names
  (`zeros=True`), and nowhere else.
- The recipe for ImageNet has SGD in place of RMSProp.

Reading order: `space` (architectures as choices, cost), `algorithms` (ask and tell), `chain` (the paper's space),
`controller` (the paper), `evolution`, `bayesian`, `cells` and `cell_space` (NASNet), `evaluation` (what a child scores),
`running` (a search as a run), `report`, `digits` (the small problem of the claims).
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from jingdu.data.preprocess import Preprocess
from jingdu.engine.contracts import Recipe, Stage
from jingdu.errors import UsageError
from jingdu.papers.cnn.alexnet import classify
from jingdu.prediction import Prediction

from .algorithms import Found, GridSearch, RandomSearch, SearchAlgorithm, search
from .bayesian import Bayesian, Ensemble, GaussianProcess, expected_improvement
from .cell_space import cell_space, genotype_of
from .cells import Genotype, NASCell, NASNet, ScheduledDropPath, drop_path, pad_same
from .chain import ChainNet, chain_space, digits_space, zoph_le_space
from .controller import Controller, ReinforcedController
from .evaluation import Evaluator, Examples, Table, Training, accuracy, split_off, train_network
from .evolution import AgeingEvolution, Genetic
from .report import cost_of, describe_network, draw_best_so_far, draw_chain, report_run
from .running import ALGORITHMS, SPACES, Search
from .space import Choice, Cost, SearchSpace, count_cost, score

__all__ = [
    "ALGORITHMS", "SPACES", "AgeingEvolution", "Bayesian", "ChainNet", "Choice", "Controller", "Cost", "Ensemble",
    "Evaluator", "Examples", "Found", "GaussianProcess", "Genetic", "Genotype", "GridSearch", "NASCell", "NASNet",
    "RandomSearch", "ReinforcedController", "ScheduledDropPath", "Search", "SearchAlgorithm", "SearchSpace", "Table",
    "Training", "accuracy", "build", "cell_space", "chain_space", "cost_of", "count_cost", "describe_network",
    "digits_space", "draw_best_so_far", "draw_chain", "drop_path", "expected_improvement", "genotype_of", "pad_same",
    "predict", "report_run", "score", "search", "split_off", "train_network", "zoph_le_space",
]  # fmt: skip

VARIANTS: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    # NASNet, Table 2: normal cells of a stage @ channels before the classifier
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


def example(variant: str, batch: int) -> Float[Tensor, "batch channels height width"]:
    """Random images of the size that a variant is made for."""
    channels, side = (1, 8) if variant.endswith("_digits") else (3, 224 if "mobile" in variant else 331)
    return torch.randn(batch, channels, side, side, generator=torch.Generator().manual_seed(0))


DIGITS = Preprocess(mean=(0.305,), std=(0.376,), channels=1)
"""Mean and deviation of the training digits' pixels."""
CIFAR = Preprocess(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))


def _search(network: str, system: str, data: str, preprocess: Preprocess, **changes: Any) -> tuple[Stage, ...]:
    # A search reads all training images at once.
    return (
        Stage(
            "search", method="fit", system=system, networks={"network": network}, data=data, preprocess=preprocess,
            batch_size=60_000, **changes,
        ),
    )  # fmt: skip


recipes = {
    "laptop": Recipe(
        stages=_search(
            "nas_chain_digits",
            "nas.Search(space='digits', algorithm='ageing(population=12, sample=4)', evaluations=40, steps=64, "
            "batch_size=16, lr=0.1, checks=1, retrain=400)",
            "digits",
            DIGITS,
            save_every=5,
        ),
        minutes=1.0,
        expect={"error": (0.0, 0.05)},
        about="ageing evolution over 576 small chains on scikit-learn's digits, and the best of 40 trained for longer; measured: 1.1 % error",
    ),
    "cells": Recipe(
        stages=_search(
            "nas_cells_digits",
            "nas.Search(space='cells(pairs=3, width=6, image=(1, 8, 8))', algorithm='bayesian(first=6)', evaluations=12, "
            "steps=40, batch_size=16, lr=0.1, checks=1, retrain=200)",
            "digits",
            DIGITS,
            save_every=5,
        ),
        minutes=2.0,
        expect={"error": (0.0, 0.1)},
        about="a normal and a reduction cell of three pairs, by Bayesian optimisation, on scikit-learn's digits; measured: 3.1 %",
    ),
    "paper": Recipe(
        stages=_search(
            "nas_chain_digits",
            "nas.Search(space='chain(depth=6)', algorithm='controller', evaluations=12800, valid=0.1, steps=17578, "
            "batch_size=128, lr=0.1, crop=4, checks=50, last=5, retrain=105468)",
            "hf:uoft-cs/cifar10",
            CIFAR,
            save_every=10,
        ),
        minutes=28 * 24 * 60,
        expect={"error": (0.04, 0.08)},
        machine="800 GPUs",
        about="Section 4.1: 12,800 children of 50 epochs each, on 45,000 images of CIFAR-10. One process trains them one "
        "after the other: take fewer",
    ),
    "nasnet": Recipe(
        stages=(
            Stage(
                system="nas.ScheduledDropPath(steps=1250000, label_smoothing=0.1)",
                networks={"network": "nasnet_a_large_6at4032(drop_path=0.3)"},
                data="imagenet",
                preprocess=Preprocess(331, 363, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bicubic"),
                crop="alexnet.random_patch",
                augment=("flip",),
                batch_size=256,
                steps=1_250_000,
                lr=0.1,
                schedule="cosine",
                weight_decay=4e-5,
                ema=0.9999,
                channels_last=True,
                workers=8,
                save_every=5000,
                evaluate_every=50_000,
            ),
        ),
        minutes=30 * 24 * 60,
        expect={"error": (0.16, 0.22)},
        machine="8 GPUs",
        about="NASNet-A large on an ImageNet folder (--data), drop-path growing to 0.3",
    ),
}


def predict(model: nn.Module, inputs: Sequence[str], *, top: int = 5, out: Path | None = None) -> Iterator[Prediction]:
    """The most probable classes of image files; of a search's run folder its ranked architectures; without inputs the
    network's own architecture and cost.

    Args:
        top: how many classes, or architectures, to give.
        out: a picture of a run's search that is written.
    """
    if top < 1:
        raise UsageError(f"top {top}: give 1 or more")
    if not inputs:
        cost = cost_of(model)
        text = f"{describe_network(model)}\n{cost.parameters:,} parameters, {cost.flops:,} multiply-adds an image"
        yield Prediction("", text, {"parameters": cost.parameters, "flops": cost.flops})
    runs = [name for name in inputs if (Path(name) / "recipe.json").exists()]
    for run in runs:
        yield report_run(run, model, top, out)
    if images := [name for name in inputs if name not in runs]:
        yield from classify(model, images, top=top)
