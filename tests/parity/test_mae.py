"""MAE against transformers' ViTMAEForPreTraining and timm's networks with the same random weights and the same patches hidden."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import jingdu
from jingdu.errors import Refused, UsageError
from jingdu.weights.configs import sizes
from tests.parity.references import assert_close, import_timm, import_transformers, randomise_

SMALL = {
    "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 96, "image_size": 40,
    "patch_size": 8, "decoder_hidden_size": 36, "decoder_num_hidden_layers": 2, "decoder_num_attention_heads": 3,
    "decoder_intermediate_size": 72,
}  # fmt: skip
TINY = {"embed_dim": 48, "depth": 3, "num_heads": 4}
OURS = {"width": 48, "depth": 3, "heads": 4}


def noise(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=dtype)


def reference_of(folder: Path, **options: Any) -> nn.Module:
    transformers = import_transformers()
    config = transformers.ViTMAEConfig(**{**SMALL, **options})
    reference = randomise_(transformers.ViTMAEForPreTraining(config), torch.Generator().manual_seed(2)).eval()
    reference.save_pretrained(folder)
    return reference


def as_on_the_hub(folder: Path) -> None:
    """The decoder's layers under the names that facebook/vit-mae-base has."""
    file = folder / "model.safetensors"
    tensors = {key.replace("decoder_encoder.layer.", "decoder_layers."): x for key, x in load_file(file).items()}
    assert any("decoder_layers" in key for key in tensors)
    save_file(tensors, file, {"format": "pt"})


@pytest.mark.parametrize("options", [
    {},
    {"norm_pix_loss": True, "layer_norm_eps": 1e-6, "mask_ratio": 0.6},
    {"num_channels": 1, "hidden_act": "gelu_new", "qkv_bias": False, "patch_size": 4, "image_size": 20},
])  # fmt: skip
@pytest.mark.parametrize("layout", ["hub", "written"])
def test_transformers_predictions_and_loss(layout: str, options: dict[str, Any], tmp_path: Path) -> None:
    reference = reference_of(tmp_path, **options)
    if layout == "hub":
        as_on_the_hub(tmp_path)
    ours = jingdu.create("mae", weights=tmp_path)
    x = noise(3, options.get("num_channels", 3), *ours.encoder.image_size)
    order = noise(3, 25)
    with torch.inference_mode():
        theirs, found = reference(x, noise=order), ours(x, order)
        assert torch.equal(found.mask, theirs.mask)
        difference = assert_close(found.patches, theirs.logits)
        print(f"difference {difference:.1e}, of the loss {assert_close(ours.loss(x, found), theirs.loss):.1e}")
        states = reference.vit(x, noise=order, output_hidden_states=True).hidden_states
        assert len(states) == len(ours.encoder.blocks) + 1


@pytest.mark.parametrize("size, heads, layers, patch, count", [
    ("base", 12, 12, 16, 111907840), ("large", 16, 24, 16, 329541888), ("huge", 16, 32, 14, 657074508),
])  # fmt: skip
def test_all_published_sizes(size: str, heads: int, layers: int, patch: int, count: int) -> None:
    """By the values of the config.json of facebook/vit-mae-*: as many numbers as transformers' network, positions included."""
    width = {"base": 768, "large": 1024, "huge": 1280}[size]
    values = {
        "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads, "patch_size": patch,
        "intermediate_size": 4 * width, "norm_pix_loss": True, "architectures": ["ViTMAEForPreTraining"],
    }  # fmt: skip
    transformers = import_transformers()
    config = transformers.ViTMAEConfig(**values)
    found = sizes(config.to_dict(), "mae")
    assert found.variant == f"mae_pretrain_{size}" and found.overrides["normalised"]
    with torch.device("meta"):
        ours, reference = jingdu.create(found.variant, **found.overrides), transformers.ViTMAEForPreTraining(config)
    assert sum(p.numel() for p in reference.parameters()) == sum(p.numel() for p in ours.parameters()) == count


