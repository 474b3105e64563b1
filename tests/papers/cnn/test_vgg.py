"""VGG's own parts."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

import jingdu
from jingdu.data.draws import Draws
from jingdu.data.preprocess import Preprocess
from jingdu.errors import UsageError
from jingdu.papers.cnn.alexnet import local_response_norm
from jingdu.papers.cnn.vgg import (
    VGG,
    Grown,
    grid_crops,
    grow,
    mirrored_predict,
    multi_crop_predict,
    multi_scale_predict,
    predict,
    scale_jitter,
    three_scales,
)  # fmt: skip
from jingdu.prediction import Origin

NARROW = {"widths": (3, 4, 5, 6, 7, 11, 13), "num_classes": 17}


def narrow(variant: str = "vgg16", **changes: object) -> VGG:
    torch.manual_seed(0)
    return jingdu.create(variant, **{**NARROW, **changes}).eval()


def images(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


# Architecture -----------------------------------------------------------------------------------------


def convolutions(model: nn.Module) -> list[tuple[str, int]]:
    return [(name, m.kernel_size[0]) for name, m in model.named_modules() if isinstance(m, nn.Conv2d)]


@pytest.mark.parametrize(
    "variant, kernels",
    [
        ("vgg11", [1, 1, 2, 2, 2]), ("vgg11_lrn", [1, 1, 2, 2, 2]), ("vgg13", [2, 2, 2, 2, 2]),
        ("vgg16", [2, 2, 3, 3, 3]), ("vgg19_bn", [2, 2, 4, 4, 4]),
    ],
)  # fmt: skip
def test_columns_of_table_1(variant: str, kernels: list[int]) -> None:
    names = [f"conv{b}_{n}" for b, depth in enumerate(kernels, start=1) for n in range(1, depth + 1)]
    assert convolutions(narrow(variant)) == [(name, 3) for name in names]


def test_column_c_has_a_1x1_convolution_at_the_end_of_three_blocks() -> None:
    ones = [name for name, kernel in convolutions(narrow("vgg16_c")) if kernel == 1]
    assert ones == ["conv3_3", "conv4_3", "conv5_3"]
    assert [name for name, _ in convolutions(narrow("vgg16_c"))] == [name for name, _ in convolutions(narrow("vgg16"))]


def seen(model: nn.Module, kind: type) -> tuple[int, int]:
    """Height and width of what one place of the last convolution's map of a block depends on."""
    stack = nn.Sequential(*(m for m in model.modules() if isinstance(m, kind))).double()
    for parameter in stack.parameters():
        nn.init.ones_(parameter)
    x = torch.zeros(1, stack[0].in_channels, 19, 23, dtype=torch.float64, requires_grad=True)
    stack(x)[0, :, 9, 11].sum().backward()
    found = x.grad[0].abs().sum(0)
    return int((found.sum(1) > 0).sum()), int((found.sum(0) > 0).sum())


def test_a_stack_sees_as_far_as_one_large_kernel_with_fewer_weights() -> None:
    """Section 2.3: 9nC^2 weights in place of (2n+1)^2 C^2."""
    channels = 5
    for n in (1, 2, 3):
        side = 2 * n + 1
        stack = VGG(((3,) * n,), (channels, 7, 7), in_channels=channels, num_classes=2)
        large = VGG(((side,),), (channels, 7, 7), in_channels=channels, num_classes=2)
        assert seen(stack, nn.Conv2d) == seen(large, nn.Conv2d) == (side, side)
        weights = [
            sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Conv2d)) for model in (stack, large)
        ]
        assert weights == [9 * n * channels**2, side**2 * channels**2]


def test_convolutions_keep_the_size_and_blocks_halve_it() -> None:
    model = narrow("vgg16_c")
    x = images(2, 3, 67, 101)
    shapes = [tuple(output.shape[1:]) for _, output in model.rectified(x)]
    sides = [(67, 101), (33, 50), (16, 25), (8, 12), (4, 6)]
    depths, widths = (2, 2, 3, 3, 3), NARROW["widths"]
    assert shapes == [(w, *side) for d, w, side in zip(depths, widths, sides, strict=False) for _ in range(d)]
    assert model.pooled(x).shape == (2, 7, 2, 3)
    assert narrow("vgg8_5x5").pooled(x).shape == (2, 7, 2, 3)


