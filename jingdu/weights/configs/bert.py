"""BERT's configuration files."""

from collections.abc import Mapping
from typing import Any

from jingdu.errors import Refused
from jingdu.weights.configs.common import Config, Sizes, labels, need
from jingdu.weights.report import printable

HEADS: Mapping[str, str | None] = {
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


def read(config: Config) -> Sizes:
    """BertConfig (transformers/models/bert/configuration_bert.py)."""
    kind = config.get("model_type", "bert")
    if kind != "bert":
        raise Refused(f"config.json is of a {printable(kind)}, and not of a bert")
    for name, wanted in (
        ("hidden_act", "gelu"), ("position_embedding_type", "absolute"), ("tie_word_embeddings", True),
        ("add_cross_attention", False),
    ):  # fmt: skip
        need(config, name, wanted)
    (architecture, *_) = config.get("architectures") or ("BertModel",)
    if architecture not in HEADS:
        raise Refused(f"config.json is of a {printable(architecture)}: known are {', '.join(HEADS)}")
    head = HEADS[architecture]
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
    count, classes = labels(config)
    return Sizes(variant, {**overrides, "labels": count}, classes)


def write(model: Any) -> tuple[str, dict[str, Any]]:
    """BertConfig, and which of the classes has our network's head."""
    words, layer = model.embeddings.words.weight, model.layers[0]
    values = {
        "vocab_size": words.shape[0], "hidden_size": words.shape[1], "num_hidden_layers": len(model.layers),
        "num_attention_heads": layer.attention.heads, "intermediate_size": layer.expand.out_features,
        "hidden_dropout_prob": layer.dropout.p, "attention_probs_dropout_prob": layer.attention.dropout,
        "max_position_embeddings": model.context, "type_vocab_size": model.embeddings.segments.num_embeddings,
        "layer_norm_eps": layer.norm1.eps, "is_decoder": model.causal,
    }  # fmt: skip
    if model.head in ("class", "tags"):
        values["num_labels"] = model.classifier.out_features
    return next(name for name, head in HEADS.items() if head == model.head), values
