"""Little worlds of coloured shapes that know everything about themselves.

One `World` is the only source of truth: from it come the picture, the class, the caption, the
boxes and the masks, and they cannot disagree. A world is a function of (seed, index) alone and is
free of resolution and time: `render(world, size, time)` draws it at any size and at any moment, its
shapes moving in straight lines and bouncing off the borders.

Lengths are in sides of the picture; x runs right and y down from the top left corner; time is in
frames, so that a velocity of 0.02 crosses the picture in 50 frames.

The shapes are drawn by signed distances (Quilez, "2D distance functions", iquilezles.org): a pixel's
coverage is half a pixel minus its distance to the outline, clamped, which is also the anti-aliasing.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from jingdu.data.base import Batch
from jingdu.data.draws import Draws
from jingdu.data.images import to_channels
from jingdu.errors import UsageError, unknown

__all__ = ["COLOURS", "SHAPES", "Scenes", "World", "boxes_of", "caption", "render", "scenes", "world"]

COLOURS = {
    "red": (0.87, 0.13, 0.14),
    "orange": (0.97, 0.52, 0.05),
    "yellow": (0.97, 0.88, 0.16),
    "green": (0.10, 0.66, 0.22),
    "cyan": (0.16, 0.82, 0.86),
    "blue": (0.12, 0.30, 0.92),
    "purple": (0.56, 0.16, 0.78),
    "white": (0.97, 0.97, 0.97),
}
"""Name -> red, green, blue in [0, 1]. Backgrounds are dull, so that all of them stand out."""

# Signed distances -----------------------------------------------------------------------------
# Of points (x, y) to a shape whose farthest point lies at about 1 from the origin; negative inside.

Points = Float[Tensor, "rows height width"]


def _circle(x: Points, y: Points) -> Points:
    return torch.hypot(x, y) - 0.9


def _square(x: Points, y: Points) -> Points:
    return torch.maximum(x.abs(), y.abs()) - 0.76


def _triangle(x: Points, y: Points) -> Points:
    # Three half planes; the vertices lie twice as far from the centroid as the sides.
    return torch.maximum(y, math.sqrt(0.75) * x.abs() - 0.5 * y) - 0.52


def _star(x: Points, y: Points) -> Points:
    # By symmetry every point falls into the half of a ray whose tip points up; there the outline is one line.
    sector = math.pi / 5
    angle = torch.remainder(torch.atan2(x, -y) + sector, 2 * sector) - sector
    radius = torch.hypot(x, y)
    tip, notch = 1.05, (0.46 * math.cos(sector), 0.46 * math.sin(sector))
    length = math.hypot(notch[0] - tip, notch[1])
    normal = (notch[1] / length, (tip - notch[0]) / length)
    return (radius * angle.cos() - tip) * normal[0] + radius * angle.sin().abs() * normal[1]


def _ring(x: Points, y: Points) -> Points:
    return (torch.hypot(x, y) - 0.68).abs() - 0.24


def _cross(x: Points, y: Points) -> Points:
    x, y = x.abs(), y.abs()
    return torch.minimum(torch.maximum(x - 0.95, y - 0.3), torch.maximum(x - 0.3, y - 0.95))


def _heart(x: Points, y: Points) -> Points:
    # A square on its tip, and a disc on each of its two upper sides.
    x, half = x.abs(), 0.54
    middle = half / math.sqrt(2)
    y = y - 0.1
    return torch.minimum((x + y.abs()) / math.sqrt(2) - half, torch.hypot(x - middle, y + middle) - half)


def _crescent(x: Points, y: Points) -> Points:
    return torch.maximum(torch.hypot(x, y) - 0.95, 0.75 - torch.hypot(x - 0.5, y))


SHAPES: dict[str, Callable[[Points, Points], Points]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "ring": _ring,
    "cross": _cross,
    "heart": _heart,
    "crescent": _crescent,
}
"""Name -> its signed distance. A world holds the positions in this table."""

_SHAPES, _COLOURS = tuple(SHAPES), tuple(COLOURS)
_REACH = 1.08
"""No shape reaches farther from its centre, in radii."""


# The world ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class World:
    """Descriptions of worlds. Slots run from back to front: a later shape covers an earlier one."""

    present: Bool[Tensor, "worlds slots"]
    """Slots that hold a shape."""
    main: Int64[Tensor, " worlds"]
    """Slot of the largest shape, which names the world."""
    shape: Int64[Tensor, "worlds slots"]
    """Place in SHAPES."""
    colour: Int64[Tensor, "worlds slots"]
    """Place in COLOURS."""
    tint: Float[Tensor, "worlds slots 3"]
    """Added to the colour's red, green and blue."""
    radius: Float[Tensor, "worlds slots"]
    angle: Float[Tensor, "worlds slots"]
    """Clockwise turn in radians."""
    position: Float[Tensor, "worlds slots 2"]
    """Centre (x, y) at time 0."""
    velocity: Float[Tensor, "worlds slots 2"]
    """Sides a frame."""
    ground: Float[Tensor, "worlds 2 3"]
    """The two colours between which the background passes."""
    direction: Float[Tensor, " worlds"]
    """The direction of that passage, in radians."""
    noise: Float[Tensor, "worlds 3 lattice lattice"]
    """Values on a lattice over the picture, added to the background in between."""
    stick: Float[Tensor, "worlds sticks 5"]
    """Clutter: centre x, y, half length, half thickness, angle of dull bars."""
    stick_colour: Float[Tensor, "worlds sticks 3"]

    def __len__(self) -> int:
        return len(self.present)

    def __getitem__(self, rows: slice) -> "World":
        return World(*(getattr(self, field.name)[rows] for field in fields(self)))

    def centres(self, time: float = 0.0) -> Float[Tensor, "worlds slots 2"]:
        """Where the shapes are at `time`: on straight lines that the borders reflect."""
        margin = (_REACH * self.radius)[..., None]
        room = 1 - 2 * margin
        # A reflected line is a line folded like a strip of paper, once to and once fro.
        travelled = torch.remainder(self.position + time * self.velocity - margin, 2 * room)
        return margin + room - (travelled - room).abs()


