"""ConvNeXt against timm, torchvision, transformers and the authors' layout, with the same random weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import jingdu
from tests.parity.references import assert_close, import_timm, import_torchvision, import_transformers, randomise_

SMALL = {"depths": (1, 2, 3, 1), "widths": (6, 10, 14, 22)}


def images(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=dtype)


def random(reference: nn.Module) -> nn.Module:
    return randomise_(reference, torch.Generator().manual_seed(3)).eval()


def timms(**options: Any) -> nn.Module:
    options = {"depths": SMALL["depths"], "dims": SMALL["widths"], "num_classes": 11, **options}
    return random(import_timm().models.convnext.ConvNeXt(**options))


@pytest.mark.parametrize("name, theirs, ours", [
    ("convnext_small", {}, {}),
    ("convnext_tiny", {"depths": (1, 1, 2, 1), "dims": (96, 192, 384, 768)}, {"depths": (1, 1, 2, 1), "widths": (96, 192, 384, 768)}),
    ("convnext_nano", {"conv_mlp": True, "in_chans": 1}, {"in_channels": 1}),
    ("convnext_xlarge", {"ls_init_value": None}, {"scale": None}),
    ("convnext_xxlarge", {"norm_eps": 1e-5, "num_classes": 7}, {"num_classes": 7}),
])  # fmt: skip
def test_timms_logits(name: str, theirs: dict[str, Any], ours: dict[str, Any], tmp_path: Path) -> None:
    reference = timms(**theirs)
    save_file(reference.state_dict(), tmp_path / "model.safetensors")
    model = jingdu.create(
        f"timm/{name}", weights=tmp_path / "model.safetensors", **{"num_classes": 11, **SMALL, **ours}
    )
    for shape in ((1, 65, 97), (2, 64, 96)):
        x = images(shape[0], theirs.get("in_chans", 3), *shape[1:])
        with torch.inference_mode():
            print(f"difference {assert_close(model(x), reference(x)):.1e}")
            taps = reference.forward_intermediates(x, intermediates_only=True)
            for mine, tap in zip(model.features(x), taps, strict=True):
                assert_close(mine, tap)


def torchvisions() -> nn.Module:
    kind = import_torchvision().models.convnext
    widths, depths = SMALL["widths"], SMALL["depths"]
    settings = [kind.CNBlockConfig(a, b, n) for a, b, n in zip(widths, (*widths[1:], None), depths, strict=True)]
    return random(kind.ConvNeXt(settings, num_classes=11))


def test_torchvisions_logits(tmp_path: Path) -> None:
    reference = torchvisions()
    torch.save(reference.state_dict(), tmp_path / "convnext.pth")
    ours = jingdu.create("torchvision/convnext_tiny", weights=tmp_path / "convnext.pth", num_classes=11, **SMALL)
    x = images(2, 3, 65, 97)
    with torch.inference_mode():
        print(f"difference {assert_close(ours(x), reference(x)):.1e}")


def test_gradients(tmp_path: Path) -> None:
    """In training mode, in double precision, of every parameter."""
    reference = timms()
    save_file(reference.state_dict(), tmp_path / "model.safetensors")
    ours = jingdu.create("timm/convnext_tiny", weights=tmp_path / "model.safetensors", num_classes=11, **SMALL)
    x = images(3, 3, 64, 97, dtype=torch.float64)
    for network in (ours.double().train(), reference.double().train()):
        network(x).square().sum().backward()
    with torch.no_grad():
        for parameter in (*ours.parameters(), *reference.parameters()):
            parameter.copy_(parameter.grad)
    theirs = reference.state_dict()
    for name, grad in jingdu.weights.export(ours, "timm").items():
        assert_close(grad, theirs[name], 1e-9)


@pytest.mark.parametrize("options", [{}, {"layer_norm_eps": 0.3, "layer_scale_init_value": 0.0, "num_channels": 1}])
def test_transformers_folder(options: dict[str, Any], tmp_path: Path) -> None:
    transformers = import_transformers()
    config = transformers.ConvNextConfig(**{
        "hidden_sizes": list(SMALL["widths"]), "depths": list(SMALL["depths"]), "id2label": {i: f"kind {i}" for i in range(11)},
        **options,
    })  # fmt: skip
    reference = random(transformers.ConvNextForImageClassification(config))
    reference.save_pretrained(tmp_path)
    ours = jingdu.create("convnext", weights=tmp_path)
    assert ours.origin.classes == tuple(f"kind {i}" for i in range(11))
    x = images(2, options.get("num_channels", 3), 65, 97)
    bare = tmp_path / "bare"
    reference.convnext.save_pretrained(bare)
    encoder = jingdu.create("convnext", weights=bare)
    with torch.inference_mode():
        print(f"difference {assert_close(ours(x), reference(x).logits):.1e}")
        assert_close(encoder(x), reference.convnext(x).pooler_output)


def to_official(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """timm's names to those of the authors' files, the way back of timm's checkpoint_filter_fn."""
    names = {}
    for name in state:
        new = name.replace("mlp.fc", "pwconv").replace("conv_dw", "dwconv").replace(".blocks.", ".")
        if name.startswith("stem."):
            new = new.replace("stem.", "downsample_layers.0.")
        elif ".downsample." in name:
            _, stage, _, rest = name.split(".", 3)
            new = f"downsample_layers.{stage}.{rest}"
        names[name] = new.replace("head.fc.", "head.").replace("head.norm.", "norm.")
    return {names[name]: tensor for name, tensor in state.items()}


def test_the_authors_files(tmp_path: Path) -> None:
    reference = timms()
    torch.save({"model": to_official(reference.state_dict())}, tmp_path / "convnext_tiny_1k_224_ema.pth")
    ours = jingdu.create("convnext_tiny", weights=tmp_path / "convnext_tiny_1k_224_ema.pth", num_classes=11, **SMALL)
    x = images(2, 3, 65, 97)
    with torch.inference_mode():
        assert_close(ours(x), reference(x))


def test_the_authors_isotropic_files(tmp_path: Path) -> None:
    """timm's block, one behind the other between their stem, norm and head."""
    kind = import_timm().models.convnext.ConvNeXtBlock
    parts = nn.ModuleDict({
        "stem": nn.Conv2d(3, 10, 16, 16), "blocks": nn.Sequential(*(kind(10, ls_init_value=None) for _ in range(3))),
        "norm": nn.LayerNorm(10, 1e-6), "head": nn.Linear(10, 7),
    })  # fmt: skip
    random(parts)
    state = {name.replace("conv_dw", "dwconv").replace("mlp.fc", "pwconv"): x for name, x in parts.state_dict().items()}
    torch.save({"model": state}, tmp_path / "convnext_iso_small_1k_224_ema.pth")
    ours = jingdu.create(
        "convnext_isotropic_small",
        weights=tmp_path / "convnext_iso_small_1k_224_ema.pth",
        num_classes=7,
        width=10,
        depth=3,
    )
    x = images(2, 3, 49, 81)
    with torch.inference_mode():
        maps = parts["blocks"](parts["stem"](x))
        assert_close(ours(x), parts["head"](parts["norm"](maps.mean((2, 3)))))
