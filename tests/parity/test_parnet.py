"""ParNet against a network of its own, written here from the paper with the names of the authors' files.

The authors' code needs a timm of 2021, which does not import beside today's torch. Once, on 2026-11-26, its classes were
compared with ours by hand (github.com/imankgoyal/NonDeepNetworks): with random weights and statistics all four sizes gave
the same numbers, to the bit, with SiLU and with the ReLU that its released configurations make.
"""

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

import jingdu
from jingdu.papers.cnn.parnet import fuse
from jingdu.weights import export
from tests.parity.references import assert_close

WIDTHS = {"parnet_s": (92, 192, 384, 1280), "mini": (7, 10, 12, 22)}


class Reference:
    """A network as a state of tensors and a function: every block by its name."""

    def __init__(self, widths: tuple[int, ...], classes: int, activation: str):
        self.state: dict[str, Tensor] = {}
        self.activation = {"silu": F.silu, "relu": F.relu}[activation]
        self.training = False
        a, b, c, last = widths
        sizes = [("inits.0.0", 3, min(64, a), 2, 1), ("inits.0.1", min(64, a), a, 2, 1), ("inits.1", a, b, 2, 1),
                 ("inits.2", b, c, 2, 1), ("downsamples_2.0", a, b, 2, 1), ("downsamples_2.1.2", 2 * b, c, 2, 2),
                 ("combine.2", 2 * c, c, 1, 2), ("combine.3", c, last, 2, 1)]  # fmt: skip
        sizes += [
            (f"streams.{s}.{i}", w, w, 1, 1) for s, (w, n) in enumerate(((a, 4), (b, 5), (c, 5))) for i in range(n)
        ]
        self.blocks = {name: (stride, groups) for name, _, _, stride, groups in sizes}
        for name, inputs, outputs, stride, groups in sizes:
            root = f"{name}.block"
            small = f"{root}.rbr_1x1.1" if stride == 2 else f"{root}.rbr_1x1"
            for place, kernel in ((f"{root}.rbr_dense", 3), (small, 1)):
                self.state[f"{place}.conv.weight"] = torch.empty(outputs, inputs // groups, kernel, kernel)
                self._norm(f"{place}.bn", outputs)
            self.state[f"{root}.se.cvsig.conv.weight"] = torch.empty(outputs, inputs // groups, 1, 1)
            if inputs == outputs and stride == 1:
                self._norm(f"{root}.rbr_identity", inputs)
        for name, width in (("downsamples_2.1.0", b), ("combine.0", c)):
            self._norm(f"{name}.b1", width)
            self._norm(f"{name}.b2", width)
        self.state["head.fc.weight"], self.state["head.fc.bias"] = torch.empty(classes, last), torch.empty(classes)
        generator = torch.Generator().manual_seed(11)
        for name, tensor in self.state.items():
            if tensor.ndim > 1:
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * (2 / tensor[0].numel()) ** 0.5)
            elif name.endswith(("running_var", "weight")):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
            else:
                tensor.copy_(0.1 * torch.randn(tensor.shape, generator=generator))

    def _norm(self, name: str, width: int) -> None:
        for part in ("weight", "bias", "running_mean", "running_var"):
            self.state[f"{name}.{part}"] = torch.empty(width)

    def norm(self, name: str, x: Tensor) -> Tensor:
        mean, var, scale, shift = (self.state[f"{name}.{p}"] for p in ("running_mean", "running_var", "weight", "bias"))
        if self.training:
            return F.batch_norm(x, mean, var, scale, shift, training=True)
        return (x - mean[:, None, None]) / (var[:, None, None] + 1e-5) ** 0.5 * scale[:, None, None] + shift[
            :, None, None
        ]

    def block(self, name: str, x: Tensor) -> Tensor:
        (stride, groups), root, state = self.blocks[name], f"{name}.block", self.state
        y = self.norm(
            f"{root}.rbr_dense.bn", F.conv2d(x, state[f"{root}.rbr_dense.conv.weight"], None, stride, 1, 1, groups)
        )
        small, pooled = (f"{root}.rbr_1x1.1", F.avg_pool2d(x, 2)) if stride == 2 else (f"{root}.rbr_1x1", x)
        y = y + self.norm(f"{small}.bn", F.conv2d(pooled, state[f"{small}.conv.weight"], groups=groups))
        skip = f"{root}.rbr_identity.weight" in state
        z = self.norm(f"{root}.rbr_identity", x) if skip else x
        gate = torch.sigmoid(
            F.conv2d(F.adaptive_avg_pool2d(z, 1), state[f"{root}.se.cvsig.conv.weight"], groups=groups)
        )
        y = self.activation(y + z * gate if skip else 2 * y * gate)
        if groups == 1:
            return y
        batch, channels, height, width = y.shape
        return y.reshape(batch, groups, channels // groups, height, width).permute(0, 2, 1, 3, 4).reshape(y.shape)

    def fused(self, place: str, then: str, own: Tensor, above: Tensor) -> Tensor:
        a, b = self.norm(f"{place}.b1", own), self.norm(f"{place}.b2", above)
        both = torch.cat([part for pair in zip(a.split(1, 1), b.split(1, 1), strict=True) for part in pair], 1)
        return self.block(then, both)

    def __call__(self, x: Tensor) -> Tensor:
        x = self.block("inits.0.0", x)
        maps = []
        for name in ("inits.0.1", "inits.1", "inits.2"):
            x = self.block(name, x)
            maps.append(x)
        for s, count in enumerate((4, 5, 5)):
            for i in range(count):
                maps[s] = self.block(f"streams.{s}.{i}", maps[s])
        y = self.block("downsamples_2.0", maps[0])
        y = self.fused("downsamples_2.1.0", "downsamples_2.1.2", maps[1], y)
        y = self.block("combine.3", self.fused("combine.0", "combine.2", maps[2], y))
        return F.linear(y.mean((2, 3)), self.state["head.fc.weight"], self.state["head.fc.bias"])


def test_same_logits_of_a_published_size(tmp_path: Path) -> None:
    """A file as the authors': weights and their average beside what the training program needs."""
    theirs = Reference(WIDTHS["parnet_s"], 1000, "relu")
    torch.save({"epoch": 3, "state_dict": theirs.state, "args": None}, tmp_path / "model.pth.tar")
    ours = jingdu.create("nondeepnetworks/parnet_s", weights=tmp_path / "model.pth.tar")
    for shape in [(1, 3, 96, 160), (2, 3, 64, 32)]:
        x = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))
        with torch.inference_mode():
            assert_close(ours(x), theirs(x))
            assert_close(fuse(ours)(x), theirs(x))


