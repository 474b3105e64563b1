"""DeiT against timm, transformers, torchvision and Pillow."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import jingdu
from jingdu.data.draws import Draws
from jingdu.papers.vit.deit import OPERATIONS, Distillation, colour_jitter
from jingdu.papers.vit.deit.augment import operate
from jingdu.papers.vit.deit.mixing import cutmix, mixed_targets, mixup
from tests.parity.references import assert_close, import_timm, import_torchvision, import_transformers, randomise_

TINY = {"embed_dim": 48, "depth": 3, "num_heads": 4, "num_classes": 11}
OURS = {"width": 48, "depth": 3, "heads": 4, "num_classes": 11}


def images(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=dtype)


def timm_file(folder: Path, name: str, **options: Any) -> nn.Module:
    reference = randomise_(import_timm().create_model(name, **options), torch.Generator().manual_seed(3)).eval()
    save_file(reference.state_dict(), folder / "model.safetensors")
    return reference


@pytest.mark.parametrize("name, options", [
    ("deit_tiny_distilled_patch16_224", {}),
    ("deit_base_patch16_384", {**TINY, "img_size": 64}),
    ("deit_small_distilled_patch16_224", {**TINY, "img_size": (48, 80), "in_chans": 1}),
])  # fmt: skip
def test_timms_logits(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    reference = timm_file(tmp_path, name, **options)
    named = {"embed_dim": "width", "num_heads": "heads", "img_size": "image_size", "in_chans": "in_channels"}
    ours = jingdu.create(
        f"timm/{name}", weights=tmp_path / "model.safetensors",
        **{named.get(key, key): value for key, value in options.items()},
    )  # fmt: skip
    x = images(1, options.get("in_chans", 3), *ours.image_size)
    with torch.inference_mode():
        print(f"difference {assert_close(ours(x), reference(x)):.1e}")
        taps = reference.forward_intermediates(x, norm=False, output_fmt="NLC", intermediates_only=True)
        for ours_tap, theirs in zip(ours.features(x), taps, strict=True):
            assert_close(ours_tap[:, ours.first :], theirs)


@pytest.mark.parametrize("distilled", [False, True])
@pytest.mark.parametrize("size", [32, (64, 112)])
def test_another_size_interpolates_positions_as_timm(size: Any, distilled: bool, tmp_path: Path) -> None:
    name = f"deit_tiny{'_distilled' * distilled}_patch16_224"
    reference = timm_file(tmp_path, name, **{**TINY, "img_size": 80})
    reference.set_input_size(img_size=size)
    ours = jingdu.create(f"timm/{name}", weights=tmp_path / "model.safetensors", image_size=size, **OURS)
    x = images(2, 3, *ours.image_size)
    with torch.inference_mode():
        assert_close(ours(x), reference(x))


def test_gradients_of_both_heads(tmp_path: Path) -> None:
    """In training mode, in double precision."""
    name = "deit_small_distilled_patch16_224"
    reference = timm_file(tmp_path, name, **{**TINY, "img_size": 48}).double().train()
    reference.set_distilled_training(True)
    ours = jingdu.create(f"timm/{name}", weights=tmp_path / "model.safetensors", image_size=48, **OURS).double().train()
    x = images(3, 3, 48, 48, dtype=torch.float64)
    for network in (ours, reference):
        logits, distilled = network(x)
        (logits.square().sum() + distilled.pow(3).sum()).backward()
    theirs = dict(reference.named_parameters())
    for mine, name in (
        ("class_token", "cls_token"), ("distillation_token", "dist_token"), ("positions", "pos_embed"),
        ("blocks.1.attention.qkv.weight", "blocks.1.attn.qkv.weight"), ("norm.weight", "norm.weight"),
        ("head.weight", "head.weight"), ("distillation_head.bias", "head_dist.bias"),
    ):  # fmt: skip
        assert_close(ours.get_parameter(mine).grad, theirs[name].grad, 1e-9)


def test_the_authors_file(tmp_path: Path) -> None:
    """facebookresearch/deit saves timm's names under "model"."""
    reference = timm_file(tmp_path, "deit_tiny_distilled_patch16_224", depth=2)
    torch.save({"model": reference.state_dict(), "epoch": 299}, tmp_path / "deit.pth")
    ours = jingdu.create("deit_tiny_distilled", weights=tmp_path / "deit.pth", depth=2)
    with torch.inference_mode():
        assert_close(ours(images(1, 3, 224, 224)), reference(images(1, 3, 224, 224)))