def test_a_lrn_normalises_what_follows_the_first_convolution() -> None:
    plain, normalised = (
        narrow("vgg11", widths=(9, 4, 5, 6, 7, 11, 13)),
        narrow("vgg11_lrn", widths=(9, 4, 5, 6, 7, 11, 13)),
    )
    normalised.load_state_dict(plain.state_dict())
    x = 60 * images(2, 3, 37, 41)  # at small activations it would be a factor that is the same everywhere
    with torch.no_grad():
        expected = F.max_pool2d(local_response_norm(F.relu(plain.conv1_1(x))), 2)
        for block in (("2_1",), ("3_1", "3_2"), ("4_1", "4_2"), ("5_1", "5_2")):
            for name in block:
                expected = F.relu(getattr(plain, f"conv{name}")(expected))
            expected = F.max_pool2d(expected, 2)
        assert torch.equal(plain.taps(x, ["relu1_1"])["relu1_1"], normalised.taps(x, ["relu1_1"])["relu1_1"])
        torch.testing.assert_close(normalised.pooled(x), expected)
        assert not torch.allclose(plain.pooled(x), expected, rtol=0.01)


def test_dropout_follows_the_relus_of_the_two_first_dense_layers() -> None:
    model = narrow(dropout=0.4, widths=(3, 4, 5, 6, 7, 2000, 3001))
    for layer in (model.fc6, model.fc7):
        nn.init.zeros_(layer.weight)
        nn.init.ones_(layer.bias)  # so that no zero is the ReLU's
    dropped: list[float] = []
    model.dropout.register_forward_hook(lambda m, i, o: dropped.append(float((o == 0).float().mean())))
    model.train()
    torch.manual_seed(1)
    model(images(3, 3, 32, 32))
    assert len(dropped) == 2 and all(abs(share - 0.4) < 0.05 for share in dropped)
    assert VGG(((3,),), (3, 5, 7)).dropout.p == 0.5


def test_initialisation() -> None:
    he, gaussian, xavier = (
        VGG(((3, 3),), (64, 96, 128), grid=2, init=init, num_classes=50) for init in ("he", 0.03, "xavier")
    )
    conv, dense = he.conv1_2.weight, he.fc7.weight
    assert conv.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.03)
    assert dense.std().item() == pytest.approx((2 / 96) ** 0.5, rel=0.03)
    assert gaussian.conv1_2.weight.std().item() == pytest.approx(0.03, rel=0.03)
    assert gaussian.fc7.weight.std().item() == pytest.approx(0.03, rel=0.03)
    bound = (6 / (96 + 128)) ** 0.5
    assert xavier.fc7.weight.abs().max().item() == pytest.approx(bound, rel=0.01)
    assert xavier.fc7.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.03)
    for model in (he, gaussian, xavier):
        assert all(not parameter.any() for name, parameter in model.named_parameters() if name.endswith("bias"))


def test_taps_are_rectified_outputs_by_name() -> None:
    model = narrow("vgg16_bn")
    x = images(2, 3, 37, 41)
    taps = model.taps(x, ["relu4_3", "relu1_2"])
    with torch.no_grad():
        expected = F.relu(model.bn1_2(model.conv1_2(F.relu(model.bn1_1(model.conv1_1(x))))))
    assert sorted(taps) == ["relu1_2", "relu4_3"] and taps["relu4_3"].shape == (2, 6, 4, 5)
    torch.testing.assert_close(taps["relu1_2"], expected)
    assert [tuple(f.shape[1:]) for f in model.features(x)] == [
        (3, 37, 41),
        (4, 18, 20),
        (5, 9, 10),
        (6, 4, 5),
        (7, 2, 2),
    ]
    assert torch.equal(model.features(x)[3], taps["relu4_3"])
    assert model.taps(x, []) == {}


def test_taps_compute_no_further_layer_and_know_their_names() -> None:
    model = narrow()
    called: list[str] = []
    for name, module in model.named_modules():
        module.register_forward_hook(lambda m, i, o, name=name: called.append(name))
    model.taps(images(1, 3, 37, 41), ["relu2_1"])
    assert [name for name in called if name.startswith("conv")] == ["conv1_1", "conv1_2", "conv2_1"]
    with pytest.raises(UsageError, match=r"no layer 'relu2_3'.*relu5_3"):
        model.taps(images(1, 3, 37, 41), ["relu2_3"])


