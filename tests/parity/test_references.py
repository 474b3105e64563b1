import pytest
import torch
from torch import nn

from tests.parity.references import assert_close, import_timm, import_torchvision, import_transformers, randomise_


def test_the_references_can_be_imported_and_used():
    torchvision = import_torchvision()
    assert import_torchvision() is torchvision
    x = torch.ones(1, 3, 64, 64)
    assert torchvision.models.resnet18(weights=None).eval()(x).shape == (1, 1000)
    assert import_timm().create_model("resnet18", num_classes=7).eval()(x).shape == (1, 7)
    assert import_transformers().ResNetConfig(depths=[1, 2]).depths == [1, 2]


def test_random_networks_stay_finite_and_see_their_input():
    generator = torch.Generator().manual_seed(0)
    models = import_torchvision().models
    for network in (models.resnet50(weights=None), models.vgg11_bn(weights=None), models.vgg19(weights=None)):
        randomise_(network, generator).eval()
        with torch.no_grad():
            a, b = network(torch.randn(2, 3, 64, 64, generator=generator))
        assert torch.isfinite(a).all() and (a - b).abs().max() > 1e-3 * a.abs().max()


def test_every_tensor_is_random_and_variances_are_positive():
    module = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Linear(5, 7), nn.LayerNorm(7))
    module.register_buffer("positions", torch.arange(3.0))
    randomise_(module, torch.Generator().manual_seed(1))
    state = module.state_dict()
    values = [x.flatten() for name, x in state.items() if "tracked" not in name and name != "positions"]
    assert all(x.unique().numel() == x.numel() for x in values)
    assert (state["1.running_var"] > 0).all() and (state["1.running_mean"] != 0).all()
    assert state["positions"].tolist() == [0, 1, 2]
    again = randomise_(module, torch.Generator().manual_seed(1)).state_dict()
    assert all(torch.equal(x, again[name]) for name, x in state.items())


def test_assert_close_is_relative_to_the_largest_value():
    reference = torch.tensor([[100.0, 1.0, -3.0]])
    assert assert_close(reference + 0.005, reference) == pytest.approx(5e-5, rel=1e-2)
    with pytest.raises(AssertionError, match=r"2\.00e-02 exceeds 1e-04: at \(0, 1\) ours 3, reference 1"):
        assert_close(torch.tensor([[100.0, 3.0, -3.0]]), reference)


@pytest.mark.parametrize(
    ("ours", "reference", "says"),
    [
        (torch.ones(2, 3), torch.ones(3, 2), "shapes differ"),
        (torch.tensor([1.0, float("nan")]), torch.ones(2), "ours is not finite in 1 of 2"),
        (torch.ones(2), torch.tensor([1.0, float("inf")]), "reference is not finite"),
        (torch.zeros(2), torch.zeros(2), "zero everywhere"),
        (torch.ones(0), torch.ones(0), "empty"),
    ],
)
def test_assert_close_refuses_comparisons_that_prove_nothing(ours, reference, says):
    with pytest.raises(AssertionError, match=says):
        assert_close(ours, reference)
