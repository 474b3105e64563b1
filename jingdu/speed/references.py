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
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from jingdu.canon import Paper, Resolved
from jingdu.errors import Missing, UsageError, unknown
from jingdu.names import Call

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


def _transformers_resnet(model: Any) -> tuple[str, dict[str, Any]]:
    """ResNetConfig (transformers/models/resnet/configuration_resnet.py)."""
    sizes = {"embedding_size": model.conv1.out_channels, "hidden_sizes": list(model.channels)}
    stages = [getattr(model, name) for name in model.stages]
    kind = "bottleneck" if stages[0][0].expansion == 4 else "basic"
    more = {"depths": [len(stage) for stage in stages], "num_labels": model.fc.out_features}
    more["num_channels"] = model.conv1.in_channels
    if kind == "bottleneck" and len(stages) > 1:
        more["downsample_in_bottleneck"] = stages[1][0].conv1.stride == (2, 2)
    return "ResNetForImageClassification", {**sizes, "layer_type": kind, **more}


def _transformers_decoder(model: Any) -> dict[str, Any]:
    """What GPT2Config and OpenAIGPTConfig call the sizes of a GPT; dropout off, as in ours for inference."""
    width = model.words.weight.shape[1]
    sizes = {"n_embd": width, "n_layer": len(model.blocks), "n_head": model.heads, "n_positions": model.context}
    return {**sizes, "vocab_size": model.vocabulary, "bos_token_id": None, "eos_token_id": None}


def _transformers_bert(model: Any) -> tuple[str, dict[str, Any]]:
    """BertConfig, and which of the classes has our network's head."""
    from jingdu.weights.configs import BERT_HEADS

    words, layer = model.embeddings.words.weight, model.layers[0]
    values = {
        "vocab_size": words.shape[0], "hidden_size": words.shape[1], "num_hidden_layers": len(model.layers),
        "num_attention_heads": layer.attention.heads, "intermediate_size": layer.expand.out_features,
        "hidden_dropout_prob": layer.dropout.p, "attention_probs_dropout_prob": layer.attention.dropout,
        "max_position_embeddings": model.context, "type_vocab_size": model.embeddings.segments.num_embeddings,
        "layer_norm_eps": layer.norm1.eps, "is_decoder": model.causal,
    }  # fmt: skip
    if model.head in ("class", "tags"):
        values["num_labels"] = model.classifier.out_features
    return next(name for name, head in BERT_HEADS.items() if head == model.head), values


def _transformers_mobilenet(model: Any) -> tuple[str, dict[str, Any]]:
    """MobileNetV1Config and MobileNetV2Config: the width multiplier of our variant, the rest from the network."""
    version = 2 if hasattr(model.head, "conv") else 1
    style = model.stem.style
    values = {
        "depth_multiplier": model.alpha, "num_labels": model.fc.out_features, "hidden_act": style.activation,
        "num_channels": model.stem.conv.in_channels, "tf_padding": style.padding == "same", "layer_norm_eps": style.eps,
        "classifier_dropout_prob": model.dropout.p,
    }  # fmt: skip
    if version == 2:
        values["output_stride"] = model.output_stride or 32
    elif model.output_stride is not None:
        raise UsageError("transformers' MobileNetV1 has no output stride")
    return f"MobileNetV{version}ForImageClassification", values


def _transformers_efficientnet(model: Any) -> tuple[str, dict[str, Any]]:
    """EfficientNetConfig: width and depth as they were given, the rest from the network."""
    if model.stem.style.padding != "keras" or model.output_stride is not None:
        raise UsageError("transformers' EfficientNet pads as keras does, and has no output stride")
    return "EfficientNetForImageClassification", {
        "width_coefficient": model.width, "depth_coefficient": model.depth, "num_labels": model.fc.out_features,
        "num_channels": model.stem.conv.in_channels, "hidden_dim": model.head.conv.out_channels,
        "depthwise_padding": list(model.square), "batch_norm_eps": model.stem.bn.eps,
        "batch_norm_momentum": round(1 - model.stem.bn.momentum, 6), "dropout_rate": model.dropout.p,
        "drop_connect_rate": model.drop_connect,
    }  # fmt: skip


def _transformers_regnet(model: Any) -> tuple[str, dict[str, Any]]:
    """RegNetConfig, whose groups are of one width in all stages and whose bottlenecks are as wide as their ends."""
    firsts = [stage[0] for stage in model.stages]
    inner = [block.conv2.conv for block in firsts]
    groups = [conv.in_channels // conv.groups for conv in inner]
    if len(set(groups)) != 1 or [conv.in_channels for conv in inner] != model.channels:
        raise UsageError("transformers' RegNet has one width of groups, and bottlenecks as wide as their ends")
    return "RegNetForImageClassification", {
        "hidden_sizes": list(model.channels), "depths": [len(stage) for stage in model.stages], "groups_width": groups[0],
        "layer_type": "y" if hasattr(firsts[0].squeeze, "reduce") else "x", "num_labels": model.fc.out_features,
        "num_channels": model.stem.conv.in_channels, "embedding_size": model.stem.conv.out_channels,
    }  # fmt: skip


def _transformers_vit(model: Any) -> tuple[str, dict[str, Any]]:
    """ViTConfig: the sizes are the network's."""
    block = model.blocks[0]
    values = {
        "hidden_size": model.width, "num_hidden_layers": len(model.blocks), "num_attention_heads": block.attention.heads,
        "intermediate_size": block.mlp.expand.out_features, "image_size": model.image_size[0],
        "patch_size": model.patches.patch, "layer_norm_eps": model.norm.eps,
        "num_channels": model.patches.projection.in_channels, "num_labels": model.head.out_features,
    }  # fmt: skip
    return "ViTForImageClassification", values


_TRANSFORMERS: Mapping[str, Callable[[Any], tuple[str, dict[str, Any]]]] = {
    "bert": _transformers_bert,
    "efficientnet": _transformers_efficientnet,
    "gpt": lambda model: ("OpenAIGPTLMHeadModel", _transformers_decoder(model)),
    "gpt2": lambda model: ("GPT2LMHeadModel", _transformers_decoder(model)),
    "mobilenet": _transformers_mobilenet,
    "regnet": _transformers_regnet,
    "resnet": _transformers_resnet,
    "vit": _transformers_vit,
}
"""Family -> from our network, the class of transformers and the values of its configuration."""


def transformers_config(family: str, ours: Any) -> tuple[Any, Any]:
    """transformers' class for a network of ours, and its configuration.

    Raises UsageError where none is known for the family, Missing where transformers is not installed.
    """
    if family not in _TRANSFORMERS:
        raise UsageError(f"no transformers configuration is known for {family}: take torchvision or timm")
    kind, values = _TRANSFORMERS[family](ours)
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
