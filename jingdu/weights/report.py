"""Sentences about weights that do not fit a network."""

from collections.abc import Sequence
from difflib import get_close_matches

SHOWN = 4
"""How many names of each kind a message gives."""


def printable(name: object) -> str:
    """A name from a file, safe to print: short, and without control characters."""
    text = str(name)
    text = text if len(text) <= 120 else f"{text[:117]}..."
    return text if text.isprintable() else ascii(text)


def some(names: Sequence[str]) -> str:
    """The first few names of a list, and how many more there are."""
    more = f", ... ({len(names) - SHOWN} more)" if len(names) > SHOWN else ""
    return ", ".join(map(printable, names[:SHOWN])) + more


def nearest(name: str, names: Sequence[str]) -> str:
    """The most similar of the names in a file, in brackets; nothing where none is similar."""
    short = [other for other in names if len(other) < 200][:500]
    near = get_close_matches(name, short, n=1, cutoff=0.6)
    return f" (nearest in the file: {printable(near[0])})" if near else ""


def shapes_message(wrong: Sequence[tuple[str, Sequence[int], Sequence[int]]]) -> str:
    """Tensors of another shape, as (our name, wanted, got), and the remedy for a head of another size."""
    shown = [f"{name} (the network has {list(want)}, the file {list(got)})" for name, want, got in wrong[:SHOWN]]
    more = f", ... ({len(wrong) - SHOWN} more)" if len(wrong) > SHOWN else ""
    text = f"{len(wrong)} of another shape: {', '.join(shown)}{more}"
    heads = {(want[0], got[0]) for _, want, got in wrong if want and got and list(want[1:]) == list(got[1:])}
    if len(wrong) <= 2 and len(heads) == 1 and all(want and list(want[1:]) == list(got[1:]) for _, want, got in wrong):
        ((_, count),) = heads
        text += f". If this is a classifier, the file's has {count} outputs: pass num_classes={count}"
    return text