_LATTICE = 9
_CANDIDATES = 12
_STICKS = 4

Background = Literal["plain", "gradient", "clutter"]


def world(
    indices: Sequence[int] | np.ndarray,
    seed: int = 0,
    shapes: Sequence[str] = tuple(SHAPES),
    colours: Sequence[str] = tuple(COLOURS),
    min_shapes: int = 1,
    max_shapes: int = 3,
    background: Background = "clutter",
) -> World:
    """The worlds `indices` of `seed`. Each depends on its own index alone.

    Every draw below stays where it is in the order: a new property of worlds draws after them, so that
    the pictures of old worlds do not change.
    """
    draws = Draws(seed, 0, indices)
    slots = max_shapes
    count = min_shapes + draws.integers(max_shapes - min_shapes + 1)
    present = torch.arange(slots) < count[:, None]
    shape = torch.tensor([_SHAPES.index(name) for name in shapes])[draws.integers(len(shapes), slots)]
    # No colour comes twice before all have come once.
    palette = torch.tensor([_COLOURS.index(name) for name in colours])
    colour = palette[draws.uniform(len(colours)).argsort(1)][:, torch.arange(slots) % len(colours)]
    tint = draws.uniform(slots, 3, low=-0.03, high=0.03)

    # The first shape is the main one: at least a quarter larger than any other. Many shapes are smaller ones.
    crowd = min(1.0, math.sqrt(3 / slots))
    radius = draws.uniform(slots, low=0.12, high=0.17) * crowd
    radius[:, 0] = draws.uniform(low=0.215, high=0.29) * crowd
    angle = draws.uniform(slots, low=-0.3, high=0.3)
    position = _place(draws.uniform(slots, _CANDIDATES, 2), radius, colour)
    heading = draws.uniform(slots, high=2 * math.pi)
    speed = draws.uniform(slots, 1, low=0.01, high=0.04)
    velocity = speed * torch.stack((heading.cos(), heading.sin()), dim=-1)

    level = draws.uniform(2, 1, low=0.12, high=0.58)
    ground = level + draws.uniform(2, 3, low=-0.07, high=0.07)
    direction = draws.uniform(high=2 * math.pi)
    noise = draws.uniform(1, _LATTICE, _LATTICE, low=-0.08, high=0.08)
    noise = noise + draws.uniform(3, _LATTICE, _LATTICE, low=-0.035, high=0.035)
    bars = draws.uniform(_STICKS, 5)
    low, high = torch.tensor(((0.0, 0.0, 0.05, 0.012, 0.0), (1.0, 1.0, 0.25, 0.035, math.pi)))
    stick = low + bars * (high - low)
    stick_colour = draws.uniform(_STICKS, 1, low=0.1, high=0.65) + draws.uniform(_STICKS, 3, low=-0.08, high=0.08)
    order = draws.uniform(slots)

    if background != "clutter":
        noise, stick, stick_colour = noise.zero_(), stick[:, :0], stick_colour[:, :0]
    if background == "plain":
        ground = ground[:, :1].expand(-1, 2, -1)
    # Which shape lies in front is drawn too; empty slots go to the end.
    order = torch.where(present, order, 2.0).argsort(dim=1)
    rows = torch.arange(len(order))[:, None]
    return World(
        present=present[rows, order],
        main=(order == 0).int().argmax(1),
        shape=shape[rows, order],
        colour=colour[rows, order],
        tint=tint[rows, order],
        radius=radius[rows, order],
        angle=angle[rows, order],
        position=position[rows, order],
        velocity=velocity[rows, order],
        ground=ground,
        direction=direction,
        noise=noise,
        stick=stick,
        stick_colour=stick_colour,
    )


