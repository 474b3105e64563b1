"""The dark channel's parts against pymatting's Laplacian and OpenCV's filters."""

import importlib.util
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from jingdu.papers.imaging.dark_channel import guided_filter, matting_laplacian, minimum_filter
from tests.parity.references import assert_close


def photo(height: int, width: int) -> Tensor:
    """Some of scikit-learn's photograph of a flower, [3, height, width] in [0, 1]."""
    from jingdu.data import Preprocess, open_data
    from jingdu.data.draws import Draws

    index = np.array([1])
    whole = open_data("photos(size=None)", "test", Preprocess()).batch(index, Draws(0, 0, index))["image"][0]
    return whole[:, 200 : 200 + height, 300 : 300 + width]


@cache
def pymattings_laplacian() -> Any:
    """Its file alone: the package compiles all that it has when it is imported, for a minute or two."""
    package = importlib.util.find_spec("pymatting")
    assert package is not None and package.submodule_search_locations is not None
    path = Path(package.submodule_search_locations[0]) / "laplacian" / "cf_laplacian.py"
    spec = importlib.util.spec_from_file_location("cf_laplacian", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        spec.loader.exec_module(module)
    return module.cf_laplacian


@pytest.mark.parametrize("height, width", [(3, 3), (13, 7), (31, 37)])
def test_matting_laplacian(height: int, width: int) -> None:
    for image in (photo(height, width), torch.rand(3, height, width, generator=torch.Generator().manual_seed(0))):
        theirs = pymattings_laplacian()(image.permute(1, 2, 0).double().numpy())
        assert_close(torch.from_numpy(matting_laplacian(image).toarray()), torch.from_numpy(theirs.toarray()), 1e-9)


def opencv() -> Any:
    import cv2

    return cv2


@pytest.mark.parametrize("patch", [1, 3, 15])
def test_minimum_filter(patch: int) -> None:
    image = photo(61, 47)
    theirs = opencv().erode(
        image.permute(1, 2, 0).numpy(), np.ones((patch, patch), np.uint8), borderType=opencv().BORDER_REPLICATE
    )
    assert torch.equal(minimum_filter(image[None], patch)[0].permute(1, 2, 0), torch.from_numpy(theirs))


@pytest.mark.parametrize("radius, eps", [(2, 1e-3), (5, 1e-2), (9, 1e-4)])
def test_guided_filter(radius: int, eps: float) -> None:
    """Inside, where all windows are whole: OpenCV mirrors what is outside, and GF's windows are cut.

    OpenCV takes a small determinant for none, and pictures in [0, 1] have small ones: it is given 0 to 255.
    """
    image = photo(83, 97)
    x = (image[0] > image[0].median()).float()
    theirs = opencv().ximgproc.guidedFilter(
        np.ascontiguousarray(255 * image.permute(1, 2, 0).numpy()), 255 * x.numpy(), radius, eps * 255**2
    )
    border = 2 * radius
    ours = guided_filter(image[None].double(), x[None, None].double(), radius, eps)[
        0, 0, border:-border, border:-border
    ]
    assert_close(ours, torch.from_numpy(theirs / 255)[border:-border, border:-border], 1e-4)
    single = guided_filter(image[None], x[None, None], radius, eps)[0, 0, border:-border, border:-border]
    assert_close(single, ours, 1e-3)


def test_fast_guided_filter() -> None:
    """OpenCV's radius is then one of small pixels, and it makes them otherwise: the two are alike, not the same."""
    image = photo(120, 160)
    x = (image[0] > image[0].median()).float()
    theirs = opencv().ximgproc.guidedFilter(
        np.ascontiguousarray(255 * image.permute(1, 2, 0).numpy()), x.numpy(), 4, 1e-3 * 255**2, None, -1, 0.25
    )
    ours, exact = (guided_filter(image[None], x[None, None], 16, 1e-3, n)[0, 0] for n in (4, 1))
    inside = (slice(34, -34), slice(34, -34))
    gap = float((ours - torch.from_numpy(theirs))[inside].abs().mean())
    assert gap < 0.02 and gap < 0.5 * float((exact - x)[inside].abs().mean())
