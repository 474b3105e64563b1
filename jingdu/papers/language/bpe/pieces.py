r"""Text to pieces: nothing is merged across them. Each family of vocabularies has its rules, and they are data.

The patterns are those that the vocabularies were published with, in the notation of `regex`, Oniguruma and Rust. Python's
`re` knows no \p{L} and means more by \s, so both are written out here, from `unicodedata`: letters that a newer
Unicode version added are letters only to a newer Python.

Sources of the patterns: tiktoken 0.14, tiktoken_ext/openai_public.py (gpt2, cl100k, o200k); the tokenizer.json of
DeepSeek-V3; BERT's tokenization.py and the tokenizers library's bert.rs (bert, bert_cased, gpt).
"""

import re
import sys
import unicodedata
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from typing import Literal

from jingdu.errors import Refused, UsageError, unknown

Keep = Literal["all", "matches", "gaps"]
Span = tuple[int, int]
"""The first character of a piece, and the one after its last."""

META = "\u2581"

# Rules ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cut:
    """A pattern that divides text: its matches become pieces of their own."""

    pattern: str
    keep: Keep = "all"
    """All: what lies between matches becomes pieces too; matches, gaps: only those stay, the rest is dropped."""


@dataclass(frozen=True)
class Family:
    """How a family of vocabularies prepares text, before any vocabulary is looked at."""

    name: str
    cuts: tuple[Cut, ...]
    """In order; each divides the pieces of those before it."""
    normal: tuple[str | tuple[str, str], ...] = ()
    """Changes of the text before it is cut: names of `CHANGES` or of Unicode's normal forms (NFC, ...); a pair is a
    pattern and what replaces it."""
    alphabet: Literal["bytes", "characters"] = "bytes"
    """What merging starts from."""
    suffix: str = ""
    """Ends the last symbol of a piece: Sennrich's </w>. Pieces are then words, and white space is not kept."""
    prefix: str = ""
    """Begins all tokens of a piece but its first: WordPiece's ##. White space is not kept."""

    @property
    def meta(self) -> bool:
        """Whether spaces are written as U+2581, as in SentencePiece."""
        return any(step[1] == META and step[0] in (" ", r"\ ") for step in self.normal if isinstance(step, tuple))


GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CL100K = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_BEFORE, _CONTRACTION = r"[^\r\n\p{L}\p{N}]?", r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_O200K = (
    rf"{_BEFORE}[\p{{Lu}}\p{{Lt}}\p{{Lm}}\p{{Lo}}\p{{M}}]*[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}]+{_CONTRACTION}|"
    rf"{_BEFORE}[\p{{Lu}}\p{{Lt}}\p{{Lm}}\p{{Lo}}\p{{M}}]+[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}]*{_CONTRACTION}|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_DEEPSEEK = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"""
    r""" ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
)
MARK = r"!-/:-@\[-`{-~\p{P}"
BERT_WORDS = Cut(rf"[{MARK}]|[^\s{MARK}]+", "matches")
UNCASED = ("clean", "chinese", "strip_accents", "lower")

FAMILIES = {
    family.name: family
    for family in (
        # GPT-2, GPT-3: contractions of small letters alone, and a space goes with the word after it.
        Family("gpt2", (Cut(GPT2),)),
        # GPT-4: any sign may lead a word, digits by three, line ends go with the signs before them.
        Family("cl100k", (Cut(_CL100K),)),
        # GPT-4o: a word also ends before a capital.
        Family("o200k", (Cut(_O200K),)),
        # DeepSeek-V3: digits by three, Chinese and kana apart, then the rest.
        Family("deepseek", (Cut(r"\p{N}{1,3}"), Cut("[一-龥\u3040-ゟ゠-ヿ]+"), Cut(_DEEPSEEK))),
        Family("bert", (BERT_WORDS,), UNCASED, "characters", prefix="##"),
        Family("bert_cased", (BERT_WORDS,), UNCASED[:2], "characters", prefix="##"),
        # GPT-1 with BERT's words: its own, from spaCy and ftfy, are not here.
        Family("gpt", (BERT_WORDS,), UNCASED, "characters", suffix="</w>"),
        # Sennrich: text whose words stand between spaces already.
        Family("words", (Cut(r"\S+", "matches"),), (), "characters", suffix="</w>"),
    )
}


def family_of(family: str | Family) -> Family:
    """A family by name. Raises UsageError, with the nearest names."""
    if isinstance(family, Family):
        return family
    if family not in FAMILIES:
        raise unknown("family of vocabularies", family, FAMILIES)
    return FAMILIES[family]


# Patterns ------------------------------------------------------------------------------------------

_SPACE = r"\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
"""Unicode's White_Space. Python's \\s has the separators U+001C to U+001F besides."""
_PIECE = re.compile(r"\\p\{(\^?)(\w+)\}|\\P\{(\w+)\}|\\[sS]|\\.|\[\^?\]?|\]", re.DOTALL)


@cache
def _categories(limit: int) -> list[tuple[str, int, int]]:
    """Runs of equal category: (category, first, last), of all code points below `limit`."""
    runs, at = [], 0
    for category, run in groupby(map(unicodedata.category, map(chr, range(limit)))):
        length = sum(1 for _ in run)
        runs.append((category, at, at + length - 1))
        at += length
    return runs


@cache
def members(name: str, limit: int = sys.maxunicode + 1) -> str:
    """The code points below `limit` of a general category (L, Lu, N, ...), as the inside of a character class.

    Raises Refused for a property that is no category: scripts are not in `unicodedata`.
    """
    if not re.fullmatch(r"[LMNPSZC][a-z]?", name):
        raise Refused(f"the pattern names the property {name!r}: only general categories (L, Lu, N, ...) are known")
    found = [rf"\U{a:08x}-\U{b:08x}" for category, a, b in _categories(limit) if category.startswith(name)]
    return "".join(found) or r"\U0010ffff"


@cache
def compile_pattern(pattern: str, limit: int = sys.maxunicode + 1) -> "re.Pattern[str]":
    r"""A published pattern for Python's `re`: \p{...} and \s are written out.

    Args:
        pattern: in the notation of `regex` or Oniguruma.
        limit: one above the largest code point that the text has; a class that reaches no further is quicker.

    Raises Refused for what `re` has no word for.
    """
    inside = False

    def translate(found: "re.Match[str]") -> str:
        nonlocal inside
        text = found[0]
        if text[0] == "[":
            if inside:
                raise Refused(f"the pattern {pattern!r} has a class within a class, which Python's re cannot read")
            inside = True
            return text
        if text == "]":
            inside = False
            return text
        if text in (r"\s", r"\S"):
            content, negative = _SPACE, text == r"\S"
        elif found[2] or found[3]:
            content, negative = members(found[2] or found[3], limit), bool(found[1] or found[3])
        else:
            return text
        if inside and negative:
            raise Refused(f"the pattern {pattern!r} has {text} within a class, which Python's re cannot say")
        return content if inside else f"[{'^' if negative else ''}{content}]"

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return re.compile(_PIECE.sub(translate, pattern))
    except (re.error, FutureWarning, OverflowError) as error:
        raise Refused(f"the pattern {pattern!r} cannot be read by Python's re ({error})") from None


def limit_of(text: str) -> int:
    """ASCII, the basic plane or all of Unicode: the smallest `limit` of `compile_pattern` that holds for a text."""
    return 0x80 if text.isascii() else 0x10000 if max(text) < "\U00010000" else sys.maxunicode + 1


# Cutting -------------------------------------------------------------------------------------------


def split(text: str, family: Family) -> list[str]:
    """The pieces of a text, after `normalise`."""
    limit, pieces = limit_of(text), [text] if text else []
    for cut in family.cuts:
        pattern = compile_pattern(cut.pattern, limit)
        cuts = (_pieces(pattern, cut.keep, piece) for piece in pieces)
        pieces = next(cuts, []) if len(pieces) < 2 else [piece for found in cuts for piece in found]
    return pieces


def _pieces(pattern: "re.Pattern[str]", keep: Keep, text: str) -> list[str]:
    found = [match[0] for match in pattern.finditer(text)] if pattern.groups else pattern.findall(text)
    if keep == "matches" or (sum(map(len, found)) == len(text) != 0 and keep == "all"):
        return found if all(found) else [piece for piece in found if piece]
    return [text[a:b] for a, b in _cut(pattern, keep, text, 0)]


def _cut(pattern: "re.Pattern[str]", keep: Keep, text: str, start: int) -> list[Span]:
    spans, at = [], 0
    for match in pattern.finditer(text):
        low, high = match.span()
        if keep != "matches":
            spans.append((at, low))
        if keep != "gaps":
            spans.append((low, high))
        at = high
    if keep != "matches":
        spans.append((at, len(text)))
    return [(start + a, start + b) for a, b in spans if a < b]


def split_spans(text: str, family: Family) -> list[Span]:
    """Where the pieces of `split` lie in the text."""
    limit, spans = limit_of(text), [(0, len(text))] if text else []
    for cut in family.cuts:
        pattern = compile_pattern(cut.pattern, limit)
        spans = [span for a, b in spans for span in _cut(pattern, cut.keep, text[a:b], a)]
    return spans


# Changing text before it is cut --------------------------------------------------------------------

_CHINESE = ((0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F),
            (0x2B920, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F))  # fmt: skip
"""BERT's blocks, as tokenizers has them (its 0x2B920 is 0x2B820 in BERT's code)."""


def _clean(character: str) -> str:
    """BERT: control characters, U+FFFD and what has no meaning vanish; white space becomes a space."""
    if character in "\t\n\r" or unicodedata.category(character) in ("Zs", "Zl", "Zp"):
        return " "
    return "" if character == "\ufffd" or unicodedata.category(character) in ("Cc", "Cf", "Co", "Cs") else character


def _chinese(character: str) -> str:
    """Spaces around Chinese characters: they are words of their own."""
    return f" {character} " if any(low <= ord(character) <= high for low, high in _CHINESE) else character


def _strip_accents(character: str) -> str:
    decomposed = unicodedata.normalize("NFD", character)
    return "".join(part for part in decomposed if unicodedata.category(part) != "Mn")


CHANGES: dict[str, Callable[[str], str]] = {
    "clean": _clean,
    "chinese": _chinese,
    "strip_accents": _strip_accents,
    "lower": str.lower,
}
"""Changes of single characters: so the tokenizers library has them too, and a final sigma stays like any other."""
FORMS = ("NFC", "NFD", "NFKC", "NFKD")


class _Table(dict[int, str]):
    """What each character becomes by changes in a row, found when it is first met (for `str.translate`)."""

    def __init__(self, changes: tuple[str, ...]):
        self.changes = [CHANGES[name] for name in changes]

    def __missing__(self, code: int) -> str:
        text = chr(code)
        for change in self.changes:
            text = "".join(map(change, text))
        self[code] = text
        return text


@cache
def _steps(normal: tuple[str | tuple[str, str], ...]) -> list[_Table | str | tuple[str, str]]:
    """The changes in order, those of single characters joined into one table each."""
    steps: list[_Table | str | tuple[str, str]] = []
    for by_character, names in groupby(normal, lambda name: isinstance(name, str) and name in CHANGES):
        names = list(names)
        if strange := [name for name in names if isinstance(name, str) and name not in (*CHANGES, *FORMS)]:
            raise unknown("change of text", strange[0], (*CHANGES, *FORMS))
        steps += [_Table(tuple(map(str, names)))] if by_character else names
    return steps


def normalise(text: str, family: Family) -> str:
    """The text as the family's vocabularies spell it."""
    for step in _steps(family.normal):
        if isinstance(step, _Table):
            text = text.translate(step)
        elif isinstance(step, str):
            text = unicodedata.normalize(step, text)  # type: ignore[arg-type]
        else:
            pattern, content = step
            text = compile_pattern(pattern, limit_of(text)).sub(lambda _, content=content: content, text)
    return text


def normalise_aligned(text: str, family: Family) -> tuple[str, list[int]]:
    """The same, and for each of its characters which one of the text it comes from.

    Raises UsageError where the family changes more than single characters, and this text by that.
    """
    origin = list(range(len(text)))
    for step in _steps(family.normal):
        if isinstance(step, _Table):
            parts = [step[ord(character)] for character in text]
            origin = [place for place, part in zip(origin, parts, strict=True) for _ in part]
            text = "".join(parts)
        elif normalise(text, Family("", (), (step,))) != text:
            raise UsageError(f"no offsets: {step} changes this text; give it in the form that {step} leaves as it is")
    return text, origin
