"""GAN's theory as identities, its game, its networks, its window, and what a user does with a run."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

import jingdu
from jingdu.cli import main
from jingdu.engine import load_system, read_log, train
from jingdu.engine.checkpoint import newest_checkpoint
from jingdu.errors import UsageError
from jingdu.papers.generative.gan import (
    GAN,
    Marginals,
    ParzenWindow,
    discriminator_loss,
    draw,
    generator_loss,
    interpolations,
    jensen_shannon,
    maxout,
    optimal_discriminator,
    recipes,
    value,
)


def densities(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.rand(2, 37, generator=generator, dtype=torch.float64).softmax(1))  # type: ignore[return-value]


# Theory --------------------------------------------------------------------------------------------


def test_the_optimal_discriminator_is_the_best() -> None:
    """Proposition 1: no other D has a higher value."""
    p, q = densities(1)
    best = optimal_discriminator(p, q)
    at_best = value(best, p, q)
    for seed in range(20):
        other = torch.rand(37, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        assert value(other, p, q) < at_best
        assert value(best * 0.999 + other * 0.001, p, q) < at_best
    assert optimal_discriminator(torch.zeros(1), torch.zeros(1)).item() == 0.5


def test_the_value_there_is_the_divergence() -> None:
    """Theorem 1: 2 JSD - log 4, and -log 4 where the densities are equal."""
    p, q = densities(2)
    found = value(optimal_discriminator(p, q), p, q)
    assert found.item() == pytest.approx(2 * jensen_shannon(p, q).item() - math.log(4), abs=1e-12)
    assert value(optimal_discriminator(p, p), p, p).item() == pytest.approx(-math.log(4), abs=1e-12)
    assert jensen_shannon(p, p).item() == pytest.approx(0, abs=1e-12)
    apart = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    assert jensen_shannon(*apart).item() == pytest.approx(math.log(2))
    assert value(optimal_discriminator(*apart), *apart).item() == pytest.approx(0, abs=1e-6)


def test_the_two_generator_losses() -> None:
    """The same sign of the gradient everywhere; where D is sure, one vanishes and the other does not."""
    for logit, strong in ((-20.0, True), (0.0, False), (3.0, False)):
        grads = {}
        for kind in ("minimax", "non-saturating"):
            x = torch.tensor([logit], dtype=torch.float64, requires_grad=True)
            generator_loss(x, kind).backward()
            grads[kind] = x.grad.item()
        d = 1 / (1 + math.exp(-logit))
        assert grads["minimax"] == pytest.approx(-d) and grads["non-saturating"] == pytest.approx(d - 1)
        assert not strong or abs(grads["minimax"]) < 1e-8 < 0.99 < abs(grads["non-saturating"])


def test_losses_of_sure_logits_are_finite() -> None:
    far = torch.tensor([-500.0, 500.0])
    for loss in (discriminator_loss(far, far), generator_loss(far), generator_loss(far, "minimax")):
        assert math.isfinite(loss.item())


# The game ------------------------------------------------------------------------------------------


def pair(**changes: Any) -> GAN:
    return GAN(jingdu.create("gan_digits_generator"), jingdu.create("gan_digits_discriminator"), **changes)


def test_each_players_step_leaves_the_other_alone() -> None:
    system, batch = pair(), {"image": torch.rand(7, 1, 8, 8)}
    system(batch, "discriminator")[0].backward()
    assert all(p.grad is None for p in system.generator.parameters())
    assert all(p.grad is not None for p in system.discriminator.parameters())


def test_k_updates_each_on_fresh_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, float]] = []
    forward = GAN.forward

    def watched(self: GAN, batch: dict[str, Any], objective: str) -> Any:
        seen.append((objective, float(batch["image"].sum())))
        return forward(self, batch, objective)

    monkeypatch.setattr(GAN, "forward", watched)
    (stage,) = recipes["laptop"].stages
    stage = dataclasses.replace(stage, system="gan.GAN(k=3, samples=20)", steps=2, batch_size=20)
    train(stage, tmp_path / "R", device="cpu", quiet=True)
    assert [name for name, _ in seen] == ["discriminator"] * 3 + ["generator"] + ["discriminator"] * 3 + ["generator"]
    assert len({total for name, total in seen if name == "discriminator"}) == 6


def test_smoothing_lowers_the_real_target() -> None:
    logits = torch.linspace(-4, 4, 2001, dtype=torch.float64)
    losses = [discriminator_loss(x[None], torch.full((1,), -99.0, dtype=torch.float64), 0.1).item() for x in logits]
    assert logits[losses.index(min(losses))].sigmoid().item() == pytest.approx(0.9, abs=1e-3)


@pytest.mark.parametrize("options", [{"loss": "wasserstein"}, {"k": 0}, {"smoothing": 1.0}])
def test_wrong_options_are_named(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(options))):
        pair(**options)


def test_marginals_set_where_the_generator_starts() -> None:
    marginals, images = Marginals(), torch.rand(50, 1, 8, 8)
    for part in images.split(20):
        marginals.observe({"image": part}, 0)
    assert torch.allclose(marginals.mean, images.mean(0), atol=1e-6)
    again = Marginals()
    again.load_state_dict(marginals.state_dict())
    system = pair(previous={"marginals": again})
    with torch.no_grad():
        for layer in system.generator.hidden:
            nn.init.zeros_(layer.weight)
        assert torch.allclose(system.generator(system.generator.sample_noise(3)), images.mean(0).expand(3, -1, -1, -1))


# Networks ------------------------------------------------------------------------------------------


def test_maxout_takes_neighbours() -> None:
    x = torch.tensor([[1.0, 5.0, 2.0, 0.0, -1.0, -7.0]])
    assert maxout(x, 2).tolist() == [[5.0, 2.0, -1.0]] and maxout(x, 3).tolist() == [[5.0, 0.0]]
    assert maxout(x.view(1, 6, 1, 1), 2, axis=1).shape == (1, 3, 1, 1)


def test_dropout_scales_what_it_keeps() -> None:
    d = jingdu.create("gan_mnist_discriminator")
    assert (d.drop_input.p, d.drop_hidden.p) == (pytest.approx(0.2), 0.5)
    x = torch.ones(4000)
    assert d.drop_input(x).unique().tolist() == pytest.approx([0, 1.25]) and d.drop_input(
        x
    ).mean().item() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(("prior", "low", "high"), [("uniform", -(3**0.5), 3**0.5), ("unit", 0, 1)])
def test_priors(prior: str, low: float, high: float) -> None:
    z = jingdu.create("gan_digits_generator", prior=prior).sample_noise(3000)
    assert z.shape == (3000, 16) and low <= z.min() < low + 0.05 and high - 0.05 < z.max() <= high
    if prior == "uniform":
        assert z.std().item() == pytest.approx(1, abs=0.02)


def test_initial_ranges() -> None:
    for name, most in (("gan_mnist_generator", 0.05), ("gan_mnist_discriminator", 0.005)):
        network = jingdu.create(name)
        for p in network.parameters():
            assert (p.abs().max() <= most and p.abs().max() > 0.9 * most) if p.ndim > 1 else not p.any()


def test_cifar_shapes() -> None:
    g = jingdu.create("gan_cifar_generator", hidden=(12, 4 * 9), maps=4, grid=3)
    assert g(g.sample_noise(2)).shape == (2, 3, 11, 11)
    d = jingdu.create("gan_cifar_discriminator", units=(4, 6, 8, 5))
    assert d(torch.rand(3, 3, 32, 32)).shape == (3,)
    with pytest.raises(UsageError, match=r"maps \* grid"):
        jingdu.create("gan_cifar_generator", hidden=(12, 5), maps=4, grid=3)


def test_drawing_in_parts_is_drawing() -> None:
    g = jingdu.create("gan_digits_generator").eval()
    whole = draw(g, 11, torch.Generator().manual_seed(1), batch=11)
    parts = draw(g, 11, torch.Generator().manual_seed(1), batch=4)
    assert whole.shape == parts.shape == (11, 1, 8, 8) and torch.allclose(whole, parts, atol=1e-6)
    walk = interpolations(g, 2, 5, torch.Generator().manual_seed(1))
    ends = draw(g, 4, torch.Generator().manual_seed(1))
    assert walk.shape == (2, 5, 1, 8, 8)
    assert torch.allclose(walk[:, 0], ends[:2], atol=1e-6) and torch.allclose(walk[:, -1], ends[2:], atol=1e-6)


# The window ----------------------------------------------------------------------------------------


def test_the_window_is_a_density() -> None:
    window = ParzenWindow(torch.tensor([[0.0], [1.0]]), 0.3)
    x = torch.linspace(-3, 4, 7001, dtype=torch.float64)[:, None]
    assert window.log_likelihood(x).exp().sum().item() * 0.001 == pytest.approx(1, abs=1e-9)
    mean, error = window.score(x[::70])
    assert mean == pytest.approx(window.log_likelihood(x[::70]).mean().item()) and error > 0
    with pytest.raises(ValueError, match="at least 2"):
        window.score(x[:1])


def test_the_width_is_the_held_out_datas() -> None:
    generator = torch.Generator().manual_seed(0)
    samples, held_out = torch.randn(2, 400, 3, generator=generator)
    window = ParzenWindow.cross_validated(samples, held_out)
    best = window.score(held_out)[0]
    for sigma in (0.1, 0.2, 0.5, 1.0):
        assert ParzenWindow(samples, sigma).score(held_out)[0] <= best + 1e-9 or abs(sigma - window.sigma) < 0.1


# Runs ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("gan") / "R"
    (stage,) = recipes["laptop"].stages
    train(
        dataclasses.replace(stage, system="gan.GAN(samples=60)", steps=25, save_every=10), out, device="cpu", quiet=True
    )
    return out


def test_a_cut_run_resumes_to_the_same_bits(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from jingdu.engine.training import Training

    (stage,) = recipes["laptop"].stages
    stage = dataclasses.replace(stage, system="gan.GAN(samples=60)", steps=25, save_every=10)
    advance = Training.advance

    def dying(self: Training) -> dict[str, Any]:
        if self.step == 17:
            raise RuntimeError("as a kill would")
        return advance(self)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "advance", dying)
        with pytest.raises(RuntimeError, match="kill"):
            train(stage, tmp_path / "cut", device="cpu", quiet=True)
    train(stage, tmp_path / "cut", device="cpu", quiet=True, resume=True)
    for name in ("model", "ema"):
        a, b = (load_file(newest_checkpoint(folder) / f"{name}.safetensors") for folder in (run, tmp_path / "cut"))
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    assert read_log(run) == read_log(tmp_path / "cut")


def test_measures_of_a_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    last = read_log(run)[-1]["eval"]
    assert set(last) == {"log_likelihood", "standard_error", "sigma", "d_real", "d_fake"}
    assert main(["eval", "gan_digits_generator", "--weights", str(run)]) == 0
    assert "log_likelihood" in capsys.readouterr().out
    assert isinstance(load_system(run), GAN)


def test_a_picture_of_samples(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "grid.png"
    words = ["predict", "gan_digits_generator", "--weights", str(run), "--count", "12", "--out", str(out)]
    assert main(words) == 0 and str(out) in capsys.readouterr().out
    with Image.open(out) as picture:
        assert picture.mode == "L" and picture.width >= 512 and picture.height < picture.width
    first = out.read_bytes()
    assert main(words) == 0 and out.read_bytes() == first
    assert main([*words, "--seed", "1"]) == 0 and out.read_bytes() != first
    assert main([*words, "--interpolate"]) == 0
    assert "walks" in capsys.readouterr().out
    assert main([*words[:-1], str(tmp_path / "no" / "grid.png")]) == 2
    assert main([*words[:-1], str(tmp_path / "grid.nonsense")]) == 2
    assert main([*words[:2], "x.png", *words[2:]]) == 2
    assert main([*words, "--count", "0"]) == 2
    said = capsys.readouterr().err
    assert "choose another --out" in said and "reads no input" in said and "count is 0" in said


def test_a_discriminator_judges_pictures(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("L", (20, 31), 90).save(tmp_path / "grey.png")
    words = ["predict", "gan_digits_discriminator", str(tmp_path / "grey.png"), "--weights", str(run)]
    assert main(words) == 0
    assert "D = " in capsys.readouterr().out
