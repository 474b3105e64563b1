"""RegNet's configuration files."""

from typing import Any

from jingdu.errors import Refused, UsageError
from jingdu.weights.configs.common import Config, Sizes, Timm, labels, need
from jingdu.weights.report import printable

TIMM = Timm({"num_classes": "num_classes", "in_chans": "in_channels"}, {"global_pool": "avg", "output_stride": 32})


def read(config: Config) -> Sizes:
    """RegNetConfig (transformers/models/regnet/configuration_regnet.py): stages, of which ours is the variant that has them."""
    if (kind := config.get("model_type", "regnet")) != "regnet":
        raise Refused(f"config.json is of a {printable(kind)}, and not of a regnet")
    for name, wanted in (("hidden_act", "relu"), ("downsample_in_first_stage", True)):
        need(config, name, wanted)
    from jingdu import canon

    paper = canon.paper("regnet").load()
    layer, stem = config.get("layer_type", "y"), config.get("embedding_size", 32)
    wanted = (
        list(config.get("hidden_sizes", (128, 192, 512, 1088))), list(config.get("depths", (2, 6, 12, 2))),
        config.get("groups_width", 64),
    )  # fmt: skip
    for rounding in ("nearest", "ninety"):
        for variant, values in (
            (name, values) for name, (kind, values) in paper.VARIANTS.items() if kind is paper.regnet
        ):
            rule = paper.block_widths(*(values[name] for name in ("initial", "slope", "step", "depth")))
            widths, depths = paper.linear_stages(rule)
            widths, _ = paper.fit_groups(widths, [1] * len(widths), [values["group"]] * len(widths), rounding)
            if (widths, depths, values["group"]) == wanted and (layer == "y") == ("squeeze" in values):
                count, classes = labels(config)
                overrides: dict[str, Any] = {"num_classes": count}
                overrides |= {} if stem == 32 else {"stem": stem}
                overrides |= {} if rounding == "nearest" else {"rounding": rounding}
                overrides |= {} if config.get("num_channels", 3) == 3 else {"in_channels": config["num_channels"]}
                return Sizes(variant, overrides, classes)
    raise Refused(
        f"config.json: {printable(layer)} layers of hidden_sizes {wanted[0]}, depths {wanted[1]} and groups_width {wanted[2]} "
        "are none of the paper's RegNets"
    )


def write(model: Any) -> tuple[str, dict[str, Any]]:
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
