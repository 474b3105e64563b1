"""MobileNet's configuration files."""

from typing import Any

from jingdu.errors import Refused, UsageError
from jingdu.weights.configs.common import Config, Sizes, Timm, labels, need
from jingdu.weights.configs.efficientnet import EFFNET
from jingdu.weights.report import printable

TIMM = Timm(EFFNET, {"global_pool": "avg"})


def read(config: Config) -> Sizes:
    """MobileNetV1Config and MobileNetV2Config (transformers/models/mobilenet_v1, mobilenet_v2).

    Their classes state no TensorFlow decay that is right as torch's momentum; those of the released code are 0.9997 and
    0.997 (research/slim/nets/mobilenet_v1.py, mobilenet/mobilenet.py).
    """
    version = {"mobilenet_v1": 1, "mobilenet_v2": 2}.get(config.get("model_type", ""))
    if version is None:
        raise Refused(f"config.json is of a {printable(config.get('model_type'))}, and of neither version of MobileNet")
    need(config, "min_depth", 8)
    kind = config.get("hidden_act", "relu6")
    if kind not in ("relu", "relu6"):
        raise Refused(f"config.json asks for hidden_act = {printable(kind)}; our network has relu or relu6")
    if version == 2:
        for name, wanted in (
            ("depth_divisible_by", 8), ("expand_ratio", 6), ("first_layer_is_expansion", True),
            ("finegrained_output", True),
        ):  # fmt: skip
            need(config, name, wanted)
    alpha = config.get("depth_multiplier", 1.0)
    widths = {1: (1.0, 0.75, 0.5, 0.25), 2: (1.0, 1.4, 0.75, 0.5, 0.35)}[version]
    variant = f"mobilenet_v{version}_{round(100 * alpha):03d}" if alpha in widths else f"mobilenet_v{version}_100"
    count, classes = labels(config)
    overrides: dict[str, Any] = {
        "num_classes": count,
        "padding": "same" if config.get("tf_padding", True) else "symmetric",
        "eps": config.get("layer_norm_eps", 0.001),
        "momentum": {1: 0.0003, 2: 0.003}[version],
    }
    overrides |= {} if alpha in widths else {"alpha": alpha}
    overrides |= {} if kind == "relu6" else {"activation": kind}
    overrides |= {} if config.get("num_channels", 3) == 3 else {"in_channels": config["num_channels"]}
    overrides |= {} if config.get("output_stride", 32) == 32 else {"output_stride": config["output_stride"]}
    # The released configurations state what is kept, 0.999 and 0.8: as a share that is dropped nothing would be left.
    kept = config.get("classifier_dropout_prob", {1: 0.999, 2: 0.8}[version])
    overrides["dropout"] = round(1 - kept, 6) if kept > 0.5 else kept
    return Sizes(variant, overrides, classes)


def write(model: Any) -> tuple[str, dict[str, Any]]:
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