def test_every_parameter_gets_a_gradient() -> None:
    for variant in ("vgg11_lrn", "vgg16_c", "vgg8_5x5", "vgg13_bn"):
        model = jingdu.create(variant, widths=(12, 14, 16, 18, 20, 22, 24), num_classes=10)
        model(images(5, 3, 64, 64)).square().sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters()), variant


# Dense evaluation -------------------------------------------------------------------------------------


def as_convolutions(model: VGG) -> nn.Sequential:
    """Section 3.2, to the letter: a 7x7 convolution and two of 1x1."""
    first = nn.Conv2d(model.fc6.in_features // model.grid**2, model.fc6.out_features, model.grid)
    second, third = (nn.Conv2d(layer.in_features, layer.out_features, 1) for layer in (model.fc7, model.fc8))
    with torch.no_grad():
        for convolution, layer in ((first, model.fc6), (second, model.fc7), (third, model.fc8)):
            convolution.weight.copy_(layer.weight.view_as(convolution.weight))
            convolution.bias.copy_(layer.bias)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third)


@torch.no_grad()
@pytest.mark.parametrize("grid, shape", [(7, (2, 3, 257, 321)), (2, (3, 3, 101, 67))])
def test_the_class_map_is_that_of_convolutions(grid: int, shape: tuple[int, ...]) -> None:
    model = narrow("vgg13", grid=grid)
    x = images(*shape)
    expected = as_convolutions(model)(model.pooled(x))
    assert expected.shape == (shape[0], 17, *((side // 32) - grid + 1 for side in shape[2:]))
    torch.testing.assert_close(model.class_map(x), expected)
    model.dense = True
    torch.testing.assert_close(model(x), expected.mean((2, 3)))


@torch.no_grad()
def test_dense_and_plain_networks_agree_on_images_of_their_size() -> None:
    plain, dense = narrow(), narrow(dense=True)
    dense.load_state_dict(plain.state_dict())
    x = images(2, 3, 224, 224)
    torch.testing.assert_close(dense(x), plain(x))
    assert not torch.allclose(dense(images(1, 3, 257, 321)), plain(images(1, 3, 257, 321)), rtol=0.01)


@torch.no_grad()
def test_each_place_of_a_class_map_scores_its_window() -> None:
    """Without padding at the borders of a window, its scores would be those of the window alone."""
    model = narrow("vgg8_5x5", grid=2)
    for name, _ in convolutions(model):
        getattr(model, name).weight[:] = 0
        getattr(model, name).weight[:, 0, 2, 2] = 1  # what a place holds, without its neighbours
    x = images(1, 3, 128, 160).abs()
    scores = model.class_map(x)
    assert scores.shape == (1, 17, 3, 4)
    for top, left in ((0, 0), (2, 1), (1, 3)):
        window = x[:, :, 32 * top : 32 * top + 64, 32 * left : 32 * left + 64]
        torch.testing.assert_close(model(window), scores[:, :, top, left])


@torch.no_grad()
def test_maps_smaller_than_the_grid_are_stretched() -> None:
    model = narrow("vgg11", grid=3)
    x = images(2, 3, 67, 133)
    stretched = F.adaptive_avg_pool2d(model.pooled(x), (3, 4))
    torch.testing.assert_close(model.class_map(x), as_convolutions(model)(stretched))


# Testing ----------------------------------------------------------------------------------------------


def mean_colours(x: torch.Tensor) -> torch.Tensor:
    """A network of three classes, whose logits depend on what lies left and right."""
    return torch.cat((x.mean((2, 3))[:, :2], x[:, :1, :, 0].mean(2)), 1)


def test_mirrored_predict_does_not_tell_an_image_from_its_mirror_image() -> None:
    x = images(3, 3, 11, 13)
    assert not torch.allclose(mean_colours(x), mean_colours(x.flip(3)))
    torch.testing.assert_close(mirrored_predict(mean_colours, x), mirrored_predict(mean_colours, x.flip(3)))
    assert mirrored_predict(mean_colours, x).sum(1).tolist() == pytest.approx([1, 1, 1])


def test_three_scales() -> None:
    assert three_scales(256, 512) == (256, 384, 512)
    assert three_scales(384, 384) == (352, 384, 416)


def test_grid_crops_are_50_at_the_places_of_a_regular_grid() -> None:
    x = torch.arange(2 * 3 * 31 * 41, dtype=torch.float32).view(2, 3, 31, 41)
    crops = grid_crops(x, 11)
    assert crops.shape == (50, 2, 3, 11, 11)
    corners = [divmod(int(crop[0, 0, 0, 0]), 41) for crop in crops[:25]]
    assert corners == [(top, left) for top in (0, 5, 10, 15, 20) for left in (0, 8, 15, 22, 30)]
    assert torch.equal(crops[25:], torch.stack(list(grid_crops(x.flip(3), 11)[:25])))
    assert torch.equal(crops[0], x[:, :, :11, :11]) and torch.equal(crops[24], x[:, :, -11:, -11:])
    assert torch.equal(grid_crops(x[:, :, :11, :11], 11)[7], x[:, :, :11, :11])
    with pytest.raises(UsageError, match="31 x 41 pixels have no crops of 32"):
        grid_crops(x, 32)


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_multi_scale_and_multi_crop_average_probabilities() -> None:
    pictures = [picture(61, 43), picture(37, 53, seed=1)]
    preprocess = Preprocess(size=29, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    whole = multi_scale_predict(mean_colours, pictures, (31, 47), preprocess)
    single = [multi_scale_predict(mean_colours, [p], (s,), preprocess) for p in pictures for s in (31, 47)]
    assert whole.shape == (2, 3)
    torch.testing.assert_close(whole[1:], (single[2] + single[3]) / 2)
    sizes: list[tuple[int, ...]] = []

    def network(x: torch.Tensor) -> torch.Tensor:
        sizes.append(tuple(x.shape))
        return mean_colours(x)

    crops = multi_crop_predict(network, pictures, (31, 47), preprocess)
    assert crops.shape == (2, 3) and sizes == [(50, 3, 29, 29)] * 4
    single = [multi_crop_predict(mean_colours, pictures[:1], (s,), preprocess) for s in (31, 47)]
    torch.testing.assert_close(crops[:1], (single[0] + single[1]) / 2)
    assert not torch.allclose(crops, whole, rtol=1e-4)
    with pytest.raises(UsageError, match=r"set preprocess\.size"):
        multi_crop_predict(mean_colours, pictures, (31,), Preprocess())


# Training ---------------------------------------------------------------------------------------------


def test_scale_jitter_cuts_windows_of_pictures_of_all_scales() -> None:
    gradient = Image.fromarray(np.tile(np.linspace(0, 255, 600).round().astype(np.uint8), (300, 1))).convert("RGB")
    preprocess = Preprocess(size=23)
    slopes, starts = [], []
    for i in range(80):
        x = scale_jitter(gradient, Draws(0, 0, [i]), preprocess, low=30, high=60)
        assert x.shape == (3, 23, 23) and float(x.min()) >= 0 and float(x.max()) <= 1
        slopes.append(float(x[0, 11, -2] - x[0, 11, 1]) / 20)
        starts.append(float(x[0, 11, 0]) / slopes[-1])
    # A picture of S pixels is 2S wide: a pixel is 1 / 2S of the gradient.
    shorter = [1 / (2 * slope) for slope in slopes]
    assert 28 < min(shorter) < 34 and 56 < max(shorter) < 63
    assert 41 < sum(shorter) / 80 < 50
    assert min(starts) < 5 and max(starts) > 60
    assert torch.equal(
        scale_jitter(gradient, Draws(3, 1, [5]), preprocess, low=30, high=60),
        scale_jitter(gradient, Draws(3, 1, [5]), preprocess, low=30, high=60),
    )
    for low, high in ((22, 40), (40, 39)):
        with pytest.raises(UsageError, match="must be ordered"):
            scale_jitter(gradient, Draws(0, 0, [0]), preprocess, low=low, high=high)


def test_column_a_starts_a_deeper_network() -> None:
    shallow, deep = narrow("vgg11"), jingdu.create("vgg19", **NARROW)
    before = {name: value.clone() for name, value in deep.state_dict().items()}
    names = grow(deep, shallow)
    assert names == ["conv1_1", "conv2_1", "conv3_1", "conv3_2", "fc6", "fc7", "fc8"]
    for name, value in deep.state_dict().items():
        copied = name.partition(".")[0] in names
        assert torch.equal(value, shallow.state_dict()[name] if copied else before[name]), name
    deep.fc8.weight.data.zero_()
    assert shallow.fc8.weight.any(), "the two share no memory"


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"num_classes": 3}, r"fc8 is \(17, 13\) in the shallower network, \(3, 13\)"),
        ({"blocks": ((3,),) * 5}, "not there"),
    ],
)
def test_a_network_of_other_sizes_cannot_be_grown(changes: dict[str, object], says: str) -> None:
    deep = narrow("vgg16", **changes)
    before = {name: value.clone() for name, value in deep.state_dict().items()}
    with pytest.raises(UsageError, match=says):
        grow(deep, narrow("vgg11"))
    assert all(torch.equal(value, before[name]) for name, value in deep.state_dict().items())


