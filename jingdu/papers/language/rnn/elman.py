"""The paper's own sequences: the exclusive-or in time, and sentences of a small grammar."""

from typing import Literal

import torch

from jingdu.data.base import Tensors
from jingdu.data.draws import Draws

Split = Literal["train", "test"]

LEXICON = {
    "NOUN-HUM": ("man", "woman", "boy", "girl"),
    "NOUN-ANIM": ("cat", "dog", "mouse"),
    "NOUN-INANIM": ("book", "rock", "car"),
    "NOUN-AGRESS": ("dragon", "monster", "lion"),
    "NOUN-FRAG": ("glass", "plate"),
    "NOUN-FOOD": ("cookie", "bread", "sandwich"),
    "VERB-INTRAN": ("think", "sleep", "exist"),
    "VERB-TRAN": ("see", "chase", "like"),
    "VERB-AGPAT": ("move", "break"),
    "VERB-PERCEPT": ("smell", "see"),
    "VERB-DESTROY": ("break", "smash"),
    "VERB-EAT": ("eat",),
}
"""Table 3, whose two examples a class are filled up by the 29 words of Figure 7."""

TEMPLATES = (
    "NOUN-HUM VERB-EAT NOUN-FOOD", "NOUN-HUM VERB-PERCEPT NOUN-INANIM", "NOUN-HUM VERB-DESTROY NOUN-FRAG",
    "NOUN-HUM VERB-INTRAN", "NOUN-HUM VERB-TRAN NOUN-HUM", "NOUN-HUM VERB-AGPAT NOUN-INANIM", "NOUN-HUM VERB-AGPAT",
    "NOUN-ANIM VERB-EAT NOUN-FOOD", "NOUN-ANIM VERB-TRAN NOUN-ANIM", "NOUN-ANIM VERB-AGPAT NOUN-INANIM",
    "NOUN-ANIM VERB-AGPAT", "NOUN-INANIM VERB-AGPAT", "NOUN-AGRESS VERB-DESTROY NOUN-FRAG",
    "NOUN-AGRESS VERB-EAT NOUN-HUM", "NOUN-AGRESS VERB-EAT NOUN-ANIM", "NOUN-AGRESS VERB-EAT NOUN-FOOD",
)  # fmt: skip
"""Table 4."""


def sentences(split: Split, count: int = 10_000) -> str:
    """`count` sentences of two or three words, one after the other without a mark between them (Table 5).

    The test split has a tenth as many, of its own random draws.
    """
    number = count if split == "train" else max(count // 10, 1)
    draws = Draws(1990, 0 if split == "train" else 1, range(number))
    words = []
    for template, places in zip(draws.integers(len(TEMPLATES)).tolist(), draws.uniform(3).tolist(), strict=True):
        classes = TEMPLATES[template].split()
        words += [LEXICON[name][int(place * len(LEXICON[name]))] for name, place in zip(classes, places, strict=False)]
    return " ".join(words)


def xor(split: Split, count: int = 2000, bits: int = 30, length: int | None = None) -> Tensors:
    """The exclusive-or in time: two random bits, their exclusive-or, two random bits, ...: `tokens`, 0 or 1.

    Args:
        split: train or test (a tenth as many).
        count: training sequences; Elman's one sequence had 3,000 bits.
        bits: of a sequence, a multiple of 3.
        length: cut them into windows that predict this many bits each; None is whole sequences, whose first bit has
            nothing before it and is not predicted.

    Raises ValueError for bits that are no multiple of 3.
    """
    if bits < 3 or bits % 3:
        raise ValueError(f"xor(bits={bits}): give a multiple of 3, two random bits and their exclusive-or each")
    number = count if split == "train" else max(count // 10, 1)
    free = Draws(1990, 2 if split == "train" else 3, range(number)).integers(2, bits // 3, 2)
    tokens = torch.cat([free, free.sum(-1, keepdim=True) % 2], -1).flatten(1)
    if length is not None:
        tokens = tokens.unfold(1, length + 1, 1).flatten(0, 1)
    return Tensors({"tokens": tokens})
