"""BEiT's configuration files."""

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
    {"global_pool": "avg", "use_abs_pos_emb": False, "use_rel_pos_bias": True},
)

KNOWN = {
    (768, 12, 12, 224): "beit_base_224", (768, 12, 12, 384): "beit_base_384", (1024, 24, 16, 224): "beit_large_224",
    (1024, 24, 16, 384): "beit_large_384", (1024, 24, 16, 512): "beit_large_512",
}  # fmt: skip
"""Width, depth, heads and the images' side of classifiers."""

MASKED, CLASSIFIER, BARE = "BeitForMaskedImageModeling", "BeitForImageClassification", "BeitModel"


def read(config: Config) -> Sizes:
    """BeitConfig (transformers/models/beit/configuration_beit.py): a classifier, masked image modelling, or neither's head."""
    if (kind := config.get("model_type", "beit")) != "beit":
        raise Refused(f"config.json is of a {printable(kind)}, and not of a beit")
    (architecture, *_) = config.get("architectures") or (CLASSIFIER,)
    if architecture not in (MASKED, CLASSIFIER, BARE):
        raise Refused(f"config.json is of a {printable(architecture)}: known are {MASKED}, {CLASSIFIER}, {BARE}")
    need(config, "hidden_act", "gelu")
    need(config, "use_absolute_position_embeddings", False)
    shared, own = (config.get(f"use_{kind}relative_position_bias", False) for kind in ("shared_", ""))
    if shared == own:
        raise Refused(
            "config.json asks for relative positions of all blocks and of each, or for none: ours has one of both"
        )
    names = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "image_size": 224}
    size = tuple(config.get(name, value) for name, value in names.items())
    scale, mean = config.get("layer_scale_init_value", 0.1), config.get("use_mean_pooling", True)
    overrides: dict[str, Any] = dict(zip(("width", "depth", "heads", "image_size"), size, strict=True))
    overrides |= {
        "patch": config.get("patch_size", 16),
        "ratio": config.get("intermediate_size", 3072) / size[0],
        "in_channels": config.get("num_channels", 3),
        "eps": config.get("layer_norm_eps", 1e-12),
        "dropout": config.get("hidden_dropout_prob", 0.0),
        "attention_dropout": config.get("attention_probs_dropout_prob", 0.0),
        "scale": scale if scale > 0 else None,
        "shared": bool(shared),
    }
    if architecture == MASKED:
        need(config, "use_mean_pooling", True)  # without, transformers normalises the tokens twice
        variant = "beit_large_mim" if size[0] == 1024 else "beit_base_mim"
        return Sizes(variant, {**overrides, "words": config.get("vocab_size", 8192)})
    variant = KNOWN.get(size, "beit_base_224")
    overrides |= {"pool": "mean" if mean else "token"}
    if architecture == BARE:
        return Sizes(variant, {**overrides, "num_classes": 0})
    count, classes = labels(config)
    return Sizes(variant, {**overrides, "num_classes": count}, classes)


def write(model: Any) -> tuple[str, dict[str, Any]]:
    """BeitConfig, and which of the classes has our network's head."""
    block = model.blocks[0]
    values = {
        "hidden_size": model.width, "num_hidden_layers": len(model.blocks), "num_attention_heads": block.attention.heads,
        "intermediate_size": block.mlp.expand.out_features, "image_size": model.image_size[0],
        "patch_size": model.patches.patch, "num_channels": model.patches.projection.in_channels,
        "layer_norm_eps": model.norm.eps, "use_shared_relative_position_bias": model.bias is not None,
        "use_relative_position_bias": model.bias is None, "use_mean_pooling": model.pool == "mean",
        "layer_scale_init_value": 0.0 if block.scale1 is None else 0.1, "hidden_dropout_prob": model.dropout.p,
        "attention_probs_dropout_prob": block.attention.dropout,
    }  # fmt: skip
    if model.words is not None:
        return MASKED, {**values, "vocab_size": model.words, "use_mask_token": True}
    if not hasattr(model.head, "out_features"):
        return BARE, values
    return CLASSIFIER, {**values, "num_labels": model.head.out_features}