def test_the_recipe_trains_a_and_goes_on_with_a_deeper_network(tmp_path: Path) -> None:
    run = jingdu.train(
        "vgg", tmp_path / "run", quiet=True, steps=2, batch_size=7, lr=0.0, data="scenes(count=14, test_count=7)"
    )
    assert set(run.metrics) >= {"error", "loss"}
    shallow, deep = jingdu.load(run.folder / "shallow"), jingdu.load(run.folder)
    assert (shallow.origin.variant, deep.origin.variant) == ("vgg11", "vgg16")
    assert deep.fc8.out_features == 8, "a classifier's outputs are the data's classes"
    assert torch.equal(deep.conv3_2.weight, shallow.conv3_2.weight)  # at a rate of zero
    assert not torch.equal(deep.conv4_1.weight, shallow.conv4_1.weight)
    again = jingdu.train(
        "vgg", run.folder, quiet=True, resume=True, steps=2, batch_size=7, lr=0.0, data="scenes(count=14, test_count=7)"
    )
    assert again.metrics == run.metrics
    assert jingdu.evaluate("vgg16", run.folder) == run.metrics


def test_without_an_earlier_stage_a_grown_network_is_as_it_was() -> None:
    model = narrow()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    system = Grown(model, {})
    assert all(torch.equal(value, before[name]) for name, value in system.network.state_dict().items())


