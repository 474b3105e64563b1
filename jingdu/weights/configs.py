"""What the files beside the weights say: which variant, of which sizes, with which classes and preprocessing.

One function for each library and family turns a `config.json` into a variant and overrides of `build`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jingdu.data.preprocess import Preprocess
from jingdu.errors import Refused, UsageError
from jingdu.names import Call
from jingdu.weights.report import printable
from jingdu.weights.tables import library_of

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Sizes:
    """Which network some weights are of. `variant` None: nothing says so but their keys."""

    variant: str | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    classes: tuple[str, ...] | None = None
    preprocess: Preprocess | None = None


def _need(config: Config, name: str, wanted: Any) -> None:
    """Refuse a configuration that asks for something the paper's network does not have."""
    value = config.get(name, wanted)
    if value != wanted:
        raise Refused(f"config.json asks for {name} = {value!r}; our network has {wanted!r}")


def _labels(config: Config) -> tuple[int, tuple[str, ...] | None]:
    """Number and names of the classes of a transformers configuration (2 where it does not say)."""
    names = config.get("id2label")
    if not isinstance(names, Mapping):
        return int(config.get("num_labels", 2)), None
    ordered = tuple(str(names[key]) for key in sorted(names, key=int))
    unnamed = all(name == f"LABEL_{i}" for i, name in enumerate(ordered))
    return len(ordered), None if unnamed else ordered


def _transformers_resnet(config: Config) -> Sizes:
    """ResNetConfig (transformers/models/resnet/configuration_resnet.py)."""
    _need(config, "hidden_act", "relu")
    _need(config, "downsample_in_first_stage", False)
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
    count, classes = _labels(config)
    variant = named.get((block, depths), "resnet18" if block == "basic" else "resnet50")
    overrides: dict[str, Any] = {"num_classes": count}
    overrides |= {} if (block, depths) in named else {"depths": depths}
    overrides |= {} if width == 64 else {"width": width}
    overrides |= {} if config.get("num_channels", 3) == 3 else {"in_channels": config["num_channels"]}
    overrides |= {"stride_on": "1x1"} if config.get("downsample_in_bottleneck") else {}
    return Sizes(variant, overrides, classes)


def _transformers_transformer(config: Config) -> Sizes:
    """MarianConfig and FSMTConfig of transformers."""
    kind = config.get("model_type")
    if kind not in ("marian", "fsmt"):
        raise Refused(
            f"config.json is of a {kind}; of transformers, MarianMTModel and FSMTForConditionalGeneration are known"
        )
    return _marian(config) if kind == "marian" else _fsmt(config)


def _translator(config: Config, activations: Mapping[str, str], default: str) -> dict[str, Any]:
    """What both call alike; the defaults are those of their classes."""
    _need(config, "scale_embedding", True)
    heads = config.get("encoder_attention_heads", 16)
    _need(config, "decoder_attention_heads", heads)
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
    _need(config, "share_encoder_decoder_embeddings", True)
    _need(config, "tie_word_embeddings", True)
    for name in ("add_bias_logits", "normalize_before", "normalize_embedding", "add_final_layer_norm"):
        _need(config, name, False)  # of files from before 5.0, where they could be said
    vocabulary, pad = config.get("vocab_size", 58101), config.get("pad_token_id", 58100)
    _need(config, "decoder_vocab_size", vocabulary)
    marks = (pad, config.get("eos_token_id", 0), config.get("decoder_start_token_id", 58100))
    found = _translator(config, {"swish": "swish", "silu": "swish", "relu": "relu"}, "gelu")
    return Sizes("transformer_opus_mt_en_de", {"vocabulary": vocabulary, "marks": marks, **found})


def _fsmt(config: Config) -> Sizes:
    """FSMTConfig (transformers/models/fsmt/configuration_fsmt.py). Whether its embeddings are one is seen by the weights."""
    vocabulary = config.get("tgt_vocab_size", 42024)
    _need(config, "src_vocab_size", vocabulary)
    _need(config, "pad_token_id", 1)  # places are counted from behind it
    for name in ("encoder_layerdrop", "decoder_layerdrop"):
        _need(config, name, 0)
    marks = (1, config.get("eos_token_id", 2), config.get("decoder_start_token_id", 2))
    found = _translator(config, {"relu": "relu", "swish": "swish", "silu": "swish"}, "relu")
    return Sizes("transformer_wmt19_en_de", {"vocabulary": vocabulary, "marks": marks, **found})


