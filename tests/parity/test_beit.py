"""BEiT against timm and transformers with the same random weights, and the authors' layout of keys."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import jingdu
from jingdu.errors import Refused
from jingdu.papers.vit.beit import Pyramid
from tests.parity.references import assert_close, import_timm, import_transformers, randomise_

TINY = {"embed_dim": 48, "depth": 3, "num_heads": 4, "num_classes": 11}
OURS = {"width": 48, "depth": 3, "heads": 4, "num_classes": 11}


def images(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=dtype)


def timm_file(folder: Path, name: str = "beit_base_patch16_224", **options: Any) -> nn.Module:
    reference = randomise_(import_timm().create_model(name, **options), torch.Generator().manual_seed(3)).eval()
    save_file(reference.state_dict(), folder / "model.safetensors")
    return reference


@pytest.mark.parametrize("name, options", [
    ("beit_base_patch16_224", {"depth": 2, "num_classes": 11}),
    ("beit_base_patch16_384", {**TINY, "img_size": 48}),
    ("beit_large_patch16_512", {**TINY, "img_size": (64, 32), "in_chans": 1}),
    ("beitv2_base_patch16_224", {**TINY, "img_size": 80, "mlp_ratio": 3}),
])  # fmt: skip
def test_timms_logits(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    reference = timm_file(tmp_path, name, **options)
    ours_by_theirs = {
        "embed_dim": "width", "num_heads": "heads", "img_size": "image_size", "in_chans": "in_channels", "mlp_ratio": "ratio",
    }  # fmt: skip
    ours = jingdu.create(
        f"timm/{name}", weights=tmp_path / "model.safetensors",
        **{ours_by_theirs.get(key, key): value for key, value in options.items()},
    )  # fmt: skip
    assert not ours.training
    x = images(2, options.get("in_chans", 3), *ours.image_size)
    with torch.inference_mode():
        print(f"difference {assert_close(ours(x), reference(x)):.1e}")
        taps = reference.forward_intermediates(x, norm=False, output_fmt="NLC", intermediates_only=True)
        for ours_tap, theirs in zip(ours.features(x), taps, strict=True):
            assert_close(ours_tap[:, 1:], theirs)


@pytest.mark.parametrize("size", [32, 112, (48, 96)])
def test_another_size_grows_the_tables_as_timm(size: Any, tmp_path: Path) -> None:
    reference = timm_file(tmp_path, **{**TINY, "img_size": 80})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of how timm calls it
        reference.set_input_size(img_size=size)
    ours = jingdu.create(
        "timm/beit_base_patch16_224", weights=tmp_path / "model.safetensors", image_size=size, **OURS
    )  # fmt: skip
    for mine, theirs in zip(ours.blocks, reference.blocks, strict=True):
        assert_close(mine.attention.bias.table, theirs.attn.relative_position_bias_table)
    x = images(1, 3, *ours.image_size)
    with torch.inference_mode():
        print(f"difference {assert_close(ours(x), reference(x)):.1e}")


def test_tables_that_are_of_no_square_are_refused(tmp_path: Path) -> None:
    timm_file(tmp_path, **{**TINY, "img_size": (32, 48)})
    with pytest.raises(Refused, match="table"):
        jingdu.create("timm/beit_base_patch16_224", weights=tmp_path / "model.safetensors", image_size=64, **OURS)


def test_the_authors_layout(tmp_path: Path) -> None:
    """Their classifiers have timm's names, and the index of each block; nested in "model" as they were saved."""
    reference = timm_file(tmp_path, **{**TINY, "img_size": 48})
    index = {
        f"blocks.{i}.attn.relative_position_index": block.attn.relative_position_index
        for i, block in enumerate(reference.blocks)
    }
    torch.save({"model": {**reference.state_dict(), **index}}, tmp_path / "beit_base_patch16_224_pt22k_ft22k.pth")
    file = tmp_path / "beit_base_patch16_224_pt22k_ft22k.pth"
    ours = jingdu.create("beit_base_224", weights=file, image_size=48, **OURS)
    x = images(1, 3, 48, 48)
    with torch.inference_mode():
        assert_close(ours(x), reference(x))


def transformers_folder(folder: Path, kind: str, **options: Any) -> nn.Module:
    transformers = import_transformers()
    config = transformers.BeitConfig(**{
        "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 100, "image_size": 48,
        "patch_size": 16, "vocab_size": 29, "id2label": {i: f"kind {i}" for i in range(11)}, **options,
    })  # fmt: skip
    reference = randomise_(getattr(transformers, kind)(config), torch.Generator().manual_seed(6)).eval()
    reference.save_pretrained(folder)
    return reference


