"""EfficientNet's configuration files."""

from typing import Any

from jingdu.errors import Refused, UsageError
from jingdu.weights.configs.common import Config, Sizes, Timm, labels, need
from jingdu.weights.report import printable

EFFNET = {
    "num_classes": "num_classes", "in_chans": "in_channels", "drop_rate": "dropout", "output_stride": "output_stride",
    "bn_eps": "eps", "bn_momentum": "momentum",
}  # fmt: skip
"""Of timm's class EfficientNet, of which its MobileNets are."""


TIMM = Timm({**EFFNET, "drop_path_rate": "drop_connect", "pad_type": "padding"}, {"global_pool": "avg"})


def read(config: Config) -> Sizes:
    """EfficientNetConfig (transformers/models/efficientnet/configuration_efficientnet.py).

    What it calls the norms' momentum is TensorFlow's share that is kept: ours is 1 less it.
    """
    if (kind := config.get("model_type", "efficientnet")) != "efficientnet":
        raise Refused(f"config.json is of a {printable(kind)}, and not of an efficientnet")
    for name, wanted in (("depth_divisor", 8), ("squeeze_expansion_ratio", 0.25), ("pooling_type", "mean")):
        need(config, name, wanted)
    if config.get("hidden_act", "swish") not in ("swish", "silu"):
        raise Refused(f"config.json asks for hidden_act = {printable(config['hidden_act'])}; our network has swish")
    columns = {
        "num_block_repeats": (1, 2, 2, 3, 3, 4, 1), "kernel_sizes": (3, 3, 5, 3, 5, 5, 3), "strides": (1, 2, 2, 2, 1, 2, 1),
        "expand_ratios": (1, 6, 6, 6, 6, 6, 6), "out_channels": (16, 24, 40, 80, 112, 192, 320),
        "in_channels": (32, 16, 24, 40, 80, 112, 192),
    }  # fmt: skip
    for name, wanted in columns.items():
        if tuple(config.get(name, wanted)) != wanted:
            raise Refused(f"config.json asks for {name} = {config[name]!r}; EfficientNet has {list(wanted)}")
    known = {(1.0, 1.0): "b0", (1.0, 1.1): "b1", (1.1, 1.2): "b2", (1.2, 1.4): "b3", (1.4, 1.8): "b4", (1.6, 2.2): "b5"}
    known |= {(1.8, 2.6): "b6", (2.0, 3.1): "b7"}
    scale = (config.get("width_coefficient", 2.0), config.get("depth_coefficient", 3.1))
    if scale not in known:
        raise Refused(f"config.json asks for a width and depth of {scale}, which is none of B0 to B7")
    count, classes = labels(config)
    overrides: dict[str, Any] = {
        "num_classes": count,
        "padding": "keras",
        "square": tuple(config.get("depthwise_padding", ())),
        "eps": config.get("batch_norm_eps", 0.001),
        "momentum": round(1 - config.get("batch_norm_momentum", 0.99), 6),
        "dropout": config.get("dropout_rate", 0.5),
        "drop_connect": config.get("drop_connect_rate", 0.2),
    }
    overrides |= {} if config.get("num_channels", 3) == 3 else {"in_channels": config["num_channels"]}
    return Sizes(f"efficientnet_{known[scale]}", overrides, classes)


def write(model: Any) -> tuple[str, dict[str, Any]]:
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