def _decoder(config: Config, sizes_of: Mapping[str, tuple[int, int, int]], defaults: Mapping[str, Any]) -> Sizes:
    """A GPT by transformers' names n_embd, n_layer, n_head, n_positions; `sizes_of` are width, layers, heads of variants."""
    found = {name: config.get(name, value) for name, value in defaults.items()}
    _need(config, "layer_norm_epsilon", 1e-5)
    if config.get("n_inner") not in (None, 4 * found["n_embd"]):
        raise Refused(f"config.json asks for n_inner = {config['n_inner']}; our network has four times n_embd")
    size = (found["n_embd"], found["n_layer"], found["n_head"])
    variant = next((name for name, of in sizes_of.items() if of == size), next(iter(sizes_of)))
    overrides: dict[str, Any] = {}
    if sizes_of[variant] != size:
        overrides = dict(zip(("width", "layers", "heads"), size, strict=True))
    for theirs, ours in (("vocab_size", "vocabulary"), ("n_positions", "context")):
        overrides |= {} if found[theirs] == defaults[theirs] else {ours: found[theirs]}
    # One dropout for all three: transformers' models are given one value each.
    overrides |= {} if config.get("resid_pdrop", 0.1) == 0.1 else {"dropout": config["resid_pdrop"]}
    return Sizes(variant, overrides)


def _transformers_gpt(config: Config) -> Sizes:
    """OpenAIGPTConfig (transformers/models/openai/configuration_openai.py), whose "gelu" is the tanh form."""
    _need(config, "afn", "gelu")
    defaults = {"n_embd": 768, "n_layer": 12, "n_head": 12, "vocab_size": 40478, "n_positions": 512}
    return _decoder(config, {"gpt1": (768, 12, 12)}, defaults)


def _transformers_gpt2(config: Config) -> Sizes:
    """GPT2Config (transformers/models/gpt2/configuration_gpt2.py)."""
    for name, wanted in (("scale_attn_weights", True), ("scale_attn_by_inverse_layer_idx", False)):
        _need(config, name, wanted)
    if config.get("activation_function", "gelu_new") not in ("gelu_new", "gelu_pytorch_tanh"):
        raise Refused(f"config.json asks for {config['activation_function']}; our network has the tanh form of gelu")
    known = {
        "gpt2": (768, 12, 12),
        "gpt2_medium": (1024, 24, 16),
        "gpt2_large": (1280, 36, 20),
        "gpt2_xl": (1600, 48, 25),
    }
    defaults = {"n_embd": 768, "n_layer": 12, "n_head": 12, "vocab_size": 50257, "n_positions": 1024}
    return _decoder(config, known, defaults)


BERT_HEADS: Mapping[str, str | None] = {
    "BertModel": None,
    "BertForMaskedLM": "words",
    "BertLMHeadModel": "words",
    "BertForPreTraining": "pretraining",
    "BertForNextSentencePrediction": "follows",
    "BertForSequenceClassification": "class",
    "BertForTokenClassification": "tags",
    "BertForQuestionAnswering": "span",
    "BertForMultipleChoice": "choice",
}
"""transformers' classes -> our heads."""


def _transformers_bert(config: Config) -> Sizes:
    """BertConfig (transformers/models/bert/configuration_bert.py)."""
    kind = config.get("model_type", "bert")
    if kind != "bert":
        raise Refused(f"config.json is of a {printable(kind)}, and not of a bert")
    for name, wanted in (
        ("hidden_act", "gelu"), ("position_embedding_type", "absolute"), ("tie_word_embeddings", True),
        ("add_cross_attention", False),
    ):  # fmt: skip
        _need(config, name, wanted)
    (architecture, *_) = config.get("architectures") or ("BertModel",)
    if architecture not in BERT_HEADS:
        raise Refused(f"config.json is of a {printable(architecture)}: known are {', '.join(BERT_HEADS)}")
    head = BERT_HEADS[architecture]
    known = {
        "bert_base_uncased": (30522, 768, 12, 12),
        "bert_base_cased": (28996, 768, 12, 12),
        "bert_large_uncased": (30522, 1024, 24, 16),
        "bert_large_cased": (28996, 1024, 24, 16),
        "bert_base_multilingual_cased": (119547, 768, 12, 12),
        "bert_base_chinese": (21128, 768, 12, 12),
        "bert_all_minilm_l6_v2": (30522, 384, 6, 12),
    }
    names = {"vocab_size": 30522, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}
    size = tuple(config.get(name, value) for name, value in names.items())
    variant = next((name for name, of in known.items() if of == size), "bert_base_uncased")
    overrides: dict[str, Any] = {
        **dict(zip(("vocabulary", "width", "layers", "heads"), size, strict=True)),
        "context": config.get("max_position_embeddings", 512),
        "segments": config.get("type_vocab_size", 2),
        "head": head,
        "causal": bool(config.get("is_decoder", False)),
        "dropout": config.get("hidden_dropout_prob", 0.1),
        "attention_dropout": config.get("attention_probs_dropout_prob", 0.1),
        "inner": config.get("intermediate_size", 3072),
        "eps": config.get("layer_norm_eps", 1e-12),
    }
    if head not in ("class", "tags"):
        return Sizes(variant, overrides)
    count, classes = _labels(config)
    return Sizes(variant, {**overrides, "labels": count}, classes)


