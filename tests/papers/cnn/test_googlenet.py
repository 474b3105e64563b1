"""GoogLeNet's own parts."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import jingdu
from jingdu.cli import main
from jingdu.data.draws import Draws
from jingdu.data.preprocess import Preprocess
from jingdu.errors import UsageError
from jingdu.papers.cnn import googlenet
from jingdu.papers.cnn.googlenet import (
    TABLE_1,
    Auxiliary,
    AuxiliaryHead,
    GoogLeNet,
    Inception,
    Unit,
    crops_144,
    photometric,
    scale_and_aspect,
)
from tests.parity.references import assert_close, randomise_

NARROW = {"width": 0.06, "num_classes": 7}


def random(model: nn.Module) -> nn.Module:
    return randomise_(model, torch.Generator().manual_seed(1)).eval()


def test_an_inception_block_is_four_branches() -> None:
    block = random(Inception(5, (2, 3, 7, 4, 11, 13))).double()
    x = torch.randn(2, 5, 6, 9, dtype=torch.float64)

    def unit(layer: Unit, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, layer.conv.weight, layer.conv.bias, padding=layer.conv.weight.shape[-1] // 2).clamp(min=0)

    pooled = F.pad(x, (1, 1, 1, 1), value=-torch.inf).unfold(2, 3, 1).unfold(3, 3, 1).amax((4, 5))
    expected = torch.cat([
        unit(block.one, x), unit(block.three, unit(block.reduce3, x)), unit(block.five, unit(block.reduce5, x)),
        unit(block.project, pooled),
    ], 1)  # fmt: skip
    assert block.five.conv.kernel_size == (5, 5) and block.outputs == 33
    assert_close(block(x), expected, relative=1e-12)


def test_a_block_inflated_to_three_dimensions() -> None:
    """A film that stands still gives in its middle what a picture gives (Carreira and Zisserman 2017, Sec. 2.4.1)."""
    flat = random(Inception(5, (2, 3, 7, 4, 6, 3), unit=partial(Unit, norm="batch"))).double()
    deep = Inception(
        5, (2, 3, 7, 4, 6, 3), unit=partial(Unit, norm="batch", dims=3), pool=nn.MaxPool3d(3, 1, 1)
    ).double().eval()  # fmt: skip
    for (name, target), source in zip(deep.state_dict().items(), flat.state_dict().values(), strict=True):
        if name.endswith("conv.weight"):
            depth = target.shape[2]
            target.copy_(source[:, :, None].expand_as(target) / depth)
        else:
            target.copy_(source)
    x = torch.randn(2, 5, 6, 9, dtype=torch.float64)
    film = deep(x[:, :, None].expand(-1, -1, 11, -1, -1))
    assert film.shape == (2, 18, 11, 6, 9)
    assert_close(film[:, :, 5], flat(x), relative=1e-12)
    line = Unit(3, 5, 3, dims=1)
    assert line(torch.randn(2, 3, 7)).shape == (2, 5, 7)


def test_table_1() -> None:
    """Output sizes of each block at 224 pixels, weights of the first two, and multiplications of all."""
    with torch.device("meta"):
        model = GoogLeNet()
        sizes = {name: tuple(x.shape[1:]) for name, x in model.blocks(torch.zeros(1, 3, 224, 224))}
    assert sizes["2"] == (192, 56, 56)
    assert [sizes[f"3{b}"] for b in "ab"] == [(256, 28, 28), (480, 28, 28)]
    assert [sizes[f"4{b}"] for b in "abcde"] == [(c, 14, 14) for c in (512, 512, 512, 528, 832)]
    assert [sizes[f"5{b}"] for b in "ab"] == [(832, 7, 7), (1024, 7, 7)]
    for name, thousands in {"3a": 159, "3b": 380}.items():  # the table's column of parameters, in 1024s
        weights = sum(p.numel() for p in getattr(model, f"inception{name}").parameters())
        assert weights / 1024 == pytest.approx(thousands, rel=0.01), name
    # Its column of operations, in millions of multiplications. It gives 5a 54; the widths in its row make 51.
    stated = {"3a": 128, "3b": 304, "4a": 73, "4b": 88, "4c": 100, "4d": 119, "4e": 170, "5a": 51, "5b": 71}
    for name, millions in stated.items():
        units = [m for m in getattr(model, f"inception{name}").modules() if isinstance(m, nn.Conv2d)]
        products = sum(unit.weight.numel() for unit in units) * sizes[name][1] * sizes[name][2]
        assert products / 1e6 == pytest.approx(millions, rel=0.01), name


def test_auxiliary_heads_answer_in_training_alone() -> None:
    model = GoogLeNet(aux=True, **NARROW)
    x = torch.randn(3, 3, 64, 96)
    logits, first, second = model.train()(x)
    assert logits.shape == first.shape == second.shape == (3, 7)
    assert model.eval()(x).shape == (3, 7)
    head = random(AuxiliaryHead(5, 7, channels=3, units=11))
    y = torch.randn(2, 5, 14, 14)
    pooled = y.unfold(2, 5, 3).unfold(3, 5, 3).mean((4, 5))
    assert pooled.shape == (2, 5, 4, 4)
    h = F.relu(F.conv2d(pooled, head.conv.conv.weight, head.conv.conv.bias)).flatten(1)
    expected = head.fc2(F.relu(head.fc1(h)))
    assert_close(head(y), expected, relative=1e-5)
    assert head(torch.randn(2, 5, 3, 19)).shape == (2, 7)


def test_loss_adds_the_heads_with_their_weight() -> None:
    class Fixed(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return (x, 2 * x, 3 * x) if self.training else x

    x, labels = torch.randn(5, 7), torch.tensor([0, 3, 6, 1, 2])
    system = Auxiliary(Fixed())
    loss, values = system({"image": x, "label": labels}, "loss")
    parts = [F.cross_entropy(scale * x, labels) for scale in (1, 2, 3)]
    assert loss.item() == pytest.approx((parts[0] + 0.3 * (parts[1] + parts[2])).item(), rel=1e-6)
    assert values["aux2_loss"].item() == pytest.approx(parts[2].item(), rel=1e-6)
    system.eval()
    system.update({"image": x, "label": labels})
    assert set(system.compute()) == {"error", "loss"}


def test_features_are_the_blocks_outputs() -> None:
    model = GoogLeNet(norm="batch", **NARROW).eval()
    seen: list[torch.Tensor] = []
    for layer in (model.conv2, model.inception3b, model.inception4e, model.inception5b):
        layer.register_forward_hook(lambda m, i, o: seen.append(o))
    x = torch.randn(4, 3, 97, 65)
    taps = model.features(x)
    assert all(torch.equal(a, b) for a, b in zip(taps, seen, strict=True))
    assert [tap.shape[1] for tap in taps] == model.channels
    assert [tuple(tap.shape[2:]) for tap in taps] == [(24, 16), (12, 8), (6, 4), (3, 2)]
    with pytest.raises(UsageError, match=r"channels .* is 1, wanted 3"):
        model.features(torch.randn(1, 1, 64, 64))


def test_he_initialisation_and_gradients() -> None:
    torch.manual_seed(0)
    model = GoogLeNet(num_classes=7, width=0.5)
    block = model.inception4e
    assert block.three.conv.weight.std().item() == pytest.approx((2 / (80 * 9)) ** 0.5, rel=0.03)
    assert not block.three.conv.bias.any() and model.fc.weight.std().item() == pytest.approx(0.01, rel=0.05)
    small = GoogLeNet(aux=True, norm="batch", **NARROW)
    loss = sum(part.square().sum() for part in small(torch.randn(4, 3, 64, 64)))
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in small.parameters())


def test_the_single_branch_costs_about_the_same() -> None:
    costs = []
    for single in (False, True):
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            GoogLeNet(single=single).eval()(torch.zeros(1, 3, 224, 224))
        costs.append(counter.get_total_flops())
    assert costs[1] == pytest.approx(costs[0], rel=0.1)
    model = GoogLeNet(single=True, aux=True, **NARROW)
    assert all(isinstance(getattr(model, f"inception{name}"), Unit) for name in TABLE_1)
    assert len(model(torch.randn(2, 3, 64, 64))) == 3


# Pictures -----------------------------------------------------------------------------------------


def gradient(width: int, height: int) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x * 255 // width, y * 255 // height, 0 * x], -1).astype(np.uint8))


def test_scale_and_aspect_cuts_patches_of_stated_areas() -> None:
    image, preprocess = gradient(250, 200), Preprocess(size=50)
    shares, ratios = [], []
    for index in range(300):
        patch = scale_and_aspect(image, Draws(0, 0, [index]), preprocess)
        assert patch.shape == (3, 50, 50)
        # The picture's red and green say how wide and how high the patch was.
        wide, high = ((patch[c].max() - patch[c].min()).item() * 50 / 49 for c in (0, 1))
        shares.append(wide * high)
        ratios.append(1.25 * wide / high)
    assert 0.06 < min(shares) < 0.12 and max(shares) > 0.85
    assert np.mean(shares) == pytest.approx(0.52, abs=0.06)
    assert 0.72 < min(ratios) < 0.8 and 1.25 < max(ratios) < 1.4
    same = [scale_and_aspect(image, Draws(0, 0, [5]), preprocess) for _ in range(2)]
    assert torch.equal(*same)
    # No patch of 99 % with these ratios fits into a long thin picture: the largest one in its middle.
    thin = scale_and_aspect(gradient(400, 40), Draws(0, 0, [0]), preprocess, area=(0.99, 1))
    assert thin[0].mean().item() == pytest.approx(0.5, abs=0.02)
    assert (thin[0].max() - thin[0].min()).item() == pytest.approx(40 * 4 / 3 / 400, abs=0.02)
    with pytest.raises(UsageError, match=r"set preprocess\.size"):
        scale_and_aspect(image, Draws(0, 0, [0]), Preprocess())


def test_photometric_distortions() -> None:
    images = 0.3 + 0.4 * torch.rand(5, 3, 7, 9)
    changed = photometric(images, Draws(0, 1, range(5)))
    assert changed.shape == images.shape and changed.min() >= 0 and changed.max() <= 1
    assert torch.equal(changed, photometric(images, Draws(0, 1, range(5))))
    alone = photometric(images[2:3], Draws(0, 1, [2]))
    assert torch.allclose(alone[0], changed[2], atol=1e-6)
    assert torch.allclose(photometric(images, Draws(0, 1, range(5)), strength=0.0), images, atol=1e-6)
    grey = torch.full((4, 1, 5, 5), 0.5)  # without contrast or colour, brightness alone is left
    levels = photometric(grey, Draws(0, 0, range(4)))
    assert levels.flatten(1).std(1).max() < 1e-6 and levels.flatten(1).mean(1).std() > 0.01


def test_144_crops() -> None:
    views = crops_144(gradient(90, 60), Preprocess(size=28))
    assert views.shape == (144, 3, 28, 28)
    assert torch.equal(views[72:], views[:72].flip(3))
    red = views[:72, 0].mean((1, 2)).view(4, 3, 6)
    assert (red[:, 0] < red[:, 1]).all() and (red[:, 1] < red[:, 2]).all()  # left, centre, right
    corners = views[:5]  # top left, top right, bottom left, bottom right, centre
    assert corners[0, 1].mean() < corners[2, 1].mean() and corners[0, 0].mean() < corners[1, 0].mean()
    whole, centre = (views[i, 0].max() - views[i, 0].min() for i in (5, 4))
    assert whole > centre
    upright = crops_144(gradient(60, 90), Preprocess(size=28))[:72, 1].mean((1, 2)).view(4, 3, 6)
    assert (upright[:, 0] < upright[:, 2]).all()  # top, bottom
    with pytest.raises(UsageError, match=r"set preprocess\.size"):
        crops_144(gradient(9, 9), Preprocess())


def test_train_and_predict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    data = "scenes(count=8, test_count=6, fields=('image', 'label'))"
    words = ["--steps", "2", "--batch-size", "4", "--data", data, "--system", "googlenet.Auxiliary"]
    words += ["--networks.network", "googlenet_scenes(aux=True)"]
    assert main(["train", "googlenet", "--out", str(run), *words]) in (0, 1)
    gradient(90, 70).save(tmp_path / "a.png")
    capsys.readouterr()
    for crops in ("centre", "144"):
        found = ["predict", "googlenet", str(tmp_path / "a.png"), "--weights", str(run), "--top", "2", "--crops", crops]
        assert main(found) == 0
        assert len(capsys.readouterr().out.splitlines()) == 3
    model = jingdu.create("googlenet", weights=run)
    (result,) = googlenet.predict(model, [str(tmp_path / "a.png")], top=8)
    assert sum(entry["probability"] for entry in result.data["top"]) == pytest.approx(1, abs=1e-5)
