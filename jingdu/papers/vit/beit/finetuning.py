"""Fine-tuning (Section 2.5, 3.1): a pre-trained network learns a task, its lower layers at lower rates."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import jingdu
from jingdu import canon
from jingdu.engine.loop import load_system
from jingdu.errors import UsageError
from jingdu.papers.vit.deit import MixedClassification

__all__ = ["FineTuning", "layer_depths", "layer_rates", "take_trained", "trained_network"]

FRESH = ("norm", "head")
"""Parts of a network that a task starts anew: the norm behind the mean is of another thing than that of the tokens."""


def layer_depths(network: nn.Module) -> dict[str, int]:
    """The depth of each parameter: 0 before the blocks, 1, 2, ... in them, and one more behind the last (optim_factory.py).

    Before the blocks is what the network lists before them: its tokens, positions and patches. A network of another
    shape than a stack `blocks` says itself how deep a parameter is: `layer_depth(name)`.

    Raises UsageError for a network with neither.
    """
    names = [name for name, _ in network.named_parameters()]
    if (own := getattr(network, "layer_depth", None)) is not None:
        return {name: own(name) for name in names}
    if not (blocks := [name for name in names if name.startswith("blocks.")]):
        raise UsageError(
            f"{type(network).__name__} has no blocks to tell deep layers from others, and no layer_depth(name)"
        )
    before = names[: names.index(blocks[0])]
    depth = {name: int(name.split(".")[1]) + 1 for name in blocks}
    last = max(depth.values()) + 1
    return {name: 0 if name in before else depth.get(name, last) for name in names}


def layer_rates(depths: Mapping[str, int], decay: float) -> dict[str, float]:
    r"""Layer-wise decay: a parameter at depth $d$ of $D$ learns at $\text{decay}^{D - d}$ of the stage's rate.

    Args:
        depths: of each parameter, as `layer_depths` gives them.
        decay: from one layer to that below it; 1 for none.
    """
    deepest = max(depths.values())
    return {name: decay ** (deepest - depth) for name, depth in depths.items()}


@torch.no_grad()
def take_trained(network: nn.Module, trained: nn.Module, fresh: Sequence[str] = FRESH) -> None:
    """Give a network the weights of a trained one, but for the parts `fresh`.

    A trained network whose encoder has other names, or which must be changed for a task, gives by `handed_on()` its
    tensors by the names of the network that learns the task. What `network.resized` names may have another size.

    Raises UsageError where a tensor is not there, or has another shape.
    """
    found = trained.handed_on() if hasattr(trained, "handed_on") else trained.state_dict()
    resized: Mapping[str, Callable[[Tensor], Tensor]] = getattr(network, "resized", {})
    ready = {}
    for name, new in network.state_dict().items():
        if name.partition(".")[0] in fresh:
            continue
        if (old := found.get(name)) is None:
            raise UsageError(f"the network to start from has no {name}: is it one of this kind?")
        old = old if old.shape == new.shape or name not in resized else resized[name](old)
        if old.shape != new.shape:
            raise UsageError(
                f"{name} of the network to start from has another shape: {list(new.shape)} here, {list(old.shape)} there"
            )
        ready[name] = (new, old)
    for new, old in ready.values():
        new.copy_(old)


def trained_network(start: str, previous: Mapping[str, Any], paper: str) -> nn.Module:
    """The network that `start` names: an earlier stage, the folder of a run, or weights as `create` takes them.

    Args:
        start: a name, a folder, or a source of weights.
        previous: the finished stages, by name.
        paper: whose weights they are.

    Raises UsageError for what is none of these.
    """
    if start in previous:
        return previous[start].network
    if (Path(start) / "recipe.json").exists():
        return load_system(Path(start)).network
    if not Path(start).exists() and ":" not in start:
        raise UsageError(f"no earlier stage {start!r}, and no run folder or weights: there are {sorted(previous)}")
    return jingdu.create(paper, weights=start)


class FineTuning(MixedClassification):
    """A pre-trained network learns to name classes, each layer at a rate of its own.

    Args:
        network: with a head for the task.
        start: what to begin from: the name of an earlier stage, the folder of a run, or weights; None: from nothing.
        layer_decay: of the rate from each layer to that below it; 1 for none.
        mixup: see `MixedClassification`; images are not mixed by default.
        cutmix: the same.
        label_smoothing: share of a label that is spread over all classes.
        fresh: parts of the network that are not taken from `start`.
        frozen: train the fresh parts alone.
        paper: whose weights `start` are; by default of the network's paper.
        previous: the finished stages, by name.
    """

    def __init__(
        self, network: nn.Module, start: str | None = None, layer_decay: float | int = 1.0, mixup: float | int = 0.0,
        cutmix: float | int = 0.0, label_smoothing: float | int = 0.0, fresh: Sequence[str] = FRESH,
        frozen: bool = False, paper: str | None = None, previous: Mapping[str, Any] | None = None,
    ):  # fmt: skip
        super().__init__(network, mixup, cutmix, label_smoothing=label_smoothing)
        if not 0 < layer_decay <= 1:
            raise UsageError(f"layer-decay is {layer_decay}: it must be above 0 and at most 1")
        if start is not None:
            owner = paper or canon.resolve(network.origin.variant).paper.key
            take_trained(network, trained_network(start, previous or {}, owner), fresh)
        if frozen:
            for name, p in network.named_parameters():
                p.requires_grad_(name.partition(".")[0] in fresh)
        self.rates = {}
        """Multiples of the stage's rate, which the engine reads."""
        if layer_decay != 1:
            rates = layer_rates(layer_depths(network), layer_decay)
            self.rates = {f"network.{name}": rate for name, rate in rates.items()}