def _transformers_mobilenet(config: Config) -> Sizes:
    """MobileNetV1Config and MobileNetV2Config (transformers/models/mobilenet_v1, mobilenet_v2).

    Their classes state no TensorFlow decay that is right as torch's momentum; those of the released code are 0.9997 and
    0.997 (research/slim/nets/mobilenet_v1.py, mobilenet/mobilenet.py).
    """
    version = {"mobilenet_v1": 1, "mobilenet_v2": 2}.get(config.get("model_type", ""))
    if version is None:
        raise Refused(f"config.json is of a {printable(config.get('model_type'))}, and of neither version of MobileNet")
    _need(config, "min_depth", 8)
    kind = config.get("hidden_act", "relu6")
    if kind not in ("relu", "relu6"):
        raise Refused(f"config.json asks for hidden_act = {printable(kind)}; our network has relu or relu6")
    if version == 2:
        for name, wanted in (
            ("depth_divisible_by", 8), ("expand_ratio", 6), ("first_layer_is_expansion", True),
            ("finegrained_output", True),
        ):  # fmt: skip
            _need(config, name, wanted)
    alpha = config.get("depth_multiplier", 1.0)
    widths = {1: (1.0, 0.75, 0.5, 0.25), 2: (1.0, 1.4, 0.75, 0.5, 0.35)}[version]
    variant = f"mobilenet_v{version}_{round(100 * alpha):03d}" if alpha in widths else f"mobilenet_v{version}_100"
    count, classes = _labels(config)
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


def _transformers_efficientnet(config: Config) -> Sizes:
    """EfficientNetConfig (transformers/models/efficientnet/configuration_efficientnet.py).

    What it calls the norms' momentum is TensorFlow's share that is kept: ours is 1 less it.
    """
    if (kind := config.get("model_type", "efficientnet")) != "efficientnet":
        raise Refused(f"config.json is of a {printable(kind)}, and not of an efficientnet")
    for name, wanted in (("depth_divisor", 8), ("squeeze_expansion_ratio", 0.25), ("pooling_type", "mean")):
        _need(config, name, wanted)
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
    count, classes = _labels(config)
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


def _transformers_regnet(config: Config) -> Sizes:
    """RegNetConfig (transformers/models/regnet/configuration_regnet.py): stages, of which ours is the variant that has them."""
    if (kind := config.get("model_type", "regnet")) != "regnet":
        raise Refused(f"config.json is of a {printable(kind)}, and not of a regnet")
    for name, wanted in (("hidden_act", "relu"), ("downsample_in_first_stage", True)):
        _need(config, name, wanted)
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
                count, classes = _labels(config)
                overrides: dict[str, Any] = {"num_classes": count}
                overrides |= {} if stem == 32 else {"stem": stem}
                overrides |= {} if rounding == "nearest" else {"rounding": rounding}
                overrides |= {} if config.get("num_channels", 3) == 3 else {"in_channels": config["num_channels"]}
                return Sizes(variant, overrides, classes)
    raise Refused(
        f"config.json: {printable(layer)} layers of hidden_sizes {wanted[0]}, depths {wanted[1]} and groups_width {wanted[2]} "
        "are none of the paper's RegNets"
    )