def _place(
    candidates: Float[Tensor, "worlds slots candidates 2"],
    radius: Float[Tensor, "worlds slots"],
    colour: Int64[Tensor, "worlds slots"],
) -> Float[Tensor, "worlds slots 2"]:
    """Centres inside the picture, one slot after the other: the first candidate that is far enough from all others.

    Shapes may overlap a little, those of one colour not, lest they melt into one. Where every candidate is too
    near, the farthest is taken.
    """
    margin = (_REACH * radius)[..., None, None]
    candidates = margin + candidates * (1 - 2 * margin)
    rows = torch.arange(len(radius))
    centres = [candidates[:, 0, 0]]
    for slot in range(1, radius.shape[1]):
        same = colour[:, slot, None] == colour[:, :slot]
        needed = (radius[:, slot, None] + radius[:, :slot]) * torch.where(same, 1.1, 0.85)
        others = torch.stack(centres, dim=1)
        distance = (candidates[:, slot, :, None] - others[:, None]).norm(dim=-1)
        apart = (distance / needed[:, None]).amin(dim=-1)
        free = apart >= 1
        choice = torch.where(free.any(1), free.int().argmax(1), apart.argmax(1))
        centres.append(candidates[rows, slot, choice])
    return torch.stack(centres, dim=1)


# The picture ----------------------------------------------------------------------------------

_BLOCK = 64
"""Worlds drawn at a time: their planes then stay in the processor's cache."""


def render(
    worlds: World, size: int, time: float = 0.0
) -> tuple[Float[Tensor, "worlds 3 size size"], Bool[Tensor, "worlds slots size size"]]:
    """Pictures in [0, 1] of the worlds at `time`, and the visible part of each shape.

    A pixel belongs to the frontmost shape that covers at least half of it.
    """
    blocks = [_render(worlds[start : start + _BLOCK], size, time) for start in range(0, len(worlds), _BLOCK)]
    images, masks = zip(*blocks, strict=True)
    return torch.cat(images), torch.cat(masks)


def _render(worlds: World, size: int, time: float) -> tuple[Tensor, Tensor]:
    places = (torch.arange(size) + 0.5) / size
    image = _background(worlds, places)
    coverage = _coverage(worlds, places, time)
    paint = torch.tensor(list(COLOURS.values()))[worlds.colour] + worlds.tint
    visible = coverage > 0.5
    taken = torch.zeros_like(visible[:, 0])
    for slot in range(coverage.shape[1]):
        image.lerp_(paint[:, slot, :, None, None], coverage[:, slot, None])
    for slot in reversed(range(coverage.shape[1])):
        visible[:, slot] &= ~taken
        taken |= visible[:, slot]
    return image.clamp_(0, 1), visible


def _turned(x: Tensor, y: Tensor, places: Tensor, angle: Tensor, scale: Tensor | float = 1.0) -> tuple[Points, Points]:
    """Coordinates of all pixels in frames with their origin at (x, y), turned by `angle`, in units of `scale`."""
    dx, dy = (places - x[:, None]) / scale, (places - y[:, None]) / scale
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    # Each coordinate is a sum of one row and one column.
    return (
        (cos * dx)[:, None, :] + (sin * dy)[:, :, None],
        (-sin * dx)[:, None, :] + (cos * dy)[:, :, None],
    )


def _coverage(worlds: World, places: Tensor, time: float) -> Float[Tensor, "worlds slots size size"]:
    """How much of each pixel each shape covers, were it alone."""
    size = len(places)
    coverage = torch.zeros(*worlds.present.shape, size, size)
    flat = coverage.flatten(0, 1)
    x, y = worlds.centres(time).flatten(0, 1).unbind(-1)
    kind = torch.where(worlds.present, worlds.shape, -1).flatten()
    radius, angle = worlds.radius.flatten(), worlds.angle.flatten()
    # All shapes of one kind at once: each pixel's distance is computed for the shape it is, not for all kinds.
    for number, distance in enumerate(SHAPES.values()):
        rows = (kind == number).nonzero()[:, 0]
        if len(rows) == 0:
            continue
        scale = radius[rows, None]
        outline = distance(*_turned(x[rows], y[rows], places, angle[rows], scale))
        flat[rows] = outline.mul_(-size * scale[..., None]).add_(0.5).clamp_(0, 1)
    return coverage


