"""Real parallel text that an installed package carries: the messages of Django, translated into 98 languages.

Volunteers translated them; the compiled catalogues (.mo) lie in Django's wheel under its BSD licence. Nothing of
Django is imported or run.
"""

import gettext
import importlib.util
import struct
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from jingdu.data.base import Batch
from jingdu.data.draws import Draws
from jingdu.data.shipped import verify_shipped
from jingdu.data.split import held_out
from jingdu.errors import BadInput, Missing, UsageError, need_extra, unknown

__all__ = ["ENGLISH", "Catalogues", "catalogues", "translations"]

Split = Literal["train", "test"]
Pairs = Literal["from-english", "to-english", "all"]
ENGLISH = "en"
"""The language of the messages themselves."""

_CONTEXT = "\x04"
"""What divides a message from the context before it (GNU gettext manual, "The Format of GNU MO Files")."""


def _text_of(catalogue: gettext.GNUTranslations, message: str) -> str:
    """The translation; where it counts things, the form for one of them."""
    entries = catalogue._catalog  # type: ignore[attr-defined]
    return entries[message] if message in entries else entries[message, catalogue.plural(1)]  # type: ignore[attr-defined]


def _read(path: Path) -> dict[str, str]:
    """Message, with its context -> translation."""
    try:
        with open(path, "rb") as file:
            catalogue = gettext.GNUTranslations(file)
        keys = catalogue._catalog  # type: ignore[attr-defined]
        messages = dict.fromkeys(key if isinstance(key, str) else key[0] for key in keys)
        return {message: _text_of(catalogue, message) for message in messages if message}
    except (OSError, ValueError, KeyError, struct.error) as error:
        raise BadInput(path, f"not a catalogue of messages ({type(error).__name__}: {error})") from None


@cache
def translations() -> dict[str, dict[str, str]]:
    """English message -> language -> text, English first, in the order of the messages.

    Languages have Django's names (fr, pt_BR, zh_Hans). Of a message that occurs in several contexts or parts of
    Django the first translation is kept; of one that counts things, the form for one of them.

    Raises Missing where Django is not installed, BadInput where a catalogue has changed or cannot be read.
    """
    found = importlib.util.find_spec("django")
    if found is None or found.origin is None:
        raise need_extra("Django", "laptop", "the embedded catalogues")
    root = Path(found.origin).parent
    files = sorted(root.glob("**/locale/*/LC_MESSAGES/django*.mo"))
    if not files:
        raise Missing(f"{root}: Django is installed without its translations; install its wheel from PyPI")
    verify_shipped("Django", *(f"django/{file.relative_to(root).as_posix()}" for file in files))
    texts: dict[str, dict[str, str]] = {}
    for file in files:
        language = file.parts[-3]
        for message, translation in _read(file).items():
            english, text = message.rpartition(_CONTEXT)[2].strip(), translation.strip()
            if english and text and language != ENGLISH:
                texts.setdefault(english, {ENGLISH: english}).setdefault(language, text)
    return dict(sorted(texts.items()))


class Catalogues:
    """Pairs of texts in two languages that translate the same message.

    `batch` gives four lists: `source`, `target`, `source_language`, `target_language`.
    """

    classes = None

    def __init__(self, texts: Sequence[dict[str, str]], languages: Sequence[str], pairs: str, longest: int | None):
        self.texts, self.languages = list(texts), (ENGLISH, *(name for name in languages if name != ENGLISH))
        fits = [
            [name in text and (longest is None or len(text[name]) <= longest) for name in self.languages]
            for text in self.texts
        ]
        here = np.array(fits, dtype=bool).reshape(len(self.texts), len(self.languages))
        wanted = here[:, :, None] & here[:, None, :] & ~np.eye(len(self.languages), dtype=bool)
        if pairs == "from-english":
            wanted[:, 1:] = False
        elif pairs == "to-english":
            wanted[:, :, 1:] = False
        elif ENGLISH not in languages:
            wanted[:, 0] = wanted[:, :, 0] = False
        self.rows = np.argwhere(wanted).astype(np.int32)
        """[pairs, 3]: message, source language, target language, by their numbers."""

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: np.ndarray, draws: Draws) -> Batch:
        chosen = [(self.texts[m], self.languages[s], self.languages[t]) for m, s, t in self.rows[indices].tolist()]
        return {
            "source": [text[source] for text, source, _ in chosen],
            "target": [text[target] for text, _, target in chosen],
            "source_language": [source for _, source, _ in chosen],
            "target_language": [target for _, _, target in chosen],
        }


def catalogues(
    split: Split,
    languages: Sequence[str] | None = None,
    pairs: Pairs | str = "from-english",
    longest: int | None = None,
) -> Catalogues:
    """Django's messages in pairs of languages: `source`, `target`, `source_language` and `target_language`.

    About 940 messages, of which a language has 20 to 840. A tenth of the messages, by their English text, is the
    test split: no test message was seen in training in any language.

    Args:
        split: train or test.
        languages: Django's names for them (fr, de, zh_Hans); None is all.
        pairs: from English into each, from each into English, or every two of them (of `languages` as they are:
            name `en` to have English among them; None has it).
        longest: pairs with a text of more characters are left out.

    Raises UsageError for an unknown language or kind of pairs, or where nothing is left; Missing without Django.
    """
    if pairs not in get_args(Pairs):
        raise unknown("kind of pairs", pairs, get_args(Pairs))
    everything = translations()
    known = dict.fromkeys(name for text in everything.values() for name in text)
    chosen = sorted(known) if languages is None else list(dict.fromkeys(languages))
    if strange := [name for name in chosen if name not in known]:
        raise unknown("language of the catalogues", strange[0], known)
    texts = [text for english, text in everything.items() if held_out(english) == (split == "test")]
    data = Catalogues(texts, chosen, pairs, longest)
    if not len(data):
        raise UsageError(f"catalogues(languages={chosen}, pairs={pairs!r}, longest={longest}) has no pair of texts")
    return data
