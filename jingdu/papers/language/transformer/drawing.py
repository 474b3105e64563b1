"""A picture of what the decoder looks at."""

import warnings
from collections.abc import Sequence
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from jingdu.errors import Refused

__all__ = ["draw_attention"]

LARGEST_LABELS = 60
"""Tokens on a side from which on their names would hide each other."""


def _shown(character: str) -> str:
    return "\u2423" if character == " " else character if character.isprintable() else "\u00b7"


def draw_attention(
    path: Path, maps: Sequence[Float[Tensor, "heads time source"]], source: Sequence[str], target: Sequence[str]
) -> Path:
    """Draw the mean over heads of each layer's attention: a row for each token as it is predicted.

    Args:
        path: of the picture; its ending says the format.
        maps: one a layer, of one sentence.
        source: its tokens, as a person reads them.
        target: the translation's tokens, each of which a row predicts.

    Raises Refused where the picture cannot be written.
    """
    from matplotlib.figure import Figure

    source, target = (["".join(_shown(c) for c in token) for token in tokens] for tokens in (source, target))
    each = min(max(len(source), 6), LARGEST_LABELS) * 0.22 + 0.8
    height = min(max(len(target), 4), LARGEST_LABELS) * 0.22 + 1.2
    figure = Figure(figsize=(each * len(maps), height), layout="constrained")
    for number, (axes, heads) in enumerate(zip(figure.subplots(1, len(maps), squeeze=False)[0], maps, strict=True)):
        axes.imshow(heads.mean(0).cpu().numpy(), cmap="Blues", vmin=0, aspect="auto")
        axes.set_title(f"layer {number + 1}")
        names = ((axes.set_xticks, source, 90), (axes.set_yticks, target if number == 0 else [], 0))
        for place, tokens, turned in names:
            readable = len(tokens) <= LARGEST_LABELS
            place(range(len(tokens)) if readable else [], tokens if readable else [], rotation=turned, fontsize=8)
    figure.supxlabel("source")
    figure.supylabel("translation")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a letter that the font lacks: it is drawn as a box
            figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise Refused(f"{path}: the picture cannot be written ({error})") from None
    return path