def test_gradients_of_the_loss(tmp_path: Path) -> None:
    """In training mode, in double precision."""
    reference = reference_of(tmp_path, norm_pix_loss=True).double().train()
    ours = jingdu.create("mae", weights=tmp_path).double().train()
    x, order = noise(2, 3, 40, 40, dtype=torch.float64), noise(2, 25, dtype=torch.float64)
    loss = reference(x, noise=order).loss
    mine = ours.loss(x, ours(x, order))
    assert_close(mine, loss, 1e-9)
    for value in (loss, mine):
        value.backward()
    assert ours.encoder.positions.grad is None and ours.decoder.positions.grad is None
    theirs = dict(reference.named_parameters())
    for name, other in (
        ("encoder.class_token", "vit.embeddings.cls_token"), ("mask_token", "decoder.mask_token"),
        ("encoder.patches.projection.weight", "vit.embeddings.patch_embeddings.projection.weight"),
        ("encoder.blocks.1.mlp.expand.bias", "vit.layers.1.mlp.fc1.bias"),
        ("decoder.blocks.1.attention.project.weight", "decoder.decoder_layers.1.attention.o_proj.weight"),
        ("decoder.predict.weight", "decoder.decoder_pred.weight"), ("encoder.norm.weight", "vit.layernorm.weight"),
    ):  # fmt: skip
        print(f"{name} {assert_close(ours.get_parameter(name).grad, theirs[other].grad, 1e-9):.1e}")


def test_the_authors_whole_files(tmp_path: Path) -> None:
    """models_mae.py's names, with tensors of transformers' network."""
    reference = reference_of(tmp_path / "theirs")
    tensors = {key.replace("decoder_encoder.layer.", "decoder.blocks."): x for key, x in
               load_file(tmp_path / "theirs" / "model.safetensors").items()}  # fmt: skip
    official: dict[str, Tensor] = {}
    for key, x in tensors.items():
        part, name = key.split(".", 1)
        if "attention.attention" in key:
            if ".query." not in key:
                continue
            x = torch.cat([tensors[key.replace("query", kind)] for kind in ("query", "key", "value")])
        for old, new in (
            ("embeddings.cls_token", "cls_token"), ("embeddings.position_embeddings", "pos_embed"),
            ("embeddings.patch_embeddings.projection", "patch_embed.proj"), ("encoder.layer.", "blocks."),
            ("decoder.blocks.", "decoder_blocks."), ("attention.attention.query", "attn.qkv"),
            ("attention.output.dense", "attn.proj"), ("layernorm_before", "norm1"), ("layernorm_after", "norm2"),
            ("intermediate.dense", "mlp.fc1"), ("output.dense", "mlp.fc2"), ("layernorm.", "norm."),
        ):  # fmt: skip
            name = name.replace(old, new)
        official["decoder_" + name if part == "decoder" and name.startswith("blocks") else name] = x
    assert {
        "mask_token",
        "decoder_pos_embed",
        "decoder_blocks.1.attn.qkv.bias",
        "decoder_embed.bias",
    } <= official.keys()
    torch.save({"model": official, "epoch": 7}, tmp_path / "mae_visualize.pth")
    ours = jingdu.create(
        "mae_pretrain_base", weights=tmp_path / "mae_visualize.pth", image_size=40, patch=8, decoder=(36, 2, 3),
        ratio=2, eps=1e-12, **OURS,
    )  # fmt: skip
    x, order = noise(2, 3, 40, 40), noise(2, 25)
    with torch.inference_mode():
        assert_close(ours(x, order).patches, reference(x, noise=order).logits)


def timm_reference(name: str, **options: Any) -> nn.Module:
    return randomise_(import_timm().create_model(name, **options), torch.Generator().manual_seed(3)).eval()


def test_the_published_encoder_at_its_full_width(tmp_path: Path) -> None:
    """timm/vit_base_patch16_224.mae, all of ViT-B but for its depth; as the authors' file is, too."""
    reference = timm_reference("vit_base_patch16_224.mae", depth=2)
    save_file(reference.state_dict(), tmp_path / "model.safetensors")
    torch.save({"model": reference.state_dict()}, tmp_path / "mae_pretrain_vit_base.pth")
    x = noise(1, 3, 224, 224)
    with torch.inference_mode():
        wanted = reference(x)
        for file in ("model.safetensors", "mae_pretrain_vit_base.pth"):
            ours = jingdu.create("timm/vit_base_patch16_224.mae", weights=tmp_path / file, depth=2)
            assert wanted.shape == (1, 768)
            print(f"difference {assert_close(ours(x), wanted):.1e}")
        taps = reference.forward_intermediates(x, norm=False, output_fmt="NLC", intermediates_only=True)
        for ours_tap, theirs in zip(ours.features(x), taps, strict=True):
            assert_close(ours_tap[:, 1:], theirs)


