"""ViT's own parts."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

import jingdu
from jingdu.cli import main
from jingdu.data.images import page, write_picture
from jingdu.errors import UsageError
from jingdu.papers.vit.vit import (
    PatchEmbed,
    SelfAttention,
    StandardisedConv2d,
    ViT,
    ViTBlock,
    attention_distance,
    attention_maps,
    overlay,
    position_similarity,
    resize_positions,
    rollout,
)
from tests.largest import Largest

SIZES = {"image_size": (24, 40), "patch": 8, "width": 12, "depth": 3, "heads": 3, "num_classes": 5}


def test_patches_are_unfolded_and_mapped() -> None:
    embed = PatchEmbed(4, 7)
    x = torch.randn(2, 3, 12, 20)
    wanted = F.unfold(x, 4, stride=4).transpose(1, 2) @ embed.projection.weight.flatten(1).T + embed.projection.bias
    assert torch.allclose(embed(x), wanted, atol=1e-5)


def test_the_class_token_comes_first_and_has_a_position() -> None:
    model = ViT(**SIZES)
    nn.init.normal_(model.class_token)
    x = torch.randn(2, 3, 24, 40)
    tokens = model.embed(x)
    assert tokens.shape == (2, 1 + 3 * 5, 12)
    assert torch.allclose(tokens[:, 0], (model.class_token + model.positions[:, :1])[:, 0].expand(2, -1))
    assert torch.allclose(tokens[:, 1:], model.patches(x) + model.positions[:, 1:])


@pytest.mark.parametrize("biases, count", [("full", 3 * 12), ("none", 0), ("qv", 2 * 12)])
def test_biases_of_the_projection(biases: str, count: int) -> None:
    layer = SelfAttention(12, 3, biases=biases)
    assert sum(p.numel() for n, p in layer.named_parameters() if "bias" in n and "project" not in n) == count
    if biases != "qv":
        return
    nn.init.normal_(layer.query_bias), nn.init.normal_(layer.value_bias)
    x = torch.randn(2, 5, 12)
    q, k, _ = layer.split(x)
    plain = F.linear(x, layer.qkv.weight).view(2, 5, 3, 3, 4).permute(2, 0, 3, 1, 4)
    assert torch.equal(k, plain[1])
    assert torch.allclose(q - plain[0], layer.query_bias.view(3, 1, 4).expand(2, -1, 5, -1), atol=1e-6)


def test_a_block_is_equations_2_and_3() -> None:
    block = ViTBlock(12, 3, ratio=2, scale=0.3, activation="gelu_tanh", eps=1e-3).eval()
    x = torch.randn(2, 5, 12)
    q, k, v = block.attention.split(F.layer_norm(x, (12,), eps=1e-3))
    gathered = ((q @ k.mT / 2).softmax(-1) @ v).transpose(1, 2).reshape(2, 5, 12)
    x1 = x + 0.3 * block.attention.project(gathered)
    inner = F.gelu(block.mlp.expand(F.layer_norm(x1, (12,), eps=1e-3)), approximate="tanh")
    assert torch.allclose(block(x), x1 + 0.3 * block.mlp.contract(inner), atol=1e-5)


def test_a_mask_and_a_bias_reach_the_attention() -> None:
    bias = torch.randn(3, 5, 5)
    block = ViTBlock(12, 3, bias=lambda: bias).eval()
    plain = ViTBlock(12, 3).eval()
    plain.load_state_dict(block.state_dict())
    x, mask = torch.randn(2, 5, 12), torch.ones(2, 1, 1, 5, dtype=torch.bool)
    assert not torch.allclose(block(x), plain(x), atol=1e-4)
    mask[:, ..., 3:] = False
    changed = x.clone()
    changed[:, 3:] = torch.randn(2, 2, 12)
    assert torch.allclose(plain(x, mask)[:, :3], plain(changed, mask)[:, :3], atol=1e-6)
    assert not torch.allclose(plain(x)[:, :3], plain(changed)[:, :3], atol=1e-4)


def test_paths_are_dropped_in_training_alone() -> None:
    torch.manual_seed(0)
    block = ViTBlock(12, 3, drop=0.5)
    x = torch.randn(64, 5, 12)
    kept = (block(x) == x).flatten(1).all(1).float().mean().item()
    assert 0.1 < kept < 0.45  # a quarter skips both branches
    assert not (block.eval()(x) == x).flatten(1).all(1).any()
    rates = [block.drop for block in ViT(**SIZES, drop=0.2).blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2])


def test_the_head_starts_at_zero_and_reads_what_is_asked() -> None:
    x = torch.randn(2, 3, 24, 40)
    assert not ViT(**SIZES)(x).any()
    model = ViT(**{**SIZES, "num_classes": 0}, pool="mean", representation=7).eval()
    tokens = model.features(x)[-1]
    assert torch.allclose(model(x), torch.tanh(model.hidden(model.norm(tokens[:, 1:].mean(1)))))
    with pytest.raises(UsageError, match="pool"):
        ViT(**SIZES, pool="max")


def test_features_are_the_blocks_outputs() -> None:
    model, seen = ViT(**SIZES).eval(), []
    for block in model.blocks:
        block.register_forward_hook(lambda m, i, o: seen.append(o))
    taps = model.features(torch.randn(1, 3, 24, 40))
    assert len(taps) == 3 and all(a is b for a, b in zip(taps, seen, strict=True))


def test_sizes_that_do_not_fit_are_told() -> None:
    with pytest.raises(UsageError, match="do not divide into patches of 8"):
        ViT(**{**SIZES, "image_size": 30})
    with pytest.raises(UsageError, match="heads"):
        ViT(**{**SIZES, "heads": 5})
    with pytest.raises(UsageError, match="image_size="):
        ViT(**SIZES)(torch.randn(1, 3, 24, 32))
    with pytest.raises(UsageError, match="no grid"):
        resize_positions(torch.randn(1, 16, 3), (4, 4))


def test_resized_positions_keep_a_plane() -> None:
    """A table that is linear in the place is linear on any grid, but for the rim of a bicubic one."""
    rows, columns = torch.meshgrid(torch.arange(6.0), torch.arange(6.0), indexing="ij")
    table = torch.cat((torch.full((1, 1, 2), 9.0), torch.stack((rows, columns), -1).view(1, 36, 2)), 1)
    grown = resize_positions(table, (12, 6))
    assert grown.shape == (1, 73, 2) and torch.equal(grown[:, 0], table[:, 0])
    middle = grown[0, 1:].view(12, 6, 2)[4:8, 2:4]
    wanted = torch.stack(
        torch.meshgrid((torch.arange(4.0, 8) + 0.5) / 2 - 0.5, torch.arange(2.0, 4), indexing="ij"), -1
    )
    assert torch.allclose(middle, wanted, atol=1e-4)


def test_standardised_kernels() -> None:
    """Whatever is added to a kernel, and whatever it is multiplied by, does not count."""
    layer = StandardisedConv2d(3, 5, 3, 2)
    x = torch.randn(2, 3, 11, 8)
    before = layer(x)
    assert before.shape == (2, 5, 6, 4)
    with torch.no_grad():
        layer.weight.mul_(7).add_(3)
    assert torch.allclose(layer(x), before, atol=1e-4)


def test_maps_are_those_of_the_network() -> None:
    model = ViT(**SIZES).eval()
    x = torch.randn(2, 3, 24, 40)
    maps = attention_maps(model, x)
    assert [tuple(m.shape) for m in maps] == [(2, 3, 16, 16)] * 3
    assert torch.allclose(maps[0].sum(-1), torch.ones(2, 3, 16))
    _, _, v = model.blocks[0].attention.split(model.blocks[0].norm1(model.embed(x)))
    gathered = (maps[0] @ v).transpose(1, 2).flatten(2)
    tokens = model.embed(x) + model.blocks[0].attention.project(gathered)
    tokens = tokens + model.blocks[0].mlp(model.blocks[0].norm2(tokens))
    assert torch.allclose(tokens, model.features(x)[0], atol=1e-5)


def test_rollout_and_distance_of_known_maps() -> None:
    still = torch.eye(7).expand(1, 2, 7, 7)
    assert not rollout([still, still], (2, 3)).any()
    flat = torch.full((1, 2, 7, 7), 1 / 7)
    assert torch.allclose(rollout([flat], (2, 3)), torch.full((1, 2, 3), 0.5 / 7))
    assert torch.allclose(rollout([flat, flat], (2, 3)).sum(), torch.tensor(0.75 * 6 / 7))
    assert not attention_distance([still], (2, 3), 16).any()
    places = torch.tensor([(r, c) for r in range(2) for c in range(3)], dtype=torch.float32) * 16
    assert torch.allclose(attention_distance([flat], (2, 3), 16), torch.cdist(places, places).mean().expand(1, 2))
    alike = position_similarity(ViT(**SIZES))
    assert alike.shape == (3, 5, 3, 5) and alike[1, 2, 1, 2] == pytest.approx(1.0)


def test_an_overlay_is_bright_where_the_heat_is() -> None:
    heat = torch.zeros(2, 3)
    heat[1, 2] = 0.7
    lit = overlay(torch.full((1, 16, 24), 0.5), heat)
    assert lit.shape == (3, 16, 24) and lit[:, 15, 23].allclose(torch.tensor(0.5)) and lit.max() <= 0.5
    assert lit[0, 0, 0] == pytest.approx(0.5 * 0.15)
    assert overlay(torch.ones(3, 16, 24), torch.zeros(2, 3)).allclose(torch.tensor(0.15))  # where nothing is looked at


def test_a_page_of_pictures(tmp_path: Path) -> None:
    rows = [[torch.zeros(1, 3, 5), torch.rand(3, 3, 5)], [torch.ones(3, 3, 5), torch.zeros(3, 3, 5)]]
    found = page(rows, side=11, gap=1)
    assert found.shape == (3, 2 * (6 + 1) + 1, 2 * (10 + 1) + 1)
    assert found[:, 0].eq(1).all() and found[:, 1:7, 1:11].eq(0).all()
    assert torch.equal(found[:, 1, 12:22:2], rows[0][1][:, 0])
    write_picture(found, tmp_path / "new" / "page.png")
    with Image.open(tmp_path / "new" / "page.png") as written:
        assert written.size == (23, 15)
    with pytest.raises(UsageError, match="--out"):
        write_picture(found, tmp_path / "page.strange")


def test_show_attention_draws_a_row_for_each_photo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = jingdu.create("vit_mini", depth=4)
    jingdu.export(model, "jingdu", tmp_path / "vit.safetensors")
    photos = []
    for name, size in (("a.png", (40, 51)), ("b.png", (64, 33))):
        photos.append(str(tmp_path / name))
        Image.new("RGB", size, (200, 90, 30)).save(photos[-1])
    words = ["show", "vit", "--attention", *photos, "--weights", str(tmp_path / "vit.safetensors"), "--out"]
    assert main([*words, str(tmp_path / "look.png")]) == 0
    assert "rollout" in capsys.readouterr().out
    # two rows of five pictures of 7 x 32 pixels, 4 pixels apart
    with Image.open(tmp_path / "look.png") as picture:
        assert picture.size == (5 * 228 + 4, 2 * 228 + 4)
    assert main([*words, str(tmp_path / "again.png"), "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["file"] for row in rows] == photos and rows[0]["blocks"] == [1, 2, 4] and rows[0]["grid"] == [8, 8]


@pytest.mark.parametrize("words, message", [
    (["vit", "--attention", "a.png"], "needs weights"),
    (["vit", "--weights", "x"], "is for --attention"),
    (["resnet", "--attention", "a.png", "--weights", "x"], "draws no attention"),
])  # fmt: skip
def test_show_attention_says_what_it_needs(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", *words]) == 2
    assert message in capsys.readouterr().err


def test_no_attention_matrix_is_stored() -> None:
    """At 1,297 tokens, forth and back: nothing comes near the square of their number."""
    model = ViT(3, image_size=144, patch=4, width=16, depth=2, heads=2)
    with Largest() as largest:
        model(torch.randn(1, 3, 144, 144)).sum().backward()
    assert 1297 * 16 <= largest.numbers < 1297**2 / 10
