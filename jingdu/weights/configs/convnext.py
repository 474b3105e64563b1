"""ConvNeXt's configuration files."""

from typing import Any

from jingdu.errors import Refused, UsageError
from jingdu.weights.configs.common import Config, Sizes, Timm, labels, need
from jingdu.weights.report import printable

TIMM = Timm(
    {
        "num_classes": "num_classes",
        "in_chans": "in_channels",
        "depths": "depths",
        "dims": "widths",
        "patch_size": "patch",
        "ls_init_value": "scale",
        "norm_eps": "eps",
        "drop_path_rate": "drop",
        "head_init_scale": "head_scale",
    },
    {"global_pool": "avg", "output_stride": 32},
)

KNOWN = {
    ((3, 3, 9, 3), (96, 192, 384, 768)): "convnext_tiny",
    ((3, 3, 27, 3), (96, 192, 384, 768)): "convnext_small",
    ((3, 3, 27, 3), (128, 256, 512, 1024)): "convnext_base",
    ((3, 3, 27, 3), (192, 384, 768, 1536)): "convnext_large",
    ((3, 3, 27, 3), (256, 512, 1024, 2048)): "convnext_xlarge",
}
"""Depths and widths of the variants."""


def read(config: Config) -> Sizes:
    """ConvNextConfig (transformers/models/convnext/configuration_convnext.py), whose layer_norm_eps is that of the last norm."""
    if config.get("model_type", "convnext") != "convnext":
        raise Refused(f"config.json is of a {printable(config.get('model_type'))}, and not of a convnext")
    need(config, "hidden_act", "gelu")
    size = tuple(config.get("depths", (3, 3, 9, 3))), tuple(config.get("hidden_sizes", (96, 192, 384, 768)))
    need(config, "num_stages", len(size[0]))
    variant, scale = KNOWN.get(size, "convnext_tiny"), config.get("layer_scale_init_value", 1e-6)
    overrides: dict[str, Any] = {
        "depths": size[0],
        "widths": size[1],
        "in_channels": config.get("num_channels", 3),
        "patch": config.get("patch_size", 4),
        "scale": scale if scale > 0 else None,
        "drop": config.get("drop_path_rate", 0.0),
        "head_eps": config.get("layer_norm_eps", 1e-12),
    }
    if "ConvNextForImageClassification" not in (config.get("architectures") or ["ConvNextForImageClassification"]):
        return Sizes(variant, {**overrides, "num_classes": 0})
    count, classes = labels(config)
    return Sizes(variant, {**overrides, "num_classes": count}, classes)


def write(model: Any) -> tuple[str, dict[str, Any]]:
    """ConvNextConfig: the sizes are the network's."""
    first = model.stages[0].blocks[0]
    if first.norm.eps != 1e-6 or first.depthwise.kernel_size != (7, 7):
        raise UsageError("transformers' ConvNext has norms with an eps of 1e-6 and kernels of 7x7 pixels")
    return "ConvNextForImageClassification", {
        "depths": [len(stage.blocks) for stage in model.stages], "hidden_sizes": list(model.channels),
        "num_stages": len(model.stages), "patch_size": model.stem.conv.kernel_size[0],
        "num_channels": model.stem.conv.in_channels, "layer_norm_eps": model.norm.eps,
        "layer_scale_init_value": 0.0 if first.scale is None else 1e-6, "num_labels": model.head.out_features,
    }  # fmt: skip
