"""MobileNet's own parts."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

import jingdu
from jingdu.engine.contracts import Objective, Stage
from jingdu.engine.optimise import make_optimizer
from jingdu.errors import UsageError
from jingdu.papers.cnn.mobilenet import (
    ConvNorm,
    DepthwiseSeparable,
    InvertedResidual,
    MobileNetV1,
    SqueezeExcite,
    Style,
    cost,
    drop_background,
    hold_resolution,
    predict,
    thin,
    thinner,
)
from jingdu.papers.cnn.nas import count_cost

SMALL = {"rows": ((12, 1, 1), (20, 2, 2), (28, 1, 2)), "num_classes": 5}


def test_depthwise_then_pointwise_is_the_products_convolution() -> None:
    """Without what stands between them, they are one convolution whose kernel is w_nm d_m."""
    block = DepthwiseSeparable(5, 7, style=Style("relu"))
    x = torch.rand(2, 5, 9, 11)
    depthwise, pointwise = block.depthwise.conv.weight, block.pointwise.conv.weight
    whole = pointwise * depthwise[:, 0]  # [7, 5, 1, 1] * [5, 3, 3]
    assert torch.allclose(block.pointwise.conv(block.depthwise.conv(x)), F.conv2d(x, whole, padding=1), atol=1e-5)
    names = [type(m).__name__ for m in block.modules() if not list(m.children())]
    assert names == ["Conv2d", "BatchNorm2d", "ReLU"] * 2


def test_paddings_differ_where_they_should() -> None:
    convs = {rule: ConvNorm(3, 5, 3, 2, style=Style(padding=rule)).eval() for rule in ("symmetric", "same", "keras")}
    for conv in convs.values():
        conv.load_state_dict(convs["same"].state_dict())
    even, odd = torch.randn(2, 3, 8, 14), torch.randn(2, 3, 9, 13)
    assert torch.equal(convs["same"](even), convs["keras"](even))
    assert not torch.allclose(convs["same"](even), convs["symmetric"](even))
    assert torch.allclose(convs["same"](odd), convs["symmetric"](odd), atol=1e-6)
    assert convs["keras"](odd).shape[2:] == (4, 6) and convs["same"](odd).shape[2:] == (5, 7)
    for name, value in (("padding", "valid"), ("activation", "gelu")):
        with pytest.raises(UsageError, match=value):
            Style(**{name: value})


def test_squeeze_excite_weighs_channels_by_their_means() -> None:
    part = SqueezeExcite(7, 3, "silu")
    x = torch.randn(2, 7, 5, 11)
    means = x.sum((2, 3)) / 55
    hidden = F.silu(means @ part.reduce.weight.T + part.reduce.bias)
    gate = 1 / (1 + torch.exp(-(hidden @ part.expand.weight.T + part.expand.bias)))
    assert torch.allclose(part(x), x * gate[:, :, None, None], atol=1e-6)


def test_inverted_residual_is_linear_at_its_ends() -> None:
    block = InvertedResidual(6, 6).eval()
    nn.init.zeros_(block.project.bn.weight)
    x = torch.randn(2, 6, 5, 7)  # below zero too: nothing rectifies the sum
    assert torch.equal(block(x), x)
    assert isinstance(block.project.activation, nn.Identity) and block.depthwise.conv.groups == 36
    for changed in (InvertedResidual(6, 8), InvertedResidual(6, 6, stride=2)):
        nn.init.zeros_(changed.project.bn.weight)
        assert not changed.eval()(x).any()
    assert isinstance(InvertedResidual(6, 8, expansion=1).expand, nn.Identity)


def test_a_block_is_skipped_by_whole_images_in_training_alone() -> None:
    block = InvertedResidual(3, 3, drop=0.25)
    x = torch.randn(101, 3, 2, 5)
    torch.manual_seed(5)
    skipped = (block(x) == x).flatten(1).all(1)
    assert 0.1 < skipped.float().mean() < 0.4
    assert not (block.eval()(x) == x).flatten(1).all(1).any()


def test_widths() -> None:
    assert [thin(32, alpha) for alpha in (1.0, 0.75, 0.25, 0.1)] == [32, 24, 8, 8]
    assert [thinner(24, alpha) for alpha in (1.4, 0.35)] == [32, 8]
    assert thinner(32, 0.35) == 16  # 8 were 28 % less than 11.2
    assert all(
        thinner(channels, 0.7) >= 0.9 * 0.7 * channels and thinner(channels, 0.7) % 8 == 0
        for channels in range(16, 400, 7)
    )


def flops(network: nn.Module, size: int, channels: int = 3) -> int:
    return count_cost(network, (channels, size, size)).flops


def test_cost_of_the_paper() -> None:
    """Table 4: 569 and 4866 million; 291 for pictures of 160x160 (research/slim/nets/mobilenet_v1.md); Eq. 5, 7."""
    with torch.device("meta"):
        network, full = jingdu.create("mobilenet_v1_100"), jingdu.create("mobilenet_v1_full")
        second = jingdu.create("mobilenet_v2_100")
    millions = [flops(network, size) / 1e6 for size in (224, 160)]
    assert millions == pytest.approx([569, 291], abs=0.6)
    assert flops(full, 224) / 1e6 == pytest.approx(4866, abs=2)
    assert flops(second, 224) / 1e6 == pytest.approx(300, abs=1)
    block, half = DepthwiseSeparable(48, 96), DepthwiseSeparable(24, 48)
    assert flops(block, 14, 48) == cost(3, 48, 96, 14)
    assert flops(half, 7, 24) == cost(3, 48, 96, 14, alpha=0.5, rho=0.5)
    assert cost(3, 48, 96, 14) / (9 * 48 * 96 * 14**2) == pytest.approx(1 / 96 + 1 / 9)


def test_features_are_the_last_maps_of_each_resolution() -> None:
    for name, channels in (("mobilenet_v1_025", [16, 32, 64, 128, 256]), ("mobilenet_v2_035", [8, 8, 16, 32, 112])):
        model = jingdu.create(name).eval()
        seen: dict[int, torch.Tensor] = {}
        for number, stage in enumerate(model.stages):
            stage.register_forward_hook(lambda m, i, o, n=number, seen=seen: seen.update({n: o}))
        taps = model.features(torch.randn(2, 3, 64, 96))
        assert all(torch.equal(a, seen[number]) for a, number in zip(taps, model.taps, strict=True))
        assert [tap.shape[1] for tap in taps] == model.channels == channels
        assert [tuple(tap.shape[2:]) for tap in taps] == [(64 >> i, 96 >> i) for i in range(1, 6)]


def test_output_stride() -> None:
    assert hold_resolution((1, 2, 2, 2, 2), 8) == [(1, (1, 1)), (2, (1, 1)), (2, (1, 1)), (1, (1, 2)), (1, (2, 4))]
    network = jingdu.create("mobilenet_v2_035", output_stride=8)
    assert network.features(torch.randn(1, 3, 64, 64))[-1].shape[-1] == 8
    network.load_state_dict(jingdu.create("mobilenet_v2_035").state_dict())
    with pytest.raises(UsageError, match="output_stride 7"):
        jingdu.create("mobilenet_v1_025", output_stride=7)


def test_wrong_images_are_named() -> None:
    model = MobileNetV1(**SMALL)
    with pytest.raises(UsageError, match="channels"):
        model(torch.rand(2, 4, 32, 32))
    with pytest.raises(UsageError, match="background"):
        drop_background(jingdu.create("mobilenet_v1_025", num_classes=2))


def test_depthwise_kernels_do_not_decay() -> None:
    network = MobileNetV1(**SMALL)
    decayed, free = make_optimizer(
        Stage(decay="dense", weight_decay=0.1, optimizer="rmsprop"), network, Objective("loss")
    ).param_groups
    kernels = {id(m.conv.weight) for m in network.modules() if isinstance(m, ConvNorm) and m.conv.groups > 1}
    assert len(kernels) == 4 and kernels < {id(p) for p in free["params"]}
    assert all(p.ndim > 1 and id(p) not in kernels for p in decayed["params"]) and len(decayed["params"]) == 6


def test_rmsprop_is_its_formula() -> None:
    """Tieleman and Hinton's decay, then momentum on the scaled gradient; eps is added to the root."""
    weight = nn.Parameter(torch.tensor([[0.5, -1.5]]))
    holder = nn.Module()
    holder.weight = weight
    stage = Stage(optimizer="rmsprop", lr=0.1, betas=(0.0, 0.7), momentum=0.6, eps=0.03)
    optimizer = make_optimizer(stage, holder, Objective("loss"))
    w, square, speed = weight.detach().clone(), torch.zeros(1, 2), torch.zeros(1, 2)
    for _ in range(5):
        optimizer.zero_grad()
        (weight**3).sum().backward()
        optimizer.step()
        gradient = 3 * w**2
        square = 0.7 * square + 0.3 * gradient**2
        speed = 0.6 * speed + gradient / (square.sqrt() + 0.03)
        w = w - 0.1 * speed
    assert torch.allclose(weight, w, atol=1e-6)


def test_every_parameter_gets_a_gradient() -> None:
    for network in (MobileNetV1(**SMALL), MobileNetV1(**SMALL, separable=False), jingdu.create("mobilenet_v2_035")):
        network(torch.randn(5, 3, 37, 41)).square().sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_depthwise_kernels_start_with_their_own_fan_out() -> None:
    conv = jingdu.create("mobilenet_v1_100").stages[3][2].depthwise.conv
    assert conv.weight.std().item() == pytest.approx((2 / 9) ** 0.5, rel=0.05)


def test_the_recipe_trains(tmp_path: Path) -> None:
    run = jingdu.train(
        "mobilenet", tmp_path / "run", quiet=True, steps=2, batch_size=7, data="scenes(count=14, test_count=7)"
    )
    assert run.metrics["error"] <= 1 and jingdu.load(run.folder).fc.out_features == 8


def test_predict(tmp_path: Path) -> None:
    Image.new("RGB", (90, 70), "red").save(tmp_path / "red.png")
    model = jingdu.create("mobilenet_v1_025")
    for crops in ("centre", "ten"):
        (result,) = predict(model, [str(tmp_path / "red.png")], top=3, crops=crops)
        assert len(result.data["top"]) == 3
