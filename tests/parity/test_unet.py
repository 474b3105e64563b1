"""U-Net against plain modules with Pytorch-UNet's names, and the paper's network against a functional one.

Run by hand on 2026-11-26, the repository's own network gave exactly what the plain one gives.
"""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

import jingdu
from benchmarks.unet import Plain
from jingdu.errors import Refused
from jingdu.weights.tables import tables
from tests.parity.references import assert_close, randomise_

NAMES = {False: "unet_padded_bn_3in_2out", True: "unet_padded_bn_bilinear_3in_2out"}


def plain(classes: int, bilinear: bool, width: int = 64) -> nn.Module:
    """The reference with random weights and running statistics."""
    reference = randomise_(Plain(3, classes, bilinear, width), torch.Generator().manual_seed(5))
    for name, buffer in reference.named_buffers():
        if name.endswith("num_batches_tracked"):
            buffer.fill_(3)
    return reference.eval()


@pytest.mark.parametrize("bilinear, width", [(False, 64), (False, 6), (True, 10)])
def test_same_logits_at_odd_sizes(bilinear: bool, width: int, tmp_path: Path) -> None:
    reference = plain(3, bilinear, width)
    # The published files are of torch.save and hold the values of the masks beside the tensors.
    torch.save({**reference.state_dict(), "mask_values": [0, 1, 2]}, tmp_path / "m.pth")
    ours = jingdu.create(NAMES[bilinear], weights=tmp_path / "m.pth", num_classes=3, width=width)
    assert not ours.training and ours.origin.variant == NAMES[bilinear]
    with torch.inference_mode():
        for shape in ((1, 3, 67, 93), (2, 3, 48, 81)) if width < 64 else ((1, 3, 37, 51),):
            x = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))
            print(f"largest relative difference {assert_close(ours(x), reference(x)):.1e}")


@pytest.mark.parametrize("bilinear", [False, True])
def test_train_mode_gradients_and_statistics(bilinear: bool) -> None:
    reference = plain(5, bilinear, width=6).double()
    ours = jingdu.create(NAMES[bilinear], num_classes=5, width=6).double()
    table = tables("unet")["milesial"].of(NAMES[bilinear])
    pairs = {key: table.from_ours(key).theirs[0] for key in ours.state_dict()}
    ours.load_state_dict({key: reference.state_dict()[theirs] for key, theirs in pairs.items()})
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 3, 33, 47, dtype=torch.float64, generator=generator)
    labels = torch.randint(5, (2, 33, 47), generator=generator)
    for model in (ours, reference):
        model.train()
        F.cross_entropy(model(x), labels).backward()
    theirs = dict(reference.named_parameters())
    for key, parameter in ours.named_parameters():
        assert_close(parameter.grad, theirs[pairs[key]].grad, relative=1e-8)
    after = reference.state_dict()
    for key, value in ours.state_dict().items():
        assert_close(value, after[pairs[key]], relative=1e-9)


def by_hand(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """Figure 1 from a dict of tensors by its text alone; the sizes of its crops are written out."""

    def pair(x: Tensor, where: str) -> Tensor:
        for number in (1, 2):
            x = F.conv2d(x, state[f"{where}.block.conv{number}.weight"], state[f"{where}.block.conv{number}.bias"])
            x = x.clamp(min=0)
        return x

    levels = []
    for level in range(5):
        x = pair(F.max_pool2d(x, 2) if level else x, f"contracting.{level}")
        levels.append(x)
    for step, crop in enumerate((4, 16, 40, 88)):
        where = f"expanding.{step}"
        x = F.conv_transpose2d(x, state[f"{where}.enlarge.weight"], state[f"{where}.enlarge.bias"], stride=2)
        x = pair(torch.cat([levels[3 - step][:, :, crop:-crop, crop:-crop], x], 1), where)
    return F.conv2d(x, state["score.weight"], state["score.bias"])


def test_the_papers_network_is_figure_1() -> None:
    ours = jingdu.create("unet_original_1in_2out", width=4, num_classes=3).double().eval()
    randomise_(ours, torch.Generator().manual_seed(2))
    with torch.inference_mode():
        for shape in ((1, 1, 188, 220), (2, 1, 204, 188)):
            x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
            assert_close(ours(x), by_hand(ours.state_dict(), x), relative=1e-12)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    save_file(plain(2, True, width=6).state_dict(), tmp_path / "m.safetensors")
    with pytest.raises(Refused, match=r"up1\.up\.weight"):
        jingdu.create("milesial/unet", weights=tmp_path / "m.safetensors", width=6)
    with pytest.raises(Refused, match=r"score\.weight"):
        jingdu.create("milesial/unet_bilinear", weights=tmp_path / "m.safetensors", width=6, num_classes=7)
