"""MobileNet, both versions, against torchvision, timm and transformers with the same random weights and statistics."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import jingdu
from jingdu.data.preprocess import IMAGENET
from jingdu.errors import Refused
from jingdu.papers.cnn.mobilenet import drop_background
from jingdu.weights import detect
from tests.parity.references import assert_close, import_timm, import_torchvision, import_transformers, randomise_

NATIVE, ODD = (1, 3, 224, 224), (1, 3, 193, 257)
V1, V2 = ("100", "025"), ("140", "035")
NAMES = [
    "torchvision/mobilenet_v2", "timm/mobilenetv1_100", "timm/mobilenetv1_125", "timm/mobilenetv2_140",
    "timm/mobilenetv2_035",
]  # fmt: skip
"""Names and shapes of all widths are compared by tests/weights/test_every_table.py."""


def reference_of(name: str, seed: int = 3, **options: Any) -> nn.Module:
    library, _, theirs = name.partition("/")
    model = (
        import_torchvision().models.get_model(theirs, weights=None, **options)
        if library == "torchvision"
        else import_timm().create_model(theirs, **options)
    )
    return randomise_(model, torch.Generator().manual_seed(seed)).eval()


def images(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=dtype)


@torch.inference_mode()
def compare(ours: nn.Module, reference: nn.Module, *shapes: tuple[int, ...]) -> None:
    for shape in shapes:
        output = reference(images(shape))
        print(f"difference {assert_close(ours(images(shape)), getattr(output, 'logits', output)):.1e}")


@pytest.mark.parametrize("name", NAMES)
def test_same_logits(name: str, tmp_path: Path) -> None:
    for options, shape in (({}, NATIVE), ({"num_classes": 11}, ODD)):
        reference = reference_of(name, **options)
        save_file(reference.state_dict(), tmp_path / "model.safetensors")
        ours = jingdu.create(name, weights=tmp_path / "model.safetensors", **options)
        assert not ours.training
        compare(ours, reference, shape)


def transformers_folder(version: int, folder: Path, labels: dict[int, str], **config: Any) -> nn.Module:
    transformers = import_transformers()
    kind = getattr(transformers, f"MobileNetV{version}Config")(id2label=labels, **config)
    reference = getattr(transformers, f"MobileNetV{version}ForImageClassification")(kind)
    randomise_(reference, torch.Generator().manual_seed(4))
    reference.save_pretrained(folder)
    return reference.eval()


@pytest.mark.parametrize("version, width", [*((1, width) for width in V1), *((2, width) for width in V2)])
def test_transformers_folder(version: int, width: str, tmp_path: Path) -> None:
    """As google/mobilenet_v1_1.0_224: TensorFlow's padding and epsilon, and a class more than ImageNet has."""
    labels = {i: f"kind {i}" for i in range(13)}
    reference = transformers_folder(version, tmp_path, labels, depth_multiplier=int(width) / 100)
    ours = jingdu.create("mobilenet", weights=tmp_path)
    assert ours.origin.variant == f"mobilenet_v{version}_{width}" and ours.origin.classes == tuple(labels.values())
    assert ours.stem.bn.eps == 0.001 and ours.stem.bn.momentum == {1: 0.0003, 2: 0.003}[version]
    compare(ours, reference, NATIVE if width in ("025", "140") else ODD)
    named = jingdu.create(
        f"transformers/mobilenet_v{version}_{width}", weights=tmp_path / "model.safetensors", num_classes=13
    )
    compare(named, reference, (2, 3, 97, 65))


@pytest.mark.parametrize("version, config", [
    (1, {"tf_padding": False, "layer_norm_eps": 1e-5, "hidden_act": "relu", "num_channels": 1}),
    (2, {"tf_padding": False, "layer_norm_eps": 1e-5}),
    (2, {"output_stride": 8}),
    (2, {"output_stride": 16, "depth_multiplier": 1.3}),
])  # fmt: skip
def test_transformers_options(version: int, config: dict[str, Any], tmp_path: Path) -> None:
    reference = transformers_folder(version, tmp_path, {i: f"kind {i}" for i in range(7)}, **config)
    ours = jingdu.create("mobilenet", weights=tmp_path)
    channels = config.get("num_channels", 3)
    compare(ours, reference, (2, channels, 97, 129), (1, channels, 64, 96))


