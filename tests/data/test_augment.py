import math

import numpy as np
import pytest
import torch

from jingdu.data.augment import flip, random_affine, random_crop
from jingdu.data.draws import Draws

IMAGES = torch.rand(11, 3, 13, 17, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("function", [random_affine, random_crop, flip])
def test_a_sample_does_not_depend_on_its_batch(function):
    whole = function(IMAGES, Draws(1, 2, np.arange(11)))
    for chosen in ([4], [9, 4, 0], [10, 9, 8, 7, 6, 5, 4]):
        assert torch.equal(function(IMAGES[chosen], Draws(1, 2, chosen)), whole[chosen])
    assert not torch.equal(function(IMAGES, Draws(1, 3, np.arange(11))), whole)
    assert not torch.equal(function(IMAGES, Draws(2, 2, np.arange(11))), whole)


def test_random_crop_takes_the_drawn_window_of_the_padded_image():
    draws = Draws(0, 0, np.arange(11))
    corners = Draws(0, 0, np.arange(11)).integers(2 * 3 + 1, 2).tolist()
    crops = random_crop(IMAGES, draws, padding=3, fill=0.25)
    assert crops.shape == IMAGES.shape
    for image, crop, (top, left) in zip(IMAGES, crops, corners, strict=True):
        padded = torch.full((3, 13 + 6, 17 + 6), 0.25)
        padded[:, 3:16, 3:20] = image
        assert torch.equal(crop, padded[:, top : top + 13, left : left + 17])


def test_random_crop_reaches_every_offset():
    images = torch.zeros(2000, 1, 3, 5)
    images[:, 0, 1, 2] = 1
    crops = random_crop(images, Draws(0, 0, np.arange(2000)), padding=1)
    places = crops[:, 0].flatten(1).argmax(1)
    counts = torch.bincount(places, minlength=15).view(3, 5)
    assert (counts[:, 1:4] > 170).all() and counts.sum() == 2000  # 222 of each in the mean
    assert counts[:, 0].sum() == counts[:, 4].sum() == 0


def test_random_crop_without_padding_is_the_identity():
    assert torch.equal(random_crop(IMAGES, Draws(0, 0, np.arange(11)), padding=0), IMAGES)


def test_flip_mirrors_some_images():
    draws = Draws(4, 0, np.arange(11))
    chosen = Draws(4, 0, np.arange(11)).uniform() < 0.3
    flipped = flip(IMAGES, draws, p=0.3)
    assert 0 < chosen.sum() < 11
    assert torch.equal(flipped[~chosen], IMAGES[~chosen])
    assert torch.equal(flipped[chosen], IMAGES[chosen].flip(-1))


def test_flip_of_probability_zero_and_one():
    assert torch.equal(flip(IMAGES, Draws(0, 0, np.arange(11)), p=0.0), IMAGES)
    assert torch.equal(flip(IMAGES, Draws(0, 0, np.arange(11)), p=1.0), IMAGES.flip(-1))


def test_flip_flips_half_of_many():
    images = torch.zeros(4000, 1, 1, 2)
    images[..., 0] = 1
    share = float(flip(images, Draws(0, 5, np.arange(4000)))[:, 0, 0, 1].mean())
    assert abs(share - 0.5) < 0.03  # four deviations


def blob(height: int, width: int, x: float, y: float, deviation: float) -> torch.Tensor:
    """A round spot; the centre of the picture is (0, 0), its sides are `width` and `height`."""
    across, down = torch.arange(width) + 0.5 - width / 2, torch.arange(height) + 0.5 - height / 2
    return torch.exp(-((across - x) ** 2 + (down[:, None] - y) ** 2) / (2 * deviation**2))[None, None]


def centre(image: torch.Tensor) -> tuple[float, float]:
    height, width = image.shape
    across, down = torch.arange(width) + 0.5 - width / 2, torch.arange(height) + 0.5 - height / 2
    return float((image * across).sum() / image.sum()), float((image * down[:, None]).sum() / image.sum())


@pytest.mark.parametrize("size", [None, 41])
def test_random_affine_shears_scales_turns_and_moves(size):
    x, y, height, width = 6.0, -4.0, 53, 47
    count = 9
    images = blob(height, width, x, y, 1.5).expand(count, -1, -1, -1)
    rows = np.arange(count)
    moved = random_affine(images, Draws(3, 1, rows), degrees=70, scale=(0.5, 1.2), shear=0.4, shift=0.1, size=size)
    assert moved.shape == (count, 1, *((height, width) if size is None else (size, size)))
    turn, zoom, slant, across, down = Draws(3, 1, rows).uniform(5).unbind(1)
    for i in range(count):
        angle, factor = math.radians(70) * (2 * turn[i] - 1), 0.5 * 2.4 ** zoom[i]
        sheared = x + 0.4 * (2 * slant[i] - 1) * y, y
        wanted = (
            factor * (angle.cos() * sheared[0] - angle.sin() * sheared[1]),
            factor * (angle.sin() * sheared[0] + angle.cos() * sheared[1]),
        )
        sides = (width, height) if size is None else (size, size)
        for place, wide, side, now, draw in zip(
            centre(moved[i, 0]), wanted, (width, height), sides, (across[i], down[i]), strict=True
        ):
            if size is None:  # along both axes, a pixel is as large as before
                assert place == pytest.approx(float(wide + now * 0.1 * (2 * draw - 1)), abs=0.1)
            else:
                assert place == pytest.approx(float(wide * now / side + now * 0.1 * (2 * draw - 1)), abs=0.1)


def test_random_affine_that_does_nothing_is_the_identity():
    still = {"degrees": 0, "scale": (1, 1), "shear": 0, "shift": 0}
    assert torch.allclose(random_affine(IMAGES, Draws(0, 0, np.arange(11)), **still), IMAGES, atol=1e-5)


def test_random_affine_fills_with_zeros():
    small = random_affine(torch.ones(11, 2, 13, 17), Draws(0, 0, np.arange(11)), scale=(0.5, 0.5), shift=0)
    assert not small[:, :, 0].any() and not small[:, :, :, 0].any()
    assert torch.allclose(small[:, :, 6, 8], torch.ones(11, 2))
    assert small.mean((1, 2, 3)).tolist() == pytest.approx([0.25] * 11, abs=0.03)
