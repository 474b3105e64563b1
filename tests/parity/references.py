"""The independent implementations that ours are compared with (`jingdu.speed.references` imports and fills them)."""

from types import ModuleType

import torch
from torch import Tensor

from jingdu.speed.references import import_library, import_torchvision, randomise_

__all__ = ["assert_close", "import_timm", "import_torchvision", "import_transformers", "randomise_"]


def import_timm() -> ModuleType:
    """timm, which imports torchvision."""
    return import_library("timm")


def import_transformers() -> ModuleType:
    """transformers, some of whose models import torchvision when they are first used."""
    return import_library("transformers")


def assert_close(ours: Tensor, reference: Tensor, relative: float = 1e-4) -> float:
    """Fail unless max |ours - reference| / max |reference| <= `relative`; returns that difference."""
    assert ours.shape == reference.shape, f"shapes differ: ours {tuple(ours.shape)}, reference {tuple(reference.shape)}"
    assert ours.numel() > 0, "nothing to compare: the tensors are empty"
    a, b = ours.detach().double().cpu(), reference.detach().double().cpu()
    assert torch.isfinite(b).all(), "the reference is not finite"
    assert torch.isfinite(a).all(), f"ours is not finite in {int((~torch.isfinite(a)).sum())} of {a.numel()} places"
    largest = float(b.abs().max())
    assert largest > 0, "the reference is zero everywhere: nothing was compared"
    gap = (a - b).abs()
    difference = float(gap.max()) / largest
    where = tuple(int(i) for i in torch.unravel_index(gap.argmax(), gap.shape))
    assert difference <= relative, (
        f"relative difference {difference:.2e} exceeds {relative:.0e}: at {where} ours {float(a[where]):.6g}, "
        f"reference {float(b[where]):.6g}, largest |reference| {largest:.6g}"
    )
    return difference
