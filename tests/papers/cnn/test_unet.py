"""U-Net's own parts."""

import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

import jingdu
from jingdu.cli import main
from jingdu.data.draws import Draws
from jingdu.engine import Stage
from jingdu.errors import BadInput, Refused, UsageError
from jingdu.papers.cnn import unet
from jingdu.papers.cnn.unet import (
    DoubleConv,
    Segmentation,
    SlidingWindow,
    Style,
    UNet,
    contract,
    deform,
    displacements,
    draw_cells,
    enlarge,
    expand,
    join,
    mirror,
    segment,
    warp,
    weight_map,
)  # fmt: skip
from tests.parity.references import assert_close, randomise_


def random(model: nn.Module, seed: int = 1) -> nn.Module:
    return randomise_(model, torch.Generator().manual_seed(seed)).eval()


# The network --------------------------------------------------------------------------------------


@pytest.mark.parametrize("side, left", [(188, 4), (572, 388)])
def test_sizes_of_figure_1(side: int, left: int) -> None:
    with torch.device("meta"):
        assert UNet(width=2)(torch.zeros(1, 1, side, side)).shape == (1, 2, left, left)


def test_sizes_that_a_pool_would_cut_are_refused() -> None:
    with pytest.raises(UsageError, match=r"189 x 204: .* 188 and every 16 pixels more, such as 188 x 204"):
        UNet(width=2)(torch.zeros(1, 1, 189, 204))
    with pytest.raises(UsageError, match=r"height .* is 172, wanted 188 or more"):
        UNet(width=2)(torch.zeros(1, 1, 172, 188))
    with pytest.raises(UsageError, match=r"channels .* is 3, wanted 1"):
        UNet(width=2)(torch.zeros(1, 3, 188, 188))


@pytest.mark.parametrize("up", ["transposed", "bilinear", "nearest"])
def test_padding_keeps_any_size(up: str) -> None:
    model = UNet(3, 2, width=4, depth=3, padding="same", norm="batch", up=up)
    assert model(torch.randn(2, 2, 37, 53)).shape == (2, 3, 37, 53)


def test_join_crops_the_centre_or_adds_zeros() -> None:
    across, x = torch.rand(2, 3, 11, 13), torch.rand(2, 5, 7, 5)
    y = join(across, x)
    assert torch.equal(y, torch.cat((across[:, :, 2:9, 4:9], x), 1))
    y = join(across, torch.ones(2, 5, 10, 12))
    assert torch.equal(y[:, :3], across)
    assert y[:, 3:, :10, :12].eq(1).all() and not y[:, 3:, 10:].any() and not y[:, 3:, :, 12:].any()


def test_initial_weights_by_their_inputs() -> None:
    torch.manual_seed(0)
    model = UNet(width=32)
    block, up = model.contracting[2].block, model.expanding[0].enlarge
    assert block.conv2.weight.std().item() == pytest.approx(math.sqrt(2 / (128 * 9)), rel=0.02)
    assert up.weight.std().item() == pytest.approx(math.sqrt(2 / 512), rel=0.02)
    assert not block.conv2.bias.any() and not up.bias.any()


def test_dropout_at_the_end_of_the_contracting_path() -> None:
    model = UNet(width=4)
    places = [isinstance(down.block.after, nn.Dropout) for down in model.contracting]
    assert places == [False, False, False, True, True]
    x = torch.randn(1, 1, 188, 188)
    shallow, deep = (model.train().features(x)[level] for level in (2, 4))
    assert (deep == 0).float().mean() > (shallow == 0).float().mean() + 0.1
    assert not any(isinstance(m, nn.Dropout) and m.p for m in jingdu.create("unet_cells").modules())


