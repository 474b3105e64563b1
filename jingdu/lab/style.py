"""One look for all pictures: quiet axes, colours that colour-blind readers tell apart, and labels where things are.

A figure function is called inside this style with an empty figure; `draw_curves`, `draw_dots`, `draw_test` and
`draw_image` draw what most need.
"""

import io
import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from jingdu.lab.claims import Outcome
from jingdu.lab.judge import Judgement, measured
from jingdu.lab.reports import number

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#444444")
"""Okabe and Ito's colours (https://jfly.uni-koeln.de/color/), the most distinct first, without their yellow."""
INK, QUIET, GRID = "#222222", "#666666", "#E4E4E4"
VERDICT_COLOURS = {"holds": "#00735A", "fails": "#B33C00", "inconclusive": "#666666"}

SIZE = (8.4, 4.6)
"""Inches of a picture, unless its figure function sets others."""
WIDTH = 1260
"""Pixels across."""
LARGEST = 200_000
"""Bytes of a PNG file, at most."""
NARROWEST = 420
"""Pixels across of a picture that would be larger otherwise."""


def _parameters() -> dict[str, Any]:
    from cycler import cycler

    return {
        "figure.facecolor": "white",
        "savefig.facecolor": "white",
        "figure.constrained_layout.use": True,
        "figure.constrained_layout.w_pad": 0.12,
        "figure.constrained_layout.h_pad": 0.1,
        "figure.constrained_layout.wspace": 0.04,
        "figure.constrained_layout.hspace": 0.05,
        "figure.titlesize": 12,
        "figure.titleweight": "bold",
        "font.family": "DejaVu Sans",
        "font.size": 10,
        "text.color": INK,
        "axes.edgecolor": "#999999",
        "axes.labelcolor": INK,
        "axes.titlecolor": INK,
        "axes.titlesize": 10.5,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.prop_cycle": cycler(color=PALETTE),
        "grid.color": GRID,
        "grid.linewidth": 0.8,
        "xtick.color": QUIET,
        "ytick.color": QUIET,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "lines.linewidth": 1.8,
        "lines.markersize": 5.5,
        "legend.frameon": False,
        "legend.fontsize": 9.5,
        "image.cmap": "gray",
        "image.interpolation": "nearest",
    }


@contextmanager
def styled() -> Iterator[None]:
    """matplotlib's settings while a picture is drawn and saved."""
    import matplotlib

    with matplotlib.rc_context({**matplotlib.rcParamsDefault, "backend": "agg", **_parameters()}):
        yield


