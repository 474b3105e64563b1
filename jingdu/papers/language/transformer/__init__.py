"""Attention Is All You Need: the attention core. Reading order: `attention`."""

from jingdu.papers.language.transformer.attention import Cache, attention

__all__ = ["Cache", "attention"]
