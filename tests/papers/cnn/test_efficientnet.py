"""EfficientNet's own parts."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

import jingdu
from jingdu.errors import UsageError
from jingdu.papers.cnn.efficientnet import (
    CONSTANTS,
    SIZES,
    VARIANTS,
    EfficientNet,
    compound,
    example,
    grid_search,
    predict,
    repeats,
    reward,
    scaling_space,
    work,
)
from jingdu.papers.cnn.mobilenet import ConvNorm, InvertedResidual, SqueezeExcite
from jingdu.papers.cnn.nas import SearchSpace, count_cost

SMALL = {"rows": ((1, 3, 1, 1, 16), (2, 5, 2, 4, 24)), "ends": (16, 40), "num_classes": 5}


def test_compound_scaling() -> None:
    assert work(*CONSTANTS) == pytest.approx(2, abs=0.1)
    assert compound(0) == (1, 1, 1) and compound(1) == pytest.approx(CONSTANTS)
    for phi in (1, 2, 3.5):
        assert work(*compound(phi)) == pytest.approx(work(*CONSTANTS) ** phi)
    # The released sizes follow Eq. 3 only roughly: from B1 to B7 phi goes from 0.5 to 7.
    width, depth, size = (
        VARIANTS["efficientnet_b4"]["width"],
        VARIANTS["efficientnet_b4"]["depth"],
        SIZES["efficientnet_b4"],
    )
    assert (depth, width, size / 224) == pytest.approx(compound(3.5), rel=0.07)
    with pytest.raises(UsageError, match="below 1"):
        compound(1, (1.2, 0.9, 1.15))


def test_work_grows_as_the_formula_says() -> None:
    """Depth counts once, width and resolution squared: in stages far from the ends of the network."""

    def flops(size: int = 64, **scale: float) -> int:
        with torch.device("meta"):
            network = EfficientNet(**{"rows": ((4, 3, 1, 4, 64),), "ends": (64, 64), **scale})
        return count_cost(network, (3, size, size)).flops

    base = flops()
    assert flops(depth=2.0) / base == pytest.approx(2, rel=0.06)
    assert flops(width=2.0) / base == pytest.approx(4, rel=0.12)
    assert flops(size=128) / base == pytest.approx(4, rel=0.02)


def test_grid_search_finds_the_best_of_its_grid() -> None:
    """Step 1 with an accuracy that is known: it is highest at the paper's constants."""
    asked = []

    def accuracy(constants: tuple[float, float, float]) -> float:
        asked.append(constants)
        return -sum((a - b) ** 2 for a, b in zip(constants, CONSTANTS, strict=True))

    best, found = grid_search(accuracy)
    assert best == CONSTANTS and found[best] == max(found.values()) == 0
    assert len(asked) == len(set(asked)) == len(found) > 20
    assert all(1.8 <= work(*constants) <= 2.2 and min(constants) >= 1 for constants in found)
    space = scaling_space(steps=(1.0, 2.0), within=0.01)
    assert [tuple(space.decode(code).values()) for code in space.codes()] == [(2.0, 1.0, 1.0)]
    with pytest.raises(UsageError, match="allowed"):
        grid_search(accuracy, scaling_space(steps=(1.0,)))
    assert isinstance(space, SearchSpace)


def test_reward_pays_for_less_work() -> None:
    assert reward(0.75, 400e6) == 0.75
    assert reward(0.75, 200e6) == pytest.approx(0.75 * 2**0.07) and reward(0.75, 800e6) < 0.75


