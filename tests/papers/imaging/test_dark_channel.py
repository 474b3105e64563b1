"""The dark channel prior's own parts."""

from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import jingdu
from jingdu.cli import main
from jingdu.errors import UsageError
from jingdu.papers.imaging.dark_channel import (
    DarkChannel,
    Dehazing,
    airlight,
    box_mean,
    coarse_transmission,
    dark_channel,
    guided_filter,
    haze,
    matting_laplacian,
    minimum_filter,
    psnr,
    recover,
    smooth_depth,
    soft_matting,
)


def pictures(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scene(height: int = 61, width: int = 83) -> Tensor:
    """A clear scene: patches of strong colours, so that every patch of 15 pixels has something dark in it."""
    blocks = pictures(1, 3, 1 + height // 5, 1 + width // 5, seed=3).round()
    blocks[:, 0, ::2, ::2] = 0
    return blocks.repeat_interleave(5, 2).repeat_interleave(5, 3)[:, :, :height, :width].float()


def test_haze_is_undone_where_all_is_known() -> None:
    clear, t = pictures(2, 3, 7, 11), 0.1 + 0.9 * pictures(2, 1, 7, 11, seed=1)
    light = torch.tensor([[0.8, 0.9, 1.0], [0.7, 0.7, 0.6]], dtype=torch.float64)
    hazy = haze(clear, t, light)
    assert torch.allclose(hazy[1, 2, 3, 4], clear[1, 2, 3, 4] * t[1, 0, 3, 4] + 0.6 * (1 - t[1, 0, 3, 4]))
    assert torch.allclose(recover(hazy, t, light, 0.1), clear)
    assert (recover(hazy, t, light, 0.5) - clear).abs().max() > 0.01


@pytest.mark.parametrize("patch", [1, 3, 5, 7, 15, 41])
def test_minimum_filter_leaves_out_what_is_outside(patch: int) -> None:
    x, radius = pictures(2, 3, 13, 19), patch // 2
    least = minimum_filter(x, patch)
    for i, j in [(0, 0), (6, 9), (12, 18), (2, 17)]:
        window = x[:, :, max(0, i - radius) : i + radius + 1, max(0, j - radius) : j + radius + 1]
        assert torch.equal(least[:, :, i, j], window.amin((2, 3)))
    with pytest.raises(UsageError, match="has a middle"):
        minimum_filter(x, 4)


def test_dark_channel_is_over_colours_and_patch() -> None:
    x = torch.ones(1, 3, 9, 9)
    x[0, 1, 4, 4] = 0.25
    dark = dark_channel(x, 3)
    assert (dark == 0.25).sum() == 9 and dark[0, 0, 3, 3] == 0.25


def test_airlight_is_one_pixels_colour_among_the_haziest() -> None:
    images, dark = torch.full((2, 3, 40, 50), 0.1), torch.zeros(2, 1, 40, 50)
    images[:, :, 0, 0] = torch.tensor([1.0, 1.0, 1.0])  # brightest of all, and not hazy
    dark[:, 0, 5, 5], dark[:, 0, 6, 6] = 0.9, 0.8  # 0.1 % of 2000 pixels are two
    images[0, :, 5, 5], images[0, :, 6, 6] = torch.tensor([0.3, 0.9, 0.2]), torch.tensor([0.7, 0.6, 0.5])
    images[1, :, 5, 5], images[1, :, 6, 6] = torch.tensor([0.9, 0.9, 0.8]), torch.tensor([0.1, 0.2, 0.3])
    assert torch.allclose(airlight(images, dark), torch.tensor([[0.7, 0.6, 0.5], [0.9, 0.9, 0.8]]))


def test_each_colour_is_divided_before_the_least_is_taken() -> None:
    images = torch.tensor([0.5, 0.6, 0.3]).view(1, 3, 1, 1).expand(1, 3, 5, 5)
    t = coarse_transmission(images, torch.tensor([[1.0, 1.0, 0.4]]), 3, 0.9)
    assert torch.allclose(t, torch.full((1, 1, 5, 5), 1 - 0.9 * 0.5))  # 0.3 / 0.4 is not the least


@pytest.mark.parametrize("radius", [0, 1, 4, 9, 10, 11, 40])
def test_box_mean_is_cut_at_the_border(radius: int) -> None:
    x = pictures(2, 3, 11, 17)
    mean = box_mean(x, radius)
    for i, j in [(0, 0), (5, 8), (10, 16), (1, 15)]:
        window = x[:, :, max(0, i - radius) : i + radius + 1, max(0, j - radius) : j + radius + 1]
        assert torch.allclose(mean[:, :, i, j], window.mean((2, 3)), atol=1e-12)


def test_guided_filter_is_ridge_regression_in_windows() -> None:
    guide, x, radius, eps = pictures(1, 3, 9, 12), pictures(1, 1, 9, 12, seed=1), 2, 0.01
    rows, columns = 9, 12
    slopes, offsets = np.zeros((rows, columns, 3)), np.zeros((rows, columns))

    def window(i: int, j: int) -> tuple[slice, slice]:
        return slice(max(0, i - radius), i + radius + 1), slice(max(0, j - radius), j + radius + 1)

    colours, values = guide[0].permute(1, 2, 0).numpy(), x[0, 0].numpy()
    for i in range(rows):
        for j in range(columns):
            inside, wanted = colours[window(i, j)].reshape(-1, 3), values[window(i, j)].ravel()
            near = inside - inside.mean(0)
            slopes[i, j] = np.linalg.solve(
                near.T @ near / len(near) + eps * np.eye(3), near.T @ (wanted - wanted.mean()) / len(near)
            )
            offsets[i, j] = wanted.mean() - slopes[i, j] @ inside.mean(0)
    expected = [
        [
            slopes[window(i, j)].reshape(-1, 3).mean(0) @ colours[i, j] + offsets[window(i, j)].mean()
            for j in range(columns)
        ]
        for i in range(rows)
    ]
    assert np.abs(guided_filter(guide, x, radius, eps)[0, 0].numpy() - expected).max() < 1e-12


def test_guided_filter_follows_edges() -> None:
    guide = torch.zeros(1, 3, 20, 30)
    guide[..., 15:] = torch.tensor([0.9, 0.5, 0.7])[:, None, None]
    blurred = box_mean(guide[:, :1], 4)
    assert (guided_filter(guide, blurred, 6, 1e-4) - blurred).abs().max() > 0.1
    assert guided_filter(guide, guide[:, :1], 6, 1e-5).sub(guide[:, :1]).abs().max() < 1e-3


def test_the_fast_guided_filter_is_about_the_same() -> None:
    guide = box_mean(pictures(2, 3, 61, 83), 3)
    x = minimum_filter(guide[:, :1], 7)
    exact, fast = guided_filter(guide, x, 12, 1e-3), guided_filter(guide, x, 12, 1e-3, subsample=4)
    assert fast.shape == exact.shape and 0 < (fast - exact).abs().mean() < 0.2 * (exact - x).abs().mean()
    # What is linear in the colours everywhere has the same coefficients everywhere: nothing is lost.
    line = guide.sum(1, keepdim=True)
    assert torch.allclose(guided_filter(guide, line, 8, 1e-12, subsample=4), line, atol=1e-5)


def test_soft_matting_solves_its_equation() -> None:
    image, coarse = pictures(3, 9, 11), pictures(1, 9, 11, seed=1)
    matrix = matting_laplacian(image).toarray()
    assert np.abs(matrix - matrix.T).max() < 1e-12 and np.abs(matrix.sum(0)).max() < 1e-12
    assert np.linalg.eigvalsh(matrix).min() > -1e-12
    exact = np.linalg.solve(matrix + 0.01 * np.eye(99), 0.01 * coarse.flatten().numpy())
    found = soft_matting(image, coarse, 0.01, tolerance=1e-10)
    assert np.abs(found.flatten().numpy() - exact).max() < 1e-8
    again = soft_matting(image, coarse, 0.01, start=found, tolerance=1e-6, steps=1)
    assert torch.allclose(again, found, atol=1e-8)
    with pytest.raises(UsageError, match="no window of 3x3"):
        matting_laplacian(pictures(3, 2, 9))


def test_what_is_linear_in_the_colours_costs_nothing() -> None:
    image = pictures(3, 13, 17)
    t = (image * torch.tensor([0.2, 0.5, 0.1], dtype=torch.float64)[:, None, None]).sum(0) + 0.1
    assert np.abs(matting_laplacian(image) @ t.flatten().numpy()).max() < 1e-4


@pytest.mark.parametrize("refine", ["guided", "matting", "none"])
def test_synthetic_haze_is_taken_off(refine: str) -> None:
    clear = scene()
    t = torch.exp(-2.5 * smooth_depth(1, 61, 83, torch.Generator().manual_seed(1)))
    hazy = haze(clear, t, torch.tensor([[0.8, 0.85, 0.9]]))
    found = DarkChannel(refine=refine, patch=9, radius=15)(hazy)
    assert float(psnr(found.clear, clear) - psnr(hazy, clear)) > 3
    assert (found.transmission - t).abs().mean() < 0.7 * (t - t.median()).abs().mean()
    assert (found.light - torch.tensor([[0.8, 0.85, 0.9]])).abs().mean() < 0.05
    assert found.clear.min() >= 0 and found.clear.max() <= 1
    assert np.corrcoef(found.depth.flatten(), -t.log().flatten())[0, 1] > 0.9


def test_a_batch_is_each_of_its_pictures() -> None:
    hazy = 0.3 + 0.6 * pictures(3, 3, 33, 41).float()
    method = DarkChannel(patch=5, radius=7)
    whole = method(hazy)
    for i in range(3):
        one = method(hazy[i : i + 1])
        assert torch.allclose(whole.clear[i], one.clear[0], atol=1e-5) and torch.allclose(whole.light[i], one.light[0])
    tiny = method(hazy[:, :, :1, :2])
    assert tiny.clear.shape == (3, 3, 1, 2) and tiny.clear.isfinite().all()
    black = method(torch.zeros(1, 3, 9, 9))
    assert black.clear.isfinite().all()


def test_options_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(UsageError, match="guided, matting or none"):
        jingdu.create("dark_channel", refine="bilateral")
    with pytest.raises(UsageError, match="t_min"):
        jingdu.create("dark_channel", t_min=0.0)


def test_the_recipe_runs_and_measures(tmp_path: Path) -> None:
    run = jingdu.train(
        "dark_channel", out=tmp_path / "run", quiet=True, data="photos(size=256, count=4, test_count=2, scale=(1, 1))"
    )
    assert run.metrics["gain_db"] > 0 and 0 < run.metrics["t_error"] < 0.3
    assert isinstance(jingdu.create("dark_channel", weights=tmp_path / "run"), DarkChannel)
    with pytest.raises(ValueError, match="without weights"):
        DarkChannel().load_state_dict({"counts": 1})
    system = Dehazing(DarkChannel())
    assert system.observe({"image": torch.zeros(1, 3, 20, 20)}, 0) == {"zero": 1.0, "below_25": 1.0}
    assert system.observe({"image": torch.ones(1, 3, 20, 20)}, 0) == {"zero": 0.5, "below_25": 0.5}


def test_the_command_line_needs_no_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hazy = haze(scene(), torch.full((1, 1, 61, 83), 0.5), torch.tensor([[0.9, 0.9, 0.9]]))
    pixels = (hazy[0].permute(1, 2, 0) * 255).byte().numpy()
    Image.fromarray(pixels).save(tmp_path / "hazy.png")
    Image.fromarray(pixels).save(tmp_path / "other.jpg")
    out = tmp_path / "clear.png"
    for refine in ("guided", "matting"):
        assert main(["predict", "dark_channel", str(tmp_path / "hazy.png"), "--out", str(out), "--refine", refine]) == 0
        assert f"wrote {out}" in capsys.readouterr().out
        with Image.open(out) as clear:
            assert clear.size == (83, 61) and np.array(clear).std() > 1.2 * pixels.std()
    words = [
        "predict",
        "dark_channel",
        str(tmp_path / "hazy.png"),
        str(tmp_path / "other.jpg"),
        "--out",
        str(tmp_path / "o"),
        "--maps",
    ]
    assert main(words) == 0
    names = {path.name for path in (tmp_path / "o").iterdir()}
    assert names == {f"{a}-clear{b}.png" for a in ("hazy", "other") for b in ("", "-transmission", "-depth")}
    assert main(["predict", "dark_channel"]) == 2
    assert main(["predict", "ngram", "a text"]) == 2  # which has learned something, and needs it
