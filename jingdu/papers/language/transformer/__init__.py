r"""Attention Is All You Need. Vaswani, Shazeer, Parmar, Uszkoreit, Jones, Gomez, Kaiser, Polosukhin. 2017.
https://arxiv.org/abs/1706.03762

Reading order: `attention`, `layers`, `positions`, `model`, `search`.
"""

from .attention import Cache, attention, attention_weights
from .layers import DecoderLayer, EncoderLayer, FeedForward, MultiHeadAttention, add_and_norm
from .model import VARIANTS, Decoding, Reader, Transformer, build
from .positions import sinusoids
from .search import Hypothesis, beam_search, gnmt, power

__all__ = [
    "Cache", "Decoding", "DecoderLayer", "EncoderLayer", "FeedForward", "Hypothesis", "MultiHeadAttention", "Reader",
    "Transformer", "VARIANTS", "add_and_norm", "attention", "attention_weights", "beam_search", "build", "gnmt", "power",
    "sinusoids",
]  # fmt: skip
