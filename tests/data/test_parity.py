"""`prepare` against torchvision's transforms, to the last bit, at sizes where rounding matters."""

import pytest
import torch

from jingdu.data.images import normalise, prepare
from jingdu.data.preprocess import Preprocess
from tests.data.files import picture
from tests.parity.references import import_torchvision

SIZES = [(97, 61), (61, 97), (64, 64), (63, 64), (251, 33), (31, 29), (30, 30), (41, 200), (57, 43), (43, 58)]


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize(("resize", "size"), [(None, 32), (37, 32), (36, 31), (32, 32), (29, 34), (27, 31)])
def test_the_evaluation_view_equals_torchvisions(resize, size, interpolation):
    transforms = import_torchvision().transforms
    preprocess = Preprocess(
        size=size, resize=resize, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), interpolation=interpolation
    )
    theirs = transforms.Compose([
        transforms.Resize(resize or round(size / 0.875), transforms.InterpolationMode(interpolation)),
        transforms.CenterCrop(size),
        transforms.ToTensor(),
    ])  # fmt: skip
    norm = transforms.Normalize(preprocess.mean, preprocess.std)
    for seed, (width, height) in enumerate(SIZES):
        for mode in ("RGB", "L"):
            image = picture(width, height, seed, mode)
            ours = prepare(image, preprocess)
            assert torch.equal(ours, theirs(image)), (width, height, mode)
            if mode == "RGB":
                assert torch.equal(normalise(ours, preprocess), norm(theirs(image)))
