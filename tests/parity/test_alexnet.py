"""AlexNet against torchvision, pytorchcv, torch's own response normalisation, and two towers in plain torch."""

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

import jingdu
from jingdu.errors import Refused
from jingdu.papers.cnn.alexnet import AlexNet, local_response_norm
from tests.parity.references import assert_close, import_torchvision, randomise_

# (height, width) for our batch sizes; five images take the layout for many.
SHAPES = [(1, 3, 224, 224), (2, 3, 193, 257), (5, 3, 65, 97)]


def noise(*shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.fixture(scope="module")
def torchvision_net() -> nn.Module:
    return randomise_(import_torchvision().models.alexnet(weights=None), torch.Generator().manual_seed(3)).eval()


@pytest.fixture(scope="module")
def ours(torchvision_net: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> AlexNet:
    path = tmp_path_factory.mktemp("weights") / "alexnet-owt.pth"
    torch.save(torchvision_net.state_dict(), path)
    model = jingdu.create("torchvision/alexnet", weights=path)
    path.unlink()  # 244 MB
    return model


# torchvision --------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_same_logits_as_torchvision(shape: tuple[int, ...], ours: AlexNet, torchvision_net: nn.Module) -> None:
    assert ours.origin.variant == "alexnet_one_weird_trick"
    with torch.inference_mode():
        assert_close(ours(noise(*shape)), torchvision_net(noise(*shape)))


def test_safetensors_and_another_number_of_classes(tmp_path: Path) -> None:
    reference = import_torchvision().models.alexnet(weights=None, num_classes=7)
    randomise_(reference, torch.Generator().manual_seed(4)).eval()
    save_file(reference.state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(Refused, match="num_classes=7"):
        jingdu.create("torchvision/alexnet", weights=tmp_path / "model.safetensors")
    model = jingdu.create("torchvision/alexnet", weights=tmp_path / "model.safetensors", num_classes=7)
    x = noise(2, 3, 193, 257)
    with torch.inference_mode():
        assert_close(model(x), reference(x))
    with pytest.raises(Refused, match="conv1"):
        jingdu.create("torchvision/alexnet", weights=tmp_path / "model.safetensors", num_classes=7, in_channels=1)


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_trains_like_torchvision(rate: float, ours: AlexNet, torchvision_net: nn.Module) -> None:
    """The same gradients; and with dropout the same outputs, as both draw the inputs of fc6 first, then those of fc7."""
    outputs = []
    for model in (ours, torchvision_net):
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = rate
        torch.manual_seed(9)
        outputs.append(model.train()(noise(2, 3, 65, 97)))
        model.eval()
    assert_close(*outputs)
    if rate:
        return
    for output in outputs:
        F.cross_entropy(output, torch.tensor([11, 503])).backward()
    for p, q in zip(ours.parameters(), torchvision_net.parameters(), strict=True):
        assert p.grad is not None and q.grad is not None
        assert_close(p.grad, q.grad)
        p.grad = q.grad = None


# pytorchcv ----------------------------------------------------------------------------------------


def test_same_logits_as_pytorchcv() -> None:
    """Its `alexnet` has the same layers on one GPU, and dropout after fc6 and fc7 as the authors' own file.

    It leaves the normalisation's alpha at what torch divides by five: the paper's is put in its place.
    """
    from pytorchcv.models.alexnet import alexnet

    reference = randomise_(alexnet(num_classes=17, in_size=(227, 227)), torch.Generator().manual_seed(5)).eval()
    model = jingdu.create("alexnet_ungrouped", num_classes=17).eval()
    _copy(model, reference)
    torchs = F.local_response_norm

    def the_papers(x: Tensor, size: int, k: float) -> Tensor:
        return torchs(x, size, alpha=size * 1e-4, beta=0.75, k=k)

    x = noise(2, 3, 227, 227, scale=60.0)  # raw RGB values, at which the normalisation matters
    with torch.inference_mode(), mock.patch.object(F, "local_response_norm", the_papers):
        theirs = reference(x)
    with torch.inference_mode():
        assert_close(model(x), theirs)
        assert (model(x) - reference(x)).abs().max() > 1e-2 * theirs.abs().max()  # with alpha / 5


# Plain torch --------------------------------------------------------------------------------------


def _copy(model: nn.Module, reference: nn.Module) -> None:
    """The reference's tensors, whose order is the layers' in both."""
    values = reference.state_dict().values()
    model.load_state_dict(dict(zip(model.state_dict(), values, strict=True)))


class TwoGPUs(nn.Module):
    """Figure 2 as it is drawn: two columns of layers, which exchange their maps before conv3 and the dense layers.

    The normalisation sees the maps of both.
    """

    def __init__(self, widths: tuple[int, ...], classes: int):
        super().__init__()
        c1, c2, c3, c4, c5, f6, f7 = widths

        def pair(inputs: int, outputs: int, *rest: Any) -> nn.ModuleList:
            return nn.ModuleList(nn.Conv2d(inputs, outputs // 2, *rest) for _ in range(2))

        self.conv1 = pair(3, c1, 11, 4)
        self.conv2 = pair(c1 // 2, c2, 5, 1, 2)
        self.conv3 = pair(c2, c3, 3, 1, 1)
        self.conv4 = pair(c3 // 2, c4, 3, 1, 1)
        self.conv5 = pair(c4 // 2, c5, 3, 1, 1)
        self.norm = nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2)
        self.fc6, self.fc7, self.fc8 = nn.Linear(36 * c5, f6), nn.Linear(f6, f7), nn.Linear(f7, classes)

    def normalised(self, a: Tensor, b: Tensor) -> list[Tensor]:
        return [F.max_pool2d(half, 3, 2) for half in self.norm(torch.cat((a, b), 1)).chunk(2, 1)]

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.normalised(*(layer(x).relu() for layer in self.conv1))
        a, b = self.normalised(self.conv2[0](a).relu(), self.conv2[1](b).relu())
        both = torch.cat((a, b), 1)
        a, b = (layer(both).relu() for layer in self.conv3)
        a, b = self.conv4[0](a).relu(), self.conv4[1](b).relu()
        a, b = self.conv5[0](a).relu(), self.conv5[1](b).relu()
        x = torch.cat([F.max_pool2d(half, 3, 2) for half in (a, b)], 1).flatten(1)
        return self.fc8(self.fc7(self.fc6(x).relu()).relu())

    def one_column(self) -> dict[str, Tensor]:
        """The state of a network whose convolutions hold both columns."""
        state = {}
        for name in ("conv1", "conv2", "conv3", "conv4", "conv5"):
            for kind in ("weight", "bias"):
                state[f"{name}.{kind}"] = torch.cat([getattr(layer, kind) for layer in getattr(self, name)])
        return state | {key: value for key, value in self.state_dict().items() if key.startswith("fc")}


WIDTHS = (10, 22, 26, 34, 14, 41, 31)


def test_two_groups_are_two_gpus(tmp_path: Path) -> None:
    """The paper's network: outputs, and all gradients in training mode, in float64."""
    reference = TwoGPUs(WIDTHS, 13).double()
    randomise_(reference, torch.Generator().manual_seed(6))
    model = jingdu.create("alexnet", widths=WIDTHS, num_classes=13, dropout=0.0).double()
    model.load_state_dict(reference.one_column())
    x, labels = noise(5, 3, 227, 227, dtype=torch.float64, scale=60.0), torch.tensor([0, 3, 12, 7, 7])
    outputs = [network.train()(x) for network in (model, reference)]
    assert_close(*outputs, relative=1e-12)
    for output in outputs:
        F.cross_entropy(output, labels).backward()
    grads = {name: p.grad for name, p in reference.named_parameters()}
    for name, p in model.named_parameters():
        layer, _, kind = name.partition(".")
        theirs = grads.get(name)
        if theirs is None:
            theirs = torch.cat([grads[f"{layer}.{column}.{kind}"] for column in range(2)])
        assert_close(p.grad, theirs, relative=1e-9)
    assert_close(model.eval()(x[:1]), reference.eval()(x[:1]), relative=1e-12)


@pytest.mark.parametrize("channels", [1, 2, 3, 7, 96])
def test_response_normalisation_is_torchs_with_five_times_its_alpha(channels: int) -> None:
    mine = noise(2, channels, 5, 3, dtype=torch.float64, scale=60.0).requires_grad_()
    theirs = mine.detach().clone().requires_grad_()
    a = local_response_norm(mine)
    b = nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2)(theirs)
    assert_close(a, b, relative=1e-13)
    weights = noise(*a.shape, dtype=torch.float64)
    for y in (a, b):
        (weights * y).sum().backward()
    assert_close(mine.grad, theirs.grad, relative=1e-12)
    assert_close(
        local_response_norm(mine, k=1.0, n=3, alpha=2e-5, beta=0.5),  # Caffe's k
        nn.LocalResponseNorm(3, alpha=6e-5, beta=0.5, k=1)(theirs),
        relative=1e-13,
    )
