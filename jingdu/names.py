"""Calls written as text: how recipes, flags and run folders name functions, data and networks.

`"resnet20_cifar(width=8)"`, `"alexnet.pca_colour_shift(std=0.1)"`, `"scenes(size=32)"`: a dotted
name with literal keyword arguments in Python's own notation. Text can be stored, compared and
typed on a command line; nothing in it is ever executed.
"""

import ast
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jingdu.errors import UsageError


@dataclass(frozen=True)
class Call:
    """A parsed call: a dotted or slashed `name` and its literal keyword arguments."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> "Call":
        """Read `name` or `name(key=literal, ...)`. Raises UsageError for anything else."""
        name, bracket, rest = text.strip().partition("(")
        if not bracket:
            return cls(name)
        try:
            node = ast.parse(f"f({rest}", mode="eval").body
            if not isinstance(node, ast.Call) or node.args or any(k.arg is None for k in node.keywords):
                raise ValueError
            return cls(name, {str(k.arg): ast.literal_eval(k.value) for k in node.keywords})
        except (SyntaxError, ValueError):
            raise UsageError(f"cannot read {text!r}: write name or name(key=value, ...) with plain values") from None

    def __str__(self) -> str:
        arguments = ", ".join(f"{key}={value!r}" for key, value in self.arguments.items())
        return f"{self.name}({arguments})" if arguments else self.name

    def with_arguments(self, **arguments: Any) -> "Call":
        return Call(self.name, {**self.arguments, **arguments})

    def with_defaults(self, **arguments: Any) -> "Call":
        return Call(self.name, {**arguments, **self.arguments})
