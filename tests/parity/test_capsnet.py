"""CapsNet against plain modules with the names of XifengGuo/CapsNet-Pytorch, and against the authors' code's arithmetic.

The port itself runs on a CPU once its .cuda() calls are gone; by hand, on 2026-11-26, it gave what `Plain` gives.
"""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import jingdu
from benchmarks.capsnet import Plain, pair
from jingdu.errors import Refused
from jingdu.papers.cnn.capsnet import Capsules, margin_loss
from tests.parity.references import assert_close, randomise_


def test_same_capsules_and_pictures(tmp_path: Path) -> None:
    theirs = randomise_(Plain(7), torch.Generator().manual_seed(3)).eval()
    torch.save(theirs.state_dict(), tmp_path / "epoch1.pkl")
    (tmp_path / "epoch1.pkl").rename(tmp_path / "m.pth")
    ours = jingdu.create("xifengguo/capsnet", weights=tmp_path / "m.pth", num_classes=7)
    for batch in (1, 5):
        x = torch.rand(batch, 1, 28, 28, generator=torch.Generator().manual_seed(batch))
        with torch.inference_mode():
            v, lengths, picture = theirs(x)
            found = ours(x)
            print(f"largest relative difference {assert_close(found, v):.1e}")
            assert_close(found.norm(dim=-1), lengths)
            assert_close(ours.reconstruct(found), picture)
    with pytest.raises(Refused, match=r"decoder\.0"):
        jingdu.create("capsnet_mnist_with_decoder", weights=tmp_path / "m.pth", num_classes=7, decoder=None)


def test_gradients_of_both_losses() -> None:
    ours, theirs = (model.double() for model in pair(5))
    x, label = torch.rand(3, 1, 28, 28, dtype=torch.float64), torch.tensor([4, 0, 2])
    hot = F.one_hot(label, 5).double()
    loss, _ = Capsules(ours)({"image": x, "label": label}, "loss")
    _, lengths, picture = theirs(x, hot)
    expected = margin_loss(lengths, hot).mean() + 0.0005 * 784 * F.mse_loss(picture, x)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    loss.backward()
    expected.backward()
    names = {"primary": "primarycaps.conv2d", "weight": "digitcaps.weight"}
    gradients = dict(theirs.named_parameters())
    for key, parameter in ours.named_parameters():
        first, dot, rest = key.partition(".")
        # Their guard of the norm adds 1e-8 to it.
        assert_close(parameter.grad, gradients[names.get(first, first) + dot + rest].grad, relative=1e-5)


def authors_capsules(weights: dict[str, Tensor], x: Tensor, rounds: int, leaky: bool) -> Tensor:
    """layers.py of github.com/Sarasra/models, research/capsules: conv_slim_capsule with one round, then capsule."""

    def squash(s: Tensor) -> Tensor:
        norm = s.norm(dim=-1, keepdim=True)
        return s / norm * (norm**2 / (1 + norm**2))

    def shares(logits: Tensor) -> Tensor:
        """[batch, input, output]; with leaky a column of zeros stands before the others."""
        if not leaky:
            return logits.softmax(2)
        return torch.cat([torch.zeros_like(logits[:, :, :1]), logits], 2).softmax(2)[:, :, 1:]

    def update(hats: Tensor, biases: Tensor, rounds: int) -> Tensor:
        """hats [batch, input, output, atoms]."""
        logits = torch.zeros_like(hats[..., 0])
        for _ in range(rounds):
            v = squash((shares(logits)[..., None] * hats).sum(1) + biases)
            logits = logits + (hats * v[:, None]).sum(3)
        return v

    x = F.conv2d(x, weights["conv1.weight"], weights["conv1.bias"]).relu()
    maps = F.conv2d(x, weights["primary.weight"], stride=2)  # [batch, 32 * 8, 6, 6]
    batch, _, height, width = maps.shape
    hats = maps.view(batch, 32, 8, height, width).permute(0, 3, 4, 1, 2).reshape(-1, 1, 32, 8)
    first = update(hats, weights["primary.bias"].view(32, 8), 1).view(batch, height, width, 32, 8)
    u = first.permute(0, 3, 1, 2, 4).reshape(batch, -1, 8)
    hats = torch.einsum("bia,oica->bioc", u, weights["weight"])
    return update(hats, weights["bias"], rounds)


@pytest.mark.parametrize("leaky, rounds", [(False, 3), (True, 2)])
def test_the_authors_arithmetic(leaky: bool, rounds: int) -> None:
    ours = jingdu.create("capsnet_mnist_routing_bias", leaky=leaky, rounds=rounds, conv=(12, 9), num_classes=7)
    randomise_(ours, torch.Generator().manual_seed(4)).double()
    x = torch.rand(3, 1, 28, 28, dtype=torch.float64)
    expected = authors_capsules(ours.state_dict(), x, rounds, leaky)
    assert_close(ours(x), expected, relative=1e-9)