def test_features_are_the_levels_outputs() -> None:
    model = UNet(width=4, depth=3, padding="same", in_channels=2).eval()
    seen: list[Tensor] = []
    for down in model.contracting:
        down.register_forward_hook(lambda m, i, o: seen.append(o))
    taps = model.features(torch.randn(2, 2, 32, 48))
    assert all(torch.equal(a, b) for a, b in zip(taps, seen, strict=True))
    assert [tuple(tap.shape[1:]) for tap in taps] == [(4, 32, 48), (8, 16, 24), (16, 8, 12), (32, 4, 6)]
    assert model.channels == [4, 8, 16, 32]


def test_without_skips_all_goes_through_the_bottom() -> None:
    with_skips, without = (random(UNet(width=4, depth=2, padding="same", skips=skips)) for skips in (True, False))
    without.load_state_dict(with_skips.state_dict())
    x = torch.randn(1, 1, 16, 24)
    assert not torch.allclose(with_skips(x), without(x))
    # What reaches the last block from across is zero, so its weights do not matter.
    with torch.no_grad():
        without_before = without(x)
        without.expanding[-1].block.conv1.weight[:, :4] += 1
        assert torch.equal(without(x), without_before)


def test_every_parameter_gets_a_gradient() -> None:
    model = jingdu.create("unet_cells")
    model(torch.randn(2, 1, 24, 40)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


# What later papers build from the parts -------------------------------------------------------------


class Time(nn.Module):
    """A condition: a dense layer of the embedding, added to every pixel."""

    def __init__(self, embedding: int, channels: int):
        super().__init__()
        self.dense = nn.Linear(embedding, channels)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return x + self.dense(F.silu(embedding))[:, :, None, None]


class Attention(nn.Module):
    """One head over all pixels, added to its input."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm, self.qkv = nn.GroupNorm(2, channels), nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.flatten(2).mT[:, None] for part in self.qkv(self.norm(x)).chunk(3, 1))
        y = F.scaled_dot_product_attention(q, k, v)[:, 0].mT.unflatten(2, x.shape[2:])
        return x + self.out(y)


class Residual(nn.Module):
    """DDPM's block (Ho et al. 2020): norm, swish, convolution; the time; norm, swish, dropout, convolution; shortcut."""

    def __init__(self, inputs: int, outputs: int, embedding: int, attends: bool = False):
        super().__init__()
        style = Style(padding=1, norm=partial(nn.GroupNorm, 2), activation=nn.SiLU, norm_first=True, dropout=0.1)
        self.convs = DoubleConv(inputs, outputs, style, condition=Time(embedding, outputs))
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        self.attention = Attention(outputs) if attends else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return self.attention(self.shortcut(x) + self.convs(x, embedding))


def test_a_residual_block_with_time_and_attention() -> None:
    block = random(Residual(6, 10, 7, attends=True)).double()
    x, time = torch.randn(2, 6, 5, 3, dtype=torch.float64), torch.randn(2, 7, dtype=torch.float64)
    d, a, dense = block.convs, block.attention, block.convs.condition.dense
    h = F.conv2d(F.silu(F.group_norm(x, 2, d.norm1.weight, d.norm1.bias)), d.conv1.weight, d.conv1.bias, padding=1)
    h = h + (F.silu(time) @ dense.weight.T + dense.bias)[:, :, None, None]
    h = F.conv2d(F.silu(F.group_norm(h, 2, d.norm2.weight, d.norm2.bias)), d.conv2.weight, d.conv2.bias, padding=1)
    h = h + F.conv2d(x, block.shortcut.weight, block.shortcut.bias)
    q, k, v = F.conv2d(F.group_norm(h, 2, a.norm.weight, a.norm.bias), a.qkv.weight, a.qkv.bias).flatten(2).chunk(3, 1)
    scores = torch.einsum("bcq,bck->bqk", q, k) / math.sqrt(10)
    y = torch.einsum("bqk,bck->bcq", scores.softmax(2), v).unflatten(2, (5, 3))
    expected = h + F.conv2d(y, a.out.weight, a.out.bias)
    assert_close(block(x, time), expected, relative=1e-12)
    block.train()
    assert not torch.equal(block(x, time), block(x, time))  # dropout


class Step(nn.Module):
    """An expanding step of DDPM: the join is theirs, the block is `Residual`."""

    def __init__(self, block: nn.Module):
        super().__init__()
        self.block = block

    def forward(self, x: Tensor, across: Tensor, time: Tensor) -> Tensor:
        if x.shape[2:] != across.shape[2:]:
            x = F.interpolate(x, scale_factor=2.0)
        return self.block(torch.cat((x, across), 1), time)


def test_the_walk_takes_blocks_with_context() -> None:
    down = [Residual(4, 6, 7), unet.Down(nn.AvgPool2d(2), Residual(6, 8, 7)), Residual(8, 8, 7, attends=True)]
    up = [Step(Residual(16, 8, 7)), Step(Residual(16, 6, 7)), Step(Residual(12, 4, 7))]
    x, time = torch.randn(2, 4, 6, 10), torch.randn(2, 7)
    taps = contract(x, down, time)
    assert [tuple(tap.shape[1:]) for tap in taps] == [(6, 6, 10), (8, 3, 5), (8, 3, 5)]
    assert expand(taps[-1], taps, up, time).shape == x.shape


def test_enlarging_by_nearest_pixels_and_a_convolution() -> None:
    layer = enlarge("nearest", 3, 5)
    x = torch.randn(2, 3, 4, 7)
    expected = F.conv2d(x.repeat_interleave(2, 2).repeat_interleave(2, 3), layer[1].weight, layer[1].bias, padding=1)
    assert torch.allclose(layer(x), expected, atol=1e-6)


# Tiles (Fig. 2) -----------------------------------------------------------------------------------


def test_mirror_goes_on_for_ever() -> None:
    x = torch.arange(4.0).view(1, 1, 1, 4)
    assert mirror(x, 0, 0, 5, 6)[0, 0, 0].tolist() == [1, 2, 3, 2, 1, 0, 1, 2, 3, 2, 1, 0, 1, 2, 3]
    assert torch.equal(mirror(torch.rand(2, 3, 7, 9), 2, 3, 4, 1).isnan(), torch.zeros(2, 3, 12, 14, dtype=torch.bool))
    y = torch.rand(2, 3, 7, 9)
    assert torch.equal(mirror(y, 2, 3, 4, 1), F.pad(y, (4, 1, 2, 3), mode="reflect"))


@pytest.mark.parametrize("shape", [(1, 1, 83, 61), (2, 1, 40, 33), (1, 1, 3, 5)])
def test_tiles_of_the_papers_network_have_no_seams(shape: tuple[int, ...]) -> None:
    model = random(UNet(3, width=3, depth=3)).double()
    x = torch.randn(shape, dtype=torch.float64)
    whole = segment(model, x, tile=None)
    assert whole.shape == (shape[0], 3, *shape[2:])
    for tile in (1, 17, 32):
        assert_close(segment(model, x, tile), whole, relative=1e-12)
    # By hand: the mirror image around it, and one pass.
    side = [math.ceil((length - 4) / 8) * 8 + 4 if length > 4 else 4 for length in shape[2:]]
    wide = mirror(x, 44, 44 + side[0] - shape[2], 44, 44 + side[1] - shape[3])
    assert_close(model(wide)[:, :, : shape[2], : shape[3]], whole, relative=1e-12)


@pytest.mark.parametrize("shape", [(1, 1, 83, 61), (2, 1, 40, 33), (1, 1, 3, 30)])
def test_tiles_with_padding_have_no_seams(shape: tuple[int, ...]) -> None:
    model = random(UNet(3, width=3, depth=2, padding="same", norm="batch")).double()
    x = torch.randn(shape, dtype=torch.float64)
    whole = segment(model, x, tile=None)
    assert whole.shape == (shape[0], 3, *shape[2:])
    if min(shape[2:]) >= model.smallest:
        assert torch.equal(whole, model(x))
    for tile in (9, 16):
        assert_close(segment(model, x, tile), whole, relative=1e-12)


def test_a_sliding_window_classifies_each_window() -> None:
    model = random(SlidingWindow(3, 2, widths=(3, 4), hidden=5)).double()
    assert model.window == 18
    x = torch.randn(1, 2, 23, 21, dtype=torch.float64)
    dense = model(x)
    wide = mirror(x, 8, 9, 8, 9)
    for row, column in ((0, 0), (7, 13), (22, 20)):
        h = wide[:, :, row : row + 18, column : column + 18]
        for conv, norm in zip(model.convs[:2], model.norms, strict=False):
            h = F.max_pool2d(F.relu(norm(F.conv2d(h, conv.weight))), 2)
        h = model.score(F.relu(model.norms[2](F.conv2d(h, model.convs[2].weight))))
        assert h.shape == (1, 3, 1, 1)
        assert_close(dense[:, :, row, column], h[:, :, 0, 0], relative=1e-12)


# The loss and the deformations (Sec. 3) -------------------------------------------------------------


def brute_force(cells: Tensor, w0: float, sigma: float) -> Tensor:
    """Equation 2 pixel by pixel."""
    height, width = cells.shape
    inside = (cells > 0).float().mean()
    places = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"), -1).double()
    weights = torch.where(cells > 0, 0.5 / inside, 0.5 / (1 - inside)).double()
    for y in range(height):
        for x in range(width):
            distances = sorted(
                (places[cells == number] - places[y, x]).norm(dim=-1).min().item()
                for number in cells.unique()
                if number
            )
            if cells[y, x] == 0 and len(distances) > 1:
                weights[y, x] += w0 * math.exp(-((distances[0] + distances[1]) ** 2) / (2 * sigma**2))
    return weights


def test_weight_map_is_equation_2() -> None:
    cells = torch.zeros(13, 17, dtype=torch.int64)
    cells[2:6, 1:6], cells[2:7, 7:11], cells[9:12, 5:15] = 1, 4, 2
    weights = weight_map(cells, w0=10, sigma=2)
    assert_close(weights, brute_force(cells, 10, 2), relative=1e-4)
    assert weights[4, 6] > 5 > weights[0, 16]
    flat = weight_map(cells, w0=0)
    for side in (flat[cells > 0], flat[cells == 0]):
        assert side.sum().item() == pytest.approx(13 * 17 / 2, rel=1e-5)
    assert torch.equal(weight_map(torch.zeros(5, 7, dtype=torch.int64)), torch.ones(5, 7))
    one = weight_map((cells == 1).long(), balance=False)
    assert torch.equal(one, torch.ones(13, 17))  # one cell has no gap


def test_loss_is_the_weighted_mean() -> None:
    network = nn.Conv2d(1, 2, 1)
    system = Segmentation(network)
    x, label, weight = torch.randn(2, 1, 3, 5), torch.randint(2, (2, 3, 5)), torch.rand(2, 3, 5)
    loss, logged = system({"image": x, "label": label, "weight": weight}, "loss")
    p = network(x).softmax(1).gather(1, label[:, None])[:, 0]
    assert loss.item() == pytest.approx(-(weight * p.log()).mean().item(), rel=1e-5)
    assert 0 <= logged["pixel_error"] <= 1
    valid = Segmentation(UNet(width=2, depth=1))
    assert valid.logits(torch.randn(2, 1, 19, 24)).shape == (2, 2, 19, 24)


def test_displacements_go_through_the_lattice() -> None:
    draws = Draws(1, 2, range(4))
    flow = displacements(draws, 21, 33, std=5)
    coarse = Draws(1, 2, range(4)).normal(2, 3, 3, std=5)
    assert torch.allclose(flow[:, :, ::10, ::16], coarse, atol=1e-4)
    many = displacements(Draws(0, 0, range(3000)), 5, 5, std=10)[:, :, 0, 0]
    assert many.std().item() == pytest.approx(10, rel=0.03)


def test_warp_moves_and_mirrors() -> None:
    x = torch.rand(2, 3, 7, 9)
    assert torch.allclose(warp(x, torch.zeros(2, 2, 7, 9)), x, atol=1e-5)
    flow = torch.zeros(2, 2, 7, 9)
    flow[:, 0], flow[:, 1] = 2, -3
    assert torch.allclose(warp(x, flow), mirror(x, 3, 0, 0, 2)[:, :, :7, 2:], atol=1e-5)


def test_deform_takes_the_maps_along() -> None:
    image, cells = draw_cells(Draws(3, 0, range(5)), 48, 5)
    maps = torch.stack((cells, (image[:, 0] > 0.5).long()), 1)
    picture, moved = deform(image, maps, Draws(1, 2, range(5)), grey=0)
    again, _ = deform(image, maps, Draws(1, 2, range(5)), grey=0)
    assert torch.equal(picture, again) and not torch.allclose(picture, image, atol=0.05)
    assert set(moved[:, 0].unique().tolist()) <= set(cells.unique().tolist())
    agree = ((picture[:, 0] > 0.5).long() == moved[:, 1]).float().mean()
    assert agree > 0.85  # interpolated noise apart
    still, same = deform(image, maps, Draws(1, 2, range(5)), std=0, degrees=0, shift=0, grey=0)
    assert torch.allclose(still, image, atol=1e-4) and torch.equal(same, maps)
    brighter, _ = deform(image, maps, Draws(1, 2, range(5)), std=0, degrees=0, shift=0, grey=0.3)
    assert not torch.allclose(brighter, image, atol=0.02)


# Data ---------------------------------------------------------------------------------------------


def first(data: object, epoch: int = 0) -> dict[str, Tensor]:
    return data.batch(np.arange(3), Draws(0, epoch, np.arange(3)))


def test_cells_touch_and_are_told_apart() -> None:
    from scipy.ndimage import label

    batch = first(unet.cells("test", size=64, cells=8))
    assert torch.equal(batch["label"], (batch["instances"] > 0).long())
    for cells in batch["instances"].numpy():
        parts = label(cells)[1]
        assert 6 <= len(np.unique(cells)) - 1 <= 8 and parts >= 6
        for step in (np.s_[1:], np.s_[:, 1:]):  # no two cells are neighbours
            a, b = cells[step], cells[np.s_[:-1] if step == np.s_[1:] else np.s_[:, :-1]]
            assert not ((a != b) & (a > 0) & (b > 0)).any()
    assert batch["weight"].max() > 5
    inside, outside = (batch["image"][:, 0][batch["label"] == kind].mean() for kind in (1, 0))
    assert abs(inside - outside) < 0.06  # grey alone does not tell


def test_training_cells_are_new_in_every_epoch_and_test_cells_are_not() -> None:
    train, test = (unet.cells(split, size=32, cells=4, count=5, test_count=7) for split in ("train", "test"))
    assert (len(train), len(test)) == (5, 7) and train.classes == ("background", "cell")
    assert not torch.equal(first(train)["image"], first(train, 1)["image"])
    assert torch.equal(first(test)["image"], first(test, 1)["image"])
    fresh = unet.cells("train", size=32, cells=4, count=5)
    alone = fresh.batch(np.array([2]), Draws(0, 1, [2]))
    assert torch.equal(alone["image"][0], first(train, 1)["image"][2])
    plain = unet.cells("train", size=32, cells=4, elastic=None, w0=None)
    assert torch.equal(first(plain)["image"], first(plain, 1)["image"]) and "weight" not in first(plain)
    with pytest.raises(UsageError, match=r"unet\.cells: size is a whole number from 16 on, not 3"):
        unet.cells("train", size=3)


def save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.astype(np.uint8)).save(path)