# What a user does with it -----------------------------------------------------------------------------


@pytest.fixture
def tiny() -> VGG:
    model = narrow("vgg11", grid=1, num_classes=3)
    preprocess = Preprocess(size=32, resize=37, mean=(0.5,), std=(0.2,))
    model.origin = Origin("vgg11", classes=("ant", "bee", "cat"), preprocess=preprocess)
    return model


def test_predict_looks_at_pictures_in_six_ways(tiny: VGG, tmp_path: Path) -> None:
    picture(90, 70).save(tmp_path / "a.png")
    found = {}
    for crops in ("centre", "ten", "dense", "scales", "grid", "all"):
        (prediction,) = predict(tiny, [str(tmp_path / "a.png")], top=3, crops=crops)
        found[crops] = {entry["class"]: entry["probability"] for entry in prediction.data["top"]}
        assert set(found[crops]) == {"ant", "bee", "cat"} and sum(found[crops].values()) == pytest.approx(1, abs=1e-5)
    assert len({json.dumps(values) for values in found.values()}) == 6
    for name in ("ant", "bee", "cat"):
        assert found["all"][name] == pytest.approx((found["scales"][name] + found["grid"][name]) / 2, abs=1e-6)


def test_dense_prediction_is_of_the_whole_picture_and_its_mirror_image(tiny: VGG, tmp_path: Path) -> None:
    picture(74, 37).save(tmp_path / "a.png")
    picture(74, 37).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "b.png")
    one, other = predict(tiny, [str(tmp_path / name) for name in ("a.png", "b.png")], top=3, crops="dense")
    x = torch.from_numpy(np.array(picture(74, 37))).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        x = (x - 0.5) / 0.2
        expected = torch.stack([tiny.class_map(v).mean((2, 3)).softmax(1)[0] for v in (x, x.flip(3))]).mean(0)
    for prediction in (one, other):
        values = {entry["index"]: entry["probability"] for entry in prediction.data["top"]}
        assert [values[i] for i in range(3)] == pytest.approx(expected.tolist(), abs=1e-5)


def test_pictures_of_any_size_have_no_three_scales(tiny: VGG, tmp_path: Path) -> None:
    picture(41, 37).save(tmp_path / "a.png")
    tiny.origin = Origin("vgg11", preprocess=Preprocess())
    assert len(list(predict(tiny, [str(tmp_path / "a.png")], crops="dense"))) == 1
    for crops in ("scales", "grid"):
        with pytest.raises(UsageError, match=r"set preprocess\.size"):
            list(predict(tiny, [str(tmp_path / "a.png")], crops=crops))
