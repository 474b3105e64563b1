"""ResNet's own parts."""

import pytest
import torch
from torch import nn

import jingdu
from jingdu.data.draws import Draws
from jingdu.papers.cnn.resnet import BasicBlock, Bottleneck, ResNet, Shortcut, pad_crop, subsample_and_pad


def test_option_a_subsamples_and_appends_zeros() -> None:
    x = torch.arange(2 * 3 * 5 * 7, dtype=torch.float32).view(2, 3, 5, 7)
    y = subsample_and_pad(x, 5, 2)
    assert y.shape == (2, 5, 3, 4)
    assert torch.equal(y[:, :3], x[:, :, ::2, ::2]) and not y[:, 3:].any()


@pytest.mark.parametrize("option, projections", [("A", 0), ("B", 3), ("C", 8)])
def test_shortcut_options(option: str, projections: int) -> None:
    model = jingdu.create("resnet18", width=4, shortcut=option)
    assert sum(isinstance(m, Shortcut) for m in model.modules()) == projections
    assert model(torch.randn(2, 3, 37, 41)).shape == (2, 1000)


def test_a_block_of_zero_weights_is_the_identity() -> None:
    block = BasicBlock(6, 6, shortcut="A").eval()
    nn.init.zeros_(block.conv2.weight)
    x = torch.rand(2, 6, 5, 7)
    assert torch.equal(block(x), x)
    plain = BasicBlock(6, 6, residual=False).eval()
    nn.init.zeros_(plain.conv2.weight)
    assert not plain(x).any()


def test_zero_last_gamma_starts_as_identity() -> None:
    model = ResNet("bottleneck", (2,), width=4)
    model.initialise(zero_last_gamma=True)
    assert all(not m.bn3.weight.any() for m in model.modules() if isinstance(m, Bottleneck))


def test_stride_position() -> None:
    v15, v1 = (Bottleneck(8, 4, stride=2, stride_on=on) for on in ("3x3", "1x1"))
    assert (v15.conv1.stride, v15.conv2.stride) == ((1, 1), (2, 2))
    assert (v1.conv1.stride, v1.conv2.stride) == ((2, 2), (1, 1))
    x = torch.rand(1, 8, 9, 9)
    v1.load_state_dict(v15.state_dict())
    assert not torch.allclose(v15.eval()(x), v1.eval()(x))


def test_he_initialisation() -> None:
    conv = ResNet("basic", (1,), width=64).conv2_x[0].conv1
    assert conv.weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.03)


def test_features_are_the_stages_outputs() -> None:
    model = jingdu.create("resnet50", width=8).eval()
    seen: list[torch.Tensor] = []
    for name in model.stages:
        getattr(model, name).register_forward_hook(lambda m, i, o: seen.append(o))
    taps = model.features(torch.randn(2, 3, 64, 96))
    assert all(torch.equal(a, b) for a, b in zip(taps, seen, strict=True))
    assert [tuple(t.shape[1:]) for t in taps] == [(32, 16, 24), (64, 8, 12), (128, 4, 6), (256, 2, 3)]
    assert model.channels == [32, 64, 128, 256]


@pytest.mark.parametrize("stride, last", [(32, 2), (16, 4), (8, 8)])
def test_output_stride_keeps_weights_and_resolution(stride: int, last: int) -> None:
    model = jingdu.create("resnet50", width=4, output_stride=stride)
    assert model.features(torch.randn(1, 3, 64, 64))[-1].shape[-1] == last
    model.load_state_dict(jingdu.create("resnet50", width=4).state_dict())
    with pytest.raises(ValueError, match="output_stride"):
        jingdu.create("resnet50", width=4, output_stride=7)


def test_plain_twins_have_the_same_layers() -> None:
    plain, residual = jingdu.create("resnet_plain20_cifar"), jingdu.create("resnet20_cifar")
    assert {k: v.shape for k, v in plain.state_dict().items()} == {k: v.shape for k, v in residual.state_dict().items()}
    residual.load_state_dict(plain.state_dict())
    x = torch.randn(3, 3, 32, 32)
    assert not torch.allclose(plain.eval()(x), residual.eval()(x))


def test_every_parameter_gets_a_gradient() -> None:
    model = jingdu.create("resnet20_cifar")
    model(torch.randn(5, 3, 32, 32)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_pad_crop_cuts_windows_of_the_padded_image() -> None:
    images = torch.rand(6, 2, 5, 7)
    cut = pad_crop(images, Draws(1, 2, range(6)), padding=2)
    padded = nn.functional.pad(images, (2,) * 4)
    for i in range(6):
        windows = padded[i].unfold(1, 5, 1).unfold(2, 7, 1)  # [channel, y, x, 5, 7]
        assert (windows == cut[i][:, None, None]).all(dim=(0, 3, 4)).any()
