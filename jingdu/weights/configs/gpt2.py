"""GPT-2's configuration files."""

from typing import Any

from jingdu.errors import Refused
from jingdu.weights.configs.common import Config, Sizes, need
from jingdu.weights.configs.gpt import decoder, decoder_values


def read(config: Config) -> Sizes:
    """GPT2Config (transformers/models/gpt2/configuration_gpt2.py)."""
    for name, wanted in (("scale_attn_weights", True), ("scale_attn_by_inverse_layer_idx", False)):
        need(config, name, wanted)
    if config.get("activation_function", "gelu_new") not in ("gelu_new", "gelu_pytorch_tanh"):
        raise Refused(f"config.json asks for {config['activation_function']}; our network has the tanh form of gelu")
    known = {
        "gpt2": (768, 12, 12),
        "gpt2_medium": (1024, 24, 16),
        "gpt2_large": (1280, 36, 20),
        "gpt2_xl": (1600, 48, 25),
    }
    defaults = {"n_embd": 768, "n_layer": 12, "n_head": 12, "vocab_size": 50257, "n_positions": 1024}
    return decoder(config, known, defaults)


def write(model: Any) -> tuple[str, dict[str, Any]]:
    """GPT2Config."""
    return "GPT2LMHeadModel", decoder_values(model)
