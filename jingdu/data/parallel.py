"""The user's own parallel text: two files whose lines are translations of each other."""

from pathlib import Path
from typing import Literal

from jingdu.data.base import Tensors
from jingdu.data.split import held_out
from jingdu.errors import BadInput, UsageError

__all__ = ["parallel"]


def _lines(path: str) -> list[str]:
    file = Path(path).expanduser()
    try:
        return [line.strip() for line in file.read_text("utf-8").split("\n")]
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(file, getattr(error, "strerror", None) or "not UTF-8") from None


def _pairs(source: str, target: str) -> list[tuple[str, str]]:
    """Lines that stand beside each other; where one is empty, both are left out."""
    left, right = _lines(source), _lines(target)
    if left and not left[-1]:  # what follows the last line end
        left, right = left[:-1], right[:-1] if right and not right[-1] else right
    if len(left) != len(right):
        raise BadInput(source, f"{len(left):,} lines, and {target} has {len(right):,}: each must translate the other")
    return [(a, b) for a, b in zip(left, right, strict=True) if a and b]


def parallel(
    split: Literal["train", "test"],
    source: str,
    target: str,
    languages: tuple[str, str] = ("source", "target"),
    test: tuple[str, str] | None = None,
    share: float | int = 0.01,
) -> Tensors:
    """Pairs of lines: `source`, `target`, `source_language`, `target_language`.

    Args:
        split: train or test.
        source: a UTF-8 file.
        target: a file whose n-th line translates the n-th of `source`.
        languages: their names.
        test: two such files to test on. None: a share of the lines, by what they say, so that repetitions of a line
            stay together.
        share: how much that is.

    Raises BadInput for files that cannot be read or have different numbers of lines; UsageError for an empty split.
    """
    if test is not None:
        pairs = _pairs(*((source, target) if split == "train" else test))
    else:
        pairs = [pair for pair in _pairs(source, target) if held_out(pair[0], share) == (split == "test")]
    if not pairs:
        raise UsageError(f"{source} and {target} have no pair of lines in the {split} split")
    return Tensors(
        {
            "source": [a for a, _ in pairs], "target": [b for _, b in pairs],
            "source_language": [languages[0]] * len(pairs), "target_language": [languages[1]] * len(pairs),
        }
    )  # fmt: skip
