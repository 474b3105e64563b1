"""CapsNet's own parts."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import jingdu
from jingdu.cli import main
from jingdu.data.draws import Draws
from jingdu.errors import UsageError
from jingdu.papers.cnn import capsnet
from jingdu.papers.cnn.capsnet import (
    BaselineCNN,
    CapsNet,
    Capsules,
    margin_loss,
    moved,
    overlapping,
    perturbations,
    route,
    squash,
    votes,
)
from tests.parity.references import assert_close, randomise_

SMALL = {"image": (1, 13, 11), "num_classes": 5, "conv": (4, 3), "primary": (3, 6, 5, 2), "dim": 7}


def small(**options: object) -> CapsNet:
    return randomise_(CapsNet(**{**SMALL, **options}), torch.Generator().manual_seed(1)).eval()


def test_squash_keeps_directions_and_is_safe_at_zero() -> None:
    s = torch.randn(3, 5, 7, dtype=torch.float64)
    v = squash(s)
    length = s.norm(dim=-1)
    assert_close(v.norm(dim=-1), length**2 / (1 + length**2), relative=1e-12)
    assert_close(nn.functional.normalize(v, dim=-1), nn.functional.normalize(s, dim=-1), relative=1e-12)
    zero = torch.zeros(2, 3, requires_grad=True)
    squash(zero).sum().backward()
    assert not squash(zero).any() and not zero.grad.any()
    assert torch.autograd.gradcheck(squash, (s.requires_grad_(),))


def test_votes_are_products_with_matrices() -> None:
    u, weight = torch.randn(2, 3, 5, dtype=torch.float64), torch.randn(7, 3, 11, 5, dtype=torch.float64)
    assert_close(votes(u, weight), torch.einsum("nib,oidb->noid", u, weight), relative=1e-12)


def by_procedure_1(hats: torch.Tensor, rounds: int) -> torch.Tensor:
    """One image's votes [outputs, inputs, dim], with loops."""
    outputs, inputs, _ = hats.shape
    b = torch.zeros(inputs, outputs, dtype=hats.dtype)
    for _ in range(rounds):
        c = b.softmax(1)
        v = torch.stack([squash(sum(c[i, j] * hats[j, i] for i in range(inputs))) for j in range(outputs)])
        b = b + torch.tensor([[hats[j, i] @ v[j] for j in range(outputs)] for i in range(inputs)], dtype=hats.dtype)
    return v


@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_routing_is_procedure_1(rounds: int) -> None:
    hats = torch.randn(2, 5, 7, 3, dtype=torch.float64)
    v, shares = route(hats, rounds)
    assert_close(v, torch.stack([by_procedure_1(image, rounds) for image in hats]), relative=1e-12)
    assert torch.allclose(shares.sum(1), torch.ones_like(shares[:, 0]))  # each capsule below divides itself
    if rounds == 1:
        assert torch.allclose(shares, torch.full_like(shares, 1 / 5))


def test_routing_sends_to_where_votes_agree() -> None:
    hats = torch.zeros(1, 2, 6, 3)
    hats[0, 0, :, 0] = 2.0  # all six agree about the first
    hats[0, 1] = 2 * nn.functional.normalize(torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), dim=-1)
    _, shares = route(hats, 3)
    assert (shares[0, 0] > 0.6).all()
    _, leaky = route(hats, 3, leaky=True)
    assert (leaky.sum(1) < 1).all()
    with pytest.raises(UsageError, match="1 round or more"):
        route(hats, 0)


def test_gradients_through_all_rounds_or_the_last() -> None:
    hats = torch.randn(2, 3, 5, 4, dtype=torch.float64, requires_grad=True)
    found = []
    for gradients in ("all", "last"):
        v, shares = route(hats, 3, gradients=gradients)
        (gradient,) = torch.autograd.grad(v.square().sum(), hats)
        found.append(gradient)
        s = (shares.detach()[..., None] * hats).sum(2)  # what the last round does alone
        (alone,) = torch.autograd.grad(squash(s).square().sum(), hats)
        assert torch.allclose(gradient, alone) == (gradients == "last")
    assert not torch.allclose(*found)


def test_margin_loss() -> None:
    lengths = torch.tensor([[0.95, 0.05, 0.3], [0.5, 0.7, 0.1]])
    present = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]])
    expected = [0.5 * 0.2**2, 0.5 * 0.4**2 + 0.2**2 + 0.8**2]
    assert margin_loss(lengths, present).tolist() == pytest.approx(expected, rel=1e-5)


