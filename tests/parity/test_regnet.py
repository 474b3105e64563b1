"""RegNet against torchvision, timm and transformers with the same random weights and statistics.

The smaller ones are whole; names, shapes and counts of all are compared by tests/weights/test_every_table.py.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import jingdu
from jingdu.data.preprocess import IMAGENET
from jingdu.errors import Refused
from jingdu.weights import detect
from tests.parity.references import assert_close, import_timm, import_torchvision, import_transformers, randomise_

NATIVE, ODD = (1, 3, 224, 224), (1, 3, 193, 257)


def images(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=dtype)


@torch.inference_mode()
def compare(ours: nn.Module, reference: nn.Module, *shapes: tuple[int, ...]) -> None:
    for shape in shapes:
        output = reference(images(shape))
        print(f"difference {assert_close(ours(images(shape)), getattr(output, 'logits', output)):.1e}")


def reference_of(name: str, path: Path, **options: Any) -> nn.Module:
    """Random weights and statistics, which are saved."""
    library, _, theirs = name.partition("/")
    model = (
        import_torchvision().models.get_model(theirs, weights=None, **options)
        if library == "torchvision"
        else import_timm().create_model(theirs, **options)
    )
    randomise_(model, torch.Generator().manual_seed(3)).eval()
    save_file(model.state_dict(), path)
    return model


@pytest.mark.parametrize("name", [
    "timm/regnetx_002", "timm/regnety_002", "timm/regnetx_004_tv", "torchvision/regnet_x_400mf",
    "torchvision/regnet_y_800mf", "timm/regnety_040",
])  # fmt: skip
def test_same_logits(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    options = {"num_classes": 11} if name.endswith(("002", "040")) else {}
    reference = reference_of(name, path, **options)
    ours = jingdu.create(name, weights=path, **options)
    assert not ours.training
    compare(ours, reference, ODD if options else NATIVE)


def test_the_other_rounding_is_another_network() -> None:
    counts = {
        name: sum(p.numel() for p in jingdu.create(name).parameters())
        for name in ("torchvision/regnet_x_400mf", "timm/regnety_008_tv", "torchvision/regnet_y_8gf")
    }
    assert list(counts.values()) == [5495976, 6432512, 39381472]  # torchvision's num_params


@pytest.mark.parametrize("kind, sizes, depths, group, variant", [
    ("x", (24, 56, 152, 368), (1, 1, 4, 7), 8, "regnet_x200mf"),
    ("y", (48, 104, 208, 440), (1, 3, 6, 6), 8, "regnet_y400mf"),
])  # fmt: skip
def test_transformers_folder(kind: str, sizes: tuple, depths: tuple, group: int, variant: str, tmp_path: Path) -> None:
    transformers = import_transformers()
    labels = {i: f"kind {i}" for i in range(13)}
    config = transformers.RegNetConfig(
        layer_type=kind, hidden_sizes=list(sizes), depths=list(depths), groups_width=group, id2label=labels
    )
    reference = randomise_(transformers.RegNetForImageClassification(config), torch.Generator().manual_seed(4)).eval()
    reference.save_pretrained(tmp_path)
    ours = jingdu.create("regnet", weights=tmp_path)
    assert ours.origin.variant == variant and ours.origin.classes == tuple(labels.values())
    compare(ours, reference, ODD)
    config.hidden_sizes[1] += 8
    config.save_pretrained(tmp_path)
    with pytest.raises(Refused, match="none of the paper's RegNets"):
        jingdu.create("regnet", weights=tmp_path)


def test_features_are_timms(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    reference = reference_of("timm/regnety_002", path)
    ours = jingdu.create("timm/regnety_002", weights=path)
    with torch.inference_mode():
        x = images((2, 3, 97, 65))
        theirs = reference.forward_intermediates(x, intermediates_only=True)[1:]  # the first is the stem
        for a, b in zip(ours.features(x), theirs, strict=True):
            assert_close(a, b)


def test_timm_folder(tmp_path: Path) -> None:
    timm = import_timm()
    reference = reference_of("timm/regnetx_002", tmp_path / "model.safetensors", num_classes=17)
    timm.models._hub.save_config_for_hf(reference, str(tmp_path / "config.json"))
    ours = jingdu.create("regnet", weights=tmp_path)
    assert ours.origin.variant == "regnet_x200mf" and ours.origin.preprocess.mean == IMAGENET.mean
    compare(ours, reference, (2, 3, 97, 65))


def test_train_mode_gradients_and_statistics(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    reference = reference_of("timm/regnety_002", path, num_classes=11).train()
    ours = jingdu.create("timm/regnety_002", weights=path, num_classes=11).train()
    fit = detect(reference.state_dict(), None, "regnet", "timm", ours.state_dict(), "regnet_y200mf")
    pairs = {entry.ours[0]: entry.theirs[0] for entry in fit.entries}
    x = images((3, 3, 65, 97), torch.float64)
    for model in (ours.double(), reference.double()):  # the float32 values are the same, so these are
        nn.functional.cross_entropy(model(x), torch.tensor([1, 5, 9])).backward()
    theirs, after = dict(reference.named_parameters()), reference.state_dict()
    for key, parameter in ours.named_parameters():
        assert_close(parameter.grad, theirs[pairs[key]].grad.view_as(parameter), relative=1e-8)
    for key, value in ours.state_dict().items():
        assert_close(value, after[pairs[key]].view_as(value), relative=1e-9)
