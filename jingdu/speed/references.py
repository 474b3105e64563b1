"""Other libraries' networks, to compare with.

torchvision's wheel is built for one build of torch. Beside another one its compiled operators do
not load, and its import stops at the first that it wants to describe ("operator torchvision::nms
does not exist"). Declaring those operators first makes the import succeed; models without them
run as they are. timm and transformers import torchvision, so they come through here as well.
"""

import importlib
import importlib.util
import math
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from jingdu.canon import Paper, Resolved
from jingdu.errors import Missing, UsageError, unknown
from jingdu.names import Call
from jingdu.weights.configs import family_of

LIBRARIES = ("torchvision", "timm", "transformers")

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


def import_library(name: str) -> ModuleType:
    """torchvision, timm or transformers. Raises UsageError for another name, Missing where it is not installed."""
    if name not in LIBRARIES:
        raise unknown("reference library", name, LIBRARIES)
    try:
        if importlib.util.find_spec("torchvision") is not None:
            import_torchvision()
        return _import(name)
    except ModuleNotFoundError as error:
        raise Missing(f"comparing with {name} needs {error.name}: pip install {error.name}") from None


# Their networks -----------------------------------------------------------------------------------


def their_name(found: Resolved, against: str | None = None) -> str:
    """The qualified name by which a reference library knows a network of ours: "timm/resnet50".

    Args:
        found: the network.
        against: the library; None: the one of a qualified name, else the first that has the network.

    Raises UsageError, with the libraries that have it, where `against` has not.
    """
    card, wanted = found.paper, against or found.library
    if against is not None and against not in LIBRARIES:
        raise unknown("reference library", against, LIBRARIES)

    def same(alias: str) -> bool:
        call = Call.parse(card.aliases[alias])
        return call.name == found.variant and (found.library is None or dict(call.arguments) == dict(found.overrides))

    # A name equal to the variant's comes first: a library may have one network under several names.
    aliases = sorted(filter(same, card.aliases), key=lambda alias: alias.partition("/")[2] != found.variant)
    by_library: dict[str, str] = {}
    for alias in aliases:
        by_library.setdefault(alias.partition("/")[0], alias)
    for library in (wanted,) if wanted else LIBRARIES:
        if library in by_library:
            return by_library[library]
    has = ", ".join(sorted(by_library))
    nobody = wanted or ", ".join(LIBRARIES[:-1]) + " or " + LIBRARIES[-1]
    raise UsageError(
        f"our {found.variant} has no equal in {nobody}"
        + (f", but in {has}" if by_library else "")
        + f"; benchmarks/{card.key}.py may compare it with something else"
    )


def transformers_config(family: str, ours: Any) -> tuple[Any, Any]:
    """transformers' class for a network of ours, and its configuration.

    Raises UsageError where none is known for the family, Missing where transformers is not installed.
    """
    files = family_of(family)
    if not hasattr(files, "write"):
        raise UsageError(f"no transformers configuration is known for {family}: take torchvision or timm")
    kind, values = files.write(ours)
    network = getattr(import_library("transformers"), kind)
    return network, network.config_class(**values)


def build_reference(card: Paper, name: str, ours: Any) -> nn.Module:
    """A reference library's network without trained weights, by its qualified name.

    Args:
        card: the paper.
        name: "torchvision/resnet50"; transformers has no names for untrained networks and builds from `ours`' sizes.
        ours: our network.

    Raises Missing where the library is not installed, UsageError where it cannot build the network.
    """
    library, _, theirs = name.partition("/")
    module = import_library(library)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if library == "torchvision":
            return module.models.get_model(theirs, weights=None)
        if library == "timm":
            return module.create_model(theirs)
        module.utils.logging.disable_progress_bar()
        network, config = transformers_config(card.key, ours)
        return network(config)


def save_reference(reference: nn.Module, folder: Path) -> Path:
    """Write a reference's weights as its library does (transformers: a folder); `create` reads them."""
    if hasattr(reference, "save_pretrained") and hasattr(reference, "config"):
        reference.save_pretrained(folder / "reference")
        return folder / "reference"
    from safetensors.torch import save_file

    path = folder / "reference.safetensors"
    save_file({name: x.clone() for name, x in reference.state_dict().items()}, path)
    return path


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