def _background(worlds: World, places: Tensor) -> Float[Tensor, "worlds 3 size size"]:
    size = len(places)
    cos, sin = worlds.direction.cos()[:, None], worlds.direction.sin()[:, None]
    along = ((places - 0.5) * cos)[:, None, :] + ((places - 0.5) * sin)[:, :, None] + 0.5
    first, last = worlds.ground[:, 0, :, None, None], worlds.ground[:, 1, :, None, None]
    image = first + (last - first) * along.clamp_(0, 1)[:, None]
    if worlds.stick.shape[1] == 0:
        return image
    # Values between the lattice points by smooth weights: two small products of matrices.
    steps = (places * (_LATTICE - 1))[:, None] - torch.arange(_LATTICE)
    weights = 0.5 + 0.5 * torch.cos(math.pi * steps.clamp(-1, 1))
    image += weights @ worlds.noise @ weights.T
    for number in range(worlds.stick.shape[1]):
        x, y, length, thickness, angle = worlds.stick[:, number].unbind(-1)
        u, v = _turned(x, y, places, angle)
        outline = torch.maximum(u.abs_().sub_(length[:, None, None]), v.abs_().sub_(thickness[:, None, None]))
        cover = outline.mul_(-size).add_(0.5).clamp_(0, 1)
        image.lerp_(worlds.stick_colour[:, number, :, None, None], cover[:, None])
    return image


# What is said about it ------------------------------------------------------------------------


def boxes_of(masks: Bool[Tensor, "*batch height width"]) -> Float[Tensor, "*batch 4"]:
    """The smallest boxes (left, top, right, bottom) in pixels around masks; zeros for an empty mask.

    A box around the single pixel (0, 0) is (0, 0, 1, 1).
    """
    cells = masks.view(torch.uint8)
    across, down = cells.amax(-2), cells.amax(-1)
    left, top = across.argmax(-1), down.argmax(-1)
    right, bottom = (line.shape[-1] - line.flip(-1).argmax(-1) for line in (across, down))
    box = torch.stack((left, top, right, bottom), dim=-1).float()
    return box * across.amax(-1)[..., None]


def caption(worlds: World, time: float = 0.0) -> list[str]:
    """What a person would say of each world: its main shape, and how it lies to each of the small ones."""
    centres = worlds.centres(time)
    offsets = (centres[torch.arange(len(worlds)), worlds.main][:, None] - centres).tolist()
    shapes, colours, present = worlds.shape.tolist(), worlds.colour.tolist(), worlds.present.tolist()
    texts = []
    for row, main in enumerate(worlds.main.tolist()):
        names = [f"{_COLOURS[c]} {_SHAPES[s]}" for c, s in zip(colours[row], shapes[row], strict=True)]
        parts = [f"{'an' if names[main][0] in 'aeiou' else 'a'} {names[main]}"]
        for slot, (dx, dy) in enumerate(offsets[row]):
            if slot != main and present[row][slot]:
                beside = "to the left of" if dx < 0 else "to the right of"
                relation = ("above" if dy < 0 else "below") if abs(dy) > abs(dx) else beside
                parts.append(f"{'and ' if len(parts) > 1 else ''}{relation} a small {names[slot]}")
        texts.append(" ".join(parts))
    return texts


# The data set ---------------------------------------------------------------------------------

FIELDS = ("image", "label", "caption", "boxes", "labels", "masks")
_TEST = 1 << 32
"""Test worlds have the numbers from here on."""


