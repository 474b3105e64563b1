"""Batch norms into the convolutions before them (Jacob et al. 2017, Sec. 3.2, https://arxiv.org/abs/1712.05877).

In evaluation a batch norm is a scale and a shift for each channel, which the kernel and bias before it can carry:

$$ \\gamma \\frac{(w * x + b) - \\mu}{\\sqrt{\\sigma^2 + \\epsilon}} + \\beta
   = \\frac{\\gamma}{\\sqrt{\\sigma^2 + \\epsilon}} w * x + \\Big(\\beta + \\gamma \\frac{b - \\mu}{\\sqrt{\\sigma^2 + \\epsilon}}\\Big) $$

Which batch norm follows which convolution is seen by running the network once, so that nothing is asked of how it is
written: a pair is one where the norm's input is the very tensor that the convolution gave, and nothing else used it.
"""

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
BEFORE = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED, nn.Linear)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class _Uses(TorchFunctionMode):
    """Counts the operations that take each watched tensor, except while a norm is at work on it.

    What gives neither a tensor nor None (as an assignment does) asked for a shape or a dtype.
    """

    def __init__(self) -> None:
        super().__init__()
        self.watched: dict[int, Tensor] = {}  # held, so that an identity is not given twice
        self.count: Counter[int] = Counter()
        self.inside = False

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if not self.inside and (result is None or any(isinstance(x, Tensor) for x in tree_leaves(result))):
            used = {id(x) for x in tree_leaves((args, kwargs or {})) if isinstance(x, Tensor)}
            self.count.update(used & set(self.watched))
        return result


def _foldable(layer: nn.Module, output: Tensor) -> bool:
    """Whether a norm's channels are the layer's: not for positions of a linear layer's output, nor a transposed
    convolution's groups."""
    return (
        output.ndim == 2 if isinstance(layer, nn.Linear) else not (isinstance(layer, TRANSPOSED) and layer.groups > 1)
    )


def norm_pairs(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None) -> list[tuple[str, str]]:
    """Names (convolution or linear layer, batch norm) of what can be folded, as one run in evaluation shows it."""
    uses = _Uses()
    names = {id(module): name for name, module in model.named_modules()}
    calls: Counter[str] = Counter()
    made: dict[int, str] = {}  # a tensor's identity -> the layer that gave it
    pairs: dict[str, str] = {}

    def after(module: nn.Module, _: Any, output: Tensor) -> None:
        calls[names[id(module)]] += 1
        made[id(output)] = names[id(module)]
        uses.watched[id(output)] = output

    def before_norm(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        uses.inside = True
        name = names[id(module)]
        calls[name] += 1
        layer = made.get(id(inputs[0])) if inputs else None
        if layer is not None and _foldable(model.get_submodule(layer), inputs[0]):
            pairs[name] = layer
            uses.count[id(inputs[0])] += 1

    def after_norm(*_: Any) -> None:
        uses.inside = False

    with ExitStack() as hooks, torch.no_grad():
        for module in model.modules():
            # A subclass may do something else; a hook or a parametrised weight would be lost.
            plain = (
                not module._forward_hooks and not module._forward_pre_hooks and not hasattr(module, "parametrizations")
            )
            if type(module) in BEFORE and plain:
                hooks.callback(module.register_forward_hook(after).remove)
            elif type(module) in NORMS and plain and module.running_mean is not None:
                hooks.callback(module.register_forward_pre_hook(before_norm).remove)
                hooks.callback(module.register_forward_hook(after_norm).remove)
        with uses:
            output = model(*args, **(kwargs or {}))
    kept = {id(x) for x in tree_leaves(output)}
    used = {made[i]: uses.count[i] for i in made if i not in kept}
    return [(layer, norm) for norm, layer in pairs.items() if calls[layer] == calls[norm] == 1 and used.get(layer) == 1]


def _fused(layer: nn.Module, norm: nn.Module) -> nn.Module:
    if isinstance(layer, nn.Linear):
        return fuse_linear_bn_eval(layer, norm)
    return fuse_conv_bn_eval(layer, norm, transpose=isinstance(layer, TRANSPOSED))


def fold_batch_norms(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None
) -> tuple[nn.Module, int]:
    """A copy of a network in evaluation mode with its batch norms folded, and how many were.

    A batch norm without a layer of its own before it stays. The outputs are equal up to rounding (float64: 1e-9).
    """
    folded = copy.deepcopy(model).eval()
    pairs = norm_pairs(folded, args, kwargs)
    for layer, norm in pairs:
        folded.set_submodule(layer, _fused(folded.get_submodule(layer), folded.get_submodule(norm)))
        folded.set_submodule(norm, nn.Identity())
    for parameter in folded.parameters():
        parameter.requires_grad_(False)
    return folded, len(pairs)