def test_the_users_pairs(tmp_path: Path) -> None:
    mask = np.zeros((20, 26))
    mask[2:7, 3:9], mask[12:17, 4:20] = 255, 255
    for name in ("a", "b", "c"):
        save(tmp_path / "images" / f"{name}.png", np.full((20, 26), 90))
        save(tmp_path / "masks" / f"{name}.png", mask)
    train, test = (unet.pairs(split, str(tmp_path), elastic=None) for split in ("train", "test"))
    assert (len(train), len(test)) == (2, 1)
    batch = train.batch(np.arange(2), Draws(0, 0, range(2)))
    assert batch["image"].shape == (2, 1, 20, 26) and batch["label"].unique().tolist() == [0, 1]
    assert batch["instances"][0].unique().tolist() == [0, 1, 2]
    save(tmp_path / "masks" / "a.png", np.full((20, 26), 3))
    with pytest.raises(BadInput, match=r"a\.png: class 3, and there are 3"):
        unet.pairs("train", str(tmp_path), classes=("x", "y", "z")).batch(np.arange(2), Draws(0, 0, range(2)))
    save(tmp_path / "masks" / "a.png", np.zeros((5, 6)))
    with pytest.raises(BadInput, match=r"\[5, 6\] pixels"):
        unet.pairs("train", str(tmp_path)).batch(np.arange(2), Draws(0, 0, range(2)))
    (tmp_path / "masks" / "c.png").unlink()
    with pytest.raises(Refused, match=r"c\.png: no mask"):
        unet.pairs("train", str(tmp_path))
    with pytest.raises(Refused, match="images: no such folder"):
        unet.pairs("train", str(tmp_path / "nowhere"))