def _transformers_vit(config: Config) -> Sizes:
    """ViTConfig (transformers/models/vit/configuration_vit.py)."""
    if config.get("model_type", "vit") != "vit":
        raise Refused(f"config.json is of a {printable(config.get('model_type'))}, and not of a vit")
    _need(config, "qkv_bias", True)
    activations = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}
    activation = config.get("hidden_act", "gelu")
    if activation not in activations:
        raise Refused(f"config.json asks for hidden_act = {printable(activation)}: known are {', '.join(activations)}")
    known = {
        (768, 12, 12, 16, 224): "vit_base16", (768, 12, 12, 32, 224): "vit_base32", (768, 12, 12, 16, 384): "vit_base16_384",
        (192, 12, 3, 16, 224): "vit_tiny16", (384, 12, 6, 16, 224): "vit_small16", (384, 12, 6, 32, 224): "vit_small32",
        (1024, 24, 16, 16, 224): "vit_large16", (1024, 24, 16, 16, 384): "vit_large16_384",
        (1024, 24, 16, 32, 224): "vit_large32", (1280, 32, 16, 14, 224): "vit_huge14",
    }  # fmt: skip
    names = {
        "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "patch_size": 16, "image_size": 224,
    }  # fmt: skip
    size = tuple(config.get(name, value) for name, value in names.items())
    overrides: dict[str, Any] = dict(zip(("width", "depth", "heads", "patch", "image_size"), size, strict=True))
    overrides |= {
        "ratio": config.get("intermediate_size", 3072) / size[0],
        "in_channels": config.get("num_channels", 3),
        "eps": config.get("layer_norm_eps", 1e-12),
        "activation": activations[activation],
        "dropout": config.get("hidden_dropout_prob", 0.0),
        "attention_dropout": config.get("attention_probs_dropout_prob", 0.0),
    }
    if "ViTForImageClassification" not in (config.get("architectures") or ["ViTForImageClassification"]):
        return Sizes(known.get(size, "vit_base16"), {**overrides, "num_classes": 0})
    count, classes = _labels(config)
    return Sizes(known.get(size, "vit_base16"), {**overrides, "num_classes": count}, classes)


_TRANSFORMERS: Mapping[str, Callable[[Config], Sizes]] = {
    "bert": _transformers_bert,
    "efficientnet": _transformers_efficientnet,
    "gpt": _transformers_gpt,
    "gpt2": _transformers_gpt2,
    "mobilenet": _transformers_mobilenet,
    "regnet": _transformers_regnet,
    "resnet": _transformers_resnet,
    "transformer": _transformers_transformer,
    "vit": _transformers_vit,
}
"""Family -> the meaning of its transformers configuration."""


@dataclass(frozen=True)
class _Timm:
    """What a family makes of timm's configuration."""

    arguments: Mapping[str, str]
    """timm's arguments -> ours."""
    needs: Mapping[str, Any] = field(default_factory=dict)
    """Values that ours has and nothing else."""


_EFFNET = {
    "num_classes": "num_classes", "in_chans": "in_channels", "drop_rate": "dropout", "output_stride": "output_stride",
    "bn_eps": "eps", "bn_momentum": "momentum",
}  # fmt: skip
"""Of timm's class EfficientNet, of which its MobileNets are."""

_TIMM: Mapping[str, _Timm] = {
    "efficientnet": _Timm({**_EFFNET, "drop_path_rate": "drop_connect", "pad_type": "padding"}, {"global_pool": "avg"}),
    "mobilenet": _Timm(_EFFNET, {"global_pool": "avg"}),
    "nas": _Timm(
        {"num_classes": "num_classes", "in_chans": "in_channels", "drop_rate": "dropout"},
        {"global_pool": "avg", "output_stride": 32, "pad_type": "same"},
    ),
    "regnet": _Timm(
        {"num_classes": "num_classes", "in_chans": "in_channels"}, {"global_pool": "avg", "output_stride": 32}
    ),
    "resnet": _Timm(
        {"num_classes": "num_classes", "in_chans": "in_channels", "output_stride": "output_stride"},
        {"global_pool": "avg"},
    ),
    "vgg": _Timm(
        {"num_classes": "num_classes", "in_chans": "in_channels", "drop_rate": "dropout"},
        {"global_pool": "avg", "mlp_ratio": 1.0, "output_stride": 32},
    ),
    "vit": _Timm(
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
    ),
}