def test_a_primary_capsule_is_channels_at_one_place() -> None:
    model = small()
    x = torch.randn(2, 1, 13, 11)
    maps = model.primary(model.conv1(x).relu())  # [2, 18, 4, 3]
    u = model.primary_capsules(x)
    assert u.shape == (2, 3 * 4 * 3, 6)
    assert torch.allclose(u[1, 12 + 3 * 2 + 1], squash(maps[1, 6:12, 2, 1]), atol=1e-6)
    mixed = small(grouping="mixed").primary_capsules(x)
    assert torch.allclose(mixed[1, 0], squash(maps[1].flatten()[:6]), atol=1e-6) and not torch.allclose(mixed, u)
    with pytest.raises(UsageError, match=r"\[1, 12, 11\]: each place has its matrices, for \[1, 13, 11\]"):
        model(torch.randn(2, 1, 12, 11))
    with pytest.raises(UsageError, match=r"channels .* is 3, wanted 1"):
        model(torch.randn(2, 3, 13, 11))
    with pytest.raises(UsageError, match="too small"):
        CapsNet(**{**SMALL, "image": (1, 5, 5)})


def test_features_are_the_layers_outputs() -> None:
    model, seen = small(), []
    model.conv1.register_forward_hook(lambda m, i, o: seen.append(o.relu()))
    model.primary.register_forward_hook(lambda m, i, o: seen.append(o))
    x = torch.randn(2, 1, 13, 11)
    first, capsules = model.features(x)
    assert torch.equal(first, seen[0])
    assert torch.equal(capsules, squash(seen[1].unflatten(1, (3, 6)).permute(0, 1, 3, 4, 2).reshape(2, -1, 6)))


def test_reconstruction_sees_one_capsule() -> None:
    model = small(decoder=(9, 10))
    capsules = model(torch.randn(3, 1, 13, 11))
    label = torch.tensor([4, 0, 2])
    picture = model.reconstruct(capsules, label)
    assert picture.shape == (3, 1, 13, 11) and picture.min() >= 0 and picture.max() <= 1
    others = capsules + torch.randn_like(capsules) * (1 - nn.functional.one_hot(label, 5))[..., None]
    assert torch.equal(model.reconstruct(others, label), picture)
    longest = capsules.norm(dim=-1).argmax(1)
    assert torch.equal(model.reconstruct(capsules), model.reconstruct(capsules, longest))
    with pytest.raises(UsageError, match="no decoder"):
        small().reconstruct(capsules)


def test_perturbations_move_one_component() -> None:
    model = small(decoder=(9, 10))
    (capsules,) = model(torch.randn(1, 1, 13, 11))
    pictures = perturbations(model, capsules, reach=0.3, steps=5)
    assert pictures.shape == (7, 5, 1, 13, 11)
    assert torch.allclose(pictures[3, 2], model.reconstruct(capsules[None])[0], atol=1e-6)
    moved_by_hand = capsules.clone()
    label = capsules.norm(dim=-1).argmax()
    moved_by_hand[label, 6] += 0.3
    assert torch.allclose(pictures[6, 4], model.reconstruct(moved_by_hand[None], label[None])[0], atol=1e-6)


def test_losses_and_errors() -> None:
    model = small(decoder=(9, 10))
    system = Capsules(model, reconstruction=0.01, scale=0.5)
    x, label = torch.rand(3, 1, 13, 11), torch.tensor([[4, 1], [0, 2], [2, 3]])
    parts = torch.rand(3, 2, 1, 13, 11)
    loss, values = system({"image": x, "label": label, "parts": parts}, "loss")
    capsules = model(x)
    lengths = capsules.norm(dim=-1)
    present = torch.zeros(3, 5).scatter(1, label, 1.0)
    squares = sum((model.reconstruct(capsules, label[:, k]) - parts[:, k]).square().flatten(1).sum(1) for k in (0, 1))
    expected = 0.5 * margin_loss(lengths, present).mean() + 0.01 * squares.mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    best = lengths.topk(2).indices.sort(1).values
    assert values["error"].item() == pytest.approx((best != label.sort(1).values).any(1).float().mean().item())
    single = {"image": x, "label": lengths.argmax(1)}
    system.update(single)
    system.update({"image": x[:1], "label": (lengths.argmax(1)[:1] + 1) % 5})
    assert system.compute()["error"] == pytest.approx(0.25)
    with pytest.raises(UsageError, match="nothing to evaluate"):
        system.compute()


