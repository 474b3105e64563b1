"""AlexNet's own parts."""

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

import jingdu
from jingdu.cli import main
from jingdu.data.draws import Draws
from jingdu.data.images import normalise, to_tensor
from jingdu.data.preprocess import Preprocess
from jingdu.errors import UsageError
from jingdu.papers.cnn import alexnet
from jingdu.papers.cnn.alexnet import (
    COLOUR_EIGENVALUES,
    COLOUR_EIGENVECTORS,
    AlexNet,
    central_square,
    classify,
    filter_picture,
    local_response_norm,
    pca_colour_shift,
    random_patch,
    random_window,
    ten_crop,
    ten_crop_predict,
)

SMALL = (6, 10, 14, 18, 22, 13, 17)
"""Widths, for tests of what does not depend on them."""


def small(**options: object) -> AlexNet:
    torch.manual_seed(1)
    return AlexNet(SMALL, **{"init": None, "num_classes": 5, **options}).eval()


def picture(width: int, height: int, channels: int = 3) -> Image.Image:
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.fromarray(pixels if channels == 3 else pixels[..., 0])


# Architecture -------------------------------------------------------------------------------------


@pytest.mark.parametrize("k, n, alpha, beta", [(2.0, 5, 1e-4, 0.75), (1.0, 3, 0.02, 0.5)])
def test_response_normalisation_is_the_papers_sum(k: float, n: int, alpha: float, beta: float) -> None:
    a = 40 * torch.randn(2, 7, 3, 4, dtype=torch.float64)
    b = torch.empty_like(a)
    for i in range(7):
        neighbours = range(max(0, i - n // 2), min(6, i + n // 2) + 1)
        b[:, i] = a[:, i] / (k + alpha * sum(a[:, j] ** 2 for j in neighbours)) ** beta
    torch.testing.assert_close(local_response_norm(a, k, n, alpha, beta), b, rtol=1e-12, atol=0)


def test_the_papers_layers_on_227_pixels() -> None:
    with torch.device("meta"):
        model = jingdu.create("alexnet")
        taps = model.features(torch.empty(2, 3, 227, 227))
        last = model.pool(taps[-1])
    shapes = [(96, 55, 55), (256, 27, 27), (384, 13, 13), (384, 13, 13), (256, 13, 13)]
    assert [tuple(t.shape[1:]) for t in taps] == shapes
    assert tuple(last.shape[1:]) == (256, 6, 6)  # what fc6 sees: the adaptive pool changes nothing
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert [m.groups for m in convolutions] == [1, 2, 1, 2, 2]
    assert [m.kernel_size[0] for m in convolutions] == [11, 5, 3, 3, 3]
    assert [m.out_features for m in (model.fc6, model.fc7, model.fc8)] == [4096, 4096, 1000]


def test_the_dense_layers_see_the_pooled_maps_as_they_are() -> None:
    model, seen = small(), []
    model.fc6.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    x = torch.randn(2, 3, 227, 227)
    model(x)
    assert torch.equal(seen[0], F.max_pool2d(model.features(x)[-1], 3, 2).flatten(1))


def test_normalisation_stands_between_relu_and_pooling_of_two_layers() -> None:
    model = small()
    x = 60 * torch.randn(2, 3, 103, 131)
    y = F.max_pool2d(local_response_norm(model.conv1(x).relu()), 3, 2)
    y = F.max_pool2d(local_response_norm(model.conv2(y).relu()), 3, 2)
    y = model.conv5(model.conv4(model.conv3(y).relu()).relu()).relu()
    torch.testing.assert_close(model.features(x)[-1], y)
    without = small(lrn=False)
    without.load_state_dict(model.state_dict())
    assert not torch.allclose(without.features(x)[-1], y, rtol=0.01)


@pytest.mark.parametrize("layer, reach", [(1, False), (2, True), (3, False), (4, False)])
def test_each_gpu_sees_its_own_maps_and_conv3_all(layer: int, reach: bool) -> None:
    convolution = (model := small()).get_submodule(f"conv{layer + 1}")
    x = torch.randn(1, convolution.in_channels, 7, 9, requires_grad=True)
    half = convolution.out_channels // 2
    convolution(x)[:, :half].square().sum().backward()
    other = x.grad[:, convolution.in_channels // 2 :]
    assert bool(other.abs().sum() > 0) == reach
    assert model.conv1.groups == 1


def test_initial_weights_and_biases() -> None:
    model = jingdu.create("alexnet", widths=(96, 256, 384, 384, 256, 512, 512))
    for name in ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8"):
        layer = model.get_submodule(name)
        assert layer.weight.std().item() == pytest.approx(0.01, rel=0.02)
        bias = 1.0 if name in ("conv2", "conv4", "conv5", "fc6", "fc7") else 0.0
        assert torch.equal(layer.bias, torch.full_like(layer.bias, bias)), name


def test_dropout_halves_the_inputs_of_fc6_and_fc7_alone() -> None:
    model, seen = small().train(), {}
    for name in ("fc6", "fc7", "fc8"):
        model.get_submodule(name).register_forward_pre_hook(
            lambda module, inputs, name=name: seen.__setitem__(name, inputs[0])
        )
        model.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: seen.__setitem__(f"after {name}", output)
        )
    x = torch.randn(3, 3, 227, 227)
    model(x)
    whole = {"fc6": model.pool(model.features(x)[-1]).flatten(1), "fc7": seen["after fc6"].relu()}
    for name, inputs in whole.items():
        kept = seen[name] != 0
        torch.testing.assert_close(seen[name][kept], 2 * inputs[kept])
        assert 0.3 < kept[inputs != 0].float().mean() < 0.7, name
    assert torch.equal(seen["fc8"], seen["after fc7"].relu())
    assert torch.equal(model.eval()(x), model(x))


def test_descriptors_are_what_the_last_layer_reads() -> None:
    model = small()
    x = torch.randn(2, 3, 71, 83)
    descriptor = model.descriptor(x)
    assert descriptor.shape == (2, 17) and (descriptor >= 0).all()
    assert torch.equal(model.fc8(descriptor), model(x))


def test_every_parameter_gets_a_gradient() -> None:
    model = small(dropout=0.0).train()
    model(torch.randn(7, 3, 67, 75)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize("variant, least", [("alexnet", 67), ("alexnet_one_weird_trick", 63), ("alexnet_scenes", 35)])
def test_images_that_do_not_fit_are_named(variant: str, least: int) -> None:
    model = jingdu.create(variant, widths=SMALL).eval()
    assert model.smallest == least
    assert model(torch.randn(2, 3, least, least + 2)).isfinite().all()
    for shape, message in [
        ((2, 3, least - 1, 99), rf"height \(axis 2\) is {least - 1}, wanted {least} or more"),
        ((2, 3, 99, least - 1), rf"width \(axis 3\) is {least - 1}, wanted {least} or more"),
        ((2, 1, 99, 101), r"channels \(axis 1\) is 1, wanted 3"),
        ((2, 4, 99, 101), r"channels \(axis 1\) is 4, wanted 3"),
        ((0, 3, 99, 101), r"batch \(axis 0\) is 0, wanted 1 or more"),
    ]:
        with pytest.raises(UsageError, match=message):
            model(torch.empty(shape))
    with pytest.raises(UsageError, match="float64"):
        model(torch.zeros(1, 3, 99, 101, dtype=torch.float64))


# Reducing overfitting -----------------------------------------------------------------------------


def test_random_windows_are_of_the_picture_and_reach_its_borders() -> None:
    image = picture(13, 11)
    whole = to_tensor(image)
    places = set()
    for seed in range(60):
        window = to_tensor(random_window(image, 7, Draws(seed, 0, [5])))
        found = [
            (x, y) for y in range(5) for x in range(7) if torch.equal(whole[:, y : y + 7, x : x + 7], window)
        ]  # fmt: skip
        assert len(found) == 1
        places |= set(found)
    assert {x for x, _ in places} == set(range(7)) and {y for _, y in places} == set(range(5))
    with pytest.raises(UsageError, match="13 x 11 pixels has no window of 12"):
        random_window(image, 12, Draws(0, 0, [5]))


def test_patches_are_cut_from_the_central_square() -> None:
    preprocess = Preprocess(size=17, resize=23)
    image = picture(61, 46)
    square = central_square(image, preprocess)
    assert square.size == (23, 23)
    assert central_square(picture(46, 61), preprocess).size == (23, 23)
    left = (int(23 * 61 / 46) - 23) // 2
    expected = image.resize((int(23 * 61 / 46), 23), Image.Resampling.BILINEAR).crop((left, 0, left + 23, 23))
    assert np.array_equal(np.asarray(square), np.asarray(expected))
    patch = random_patch(image, Draws(3, 1, [2]), preprocess)
    windows = to_tensor(square).unfold(1, 17, 1).unfold(2, 17, 1)  # [channel, y, x, 17, 17]
    assert (windows == patch[:, None, None]).all(dim=(0, 3, 4)).sum() == 1
    with pytest.raises(UsageError, match=r"preprocess\.size"):
        central_square(image, Preprocess())


def test_colours_shift_along_imagenets_principal_directions() -> None:
    vectors, values = torch.tensor(COLOUR_EIGENVECTORS), torch.tensor(COLOUR_EIGENVALUES)
    torch.testing.assert_close(vectors.T @ vectors, torch.eye(3), atol=1e-3, rtol=0)
    deviations = (vectors @ values.diag() @ vectors.T).diag().sqrt()
    torch.testing.assert_close(deviations, torch.tensor([0.2837, 0.2763, 0.2898]), rtol=0, atol=1e-4)
    images = torch.rand(4000, 3, 2, 3)
    shift = pca_colour_shift(images, Draws(2, 1, range(4000)), std=0.3) - images
    assert (shift - shift[:, :, :1, :1]).abs().max() < 1e-6  # the same for every pixel of an image
    alphas = shift[:, :, 0, 0] @ vectors / values
    torch.testing.assert_close(alphas.T @ alphas / 4000, 0.09 * torch.eye(3), atol=0.01, rtol=0)
    torch.testing.assert_close(alphas.mean(0), torch.zeros(3), atol=0.02, rtol=0)
    again = pca_colour_shift(images[7:9], Draws(2, 1, [7, 8]), std=0.3)
    torch.testing.assert_close(again, (images + shift)[7:9])


def test_the_paper_recipe_feeds_raw_values_without_their_mean() -> None:
    preprocess = alexnet.recipes["paper"].stages[0].preprocess
    black, white = (normalise(torch.full((3, 1, 1), level), preprocess).flatten() for level in (0.0, 1.0))
    torch.testing.assert_close(white - black, torch.full((3,), 255.0))
    torch.testing.assert_close(black, -255 * torch.tensor([0.485, 0.456, 0.406]))
    assert preprocess.size == 227 and preprocess.shorter_side == 256


# Testing ------------------------------------------------------------------------------------------


def test_ten_crops_are_four_corners_the_centre_and_their_mirror_images() -> None:
    images = torch.rand(2, 3, 8, 11)
    crops = ten_crop(images, 5)
    assert crops.shape == (10, 2, 3, 5, 5)
    for number, (top, left) in enumerate([(0, 0), (0, 6), (3, 0), (3, 6), (2, 3)]):
        assert torch.equal(crops[number], images[:, :, top : top + 5, left : left + 5])
        assert torch.equal(crops[5 + number], images.flip(3)[:, :, top : top + 5, left : left + 5])
    assert torch.equal(ten_crop(images[..., :8], 8)[0], images[..., :8])
    with pytest.raises(UsageError, match="8 x 11 pixels have no crops of 9"):
        ten_crop(images, 9)


def test_ten_crop_prediction_averages_probabilities() -> None:
    images = torch.rand(2, 3, 8, 11)

    def network(x: Tensor) -> Tensor:
        return 9 * x.mean((2, 3))

    expected = sum(network(crop).softmax(1) for crop in ten_crop(images, 5)) / 10
    torch.testing.assert_close(ten_crop_predict(network, images, 5), expected)


@pytest.fixture
def model() -> AlexNet:
    torch.manual_seed(2)
    model = jingdu.create("alexnet_scenes")
    preprocess = Preprocess(size=37, resize=43, mean=(0.4,), std=(0.2,))
    model.origin = dataclasses.replace(model.origin, preprocess=preprocess, classes=tuple("abcdefgh"))
    return model


def test_classify_gives_the_most_probable_classes(model: AlexNet, tmp_path: Path) -> None:
    for name, size in {"b.png": (61, 46), "a.jpg": (45, 70)}.items():
        picture(*size).save(tmp_path / name)
    first, second = classify(model, [str(tmp_path)], top=3)
    assert first.data["file"].endswith("a.jpg") and second.data["file"].endswith("b.png")
    assert not model.training and first.data["top"][0]["class"] in "abcdefgh"
    (alone,) = classify(model, [str(tmp_path / "b.png")], top=20, batch_size=1)
    probabilities = [entry["probability"] for entry in alone.data["top"]]
    assert len(probabilities) == 8 and sum(probabilities) == pytest.approx(1)
    assert probabilities == sorted(probabilities, reverse=True)
    assert probabilities[:3] == pytest.approx([entry["probability"] for entry in second.data["top"]], rel=1e-4)
    (ten,) = classify(model, [str(tmp_path / "b.png")], top=8, crops="ten")
    square = to_tensor(central_square(picture(61, 46), model.origin.preprocess))[None]
    expected = ten_crop_predict(model, (square - 0.4) / 0.2, 37)[0]
    by_class = {entry["index"]: entry["probability"] for entry in ten.data["top"]}
    assert [by_class[i] for i in range(8)] == pytest.approx(expected.tolist(), rel=1e-4)
    assert "a.jpg" in first.text and "0." in first.text
    with pytest.raises(UsageError, match="no inputs"):
        list(classify(model, []))


def test_classes_have_names(model: AlexNet, tmp_path: Path) -> None:
    picture(45, 45).save(tmp_path / "x.png")
    model.origin = dataclasses.replace(model.origin, classes=None)
    (found,) = classify(model, [str(tmp_path / "x.png")], top=1)
    assert found.data["top"][0]["class"] == f"class {found.data['top'][0]['index']}"
    model.fc8 = nn.Linear(512, 1000)
    nn.init.zeros_(model.fc8.weight)
    with torch.no_grad():
        model.fc8.bias.copy_(torch.arange(1000) == 207)
    (found,) = classify(model, [str(tmp_path / "x.png")], top=1)
    assert found.data["top"][0]["class"] == "golden retriever"


def test_a_picture_below_the_smallest_is_refused(model: AlexNet, tmp_path: Path) -> None:
    picture(45, 31).save(tmp_path / "x.png")
    model.origin = dataclasses.replace(model.origin, preprocess=Preprocess())  # as data at their own size leave it
    with pytest.raises(UsageError, match=r"height \(axis 2\) is 31, wanted 35 or more"):
        list(classify(model, [str(tmp_path / "x.png")]))
    with pytest.raises(UsageError, match=r"preprocess\.size"):
        list(classify(model, [str(tmp_path / "x.png")], crops="ten"))


def test_filters_are_stretched_and_set_side_by_side() -> None:
    weight = torch.randn(5, 3, 4, 6)
    shown = filter_picture(weight, columns=3)
    assert shown.shape == (3, 1 + 2 * 5, 1 + 3 * 7)
    for number in range(5):
        row, column = divmod(number, 3)
        tile = shown[:, 1 + 5 * row : 5 + 5 * row, 1 + 7 * column : 7 + 7 * column]
        w = weight[number]
        torch.testing.assert_close(tile, (w - w.min()) / (w.max() - w.min()))
    assert (shown[:, 0] == 1).all() and (shown[:, :, 7] == 1).all() and (shown[:, 6:, 15:] == 1).all()
    grey = filter_picture(weight[:, :1])
    assert torch.equal(grey[0], grey[2])
    with pytest.raises(UsageError, match="2 channels"):
        filter_picture(weight[:, :2])


# As a user has it ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "R"
    jingdu.train(
        "alexnet", folder, quiet=True, steps=2, batch_size=11,
        data="scenes(fields=('image', 'label'), count=40, test_count=9)",
    )  # fmt: skip
    return folder


def test_predict_from_a_run(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image, features, filters = (str(tmp_path / name) for name in ("a.png", "deep/f.safetensors", "deep/w.png"))
    picture(91, 77).save(image)
    words = ["predict", "alexnet", image, "--weights", str(run), "--json"]
    assert main([*words, "--crops", "ten", "--features", features, "--filters", filters, "--top", "2"]) == 0
    drawn, classes, written = json.loads(capsys.readouterr().out)
    kernels = jingdu.load(run).conv1.weight.shape[0]
    with Image.open(filters) as drawn_filters:
        assert drawn_filters.size == (6 * (1 + 8 * 16), 6 * (1 + 8 * -(-kernels // 16)))
    assert (drawn["filters"], drawn["files"]) == (kernels, [filters])
    assert {entry["class"] for entry in classes["top"]} <= {"circle", "square", "triangle", "star", "ring", "cross",
                                                            "heart", "crescent"}  # fmt: skip
    assert written == {"images": 1, "length": 512, "files": [features]}
    (descriptor,) = load_file(features).values()
    network = jingdu.load(run)
    view = normalise(to_tensor(picture(91, 77).resize((75, 64), Image.Resampling.BILINEAR)), alexnet.SCENES)
    with torch.no_grad():
        assert torch.equal(descriptor, network.descriptor(view[None, :, :, 6:70])[0])
    assert main(["predict", "alexnet", "--weights", str(run), "--filters", filters]) == 0
    assert f"wrote {filters}" in capsys.readouterr().out
    for nothing in ([], ["--features", features]):
        assert main(["predict", "alexnet", "--weights", str(run), *nothing]) == 2
        assert "no inputs" in capsys.readouterr().err


def test_training_on_images_that_are_too_small_is_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "alexnet", "--data", "digits(channels=3)", "--preprocess.size", "32", "--steps", "1", "--quiet"]
    assert main([*words, "--out", str(tmp_path / "R")]) == 2
    assert "height (axis 2) is 32, wanted 35 or more" in capsys.readouterr().err


def test_evaluation_on_other_classes_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "alexnet", "--weights", str(run), "--json"]) == 0
    assert 0 <= json.loads(capsys.readouterr().out)["error"] <= 1
    assert main(["eval", "alexnet", "--weights", str(run), "--data", "digits(channels=3)"]) == 4
    assert "classes ['0', '1'" in capsys.readouterr().err


class _Gadget:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch executed",)


@pytest.mark.parametrize("name", ["alexnet", "torchvision/alexnet"])
def test_a_malicious_pickle_runs_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    picture(45, 45).save("x.jpg")
    torch.save({"features.0.weight": torch.zeros(64, 3, 11, 11), "features.0.bias": _Gadget()}, "evil.pth")
    assert main(["predict", name, "x.jpg", "--weights", "evil.pth"]) == 4
    message = capsys.readouterr().err
    assert "evil.pth" in message and "Traceback" not in message
    assert not Path("executed").exists()