def _timm(config: Config, family: str, variants: Sequence[str], aliases: Mapping[str, str]) -> Sizes:
    """timm's config.json (timm/models/_hub.py): an architecture, arguments, and the pretrained_cfg."""
    name = str(config["architecture"]).partition(".")[0]
    call = Call.parse(aliases.get(f"timm/{name}", name))
    if variants and call.name not in variants:
        raise Refused(
            f"config.json says that these are weights of timm's {name}, which is none of {family}'s variants "
            f"({', '.join(variants)})"
        )
    rules = _TIMM.get(family, _Timm({}))
    arguments = dict(config.get("model_args") or {})
    for key, wanted in rules.needs.items():
        _need(config, key, wanted)
        _need(arguments, key, wanted)
        arguments.pop(key, None)
    meanings = rules.arguments
    inner = config.get("pretrained_cfg") or {}
    if "num_classes" in meanings and isinstance(count := config.get("num_classes", inner.get("num_classes")), int):
        arguments["num_classes"] = count
    unknown = set(arguments) - set(meanings)
    if unknown:
        raise Refused(f"config.json: timm's {', '.join(sorted(unknown))} for {name} mean nothing to our {family}")
    overrides = {**call.arguments, **{meanings[key]: value for key, value in arguments.items()}}
    names = config.get("label_names")
    if isinstance(names, Mapping):
        names = [names[key] for key in sorted(names, key=int)]
    about = config.get("label_descriptions") or {}
    classes = tuple(str(about.get(name, name)) for name in names) if isinstance(names, list) else None
    if classes is not None and len(classes) != arguments.get("num_classes", len(classes)):
        classes = None
    return Sizes(call.name, overrides, classes, _timm_preprocess(inner))


_RESAMPLE = {0: "nearest", 2: "bilinear", 3: "bicubic"}
"""Pillow's numbers for the interpolations that we have (PIL.Image.Resampling)."""


def _timm_preprocess(config: Config) -> Preprocess | None:
    """The evaluation transform of a pretrained_cfg (timm/data/transforms_factory.py); None if we have none like it."""
    channels, height, width = config.get("input_size", (0, 0, 0))
    ours = config.get("interpolation") in _RESAMPLE.values() and config.get("crop_mode", "center") == "center"
    if not ours or height != width or channels not in (1, 3):
        return None
    return Preprocess(
        size=height,
        resize=math.floor(height / config.get("crop_pct", 0.875)),
        mean=tuple(config.get("mean", (0.0,))),
        std=tuple(config.get("std", (1.0,))),
        interpolation=config["interpolation"],
        channels=channels,
    )


def timm_config(
    name: str, family: str, overrides: Mapping[str, Any], classes: Sequence[str] | None, preprocess: Preprocess | None
) -> dict[str, Any]:
    """timm's config.json for a network of ours: what `_timm` reads. `overrides`: of `build`, beyond the architecture's."""
    config: dict[str, Any] = {"architecture": name}
    inner: dict[str, Any] = {}
    theirs = {ours: theirs for theirs, ours in _TIMM[family].arguments.items()} if family in _TIMM else {}
    arguments = {theirs[key]: value for key, value in overrides.items() if key in theirs}
    if "num_classes" in arguments:
        config["num_classes"] = inner["num_classes"] = arguments.pop("num_classes")
    if preprocess is not None and preprocess.size is not None and preprocess.shorter_side is not None:
        size, resize = preprocess.size, preprocess.shorter_side
        share = size / resize
        inner |= {
            "input_size": [preprocess.channels, size, size],
            # Divided, multiplied and rounded down it must be the same shorter side again.
            "crop_pct": share if math.floor(size / share) == resize else math.nextafter(share, 0),
            "crop_mode": "center",
            "mean": list(preprocess.mean),
            "std": list(preprocess.std),
            "interpolation": preprocess.interpolation,
        }
    if arguments:
        config["model_args"] = arguments
    if classes is not None:
        config["label_names"] = list(classes)
    return {**config, "pretrained_cfg": inner}


def preprocessor_of(preprocess: Preprocess | None) -> dict[str, Any] | None:
    """A transformers preprocessor_config.json: what `preprocess_of` reads. None where transformers has none like it.

    Its crop rounds an odd margin down, and ours as torchvision's to the even pixel: they may lie one pixel apart.
    """
    if preprocess is None or preprocess.size is None or preprocess.channels != 3:
        return None
    (resample,) = (number for number, name in _RESAMPLE.items() if name == preprocess.interpolation)
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": preprocess.shorter_side},
        "resample": resample,
        "do_center_crop": True,
        "crop_size": {"height": preprocess.size, "width": preprocess.size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocess.mean),
        "image_std": list(preprocess.std),
    }


