"""One world, one truth: picture, class, caption, boxes and masks are compared with each other."""

import dataclasses
import inspect
import re

import numpy as np
import pytest
import torch

from jingdu.data.draws import Draws
from jingdu.data.scenes import COLOURS, FIELDS, SHAPES, boxes_of, caption, render, scenes, world
from jingdu.errors import UsageError

SHAPE_NAMES, COLOUR_NAMES = list(SHAPES), list(COLOURS)


def fetch(data, indices):
    return data.batch(np.asarray(indices), Draws(0, 0, indices))


def test_a_world_depends_on_its_seed_and_index_alone():
    whole = world(np.arange(130), seed=3)
    part = world([7, 101, 64], seed=3)
    for field in dataclasses.fields(whole):
        assert torch.equal(getattr(whole, field.name)[[7, 101, 64]], getattr(part, field.name)), field.name
    assert not torch.equal(world([7], seed=4).position, world([7], seed=3).position)


def test_a_sample_does_not_depend_on_its_batch_or_epoch():
    data = scenes("train", size=37, count=300)
    whole = fetch(data, range(130))
    indices = np.array([100, 3])
    part = data.batch(indices, Draws(9, 5, indices))
    for name in ("image", "label"):
        assert torch.equal(whole[name][[100, 3]], part[name])
    for name in ("boxes", "labels", "masks"):
        assert all(torch.equal(whole[name][i], mine) for i, mine in zip((100, 3), part[name], strict=True))
    assert [whole["caption"][i] for i in (100, 3)] == part["caption"]


def test_training_and_test_worlds_differ():
    train, test = (fetch(scenes(split, count=50, test_count=50), range(50))["image"] for split in ("train", "test"))
    distances = torch.cdist(train.flatten(1), test.flatten(1), p=float("inf"))
    assert float(distances.min()) > 0.1


def test_shapes_and_lengths():
    data = scenes("test", size=37, test_count=43, max_shapes=5)
    assert len(data) == 43
    batch = fetch(data, range(11))
    assert batch["image"].shape == (11, 3, 37, 37) and batch["image"].dtype == torch.float32
    assert float(batch["image"].min()) >= 0 and float(batch["image"].max()) <= 1
    assert batch["label"].shape == (11,) and batch["label"].dtype == torch.int64
    for boxes, labels, masks in zip(batch["boxes"], batch["labels"], batch["masks"], strict=True):
        assert boxes.shape == (len(labels), 4) and boxes.dtype == torch.float32
        assert masks.shape == (len(labels), 37, 37) and masks.dtype == torch.bool


def test_masks_do_not_overlap_and_boxes_hold_them_exactly():
    batch = fetch(scenes("train", size=41, max_shapes=6, min_shapes=4), range(60))
    for boxes, masks in zip(batch["boxes"], batch["masks"], strict=True):
        assert int(masks.sum(0).max()) <= 1
        for (left, top, right, bottom), mask in zip(boxes.int().tolist(), masks, strict=True):
            down, across = mask.nonzero().T
            assert (left, top) == (int(across.min()), int(down.min()))
            assert (right, bottom) == (int(across.max()) + 1, int(down.max()) + 1)


def test_boxes_of_corner_pixels_and_of_nothing():
    masks = torch.zeros(4, 5, 7, dtype=torch.bool)
    masks[0, 0, 0] = masks[1, 4, 6] = masks[2, 1, 2] = masks[2, 3, 5] = True
    assert boxes_of(masks).tolist() == [[0, 0, 1, 1], [6, 4, 7, 5], [2, 1, 6, 4], [0, 0, 0, 0]]


def test_pixels_in_a_mask_have_the_colour_of_its_shape():
    data = scenes("train", size=61, classes="colour")
    palette = torch.tensor(list(COLOURS.values()))
    batch = fetch(data, range(80))
    for image, labels, masks in zip(batch["image"], batch["labels"], batch["masks"], strict=True):
        for label, mask in zip(labels.tolist(), masks, strict=True):
            colour = image[:, mask].median(dim=1).values  # the outline is mixed, the inside is not
            nearest = int((palette - colour).norm(dim=1).argmin())
            assert COLOUR_NAMES[nearest] == data.classes[label]


def test_a_later_shape_covers_an_earlier_one():
    worlds = world(np.arange(5), max_shapes=2, min_shapes=2, background="plain", colours=("red", "blue"))
    ones = torch.ones(5, 2)
    worlds = dataclasses.replace(
        worlds,
        position=torch.full((5, 2, 2), 0.5), shape=torch.zeros(5, 2, dtype=torch.int64),
        colour=torch.tensor([[COLOUR_NAMES.index("red"), COLOUR_NAMES.index("blue")]]).expand(5, 2),
        radius=torch.tensor([[0.3, 0.15]]) * ones, tint=torch.zeros(5, 2, 3),
    )  # fmt: skip
    images, masks = render(worlds, 45)
    assert torch.allclose(images[0, :, 22, 22], torch.tensor(COLOURS["blue"]))
    assert torch.allclose(images[0, :, 22, 22 - 10], torch.tensor(COLOURS["red"]))
    assert bool(masks[0, 1, 22, 22]) and not bool(masks[0, 0, 22, 22])
    assert bool(masks[0, 0, 22, 12])
    swapped = dataclasses.replace(worlds, radius=torch.tensor([[0.15, 0.3]]) * ones)
    _, masks = render(swapped, 45)
    assert int(masks[:, 0].sum()) == 0, "a small shape behind a large one is not seen"


