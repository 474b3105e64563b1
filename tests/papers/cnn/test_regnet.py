"""RegNet's own parts."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import jingdu
from jingdu.errors import UsageError
from jingdu.papers.cnn.nas import count_cost
from jingdu.papers.cnn.regnet import (
    AnyNet,
    Basic,
    Bottleneck,
    Vanilla,
    best_range,
    block_widths,
    complexity,
    design_space,
    edf,
    fit_groups,
    linear_stages,
    predict,
    sample_networks,
    sizes_of,
)

TINY = {"widths": range(8, 49, 8), "depths": (1, 2, 3), "ratios": (1, 2), "groups": (2, 4, 8), "stages": 3}


def test_width_rule_is_pycls() -> None:
    """Against the formula in numpy, for all 24 networks; the stages of X-200MF and Y-4.0GF as Figures 16 and 17 print."""
    for _, values in list(jingdu.paper("regnet").load().VARIANTS.values())[:24]:
        initial, slope, step, depth = (values[name] for name in ("initial", "slope", "step", "depth"))
        line = np.arange(depth) * slope + initial
        powers = np.round(np.log(line / initial) / np.log(step))
        widths = np.round(np.divide(initial * np.power(step, powers), 8)) * 8
        assert block_widths(initial, slope, step, depth) == widths.astype(int).tolist()
    for variant, widths, depths in (
        ("regnet_x200mf", [24, 56, 152, 368], [1, 1, 4, 7]), ("regnet_y4gf", [128, 192, 512, 1088], [2, 6, 12, 2]),
    ):  # fmt: skip
        with torch.device("meta"):
            network = jingdu.create(variant)
        assert network.channels == widths and [len(stage) for stage in network.stages] == depths
    for bad in ((24, -1, 2.5, 5), (25, 3, 2.5, 5), (24, 3, 1, 5), (24, 3, 2.5, 0)):
        with pytest.raises(UsageError, match="multiple of 8"):
            block_widths(*bad)


def test_stages_and_groups() -> None:
    assert linear_stages([8, 8, 16, 16, 16, 8]) == ([8, 16, 8], [2, 3, 1])
    assert fit_groups([24, 100, 130], [1, 1, 1], [40, 40, 40]) == ([24, 80, 120], [24, 40, 40])
    # 96 is the nearest multiple of 48 to 100, and is not a tenth too few; 24 is to 33.
    assert fit_groups([100, 33], [1, 1], [48, 24], "ninety") == ([96, 48], [48, 24])
    assert fit_groups([100, 33], [1, 1], [48, 24]) == ([96, 24], [48, 24])
    assert fit_groups([60], [4], [8]) == ([64], [8])  # 15 in between become 16
    for ratio in (0.25, 0.5, 1, 2, 4):
        for width, group in ((40, 6), (88, 16), (152, 24)):
            (fitted,), (clipped,) = fit_groups([width], [ratio], [group])
            assert round(fitted / ratio) % clipped == 0 and clipped <= group
    with pytest.raises(UsageError, match="rounding"):
        fit_groups([8], [1], [8], "up")


def test_blocks() -> None:
    x = torch.randn(2, 6, 9, 11)
    for kind, count in ((Vanilla, 2), (Basic, 3), (Bottleneck, 4)):
        block = kind(6, 12, 2, 2, 3, 0.0)
        assert block(x).shape == (2, 12, 5, 6) and not (block(x) < 0).any()
        assert sum(isinstance(m, nn.Conv2d) for m in block.modules()) == count
    block = Bottleneck(6, 12, 2, 2, 3, 0.5)
    assert (block.conv2.conv.in_channels, block.conv2.conv.groups, block.conv2.conv.stride) == (6, 2, (2, 2))
    assert block.squeeze.reduce.out_features == 3 and isinstance(block.squeeze.activation, nn.ReLU)
    same = Bottleneck(6, 6, 1, 1, 6, 0.0).eval()
    nn.init.zeros_(same.conv3.bn.weight)
    assert torch.equal(same(x), x.relu())


def test_anynet_says_what_does_not_fit() -> None:
    network = AnyNet((8, 12), (1, 2), (1, 2), (4, 3), block="basic", stem=4, num_classes=5)
    assert network(torch.randn(2, 3, 33, 17)).shape == (2, 5)
    with pytest.raises(UsageError, match="3 widths, 2 depths"):
        AnyNet((8, 8, 8), (1, 2), (1, 1), (4, 4))
    with pytest.raises(UsageError, match="groups of 5"):
        AnyNet((8,), (1,), (1,), (5,))
    with pytest.raises(UsageError, match="block"):
        AnyNet((8,), (1,), (1,), (8,), block="bottle")
    with pytest.raises(UsageError, match="channels"):
        network(torch.rand(2, 4, 32, 32))


def test_features_are_the_stages_outputs() -> None:
    model = jingdu.create("regnet_x200mf").eval()
    seen: list[torch.Tensor] = []
    for stage in model.stages:
        stage.register_forward_hook(lambda m, i, o: seen.append(o))
    taps = model.features(torch.randn(2, 3, 64, 96))
    assert all(torch.equal(a, b) for a, b in zip(taps, seen, strict=True))
    assert [tap.shape[1] for tap in taps] == model.channels
    assert [tuple(tap.shape[2:]) for tap in taps] == [(64 >> i, 96 >> i) for i in range(2, 6)]


def test_complexity_without_a_network_is_that_of_the_network() -> None:
    sizes = ((16, 24), (2, 1), (2, 1), (4, 8))
    network = AnyNet(*sizes, squeeze=0.25, stem=12, num_classes=7, in_channels=1).eval()
    found = complexity(*sizes, size=37, squeeze=0.25, stem=12, num_classes=7, in_channels=1)
    counted = count_cost(network, (1, 37, 37))
    assert (found.flops, found.parameters) == (counted.flops, counted.parameters)
    given: list[int] = []
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda m, i, o: given.append(o.numel()))
    network(torch.zeros(1, 1, 37, 37))
    assert found.activations == sum(given)
    x200 = complexity([24, 56, 152, 368], [1, 1, 4, 7], [1] * 4, [8] * 4)
    # Figure 16: 200 million FLOPs, 2.7 million parameters, 2.2 million activations
    assert (x200.flops / 1e8, x200.parameters, x200.activations / 1e6) == pytest.approx((2, 2684792, 2.2), rel=0.02)


@pytest.mark.parametrize(
    "step, shared", [("a", ()), ("b", ("ratio",)), ("c", ("ratio", "group")), ("d", ()), ("e", ())]
)
def test_each_space_is_a_constraint_more(step: str, shared: tuple[str, ...]) -> None:
    space = design_space(f"anynetx_{step}", **TINY)
    names = {choice.name for choice in space.choices}
    assert set(shared) <= names
    generator = torch.Generator().manual_seed(3)
    for _ in range(20):
        values = space.decode(space.sample(generator))
        widths, depths = ([values[f"{kind}{i}"] for i in (1, 2, 3)] for kind in ("width", "depth"))
        assert step < "d" or widths == sorted(widths)
        assert step < "e" or depths[:2] == sorted(depths[:2])


def test_a_sample_lies_in_its_band() -> None:
    options = {"size": 24, "stem": 8, "num_classes": 5, "in_channels": 1}
    for name in ("anynetx_a", "regnetx"):
        space = design_space(name, **TINY, **{key: value for key, value in options.items() if key != "size"})
        codes = sample_networks(space, 3, (1e5, 4e5), torch.Generator().manual_seed(5), **options)
        assert len(set(codes)) == 3
        for code in codes[:2]:
            network = space.build(code)
            cost = count_cost(network, (1, 24, 24))
            assert 1e5 <= cost.flops <= 4e5
            assert cost.flops == complexity(*sizes_of(space.decode(code)), **options).flops
        assert codes == sample_networks(space, 3, (1e5, 4e5), torch.Generator().manual_seed(5), **options)
    with pytest.raises(UsageError, match="of 1 networks"):
        sample_networks(design_space("anynetx_a", **TINY), 1, (1, 2), torch.Generator().manual_seed(5), **options)
    with pytest.raises(UsageError, match="design space"):
        design_space("anynetx_f")


def test_edf_and_bootstrap() -> None:
    assert edf([0.3, 0.1, 0.2, 0.2]) == ([0.1, 0.2, 0.2, 0.3], [0.25, 0.5, 0.75, 1.0])
    values = [i / 50 for i in range(50)]
    errors = [0.1 + (value - 0.6) ** 2 for value in values]
    low, middle, high = best_range(values, errors, torch.Generator().manual_seed(7), draws=2000)
    assert low < 0.6 < high and middle == pytest.approx(0.6, abs=0.05) and high - low < 0.4
    flat = best_range(
        values, [0.1 + math.sin(1000 * value) for value in values], torch.Generator().manual_seed(7), draws=2000
    )
    assert flat[2] - flat[0] > 0.4


def test_every_parameter_gets_a_gradient() -> None:
    torch.manual_seed(0)  # of few units behind a ReLU, all may be dead
    network = AnyNet((8, 16), (1, 2), (1, 2), (4, 4), squeeze=0.25, stem=8, num_classes=5)
    network(torch.randn(5, 3, 37, 41)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_the_recipe_trains(tmp_path: Path) -> None:
    run = jingdu.train(
        "regnet",
        tmp_path / "run",
        quiet=True,
        epochs=None,
        steps=2,
        batch_size=7,
        data="scenes(count=14, test_count=7)",
    )
    assert run.metrics["error"] <= 1 and jingdu.load(run.folder).fc.out_features == 8


def test_predict(tmp_path: Path) -> None:
    Image.new("RGB", (90, 70), "red").save(tmp_path / "red.png")
    (result,) = predict(jingdu.create("regnet_y200mf"), [str(tmp_path / "red.png")], top=3)
    assert len(result.data["top"]) == 3
