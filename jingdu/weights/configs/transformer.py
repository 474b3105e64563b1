"""The Transformer's configuration files."""

from collections.abc import Mapping
from typing import Any

from jingdu.errors import Refused
from jingdu.weights.configs.common import Config, Sizes, need


def read(config: Config) -> Sizes:
    """MarianConfig and FSMTConfig of transformers."""
    kind = config.get("model_type")
    if kind not in ("marian", "fsmt"):
        raise Refused(
            f"config.json is of a {kind}; of transformers, MarianMTModel and FSMTForConditionalGeneration are known"
        )
    return _marian(config) if kind == "marian" else _fsmt(config)


def _translator(config: Config, activations: Mapping[str, str], default: str) -> dict[str, Any]:
    """What both call alike; the defaults are those of their classes."""
    need(config, "scale_embedding", True)
    heads = config.get("encoder_attention_heads", 16)
    need(config, "decoder_attention_heads", heads)
    activation = activations.get(config.get("activation_function", default))
    if activation is None:
        known = " and ".join(sorted(set(activations.values())))
        raise Refused(
            f"config.json asks for the activation {config.get('activation_function', default)!r}; ours has {known}"
        )
    stacks = ("encoder", "decoder")
    return {
        "width": config.get("d_model", 1024),
        "inner": tuple(config.get(f"{stack}_ffn_dim", 4096) for stack in stacks),
        "heads": heads,
        "layers": tuple(config.get(f"{stack}_layers", 12) for stack in stacks),
        "activation": activation,
        "dropout": config.get("dropout", 0.1),
        "attention_dropout": config.get("attention_dropout", 0.0),
        "inner_dropout": config.get("activation_dropout", 0.0),
    }


def _marian(config: Config) -> Sizes:
    """MarianConfig (transformers/models/marian/configuration_marian.py)."""
    need(config, "share_encoder_decoder_embeddings", True)
    need(config, "tie_word_embeddings", True)
    for name in ("add_bias_logits", "normalize_before", "normalize_embedding", "add_final_layer_norm"):
        need(config, name, False)  # of files from before 5.0, where they could be said
    vocabulary, pad = config.get("vocab_size", 58101), config.get("pad_token_id", 58100)
    need(config, "decoder_vocab_size", vocabulary)
    marks = (pad, config.get("eos_token_id", 0), config.get("decoder_start_token_id", 58100))
    found = _translator(config, {"swish": "swish", "silu": "swish", "relu": "relu"}, "gelu")
    return Sizes("transformer_opus_mt_en_de", {"vocabulary": vocabulary, "marks": marks, **found})


def _fsmt(config: Config) -> Sizes:
    """FSMTConfig (transformers/models/fsmt/configuration_fsmt.py). Whether its embeddings are one is seen by the weights."""
    vocabulary = config.get("tgt_vocab_size", 42024)
    need(config, "src_vocab_size", vocabulary)
    need(config, "pad_token_id", 1)  # places are counted from behind it
    for name in ("encoder_layerdrop", "decoder_layerdrop"):
        need(config, name, 0)
    marks = (1, config.get("eos_token_id", 2), config.get("decoder_start_token_id", 2))
    found = _translator(config, {"relu": "relu", "swish": "swish", "silu": "swish"}, "relu")
    return Sizes("transformer_wmt19_en_de", {"vocabulary": vocabulary, "marks": marks, **found})