def test_a_timm_folder_is_known_by_its_tag(tmp_path: Path) -> None:
    reference = timm_reference("vit_base_patch16_224.mae", img_size=48, **TINY)
    save_file(reference.state_dict(), tmp_path / "model.safetensors")
    config = {
        "architecture": "vit_base_patch16_224", "num_classes": 0, "model_args": {"img_size": 48, **TINY},
        "pretrained_cfg": {"tag": "mae", "num_classes": 0},
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    ours = jingdu.create("mae", weights=tmp_path)
    assert ours.origin.variant == "mae_encoder_base"
    x = noise(2, 3, 48, 48)
    with torch.inference_mode():
        assert_close(ours(x), reference(x))


@pytest.mark.parametrize("size", [48, (64, 112)])
def test_fine_tuned_networks_are_timms(size: Any, tmp_path: Path) -> None:
    """The authors' mae_finetuned_*.pth: the mean of the patches, and a norm called fc_norm; other sizes interpolate."""
    reference = timm_reference("vit_base_patch16_224", img_size=48, num_classes=11, global_pool="avg", **TINY)
    torch.save({"model": reference.state_dict(), "epoch": 3}, tmp_path / "mae_finetuned_vit_base.pth")
    reference.set_input_size(img_size=size)
    ours = jingdu.create(
        "mae_finetune_base", weights=tmp_path / "mae_finetuned_vit_base.pth", image_size=size, num_classes=11, **OURS
    )
    x = noise(3, 3, *ours.image_size)
    with torch.inference_mode():
        print(f"difference {assert_close(ours(x), reference(x)):.1e}")
    ours, reference, x = ours.double().train(), reference.double().train(), x.double()
    for network in (ours, reference):
        network(x).square().sum().backward()
    theirs = dict(reference.named_parameters())
    for mine, name in (("positions", "pos_embed"), ("norm.weight", "fc_norm.weight"), ("head.weight", "head.weight")):
        assert_close(ours.get_parameter(mine).grad, theirs[name].grad, 1e-9)


def test_an_encoder_out_of_transformers(tmp_path: Path) -> None:
    """ViTMAEModel, which hides patches unless it is told not to."""
    reference = reference_of(tmp_path / "whole", mask_ratio=0.0).vit
    reference.save_pretrained(tmp_path / "bare")
    ours = jingdu.create("mae", weights=tmp_path / "bare")
    assert ours.origin.variant == "mae_encoder_base"
    x = noise(2, 3, 40, 40)
    with torch.inference_mode():
        assert_close(ours(x), reference(x).last_hidden_state[:, 0])


def test_what_transformers_has_not_is_refused(tmp_path: Path) -> None:
    reference_of(tmp_path, decoder_intermediate_size=50)
    with pytest.raises(Refused, match="decoder_intermediate_size"):
        jingdu.create("mae", weights=tmp_path)
    probe = jingdu.create("mae_probe_mini")
    with pytest.raises(UsageError):
        jingdu.export(probe, "transformers", tmp_path / "out")


def test_what_is_written_transformers_reads(tmp_path: Path) -> None:
    ours = randomise_(jingdu.create("mae_mini"), torch.Generator().manual_seed(4)).eval()
    jingdu.export(ours, "transformers", tmp_path / "out")
    theirs = import_transformers().ViTMAEForPreTraining.from_pretrained(tmp_path / "out").eval()
    x, order = noise(2, 1, 16, 16), noise(2, 16)
    with torch.inference_mode():
        found = ours(x, order)
        assert_close(found.patches, theirs(x, noise=order).logits)
        assert_close(ours.loss(x, found), theirs(x, noise=order).loss)