SIZES = {
    "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 100, "image_size": 64,
    "patch_size": 16, "id2label": {i: f"kind {i}" for i in range(11)},
}  # fmt: skip


@pytest.mark.parametrize("options", [{}, {"layer_norm_eps": 1e-6, "image_size": 32}])
def test_transformers_folder(options: dict[str, Any], tmp_path: Path) -> None:
    transformers = import_transformers()
    config = transformers.DeiTConfig(**{**SIZES, **options})
    reference = transformers.DeiTForImageClassificationWithTeacher(config)
    randomise_(reference, torch.Generator().manual_seed(6)).eval().save_pretrained(tmp_path)
    ours = jingdu.create("deit", weights=tmp_path)
    assert ours.origin.classes is not None and len(ours.origin.classes) == 11
    x = images(2, 3, *ours.image_size)
    with torch.inference_mode():
        theirs = reference(x)
        print(f"difference {assert_close(ours(x), theirs.logits):.1e}")
        for mine, wanted in zip(ours.both(x), (theirs.cls_logits, theirs.distillation_logits), strict=True):
            assert_close(mine, wanted)


def test_transformers_keeps_the_others_as_vit(tmp_path: Path) -> None:
    """facebook/deit-base-patch16-224 is a ViTForImageClassification."""
    transformers = import_transformers()
    reference = transformers.ViTForImageClassification(transformers.ViTConfig(**SIZES))
    randomise_(reference, torch.Generator().manual_seed(7)).eval().save_pretrained(tmp_path)
    ours = jingdu.create("deit", weights=tmp_path)
    with torch.inference_mode():
        assert_close(ours(images(2, 3, 64, 64)), reference(images(2, 3, 64, 64)).logits)


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


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_losses_are_timms(kind: str, tmp_path: Path) -> None:
    """TokenDistillationTask, whose soft labels are not divided by the classes; with random weights in all networks."""
    reference = timm_file(tmp_path, "deit_tiny_distilled_patch16_224", **{**TINY, "img_size": 48}).train()
    from timm.loss import LabelSmoothingCrossEntropy
    from timm.task import TokenDistillationTask

    teacher = randomise_(
        import_timm().create_model("resnet10t", num_classes=11), torch.Generator().manual_seed(8)
    ).eval()  # fmt: skip
    task = TokenDistillationTask(
        reference, teacher, LabelSmoothingCrossEntropy(0.1), distill_type=kind, temperature=3.0, task_loss_weight=0.6,
        distill_loss_weight=0.4 / 11 if kind == "soft" else 0.4, verbose=False,
    )  # fmt: skip
    student = jingdu.create(
        "timm/deit_tiny_distilled_patch16_224", weights=tmp_path / "model.safetensors", image_size=48, **OURS
    ).train()  # fmt: skip
    ours = Distillation(student, teacher, kind=kind, alpha=0.4, tau=3.0, mixup=0, cutmix=0).train()
    x, labels = images(5, 3, 48, 48), torch.arange(5)
    loss, _ = ours({"image": x, "label": labels}, "loss")
    wanted = task(x, labels)["loss"]
    print(f"difference {assert_close(loss, wanted):.1e}")
    loss.backward(), wanted.backward()
    for mine, name in (("distillation_token", "dist_token"), ("head.weight", "head.weight")):
        assert_close(student.get_parameter(mine).grad, reference.get_parameter(name).grad)
