"""ResNet against torchvision, timm and transformers with the same random weights and statistics."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import jingdu
from tests.parity.references import assert_close, import_timm, import_torchvision, import_transformers, randomise_

SHAPES = [(1, 3, 224, 224), (2, 3, 193, 257), (5, 3, 65, 97)]
ALL = ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]


def compare(ours: torch.nn.Module, reference: torch.nn.Module, shapes: list[tuple[int, ...]]) -> None:
    reference.eval()
    with torch.inference_mode():
        for shape in shapes:
            x = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))
            output = reference(x)
            assert_close(ours(x), getattr(output, "logits", output))


@pytest.mark.parametrize("variant", ALL)
@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_same_logits(library: str, variant: str, tmp_path: Path) -> None:
    if library == "torchvision":
        reference = getattr(import_torchvision().models, variant)(weights=None)
    else:
        reference = import_timm().create_model(variant)
    randomise_(reference, torch.Generator().manual_seed(3))
    path = tmp_path / ("model.safetensors" if library == "timm" else "model.pth")
    if library == "timm":
        save_file(reference.state_dict(), path)
    else:
        torch.save(reference.state_dict(), path)
    # The deep ones at one size: the small ones have shown the other.
    compare(
        jingdu.create(f"{library}/{variant}", weights=path), reference, SHAPES if variant in ALL[:3] else SHAPES[1:]
    )


@pytest.mark.parametrize("kind", ["basic", "bottleneck"])
def test_transformers_folder(kind: str, tmp_path: Path) -> None:
    transformers = import_transformers()
    sizes = {"basic": [64, 128, 256, 512], "bottleneck": [256, 512, 1024, 2048]}[kind]
    depths = {"basic": [2, 2, 2, 2], "bottleneck": [3, 4, 6, 3]}[kind]
    labels = {i: f"kind {i}" for i in range(7)}
    config = transformers.ResNetConfig(layer_type=kind, hidden_sizes=sizes, depths=depths, id2label=labels)
    reference = transformers.ResNetForImageClassification(config)
    randomise_(reference, torch.Generator().manual_seed(4))
    reference.save_pretrained(tmp_path)
    ours = jingdu.create("resnet", weights=tmp_path)
    assert ours.origin.variant == {"basic": "resnet18", "bottleneck": "resnet50"}[kind]
    assert ours.origin.classes == tuple(labels.values())
    compare(ours, reference, SHAPES)


def test_train_mode_gradients_and_statistics(tmp_path: Path) -> None:
    reference = import_torchvision().models.resnet50(weights=None, num_classes=11)
    randomise_(reference, torch.Generator().manual_seed(5))
    reference = reference.double()
    save_file(reference.state_dict(), tmp_path / "m.safetensors")
    ours = jingdu.create("torchvision/resnet50", weights=tmp_path / "m.safetensors", num_classes=11)
    ours = ours.double()
    # `create` converts to the network's float32: the float64 comparison needs the exact values back.
    ours.load_state_dict({k: v for k, v in zip(ours.state_dict(), _in_order(reference, ours), strict=True)})
    x = torch.randn(3, 3, 65, 97, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([1, 5, 9])
    for model in (ours, reference):
        model.train()
        torch.nn.functional.cross_entropy(model(x), labels).backward()
    for (name, p), q in zip(ours.named_parameters(), _in_order(reference, ours, gradients=True), strict=True):
        assert_close(p.grad, q, relative=1e-7), name
    for p, q in zip(ours.state_dict().values(), _in_order(reference, ours), strict=True):
        if p.is_floating_point():
            assert_close(p, q, relative=1e-9)


def _in_order(reference: torch.nn.Module, ours: torch.nn.Module, gradients: bool = False) -> list[torch.Tensor]:
    """The reference's tensors in the order of ours."""

    def theirs(key: str) -> str:
        for i in range(2, 6):
            key = key.replace(f"conv{i}_x", f"layer{i - 1}")
        return key.replace("shortcut.conv", "downsample.0").replace("shortcut.bn", "downsample.1")

    if gradients:
        named = dict(reference.named_parameters())
        return [named[theirs(key)].grad for key, _ in ours.named_parameters()]
    state = reference.state_dict()
    return [state[theirs(key)] for key in ours.state_dict()]


def test_other_number_of_classes_is_explained(tmp_path: Path) -> None:
    from jingdu.errors import Refused

    reference = import_torchvision().models.resnet18(weights=None, num_classes=7)
    save_file(reference.state_dict(), tmp_path / "m.safetensors")
    with pytest.raises(Refused, match="num_classes=7"):
        jingdu.create("torchvision/resnet18", weights=tmp_path / "m.safetensors")
    assert jingdu.create("torchvision/resnet18", weights=tmp_path / "m.safetensors", num_classes=7) is not None