# A run, and what is done with it --------------------------------------------------------------------


def test_train_and_predict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    data = "unet.cells(size=32, cells=4, test_count=5)"
    assert main(["train", "unet", "--out", str(run), "--data", data, "--steps", "3", "--batch-size", "2"]) in (0, 1)
    result = (run / "result.json").read_text()
    assert all(f'"{name}"' in result for name in ("iou", "pixel_error", "merged"))
    image, _ = draw_cells(Draws(9, 0, [0]), 50, 4)
    for name, rows in (("a", 50), ("b", 33)):
        save(tmp_path / "in" / f"{name}.png", image[0, 0, :rows].numpy() * 255)
    capsys.readouterr()
    out, shares = tmp_path / "maps" / "classes.png", tmp_path / "shares.safetensors"
    words = ["predict", "unet", str(tmp_path / "in" / "b.png"), "--weights", str(run), "--out", str(out)]
    assert main([*words, "--probabilities", str(shares), "--tile", "16"]) == 0
    said = capsys.readouterr().out
    assert "50 x 33 pixels" in said and "cell" in said and str(out) in said
    picture = Image.open(out)
    assert picture.mode == "P" and picture.size == (50, 33)
    from safetensors.torch import load_file

    (probabilities,) = load_file(shares).values()
    assert probabilities.shape == (2, 33, 50) and torch.allclose(probabilities.sum(0), torch.ones(33, 50), atol=1e-5)
    assert torch.equal(torch.from_numpy(np.array(picture)).long(), probabilities.argmax(0))
    model = jingdu.create("unet", weights=run)
    results = list(unet.predict(model, [str(tmp_path / "in")], out=tmp_path / "folder"))
    assert [path.name for result in results for path in result.files] == ["a.png", "b.png"]
    assert sum(part["share"] for part in results[0].data["classes"]) == pytest.approx(1)
    with pytest.raises(UsageError, match="2 images need a folder"):
        list(unet.predict(model, [str(tmp_path / "in")], out=tmp_path / "x.png"))
    with pytest.raises(UsageError, match="no inputs"):
        list(unet.predict(model, []))
    with pytest.raises(BadInput):
        list(unet.predict(model, [str(shares)], out=out))


def test_recipes_are_of_this_system() -> None:
    assert all(isinstance(stage, Stage) for recipe in unet.recipes.values() for stage in recipe.stages)
    assert unet.example("unet_padded_bn_3in_2out", 2).shape == (2, 3, 572, 572)
