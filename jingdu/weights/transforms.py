"""How a tensor of another library becomes ours, and back: small invertible steps, written as text.

"transpose"                                       a matrix stored as [in, out]
"reshape((-1, 25088), (-1, 512, 7, 7))"           their shape, our shape; -1 is any size
"permute(3, 2, 0, 1) | flip(1)"                   steps apply from left to right
"concatenate(0)"                                  several of theirs, of one shape, are one of ours
"sum"                                             the same, added up; back, the first is ours and the others are zero
"same"                                            copies of one tensor, which must be equal
"flatten(1, 64)"                                  two of their axes, the second of 64, are our axis 1
"split(0)"                                        one of theirs is several of ours, in equal parts
"""

import ast
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Tensors = list[Tensor]


def _equal_parts(tensor: Tensor, parts: int, axis: int) -> Tensors:
    if tensor.shape[axis] % parts:
        raise ValueError(f"axis {axis} of {list(tensor.shape)} does not divide into {parts} equal parts")
    return list(tensor.chunk(parts, axis))


def _reshape(tensor: Tensor, was: Sequence[int], becomes: Sequence[int]) -> Tensor:
    """A transposed matrix has as many numbers and would become another one: the shape before must be the stated."""
    if len(was) != tensor.ndim or any(n not in (-1, size) for n, size in zip(was, tensor.shape, strict=True)):
        raise ValueError(f"a tensor of shape {list(was)} was expected, not {list(tensor.shape)}")
    return tensor.reshape(becomes)


def _concatenate(tensors: Tensors, axis: int) -> Tensor:
    if any(tensor.shape != tensors[0].shape for tensor in tensors):
        raise ValueError(f"parts of different shapes: {[list(tensor.shape) for tensor in tensors]}")
    return torch.cat(tensors, axis)


def _one(tensors: Tensors) -> Tensor:
    if any(not tensor.is_meta and not torch.equal(tensor, tensors[0]) for tensor in tensors[1:]):
        raise ValueError("copies of one tensor differ")
    return _concatenate([tensor[None] for tensor in tensors], 0)[0]


def _reorder(tensor: Tensor, axis: int, order: Sequence[int]) -> Tensor:
    """Equal parts of an axis in another order, as the gates of an LSTM."""
    parts = _equal_parts(tensor, len(order), axis)
    return torch.cat([parts[i] for i in order], axis)


def _inverse(order: Sequence[int]) -> list[int]:
    return sorted(range(len(order)), key=lambda i: order[i])


# Name -> (theirs to ours, ours to theirs), on one tensor.
_EACH: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "transpose": (lambda x: x.mT, lambda x: x.mT),
    "permute": (lambda x, *axes: x.permute(axes), lambda x, *axes: x.permute(_inverse(axes))),
    "reshape": (_reshape, lambda x, theirs, ours: _reshape(x, ours, theirs)),
    "flatten": (lambda x, axis, size: x.flatten(axis, axis + 1), lambda x, axis, size: x.unflatten(axis, (-1, size))),
    "flip": (lambda x, axis: x.flip(axis), lambda x, axis: x.flip(axis)),
    "unsqueeze": (lambda x, axis: x.unsqueeze(axis), lambda x, axis: x.squeeze(axis)),
    "squeeze": (lambda x, axis: x.squeeze(axis), lambda x, axis: x.unsqueeze(axis)),
    "reorder": (_reorder, lambda x, axis, order: _reorder(x, axis, _inverse(order))),
}


@dataclass(frozen=True)
class Transform:
    """Steps between `theirs` tensors and `ours`; without any, the tensors are the same."""

    text: str = ""
    theirs: int = 1
    """How many of their tensors are read."""
    ours: int = 1
    """How many of ours they become."""

    def __post_init__(self) -> None:
        steps = [name for name, _ in self._steps()]
        joins = {("concatenate", "sum", "same"): self.theirs > 1, ("split",): self.ours > 1}
        for names, needed in joins.items():
            if sum(map(steps.count, names)) != int(needed):
                names = " or ".join(map(repr, names))
                raise ValueError(f"{self.theirs} of theirs for {self.ours} of ours: {names} in {self.text!r}?")
        if self.theirs > 1 and self.ours > 1:
            raise ValueError("several of theirs cannot become several of ours in one rule")

    def _steps(self) -> list[tuple[str, tuple[Any, ...]]]:
        return [_parse(step) for step in self.text.split("|")] if self.text.strip() else []

    def load(self, theirs: Tensors) -> Tensors:
        """Our tensors from theirs. Raises ValueError or RuntimeError where the shapes do not fit."""
        tensors = list(theirs)
        for name, arguments in self._steps():
            if name == "concatenate":
                tensors = [_concatenate(tensors, *arguments)]
            elif name == "sum":
                tensors = [torch.stack(tensors).sum(0)]
            elif name == "same":
                tensors = [_one(tensors)]
            elif name == "split":
                tensors = _equal_parts(tensors[0], self.ours, *arguments)
            else:
                tensors = [_EACH[name][0](tensor, *arguments) for tensor in tensors]
        return tensors

    def export(self, ours: Tensors) -> Tensors:
        """Their tensors from ours: the inverse of `load`."""
        tensors = list(ours)
        for name, arguments in reversed(self._steps()):
            if name == "concatenate":
                tensors = _equal_parts(tensors[0], self.theirs, *arguments)
            elif name == "sum":
                tensors = [tensors[0], *(torch.zeros_like(tensors[0]) for _ in range(self.theirs - 1))]
            elif name == "same":
                tensors *= self.theirs
            elif name == "split":
                tensors = [_concatenate(tensors, *arguments)]
            else:
                tensors = [_EACH[name][1](tensor, *arguments) for tensor in tensors]
        return tensors


SAME = Transform()
"""Their tensor is ours as it is."""


def _parse(step: str) -> tuple[str, tuple[Any, ...]]:
    """`name` or `name(literal, ...)`. Raises ValueError for a step that does not exist."""
    name, bracket, rest = step.strip().partition("(")
    joins = ("concatenate", "sum", "same", "split")
    if name not in {*_EACH, *joins}:
        raise ValueError(f"unknown transform {step.strip()!r}: use {', '.join([*_EACH, *joins])}")
    if not bracket:
        return name, ()
    call = ast.parse(f"f({rest}", mode="eval").body
    if not isinstance(call, ast.Call) or call.keywords:
        raise ValueError(f"cannot read transform {step.strip()!r}: write name(value, ...)")
    return name, tuple(ast.literal_eval(argument) for argument in call.args)