def test_hidden_shapes_are_not_listed():
    data = scenes("train", size=29, min_shapes=40, max_shapes=40)
    batch = fetch(data, range(20))
    assert min(len(boxes) for boxes in batch["boxes"]) < 40
    for boxes, labels, masks in zip(batch["boxes"], batch["labels"], batch["masks"], strict=True):
        assert len(boxes) == len(labels) == len(masks)
        assert masks.flatten(1).any(1).all()


def test_the_coverage_of_a_circle_is_its_area():
    worlds = world(np.arange(200), shapes=("circle",), max_shapes=1)
    _, masks = render(worlds, 101)
    areas = masks.flatten(1).sum(1) / 101**2
    expected = torch.pi * (0.9 * worlds.radius[:, 0]) ** 2
    assert torch.allclose(areas, expected, rtol=0.02)


@pytest.mark.parametrize("name", SHAPE_NAMES)
def test_distances_are_distances(name):
    """Anti-aliasing and masks hold only if the slope is at most 1, and placing only if no shape reaches too far."""
    grid = torch.linspace(-1.5, 1.5, 601)
    y, x = torch.meshgrid(grid, grid, indexing="ij")
    values = SHAPES[name](x[None].clone(), y[None].clone())[0]
    step = float(grid[1] - grid[0])
    slope = torch.maximum((values.diff(dim=0) / step).abs().max(), (values.diff(dim=1) / step).abs().max())
    assert float(slope) < 1.02
    assert float(torch.hypot(x, y)[values < 0].max()) < 1.08
    assert 0.8 < float((values < 0).float().sum() * step**2) < 2.7, "all shapes are about equally large"


def test_every_shape_is_inside_the_picture_and_mostly_seen():
    worlds = world(np.arange(3000))
    reach = worlds.radius[..., None]
    assert bool(((worlds.position - reach > 0) & (worlds.position + reach < 1)).all())
    _, masks = render(worlds, 48)
    alone = torch.stack([
        render(dataclasses.replace(worlds, present=worlds.present & (torch.arange(3) == slot)), 48)[1][:, slot]
        for slot in range(3)
    ], dim=1)  # fmt: skip
    share = masks.flatten(2).sum(2) / alone.flatten(2).sum(2).clamp(min=1)
    assert float(share[worlds.present].min()) > 0.5


def test_no_colour_comes_twice_before_all_have_come_once():
    assert all(len(set(colours)) == 3 for colours in world(np.arange(300)).colour.tolist())
    few = world(np.arange(300), max_shapes=5, min_shapes=5, colours=("red", "blue"))
    counts = torch.nn.functional.one_hot(few.colour).sum(1).amax(1)
    assert torch.equal(counts, torch.full((300,), 3))


def test_shapes_of_one_colour_rarely_touch():
    def touching(**rules) -> float:
        worlds = world(np.arange(2000), max_shapes=3, min_shapes=3, **rules)
        distance = torch.cdist(worlds.position, worlds.position)
        reach = worlds.radius[:, :, None] + worlds.radius[:, None]
        return float((distance < reach).sum() - 3 * 2000) / (6 * 2000)

    # Where all shapes must have one colour, three do not always find room.
    assert touching(colours=("red",)) < 0.5 * touching()


def test_the_main_shape_is_by_far_the_largest():
    worlds = world(np.arange(500), max_shapes=4)
    rows = torch.arange(500)
    main = worlds.radius[rows, worlds.main]
    others = worlds.radius.masked_fill(~worlds.present, 0).clone()
    others[rows, worlds.main] = 0
    assert bool((main > 1.2 * others.max(1).values).all())
    assert bool(worlds.present[rows, worlds.main].all())


@pytest.mark.parametrize("classes", ["shape", "colour", "pair"])
def test_label_and_caption_name_the_main_shape(classes):
    data = scenes("train", classes=classes, shapes=("star", "ring", "heart"), colours=("orange", "blue"))
    assert len(data.classes) == {"shape": 3, "colour": 2, "pair": 6}[classes]
    batch = fetch(data, range(100))
    for label, text in zip(batch["label"].tolist(), batch["caption"], strict=True):
        colour, shape = text.split()[1:3]
        assert data.classes[label] == {"shape": shape, "colour": colour, "pair": f"{colour} {shape}"}[classes]


