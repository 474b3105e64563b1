"""VGG's configuration files."""

from jingdu.weights.configs.common import Timm

TIMM = Timm(
    {"num_classes": "num_classes", "in_chans": "in_channels", "drop_rate": "dropout"},
    {"global_pool": "avg", "mlp_ratio": 1.0, "output_stride": 32},
)
