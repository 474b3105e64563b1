"""The independent implementations that ours are compared with, and how.

torchvision's wheel is built for one build of torch. Beside another one its compiled operators do
not load, and its import stops at the first that it wants to describe ("operator torchvision::nms
does not exist"). Declaring those operators first makes the import succeed; models without them
run as they are. timm and transformers import torchvision, so they come through here as well.
"""

import importlib
import math
import sys
import warnings
from types import ModuleType

import torch
from torch import Tensor, nn

SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "box_iou_rotated(Tensor boxes1, Tensor boxes2) -> Tensor",
    "roi_align(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width, "
    "int sampling_ratio, bool aligned) -> Tensor",
    "qroi_align(Tensor input, Tensor rois, float spatial_scale, int pooled_height, int pooled_width, "
    "int sampling_ratio, bool aligned) -> Tensor",
    "roi_pool(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width) "
    "-> (Tensor, Tensor)",
    "ps_roi_align(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width, "
    "int sampling_ratio) -> (Tensor, Tensor)",
    "ps_roi_pool(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width) "
    "-> (Tensor, Tensor)",
    "deform_conv2d(Tensor input, Tensor weight, Tensor offset, Tensor mask, Tensor bias, SymInt stride_h, "
    "SymInt stride_w, SymInt pad_h, SymInt pad_w, SymInt dilation_h, SymInt dilation_w, SymInt groups, "
    "SymInt offset_groups, bool use_mask) -> Tensor",
)
"""Operators of torchvision 0.28 (torchvision/csrc/ops/*.cpp), by signature alone."""

_declared: list[torch.library.Library] = []


def _import(name: str) -> ModuleType:
    # Their own deprecations are not ours, and a warning in a test is an error.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(name)


def import_torchvision() -> ModuleType:
    """torchvision, with its operators declared where they could not be loaded. May be called often."""
    try:
        return _import("torchvision")
    except RuntimeError as error:
        if "torchvision::" not in str(error) or _declared:
            raise
    library = torch.library.Library("torchvision", "DEF")
    for schema in SCHEMAS:
        library.define(schema)
    _declared.append(library)  # the operators vanish with the object that declared them
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    return _import("torchvision")


def import_timm() -> ModuleType:
    """timm, which imports torchvision."""
    import_torchvision()
    return _import("timm")


def import_transformers() -> ModuleType:
    """transformers, some of whose models import torchvision when they are first used."""
    import_torchvision()
    return _import("transformers")


@torch.no_grad()
def randomise_(module: nn.Module, generator: torch.Generator, gain: float = math.sqrt(2.0)) -> nn.Module:
    """Fill parameters and running statistics with random values; activations of deep networks stay finite.

    Matrices and kernels are Gaussian with variance gain^2 / fan-in (He et al. 2015, Eq. 10); scales
    and running variances are positive and near 1; biases and running means are Gaussian with std 0.1. So
    no two tensors are equal, none is zero, and a swapped pair shows. Other buffers are constants of the
    architecture (positions, indices) and stay. Returns the module.
    """

    def normal(tensor: Tensor, std: float) -> Tensor:
        return torch.randn(tensor.shape, generator=generator) * std

    def uniform(tensor: Tensor, low: float, high: float) -> Tensor:
        return torch.rand(tensor.shape, generator=generator) * (high - low) + low

    for name, tensor in module.named_parameters():
        last = name.rpartition(".")[2]
        if tensor.ndim >= 2 and "weight" in last:
            tensor.copy_(normal(tensor, gain / math.sqrt(tensor[0].numel())))
        elif tensor.ndim >= 2:
            tensor.copy_(normal(tensor, min(0.5, gain / math.sqrt(tensor.shape[-1]))))
        elif "bias" in last or "beta" in last:
            tensor.copy_(normal(tensor, 0.1))
        else:
            tensor.copy_(uniform(tensor, 0.5, 1.0))
    for name, tensor in module.named_buffers():
        if name.endswith("running_var"):
            tensor.copy_(uniform(tensor, 0.5, 1.5))
        elif name.endswith("running_mean"):
            tensor.copy_(normal(tensor, 0.1))
    return module


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
