"""VGG against torchvision and timm with the same random weights and statistics.

The full nets are half a gigabyte each: two of either library are whole, and all others have torchvision's classes with
few channels. The key names of all are compared.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import jingdu
from jingdu.data.preprocess import IMAGENET
from jingdu.errors import Refused
from jingdu.weights import detect
from jingdu.weights.tables import tables
from tests.parity.references import assert_close, import_timm, import_torchvision, randomise_

ALL = [f"vgg{depth}{norm}" for depth in (11, 13, 16, 19) for norm in ("", "_bn")]
SHAPES = [(1, 3, 224, 224), (2, 3, 193, 257)]
WIDTHS = {64: 3, 128: 5, 256: 7, 512: 11}
NARROW = {"widths": (3, 5, 7, 11, 11, 13, 17), "num_classes": 19}


def torchvision_vgg(variant: str, narrow: bool = True, dropout: float = 0.5) -> nn.Module:
    """torchvision's network, or the same with few channels, and random weights."""
    vgg = import_torchvision().models.vgg
    with torch.device("meta"):
        model = getattr(vgg, variant)(weights=None, dropout=dropout)
    if narrow:
        column = {"vgg11": "A", "vgg13": "B", "vgg16": "D", "vgg19": "E"}[variant.removesuffix("_bn")]
        layers = [WIDTHS.get(entry, entry) for entry in vgg.cfgs[column]]
        model.features = vgg.make_layers(layers, batch_norm=variant.endswith("_bn"))
        for place, inputs, outputs in ((0, 11 * 49, 13), (3, 13, 17), (6, 17, 19)):
            model.classifier[place] = nn.Linear(inputs, outputs)
    return filled(model)


def filled(model: nn.Module) -> nn.Module:
    """A network of the meta device with memory and random values; that is quicker than to start it by its own rule."""
    model = model.to_empty(device="cpu")
    for name, buffer in model.named_buffers():
        if name.endswith("num_batches_tracked"):
            buffer.fill_(3)
    return randomise_(model, torch.Generator().manual_seed(7)).eval()