def preprocess_of(config: Config | None) -> Preprocess | None:
    """A transformers preprocessor_config.json as a Preprocess; None where it does something else.

    ConvNextImageProcessor below 384 pixels resizes to size / crop_pct and crops; the CLIP kind names both sizes.
    Squashing an image into a square is not what `Preprocess` does.
    """
    if not config or not config.get("do_resize", True) or not config.get("do_rescale", True):
        return None
    if not math.isclose(config.get("rescale_factor", 1 / 255), 1 / 255, rel_tol=1e-4):
        return None
    kind = str(config.get("image_processor_type") or config.get("feature_extractor_type") or "")
    size, crop = config.get("size"), config.get("crop_size")
    edge = size.get("shortest_edge") if isinstance(size, Mapping) else size
    interpolation = _RESAMPLE.get(config.get("resample", -1))
    if not isinstance(edge, int) or interpolation is None:
        return None
    if kind.startswith("ConvNext"):
        if edge >= 384:
            return None
        side, resize = edge, int(edge / config.get("crop_pct", 224 / 256))
    elif config.get("do_center_crop"):
        height, width = (crop.get("height"), crop.get("width")) if isinstance(crop, Mapping) else (crop, crop)
        if not isinstance(height, int) or height != width:
            return None
        side, resize = height, edge
    else:
        return None
    normalise = config.get("do_normalize", True) and "image_mean" in config and "image_std" in config
    mean = tuple(config["image_mean"]) if normalise else (0.0,)
    std = tuple(config["image_std"]) if normalise else (1.0,)
    return Preprocess(side, resize, mean, std, interpolation)  # type: ignore[arg-type]


def _is_side(value: Any) -> bool:
    return value is None or (isinstance(value, int) and 0 < value <= 1 << 14)


def _are_numbers(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) in (1, 3) and all(isinstance(x, int | float) for x in value)


_PREPROCESS: Mapping[str, Callable[[Any], bool]] = {
    "size": _is_side,
    "resize": _is_side,
    "mean": _are_numbers,
    "std": lambda value: _are_numbers(value) and all(value),
    "interpolation": lambda value: value in _RESAMPLE.values(),
    "channels": lambda value: value in (1, 3),
}
"""What each field of a Preprocess may be."""


def preprocess_from(plain: Any) -> Preprocess | None:
    """A Preprocess from JSON, as our own files hold it. Raises Refused for one that it cannot be."""
    if plain is None:
        return None
    if not isinstance(plain, Mapping) or any(name not in _PREPROCESS for name in plain):
        raise Refused(f"the preprocessing saved with the weights cannot be read: {printable(plain)}")
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()}
    wrong = [name for name, value in values.items() if not _PREPROCESS[name](value)]
    if wrong:
        raise Refused(f"the preprocessing saved with the weights has {wrong[0]} = {printable(values[wrong[0]])}")
    return Preprocess(**values)


def sizes(
    config: Config | None,
    family: str,
    *,
    preprocessor: Config | None = None,
    variants: Sequence[str] = (),
    aliases: Mapping[str, str] | None = None,
) -> Sizes:
    """What the configuration beside some weights says of their network.

    Args:
        config: the content of config.json, if there is one.
        family: the paper's key.
        preprocessor: the content of preprocessor_config.json, if there is one.
        variants: the family's variants: another architecture is refused.
        aliases: other libraries' names for them, as on the paper's card.

    Raises Refused for a network that the paper does not have, or values that are no configuration.
    """
    library = library_of(config)
    try:
        found = Sizes()
        if library == "timm" and config is not None:
            found = _timm(config, family, variants, aliases or {})
        elif library == "transformers" and config is not None and family in _TRANSFORMERS:
            found = _TRANSFORMERS[family](config)
        preprocess = preprocess_of(preprocessor) or found.preprocess
    except UsageError as error:
        raise Refused(f"config.json: {error}") from None
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError, ZeroDivisionError) as error:
        raise Refused(f"config.json holds a value of the wrong kind ({error})") from None
    return Sizes(found.variant, found.overrides, found.classes, preprocess)
