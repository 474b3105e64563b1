"""Deformable convolution's own parts."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

import jingdu
from jingdu.data.images import decode, to_tensor
from jingdu.engine import Stage
from jingdu.engine.contracts import Objective
from jingdu.engine.optimise import apply_schedule, make_optimizer, rates
from jingdu.errors import Refused, UsageError
from jingdu.papers.cnn.deformable_conv import (
    DeformConv2d,
    DeformPSRoIPool,
    DeformRoIPool,
    Labelling,
    bilinear_corners,
    deform,
    deform_conv2d,
    deform_roi_pool,
    deformable_layers,
    effective_dilation,
    mimicking_loss,
    region_crops,
    sampling_points,
)


def random(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def read(plane: Tensor, y: float, x: float, border: str) -> float:
    """One bilinear read of a map, by the definition of each operator."""
    height, width = plane.shape
    if border == "clamp":
        if not (0 <= y < height and 0 <= x < width):
            return 0.0
        y, x = min(y, height - 1), min(x, width - 1)
    total = 0.0
    for row in range(height):
        for column in range(width):
            total += float(plane[row, column]) * max(0.0, 1 - abs(y - row)) * max(0.0, 1 - abs(x - column))
    return total


@pytest.mark.parametrize("border", ["zero", "clamp"])
@pytest.mark.parametrize("stride, padding, dilation, groups", [(1, 1, 1, 1), (2, 2, 2, 3), (2, 0, 1, 1)])
def test_the_operator_is_equation_2(border: str, stride: int, padding: int, dilation: int, groups: int) -> None:
    x, weight = random(2, 3, 5, 7), random(2, 3, 3, 3, seed=1)
    size = F.conv2d(x, weight, None, stride, padding, dilation).shape[2:]
    # Large offsets: many taps leave the map, and some lie within a pixel of its edge.
    offset, mask = random(2, 18 * groups, *size, seed=2, scale=1.5), random(2, 9 * groups, *size, seed=3)
    bias = random(2, seed=4)
    options = {"stride": stride, "padding": padding, "dilation": dilation, "border": border}
    ours = deform_conv2d(x, offset, weight, bias, mask, **options)
    for n, o, i, j in [(0, 0, 0, 0), (1, 1, 0, size[1] - 1), (0, 1, size[0] - 1, 1), (1, 0, size[0] - 1, size[1] - 1)]:
        total = float(bias[o])
        for c in range(3):
            g = c * groups // 3
            for k in range(9):
                y = i * stride - padding + k // 3 * dilation + float(offset[n, 18 * g + 2 * k, i, j])
                z = j * stride - padding + k % 3 * dilation + float(offset[n, 18 * g + 2 * k + 1, i, j])
                value = read(x[n, c], y, z, border) * float(mask[n, 9 * g + k, i, j])
                total += float(weight[o, c, k // 3, k % 3]) * value
        assert float(ours[n, o, i, j]) == pytest.approx(total, abs=1e-12)


@pytest.mark.parametrize("border", ["zero", "clamp"])
def test_gradients_are_those_of_differences(border: str) -> None:
    x, weight, bias = random(1, 2, 3, 1), random(2, 2, 3, 3, seed=1), random(2, seed=2)
    offset, mask = random(1, 36, 2, 1, seed=3), random(1, 18, 2, 1, seed=4)
    given = [tensor.requires_grad_() for tensor in (x, offset, weight, bias, mask)]
    assert torch.autograd.gradcheck(lambda *a: deform_conv2d(*a, stride=2, padding=1, border=border), given)


def test_without_offsets_it_is_a_convolution() -> None:
    x = torch.randn(2, 6, 11, 13)
    layer = DeformConv2d(6, 5, 3, stride=2, padding=2, dilation=2, offset_groups=3)
    plain = F.conv2d(x, layer.weight, layer.bias, 2, 2, 2)
    assert torch.allclose(layer(x), plain, atol=1e-5)
    half = DeformConv2d(6, 5, 3, 2, 2, 2, mask_scale=1.0)
    half.load_state_dict({**half.state_dict(), "weight": layer.weight, "bias": layer.bias})
    assert torch.allclose(half(x), (plain + layer.bias[:, None, None]) / 2, atol=1e-5)
    whole = DeformConv2d(6, 5, 3, 2, 2, 2, mask_scale=2.0)
    whole.load_state_dict(half.state_dict())
    assert torch.allclose(whole(x), plain, atol=1e-5)


def test_an_offset_of_a_pixel_moves_a_tap() -> None:
    """Of the first tap, the row comes first."""
    x, weight = torch.randn(1, 1, 7, 9), torch.zeros(1, 1, 3, 3)
    weight[0, 0, 0, 0] = 1
    offset = torch.zeros(1, 18, 5, 7)
    offset[:, 0] = 2
    assert torch.equal(deform_conv2d(x, offset, weight), x[:, :, 2:, :7])


def test_half_precision_keeps_places() -> None:
    """A place on a map 1024 wide has no fraction in bfloat16."""
    x = torch.arange(1024, dtype=torch.float32).view(1, 1, 1, 1024) / 1024
    offset = torch.zeros(1, 2, 1, 1024)
    offset[:, 1] = 0.5
    y = deform_conv2d(x.bfloat16(), offset.bfloat16(), torch.ones(1, 1, 1, 1).bfloat16())
    assert y.dtype == torch.bfloat16
    assert (y.float() - x - 0.5 / 1024)[..., :-1].abs().max() < 1 / 256
    layer = DeformConv2d(1, 1, 3, padding=1)
    with torch.autocast("cpu", torch.bfloat16):
        offset, _ = layer.moves(x.expand(1, 1, 4, 1024))
    assert offset.dtype == torch.float32


def test_misfits_are_told() -> None:
    x, weight = torch.randn(2, 6, 5, 7), torch.randn(3, 6, 3, 3)
    with pytest.raises(UsageError, match="18 for each group"):
        deform_conv2d(x, torch.zeros(2, 17, 3, 5), weight)
    with pytest.raises(UsageError, match="divide into the groups"):
        deform_conv2d(x, torch.zeros(2, 72, 3, 5), weight)
    with pytest.raises(UsageError, match="the output is 3 x 5"):
        deform_conv2d(x, torch.zeros(2, 18, 5, 7), weight)
    with pytest.raises(UsageError, match="do not divide"):
        DeformConv2d(6, 3, offset_groups=4)


def test_corners_count_one_inside_and_fade_outside() -> None:
    y, x = torch.tensor([1.25, -0.5, -1.0, 4.5]), torch.tensor([2.5, 3.0, 0.0, 5.0])
    pixels, weights = bilinear_corners(y, x, 5, 7)
    assert weights.sum(1).tolist() == [1.0, 0.5, 0.0, 0.5]
    assert pixels[0].tolist() == [9, 10, 16, 17] and weights[0].tolist() == [0.375, 0.375, 0.125, 0.125]
    _, clamped = bilinear_corners(y, x, 5, 7, "clamp")
    assert clamped.sum(1).tolist() == [1.0, 0.0, 0.0, 1.0]


# Pooling -------------------------------------------------------------------------------------------------


def pooled(features: Tensor, roi: Tensor, offset: Tensor | None, c: int, i: int, j: int, *, size: int, groups: int, scale: float,
           gamma: float, samples: int, classes: int) -> float:  # fmt: skip
    """One bin, by the authors' loop."""
    outputs = features.shape[1] // groups**2
    left, top, right, bottom = (round(float(v)) for v in roi[1:])
    start = (top * scale - 0.5, left * scale - 0.5)
    extent = ((bottom + 1) * scale - 0.5 - start[0], (right + 1) * scale - 0.5 - start[1])
    extent = tuple(max(v, 0.1) for v in extent)
    kind = c * classes // outputs
    shift = (0.0, 0.0)
    if offset is not None:
        shift = tuple(gamma * float(offset[2 * kind + axis, i, j]) for axis in (1, 0))
    values = []
    for down in range(samples):
        for across in range(samples):
            y = start[0] + extent[0] * (shift[0] + i / size + down / size / samples)
            x = start[1] + extent[1] * (shift[1] + j / size + across / size / samples)
            height, width = features.shape[2:]
            if -0.5 <= y <= height - 0.5 and -0.5 <= x <= width - 0.5:
                plane = features[int(roi[0]), (c * groups + i * groups // size) * groups + j * groups // size]
                values.append(read(plane, min(max(y, 0), height - 1), min(max(x, 0), width - 1), "zero"))
    return sum(values) / len(values) if values else 0.0


@pytest.mark.parametrize("groups, classes", [(1, None), (1, 1), (3, 2)])
def test_pooling_is_the_mean_of_moved_bins(groups: int, classes: int | None) -> None:
    features = random(2, 4 * groups**2, 7, 11)
    rois = torch.tensor(
        [[1, 3.2, 4.9, 17.0, 11.4], [0, -6.0, 2.0, 8.0, 13.0], [1, 9.0, 9.0, 9.0, 9.0]], dtype=torch.float64
    )
    options = {"size": 3, "groups": groups, "scale": 0.5, "gamma": 0.3, "samples": 2}
    offset = None if classes is None else random(3, 2 * classes, 3, 3, seed=1)
    ours = deform_roi_pool(features, rois, offset, **options)
    assert ours.shape == (3, 4, 3, 3)
    for r in range(3):
        for c, i, j in [(0, 0, 0), (1, 2, 1), (2, 1, 2), (3, 2, 2)]:
            wanted = pooled(
                features, rois[r], None if offset is None else offset[r], c, i, j, classes=classes or 1, **options
            )
            assert float(ours[r, c, i, j]) == pytest.approx(wanted, abs=1e-12)
    mask = torch.rand(3, 1, 3, 3, dtype=torch.float64)
    assert torch.allclose(deform_roi_pool(features, rois, offset, mask, **options), ours * mask)


def test_pooling_gradients() -> None:
    features, rois = random(1, 8, 2, 3), torch.tensor([[0, 0.0, 1.0, 5.0, 4.0]])
    offset, mask = random(1, 4, 2, 2, seed=1, scale=0.3), random(1, 1, 2, 2, seed=2)
    given = [tensor.requires_grad_() for tensor in (features, offset, mask)]
    check = lambda f, o, m: deform_roi_pool(f, rois.double(), o, m, size=2, groups=2, scale=0.5, samples=2)  # noqa: E731
    assert torch.autograd.gradcheck(check, given)


def test_pooling_modules_start_with_bins_in_place() -> None:
    features, rois = torch.randn(2, 6, 9, 13), torch.tensor([[1, 8.0, 16.0, 90.0, 70.0], [0, 0.0, 0.0, 60.0, 100.0]])
    plain = deform_roi_pool(features, rois, size=3, scale=1 / 8)
    assert torch.allclose(DeformRoIPool(6, 3, hidden=5, scale=1 / 8)(features, rois), plain)
    assert torch.allclose(DeformRoIPool(6, 3, hidden=5, modulated=True, scale=1 / 8)(features, rois), plain / 2)
    layer = DeformPSRoIPool(6, 4, size=3, scale=1 / 8)
    wanted = deform_roi_pool(layer.score(features), rois, size=3, groups=3, scale=1 / 8)
    assert torch.allclose(layer(features, rois), wanted) and wanted.shape == (2, 4, 3, 3)
    layer(features, rois).square().sum().backward()
    assert layer.offset.weight.grad.abs().sum() > 0
    with pytest.raises(UsageError, match="3 x 3 maps"):
        deform_roi_pool(features, rois, size=3, groups=3)
    with pytest.raises(UsageError, match="two for each class"):
        deform_roi_pool(features, rois, torch.zeros(2, 3, 3, 3), size=3)


def test_mimicking() -> None:
    a = torch.tensor([[3.0, 4.0], [1.0, 0.0]])
    b = torch.tensor([[6.0, 8.0], [0.0, 2.0]])
    assert float(mimicking_loss(a, b)) == pytest.approx(1.0)
    images = torch.rand(2, 3, 11, 17)
    crops = region_crops(images, torch.tensor([[1, 2.0, 3.0, 8.0, 9.0]]), size=7)
    assert torch.allclose(crops[0], images[1, :, 3:10, 2:9], atol=1e-5)


# Networks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"mask_scale": 2.0, "offset_groups": 2}])
def test_surgery_keeps_a_trained_networks_outputs(options: dict) -> None:
    plain = jingdu.create("resnet50", width=4, num_classes=7, depths=(1, 2, 1, 2)).eval()
    x = torch.randn(2, 3, 45, 67)
    before = plain(x)
    changed = deform(plain, ("conv3_x", "conv5_x"), **options).eval()
    assert changed is plain and len(deformable_layers(changed)) == 4
    assert torch.allclose(changed(x), before, atol=1e-4)
    with pytest.raises(UsageError, match="no stage of bottlenecks"):
        deform(jingdu.create("resnet18", width=4))
    with pytest.raises(UsageError, match="conv9_x"):
        deform(plain, ("conv9_x",))


def test_the_last_stage_is_dilated_throughout() -> None:
    model = jingdu.create("deformable_conv_resnet101_dcn_c5_4groups", width=8, depths=(1, 1, 1, 3), num_classes=5)
    layers = deformable_layers(model)
    assert [(layer.dilation, layer.padding, layer.stride, layer.offset.out_channels) for layer in layers] == [
        (2, 2, 1, 72)
    ] * 3
    taps = model.features(torch.randn(1, 3, 64, 96))
    assert [tuple(t.shape[2:]) for t in taps] == [(16, 24), (8, 12), (4, 6), (4, 6)]


def test_features_and_gradients() -> None:
    model = jingdu.create("deformable_conv_digits", mask_scale=1.0)
    seen: list[Tensor] = []
    for number in (1, 2, 3):
        getattr(model, f"bn{number}").register_forward_hook(lambda m, i, o: seen.append(o.relu()))
    taps = model.features(torch.randn(3, 1, 20, 23))
    assert all(torch.equal(a, b) for a, b in zip(taps, seen, strict=True))
    assert [t.shape[1:] for t in taps] == [(16, 20, 23), (32, 10, 12), (32, 5, 6)]
    model(torch.randn(5, 1, 20, 23)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters() if p is not model.conv1.bias)


def test_the_rate_of_the_offsets_reaches_the_optimiser() -> None:
    model = jingdu.create("deformable_conv_resnet50_mdcn_c3_c5", width=4, depths=(1, 1, 1, 1), num_classes=3)
    system = nn.ModuleDict({"network": model})
    slow = {name for name, rate in rates(system).items() if rate == 0.1}
    assert len(slow) == 6 and all(".conv2.offset." in name for name in slow)
    optimizer = make_optimizer(Stage(lr=0.5, weight_decay=1e-4, steps=1), system, Objective("loss"))
    assert apply_schedule(optimizer, {"lr": 0.5}, 0.5) == 0.25
    by_parameter = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in system.named_parameters():
        assert by_parameter[id(parameter)] == pytest.approx(0.025 if name in slow else 0.25), name
    even = make_optimizer(
        Stage(lr=0.5, steps=1), nn.ModuleDict({"network": jingdu.create("resnet20_cifar")}), Objective("loss")
    )
    assert all("rate" not in group for group in even.param_groups)


def test_labelling_gives_every_pixel_a_class() -> None:
    masks = torch.zeros(2, 4, 6, dtype=torch.bool)
    masks[0, :2, :3], masks[1, 2:, 3:] = True, True
    batch = {"image": torch.randn(1, 1, 4, 6), "masks": [masks], "labels": [torch.tensor([1, 0])]}
    targets = Labelling.targets(batch)
    assert (
        targets[0].unique(return_counts=True)[1].tolist() == [12, 6, 6]
        and targets[0, 0, 0] == 2
        and targets[0, 3, 5] == 1
    )

    class Perfect(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            found = F.one_hot(targets, 3).permute(0, 3, 1, 2).float()
            found[0, :, 0, 0] = torch.tensor([9.0, 0.0, 0.0])  # one pixel of class 2 as 0
            return 9 * found

    system = Labelling(Perfect())
    loss, values = system(batch, "loss")
    assert values["pixel_error"] == pytest.approx(1 / 24) and float(loss) == pytest.approx(9 * 9 / 24, rel=0.02)
    system.update(batch)
    assert system.compute() == pytest.approx({"iou": (12 / 13 + 1 + 5 / 6) / 3, "pixel_error": 1 / 24})
    with pytest.raises(Refused, match="nothing to evaluate"):
        system.compute()


# Points --------------------------------------------------------------------------------------------------


def test_effective_dilation_of_taps_that_spread() -> None:
    offset = torch.zeros(2, 36, 3, 5)
    assert torch.allclose(effective_dilation(offset), torch.ones(2, 2, 3, 5))
    assert torch.allclose(effective_dilation(offset, dilation=2), torch.full((2, 2, 3, 5), 2.0))
    grid = torch.stack(torch.meshgrid(torch.arange(3.0), torch.arange(3.0), indexing="ij"), -1).flatten()
    assert torch.allclose(effective_dilation(offset + grid.repeat(2)[:, None, None])[0], torch.full((2, 3, 5), 2.0))


def test_points_of_two_layers() -> None:
    model = jingdu.create("deformable_conv_digits", strides=(1, 1, 1)).eval()
    image = torch.randn(1, 20, 24)
    still = sampling_points(model, image, (0.5, 0.5))
    assert still.shape == (81, 2) and still.mean(0).tolist() == pytest.approx([10.0, 12.0], abs=0.51)
    assert {tuple(p) for p in (still - still.mean(0)).tolist()} == {
        (float(a), float(b)) for a in range(-2, 3) for b in range(-2, 3)
    }
    with torch.no_grad():
        model.conv3.offset.bias[1::2] = 3.0
    moved = sampling_points(model, image, (0.5, 0.5))
    assert torch.allclose(moved - still, torch.tensor([0.0, 3.0]).expand(81, 2))
    assert sampling_points(model, image, (0.0, 1.0), levels=1).shape == (9, 2)
    with pytest.raises(UsageError, match="no deformable layers"):
        sampling_points(jingdu.create("resnet20_cifar"), torch.randn(3, 32, 32), (0.5, 0.5))


def test_trains_and_predicts(tmp_path: Path) -> None:
    run = tmp_path / "run"
    jingdu.train("deformable_conv", out=run, steps=2, batch_size=8, quiet=True)
    Image.new("L", (31, 27), 90).save(tmp_path / "a.png")
    found = list(jingdu.predict("deformable_conv_digits", [str(tmp_path / "a.png")], run, top=3, points=tmp_path / "p"))
    assert len(found[0].data["top"]) == 3 and math.isclose(
        sum(e["probability"] for e in found[0].data["top"]), 1, abs_tol=0.8
    )
    assert found[1].files == (tmp_path / "p" / "a-points.png",)
    assert to_tensor(decode(found[1].files[0])).shape == (3, 440, 440)
