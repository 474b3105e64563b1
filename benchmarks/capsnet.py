"""CapsNet against plain modules of torch, laid out as XifengGuo/CapsNet-Pytorch: python -m benchmarks.capsnet."""

from typing import Any

import torch
from torch import Tensor, nn

import jingdu
from benchmarks.paired import compare, save
from jingdu.speed.case import difference
from jingdu.weights import detect
from jingdu.weights.filling import fill_network


def squashed(x: Tensor) -> Tensor:
    """Equation 1 as that port guards it."""
    length = x.norm(dim=-1, keepdim=True)
    return length**2 / (1 + length**2) / (length + 1e-8) * x


class _Primary(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv2d = nn.Conv2d(256, 256, 9, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return squashed(self.conv2d(x).reshape(len(x), -1, 8))


class _Digits(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.01 * torch.randn(classes, 1152, 16, 8))

    def forward(self, u: Tensor) -> Tensor:
        hats = (self.weight @ u[:, None, :, :, None]).squeeze(-1)
        still, agreement = hats.detach(), hats.new_zeros(hats.shape[:3])
        for _ in range(2):
            v = squashed((agreement.softmax(1)[..., None] * still).sum(2, keepdim=True))
            agreement = agreement + (v * still).sum(-1)
        return squashed((agreement.softmax(1)[..., None] * hats).sum(2))


class Plain(nn.Module):
    """Its network, with its names."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1, self.primarycaps, self.digitcaps = nn.Conv2d(1, 256, 9), _Primary(), _Digits(classes)
        self.decoder = nn.Sequential(
            nn.Linear(16 * classes, 512), nn.ReLU(), nn.Linear(512, 1024), nn.ReLU(), nn.Linear(1024, 784), nn.Sigmoid()
        )

    def forward(self, x: Tensor, hot: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Capsules, their lengths, and the picture of the class `hot` (one-hot) or the longest."""
        v = self.digitcaps(self.primarycaps(self.conv1(x).relu()))
        lengths = v.norm(dim=-1)
        hot = nn.functional.one_hot(lengths.argmax(1), lengths.shape[1]).to(v) if hot is None else hot
        return v, lengths, self.decoder((v * hot[..., None]).flatten(1)).view(x.shape)


def pair(classes: int = 10) -> tuple[nn.Module, Plain]:
    """Our network and theirs, with the same random weights."""
    theirs = Plain(classes)
    ours = jingdu.create("xifengguo/capsnet", num_classes=classes)
    state = theirs.state_dict()
    fill_network(ours, state, detect(state, None, "capsnet", "xifengguo", ours.state_dict(), ours.origin.variant))
    return ours, theirs


def cases(rounds: int = 10, batch: int = 16) -> list[dict[str, Any]]:
    """The same weights and images in eager float32: capsules and a reconstruction, and a training step of both losses."""
    from jingdu.papers.cnn.capsnet import Capsules, margin_loss

    ours, theirs = pair()
    generator = torch.Generator().manual_seed(0)
    x, label = torch.rand(batch, 1, 28, 28, generator=generator), torch.randint(10, (batch,), generator=generator)
    system, hot = Capsules(ours), nn.functional.one_hot(label, 10).float()
    with torch.inference_mode():
        gap = difference(ours(x), theirs(x)[0])

    def our_inference() -> None:
        with torch.inference_mode():
            ours.reconstruct(ours(x))

    def their_inference() -> None:
        with torch.inference_mode():
            theirs(x)

    def our_step() -> None:
        ours.zero_grad()
        system({"image": x, "label": label}, "loss")[0].backward()

    def their_step() -> None:
        theirs.zero_grad()
        _, lengths, picture = theirs(x, hot)
        (margin_loss(lengths, hot).mean() + 0.0005 * 784 * nn.functional.mse_loss(picture, x)).backward()

    return [
        compare(our_inference, their_inference, f"capsnet_mnist_with_decoder, inference, {batch} images", rounds=rounds)
        | {"difference": gap},
        compare(our_step, their_step, f"capsnet_mnist_with_decoder, a training step, {batch} images", rounds=rounds)
        | {"difference": gap},
    ]


if __name__ == "__main__":
    save(cases(), "capsnet.json")
