"""Which samples are held out for testing where a data set does not say."""

import hashlib


def _place(name: str) -> float:
    """A number in [0, 1) that is a function of `name` alone, whatever the machine and the Python version."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64


def held_out(name: str, share: float = 0.1) -> bool:
    """Whether the document or file `name` belongs to the test split.

    Adding or removing others moves no sample from one split to the other.
    """
    return _place(name) < share


def split_names(names: list[str], split: str, share: float = 0.1) -> list[str]:
    """The names of one split, in their order: about `share` of them are for testing, at least one of two or more.

    Where no name falls into a split, the one nearest to it does; a single name is for training.
    """
    test = {name for name in names if held_out(name, share)} or {min(names, key=_place, default="")}
    if names:
        test -= {max(names, key=_place)}
    return [name for name in names if (name in test) == (split == "test")]
