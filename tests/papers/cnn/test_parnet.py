"""ParNet's own parts."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

import jingdu
from jingdu.errors import UsageError
from jingdu.papers.cnn.parnet import Block, Fusion, ParNet, depth, fuse, fused_kernel, interleave, shuffle, spread
from tests.parity.references import randomise_

SMALL = {"widths": (5, 6, 8, 14), "num_classes": 3}


def small(**options: object) -> ParNet:
    model = jingdu.create("parnet_s_train", **{**SMALL, **options})
    return randomise_(model, torch.Generator().manual_seed(0)).eval()


def test_channels_change_places() -> None:
    x = torch.arange(6.0).view(1, 6, 1, 1)
    assert shuffle(x, 2).flatten().tolist() == [0, 3, 1, 4, 2, 5]
    assert interleave(x[:, :3], x[:, 3:]).flatten().tolist() == [0, 3, 1, 4, 2, 5]


def test_a_block_is_its_formula() -> None:
    block = randomise_(Block(7, 7), torch.Generator().manual_seed(1)).eval()
    x = torch.randn(2, 7, 5, 11)
    z = block.skip(x)
    y = block.dense.bn(F.conv2d(x, block.dense.conv.weight, padding=1)) + block.point.bn(
        F.conv2d(x, block.point.conv.weight)
    )
    gate = torch.sigmoid(z.mean((2, 3)) @ block.squeeze.weight[:, :, 0, 0].T)[:, :, None, None]
    assert torch.allclose(block(x), F.silu(y + z * gate), atol=1e-5)
    relu = Block(7, 7, activation="relu").eval()
    relu.load_state_dict(block.state_dict())
    assert torch.allclose(relu(x), F.relu(y + z * gate), atol=1e-5)


def test_a_downsampling_block_is_its_formula() -> None:
    block = randomise_(Block(6, 8, 2, groups=2), torch.Generator().manual_seed(1)).eval()
    x = torch.randn(3, 6, 10, 14)
    y = block.dense(x) + block.pooled.bn(F.conv2d(F.avg_pool2d(x, 2), block.pooled.conv.weight, groups=2))
    gate = 2 * torch.sigmoid(F.conv2d(x.mean((2, 3), keepdim=True), block.squeeze.weight, groups=2))
    assert torch.allclose(block(x), shuffle(F.silu(y * gate), 2), atol=1e-5)
    assert Block(6, 8, sse=False).squeeze is None and block.skip is None


@pytest.mark.parametrize("inputs, outputs, stride, groups", [(6, 6, 1, 1), (6, 10, 1, 2), (6, 8, 2, 1), (6, 8, 2, 2)])
def test_fused_kernels_are_exact(inputs: int, outputs: int, stride: int, groups: int) -> None:
    block = randomise_(Block(inputs, outputs, stride, groups), torch.Generator().manual_seed(2)).double().eval()
    x = torch.randn(2, inputs, 10, 14, dtype=torch.float64)
    kernel, bias = fused_kernel(block)
    apart = block.dense(x) + (block.point(x) if stride == 1 else block.pooled(F.avg_pool2d(x, 2)))
    assert torch.allclose(F.conv2d(x, kernel, bias, stride, 1, groups=groups), apart, atol=1e-12)


def test_the_fused_network_is_the_same_and_loads() -> None:
    model = small()
    x = torch.randn(3, 3, 64, 96)
    quick = fuse(model)
    assert torch.allclose(quick(x), model(x), atol=1e-4)
    assert sum(isinstance(m, nn.Conv2d) for m in quick.modules()) < 0.7 * sum(
        isinstance(m, nn.Conv2d) for m in model.modules()
    )
    built = jingdu.create("parnet_s", **SMALL)
    built.load_state_dict(quick.state_dict())
    assert torch.equal(built.eval()(x), quick(x)) and torch.equal(fuse(quick)(x), quick(x))
    assert (
        model.training is False
        and isinstance(model.initial[0].dense, nn.Module)
        and hasattr(model.initial[0].dense, "bn")
    )


@pytest.mark.parametrize("name", ["parnet_s", "parnet_s_train", "parnet_scenes"])
def test_depth_is_twelve(name: str) -> None:
    model = jingdu.create(name, widths=(4, 6, 8, 10)).eval()
    assert depth(model, torch.randn(1, 3, 32, 32)) == 12


def test_depth_of_networks_that_are_called_after_it() -> None:
    assert depth(jingdu.create("resnet50", width=4), torch.randn(2, 3, 64, 64)) == 50
    assert depth(jingdu.create("resnet18", width=4), torch.randn(2, 3, 64, 64)) == 18
    assert depth(jingdu.create("vgg11", widths=(4,) * 7), torch.randn(2, 3, 64, 64)) == 11


def test_features_are_the_streams_outputs() -> None:
    model, seen = small(), []
    for stream in model.streams:
        stream.register_forward_hook(lambda m, i, o: seen.append(o))
    model.last.register_forward_hook(lambda m, i, o: seen.append(o))
    taps = model.features(torch.randn(2, 3, 64, 96))
    assert all(torch.equal(a, b) for a, b in zip(taps, seen, strict=True)) and len(taps) == 4
    assert [tuple(t.shape[1:]) for t in taps] == [(5, 16, 24), (6, 8, 12), (8, 4, 6), (14, 2, 3)]
    assert model.channels == [5, 6, 8, 14]


@pytest.mark.parametrize("streams, taps", [(1, 2), (2, 3)])
def test_fewer_streams(streams: int, taps: int) -> None:
    model = small(streams=streams)
    assert len(model.features(torch.randn(2, 3, 32, 64))) == taps and model(torch.randn(2, 3, 32, 64)).shape == (2, 3)
    assert torch.allclose(fuse(model)(x := torch.randn(1, 3, 64, 32)), model(x), atol=1e-4)
    assert sum(len(stream) > 0 for stream in model.streams) == streams
    assert len(list(m for m in model.modules() if isinstance(m, Fusion))) == streams - 1


def test_every_parameter_gets_a_gradient() -> None:
    model = jingdu.create("parnet_scenes")
    model(torch.randn(4, 3, 32, 32)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_wrong_pictures_and_arguments() -> None:
    with pytest.raises(UsageError, match="multiples of 32"):
        small()(torch.randn(1, 3, 64, 65))
    with pytest.raises(UsageError, match="channels"):
        small()(torch.randn(1, 1, 64, 64))
    with pytest.raises(UsageError, match="4 streams"):
        small(streams=4)
    with pytest.raises(UsageError, match="as many devices"):
        spread(small(), ["cpu"])


def test_spread_over_devices_is_the_same() -> None:
    """On one processor there is one device: it is asked by three names."""
    model, x = small(), torch.randn(2, 3, 32, 64)
    before = model(x)
    model.parallel = True  # which is for GPUs
    assert torch.equal(spread(model, ["cpu", torch.device("cpu"), "cpu:0"])(x), before)


def test_predict_is_by_the_fused_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (40, 52), (200, 30, 60)).save(tmp_path / "a.png")
    jingdu.train("parnet", out=tmp_path / "run", steps=2, batch_size=4, quiet=True,
                 data="scenes(fields=('image', 'label'), count=40, test_count=20)")  # fmt: skip
    asked: list[Tensor] = []
    monkeypatch.setattr(ParNet, "forward", lambda self, x, old=ParNet.forward: asked.append(self) or old(self, x))
    (found,) = jingdu.predict("parnet", [str(tmp_path / "a.png")], tmp_path / "run", top=2)
    assert len(found.data["top"]) == 2
    assert isinstance(asked[-1].initial[0].dense, nn.Conv2d)
