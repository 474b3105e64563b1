"""MAE's configuration files."""

from typing import Any

from jingdu.errors import Refused, UsageError
from jingdu.weights.configs.common import Config, Sizes, Timm, need
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
    },
    {"global_pool": "token"},
)
ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}


def read(config: Config) -> Sizes:
    """ViTMAEConfig (transformers/models/vit_mae/configuration_vit_mae.py), whose default targets are plain pixels."""
    if (kind := config.get("model_type", "vit_mae")) != "vit_mae":
        raise Refused(f"config.json is of a {printable(kind)}, and not of a vit_mae")
    need(config, "hidden_dropout_prob", 0.0)
    activation = config.get("hidden_act", "gelu")
    if activation not in ACTIVATIONS:
        raise Refused(f"config.json asks for hidden_act = {printable(activation)}: known are {', '.join(ACTIVATIONS)}")
    names = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "patch_size": 16}
    size = tuple(config.get(name, value) for name, value in names.items())
    known = {(768, 12, 12, 16): "base", (1024, 24, 16, 16): "large", (1280, 32, 16, 14): "huge"}
    image, ratio = config.get("image_size", 224), config.get("intermediate_size", 3072) / size[0]
    overrides: dict[str, Any] = dict(zip(("width", "depth", "heads", "patch"), size, strict=True))
    overrides |= {
        "image_size": tuple(image) if isinstance(image, list) else image,
        "ratio": ratio,
        "in_channels": config.get("num_channels", 3),
        "eps": config.get("layer_norm_eps", 1e-12),
        "activation": ACTIVATIONS[activation],
        "biases": "full" if config.get("qkv_bias", True) else "none",
        "attention_dropout": config.get("attention_probs_dropout_prob", 0.0),
    }
    what = known.get(size, "base")
    (architecture, *_) = config.get("architectures") or ("ViTMAEForPreTraining",)
    if architecture == "ViTMAEModel":
        return Sizes(f"mae_encoder_{what}{'14' if what == 'huge' else ''}", {**overrides, "num_classes": 0})
    if architecture != "ViTMAEForPreTraining":
        raise Refused(f"config.json is of a {printable(architecture)}: known are ViTMAEForPreTraining and ViTMAEModel")
    names = {"decoder_hidden_size": 512, "decoder_num_hidden_layers": 8, "decoder_num_attention_heads": 16}
    decoder = tuple(config.get(name, value) for name, value in names.items())
    inner = config.get("decoder_intermediate_size", 2048)
    if inner != int(ratio * decoder[0]):
        raise Refused(
            f"config.json asks for a decoder_intermediate_size of {inner}; ours is as many times its width as the encoder's"
        )
    overrides |= {"decoder": decoder, "masked": config.get("mask_ratio", 0.75)}
    return Sizes(f"mae_pretrain_{what}", {**overrides, "normalised": bool(config.get("norm_pix_loss", False))})


def write(model: Any) -> tuple[str, dict[str, Any]]:
    """ViTMAEConfig of an autoencoder, or of an encoder alone."""
    encoder = getattr(model, "encoder", model)
    block = encoder.blocks[0]
    values = {
        "hidden_size": encoder.width, "num_hidden_layers": len(encoder.blocks),
        "num_attention_heads": block.attention.heads, "intermediate_size": block.mlp.expand.out_features,
        "image_size": encoder.image_size[0], "patch_size": encoder.patches.patch, "layer_norm_eps": encoder.norm.eps,
        "num_channels": encoder.patches.projection.in_channels, "qkv_bias": block.attention.qkv.bias is not None,
        "attention_probs_dropout_prob": block.attention.dropout,
    }  # fmt: skip
    if encoder.image_size[0] != encoder.image_size[1]:
        raise UsageError("transformers' ViTMAE starts from square images")
    if encoder is model:
        if getattr(model.head, "weight", None) is not None or len(model.head.state_dict()):
            raise UsageError("transformers has no classifier of ViTMAE's: as timm or jingdu it can be written")
        return "ViTMAEModel", values
    if model.mask_tokens != "decoder":
        raise UsageError("transformers' ViTMAE has its mask tokens in the decoder")
    decoder = model.decoder.blocks[0]
    return "ViTMAEForPreTraining", values | {
        "decoder_hidden_size": model.decoder.embed.out_features, "decoder_num_hidden_layers": len(model.decoder.blocks),
        "decoder_num_attention_heads": decoder.attention.heads,
        "decoder_intermediate_size": decoder.mlp.expand.out_features, "mask_ratio": model.masked,
        "norm_pix_loss": model.normalised,
    }  # fmt: skip
