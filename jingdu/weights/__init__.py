"""Published checkpoints: find, fetch, verify, read, and translate into our networks.

`open_weights` is the one entry that `jingdu.create` uses. Reading order: `sources` (what a user can write),
`download` and `hub` (fetching), `store` (what is kept on this machine), `files` (reading safely), `tables` and
`keys/` (names of other libraries), `configs` (their sizes), `filling` (into a network), `opening` (all of it
together), `exporting` (the way out). Importing the package imports no torch.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "KeyTable": "tables",
    "Located": "sources",
    "Sizes": "configs",
    "Weights": "opening",
    "detect": "tables",
    "export": "filling",
    "fill": "filling",
    "locate": "sources",
    "open_weights": "opening",
    "read": "filling",
    "save": "files",
    "sizes": "configs",
}
__all__ = [*_HOME]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
