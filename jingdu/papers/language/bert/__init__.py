"""BERT."""

from .model import BERT, VARIANTS, build, example

__all__ = ["BERT", "VARIANTS", "build", "example"]
recipes: dict = {}
