"""ConvNeXt's own parts."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

import jingdu
from jingdu.errors import UsageError
from jingdu.papers.cnn.convnext import (
    STEPS,
    ConvNeXt,
    ConvNeXtBlock,
    Isotropic,
    LayerNorm2d,
    Pyramid,
    Road,
    channel_norm,
)
from jingdu.papers.cnn.nas import count_cost

SIZES = {"depths": (1, 2, 4), "widths": (6, 10, 14), "patch": 2, "num_classes": 5}


def filled(network: nn.Module) -> nn.Module:
    """All weights are random numbers."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return network.eval()


@pytest.mark.parametrize("dtype, atol", [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_the_norms_layouts_agree(dtype: torch.dtype, atol: float) -> None:
    """Channels first or last, by torch's kernel or by the formula; far from zero, where bf16 alone would lose the variance."""
    first, last = LayerNorm2d(7), LayerNorm2d(7, channels="last")
    for layer in (first, last):
        nn.init.normal_(layer.weight, generator=torch.Generator().manual_seed(1))
        layer.to(dtype)
    x = (torch.randn(2, 7, 5, 3) + 8).to(dtype)
    wanted = F.layer_norm(x.float().movedim(1, 3), (7,), first.weight.float(), None, 1e-6).movedim(3, 1)
    for found in (
        first(x), first(x.contiguous(memory_format=torch.channels_last)), last(x.movedim(1, 3)).movedim(3, 1),
        channel_norm(x, first.weight, first.bias),
    ):  # fmt: skip
        assert found.dtype == dtype and torch.allclose(found.float(), wanted, atol=atol, rtol=0.02)
    with pytest.raises(UsageError, match="channels"):
        LayerNorm2d(7, channels="middle")


def test_a_block_is_figure_4() -> None:
    block = filled(ConvNeXtBlock(6, kernel=5))
    x = torch.randn(2, 6, 7, 9)
    y = F.conv2d(x, block.depthwise.weight, block.depthwise.bias, padding=2, groups=6)
    y = F.layer_norm(y.movedim(1, 3), (6,), block.norm.weight, block.norm.bias, 1e-6)
    y = block.contract(F.gelu(block.expand(y))) * block.scale
    assert torch.allclose(block(x), x + y.movedim(3, 1), atol=1e-5)
    plain = ConvNeXtBlock(6, kernel=5, scale=None)
    plain.load_state_dict({k: v for k, v in block.state_dict().items() if k != "scale"})
    assert torch.allclose(plain(x), x + (y / block.scale).movedim(3, 1), atol=1e-4)


def test_blocks_are_dropped_in_training_alone() -> None:
    torch.manual_seed(0)
    block = filled(ConvNeXtBlock(6, drop=0.5)).train()
    x = torch.randn(64, 6, 3, 3)
    assert 0.3 < (block(x) == x).flatten(1).all(1).float().mean().item() < 0.7
    assert not (block.eval()(x) == x).flatten(1).all(1).any()
    rates = [b.drop for stage in ConvNeXt(**SIZES, drop=0.3).stages for b in stage.blocks]
    assert rates == pytest.approx([0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3])


def test_it_starts_as_the_appendix_says() -> None:
    model = ConvNeXt(num_classes=400, depths=(1,), widths=(128,), head_scale=0.1)
    block = model.stages[0].blocks[0]
    assert block.expand.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.head.weight.std().item() == pytest.approx(0.002, rel=0.05)
    assert not block.depthwise.bias.any() and (block.scale == 1e-6).all()


def test_features_are_the_stages_outputs() -> None:
    model, seen = filled(ConvNeXt(**SIZES)), []
    for stage in model.stages:
        stage.register_forward_hook(lambda m, i, o: seen.append(o))
    x = torch.randn(2, 3, 17, 23)
    taps = model.features(x)
    assert all(torch.equal(a, b) for a, b in zip(taps, seen, strict=True))
    assert [tuple(tap.shape[1:]) for tap in taps] == [(6, 8, 11), (10, 4, 5), (14, 2, 2)] and model.channels == [
        6,
        10,
        14,
    ]
    assert torch.allclose(model(x), model.head(model.norm(taps[-1].mean((2, 3)))))
    maps = Pyramid(model, (0, 2))(x)
    assert [tuple(m.shape[1:]) for m in maps] == [(6, 8, 11), (14, 2, 2)]
    assert torch.allclose(maps[1].mean(1), torch.zeros(2, 2, 2), atol=1e-5)
    with pytest.raises(UsageError, match="height"):
        model(torch.randn(1, 3, 7, 16))
    with pytest.raises(UsageError, match="depths"):
        ConvNeXt(depths=(1, 2), widths=(3,))


def test_isotropic_nets_keep_their_side() -> None:
    model = filled(Isotropic(num_classes=5, depth=3, width=6, patch=4))
    taps = model.features(torch.randn(2, 3, 13, 21))
    assert [tuple(tap.shape) for tap in taps] == [(2, 6, 3, 5)] * 3 and model.blocks[0].scale is None
    assert model(torch.randn(2, 3, 13, 21)).shape == (2, 5)


def test_depths_are_those_of_the_authors() -> None:
    """get_num_layer_for_convnext of their optim_factory.py, of the network with 27 blocks in its third stage."""
    with torch.device("meta"):
        model = jingdu.create("convnext_small")
    depth = model.layer_depth
    assert [depth(n) for n in ("stem.conv.weight", "stages.0.blocks.2.scale", "stages.1.downsample.conv.bias")] == [
        0,
        1,
        2,
    ]
    assert [depth(f"stages.2.blocks.{b}.norm.bias") for b in (0, 2, 3, 26)] == [3, 3, 4, 11]
    assert [depth(n) for n in ("stages.2.downsample.norm.bias", "stages.3.blocks.0.scale", "norm.bias", "head.bias")] == [
        3, 12, 13, 13,
    ]  # fmt: skip
    assert {depth(name) for name, _ in model.named_parameters()} == set(range(14))


@pytest.mark.parametrize("steps", range(len(STEPS)))
def test_the_road_costs_what_table_10_says(steps: int) -> None:
    with torch.device("meta"):
        cost = count_cost(Road(steps), (3, 224, 224))
    assert cost.flops / 1e9 == pytest.approx(STEPS[steps].flops, abs=0.006)


def test_the_road_begins_at_resnet() -> None:
    road = filled(Road(0, depths=((1, 2, 1), (1, 1, 3)), widths=(8, 12), num_classes=5))
    resnet = jingdu.create("resnet50", depths=(1, 2, 1), width=8, num_classes=5)
    wanted = {}
    for i in range(3):
        for b in range(len(road.stages[i])):
            ours, theirs = f"stages.{i}.{b}", f"conv{i + 2}_x.{b}"
            wanted |= {f"{ours}.convs.{n}": f"{theirs}.conv{n + 1}" for n in range(3)}
            wanted |= {f"{ours}.norms.{n}": f"{theirs}.bn{n + 1}" for n in range(3)}
            wanted |= {f"{ours}.shortcut.0": f"{theirs}.shortcut.conv", f"{ours}.shortcut.1": f"{theirs}.shortcut.bn"}
    wanted |= {"stem": "conv1", "stem_norm": "bn1", "head": "fc"}
    state = {}
    for name, tensor in road.state_dict().items():
        layer, _, last = name.rpartition(".")
        state[f"{wanted[layer]}.{last}"] = tensor
    resnet.load_state_dict(state)
    x = torch.randn(2, 3, 64, 48)
    assert torch.allclose(road(x), resnet.eval()(x), rtol=1e-3, atol=1e-3)


def test_the_road_ends_at_convnext() -> None:
    road = filled(Road(depths=((1, 1, 1), (1, 2, 1)), widths=(8, 6), num_classes=5))
    model = ConvNeXt(depths=(1, 2, 1), widths=(6, 12, 24), num_classes=5).eval()
    state = {}
    for name, tensor in road.state_dict().items():
        for ours, theirs in (
            ("stem_norm.", "stem.norm."), ("downsamples.", "stages."), (".convs.0.", ".depthwise."), (".norms.0.", ".norm."),
            (".convs.1.", ".expand."), (".convs.2.", ".contract."),
        ):  # fmt: skip
            name = name.replace(ours, theirs)
        parts = name.split(".")
        if parts[0] == "stem" and parts[1] != "norm":
            name = f"stem.conv.{parts[1]}"
        elif parts[0] == "stages" and len(parts) == 4 and parts[3] in ("weight", "bias"):
            name = f"stages.{parts[1]}.downsample.{('norm', 'conv')[int(parts[2])]}.{parts[3]}"
        elif parts[0] == "stages":
            name = ".".join((parts[0], parts[1], "blocks", *parts[2:]))
        linear = "expand.weight" in name or "contract.weight" in name
        state[name] = tensor.flatten(1) if linear else tensor
    model.load_state_dict(state)
    x = torch.randn(2, 3, 37, 53)
    assert torch.allclose(road(x), model(x), rtol=1e-3, atol=1e-3)


def test_every_step_trains() -> None:
    for steps in range(len(STEPS)):
        model = Road(steps, depths=((1, 2), (2, 1)), widths=(8, 12), num_classes=5, stem=2)
        model(torch.randn(3, 3, 16, 24)).square().sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters()), STEPS[steps].name
    with pytest.raises(UsageError, match="steps=13"):
        Road(13)


def test_the_recipe_runs(tmp_path: Path) -> None:
    network = "convnext_mini(depths=(1, 1), widths=(6, 10))"
    jingdu.train("convnext", out=tmp_path / "run", steps=2, batch_size=3, networks={"network": network}, data="scenes(count=9, test_count=5)")  # fmt: skip
    Image.new("RGB", (40, 32), "red").save(tmp_path / "red.png")
    model = jingdu.create("convnext_mini", weights=tmp_path / "run")
    (result,) = jingdu.paper("convnext").load().predict(model, [str(tmp_path / "red.png")], top=3)
    assert len(result.data["top"]) == 3
