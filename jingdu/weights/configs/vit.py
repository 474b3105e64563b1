"""ViT's configuration files."""

from typing import Any

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
        "depth": "depth",
        "num_heads": "heads",
        "mlp_ratio": "ratio",
        "drop_path_rate": "drop",
        "init_values": "scale",
    },
    {"global_pool": "token"},
)


def read(config: Config) -> Sizes:
    """ViTConfig (transformers/models/vit/configuration_vit.py)."""
    if config.get("model_type", "vit") != "vit":
        raise Refused(f"config.json is of a {printable(config.get('model_type'))}, and not of a vit")
    need(config, "qkv_bias", True)
    activations = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}
    activation = config.get("hidden_act", "gelu")
    if activation not in activations:
        raise Refused(f"config.json asks for hidden_act = {printable(activation)}: known are {', '.join(activations)}")
    known = {
        (768, 12, 12, 16, 224): "vit_base16", (768, 12, 12, 32, 224): "vit_base32", (768, 12, 12, 16, 384): "vit_base16_384",
        (192, 12, 3, 16, 224): "vit_tiny16", (384, 12, 6, 16, 224): "vit_small16", (384, 12, 6, 32, 224): "vit_small32",
        (1024, 24, 16, 16, 224): "vit_large16", (1024, 24, 16, 16, 384): "vit_large16_384",
        (1024, 24, 16, 32, 224): "vit_large32", (1280, 32, 16, 14, 224): "vit_huge14",
    }  # fmt: skip
    names = {
        "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "patch_size": 16, "image_size": 224,
    }  # fmt: skip
    size = tuple(config.get(name, value) for name, value in names.items())
    overrides: dict[str, Any] = dict(zip(("width", "depth", "heads", "patch", "image_size"), size, strict=True))
    overrides |= {
        "ratio": config.get("intermediate_size", 3072) / size[0],
        "in_channels": config.get("num_channels", 3),
        "eps": config.get("layer_norm_eps", 1e-12),
        "activation": activations[activation],
        "dropout": config.get("hidden_dropout_prob", 0.0),
        "attention_dropout": config.get("attention_probs_dropout_prob", 0.0),
    }
    if "ViTForImageClassification" not in (config.get("architectures") or ["ViTForImageClassification"]):
        return Sizes(known.get(size, "vit_base16"), {**overrides, "num_classes": 0})
    count, classes = labels(config)
    return Sizes(known.get(size, "vit_base16"), {**overrides, "num_classes": count}, classes)


def write(model: Any) -> tuple[str, dict[str, Any]]:
    """ViTConfig: the sizes are the network's."""
    block = model.blocks[0]
    values = {
        "hidden_size": model.width, "num_hidden_layers": len(model.blocks), "num_attention_heads": block.attention.heads,
        "intermediate_size": block.mlp.expand.out_features, "image_size": model.image_size[0],
        "patch_size": model.patches.patch, "layer_norm_eps": model.norm.eps,
        "num_channels": model.patches.projection.in_channels, "num_labels": model.head.out_features,
    }  # fmt: skip
    return "ViTForImageClassification", values
