"""DeiT against timm, transformers, torchvision and Pillow."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from PIL import Image

from jingdu.data.draws import Draws
from jingdu.papers.vit.deit import OPERATIONS, colour_jitter
from jingdu.papers.vit.deit.augment import operate
from jingdu.papers.vit.deit.mixing import cutmix, mixed_targets, mixup
from tests.parity.references import assert_close, import_timm, import_torchvision

THEIRS = {
    "auto_contrast": "AutoContrast", "equalize": "Equalize", "invert": "Invert", "rotate": "Rotate",
    "posterize": "PosterizeIncreasing", "solarize": "SolarizeIncreasing", "solarize_add": "SolarizeAdd",
    "colour": "ColorIncreasing", "contrast": "ContrastIncreasing", "brightness": "BrightnessIncreasing",
    "sharpness": "SharpnessIncreasing", "shear_x": "ShearX", "shear_y": "ShearY", "translate_x": "TranslateXRel",
    "translate_y": "TranslateYRel",
}  # fmt: skip


def pictures() -> np.ndarray:
    """Six of 37 x 53 pixels: noise, one of one value, one of few values, one with a channel of one value."""
    found = np.clip(np.random.default_rng(0).normal(120, 60, (6, 37, 53, 3)), 0, 255).astype(np.uint8)
    found[0], found[1], found[5, :, :, 1] = 100, found[1] // 3 + 40, 7
    return found


def cases(name: str) -> Iterator[tuple[float, int]]:
    # timm's posterize keeps 0 bits at level 10, which Pillow 13 refuses.
    yield from (
        (level, sign) for level in (0.0, 1.7, 5.0, 8.6, 9.99 if name == "posterize" else 10.0) for sign in (1, -1)
    )


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_are_timms(name: str, channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of fifteen at every level, on colour and on grey: equal, but for one pixel in 20,000 that rounds otherwise."""
    import_timm()
    from timm.data import auto_augment

    found = pictures()[..., :channels]
    x = torch.from_numpy(found).permute(0, 3, 1, 2).contiguous()
    paint, colour = torch.tensor((124, 116, 104)[:channels], dtype=torch.uint8), (124, 116, 104)[:channels]
    options = {"fillcolor": colour if channels == 3 else colour[0], "resample": Image.Resampling.BICUBIC}
    differ = total = 0
    for level, sign in cases(name):
        monkeypatch.setattr(auto_augment, "_randomly_negate", lambda value, sign=sign: value * sign)
        amount = OPERATIONS[name][1](torch.full((6,), level, dtype=torch.float64), torch.full((6,), sign))
        ours = operate(x, name, amount, paint).int()
        level_to_arguments = auto_augment.LEVEL_TO_ARG[THEIRS[name]]
        arguments = level_to_arguments(level, {}) if level_to_arguments else ()
        function = auto_augment.NAME_TO_OP[THEIRS[name]]
        theirs = [
            np.asarray(function(Image.fromarray(one if channels == 3 else one[..., 0]), *arguments, **options))
            for one in found
        ]
        gap = (ours - torch.from_numpy(np.stack(theirs)).view(found.shape).permute(0, 3, 1, 2).int()).abs()
        assert gap.max() <= 1
        differ, total = differ + int((gap > 0).sum()), total + gap.numel()
    assert differ <= total / 20_000
    assert THEIRS[name] in auto_augment._RAND_INCREASING_TRANSFORMS and len(THEIRS) == 15


def test_jitter_is_torchvisions() -> None:
    import_torchvision()
    from torchvision.transforms import functional

    images = torch.rand(5, 3, 13, 17)
    seen = Draws(3, 0, np.arange(5))
    factors = 0.7 + seen.uniform(3) * 0.6
    orders = seen.uniform(3).argsort(1)
    adjust = (functional.adjust_brightness, functional.adjust_contrast, functional.adjust_saturation)
    ours = colour_jitter(images, Draws(3, 0, np.arange(5)))
    for image, jittered, factor, order in zip(images, ours, factors.tolist(), orders.tolist(), strict=True):
        for number in order:
            image = adjust[number](image, factor[number])
        assert_close(jittered, image, 1e-5)


@pytest.mark.parametrize("share, centre", [(0.3, (0.2, 0.9)), (0.85, (0.5, 0.5)), (0.04, (0.99, 0.0))])
def test_mixing_is_timms(share: float, centre: tuple[float, float], monkeypatch: pytest.MonkeyPatch) -> None:
    import_timm()
    from timm.data import mixup as theirs

    images, labels = torch.rand(6, 3, 13, 17), torch.tensor([0, 1, 2, 3, 4, 2])
    places = [int(place * side) for place, side in zip(centre, (13, 17), strict=True)]
    for cuts in (False, True):
        drawn = iter(places)
        monkeypatch.setattr(theirs.np.random, "randint", lambda *a, drawn=drawn, **k: np.int64(next(drawn)))
        mixer = theirs.Mixup(0.8, 1.0, label_smoothing=0.1, num_classes=5)
        monkeypatch.setattr(mixer, "_params_per_batch", lambda cuts=cuts: (share, cuts))
        wanted, targets = mixer(images.clone(), labels)
        mixed, stayed = cutmix(images, share, centre) if cuts else (mixup(images, share), share)
        assert_close(mixed, wanted, 1e-6)
        assert_close(mixed_targets(labels, 5, stayed, 0.1), targets, 1e-6)