@pytest.mark.parametrize("activation", ["silu", "relu"])
def test_train_mode_gradients_and_statistics(activation: str, tmp_path: Path) -> None:
    theirs = Reference(WIDTHS["mini"], 11, activation)
    save_file(theirs.state, tmp_path / "m.safetensors")
    options = {"widths": WIDTHS["mini"], "num_classes": 11, "activation": activation}
    ours = jingdu.create("nondeepnetworks/parnet_s", weights=tmp_path / "m.safetensors", **options).double().train()
    theirs.state = {key: x.double() for key, x in theirs.state.items()}
    keys = [key for key in theirs.state if "running" not in key]
    for key in keys:
        theirs.state[key].requires_grad_()
    theirs.training = True
    x = torch.randn(3, 3, 64, 96, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([1, 5, 9])
    logits, wanted = ours(x), theirs(x)
    assert_close(logits, wanted, relative=1e-9)
    F.cross_entropy(logits, labels).backward()
    F.cross_entropy(wanted, labels).backward()
    for key, value in export(ours, "nondeepnetworks", family="parnet").items():
        if "running" in key:
            assert_close(value, theirs.state[key], relative=1e-9)
    gradients = copy.deepcopy(ours)
    for p, q in zip(gradients.parameters(), ours.parameters(), strict=True):
        p.data = q.grad
    found = export(gradients, "nondeepnetworks", family="parnet")
    for key in keys:
        assert_close(found[key], theirs.state[key].grad, relative=1e-7)
