"""Tokens that stand in the text as they are, special ones above all: allowed and disallowed, as in tiktoken."""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from jingdu.errors import UsageError, unknown

Names = Collection[str] | Literal["all"]


@dataclass(frozen=True)
class Added:
    """A token that is found in the text before it is cut, whole."""

    id: int
    special: bool = True
    """It means something to a model, and the text of users may not say it. Others are always found."""
    strip_left: bool = False
    """White space before it belongs to it."""
    strip_right: bool = False


@lru_cache(maxsize=256)
def _any_of(tokens: frozenset[tuple[str, bool, bool]]) -> tuple["re.Pattern[str]", list[str]]:
    """A pattern of tokens with a group for each, and their names; longer ones first, so that none hides another."""
    ordered = sorted(tokens, key=lambda token: (-len(token[0]), token[0]))
    parts = [(r"\s*" if left else "") + re.escape(name) + (r"\s*" if right else "") for name, left, right in ordered]
    return re.compile("|".join(f"({part})" for part in parts)), [name for name, _, _ in ordered]


def find_added(
    text: str, added: Mapping[str, Added], allowed: Names, disallowed: Names
) -> Iterator[tuple[int, int, int | None]]:
    """A text in parts: (start, end, id of an added token, or None for a stretch of text between them).

    Raises UsageError for a disallowed special token in the text, and for a name that is no special token.
    """
    special = {name for name, token in added.items() if token.special}
    wanted = special if allowed == "all" else set(allowed)
    if strange := sorted(wanted - special):
        raise unknown("special token", strange[0], special)
    refused = special - wanted if disallowed == "all" else set(disallowed)
    pattern, _ = _any_of(frozenset((name, False, False) for name in refused))
    if refused and (match := pattern.search(text)):
        raise UsageError(
            f"the text has the special token {match[0]!r} at character {match.start()}: allow it, or take it as "
            "text like any other with disallowed=()"
        )
    found = frozenset(
        (name, token.strip_left, token.strip_right)
        for name, token in added.items()
        if not token.special or name in wanted
    )
    at = 0
    if found:
        pattern, names = _any_of(found)
        for match in pattern.finditer(text):
            if match.start() > at:
                yield at, match.start(), None
            yield match.start(), match.end(), added[names[match.lastindex - 1]].id
            at = match.end()
    if at < len(text):
        yield at, len(text), None
