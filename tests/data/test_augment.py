import numpy as np
import pytest
import torch

from jingdu.data.augment import flip, random_crop
from jingdu.data.draws import Draws

IMAGES = torch.rand(11, 3, 13, 17, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("function", [random_crop, flip])
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
