"""EfficientNet against torchvision, timm and transformers with the same random weights and statistics.

B0 and B2 are whole. Of the others some are compared with a quarter of their channels and all of their blocks; names and
shapes of all are compared by tests/weights/test_every_table.py.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import jingdu
from jingdu import canon
from jingdu.data.preprocess import IMAGENET
from jingdu.errors import Refused
from jingdu.papers.cnn.efficientnet import SIZES, VARIANTS
from jingdu.weights import detect
from tests.parity.references import assert_close, import_timm, import_torchvision, import_transformers, randomise_

ODD = (1, 3, 193, 257)
B = [name for name in VARIANTS if "_b" in name]


def images(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=dtype)


@torch.inference_mode()
def compare(ours: nn.Module, reference: nn.Module, *shapes: tuple[int, ...]) -> None:
    for shape in shapes:
        output = reference(images(shape))
        print(f"difference {assert_close(ours(images(shape)), getattr(output, 'logits', output)):.1e}")


def filled(reference: nn.Module, path: Path, seed: int = 3) -> nn.Module:
    """Random weights and statistics, which are saved."""
    randomise_(reference, torch.Generator().manual_seed(seed)).eval()
    save_file(reference.state_dict(), path)
    return reference


def whole(name: str, **options: Any) -> nn.Module:
    library, _, theirs = name.partition("/")
    if library == "torchvision":
        return import_torchvision().models.get_model(theirs, weights=None, **options)
    return import_timm().create_model(theirs, **options)


@pytest.mark.parametrize("name", ["torchvision/efficientnet_b0", "timm/efficientnet_b0", "timm/tf_efficientnet_b0"])
def test_b0_is_theirs(name: str, tmp_path: Path) -> None:
    reference = filled(whole(name), tmp_path / "model.safetensors")
    compare(jingdu.create(name, weights=tmp_path / "model.safetensors"), reference, (1, 3, 224, 224))
    reference = filled(whole(name, num_classes=11), tmp_path / "other.safetensors", seed=4)
    compare(jingdu.create(name, weights=tmp_path / "other.safetensors", num_classes=11), reference, ODD)


def thin_torchvision(variant: str) -> nn.Module:
    efficientnet = import_torchvision().models.efficientnet
    rows, last = efficientnet._efficientnet_conf(
        "efficientnet_b0", width_mult=0.25, depth_mult=VARIANTS[variant]["depth"]
    )
    # Its functions for B5 to B7 ask for these.
    norm = {"norm_layer": lambda width: nn.BatchNorm2d(width, eps=0.001, momentum=0.01)} if variant[-1] in "567" else {}
    return efficientnet.EfficientNet(rows, 0.2, num_classes=11, last_channel=last, **norm)


def thin_timm(variant: str, **options: Any) -> nn.Module:
    make = import_timm().models.efficientnet._gen_efficientnet
    depth = VARIANTS[variant]["depth"]
    return make("efficientnet_b0", channel_multiplier=0.25, depth_multiplier=depth, num_classes=11, **options)


def thin_timm_tf(variant: str) -> nn.Module:
    return thin_timm(variant, pad_type="same", bn_eps=0.001)


@pytest.mark.parametrize("prefix, make", [
    ("torchvision/", thin_torchvision), ("timm/", thin_timm), ("timm/tf_", thin_timm_tf),
])  # fmt: skip
def test_deeper_ones(prefix: str, make: Callable[[str], nn.Module], tmp_path: Path) -> None:
    for variant in {"torchvision/": (B[1], B[7]), "timm/": (B[3],), "timm/tf_": (B[4],)}[prefix]:
        reference = filled(make(variant), tmp_path / "model.safetensors")
        ours = jingdu.create(f"{prefix}{variant}", weights=tmp_path / "model.safetensors", width=0.25, num_classes=11)
        assert {m.eps for m in ours.modules() if isinstance(m, nn.BatchNorm2d)} == {
            m.eps for m in reference.modules() if isinstance(m, nn.BatchNorm2d)
        }
        compare(ours, reference, (1, 3, 93, 121))


PADDED = {"b0": (), "b2": (5, 8, 16)}
"""depthwise_padding of the released checkpoints."""


def transformers_folder(folder: Path, which: str, labels: int, **config: Any) -> nn.Module:
    transformers = import_transformers()
    variant = VARIANTS[f"efficientnet_{which}"]
    kind = transformers.EfficientNetConfig(
        width_coefficient=variant["width"], depth_coefficient=variant["depth"], depthwise_padding=list(PADDED[which]),
        hidden_dim={"b0": 1280, "b2": 1408}[which], id2label={i: f"kind {i}" for i in range(labels)}, **config,
    )  # fmt: skip
    reference = randomise_(transformers.EfficientNetForImageClassification(kind), torch.Generator().manual_seed(5))
    reference.save_pretrained(folder)
    return reference.eval()


@pytest.mark.parametrize("which", PADDED)
def test_transformers_folder(which: str, tmp_path: Path) -> None:
    """At the size of its checkpoint, where keras' padding is TensorFlow's, and at another, where it is its own."""
    reference = transformers_folder(tmp_path, which, 13)
    size = SIZES[f"efficientnet_{which}"]
    for ours in (
        jingdu.create("efficientnet", weights=tmp_path),
        jingdu.create(f"transformers/efficientnet_{which}", weights=tmp_path / "model.safetensors", num_classes=13),
    ):
        assert ours.origin.variant == f"efficientnet_{which}" and ours.square == PADDED[which]
        assert (ours.stem.bn.eps, ours.stem.bn.momentum) == (0.001, 0.01)
        compare(ours, reference, ODD)
    compare(ours, reference, (1, 3, size, size))
    if which == "b0":
        ours.stages.apply(lambda m: setattr(m, "rule", "same") if getattr(m, "rule", "") == "keras" else None)
        compare(ours, reference, (1, 3, 64, 96))


@pytest.mark.parametrize("change", [{"expand_ratios": [1, 4, 6, 6, 6, 6, 6]}, {"width_coefficient": 1.05}, {"hidden_act": "relu"}])  # fmt: skip
def test_another_network_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    transformers = import_transformers()
    config = transformers.EfficientNetConfig(**{"width_coefficient": 1.0, "depth_coefficient": 1.0, **change})
    config.architectures = ["EfficientNetForImageClassification"]
    config.save_pretrained(tmp_path)
    save_file({"x": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(Refused, match="width" if "width_coefficient" in change else next(iter(change))):
        jingdu.create("efficientnet", weights=tmp_path)


def test_features_are_timms_at_an_output_stride(tmp_path: Path) -> None:
    for stride in (8, 16):
        reference = filled(thin_timm("efficientnet_b1", output_stride=stride), tmp_path / "model.safetensors")
        path, options = tmp_path / "model.safetensors", {"width": 0.25, "num_classes": 11, "output_stride": stride}
        ours = jingdu.create("timm/efficientnet_b1", weights=path, **options)
        with torch.inference_mode():
            x = images((2, 3, 97, 65))
            theirs = reference.forward_intermediates(x, intermediates_only=True)
            for a, b in zip(ours.features(x), theirs, strict=True):
                assert_close(a, b)


def test_timm_folder(tmp_path: Path) -> None:
    timm = import_timm()
    reference = filled(whole("timm/tf_efficientnet_b0", num_classes=17), tmp_path / "model.safetensors")
    timm.models._hub.save_config_for_hf(reference, str(tmp_path / "config.json"), model_args={"drop_path_rate": 0.3})
    ours = jingdu.create("efficientnet", weights=tmp_path)
    assert (ours.origin.variant, ours.drop_connect, ours.stem.rule) == ("efficientnet_b0", 0.3, "same")
    assert ours.origin.preprocess == replace(IMAGENET, interpolation="bicubic")
    compare(ours, reference, (2, 3, 97, 65))


def test_train_mode_gradients_and_statistics(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    reference = filled(thin_timm_tf("efficientnet_b1"), path).train()
    ours = jingdu.create("timm/tf_efficientnet_b1", weights=path, width=0.25, num_classes=11).train()
    fit = detect(reference.state_dict(), None, "efficientnet", "timm", ours.state_dict(), "efficientnet_b1")
    pairs = {entry.ours[0]: entry.theirs[0] for entry in fit.entries}
    # timm has torch's momentum where TensorFlow's epsilon is asked for: statistics are compared with one of both.
    ours.apply(lambda m: setattr(m, "momentum", 0.1) if isinstance(m, nn.BatchNorm2d) else None)
    x = images((3, 3, 65, 97), torch.float64)
    for model in (ours.double(), reference.double()):  # the float32 values are the same, so these are
        nn.functional.cross_entropy(model(x), torch.tensor([1, 5, 9])).backward()
    theirs, after = dict(reference.named_parameters()), reference.state_dict()
    for key, parameter in ours.named_parameters():
        # Before a linear layer and its norm a bias changes nothing: its gradient is zero but for rounding.
        expected = theirs[pairs[key]].grad.view_as(parameter)
        if expected.abs().max() > 1e-12:
            assert_close(parameter.grad, expected, relative=1e-8)
        else:
            assert parameter.grad.abs().max() < 1e-12 and key.endswith("project.bn.bias")
    for key, value in ours.state_dict().items():
        assert_close(value, after[pairs[key]].view_as(value), relative=1e-9)


def test_every_port_that_has_a_variant_is_named() -> None:
    aliases = canon.paper("efficientnet").aliases
    assert {f"{library}/{name}" for library in ("torchvision", "timm", "transformers") for name in B} <= set(aliases)
    assert {f"timm/tf_{name}" for name in VARIANTS} <= set(aliases)