@pytest.mark.parametrize("options", [{}, {"use_mean_pooling": False, "layer_norm_eps": 1e-6, "num_channels": 1}])
def test_transformers_classifier(options: dict[str, Any], tmp_path: Path) -> None:
    reference = transformers_folder(
        tmp_path, "BeitForImageClassification", use_relative_position_bias=True, **options
    )  # fmt: skip
    ours = jingdu.create("beit", weights=tmp_path)
    assert ours.origin.classes is not None and len(ours.origin.classes) == 11
    x = images(2, options.get("num_channels", 3), 48, 48)
    with torch.inference_mode():
        print(f"difference {assert_close(ours(x), reference(x).logits):.1e}")
    if options:
        return
    bare = tmp_path / "bare"
    reference.beit.save_pretrained(bare)
    encoder = jingdu.create("beit", weights=bare)
    with torch.inference_mode():
        assert_close(encoder(x), reference.beit(x).pooler_output)


MASKED = {"use_shared_relative_position_bias": True, "use_mask_token": True}


def test_transformers_masked_images(tmp_path: Path) -> None:
    reference = transformers_folder(tmp_path, "BeitForMaskedImageModeling", **MASKED)
    ours = jingdu.create("beit", weights=tmp_path)
    assert ours.words == 29 and ours.bias is not None
    x, mask = images(2, 3, 48, 48), torch.rand(2, 3, 3, generator=torch.Generator().manual_seed(1)) < 0.5
    with torch.inference_mode():
        theirs = reference(x, bool_masked_pos=mask.flatten(1)).logits.unflatten(1, (3, 3))
        print(f"difference {assert_close(ours.word_logits(x, mask), theirs):.1e}")
        assert_close(ours(x, mask), theirs[mask])
        assert_close(ours(x), reference(x).logits.flatten(0, 1))
    with pytest.raises(Refused, match="use_mean_pooling"):
        transformers_folder(tmp_path / "twice", "BeitForMaskedImageModeling", **MASKED, use_mean_pooling=False)
        jingdu.create("beit", weights=tmp_path / "twice")
    with pytest.raises(Refused, match="relative positions"):
        transformers_folder(tmp_path / "none", "BeitForImageClassification")
        jingdu.create("beit", weights=tmp_path / "none")


def test_the_authors_layout_of_pre_training(tmp_path: Path) -> None:
    """Written from what transformers has, by the names of modeling_pretrain.py."""
    reference = transformers_folder(tmp_path, "BeitForMaskedImageModeling", **MASKED)
    ours = jingdu.create("beit", weights=tmp_path)
    jingdu.export(ours, "unilm", tmp_path / "pt22k.pth")
    state = torch.load(tmp_path / "pt22k.pth", weights_only=True)
    assert {"mask_token", "lm_head.weight", "norm.bias", "rel_pos_bias.relative_position_bias_table"} <= set(state)
    state["rel_pos_bias.relative_position_index"] = torch.zeros(10, 10, dtype=torch.int64)
    torch.save({"model": state}, tmp_path / "again.pth")
    sizes = {**OURS, "image_size": 48, "words": 29, "ratio": 100 / 48, "eps": 1e-12}
    again = jingdu.create("beit_base_mim", weights=tmp_path / "again.pth", **sizes)
    x, mask = images(2, 3, 48, 48), torch.ones(2, 3, 3, dtype=torch.bool)
    with torch.inference_mode():
        assert_close(again(x, mask), reference(x, bool_masked_pos=mask.flatten(1)).logits.flatten(0, 1))


@pytest.mark.parametrize("kind", ["classifier", "masked"])
def test_what_we_write_transformers_reads(kind: str, tmp_path: Path) -> None:
    variant = "beit_mini" if kind == "classifier" else "beit_mini_mim"
    ours = randomise_(jingdu.create(variant, depth=2), torch.Generator().manual_seed(2)).eval()
    jingdu.export(ours, "transformers", tmp_path / "out")
    transformers = import_transformers()
    name = "BeitForImageClassification" if kind == "classifier" else "BeitForMaskedImageModeling"
    theirs = getattr(transformers, name).from_pretrained(tmp_path / "out").eval()
    x = images(2, 3, 32, 32)
    with torch.inference_mode():
        assert_close(ours(x), theirs(x).logits.flatten(0, -2))


