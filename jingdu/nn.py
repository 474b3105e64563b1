"""The few helpers that no paper introduced."""

from collections.abc import Callable

from torch import nn


def each(module: nn.Module, kinds: type | tuple[type, ...], do: Callable[[nn.Module], None]) -> None:
    """Call `do` on every submodule of the given kinds."""
    for child in module.modules():
        if isinstance(child, kinds):
            do(child)