def test_baseline_and_gradients() -> None:
    cnn = BaselineCNN(5, 1, (9, 13), (4, 6, 7), (11, 10), kernel=3, stride=2)
    assert cnn(torch.randn(2, 1, 9, 13)).shape == (2, 5)
    model = CapsNet(**SMALL, decoder=(9, 10), authors=True)
    batch = {"image": torch.rand(4, 1, 13, 11), "label": torch.tensor([0, 1, 2, 3])}
    Capsules(model)(batch, "loss")[0].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


# Data ---------------------------------------------------------------------------------------------


def test_moved_digits() -> None:
    rows = np.arange(40)
    train, test = moved("train"), moved("test")
    assert len(train) == 1347 and train.classes == tuple("0123456789")
    plain = train.source.batch(rows, Draws(0, 0, rows))["image"]
    places = set()
    for epoch in (0, 1):
        images = train.batch(rows, Draws(0, epoch, rows))["image"]
        assert images.shape == (40, 1, 12, 12)
        windows = images.unfold(2, 8, 1).unfold(3, 8, 1)[:, 0]  # [40, 5, 5, 8, 8]
        found = (windows == plain[:, 0, None, None]).all(-1).all(-1)
        assert found.flatten(1).any(1).all()
        places |= {tuple(place) for place in found.nonzero()[:, 1:].tolist()}
    assert len(places) > 15
    fixed = [test.batch(rows, Draws(0, epoch, rows))["image"] for epoch in (0, 1)]
    assert torch.equal(*fixed)
    turned = moved("test", affine=True).batch(rows, Draws(0, 0, rows))["image"]
    assert turned.shape == fixed[0].shape and not torch.allclose(turned, fixed[0])
    with pytest.raises(UsageError, match="do not fit on a canvas of 7"):
        moved("train", canvas=7).batch(rows, Draws(0, 0, rows))


def test_overlapping_digits() -> None:
    rows = np.arange(30)
    data = overlapping("train")
    batch = data.batch(rows, Draws(0, 0, rows))
    assert batch["label"].shape == (30, 2) and (batch["label"][:, 0] != batch["label"][:, 1]).all()
    assert batch["parts"].shape == (30, 2, 1, 12, 12)
    assert torch.equal(batch["image"], batch["parts"].sum(1).clamp(max=1))
    assert not torch.equal(batch["label"], data.batch(rows, Draws(0, 1, rows))["label"])
    alone = data.batch(rows[7:8], Draws(0, 0, rows[7:8]))
    assert torch.equal(alone["image"][0], batch["image"][7])
    test = overlapping("test")
    assert torch.equal(*(test.batch(rows, Draws(0, epoch, rows))["image"] for epoch in (0, 1)))


def test_train_and_predict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for data, name in (("capsnet.moved", "one"), ("capsnet.overlapping", "two")):
        words = ["--data", data, "--steps", "3", "--batch-size", "8"]
        assert main(["train", "capsnet", "--out", str(tmp_path / name), *words]) in (0, 1)
    digit = moved("test").batch(np.arange(2), Draws(0, 0, range(2)))["image"]
    for number, image in enumerate(digit):
        Image.fromarray((image[0] * 255).byte().numpy()).save(tmp_path / f"{number}.png")
    capsys.readouterr()
    files = [str(tmp_path / f"{number}.png") for number in range(2)]
    pictures = {"--out": tmp_path / "x" / "out.png", "--perturb": tmp_path / "x" / "perturb.png"}
    words = [str(word) for pair in pictures.items() for word in pair]
    assert main(["predict", "capsnet", *files, "--weights", str(tmp_path / "one"), "--threshold", "0", *words]) == 0
    assert all(path.exists() for path in pictures.values()) and "there" in capsys.readouterr().out
    model = jingdu.create("capsnet", weights=tmp_path / "one")
    (result,) = capsnet.predict(model, files[:1], threshold=2)
    assert result.data["present"] == 0 and len(result.data["classes"]) == 10
    assert len(result.data["classes"][0]["pose"]) == 16
    with pytest.raises(UsageError, match="no inputs"):
        list(capsnet.predict(model, []))
