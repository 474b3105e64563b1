"""The space of cells (NASNet, Section 3): a normal and a reduction cell, of which networks of any depth are built."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from jingdu.errors import UsageError

from .cells import OPERATIONS, Genotype, NASNet
from .space import Choice, SearchSpace

SIDES = ("left", "right")


def genotype_of(values: Mapping[str, Any], cell: str, pairs: int) -> Genotype:
    """The cell "normal" or "reduction" of an architecture's values; what no pair reads goes out."""
    made = []
    for i in range(pairs):
        left, right = ((values[f"{cell}_{i}_{side}_state"], values[f"{cell}_{i}_{side}"]) for side in SIDES)
        made.append((*left, *right))
    read = {state for a, _, b, _ in made for state in (a, b)}
    # One of the two inputs that nobody reads is not needed either, where pairs go out.
    out = tuple(state for state in range(2, pairs + 2) if state not in read)
    return Genotype(tuple(made), out)


def _cell_network(values: dict[str, Any], pairs: int, cells: Sequence[str], options: Mapping[str, Any]) -> NASNet:
    found = {cell: genotype_of(values, cell, pairs) for cell in cells}
    return NASNet(found["normal"], found.get("reduction", found["normal"]), **options)


def _cell_arguments(
    values: dict[str, Any], pairs: int, cells: Sequence[str], options: Mapping[str, Any]
) -> dict[str, Any]:
    """The same network's arguments; a cell is its pairs and what goes out."""
    plain = dict(options)
    for cell in ("normal", "reduction"):
        genotype = genotype_of(values, cell if cell in cells else "normal", pairs)
        plain[cell] = (genotype.pairs, genotype.out)
    return plain


def _sorted_sides(code: tuple[int, ...]) -> tuple[int, ...]:
    """The sides of a pair are added, so their order says nothing: the smaller (state, operation) comes first."""
    sides = [code[i : i + 2] for i in range(0, len(code), 2)]
    return tuple(number for i in range(0, len(sides), 2) for side in sorted(sides[i : i + 2]) for number in side)


def _cell_paths(values: dict[str, Any], pairs: int, cells: Sequence[str]) -> set[tuple[str, ...]]:
    """From each input of each cell to its output, the operations on the way."""
    found: set[tuple[str, ...]] = set()
    for cell in cells:
        genotype = genotype_of(values, cell, pairs)
        ways: list[set[tuple[str, ...]]] = [{(cell, "before")}, {(cell, "last")}]
        for a, first, b, second in genotype.pairs:
            ways.append({(*way, first) for way in ways[a]} | {(*way, second) for way in ways[b]})
        found |= set().union(*(ways[state] for state in genotype.out))
    return found


def cell_space(
    pairs: int = 5, operations: Sequence[str] = OPERATIONS, reduction: bool = True, image: Sequence[int] = (3, 32, 32),
    **options: Any,
) -> SearchSpace:  # fmt: skip
    """Cells of `pairs` pairs, in networks whose size the search does not choose.

    Args:
        pairs: of each cell; 5 in NASNet.
        operations: from `OPERATIONS`.
        reduction: search a reduction cell too; else the normal one also reduces.
        image: its shape [channels, height, width].
        options: arguments of `NASNet`: repeats, width, stem, num_classes...
    """
    if pairs < 1 or not set(operations) <= set(OPERATIONS):
        raise UsageError(f"{pairs} pairs of {tuple(operations)}: one or more, of {OPERATIONS}")
    cells = ("normal", "reduction") if reduction else ("normal",)
    choices = []
    for number, cell in enumerate(cells):
        for i in range(pairs):
            layer = number * pairs + i
            for side in SIDES:
                choices.append(Choice(f"{cell}_{i}_{side}_state", tuple(range(i + 2)), kind="state", layer=layer))
                choices.append(Choice(f"{cell}_{i}_{side}", tuple(operations), kind="operation", layer=layer))
    arguments = {"stem": None, "repeats": 1, "width": 8, "num_classes": 10, "in_channels": image[0], **options}
    return SearchSpace(
        choices,
        partial(_cell_network, pairs=pairs, cells=cells, options=arguments),
        image=image,
        canonical=_sorted_sides,
        paths=partial(_cell_paths, pairs=pairs, cells=cells),
        arguments=partial(_cell_arguments, pairs=pairs, cells=cells, options=arguments),
    )
