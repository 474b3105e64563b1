"""ResNet's configuration files."""

from typing import Any

from jingdu.errors import Refused
from jingdu.weights.configs.common import Config, Sizes, Timm, labels, need

TIMM = Timm(
    {"num_classes": "num_classes", "in_chans": "in_channels", "output_stride": "output_stride"},
    {"global_pool": "avg"},
)


def read(config: Config) -> Sizes:
    """ResNetConfig (transformers/models/resnet/configuration_resnet.py)."""
    need(config, "hidden_act", "relu")
    need(config, "downsample_in_first_stage", False)
    block, depths = config.get("layer_type", "bottleneck"), tuple(config.get("depths", (3, 4, 6, 3)))
    width = config.get("embedding_size", 64)
    hidden = list(config.get("hidden_sizes", (256, 512, 1024, 2048)))
    expansion = {"basic": 1, "bottleneck": 4}.get(block)
    if expansion is None or hidden != [(width << i) * expansion for i in range(len(depths))]:
        raise Refused(
            f"config.json: {block} blocks with hidden_sizes {hidden} after embedding_size {width} are no "
            "ResNet of the paper, whose width doubles from stage to stage"
        )
    named = {
        ("basic", (2, 2, 2, 2)): "resnet18",
        ("basic", (3, 4, 6, 3)): "resnet34",
        ("bottleneck", (3, 4, 6, 3)): "resnet50",
        ("bottleneck", (3, 4, 23, 3)): "resnet101",
        ("bottleneck", (3, 8, 36, 3)): "resnet152",
    }
    count, classes = labels(config)
    variant = named.get((block, depths), "resnet18" if block == "basic" else "resnet50")
    overrides: dict[str, Any] = {"num_classes": count}
    overrides |= {} if (block, depths) in named else {"depths": depths}
    overrides |= {} if width == 64 else {"width": width}
    overrides |= {} if config.get("num_channels", 3) == 3 else {"in_channels": config["num_channels"]}
    overrides |= {"stride_on": "1x1"} if config.get("downsample_in_bottleneck") else {}
    return Sizes(variant, overrides, classes)


def write(model: Any) -> tuple[str, dict[str, Any]]:
    """ResNetConfig (transformers/models/resnet/configuration_resnet.py)."""
    sizes = {"embedding_size": model.conv1.out_channels, "hidden_sizes": list(model.channels)}
    stages = [getattr(model, name) for name in model.stages]
    kind = "bottleneck" if stages[0][0].expansion == 4 else "basic"
    more = {"depths": [len(stage) for stage in stages], "num_labels": model.fc.out_features}
    more["num_channels"] = model.conv1.in_channels
    if kind == "bottleneck" and len(stages) > 1:
        more["downsample_in_bottleneck"] = stages[1][0].conv1.stride == (2, 2)
    return "ResNetForImageClassification", {**sizes, "layer_type": kind, **more}
