"""Labelled text for the laptop: functions of the standard library, and which package each is from."""

import ast
import textwrap
from collections.abc import Iterator
from functools import cache
from typing import Literal

import numpy as np
import torch

from jingdu.data.base import Tensors
from jingdu.data.draws import Draws, permutation
from jingdu.data.embedded import stdlib
from jingdu.engine.contracts import Stage
from jingdu.engine.training import open_source
from jingdu.errors import Missing

from .tasks import single

__all__ = ["PACKAGES", "SHARE", "snippets"]

SHARE = 0.3
"""Of the library's modules that are held out, from the task and from what is read before it."""
PACKAGES = ("asyncio", "concurrent", "email", "idlelib", "importlib", "multiprocessing", "urllib", "xml")
"""Packages of the standard library, whose functions are told apart."""


def snippets(
    split: Literal["train", "test"],
    tokenizer: str,
    length: int = 96,
    labelled: int = 200,
    tested: int = 240,
    fold: int = 0,
) -> Tensors:
    """Functions of the standard library, and which of eight packages each is from: `tokens`, `mask`, `label`.

    The test split has functions of modules that `stdlib(share=0.3)` holds out, so that a network which has read its train
    split has not read them.

    Args:
        split: `labelled` functions of the other modules, or `tested` ones of those; as many of each package.
        tokenizer: the data whose tokenizer is used: "bpe.tokens(of='stdlib(share=0.3)', vocabulary=2048)".
        length: tokens that a function is cut to.
        labelled: how many functions there are to learn from.
        tested: how many there are to be tested on, the same for every fold.
        fold: which ones there are to learn from.

    Raises Missing where Python is installed without one of the packages.
    """
    words = open_source(tokenizer, "train", Stage()).tokenizer
    functions = _by_package(split)
    each_class = (labelled if split == "train" else tested) // len(PACKAGES)
    for name, texts in zip(PACKAGES, functions, strict=True):
        if len(texts) < each_class:
            raise Missing(f"this Python has {len(texts)} functions of {name} for the {split} split, not {each_class}")
    order = [permutation(fold if split == "train" else 0, label, len(f)) for label, f in enumerate(functions)]
    chosen = [(texts[i], label) for label, texts in enumerate(functions) for i in order[label][:each_class]]
    sequences = [single(words.encode(text, disallowed=())[: length - 2], words.n_vocab)[0] for text, _ in chosen]
    tokens = torch.zeros(len(chosen), 1, length, dtype=torch.int64)
    mask = torch.zeros_like(tokens, dtype=torch.bool)
    for row, sequence in enumerate(sequences):
        tokens[row, 0, : len(sequence)], mask[row, 0, : len(sequence)] = torch.tensor(sequence), True
    data = Tensors({"tokens": tokens, "mask": mask, "label": torch.tensor([label for _, label in chosen])}, PACKAGES)
    data.tokenizer = words
    return data


@cache
def _by_package(split: Literal["train", "test"]) -> list[list[str]]:
    """All functions of each of the packages."""
    documents = stdlib(split, share=SHARE)
    rows = [i for i, name in enumerate(documents.names) if name.partition("/")[0] in PACKAGES]
    found = documents.batch(np.array(rows), Draws(0, 0, rows))
    functions: list[list[str]] = [[] for _ in PACKAGES]
    for name, text in zip(found["name"], found["text"], strict=True):
        functions[PACKAGES.index(name.partition("/")[0])] += _functions(text)
    return functions


def _functions(source: str) -> Iterator[str]:
    """The statements of a module's functions, without their names and documentation, from three lines on."""
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node, clean=False) is not None else node.body
            if body and body[-1].end_lineno - body[0].lineno >= 2:
                yield textwrap.dedent("\n".join(lines[body[0].lineno - 1 : body[-1].end_lineno]))
