"""DeiT's configuration files."""

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

KNOWN = {(192, 3): "deit_tiny", (384, 6): "deit_small", (768, 12): "deit_base"}
"""Width and heads."""
TAUGHT, PLAIN = "DeiTForImageClassificationWithTeacher", "ViTForImageClassification"


def read(config: Config) -> Sizes:
    """DeiTConfig (transformers/models/deit/configuration_deit.py); ViTConfig of the networks without the second token."""
    kind = config.get("model_type", "deit")
    if kind not in ("deit", "vit"):
        raise Refused(f"config.json is of a {printable(kind)}, and not of a deit or vit")
    distilled = kind == "deit"
    wanted = TAUGHT if distilled else PLAIN
    (architecture, *_) = config.get("architectures") or (wanted,)
    if architecture not in (wanted, "DeiTModel" if distilled else "ViTModel"):
        raise Refused(f"config.json is of a {printable(architecture)}: known is {wanted}")
    need(config, "qkv_bias", True)
    need(config, "hidden_act", "gelu")
    names = {
        "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "patch_size": 16, "image_size": 224,
    }  # fmt: skip
    size = tuple(config.get(name, value) for name, value in names.items())
    overrides: dict[str, Any] = dict(zip(("width", "depth", "heads", "patch", "image_size"), size, strict=True))
    overrides |= {
        "ratio": config.get("intermediate_size", 3072) / size[0],
        "in_channels": config.get("num_channels", 3),
        "eps": config.get("layer_norm_eps", 1e-12),
        "dropout": config.get("hidden_dropout_prob", 0.0),
        "attention_dropout": config.get("attention_probs_dropout_prob", 0.0),
    }
    variant = KNOWN.get((size[0], size[2]), "deit_base") + "_distilled" * distilled
    if variant.startswith("deit_base") and size[4] == 384:
        variant += "_384"
    if architecture != wanted:
        return Sizes(variant, {**overrides, "num_classes": 0})
    count, classes = labels(config)
    return Sizes(variant, {**overrides, "num_classes": count}, classes)


def write(model: Any) -> tuple[str, dict[str, Any]]:
    """DeiTConfig: the sizes are the network's."""
    block = model.blocks[0]
    values = {
        "hidden_size": model.width, "num_hidden_layers": len(model.blocks), "num_attention_heads": block.attention.heads,
        "intermediate_size": block.mlp.expand.out_features, "image_size": model.image_size[0],
        "patch_size": model.patches.patch, "layer_norm_eps": model.norm.eps,
        "num_channels": model.patches.projection.in_channels, "num_labels": model.head.out_features,
    }  # fmt: skip
    return TAUGHT, values