@torch.inference_mode()
def compare(ours: nn.Module, reference: nn.Module, shapes: list[tuple[int, ...]]) -> float:
    worst = 0.0
    for shape in shapes:
        x = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))
        worst = max(worst, assert_close(ours(x), reference(x)))
    print(f"largest relative difference {worst:.1e}")
    return worst


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder whose large files do not outlive the test."""
    yield tmp_path
    for path in tmp_path.rglob("*"):
        if path.is_file():
            path.unlink()


def save(model: nn.Module, path: Path) -> Path:
    if path.suffix == ".pth":
        torch.save(model.state_dict(), path)
    else:
        save_file(model.state_dict(), path)
    return path


@pytest.mark.parametrize("variant, file", [("vgg11", "model.pth"), ("vgg19_bn", "model.safetensors")])
def test_whole_networks_of_torchvision(variant: str, file: str, folder: Path) -> None:
    reference = torchvision_vgg(variant, narrow=False)
    ours = jingdu.create(f"torchvision/{variant}", weights=save(reference, folder / file))
    compare(ours, reference, SHAPES)


@pytest.mark.parametrize("file", ["model.pth", "model.safetensors"])
@pytest.mark.parametrize("variant", ALL)
def test_all_of_torchvision_with_few_channels(variant: str, file: str, folder: Path) -> None:
    reference = torchvision_vgg(variant)
    ours = jingdu.create(f"torchvision/{variant}", weights=save(reference, folder / file), **NARROW)
    assert not ours.training
    compare(ours, reference, [*SHAPES, (5, 3, 65, 97)])


def test_a_whole_network_of_timm(folder: Path, variant: str = "vgg11") -> None:
    """Their dense layers are convolutions, so that a larger picture gives a class map, which is averaged."""
    timm = import_timm()
    with torch.device("meta"):
        reference = timm.create_model(variant, num_classes=23, drop_rate=0.3)
    reference = filled(reference)
    save(reference, folder / "model.safetensors")
    timm.models._hub.save_config_for_hf(reference, str(folder / "config.json"), model_args={"drop_rate": 0.3})
    ours = jingdu.create("vgg", weights=folder)
    assert ours.origin.variant == variant and ours.dense and ours.dropout.p == 0.3
    assert ours.origin.preprocess == IMAGENET
    compare(ours, reference, [(1, 3, 224, 224), (1, 3, 193, 257), (1, 3, 257, 321)])


@pytest.mark.parametrize("variant", ALL)
def test_convolutions_of_timm_with_few_channels(variant: str) -> None:
    timm = import_timm()
    layers = [WIDTHS.get(entry, entry) for entry in timm.models.vgg.cfgs[variant.removesuffix("_bn")]]
    with torch.device("meta"):
        reference = timm.models.vgg.VGG(layers, norm_layer=nn.BatchNorm2d if variant.endswith("_bn") else None)
    reference.pre_logits = reference.head = nn.Identity()
    reference = filled(reference)
    ours = jingdu.create(variant, **NARROW).eval()
    table = tables("vgg")["timm"].of(variant)
    translated = {table.from_theirs(key).ours[0]: value for key, value in reference.state_dict().items()}
    missing, unexpected = ours.load_state_dict(translated, strict=False)
    assert {key.partition(".")[0] for key in missing} == {"fc6", "fc7", "fc8"} and not unexpected
    with torch.inference_mode():
        x = torch.randn(2, 3, 97, 129, generator=torch.Generator().manual_seed(5))
        assert_close(ours.pooled(x), reference.forward_features(x))


@pytest.mark.parametrize("variant", ALL)
@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_key_names_are_a_bijection(library: str, variant: str) -> None:
    with torch.device("meta"):
        ours = jingdu.create(variant).state_dict()
        models = import_torchvision().models if library == "torchvision" else import_timm()
        theirs = (models.get_model if library == "torchvision" else models.create_model)(variant).state_dict()
    fit = detect(theirs, None, "vgg", None, ours, variant)
    assert fit.exact and fit.table.name == library
    assert sorted(name for entry in fit.entries for name in entry.theirs) == sorted(theirs)
    assert sorted(name for entry in fit.entries for name in entry.ours) == sorted(ours)
    for entry in fit.entries:
        (shape,) = (x.shape for x in entry.transform.load([theirs[name] for name in entry.theirs]))
        assert shape == ours[entry.ours[0]].shape


def test_files_without_counters_of_batches(folder: Path) -> None:
    """torch before 0.4.1 had none."""
    reference = torchvision_vgg("vgg13_bn")
    state = {key: value for key, value in reference.state_dict().items() if "num_batches" not in key}
    save_file(state, folder / "model.safetensors")
    ours = jingdu.create("torchvision/vgg13_bn", weights=folder / "model.safetensors", **NARROW)
    compare(ours, reference, [(5, 3, 65, 97)])


def test_weights_of_another_column_are_refused(folder: Path) -> None:
    path = save(torchvision_vgg("vgg13"), folder / "model.safetensors")
    with pytest.raises(Refused, match=r"conv3_3"):
        jingdu.create("torchvision/vgg16", weights=path, **NARROW)
    path = save(torchvision_vgg("vgg13_bn"), folder / "model.safetensors")
    with pytest.raises(Refused, match=r"unexpected.*running_mean"):
        jingdu.create("torchvision/vgg13", weights=path, **NARROW)


def test_export_gives_torchvision_its_own_keys() -> None:
    from jingdu.weights import export

    reference = torchvision_vgg("vgg16_bn")
    ours = jingdu.create("torchvision/vgg16_bn", **NARROW).eval()
    randomise_(ours, torch.Generator().manual_seed(3))
    reference.load_state_dict(export(ours, "torchvision"))
    compare(ours, reference, [(5, 3, 65, 97)])


@pytest.mark.parametrize("variant", ["vgg11", "vgg13_bn"])
def test_train_mode_gradients_and_statistics(variant: str) -> None:
    reference = torchvision_vgg(variant, dropout=0.0).double()
    ours = jingdu.create(variant, dropout=0.0, **NARROW).double()
    table = tables("vgg")["torchvision"].of(variant)
    pairs = {key: table.from_ours(key).theirs[0] for key in ours.state_dict()}
    ours.load_state_dict({key: reference.state_dict()[theirs] for key, theirs in pairs.items()})
    x = torch.randn(3, 3, 65, 97, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for model in (ours, reference):
        model.train()
        nn.functional.cross_entropy(model(x), torch.tensor([1, 5, 9])).backward()
    theirs = dict(reference.named_parameters())
    for key, parameter in ours.named_parameters():
        assert_close(parameter.grad, theirs[pairs[key]].grad, relative=1e-9)
    after = reference.state_dict()
    for key, value in ours.state_dict().items():
        assert_close(value, after[pairs[key]], relative=1e-9)
