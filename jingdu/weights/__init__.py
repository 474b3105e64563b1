"""Published checkpoints: find, fetch, verify, read, and translate into our networks.

`open_weights` is the one entry that `jingdu.create` uses. Reading order: `sources` (what a user can write),
`download` and `hub` (fetching), `files` (reading safely), `tables` and `keys/` (names of other
libraries), `configs` (their sizes), `filling` (into a network), `opening` (all of it together).
"""

from jingdu.weights.configs import Sizes, sizes
from jingdu.weights.files import save
from jingdu.weights.filling import export, fill, read
from jingdu.weights.opening import Weights, open_weights
from jingdu.weights.sources import Located, locate
from jingdu.weights.tables import KeyTable, detect

__all__ = [
    "KeyTable",
    "Located",
    "Sizes",
    "Weights",
    "detect",
    "export",
    "fill",
    "locate",
    "open_weights",
    "read",
    "save",
    "sizes",
]
