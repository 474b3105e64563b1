"""One folder an area, one module a paper.

`jingdu.papers` is this package and, called, the list of cards: importing a paper would otherwise
hide the public function `jingdu.papers()` behind the package of the same name.
"""

import sys
from types import ModuleType
from typing import Any


class _Papers(ModuleType):
    def __call__(self, area: str | None = None) -> list[Any]:
        """All papers of the library, oldest first; see `jingdu.canon.papers`."""
        from jingdu import canon

        return canon.papers(area)


sys.modules[__name__].__class__ = _Papers