@pytest.mark.parametrize("change", [{"expand_ratio": 4.0}, {"min_depth": 16}, {"hidden_act": "silu"}])
def test_another_network_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    transformers_folder(2, tmp_path, {i: f"kind {i}" for i in range(7)}, depth_multiplier=0.35)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(Refused, match=next(iter(change))):
        jingdu.create("mobilenet", weights=tmp_path)


def test_the_background_class_goes(tmp_path: Path) -> None:
    labels = {0: "background", **{i: f"kind {i}" for i in range(1, 7)}}
    reference = transformers_folder(1, tmp_path, labels, depth_multiplier=0.25)
    ours = drop_background(jingdu.create("mobilenet", weights=tmp_path))
    assert ours.origin.classes == tuple(labels.values())[1:] and ours.origin.overrides["num_classes"] == 6
    with torch.inference_mode():
        assert_close(ours(images((2, 3, 65, 97))), reference(images((2, 3, 65, 97))).logits[:, 1:])
    jingdu.export(ours, "jingdu", tmp_path / "ours.safetensors")
    again = jingdu.create("mobilenet", weights=tmp_path / "ours.safetensors")
    assert again.fc.out_features == 6 and again.origin.classes == ours.origin.classes


@pytest.mark.parametrize("name", ["timm/mobilenetv1_100", "timm/mobilenetv2_050"])
@pytest.mark.parametrize("stride", [8, 16, 32])
def test_features_at_every_output_stride(name: str, stride: int, tmp_path: Path) -> None:
    reference = reference_of(name, output_stride=stride)
    save_file(reference.state_dict(), tmp_path / "model.safetensors")
    ours = jingdu.create(name, weights=tmp_path / "model.safetensors", output_stride=stride)
    with torch.inference_mode():
        x = images((2, 3, 97, 65))
        theirs = reference.forward_intermediates(x, intermediates_only=True)
        for a, b in zip(ours.features(x), theirs, strict=True):
            assert_close(a, b)
        assert [tap.shape[1] for tap in theirs] == ours.channels


def test_timm_folder(tmp_path: Path) -> None:
    timm = import_timm()
    reference = reference_of("timm/mobilenetv2_035", num_classes=17, drop_rate=0.3, output_stride=16)
    save_file(reference.state_dict(), tmp_path / "model.safetensors")
    arguments = {"drop_rate": 0.3, "output_stride": 16}
    timm.models._hub.save_config_for_hf(reference, str(tmp_path / "config.json"), model_args=arguments)
    ours = jingdu.create("mobilenet", weights=tmp_path)
    assert (ours.origin.variant, ours.dropout.p) == ("mobilenet_v2_035", 0.3)
    assert ours.origin.preprocess == replace(IMAGENET, interpolation="bicubic")
    compare(ours, reference, (2, 3, 97, 65))


@pytest.mark.parametrize("name", ["timm/mobilenetv1_100", "torchvision/mobilenet_v2"])
def test_train_mode_gradients_and_statistics(name: str, tmp_path: Path) -> None:
    options = {"num_classes": 11, **({"dropout": 0.0} if name.startswith("torchvision") else {})}
    reference = reference_of(name, seed=5, **options).train()
    save_file(reference.state_dict(), tmp_path / "model.safetensors")
    ours = jingdu.create(name, weights=tmp_path / "model.safetensors", **options).train()
    fit = detect(reference.state_dict(), None, "mobilenet", None, ours.state_dict(), ours.origin.variant)
    pairs = {entry.ours[0]: entry.theirs[0] for entry in fit.entries}
    x = images((3, 3, 65, 97), torch.float64)
    for model in (ours.double(), reference.double()):  # the float32 values are the same, so these are
        nn.functional.cross_entropy(model(x), torch.tensor([1, 5, 9])).backward()
    theirs, after = dict(reference.named_parameters()), reference.state_dict()
    for key, parameter in ours.named_parameters():
        # Before a linear layer and its norm a bias changes nothing: its gradient is zero but for rounding.
        expected = theirs[pairs[key]].grad
        if expected.abs().max() > 1e-12:
            assert_close(parameter.grad, expected, relative=1e-9)
        else:
            assert parameter.grad.abs().max() < 1e-12 and key.endswith("project.bn.bias")
    for key, value in ours.state_dict().items():
        assert_close(value, after[pairs[key]], relative=1e-9)
