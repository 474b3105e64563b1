"""GAN's losses against torch's binary cross-entropy, its networks against a forward pass written in numpy, its window
against scikit-learn's kernel density."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import jingdu
from jingdu.papers.generative.gan import ParzenWindow, discriminator_loss, generator_loss


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_discriminator_loss(smoothing: float) -> None:
    """In float64, with gradients; the two batches differ in size."""
    generator = torch.Generator().manual_seed(1)
    real, fake = (5 * torch.randn(n, generator=generator, dtype=torch.float64) for n in (13, 7))
    ours, theirs = ([x.clone().requires_grad_() for x in (real, fake)] for _ in range(2))
    a = discriminator_loss(*ours, smoothing)
    bce = F.binary_cross_entropy_with_logits
    b = bce(theirs[0], torch.full_like(real, 1 - smoothing)) + bce(theirs[1], torch.zeros_like(fake))
    a.backward()
    b.backward()
    assert torch.allclose(a, b, rtol=1e-9, atol=0)
    assert all(torch.allclose(x.grad, y.grad, rtol=1e-9, atol=1e-15) for x, y in zip(ours, theirs, strict=True))


def test_generator_losses() -> None:
    fake = 5 * torch.randn(17, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for kind, sign, target in (("non-saturating", 1, 1.0), ("minimax", -1, 0.0)):
        ours, theirs = (fake.clone().requires_grad_() for _ in range(2))
        a = generator_loss(ours, kind)
        b = sign * F.binary_cross_entropy_with_logits(theirs, torch.full_like(fake, target))
        a.backward()
        b.backward()
        assert torch.allclose(a, b, rtol=1e-9) and torch.allclose(ours.grad, theirs.grad, rtol=1e-9, atol=1e-15)


def _random(name: str, **options: Any) -> tuple[torch.nn.Module, dict[str, np.ndarray]]:
    network = jingdu.create(name, **options).double().eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in network.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=generator, dtype=torch.float64))
    return network, {key: value.numpy() for key, value in network.state_dict().items()}


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def _maxout(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, pieces: int) -> np.ndarray:
    """Unit u's pieces are rows u * pieces .. u * pieces + pieces - 1."""
    units = [(x @ weight[u : u + pieces].T + bias[u : u + pieces]).max(1) for u in range(0, len(weight), pieces)]
    return np.stack(units, 1)


@pytest.mark.parametrize(("name", "batch"), [("gan_digits", 3), ("gan_mnist", 1)])
def test_dense_pair(name: str, batch: int) -> None:
    network, w = _random(f"{name}_generator")
    z = np.random.default_rng(0).normal(size=(batch, network.noise))
    h = z
    for i in range(len(network.hidden)):
        h = np.maximum(h @ w[f"hidden.{i}.weight"].T + w[f"hidden.{i}.bias"], 0)
    expected = _sigmoid(h @ w["output.weight"].T + w["output.bias"]).reshape(batch, *network.image)
    assert np.allclose(network(torch.from_numpy(z)).detach().numpy(), expected, rtol=1e-9)

    network, w = _random(f"{name}_discriminator")
    h = expected.reshape(batch, -1)
    for i in range(2):
        h = _maxout(h, w[f"hidden.{i}.linear.weight"], w[f"hidden.{i}.linear.bias"], 5)
    logits = (h @ w["logit.weight"].T + w["logit.bias"])[:, 0]
    assert np.allclose(network(torch.from_numpy(expected)).detach().numpy(), logits, rtol=1e-9)


def _convolve(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, padding: int) -> np.ndarray:
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    windows = np.lib.stride_tricks.sliding_window_view(x, weight.shape[2:], axis=(2, 3))
    return np.einsum("bchwij,ocij->bohw", windows, weight) + bias[:, None, None]


def _pool(x: np.ndarray, size: int) -> np.ndarray:
    """Stride 2; windows that reach over the edge stay (cuda-convnet)."""
    out = math.ceil((x.shape[2] - size) / 2) + 1
    rows = [[x[:, :, 2 * i : 2 * i + size, 2 * j : 2 * j + size].max((2, 3)) for j in range(out)] for i in range(out)]
    return np.array(rows).transpose(2, 3, 0, 1)


def test_convolutional_pair() -> None:
    network, w = _random("gan_cifar_generator", hidden=(12, 20), maps=5, grid=2, noise=7)
    z = np.random.default_rng(1).normal(size=(3, 7))
    h = np.maximum(z @ w["hidden.0.weight"].T + w["hidden.0.bias"], 0)
    h = _sigmoid(h @ w["hidden.1.weight"].T + w["hidden.1.bias"]).reshape(3, 5, 2, 2)
    expected = np.zeros((3, 3, 8, 8))
    for i in range(2):
        for j in range(2):  # each map's pixel lays its kernel down, three pixels apart
            expected[:, :, 3 * i : 3 * i + 5, 3 * j : 3 * j + 5] += np.einsum(
                "bm,mcij->bcij", h[:, :, i, j], w["deconv.weight"]
            )
    expected += w["bias"]
    assert np.allclose(network(torch.from_numpy(z)).detach().numpy(), expected, rtol=1e-9)

    network, w = _random("gan_cifar_discriminator", units=(4, 3, 6, 5))
    h = x = np.random.default_rng(2).normal(size=(2, 3, 32, 32))
    for i, (padding, pool) in enumerate(((4, 4), (3, 4), (3, 2))):
        h = _convolve(h, w[f"hidden.{i}.conv.weight"], w[f"hidden.{i}.conv.bias"], padding)
        h = _pool(h.reshape(2, -1, 2, *h.shape[2:]).max(2), pool)
    assert h.shape == (2, 6, 5, 5)
    h = _maxout(h.reshape(2, -1), w["dense.linear.weight"], w["dense.linear.bias"], 5)
    logits = (h @ w["logit.weight"].T + w["logit.bias"])[:, 0]
    assert np.allclose(network(torch.from_numpy(x)).detach().numpy(), logits, rtol=1e-9)


@pytest.mark.parametrize("sigma", [0.1, 0.7])
def test_parzen_window_is_kernel_density(sigma: float) -> None:
    """Far from all samples scikit-learn's trees lose the tail: a narrow window is compared with scipy's logsumexp."""
    from scipy.spatial.distance import cdist
    from scipy.special import logsumexp
    from sklearn.neighbors import KernelDensity

    rng = np.random.default_rng(3)
    samples, x = rng.random((211, 17)), rng.random((23, 17))
    ours = ParzenWindow(torch.from_numpy(samples), sigma).log_likelihood(torch.from_numpy(x)).numpy()
    exponents = -cdist(x, samples, "sqeuclidean") / (2 * sigma**2)
    theirs = logsumexp(exponents, axis=1) - math.log(211) - 8.5 * math.log(2 * math.pi * sigma**2)
    assert np.allclose(ours, theirs, rtol=1e-9)
    if sigma > 0.5:
        assert np.allclose(ours, KernelDensity(bandwidth=sigma).fit(samples).score_samples(x), rtol=1e-9)
