"""Swin against timm, torchvision, transformers and the authors' layout, with the same random weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import jingdu
from jingdu.papers.vit.swin import Pyramid, relative_index, resize_bias
from jingdu.weights.configs import sizes
from tests.parity.references import assert_close, import_timm, import_torchvision, import_transformers, randomise_

TINY = {"embed_dim": 24, "depths": (2, 3, 1), "num_heads": (3, 4, 6), "num_classes": 11}
OURS = {"width": 24, "depths": (2, 3, 1), "heads": (3, 4, 6), "num_classes": 11}
TIMM = "timm/swin_tiny_patch4_window7_224"


def images(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=dtype)


def timm_file(folder: Path, name: str = "swin_tiny_patch4_window7_224", **options: Any) -> tuple[nn.Module, Path]:
    reference = randomise_(import_timm().create_model(name, **options), torch.Generator().manual_seed(3)).eval()
    save_file(reference.state_dict(), folder / "model.safetensors")
    return reference, folder / "model.safetensors"


@pytest.mark.parametrize("name, options, ours", [
    ("swin_tiny_patch4_window7_224", {}, {}),
    # 60 pixels are 15 patches, 8 and 4: windows do not divide the first, and one covers the last
    ("swin_base_patch4_window7_224", {**TINY, "img_size": 60}, {**OURS, "image_size": 60}),
    ("swin_large_patch4_window12_384", {**TINY, "img_size": (100, 132), "in_chans": 1, "mlp_ratio": 3, "qkv_bias": False},
     {**OURS, "image_size": (100, 132), "in_channels": 1, "ratio": 3, "biases": False}),
])  # fmt: skip
def test_timms_logits_and_maps(name: str, options: dict[str, Any], ours: dict[str, Any], tmp_path: Path) -> None:
    reference, file = timm_file(tmp_path, name, **options)
    network = jingdu.create(f"timm/{name}", weights=file, **ours)
    assert not network.training
    x = images(1, options.get("in_chans", 3), *network.image_size)
    with torch.inference_mode():
        print(f"difference {assert_close(network(x), reference(x)):.1e}")
        maps = reference.forward_intermediates(x, intermediates_only=True)
        for tap, theirs in zip(network.features(x), maps, strict=True):
            assert_close(tap, theirs)


@pytest.mark.parametrize("size", [(3, 64, 96), (1, 81, 135)])
@pytest.mark.parametrize("training", [False, True])
def test_torchvisions_logits(size: tuple[int, int, int], training: bool, tmp_path: Path) -> None:
    """At any size, as torchvision takes them: 81 x 135 are 20 x 33 patches, 10 x 17 and 5 x 9."""
    kind = import_torchvision().models.swin_transformer.SwinTransformer
    reference = kind([4, 4], 24, [2, 3, 1], [3, 4, 6], [5, 5], num_classes=11, stochastic_depth_prob=0.3)
    randomise_(reference, torch.Generator().manual_seed(5)).train(training)
    torch.save(reference.state_dict(), tmp_path / "swin.pth")
    # one stage less than torchvision's own networks, whose numbers the table has
    ours = jingdu.create("torchvision/swin_t", weights=tmp_path / "swin.pth", window=5, drop=0.3, **OURS).train(
        training
    )
    batch, *sides = size
    x = images(batch, 3, *sides)
    if not training:
        with torch.inference_mode():
            print(f"difference {assert_close(ours(x), reference(x)):.1e}")
        return
    found = []
    for network in (ours, reference):
        torch.manual_seed(1)
        y = network(x)
        y.square().sum().backward()
        found.append(y.detach())
    assert_close(*found)
    theirs = dict(reference.named_parameters())
    for mine, name in (
        ("patches.projection.weight", "features.0.0.weight"), ("stages.1.merge.reduction.weight", "features.2.reduction.weight"),
        ("stages.1.blocks.1.attention.table", "features.3.1.attn.relative_position_bias_table"),
        ("stages.0.blocks.1.attention.qkv.weight", "features.1.1.attn.qkv.weight"),
    ):  # fmt: skip
        assert_close(ours.get_parameter(mine).grad, theirs[name].grad)


def test_gradients(tmp_path: Path) -> None:
    """In training mode, in double precision."""
    reference, file = timm_file(tmp_path, **TINY, img_size=60, drop_path_rate=0.0)
    reference.double().train()
    ours = jingdu.create(TIMM, weights=file, image_size=60, **OURS).double().train()
    x = images(3, 3, 60, 60, dtype=torch.float64)
    for network in (ours, reference):
        network(x).square().sum().backward()
    theirs = dict(reference.named_parameters())
    for mine, name in (
        ("patch_norm.weight", "patch_embed.norm.weight"), ("stages.2.merge.norm.bias", "layers.2.downsample.norm.bias"),
        ("stages.1.blocks.1.attention.table", "layers.1.blocks.1.attn.relative_position_bias_table"),
        ("stages.0.blocks.0.attention.table", "layers.0.blocks.0.attn.relative_position_bias_table"),
        ("stages.0.blocks.1.attention.qkv.weight", "layers.0.blocks.1.attn.qkv.weight"),
        ("stages.1.blocks.2.mlp.expand.bias", "layers.1.blocks.2.mlp.fc1.bias"),
    ):  # fmt: skip
        assert_close(ours.get_parameter(mine).grad, theirs[name].grad, 1e-9)


@pytest.mark.filterwarnings("ignore:(torch.searchsorted|Using a non-tuple):UserWarning")  # timm's interpolation
@pytest.mark.parametrize("size, window", [(64, 8), (96, 5), (64, 3), (88, None)])
def test_another_size_or_window_resizes_the_bias_as_timm(size: int, window: int | None, tmp_path: Path) -> None:
    """set_input_size scales the windows with the image, or takes one; the tables are interpolated."""
    reference, file = timm_file(tmp_path, **TINY, img_size=56)
    reference.set_input_size(img_size=size, window_size=window)
    # 88 pixels are 22 patches in place of 14: windows of 11
    ours = jingdu.create(TIMM, weights=file, image_size=size, window=window or 11, **OURS)
    x = images(2, 3, size, size)
    with torch.inference_mode():
        print(f"difference {assert_close(ours(x), reference(x)):.1e}")


def test_the_papers_way_to_resize_a_table() -> None:
    """utils.py of the authors, load_pretrained: bicubic, the table as an image."""
    table = images(13 * 13, 4)
    wanted = nn.functional.interpolate(table.permute(1, 0).view(1, 4, 13, 13), size=(23, 23), mode="bicubic")
    assert_close(resize_bias(table, (12, 12), how="bicubic"), wanted.view(4, 529).permute(1, 0))


def test_the_authors_layout(tmp_path: Path) -> None:
    """A .pth with a 'model', whose mergings end a stage, with the masks and indices that its modules register."""
    reference, _ = timm_file(tmp_path, **TINY, img_size=60)
    theirs = {}
    for name, tensor in reference.state_dict().items():
        words = name.split(".")
        if "downsample" in words:
            words[1] = str(int(words[1]) - 1)
        theirs[".".join(words).replace("head.fc.", "head.")] = tensor
    for name in [name for name in theirs if name.endswith("relative_position_bias_table")]:
        theirs[name.replace("bias_table", "index")] = relative_index((7, 7), torch.device("cpu"))
        theirs[name.replace("attn.relative_position_bias_table", "attn_mask")] = torch.zeros(9, 49, 49)
    torch.save({"model": theirs}, tmp_path / "swin_tiny_patch4_window7_224.pth")
    ours = jingdu.create(
        "swin", weights=tmp_path / "swin_tiny_patch4_window7_224.pth", image_size=60, shift="late", **OURS
    )
    x = images(2, 3, 60, 60)
    with torch.inference_mode():
        assert_close(ours(x), reference(x))


@pytest.mark.parametrize("options", [{}, {"hidden_act": "gelu_new", "use_absolute_embeddings": True}])
def test_transformers_folder(options: dict[str, Any], tmp_path: Path) -> None:
    transformers = import_transformers()
    config = transformers.SwinConfig(**{
        "embed_dim": 24, "depths": [2, 3, 1], "num_heads": [3, 4, 6], "image_size": 68, "window_size": 5, "mlp_ratio": 3,
        "id2label": {i: f"kind {i}" for i in range(11)}, **options,
    })  # fmt: skip
    reference = randomise_(transformers.SwinForImageClassification(config), torch.Generator().manual_seed(6)).eval()
    reference.save_pretrained(tmp_path)
    ours = jingdu.create("swin", weights=tmp_path)
    assert ours.origin.classes is not None and len(ours.origin.classes) == 11
    x = images(2, 3, 68, 68)
    with torch.inference_mode():
        print(f"difference {assert_close(ours(x), reference(x).logits):.1e}")
    jingdu.export(ours, "transformers", tmp_path / "back")
    again = transformers.SwinForImageClassification.from_pretrained(tmp_path / "back").eval()
    with torch.inference_mode():
        assert_close(again(x).logits, reference(x).logits)
    reference.swin.save_pretrained(tmp_path / "bare")
    encoder = jingdu.create("swin", weights=tmp_path / "bare")
    with torch.inference_mode():
        assert_close(encoder(x), reference.swin(x).pooler_output)


@pytest.mark.parametrize("variant, width, heads, deep, window", [
    ("swin_tiny", 96, 3, 6, 7), ("swin_small", 96, 3, 18, 7), ("swin_base", 128, 4, 18, 7), ("swin_large", 192, 6, 18, 7),
    ("swin_base_window12_384", 128, 4, 18, 12), ("swin_large_window12_384", 192, 6, 18, 12),
])  # fmt: skip
def test_every_published_size_of_transformers(variant: str, width: int, heads: int, deep: int, window: int) -> None:
    """Its network and ours, of names and shapes alone."""
    transformers, side = import_transformers(), 224 if window == 7 else 384
    config = transformers.SwinConfig(
        embed_dim=width, depths=[2, 2, deep, 2], num_heads=[heads << i for i in range(4)], window_size=window,
        image_size=side, num_labels=1000,
    )  # fmt: skip
    found = sizes({**config.to_dict(), "architectures": ["SwinForImageClassification"]}, "swin")
    assert found.variant == variant
    with torch.device("meta"):
        ours = jingdu.create(variant, **found.overrides)
        theirs = transformers.SwinForImageClassification(config)
    assert ours.image_size == (side, side)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())


def test_the_pyramid_is_transformers_backbone(tmp_path: Path) -> None:
    transformers = import_transformers()
    config = transformers.SwinConfig(
        embed_dim=24, depths=[2, 3, 1], num_heads=[3, 4, 6], image_size=68, window_size=5,
        out_features=["stage1", "stage2", "stage3"],
    )  # fmt: skip
    reference = randomise_(transformers.SwinBackbone(config), torch.Generator().manual_seed(6)).eval()
    reference.swin.save_pretrained(tmp_path)
    ours = Pyramid(jingdu.create("swin", weights=tmp_path), stages=(0, 1, 2))
    norms = [p for name, p in reference.named_parameters() if "hidden_states_norms" in name]
    for mine, theirs in zip(ours.norms.parameters(), norms, strict=True):
        mine.data.copy_(theirs)
    x = images(2, 3, 68, 68)
    with torch.inference_mode():
        for mine, theirs in zip(ours(x), reference(x).feature_maps, strict=True):
            assert_close(mine, theirs)