def test_table_1() -> None:
    network = jingdu.create("efficientnet_b0")
    blocks = [block for stage in network.stages for block in stage]
    assert len(blocks) == 16 and all(isinstance(block, InvertedResidual) for block in blocks)
    assert [stage[0].project.conv.out_channels for stage in network.stages] == [16, 24, 40, 80, 112, 192, 320]
    assert [stage[0].depthwise.conv.kernel_size[0] for stage in network.stages] == [3, 3, 5, 3, 5, 5, 3]
    assert [stage[0].depthwise.conv.stride[0] for stage in network.stages] == [1, 2, 2, 2, 1, 2, 1]
    # A quarter of what enters the block, not of what it expands to.
    assert [block.squeeze.reduce.out_features for block in blocks[:5]] == [8, 4, 6, 6, 10]
    assert blocks[1].squeeze.reduce.in_features == 6 * 16
    biased = {type(m) for m in network.modules() if getattr(m, "bias", None) is not None}
    assert biased == {nn.Linear, nn.BatchNorm2d}
    assert sum(isinstance(m, SqueezeExcite) for m in network.modules()) == 16
    assert isinstance(blocks[0].expand, nn.Identity) and isinstance(blocks[1].depthwise.activation, nn.SiLU)
    with torch.device("meta"):
        assert count_cost(jingdu.create("efficientnet_b0"), (3, 224, 224)).flops / 1e9 == pytest.approx(0.39, abs=0.01)


def test_drop_connect_grows_linearly() -> None:
    network = jingdu.create("efficientnet_b0", drop_connect=0.32)
    rates = [block.drop for stage in network.stages for block in stage]
    assert rates == pytest.approx([0.02 * i for i in range(16)])


def test_repeats_are_rounded_up() -> None:
    assert [repeats(blocks, 1.1) for blocks in (1, 2, 3, 4)] == [2, 3, 4, 5] and repeats(3, 1.0) == 3


def test_padding_rules_per_block() -> None:
    network = EfficientNet(**SMALL, padding="keras", square=(1,))
    rules = [m.rule for m in network.modules() if isinstance(m, ConvNorm) and m.conv.stride == (2, 2)]
    assert rules == ["keras", "symmetric"]
    with pytest.raises(UsageError, match="valid"):
        EfficientNet(**SMALL, padding="valid")


def test_features_are_the_last_maps_of_each_resolution() -> None:
    model = jingdu.create("efficientnet_b0", width=0.25).eval()
    seen: dict[int, torch.Tensor] = {}
    for number, stage in enumerate(model.stages):
        stage.register_forward_hook(lambda m, i, o, n=number: seen.update({n: o}))
    taps = model.features(torch.randn(2, 3, 64, 96))
    assert model.taps == [0, 1, 2, 4, 6]
    assert all(torch.equal(a, seen[number]) for a, number in zip(taps, model.taps, strict=True))
    assert [tap.shape[1] for tap in taps] == model.channels
    assert [tuple(tap.shape[2:]) for tap in taps] == [(64 >> i, 96 >> i) for i in range(1, 6)]


def test_output_stride_keeps_the_weights() -> None:
    network = EfficientNet(width=0.25, output_stride=16)
    assert network.features(torch.randn(1, 3, 64, 64))[-1].shape[-1] == 4
    network.load_state_dict(EfficientNet(width=0.25).state_dict())
    with pytest.raises(UsageError, match="output_stride 5"):
        EfficientNet(output_stride=5)


def test_every_parameter_gets_a_gradient() -> None:
    network = EfficientNet(**SMALL, drop_connect=0.0)
    network(torch.randn(5, 3, 37, 41)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_wrong_images_are_named() -> None:
    with pytest.raises(UsageError, match="channels"):
        EfficientNet(**SMALL)(torch.rand(2, 4, 32, 32))


def test_the_recipe_trains(tmp_path: Path) -> None:
    run = jingdu.train(
        "efficientnet", tmp_path / "run", quiet=True, steps=2, batch_size=7, data="scenes(count=14, test_count=7)"
    )
    assert run.metrics["error"] <= 1 and jingdu.load(run.folder).fc.out_features == 8


def test_predict_at_the_variants_resolution(tmp_path: Path) -> None:
    Image.new("RGB", (310, 270), "red").save(tmp_path / "red.png")
    model = jingdu.create("efficientnet_b1", width=0.25)
    sizes: list[int] = []
    model.stem.register_forward_pre_hook(lambda m, inputs: sizes.append(inputs[0].shape[-1]))
    (result,) = predict(model, [str(tmp_path / "red.png")], top=3)
    assert len(result.data["top"]) == 3 and sizes == [240]
    assert example("efficientnet_b2", 2).shape == (2, 3, 260, 260)