def test_captions_tell_where_the_shapes_lie():
    data = scenes("train", size=64, max_shapes=3, classes="pair")
    batch = fetch(data, range(300))
    clause = re.compile(r"(above|below|to the left of|to the right of) a small (\w+ \w+)")
    checked = 0
    for text, label, boxes, labels in zip(
        batch["caption"], batch["label"].tolist(), batch["boxes"], batch["labels"], strict=True
    ):
        assert re.match(r"an orange|a (?!orange)", text)
        clauses = clause.findall(text)
        assert len(clauses) == len(boxes) - 1
        names = [data.classes[number] for number in labels.tolist()]
        if len(set(names)) < len(names):
            continue  # the boxes alone do not say which of two equal shapes is meant
        centre = {name: ((b[0] + b[2]) / 2, (b[1] + b[3]) / 2) for name, b in zip(names, boxes.tolist(), strict=True)}
        x, y = centre[data.classes[label]]
        for relation, other in clauses:
            dx, dy = x - centre[other][0], y - centre[other][1]
            towards = {"above": -dy, "below": dy, "to the left of": -dx, "to the right of": dx}[relation]
            # Boxes of turned and covered shapes are a few pixels off the centres.
            assert towards > -4 and towards >= max(abs(dx), abs(dy)) - 8, (text, dx, dy)
            checked += 1
    assert checked > 150


def test_every_class_is_about_equally_frequent():
    labels = fetch(scenes("train", fields=("label",)), range(1600))["label"]
    counts = torch.bincount(labels, minlength=8)
    assert len(counts) == 8 and int(counts.min()) > 150 and int(counts.max()) < 255  # 200, deviation 13


@pytest.mark.parametrize("background", ["plain", "gradient", "clutter"])
def test_backgrounds(background):
    worlds = world(np.arange(40), background=background)
    worlds = dataclasses.replace(worlds, present=torch.zeros_like(worlds.present))
    images, masks = render(worlds, 33)
    assert not masks.any()
    spread = images.flatten(2).std(2).mean(1)
    if background == "plain":
        assert float(spread.max()) < 1e-5
    else:
        assert float(spread.mean()) > 0.02
    # The background never looks like a shape: it is dull everywhere.
    saturation = images.amax(1) - images.amin(1)
    assert float(saturation.max()) < 0.32 < min(max(c) - min(c) for n, c in COLOURS.items() if n != "white")


def test_the_same_world_at_two_resolutions():
    worlds = world(np.arange(30))
    fine, _ = render(worlds, 96)
    coarse, _ = render(worlds, 32)
    # The mean of nine fine pixels is the coarse one, but for corners finer than a pixel.
    assert float((torch.nn.functional.avg_pool2d(fine, 3) - coarse).abs().mean()) < 0.01


def test_shapes_move_in_straight_lines_and_bounce():
    worlds = world(np.arange(50))
    assert torch.allclose(worlds.centres(0.0), worlds.position, atol=1e-6)
    inside = (worlds.position - 0.5).abs().amax(-1) < 0.25
    moved = worlds.centres(1.0) - worlds.position
    assert torch.allclose(
        moved[inside & (worlds.radius < 0.2)], worlds.velocity[inside & (worlds.radius < 0.2)], atol=1e-5
    )
    for time in (7.5, 100.0, 1234.5):
        centres, reach = worlds.centres(time), worlds.radius[..., None]
        assert bool(((centres - reach > 0) & (centres + reach < 1)).all())
    images, masks = render(worlds, 32, time=20.0)
    assert not torch.equal(images, render(worlds, 32)[0])
    assert masks.flatten(2).any(2)[torch.arange(50), worlds.main].all()
    assert caption(worlds, 20.0) != caption(worlds)


def test_fields_and_channels():
    data = scenes("train", size=16, fields=("label", "image"), channels=1)
    batch = fetch(data, range(5))
    assert set(batch) == {"image", "label"}
    colour = fetch(scenes("train", size=16), range(5))
    assert list(colour) == list(FIELDS)
    weights = torch.tensor([0.299, 0.587, 0.114])
    assert torch.allclose(batch["image"][:, 0], torch.einsum("bchw,c->bhw", colour["image"], weights), atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shapes": ("sqare",)}, "square"),
        ({"colours": ("gren",)}, "green"),
        ({"shapes": "star"}, "list of names"),
        ({"colours": ()}, "list of names"),
        ({"fields": ("box",)}, "boxes"),
        ({"background": "cluter"}, "clutter"),
        ({"classes": "pairs"}, "pair"),
        ({"size": 7}, "size"),
        ({"size": 32.0}, "size"),
        ({"count": 0}, "count"),
        ({"min_shapes": 4}, "max_shapes"),
    ],
)
def test_wrong_arguments_say_what_is_wrong(arguments, message):
    # Without the type checks of the tests, which a user's recipe does not meet.
    with pytest.raises(UsageError, match=message):
        inspect.unwrap(scenes)("train", **arguments)
