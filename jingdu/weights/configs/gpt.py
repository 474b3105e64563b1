"""GPT's configuration files, and what GPT-2's have in common with them."""

from collections.abc import Mapping
from typing import Any

from jingdu.errors import Refused
from jingdu.weights.configs.common import Config, Sizes, need


def decoder(config: Config, sizes_of: Mapping[str, tuple[int, int, int]], defaults: Mapping[str, Any]) -> Sizes:
    """A GPT by transformers' names n_embd, n_layer, n_head, n_positions; `sizes_of` are width, layers, heads of variants."""
    found = {name: config.get(name, value) for name, value in defaults.items()}
    need(config, "layer_norm_epsilon", 1e-5)
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


def decoder_values(model: Any) -> dict[str, Any]:
    """What GPT2Config and OpenAIGPTConfig call the sizes of a GPT; dropout off, as in ours for inference."""
    width = model.words.weight.shape[1]
    sizes = {"n_embd": width, "n_layer": len(model.blocks), "n_head": model.heads, "n_positions": model.context}
    return {**sizes, "vocab_size": model.vocabulary, "bos_token_id": None, "eos_token_id": None}


def read(config: Config) -> Sizes:
    """OpenAIGPTConfig (transformers/models/openai/configuration_openai.py), whose "gelu" is the tanh form."""
    need(config, "afn", "gelu")
    defaults = {"n_embd": 768, "n_layer": 12, "n_head": 12, "vocab_size": 40478, "n_positions": 512}
    return decoder(config, {"gpt1": (768, 12, 12)}, defaults)


def write(model: Any) -> tuple[str, dict[str, Any]]:
    """OpenAIGPTConfig."""
    return "OpenAIGPTLMHeadModel", decoder_values(model)
