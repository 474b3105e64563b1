"""ViT against timm, torchvision and transformers with the same random weights."""

from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import jingdu
from jingdu.errors import Refused
from jingdu.papers.vit.vit import resize_positions
from jingdu.weights import export
from tests.parity.references import assert_close, import_timm, import_torchvision, import_transformers, randomise_

TINY = {"embed_dim": 48, "depth": 3, "num_heads": 4, "num_classes": 11}
OURS = {"width": 48, "depth": 3, "heads": 4, "num_classes": 11}


def images(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=dtype)


def timm_folder(folder: Path, name: str, **options: Any) -> nn.Module:
    reference = randomise_(import_timm().create_model(name, **options), torch.Generator().manual_seed(3)).eval()
    save_file(reference.state_dict(), folder / "model.safetensors")
    return reference


@pytest.mark.parametrize("name, options", [
    ("vit_tiny_patch16_224", {}),
    ("vit_base_patch32_224", {"depth": 2, "num_classes": 11}),
    ("vit_small_patch16_384", {**TINY, "img_size": 64}),
    ("vit_large_patch14_224", {**TINY, "in_chans": 1}),
    ("vit_base_r50_s16_224", {**TINY, "img_size": (48, 80)}),
    ("vit_base_patch16_224", {**TINY, "init_values": 0.3}),
])  # fmt: skip
def test_timms_logits(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    reference = timm_folder(tmp_path, name, **options)
    ours_by_theirs = {
        "embed_dim": "width", "num_heads": "heads", "img_size": "image_size", "in_chans": "in_channels", "init_values": "scale",
    }  # fmt: skip
    ours = jingdu.create(
        f"timm/{name}", weights=tmp_path / "model.safetensors",
        **{ours_by_theirs.get(key, key): value for key, value in options.items()},
    )  # fmt: skip
    assert not ours.training
    x = images(1, options.get("in_chans", 3), *ours.image_size)
    with torch.inference_mode():
        print(f"difference {assert_close(ours(x), reference(x)):.1e}")
        taps = reference.forward_intermediates(x, norm=False, output_fmt="NLC", intermediates_only=True)
        for ours_tap, theirs in zip(ours.features(x), taps, strict=True):
            assert_close(ours_tap[:, 1:], theirs)


def test_the_mean_of_patches_is_timms(tmp_path: Path) -> None:
    """With global_pool="avg" the norm, there called fc_norm, stands behind the mean."""
    options = {**TINY, "img_size": 48, "global_pool": "avg"}
    reference = timm_folder(tmp_path, "vit_base_patch16_224", **options)
    ours = jingdu.create(
        "timm/vit_base_patch16_224", weights=tmp_path / "model.safetensors", pool="mean", image_size=48, **OURS
    )
    with torch.inference_mode():
        assert_close(ours(images(3, 3, 48, 48)), reference(images(3, 3, 48, 48)))


@pytest.mark.parametrize("size", [32, (64, 112), 80])
def test_another_size_interpolates_positions_as_timm(size: Any, tmp_path: Path) -> None:
    reference = timm_folder(tmp_path, "vit_base_patch16_224", **{**TINY, "img_size": 64})
    reference.set_input_size(img_size=size)
    ours = jingdu.create(
        "timm/vit_base_patch16_224", weights=tmp_path / "model.safetensors", image_size=size, **OURS
    )  # fmt: skip
    x = images(2, 3, *ours.image_size)
    with torch.inference_mode():
        assert_close(ours(x), reference(x))


def test_the_authors_interpolation() -> None:
    """scipy.ndimage.zoom of order 1, as vit_jax/checkpoint.py."""
    zoom = pytest.importorskip("scipy.ndimage").zoom
    table = images(1, 1 + 25, 7)
    wanted = zoom(table[0, 1:].view(5, 5, 7).numpy(), (8 / 5, 8 / 5, 1), order=1)
    ours = resize_positions(table, (8, 8), how="bilinear")
    assert_close(ours[0, 1:], torch.from_numpy(wanted).reshape(64, 7))
    assert torch.equal(ours[:, :1], table[:, :1])


@pytest.mark.parametrize("representation", [None, 17])
def test_torchvisions_logits(representation: int | None, tmp_path: Path) -> None:
    kind = import_torchvision().models.vision_transformer.VisionTransformer
    reference = kind(64, 16, 3, 4, 48, 192, num_classes=11, representation_size=representation)
    randomise_(reference, torch.Generator().manual_seed(5)).eval()
    torch.save(reference.state_dict(), tmp_path / "vit.pth")
    ours = jingdu.create(
        "torchvision/vit_b_16", weights=tmp_path / "vit.pth", image_size=64, representation=representation, **OURS
    )
    with torch.inference_mode():
        print(f"difference {assert_close(ours(images(2, 3, 64, 64)), reference(images(2, 3, 64, 64))):.1e}")


@pytest.mark.parametrize("options", [{}, {"hidden_act": "gelu_new", "layer_norm_eps": 1e-6, "image_size": 32}])
def test_transformers_folder(options: dict[str, Any], tmp_path: Path) -> None:
    transformers = import_transformers()
    config = transformers.ViTConfig(**{
        "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 100, "image_size": 64,
        "patch_size": 16, "id2label": {i: f"kind {i}" for i in range(11)}, **options,
    })  # fmt: skip
    reference = randomise_(transformers.ViTForImageClassification(config), torch.Generator().manual_seed(6)).eval()
    reference.save_pretrained(tmp_path)
    ours = jingdu.create("vit", weights=tmp_path)
    assert ours.origin.classes is not None and len(ours.origin.classes) == 11
    x = images(2, 3, *ours.image_size)
    with torch.inference_mode():
        print(f"difference {assert_close(ours(x), reference(x).logits):.1e}")
    bare = tmp_path / "bare"
    reference.vit.save_pretrained(bare)
    encoder = jingdu.create("vit", weights=bare)
    with torch.inference_mode():
        assert_close(encoder(x), reference.vit(x).last_hidden_state[:, 0])


@pytest.mark.parametrize("variant, name, size", [
    ("vit_base16", "vit_base_patch16_224", 48), ("vit_r50_base16_224", "vit_base_r50_s16_224", (48, 80)),
])  # fmt: skip
def test_the_authors_files(variant: str, name: str, size: Any, tmp_path: Path) -> None:
    """What we write as .npz is read by timm's own reader of the authors' files, and by ours."""
    options = {"embed_dim": 128, "num_heads": 2, "depth": 2, "num_classes": 11, "img_size": size}
    overrides = {"width": 128, "heads": 2, "depth": 2, "num_classes": 11, "image_size": size}
    ours = jingdu.create(variant, **overrides)
    randomise_(ours, torch.Generator().manual_seed(8)).eval()
    tensors = export(ours, "flax")
    numpy.savez(tmp_path / "authors.npz", **{key.replace(".", "/"): x.numpy() for key, x in tensors.items()})
    reference = import_timm().create_model(name, **options).eval()
    reference.load_pretrained(tmp_path / "authors.npz")
    again = jingdu.create(variant, weights=tmp_path / "authors.npz", **overrides)
    x = images(2, 3, *ours.image_size)
    with torch.inference_mode():
        assert torch.equal(again(x), ours(x))
        print(f"difference {assert_close(again(x), reference(x)):.1e}")


def test_gradients(tmp_path: Path) -> None:
    """In training mode, in double precision."""
    reference = timm_folder(tmp_path, "vit_base_patch16_224", **{**TINY, "img_size": 48}).double().train()
    ours = jingdu.create(
        "timm/vit_base_patch16_224", weights=tmp_path / "model.safetensors", image_size=48, **OURS
    ).double().train()  # fmt: skip
    x = images(3, 3, 48, 48, dtype=torch.float64)
    for network in (ours, reference):
        network(x).square().sum().backward()
    theirs = dict(reference.named_parameters())
    for mine, name in (
        ("class_token", "cls_token"), ("positions", "pos_embed"), ("patches.projection.weight", "patch_embed.proj.weight"),
        ("blocks.1.attention.qkv.weight", "blocks.1.attn.qkv.weight"), ("blocks.2.mlp.expand.bias", "blocks.2.mlp.fc1.bias"),
        ("norm.weight", "norm.weight"),
    ):  # fmt: skip
        assert_close(ours.get_parameter(mine).grad, theirs[name].grad, 1e-9)


def test_positions_that_are_no_grid_are_refused(tmp_path: Path) -> None:
    timm_folder(tmp_path, "vit_base_patch16_224", **{**TINY, "img_size": (32, 48)})
    with pytest.raises(Refused, match="positions"):
        jingdu.create("timm/vit_base_patch16_224", weights=tmp_path / "model.safetensors", image_size=64, **OURS)
