"""MLP-Mixer against timm with the same random weights, and the authors' files against both."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import jingdu
from jingdu.errors import Refused
from tests.parity.references import assert_close, import_timm, randomise_

SMALL = {"embed_dim": 46, "num_blocks": 3, "num_classes": 11}
OURS = {
    "embed_dim": "width",
    "num_blocks": "depth",
    "img_size": "image_size",
    "in_chans": "in_channels",
    "num_classes": "num_classes",
}


def images(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=dtype)


def timm_file(path: Path, **options: Any) -> nn.Module:
    """timm's class: its functions for the published sizes take no other width or depth."""
    kind = import_timm().models.mlp_mixer.MlpMixer
    reference = randomise_(kind(**options), torch.Generator().manual_seed(3)).eval()
    save_file(reference.state_dict(), path)
    return reference


@pytest.mark.parametrize("name, options", [
    ("mixer_b16_224", {"embed_dim": 768, "num_blocks": 2}),
    ("mixer_s32_224", {**SMALL, "patch_size": 32, "in_chans": 1, "img_size": 96}),
    ("mixer_l16_224", {**SMALL, "img_size": (48, 80), "mlp_ratio": (0.3, 1.9)}),
])  # fmt: skip
def test_timms_logits(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    reference = timm_file(file, **options)
    sizes = {OURS[key]: value for key, value in options.items() if key in OURS}
    if "mlp_ratio" in options:
        sizes |= {"tokens": int(0.3 * 46), "channels": int(1.9 * 46)}
    ours = jingdu.create(f"timm/{name}", weights=file, **sizes)
    assert not ours.training
    for batch in (1, 2):
        x = images(batch, options.get("in_chans", 3), *ours.image_size)
        with torch.inference_mode():
            print(f"difference {assert_close(ours(x), reference(x)):.1e}")
            taps = reference.forward_intermediates(x, norm=False, output_fmt="NLC", intermediates_only=True)
            for ours_tap, theirs in zip(ours.features(x), taps, strict=True):
                assert_close(ours_tap, theirs)


def test_gradients(tmp_path: Path) -> None:
    """In training mode, in double precision."""
    file = tmp_path / "model.safetensors"
    reference = timm_file(file, **SMALL, img_size=48).double().train()
    ours = jingdu.create("timm/mixer_b16_224", weights=file, width=46, depth=3, num_classes=11, image_size=48)
    ours = ours.double().train()
    x = images(3, 3, 48, 48, dtype=torch.float64)
    for network in (ours, reference):
        network(x).square().sum().backward()
    theirs = dict(reference.named_parameters())
    table = jingdu.weights.export(ours, "timm")
    grads = {id(p): p.grad for p in ours.parameters()}
    assert set(table) == set(theirs) and len(grads) == len(theirs)
    for mine, name in (
        ("patches.projection.weight", "stem.proj.weight"), ("blocks.0.tokens.expand.weight", "blocks.0.mlp_tokens.fc1.weight"),
        ("blocks.1.tokens.expand.bias", "blocks.1.mlp_tokens.fc1.bias"), ("blocks.2.norm2.weight", "blocks.2.norm2.weight"),
        ("blocks.2.channels.contract.weight", "blocks.2.mlp_channels.fc2.weight"), ("head.bias", "head.bias"),
    ):  # fmt: skip
        assert_close(ours.get_parameter(mine).grad, theirs[name].grad, 1e-9)


def test_a_folder_of_timms(tmp_path: Path) -> None:
    """With its config.json; images of twice the size are taken tile by tile."""
    reference = timm_file(tmp_path / "model.safetensors", **SMALL, img_size=(32, 48))
    sizes = {"embed_dim": 46, "num_blocks": 3, "img_size": [32, 48]}
    config = {"architecture": "mixer_b16_224", "num_classes": 11, "global_pool": "avg", "model_args": sizes}
    (tmp_path / "config.json").write_text(json.dumps(config))
    ours = jingdu.create("mlp_mixer", weights=tmp_path)
    large = jingdu.create("mlp_mixer", weights=tmp_path, image_size=(64, 96), tokens=4 * 23)
    x = images(2, 3, 64, 96)
    with torch.inference_mode():
        parts = [reference(x[:, :, i : i + 32, j : j + 48]) for i in (0, 32) for j in (0, 48)]
        assert_close(ours(x[:, :, :32, :48]), parts[0])
        assert_close(large(x), torch.stack(parts).mean(0))


def to_flax(reference: nn.Module) -> dict[str, np.ndarray]:
    """timm's tensors under the names of the authors' files (vit_jax/models_mixer.py, and its released .npz)."""
    state = {name: x.numpy() for name, x in reference.state_dict().items()}
    arrays = {"stem/kernel": state["stem.proj.weight"].transpose(2, 3, 1, 0), "stem/bias": state["stem.proj.bias"]}
    dense = {"head": "head"}
    norms = {"pre_head_layer_norm": "norm"}
    for i in range(len(reference.blocks)):
        norms |= {f"MixerBlock_{i}/LayerNorm_{n}": f"blocks.{i}.norm{n + 1}" for n in (0, 1)}
        for theirs, timms in (("token_mixing", "mlp_tokens"), ("channel_mixing", "mlp_channels")):
            dense |= {f"MixerBlock_{i}/{theirs}/Dense_{n}": f"blocks.{i}.{timms}.fc{n + 1}" for n in (0, 1)}
    for name, timms in dense.items():
        arrays |= {f"{name}/kernel": state[f"{timms}.weight"].T, f"{name}/bias": state[f"{timms}.bias"]}
    for name, timms in norms.items():
        arrays |= {f"{name}/scale": state[f"{timms}.weight"], f"{name}/bias": state[f"{timms}.bias"]}
    return arrays


def test_the_authors_files(tmp_path: Path) -> None:
    """With their tanh form of GELU, which timm's network is given here."""
    file = tmp_path / "Mixer-B_16.npz"
    reference = timm_file(tmp_path / "a.safetensors", **SMALL, img_size=48, act_layer=lambda: nn.GELU("tanh"))
    np.savez(file, **to_flax(reference))
    ours = jingdu.create("mlp_mixer", weights=file)
    assert ours.image_size == (48, 48) and len(ours.blocks) == 3
    x = images(2, 3, 48, 48)
    with torch.inference_mode():
        print(f"difference {assert_close(ours(x), reference(x)):.1e}")
        exact = jingdu.create("mlp_mixer", weights=file, activation="gelu")(x)
    assert not torch.allclose(exact, ours(x), atol=1e-6)


def test_images_that_are_no_square_of_tiles_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    timm_file(file, **SMALL, img_size=32)
    with pytest.raises(Refused, match=r"tokens\.expand\.weight"):
        jingdu.create("timm/mixer_b16_224", weights=file, width=46, depth=3, num_classes=11, image_size=(32, 64))
