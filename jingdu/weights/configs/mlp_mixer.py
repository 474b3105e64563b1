"""MLP-Mixer's configuration files: timm's; transformers has no such network."""

from jingdu.weights.configs.common import Timm

TIMM = Timm(
    {
        "num_classes": "num_classes",
        "in_chans": "in_channels",
        "img_size": "image_size",
        "patch_size": "patch",
        "embed_dim": "width",
        "num_blocks": "depth",
        "proj_drop_rate": "dropout",
        "drop_path_rate": "drop",
    },
    {"global_pool": "avg"},
)
