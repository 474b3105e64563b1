"""What is shown of a search: the ranked architectures, the curve of the best so far, and a drawing of the best."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from jingdu.engine.run import read_log
from jingdu.errors import Refused, UsageError
from jingdu.prediction import Prediction

from .algorithms import Found
from .cells import NASNet, describe
from .chain import ChainNet
from .space import Cost, count_cost

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#444444")


def describe_network(network: nn.Module) -> str:
    """An architecture in lines of text."""
    if isinstance(network, ChainNet):
        lines = []
        for n, (conv, sources) in enumerate(zip(network.convs, network.sources, strict=True), 1):
            (height, width), (down, across) = conv.kernel_size, conv.stride
            stride = f"/{down}" if down == across else f"/{down}x{across}"
            reads = " + ".join(f"layer {s}" for s in sources) or "the image"
            lines.append(f"layer {n}: {height}x{width}{stride}, {conv.out_channels} filters, of {reads}")
        return "\n".join([*lines, "classifier: of " + " + ".join(f"layer {n}" for n in network.ends)])
    if isinstance(network, NASNet):
        lines = []
        for title, stride in (("normal", 1), ("reduction", 2)):
            cells = [getattr(network, name) for name, s in network.cells if s == stride]
            if cells:
                lines += [f"{title} cell:", *(f"  {line}" for line in describe(cells[-1].genotype))]
        return "\n".join(lines)
    raise UsageError(f"a {type(network).__name__} is no network of a search")


def cost_of(network: nn.Module) -> Cost:
    """The cost of a network of this paper on the images it was made for."""
    first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    side = 8 if isinstance(network, ChainNet) or network.small else 331 if network.skips or network.zeros else 224
    return count_cost(network, (first.in_channels, side, side))


def draw_chain(axes: Any, layers: Sequence[Sequence[Any]], title: str = "") -> None:
    """A chain from the image (below) to the classifier (above): boxes, and an arrow for each connection.

    Args:
        axes: matplotlib Axes.
        layers: as of `ChainNet`.
        title: above the drawing.
    """
    read = {s for layer in layers for s in layer[5]}
    rows = ["image", *(f"{h}x{w}{f' /{d}' if d > 1 else ''}, {f} filters" for f, h, w, d, _, _ in layers), "classifier"]
    edges = [(s, n) for n, layer in enumerate(layers, 1) for s in (layer[5] or (0,))]
    edges += [(n, len(layers) + 1) for n in range(1, len(layers) + 1) if n not in read]
    for y, text in enumerate(rows):
        inside = 0 < y < len(rows) - 1
        axes.text(
            0, y, text, ha="center", va="center", fontsize=9.5, zorder=3,
            bbox={"boxstyle": "round,pad=0.35", "facecolor": "#DCEBF5" if inside else "#F1F1F1", "edgecolor": "#999999"},
        )  # fmt: skip
    for number, (a, b) in enumerate(edges):
        side = 0 if b == a + 1 else (-1) ** number
        style = {"arrowstyle": "-|>", "color": "#555555", "shrinkA": 11, "shrinkB": 11}
        style["connectionstyle"] = f"arc3,rad={0.35 * side}"
        # A curve past other boxes leaves and arrives at their sides; the image's and the classifier's are narrow.
        start, end = (side * (0.2 if y in (0, len(rows) - 1) else 0.42) for y in (a, b))
        axes.annotate("", (end, b), (start, a), arrowprops=style, zorder=2)
    axes.set_xlim(-1.4, 1.4)
    axes.set_ylim(-0.5, len(rows) - 0.5)
    axes.set_axis_off()
    axes.set_title(title)


def draw_best_so_far(axes: Any, curves: dict[str, Sequence[Sequence[float]]], what: str = "best so far") -> None:
    """For each search the mean over its runs of a value after each evaluation, and between the quartiles a band."""
    import numpy as np

    for (name, runs), colour in zip(curves.items(), COLOURS, strict=False):
        values = np.asarray(runs, dtype=float)
        xs = np.arange(1, values.shape[1] + 1)
        axes.plot(xs, values.mean(0), color=colour, label=name)
        if len(values) > 3:
            low, high = np.quantile(values, (0.25, 0.75), axis=0)
            axes.fill_between(xs, low, high, color=colour, alpha=0.12, linewidth=0)
    axes.set_xlabel("architectures evaluated")
    axes.set_ylabel(what)
    axes.legend()


def report_run(run: str | Path, network: nn.Module, top: int = 5, out: Path | None = None) -> Prediction:
    """The ranking of a run's architectures; with `out` also a picture of its curve, and of the network if it is a chain.

    Raises Refused for a folder that holds no search.
    """
    rows = [line for line in read_log(Path(run)) if "score" in line and "code" in line]
    if not rows:
        raise Refused(f"{run}: this run evaluated no architectures")
    found = Found([tuple(row["code"]) for row in rows], [row["score"] for row in rows])
    by_code = {tuple(row["code"]): row for row in rows}
    ranked = []
    for place, (code, value) in enumerate(found.ranking[:top], 1):
        row = by_code[code]
        ranked.append(
            {"rank": place, "score": value, **{k: row[k] for k in ("accuracy", "parameters", "flops", "architecture")}}
        )
    lines = [
        f"{r['rank']:3}. score {r['score']:.4f}, {r['parameters']:,} parameters, {r['flops']:,} multiply-adds: "
        + " ".join(f"{name}={value}" for name, value in r["architecture"].items())
        for r in ranked
    ]
    written = () if out is None else (_picture(found, network, Path(out)),)
    data = {"run": str(run), "evaluations": len(rows), "best_so_far": found.best_so_far, "ranking": ranked}
    return Prediction(str(run), "\n".join([f"{run}: {len(rows)} architectures evaluated", *lines]), data, written)


def _picture(found: Found, network: nn.Module, out: Path) -> Path:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots(1, 2 if isinstance(network, ChainNet) else 1, squeeze=False)[0]
    if isinstance(network, ChainNet):
        draw_chain(axes[1], network.layers, "the best one")
    axes = axes[0]
    axes.plot(range(1, len(found.scores) + 1), found.scores, ".", color="#999999", label="each architecture")
    draw_best_so_far(axes, {"best so far": [found.best_so_far]}, "score")
    try:
        figure.savefig(out, dpi=150)
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot write {out} ({error}): choose another --out") from None
    return out
