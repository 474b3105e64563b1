"""Django's messages in pairs."""

import gettext
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jingdu.data import Preprocess, open_data
from jingdu.data import catalogues as module
from jingdu.data.base import Data
from jingdu.data.catalogues import ENGLISH, Catalogues, catalogues, translations
from jingdu.data.draws import Draws
from jingdu.errors import BadInput, Missing, UsageError


def samples(data: Catalogues, rows: list[int] | None = None) -> list[tuple[str, ...]]:
    indices = np.arange(len(data)) if rows is None else np.array(rows)
    batch = data.batch(indices, Draws(0, 0, indices))
    assert list(batch) == ["source", "target", "source_language", "target_language"]
    return list(zip(*batch.values(), strict=True))


def test_translations_are_those_that_gettext_finds() -> None:
    import django

    catalogue = gettext.translation("django", Path(django.__file__).parent / "conf" / "locale", ["fr"])
    texts = translations()
    for message in ("This field is required.", "French", "January"):
        assert texts[message][ENGLISH] == message and texts[message]["fr"] == catalogue.gettext(message)
    one = catalogue.ngettext("%(num)d year", "%(num)d years", 1)
    assert texts["%(num)d year"]["fr"] == one != catalogue.ngettext("%(num)d year", "%(num)d years", 5)
    assert len({language for text in texts.values() for language in text}) == 99
    assert all(text.strip() == text and text for entry in texts.values() for text in entry.values())
    assert not any(module._CONTEXT in message for message in texts)


def test_pairs_translate_one_message() -> None:
    texts = translations()
    by_text: dict[tuple[str, str], set[str]] = {}
    for english, entry in texts.items():
        for language, text in entry.items():
            by_text.setdefault((language, text), set()).add(english)
    for pairs in ("from-english", "to-english", "all"):
        found = samples(catalogues("test", ("fr", "de", "zh_Hans"), pairs))
        assert len(found) == len(set(found)) > 100
        for source, target, ours, theirs in found:
            assert by_text[ours, source] & by_text[theirs, target]


def test_kinds_of_pairs() -> None:
    languages = ("fr", "de")
    kinds = {
        kind: {row[2:] for row in samples(catalogues("test", languages, kind))}
        for kind in ("from-english", "to-english", "all")
    }
    assert kinds["from-english"] == {("en", "fr"), ("en", "de")}
    assert kinds["to-english"] == {("fr", "en"), ("de", "en")}
    assert kinds["all"] == {("fr", "de"), ("de", "fr")}
    three = {row[2:] for row in samples(catalogues("test", ("fr", "en", "de"), "all"))}
    assert three == {(a, b) for a in ("en", "fr", "de") for b in ("en", "fr", "de") if a != b}
    assert len({row[3] for row in samples(catalogues("train"))}) == 98


def test_messages_are_split_and_not_pairs() -> None:
    train, test = (set(row[0] for row in samples(catalogues(split, ("fr", "pl")))) for split in ("train", "test"))
    assert not train & test and 0.05 < len(test) / len(train | test) < 0.15
    into = {row[1] for row in samples(catalogues("train", ("fr", "pl"), "to-english"))}
    assert into == train


def test_a_pair_is_a_function_of_its_number() -> None:
    data = catalogues("train", ("fr", "de", "pl"), "all")
    everything = samples(data)
    assert samples(data, [7, 3, 7]) == [everything[7], everything[3], everything[7]]


def test_longest_holds_for_both_sides() -> None:
    short, whole = (samples(catalogues("train", ("fr",), longest=longest)) for longest in (20, None))
    assert short == [row for row in whole if len(row[0]) <= 20 and len(row[1]) <= 20] and len(short) < len(whole)


def test_opened_by_name() -> None:
    data = open_data("catalogues(languages=('fr', 'es'), pairs='all')", "train", Preprocess())
    assert isinstance(data, Data) and len(data) > 1000
    with pytest.raises(UsageError, match="fr"):
        open_data("catalogues(languages=('fx',))", "train", Preprocess())
    with pytest.raises(UsageError, match="to-english"):
        catalogues("train", ("fr",), "toenglish")
    with pytest.raises(UsageError, match="no pair"):
        catalogues("train", ("fr",), longest=0)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An installed Django of our own, in place of the real one."""
    root = tmp_path / "django"
    root.mkdir()
    (root / "__init__.py").touch()
    spec = importlib.util.spec_from_file_location("django", root / "__init__.py")
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setattr(module, "verify_shipped", lambda package, *files: None)
    translations.cache_clear()
    yield root
    translations.cache_clear()


def test_damaged_catalogues_are_named(fake: Path) -> None:
    with pytest.raises(Missing, match="without its translations"):
        translations()
    folder = fake / "conf" / "locale" / "fr" / "LC_MESSAGES"
    folder.mkdir(parents=True)
    for content in (b"", b"not a catalogue", b"\xde\x12\x04\x95" + bytes(40)[:-1]):
        (folder / "django.mo").write_bytes(content)
        if content.startswith(b"\xde"):  # an empty one: no message, and no fault either
            assert translations() == {}
            continue
        with pytest.raises(BadInput, match=r"django\.mo"):
            translations()


def test_changed_catalogues_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(module, "verify_shipped", lambda package, *files: asked.append((package, files)))
    translations.cache_clear()
    translations()
    (package, files), *_ = asked
    assert package == "Django" and "django/conf/locale/fr/LC_MESSAGES/django.mo" in files and len(files) > 900
    from importlib import metadata

    recorded = {str(file) for file in metadata.distribution("Django").files or ()}
    assert recorded.issuperset(files)


def test_without_django(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    translations.cache_clear()
    with pytest.raises(Missing, match=r"jingdu\[laptop\]"):
        catalogues("train", ("fr",))
    translations.cache_clear()
