"""Which part each name plays in Python's code: functions of the standard library with gold labels, from `ast`."""

import ast
import textwrap
from collections.abc import Iterator
from typing import Literal

import numpy as np

from jingdu.data.base import Tensors
from jingdu.data.draws import Draws, permutation
from jingdu.data.embedded import stdlib
from jingdu.errors import UsageError

__all__ = ["ROLES", "Named", "name_roles", "roles_in"]

ROLES = ("definition", "argument", "call", "attribute", "store", "load")
"""The name of a function that is defined; a parameter, or an argument by name; what is called; an attribute that is
not called; a variable that is written or deleted; one that is read."""
Named = tuple[int, int, int]
"""First character of a name, the one after its last, and the number of its role."""
OF_A_MODULE = 8
"""The most functions that are taken from one module."""


def roles_in(source: str) -> list[Named]:
    """The names in a piece of code and their roles, in their order.

    Names that are none of these (imports, classes that are defined) are left out. Raises SyntaxError.
    """
    starts, at = [], 0
    for line in source.split("\n"):  # as ast counts them
        starts.append((at, line.encode()))
        at += len(line) + 1

    def place(line: int, column: int) -> int:
        start, text = starts[line - 1]
        return start + len(text[:column].decode())

    found: dict[int, tuple[str, str]] = {}
    tree = ast.parse(source)
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = place(node.lineno, node.col_offset)
            found[source.index(node.name, source.index("def", first) + 3)] = node.name, "definition"
        elif isinstance(node, ast.arg) or (isinstance(node, ast.keyword) and node.arg):
            found[place(node.lineno, node.col_offset)] = str(node.arg), "argument"
        elif isinstance(node, ast.Attribute):
            last = place(node.end_lineno or node.lineno, node.end_col_offset or 0)
            found[last - len(node.attr)] = node.attr, "call" if id(node) in called else "attribute"
        elif isinstance(node, ast.Name):
            role = "call" if id(node) in called else "load" if isinstance(node.ctx, ast.Load) else "store"
            found[place(node.lineno, node.col_offset)] = node.id, role
    # A name within an f-string has no place of its own before Python 3.12.
    return [
        (start, start + len(name), ROLES.index(role))
        for start, (name, role) in sorted(found.items())
        if source[start : start + len(name)] == name
    ]


def _undocumented(source: str, longest: int) -> Iterator[str]:
    """The functions of a module that have three lines or more, no documentation and at most `longest` characters."""
    lines = source.split("\n")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(node) is None:
            text = textwrap.dedent("\n".join(lines[node.lineno - 1 : node.end_lineno]))
            # Where a string or a continued line stands further left, what is left cannot be parsed alone.
            whole = text.startswith(("def ", "async def "))
            if whole and node.end_lineno - node.lineno >= 2 and len(text) <= longest and "\t" not in text:
                yield text


def name_roles(
    split: Literal["train", "test"], labelled: int = 2000, tested: int = 8000, fold: int = 0, share: float = 0.3,
    longest: int = 400,
) -> Tensors:  # fmt: skip
    """Functions of the standard library: `text`, and `names`, a list of `Named` for each.

    The test split is of the modules that `stdlib(share=...)` holds out.

    Args:
        split: train or test.
        labelled: names that there are to learn from.
        tested: names that there are to be tested on, the same for every fold.
        fold: which functions there are to learn from.
        share: of the library's modules that are held out.
        longest: characters of a function.

    Raises UsageError where the library has fewer names.
    """
    documents = stdlib(split, share=share)
    wanted, seed = (labelled, fold) if split == "train" else (tested, 0)
    chosen: list[tuple[str, list[Named]]] = []
    count = 0
    for row in permutation(seed, 0, len(documents)).tolist():
        (source,) = documents.batch(np.array([row]), Draws(0, 0, [row]))["text"]
        functions = list(_undocumented(source, longest))
        for number in permutation(seed, 1 + row, len(functions))[:OF_A_MODULE]:
            names = roles_in(functions[number])
            if names and count < wanted:
                chosen.append((functions[number], names))
                count += len(names)
        if count >= wanted:
            break
    if count < wanted:
        raise UsageError(f"this Python's library has {count} such names for the {split} split, not {wanted}")
    return Tensors({"text": [text for text, _ in chosen], "names": [names for _, names in chosen]}, ROLES)
