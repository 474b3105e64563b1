"""jingdu (精读, close reading): the landmark papers of deep learning, running.

The public functions are the verbs of the command line; importing the package imports no torch.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
__all__ = [
    "bench",
    "create",
    "evaluate",
    "export",
    "load",
    "optimize_for_inference",
    "paper",
    "papers",
    "predict",
    "reproduce",
    "train",
]

_HOME = {
    "create": "jingdu.canon",
    "papers": "jingdu.canon",
    "paper": "jingdu.canon",
    "load": "jingdu.verbs",
    "train": "jingdu.verbs",
    "reproduce": "jingdu.verbs",
    "predict": "jingdu.verbs",
    "evaluate": "jingdu.verbs",
    "export": "jingdu.weights.exporting",
    "bench": "jingdu.speed.case",
    "optimize_for_inference": "jingdu.speed.inference",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'jingdu' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
