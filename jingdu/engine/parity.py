"""The parity sample: what a network answered when it was saved, and must answer when its weights are loaded.

A checksum says that the bytes are the same. It cannot say that they mean the same: a square matrix that a
converter transposed, or a module whose code has changed, has the right keys and shapes. So a checkpoint holds a
small input of each network (its first in the run, two rows) and some values of its output and of its layers'.
"""

from collections.abc import Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from jingdu.engine.state import read_tree
from jingdu.errors import Refused
from jingdu.limits import PARITY_BYTES, PARITY_INSIDE, PARITY_TOLERANCE, PARITY_VALUES

FILE = "parity.safetensors"
Sample = dict[str, Any]
"""{"inputs": [positional, by name]}; in a file also "output", a list of tensors, and "inside", by layer."""


def watch(networks: Mapping[str, Any], samples: dict[str, Sample]) -> None:
    """Keep the first input that each network gets, cut to two rows, in `samples`."""
    for name, network in networks.items():
        if isinstance(network, nn.Module) and name not in samples:
            _watch(name, network, samples)


def _watch(name: str, network: nn.Module, samples: dict[str, Sample]) -> None:
    def first(module: nn.Module, positional: tuple[Any, ...], by_name: dict[str, Any]) -> None:
        handle.remove()
        inputs = tree_map(_cut, [list(positional), by_name])
        leaves = tree_leaves(inputs)
        size = sum(x.numel() * x.element_size() for x in leaves if isinstance(x, Tensor))
        if size <= PARITY_BYTES and all(x is None or isinstance(x, Tensor | bool | int | float | str) for x in leaves):
            samples.setdefault(name, {"inputs": inputs})

    handle = network.register_forward_pre_hook(first, with_kwargs=True)


def _cut(value: Any) -> Any:
    return value[:2].detach().clone().cpu() if isinstance(value, Tensor) and value.ndim else value


def answers(networks: Mapping[str, Any], samples: Mapping[str, Sample]) -> dict[str, Sample]:
    """The samples with the networks' outputs; a network that cannot be asked alone has none."""
    found = {}
    for name, sample in samples.items():
        try:
            output, inside = _ask(networks[name], sample)
        except (RuntimeError, ValueError, TypeError, IndexError, KeyError):  # two rows of its input are no input
            continue
        if output and all(x.isfinite().all() for x in output):
            inside = {part: x for part, x in inside.items() if x.isfinite().all()}
            found[name] = {**sample, "output": output, "inside": inside}
    return found


def check(network: nn.Module, sample: Sample, where: str) -> None:
    """Raises Refused unless the network and its layers give the outputs that are in the sample."""
    try:
        found, inside = _ask(network, sample)
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError) as error:
        raise Refused(f"{where}: the network cannot read the input that it was saved with ({error})") from None
    pairs = [(f"those of {part}", inside.get(part), x) for part, x in sample.get("inside", {}).items()]
    pairs += [("its outputs", x, y) for x, y in zip_longest(found, sample["output"])]
    for what, x, y in pairs:  # in the order in which they were computed
        if x is None or y is None or x.shape != y.shape:
            how = f"{what} have other shapes"
        elif (distance := _distance(x, y)) > PARITY_TOLERANCE:
            how = f"{what} differ by {distance:.2g} of the largest"
        else:
            continue
        raise Refused(
            f"{where}: this is not the network that was saved, {how}: a tensor was transposed or changed after it was "
            "saved, or the network's code has changed since"
        )


def check_all(networks: Mapping[str, Any], checkpoint: Path) -> None:
    """`check` each network whose answers a checkpoint holds."""
    file = checkpoint / FILE
    for name, sample in read_tree(file).items() if file.exists() else ():
        check(networks[name], sample, f"{checkpoint}: {name}")


def _distance(x: Tensor, y: Tensor) -> float:
    worst = (x - y).abs().max() / y.abs().max().clamp_min(1e-12)
    return float(worst.nan_to_num(nan=torch.inf))


def _ask(network: nn.Module, sample: Sample) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Some values of each output in eval mode, with the same random numbers every time; and of each layer's first one.

    A layer with weights answers for itself: what follows it may hardly depend on it.
    """
    place = next(network.parameters(), torch.zeros(()))
    positional, by_name = tree_map(lambda x: _move(x, place), sample["inputs"])
    modes = [(module, module.training) for module in network.modules()]
    inside: dict[str, Tensor] = {}

    def hear(name: str, output: Any) -> None:
        if name not in inside and (values := _some(output, PARITY_INSIDE)):
            inside[name] = values[0]

    handles = [
        module.register_forward_hook(lambda _m, _x, output, name=name: hear(name, output))
        for name, module in network.named_modules()
        if name and next(module.parameters(recurse=False), None) is not None
    ]
    network.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            output = network(*positional, **by_name)
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes:
            module.training = training
    return _some(output, PARITY_VALUES), inside


def _some(output: Any, count: int) -> list[Tensor]:
    flat = [x.detach().double().flatten().cpu() for x in tree_leaves(output) if isinstance(x, Tensor) and x.numel()]
    return [x[torch.linspace(0, len(x) - 1, min(len(x), count)).long()] for x in flat]


def _move(value: Any, place: Tensor) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.to(place.device, place.dtype if value.is_floating_point() else value.dtype)
