"""Attention within windows (Section 3.2): where the windows lie, what their tokens may see, and the relative bias."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from jingdu.errors import UsageError
from jingdu.papers.language.transformer import attention

__all__ = ["Layout", "Shift", "WindowAttention", "layout", "partition", "relative_index", "resize_bias", "reverse"]

Size = tuple[int, int]
"""Down and across."""

Shift = Literal["cyclic", "late", "padding", "none"]
"""How windows get to their displaced places (Section 3.2, Table 6).

- cyclic: the map is padded to whole windows, and rolled, so that their number stays (detectors' code; torchvision).
- late: the same, but rolled before it is padded, as timm does: another result where windows do not divide the map.
- padding: no roll; windows are cut off at the border, and there are more of them.
- none: windows are never displaced (the ablation of Table 4).
"""

APART = -100.0
"""Added to the products of two tokens that the roll has brought together."""


class Layout(NamedTuple):
    """Where the windows of a map lie. Windows of a kind, whose tokens see each other in the same way, stand together."""

    order: Int64[Tensor, " windows_tokens"]
    """The place in the padded map, row by row, of each token of each window."""
    back: Int64[Tensor, " places"]
    """The place among those of each place of the map."""
    masks: Float[Tensor, "kinds tokens tokens"] | None
    """Added to the products, for each kind of window; None where all tokens of every window see each other."""
    counts: tuple[int, ...]
    """Windows of each kind."""
    padded: Size
    """Size of the padded map."""


def _regions(length: int, window: int, shift: int) -> np.ndarray:
    """Figure 4's slices of a rolled axis: 0 before the last window, then 1, and 2 for what came round."""
    place = np.arange(length)
    return (place >= length - window).astype(int) + (place >= length - shift) if shift else np.zeros(length, int)


def _places(size: Size, window: Size, shift: Size, how: str) -> tuple[np.ndarray, np.ndarray, Size]:
    """For each place of the map that is cut: which place of the padded one is there; its region; the padded size."""
    whole = [-(-side // cell) * cell for side, cell in zip(size, window, strict=True)]
    if how == "padding":  # displaced windows begin before the map, and end behind it
        inside = whole
        before = [(cell - step) % cell for cell, step in zip(window, shift, strict=True)]
        whole = [side + cell * (first > 0) for side, cell, first in zip(inside, window, before, strict=True)]
        rows, columns = (np.roll(np.arange(side), first) for side, first in zip(whole, before, strict=True))
        regions = ((rows < inside[0])[:, None] & (columns < inside[1])).astype(int)
    else:
        if how == "late":
            rows, columns = (
                np.concatenate((np.roll(np.arange(side), -step), np.arange(side, end)))
                for side, step, end in zip(size, shift, whole, strict=True)
            )
        else:
            rows, columns = (np.roll(np.arange(end), -step) for step, end in zip(shift, whole, strict=True))
        regions = 3 * _regions(whole[0], window[0], shift[0])[:, None] + _regions(whole[1], window[1], shift[1])
    return rows[:, None] * whole[1] + columns, regions, (whole[0], whole[1])


def _cut(x: np.ndarray, window: Size) -> np.ndarray:
    """[height, width] -> [windows, tokens]."""
    down, across = x.shape[0] // window[0], x.shape[1] // window[1]
    return x.reshape(down, window[0], across, window[1]).swapaxes(1, 2).reshape(down * across, -1)


KEPT: dict[tuple[Any, ...], Any] = {}
"""What `kept` has made. A plain table, so that torch.compile reads in it."""


def kept(make: Callable[..., Any], *key: Any) -> Any:
    """`make(*key)`, or what it gave before."""
    place = (make.__name__, *key)
    if place not in KEPT:
        if len(KEPT) >= 512:  # images of ever new sizes
            KEPT.clear()
        with torch.inference_mode(False):  # else training could not use what an evaluation has made
            KEPT[place] = make(*key)
    return KEPT[place]


@torch.compiler.disable
def layout(size: Size, window: Size, shift: Size, how: str, device: torch.device, dtype: torch.dtype) -> Layout:
    """The windows of a map of `size`, displaced by `shift`; see `Shift` for `how`."""
    places, regions, padded = _places(size, window, shift, how)
    places, regions = _cut(places, window), _cut(regions, window)
    found, kind = np.unique(regions, axis=0, return_inverse=True)
    kind = kind.reshape(-1)
    order = places[np.argsort(kind, kind="stable")].reshape(-1)
    back = np.empty(padded[0] * padded[1], int)
    back[order] = np.arange(len(order))
    back = np.ascontiguousarray(back.reshape(padded)[: size[0], : size[1]]).reshape(-1)
    masks = np.where(found[:, :, None] == found[:, None, :], 0.0, APART)
    return Layout(
        torch.from_numpy(order).to(device),
        torch.from_numpy(back).to(device),
        torch.from_numpy(masks).to(device, dtype) if masks.any() else None,
        tuple(np.bincount(kind).tolist()) if masks.any() else (len(places),),
        padded,
    )


def partition(
    x: Float[Tensor, "batch height width channels"], where: Layout
) -> Float[Tensor, "windows_batch_tokens channels"]:
    """The tokens of all windows: window by window, and for each the images of the batch; roll and cut are one step."""
    batch, height, width, channels = x.shape
    if (height, width) != where.padded:
        x = F.pad(x, (0, 0, 0, where.padded[1] - width, 0, where.padded[0] - height))
    return x.reshape(-1, channels).index_select(0, _each_image(where.order, batch, sum(where.counts)))


def _each_image(order: Int64[Tensor, " tokens"], batch: int, windows: int) -> Int64[Tensor, " batch_tokens"]:
    """`order` in one image, as places in a batch of them."""
    if batch == 1:
        return order
    images = torch.arange(batch, device=order.device) * len(order)
    return (order.view(windows, 1, -1) + images[:, None]).flatten()


def reverse(
    windows: Float[Tensor, "windows_batch_tokens channels"], where: Layout, batch: int, size: Size
) -> Float[Tensor, "batch height width channels"]:
    """The map from the tokens of its windows; undoes `partition`, and leaves the padding out."""
    count = sum(where.counts)
    tokens = len(where.order) // count
    back = where.back
    if batch > 1:
        window = back // tokens
        images = torch.arange(batch, device=back.device)[:, None] * tokens
        back = (window * (batch * tokens) + back % tokens + images).flatten()
    return windows.index_select(0, back).view(batch, *size, -1)


@torch.compiler.disable
def relative_index(window: Size, device: torch.device) -> Int64[Tensor, "tokens tokens"]:
    """Which row of the bias table two tokens of a window share: by the query's place less the key's (Section 3.2)."""
    rows, columns = (place.flatten() for place in np.indices(window))
    down, across = (place[:, None] - place + side - 1 for place, side in zip((rows, columns), window, strict=True))
    return torch.from_numpy(down * (2 * window[1] - 1) + across).to(device)


def _spread(old: int, new: int) -> np.ndarray:
    """Where the `old` values of a table's axis lie among the `new` ones: steps that grow outwards, in geometric progression.

    The ratio makes their sum reach the new border; near the middle the steps are one, as a shared distance asks.
    """
    low, high = 1.01, 1.5
    while high - low > 1e-6:
        ratio = (low + high) / 2
        if (1 - ratio ** (old // 2)) / (1 - ratio) > new // 2:
            high = ratio
        else:
            low = ratio
    steps = np.cumsum(ratio ** np.arange(old // 2))
    return np.concatenate((-steps[::-1], [0.0], steps))


def _linear(old: int, new: int) -> np.ndarray:
    """The matrix [new, old] of linear interpolation between places of `_spread`; beyond them the last value holds."""
    here, wanted = _spread(old, new), np.arange(new) - new // 2
    return np.stack([np.interp(wanted, here, row) for row in np.eye(old)], 1)


def resize_bias(
    table: Float[Tensor, "rows heads"],
    window: Size,
    old: Size | None = None,
    how: Literal["geometric", "bicubic"] = "geometric",
) -> Float[Tensor, "new_rows heads"]:
    """The table of relative biases for another window (Section 3.2).

    Args:
        table: a row for each distance down and across.
        window: that is wanted.
        old: that the table is of; by default a square.
        how: geometric keeps near distances and spreads far ones, as timm's resize_rel_pos_bias_table, whose way is
            BEiT's; bicubic stretches all alike, as the paper and its code do (utils.py, load_pretrained).

    Raises UsageError where the rows are of no such window.
    """
    if old is None:
        side = (round(len(table) ** 0.5) + 1) // 2
        old = (side, side)
    before, after = ((2 * down - 1, 2 * across - 1) for down, across in (old, window))
    if before[0] * before[1] != len(table):
        raise UsageError(f"{len(table)} biases are none of windows of {old[0]} x {old[1]} tokens: say which with old=")
    if before == after:
        return table
    grid = table.T.reshape(1, -1, *before).float()
    if how == "bicubic":
        grid = F.interpolate(grid, after, mode="bicubic")
    else:
        down, across = (torch.from_numpy(_linear(a, b)).to(grid) for a, b in zip(before, after, strict=True))
        grid = down @ grid @ across.T
    return grid.flatten(2)[0].T.to(table.dtype)


class WindowAttention(nn.Module):
    r"""Equation 4 in each window: $\mathrm{softmax}(q k^\top / \sqrt d + B)\, v$, with a bias $B$ by relative position.

    Args:
        width: of a token.
        heads: of the attention.
        window: tokens down and across.
        shift: see `Shift`; none where the windows of this block are not displaced.
        biases: of the projection to queries, keys and values.
        relative: whether there is B.
        dropout: of the attention weights.
    """

    undecayed = ("table",)

    def __init__(
        self, width: int, heads: int, window: Size, *, shift: Shift | str = "none", biases: bool = True,
        relative: bool = True, dropout: float | int = 0.0,
    ):  # fmt: skip
        super().__init__()
        if width % heads:
            raise UsageError(f"width {width} does not divide into {heads} heads")
        self.heads, self.window, self.shift, self.dropout = heads, window, shift, dropout
        self.qkv = nn.Linear(width, 3 * width, bias=biases)
        self.project = nn.Linear(width, width)
        self.table = nn.Parameter(torch.empty((2 * window[0] - 1) * (2 * window[1] - 1), heads)) if relative else None
        """$\\hat B$, a row for each distance, a column for each head."""
        if relative:
            nn.init.trunc_normal_(self.table, std=0.02)

    def bias(self) -> Float[Tensor, "heads tokens tokens"] | None:
        """B, from its table."""
        if self.table is None:
            return None
        index = kept(relative_index, self.window, self.table.device)
        return self.table.T.index_select(1, index.flatten()).view(-1, *index.shape)

    def layout(self, size: Size, like: Tensor) -> Layout:
        """The windows of a map of `size`. Along an axis that one window covers nothing is displaced."""
        shift = (0, 0)
        if self.shift != "none":
            down, across = (cell // 2 if side > cell else 0 for side, cell in zip(size, self.window, strict=True))
            shift = (down, across)
        how = "cyclic" if self.shift == "none" else self.shift
        return kept(layout, size, self.window, shift, how, like.device, like.dtype)

    def forward(self, x: Float[Tensor, "batch height width channels"]) -> Float[Tensor, "batch height width channels"]:
        batch, height, width, channels = x.shape
        where = self.layout((height, width), x)
        qkv = self.qkv(partition(x, where)[None])  # [1, windows batch tokens, 3 channels]
        tokens = self.window[0] * self.window[1]
        q, k, v = qkv.view(-1, tokens, 3, self.heads, channels // self.heads).permute(2, 0, 3, 1, 4)
        y = self.attend(q, k, v, where, batch)
        return reverse(self.project(y.reshape(1, -1, channels))[0], where, batch, (height, width))

    def attend(
        self, q: Float[Tensor, "windows heads tokens d"], k: Tensor, v: Tensor, where: Layout, batch: int
    ) -> Float[Tensor, "windows tokens heads d"]:
        """Attention in windows: kind by kind by torch's kernel, so that one bias does for all windows of a kind.

        Where the bias learns, torch's kernel for CPUs steps aside, and the products are taken as they stand.
        """
        bias, masks, dropout = self.bias(), where.masks, self.dropout if self.training else 0.0
        if bias is not None and bias.requires_grad and q.device.type == "cpu":
            scores = (q * q.shape[-1] ** -0.5) @ k.mT
            if masks is not None:
                each = [mask.expand(count, -1, -1) for mask, count in zip(masks, where.counts, strict=True)]
                bias = (bias + torch.cat(each)[:, None])[:, None]
                scores = (scores.unflatten(0, (-1, batch)) + bias).flatten(0, 1)
            else:
                scores = scores + bias
            return (F.dropout(scores.softmax(-1), dropout) @ v).transpose(1, 2)
        if masks is not None:
            bias = masks[:, None] if bias is None else bias + masks[:, None]
        elif bias is not None:
            bias = bias[None]
        parts = [count * batch for count in where.counts]
        found = [
            attention(*qkv, bias=None if bias is None else bias[i : i + 1], dropout=dropout).transpose(1, 2)
            for i, qkv in enumerate(zip(q.split(parts), k.split(parts), v.split(parts), strict=True))
        ]
        return torch.cat(found) if len(found) > 1 else found[0]
