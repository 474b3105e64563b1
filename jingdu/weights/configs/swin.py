"""Swin's configuration files."""

from typing import Any

import torch.nn.functional as F

from jingdu.errors import Refused
from jingdu.weights.configs.common import Config, Sizes, Timm, labels, need
from jingdu.weights.report import printable

TIMM = Timm(
    {
        "num_classes": "num_classes",
        "in_chans": "in_channels",
        "img_size": "image_size",
        "patch_size": "patch",
        "embed_dim": "width",
        "depths": "depths",
        "num_heads": "heads",
        "window_size": "window",
        "mlp_ratio": "ratio",
        "qkv_bias": "biases",
        "drop_path_rate": "drop",
        "proj_drop_rate": "dropout",
        "attn_drop_rate": "attention_dropout",
    },
    {"global_pool": "avg"},
)

ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}

KNOWN = {
    (96, (2, 2, 6, 2), (3, 6, 12, 24), 7): "swin_tiny",
    (96, (2, 2, 18, 2), (3, 6, 12, 24), 7): "swin_small",
    (128, (2, 2, 18, 2), (4, 8, 16, 32), 7): "swin_base",
    (192, (2, 2, 18, 2), (6, 12, 24, 48), 7): "swin_large",
    (128, (2, 2, 18, 2), (4, 8, 16, 32), 12): "swin_base_window12_384",
    (192, (2, 2, 18, 2), (6, 12, 24, 48), 12): "swin_large_window12_384",
}
"""Width, depths, heads and window of the variants."""


def read(config: Config) -> Sizes:
    """SwinConfig (transformers/models/swin/configuration_swin.py)."""
    if config.get("model_type", "swin") != "swin":
        raise Refused(f"config.json is of a {printable(config.get('model_type'))}, and not of a swin")
    activation = config.get("hidden_act", "gelu")
    if activation not in ACTIVATIONS:
        raise Refused(f"config.json asks for hidden_act = {printable(activation)}: known are {', '.join(ACTIVATIONS)}")
    need(config, "layer_norm_eps", 1e-5)  # which transformers gives to some of the norms alone
    need(config, "path_norm", True)  # of files from before 5.0, where it could be said
    size = (
        config.get("embed_dim", 96), tuple(config.get("depths", (2, 2, 6, 2))),
        tuple(config.get("num_heads", (3, 6, 12, 24))), config.get("window_size", 7),
    )  # fmt: skip
    overrides: dict[str, Any] = dict(zip(("width", "depths", "heads", "window"), size, strict=True))
    overrides |= {
        "image_size": config.get("image_size", 224),
        "patch": config.get("patch_size", 4),
        "ratio": config.get("mlp_ratio", 4.0),
        "in_channels": config.get("num_channels", 3),
        "biases": config.get("qkv_bias", True),
        "positions": config.get("use_absolute_embeddings", False),
        "activation": ACTIVATIONS[activation],
        "dropout": config.get("hidden_dropout_prob", 0.0),
        "attention_dropout": config.get("attention_probs_dropout_prob", 0.0),
        "drop": config.get("drop_path_rate", 0.1),
    }
    variant = KNOWN.get(size, "swin_tiny")
    if "SwinForImageClassification" not in (config.get("architectures") or ["SwinForImageClassification"]):
        return Sizes(variant, {**overrides, "num_classes": 0})
    count, classes = labels(config)
    return Sizes(variant, {**overrides, "num_classes": count}, classes)


def write(model: Any) -> tuple[str, dict[str, Any]]:
    """SwinConfig: the sizes are the network's."""
    first, last = model.stages[0].blocks[0], model.stages[-1].blocks[-1]
    values = {
        "embed_dim": model.channels[0], "depths": [len(stage.blocks) for stage in model.stages],
        "num_heads": [stage.blocks[0].attention.heads for stage in model.stages],
        "window_size": max(first.attention.window), "image_size": model.image_size[0], "patch_size": model.patches.patch,
        "mlp_ratio": first.mlp.expand.out_features / model.channels[0], "layer_norm_eps": model.norm.eps,
        "num_channels": model.patches.projection.in_channels, "qkv_bias": first.attention.qkv.bias is not None,
        "use_absolute_embeddings": model.positions is not None, "num_labels": model.head.out_features,
        "hidden_act": "gelu" if first.mlp.activation is F.gelu else "gelu_new", "hidden_dropout_prob": model.dropout.p,
        "attention_probs_dropout_prob": first.attention.dropout, "drop_path_rate": last.drop,
    }  # fmt: skip
    return "SwinForImageClassification", values