class Scenes:
    """Worlds as samples. Everything is drawn when asked for; nothing depends on the epoch.

    A batch holds `image` [batch, channels, size, size] and `label` as tensors, and lists of `caption`, and for
    the shapes of which anything is seen, from back to front, `boxes` [shapes, 4] (left, top, right, bottom in
    pixels, around the visible part), their `labels` and visible `masks` [shapes, size, size].
    """

    def __init__(self, first: int, count: int, size: int, seed: int, rules: Mapping[str, Any], classes: str,
                 keep: Sequence[str], channels: Literal[1, 3]):  # fmt: skip
        self.first, self.count, self.size, self.seed = first, count, size, seed
        self.rules, self.keep, self.channels = dict(rules), tuple(keep), channels
        shapes, colours = rules["shapes"], rules["colours"]
        pairs = {
            "shape": {(s, c): s for s in shapes for c in colours},
            "colour": {(s, c): c for c in colours for s in shapes},
            "pair": {(s, c): f"{c} {s}" for s in shapes for c in colours},
        }[classes]
        self.classes = tuple(dict.fromkeys(pairs.values()))
        self._label = torch.full((len(SHAPES), len(COLOURS)), -1)
        for (shape, colour), name in pairs.items():
            self._label[_SHAPES.index(shape), _COLOURS.index(colour)] = self.classes.index(name)

    def __len__(self) -> int:
        return self.count

    def worlds(self, indices: Sequence[int] | np.ndarray) -> World:
        """The descriptions of samples, for whoever needs more than a batch holds."""
        return world(self.first + np.asarray(indices, dtype=np.int64), self.seed, **self.rules)

    def batch(self, indices: np.ndarray, draws: Draws) -> Batch:
        worlds = self.worlds(indices)
        image, masks = render(worlds, self.size)
        labels = self._label[worlds.shape, worlds.colour]
        batch: Batch = {
            "image": to_channels(image, self.channels),
            "label": labels[torch.arange(len(worlds)), worlds.main],
        }
        if "caption" in self.keep:
            batch["caption"] = caption(worlds)
        if {"boxes", "labels", "masks"} & set(self.keep):
            boxes = boxes_of(masks)
            seen = boxes[..., 2] > 0
            for name, values in {"boxes": boxes, "labels": labels, "masks": masks}.items():
                batch[name] = [rows[chosen] for rows, chosen in zip(values, seen, strict=True)]
        return {name: batch[name] for name in FIELDS if name in self.keep}


def scenes(
    split: Literal["train", "test"],
    size: int = 32,
    count: int = 4000,
    test_count: int = 1000,
    min_shapes: int = 1,
    max_shapes: int = 3,
    shapes: Sequence[str] = tuple(SHAPES),
    colours: Sequence[str] = tuple(COLOURS),
    background: Background = "clutter",
    classes: Literal["shape", "colour", "pair"] = "shape",
    fields: Sequence[str] = FIELDS,
    channels: Literal[1, 3] = 3,
    seed: int = 0,
) -> Scenes:
    """Little worlds of coloured shapes with class, caption, boxes and masks.

    Args:
        split: training and test worlds share no number.
        size: side of the pictures in pixels; below 24 the small shapes are hard to tell apart.
        count: training worlds.
        test_count: test worlds.
        min_shapes: fewest shapes of a world.
        max_shapes: most shapes of a world; from four on all are drawn smaller.
        shapes: names out of SHAPES.
        colours: names out of COLOURS.
        background: one dull colour; a passage between two; or that with noise and dull bars.
        classes: what `label` and `labels` mean: the shape, its colour, or both ("red circle").
        fields: what batches hold; leaving out what is not needed saves time.
        channels: 3, or 1 for grey.
        seed: another seed is another series of worlds.

    Raises UsageError for an unknown name or a number out of range.
    """
    for kind, names, table in (("shape", shapes, SHAPES), ("colour", colours, COLOURS), ("field", fields, FIELDS)):
        if isinstance(names, str) or not names:
            raise UsageError(f"scenes: {kind}s is a list of names, such as ({next(iter(table))!r},), not {names!r}")
        for name in names:
            if name not in table:
                raise unknown(f"{kind} of scenes", name, table)
    for kind, value, choices in (
        ("background", background, get_args(Background)), ("classes", classes, ("shape", "colour", "pair")),
    ):  # fmt: skip
        if value not in choices:
            raise unknown(f"{kind} of scenes", value, choices)
    for name, number, low in (
        ("size", size, 8), ("count", count, 1), ("test_count", test_count, 1), ("min_shapes", min_shapes, 1),
        ("max_shapes", max_shapes, min_shapes),
    ):  # fmt: skip
        if not isinstance(number, int) or number < low:
            raise UsageError(f"scenes: {name} is a whole number from {low} on, not {number!r}")
    rules = {
        "shapes": tuple(shapes), "colours": tuple(colours), "min_shapes": min_shapes, "max_shapes": max_shapes,
        "background": background,
    }  # fmt: skip
    first, count = (0, count) if split == "train" else (_TEST, test_count)
    return Scenes(first, count, size, seed, rules, classes, fields, channels)