def new_figure(width: float = SIZE[0], height: float = SIZE[1]) -> Any:
    """An empty matplotlib Figure of that many inches that no window shows."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def png(figure: Any) -> bytes:
    """A figure as PNG, `WIDTH` pixels wide, of at most `LARGEST` bytes: fewer colours first, then fewer pixels,
    down to `NARROWEST` across."""
    from PIL import Image

    width = WIDTH
    while True:
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=width / figure.get_figwidth(), metadata={"Software": None})
        if buffer.tell() <= LARGEST:
            return buffer.getvalue()
        picture = Image.open(buffer).convert("RGB")
        small = io.BytesIO()
        picture.quantize(256, dither=Image.Dither.NONE).save(small, format="png", optimize=True)
        if small.tell() <= LARGEST or width == NARROWEST:
            return small.getvalue()
        width = max(NARROWEST, int(0.95 * width * (LARGEST / small.tell()) ** 0.5))


def mark_smoke(figure: Any) -> None:
    """Say across the whole picture that it shows nothing."""
    figure.text(
        0.5, 0.5, "SMOKE RUN\nshows nothing", fontsize=40, color="#B33C00", alpha=0.5, ha="center", va="center",
        rotation=12, weight="bold", zorder=100, in_layout=False,
        bbox={"facecolor": "white", "alpha": 0.5, "linewidth": 0},
    )  # fmt: skip


# Pieces of pictures -------------------------------------------------------------------------------


def plain(name: str) -> str:
    """A name of the code as words: train_error -> train error."""
    return name.replace("_", " ")


def smooth(values: Sequence[float], window: int) -> np.ndarray:
    """The mean over the last `window` values, or as many as there are so far."""
    sums = np.concatenate([[0.0], np.cumsum(np.asarray(values, dtype=np.float64))])
    ends = np.arange(1, len(sums))
    starts = np.maximum(ends - window, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)


def draw_curves(
    axes: Any,
    outcome: Outcome,
    names: Sequence[str] | None = None,
    labels: Mapping[str, str] | None = None,
    window: int = 1,
    scale: float | int = 1,
) -> None:
    """Curves of the outcome: a thin line a seed, a thick one for their mean, axes and lines labelled.

    Args:
        axes: matplotlib Axes.
        outcome: of a claim.
        names: which curves, in the order of the colours; all by default.
        labels: other words for some names.
        window: how many values to average along the curve.
        scale: multiplies the values (100 for per cent).
    """
    names = list(outcome.curves) if names is None else list(names)
    for i, name in enumerate(names):
        colour = PALETTE[i % len(PALETTE)]
        seeds = [(np.asarray(xs), scale * smooth(ys, window)) for xs, ys in outcome.curves[name]]
        same = all(len(xs) == len(seeds[0][0]) and (xs == seeds[0][0]).all() for xs, _ in seeds)
        label = (labels or {}).get(name, plain(name))
        for j, (xs, ys) in enumerate(seeds):
            axes.plot(xs, ys, color=colour, linewidth=0.9, alpha=0.4, label=label if not same and j == 0 else None)
        if same:
            axes.plot(seeds[0][0], np.mean([ys for _, ys in seeds], axis=0), color=colour, label=label)
    if names:
        x, y = outcome.axes[names[0]]
        axes.set(xlabel=x, ylabel=y)
        axes.legend()


def draw_dots(
    axes: Any,
    outcome: Outcome,
    labels: Mapping[str, str],
    measure: str,
    scale: float | int = 1,
    colours: Sequence[str] | Mapping[str, str] = PALETTE,
    digits: int = 1,
) -> None:
    """One column for each subject: a dot a seed, a line for the mean and its value above.

    Args:
        axes: matplotlib Axes.
        outcome: of a claim.
        labels: the subjects from left to right, and what to call each.
        measure: which of their values.
        scale: multiplies the values (100 for per cent).
        colours: of the subjects, in order or by name.
        digits: of the means, behind the point.
    """
    for place, subject in enumerate(labels):
        values = scale * np.asarray(outcome.values[subject][measure], dtype=np.float64)
        colour = colours[subject] if isinstance(colours, Mapping) else colours[place % len(colours)]
        axes.scatter(np.full(len(values), place), values, color=colour, s=30, alpha=0.6, linewidths=0, zorder=3)
        axes.plot((place - 0.25, place + 0.25), (values.mean(),) * 2, color=colour, linewidth=2.6, zorder=4)
        axes.annotate(
            f"{values.mean():.{digits}f}", (place, values.max()), xytext=(0, 6), textcoords="offset points", ha="center",
            color=colour, weight="bold",
        )  # fmt: skip
    axes.set_xticks(range(len(labels)), list(labels.values()))
    axes.set_xlim(-0.6, len(labels) - 0.4)
    axes.grid(axis="x", visible=False)
    axes.margins(y=0.14)
    axes.set_title(f"dots: {len(outcome.seeds)} seeds; lines: their means")


def draw_test(axes: Any, outcome: Outcome, judgement: Judgement) -> None:
    """A test's two sides: a dot a seed, a bar for the mean; a seed's two dots are joined.

    Where the right side is a number, a line shows what is asked.
    """
    test = judgement.test
    sides = [test.left, test.right] if isinstance(test.right, str) else [test.left]
    rows = [np.asarray(measured(outcome.values, side), dtype=np.float64) for side in sides]
    heights = [len(rows) - 1 - i for i in range(len(rows))]
    if len(rows) == 2:
        for pair in zip(*rows, strict=True):
            axes.plot(pair, heights, color="#BBBBBB", linewidth=0.9, zorder=1)
    else:
        line = float(test.right) * test.margin if test.ratio else float(test.right) + test.margin
        axes.axvline(line, color=QUIET, linestyle=(0, (4, 3)), linewidth=1.2)
        axes.annotate(
            f" asked {'>' if test.above is not None else '<'} {number(line, 3)}", (line, 1.0),
            xycoords=("data", "axes fraction"), color=QUIET, va="top", fontsize=9,
        )  # fmt: skip
    for row, height, colour in zip(rows, heights, PALETTE, strict=False):
        finite = row[np.isfinite(row)]
        axes.scatter(finite, np.full(len(finite), height), s=34, color=colour, alpha=0.65, linewidths=0, zorder=3)
        if len(finite):
            mean = float(finite.mean())
            axes.plot([mean, mean], [height - 0.2, height + 0.2], color=colour, linewidth=2.6, zorder=4)
            axes.annotate(
                number(mean, 3),
                (mean, height + 0.24),
                color=colour,
                ha="center",
                va="bottom",
                fontsize=9.5,
                weight="bold",
            )
    axes.set_yticks(heights, [plain(side.rpartition(".")[0]) for side in sides])
    axes.set_ylim(-0.55, len(rows) - 0.35)
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.12)
    measures = dict.fromkeys(plain(side.rpartition(".")[2]) for side in sides)
    axes.set_xlabel(" / ".join(measures))
    values = np.concatenate(rows)
    if test.ratio and (values > 0).all() and values.max() > 20 * values.min():
        axes.set_xscale("log")
    axes.set_title(textwrap.fill(test.about or test.statement, 52), pad=19)
    axes.annotate(
        _verdict(judgement), (0, 1), xycoords="axes fraction", xytext=(0, 5), textcoords="offset points", fontsize=9,
        color=VERDICT_COLOURS[judgement.verdict], va="bottom", annotation_clip=False,
    )  # fmt: skip


def _verdict(judgement: Judgement) -> str:
    """ "difference 0.71 [0.65, 0.77], asked above 0.1: holds" """
    test, (low, high) = judgement.test, judgement.interval
    what = "ratio" if test.ratio else "value" if test.right == 0 else "difference"
    asked = f"{'above' if test.above is not None else 'below'} {number(test.margin, 3)}"
    found = f"{number(judgement.difference, 3)} [{number(low, 3)}, {number(high, 3)}]"
    return f"{what} {found}, asked {asked}: {judgement.verdict}"


def draw_image(axes: Any, outcome: Outcome, name: str, title: str | None = None) -> None:
    """An image of the outcome (the first seed's), without axes, under its name or `title`."""
    axes.imshow(outcome.images[name], vmin=0, vmax=1)
    axes.set_axis_off()
    axes.set_title(plain(name) if title is None else title, fontsize=9.5)


def draw_default(figure: Any, outcome: Outcome) -> None:
    """The picture of a claim without a figure function: a panel a test."""
    count = len(outcome.judgements)
    columns = 1 if count == 1 else 2
    rows = math.ceil(count / columns)
    figure.set_size_inches(SIZE[0] * (1.25 if columns == 2 else 1), max(2.9, 2.55 * rows))
    panels = np.atleast_1d(figure.subplots(rows, columns, squeeze=False)).ravel()
    for axes, judgement in zip(panels, outcome.judgements, strict=False):
        draw_test(axes, outcome, judgement)
    for axes in panels[count:]:
        axes.remove()
