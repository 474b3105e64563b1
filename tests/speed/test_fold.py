"""Folded batch norms: exact, only where they may be, and the original untouched."""

import copy

import pytest
import torch
from torch import Tensor, nn

import jingdu
from jingdu.speed.fold import fold_batch_norms, norm_pairs
from jingdu.speed.references import randomise_


def rms(network: nn.Module) -> nn.Module:
    return randomise_(network, torch.Generator().manual_seed(2)).double().eval()


def folds(network: nn.Module, x: Tensor, count: int) -> nn.Module:
    """Fold, check the number, the outputs in float64, and that the original is as it was."""
    before = copy.deepcopy(network.state_dict())
    folded, found = fold_batch_norms(network, (x,))
    assert found == count
    norms = sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in network.modules())
    assert sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in folded.modules()) == norms - count
    with torch.no_grad():
        torch.testing.assert_close(folded(x), network(x), rtol=1e-9, atol=1e-9)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    return folded


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("layers", "shape", "count"),
    [
        ((nn.Conv2d(3, 5, 3, bias=False), nn.BatchNorm2d(5), nn.ReLU()), (2, 3, 7, 9), 1),
        ((nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6, affine=False)), (2, 4, 7, 9), 1),
        ((nn.Conv1d(3, 5, 2), nn.BatchNorm1d(5, eps=0.3)), (2, 3, 7), 1),
        ((nn.Conv3d(3, 5, 2), nn.BatchNorm3d(5)), (2, 3, 4, 5, 6), 1),
        ((nn.ConvTranspose2d(3, 5, 2, stride=2), nn.BatchNorm2d(5)), (2, 3, 4, 5), 1),
        ((nn.Linear(3, 5), nn.BatchNorm1d(5)), (4, 3), 1),
        # Not the layer's channels, no statistics, something between, nothing before.
        ((nn.ConvTranspose2d(4, 6, 2, groups=2), nn.BatchNorm2d(6)), (2, 4, 5, 3), 0),
        ((nn.Linear(3, 5), nn.BatchNorm1d(4)), (2, 4, 3), 0),
        ((nn.Conv2d(3, 5, 1), nn.BatchNorm2d(5, track_running_stats=False)), (2, 3, 7, 9), 0),
        ((nn.Conv2d(3, 5, 1), nn.ReLU(), nn.BatchNorm2d(5)), (2, 3, 7, 9), 0),
        ((nn.BatchNorm2d(3), nn.Conv2d(3, 5, 1)), (2, 3, 7, 9), 0),
    ],
)
def test_pairs(layers: tuple[nn.Module, ...], shape: tuple[int, ...], count: int) -> None:
    folds(rms(nn.Sequential(*layers)), noise(*shape), count)


class Shared(nn.Module):
    """A convolution whose output is looked at, added, assigned, or given back besides its norm."""

    def __init__(self, use: str):
        super().__init__()
        self.conv, self.bn, self.use = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), use

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        y = self.conv(x)
        if self.use == "shape":
            return self.bn(y).reshape(y.shape[0], -1, y.size(3))
        if self.use == "assigned":
            x = x.clone()
            x[:] = y
            return self.bn(y) + x
        if self.use == "twice":
            return self.conv(self.bn(y))
        z = self.bn(y)
        return {"added": lambda: z + y, "returned": lambda: (z, y), "changed": lambda: z + y.relu_()}[self.use]()


@pytest.mark.parametrize(
    ("use", "count"), [("shape", 1), ("added", 0), ("assigned", 0), ("twice", 0), ("returned", 0), ("changed", 0)]
)
def test_an_output_that_something_else_sees_is_kept(use: str, count: int) -> None:
    folds(rms(Shared(use)), noise(2, 3, 5, 7), count)


def test_every_norm_of_a_resnet() -> None:
    network = rms(jingdu.create("resnet20_cifar", width=3, shortcut="B"))
    folded = folds(network, noise(5, 3, 16, 12), 21)
    assert not any(p.requires_grad for p in folded.parameters()) and all(p.requires_grad for p in network.parameters())


def test_a_network_in_training_is_folded_as_it_will_be_in_evaluation() -> None:
    network = rms(nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5))).train()
    folded, _ = fold_batch_norms(network, (x := noise(2, 3, 7, 9),))
    assert network.training and network[1].num_batches_tracked == 0
    torch.testing.assert_close(folded(x), network.eval()(x), rtol=1e-9, atol=1e-9)


def test_hooked_and_derived_layers_stay() -> None:
    class Doubled(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    hooked = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5)).eval()
    hooked[0].register_forward_hook(lambda *_: None)
    x = torch.randn(2, 3, 7, 9)
    assert norm_pairs(hooked, (x,)) == []
    assert norm_pairs(nn.Sequential(Doubled(3, 5, 3), nn.BatchNorm2d(5)).eval(), (x,)) == []
    assert len(hooked[0]._forward_hooks) == 1