def test_the_key_has_no_bias(tmp_path: Path) -> None:
    """Fused or not: between q's and v's biases stand zeros that are not trained."""
    reference = timm_file(tmp_path, **{**TINY, "img_size": 48})
    ours = jingdu.create("timm/beit_base_patch16_224", weights=tmp_path / "model.safetensors", image_size=48, **OURS)
    x = images(1, 10, 48)
    q, k, _ = ours.blocks[1].attention.split(x)
    theirs = reference.blocks[1].attn
    assert torch.allclose(k.transpose(1, 2).flatten(2), x @ theirs.qkv.weight[48:96].T, atol=1e-5)
    assert torch.allclose(q.transpose(1, 2).flatten(2), x @ theirs.qkv.weight[:48].T + theirs.q_bias, atol=1e-5)
    assert not any("k_bias" in name for name in load_file(tmp_path / "model.safetensors"))


def test_gradients(tmp_path: Path) -> None:
    """In training mode, in double precision, through the bias as well."""
    reference = timm_file(tmp_path, **{**TINY, "img_size": 48}).double().train()
    ours = jingdu.create(
        "timm/beit_base_patch16_224", weights=tmp_path / "model.safetensors", image_size=48, **OURS
    ).double().train()  # fmt: skip
    x = images(3, 3, 48, 48, dtype=torch.float64)
    for network in (ours, reference):
        network(x).square().sum().backward()
    theirs = dict(reference.named_parameters())
    for mine, name in (
        ("class_token", "cls_token"), ("patches.projection.weight", "patch_embed.proj.weight"),
        ("blocks.0.attention.bias.table", "blocks.0.attn.relative_position_bias_table"),
        ("blocks.1.attention.query_bias", "blocks.1.attn.q_bias"), ("blocks.2.scale2", "blocks.2.gamma_2"),
        ("norm.weight", "fc_norm.weight"),
    ):  # fmt: skip
        print(f"difference {assert_close(ours.get_parameter(mine).grad, theirs[name].grad, 1e-9):.1e}")


def test_the_pyramid_is_transformers(tmp_path: Path) -> None:
    options = {"image_size": 64, "use_relative_position_bias": True, "num_hidden_layers": 4}
    reference = transformers_folder(tmp_path, "BeitForImageClassification", **options)
    ours = jingdu.create("beit", weights=tmp_path)
    transformers = import_transformers()
    backbone = transformers.BeitBackbone(
        transformers.BeitConfig(
            **{**reference.config.to_dict(), "out_indices": [1, 2, 3, 4], "out_features": None, "add_fpn": True}
        )
    )
    randomise_(backbone.fpn, torch.Generator().manual_seed(9))
    backbone.beit.load_state_dict(reference.beit.state_dict(), strict=False)
    pyramid, neck = Pyramid(48), backbone.fpn
    pyramid.four[0].load_state_dict(neck.fpn1.conv_transpose1.state_dict())
    pyramid.four[1].load_state_dict(neck.fpn1.normalization.state_dict())
    pyramid.four[3].load_state_dict(neck.fpn1.conv_transpose2.state_dict())
    pyramid.two.load_state_dict(neck.fpn2.state_dict())
    x = images(2, 3, 64, 64)
    with torch.inference_mode():
        maps, tokens = pyramid.eval()(ours, x), ours.features(x)
        wanted = neck.eval()(tuple(t[:, 1:].transpose(1, 2).unflatten(2, (4, 4)) for t in tokens))
    assert [m.shape[2] for m in maps] == [16, 8, 4, 2]
    for mine, theirs in zip(maps, wanted, strict=True):
        assert_close(mine, theirs)


def test_the_second_view_is_pillows() -> None:
    """As torchvision's resize of a picture, which the authors' transform calls."""
    from PIL import Image

    from jingdu.papers.vit.beit import second_view

    array = np.random.default_rng(0).integers(0, 256, (46, 46, 3), dtype=np.uint8)
    ours = second_view(torch.from_numpy(array).permute(2, 0, 1)[None] / 255, 23)
    wanted = np.asarray(Image.fromarray(array).resize((23, 23), Image.Resampling.LANCZOS))
    assert np.array_equal((ours[0].permute(1, 2, 0) * 255).round().byte().numpy(), wanted)
