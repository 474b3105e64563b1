r"""Texts that were cut into words, as a person writes them (Section 3.1).

A model of web pages finds " @-@ " and " n't" improbable, for no fault of its own. The paper takes such traces back before
it scores a text, in a way that loses nothing, so that the score is still one of the data set; that gains 2.5 to 5 points of
perplexity. What a data set's perplexity is told by are its own words, whatever the model's tokens are:

$$ \mathrm{ppl} = \exp\Big(-\tfrac{1}{\#\text{words}} \sum_i \log p(x_i \mid x_{<i})\Big). $$
"""

import math
import re
from collections.abc import Callable

from jingdu.errors import unknown

__all__ = ["DETOKENISERS", "count_words", "penn_treebank", "per_unit", "wikitext"]

_CLITICS = r"(?:n't|'(?:s|m|d|ll|re|ve|t))"


def _apply(rules: tuple[tuple[str, str], ...], text: str) -> str:
    for pattern, instead in rules:
        text = re.sub(pattern, instead, text)
    return text


_WIKITEXT = (
    (r" @([-,.])@ ", r"\1"),  # what the Moses tokenizer cut within a word
    (r"(?<==) (?==)", ""),  # headings, = = History = =
    (rf" ({_CLITICS})(?!\w)", r"\1"),
    (r'" ([^"\n]*?) "', r'"\1"'),
    (r"(?<!\w)' ([^'\n]*?) '(?!\w)", r"'\1'"),
    (r"(\w) '(?= )", r"\1'"),  # the investors ' money
    (r" ([,.:;!?%)\]}])", r"\1"),
    (r"([(\[{$£€#]) ", r"\1"),
    (r" / ", "/"),
    (r"(?m)^ | $", ""),  # each line has a space at either end
)


def wikitext(text: str) -> str:
    """Text of WikiText-2 or WikiText-103 (Moses' words, @-@ within them) without its traces. <unk> stays."""
    return _apply(_WIKITEXT, text)


_PENN = (
    (r"-lrb- ?", "("),
    (r" ?-rrb-", ")"),
    (r"\\/", "/"),
    (r"`` ?", '"'),
    (r" ?''", '"'),
    (rf" ({_CLITICS})(?!\w)", r"\1"),
    (r"(\w) '(?= |$)", r"\1'"),
    (r" ([,.:;!?%)])", r"\1"),
    (r"([$#]) ", r"\1"),
    (r"(?m)^ | $", ""),
)


def penn_treebank(text: str) -> str:
    """Text of the Penn Treebank, as Mikolov's files have it or with its punctuation. <unk> and N, a number, stay."""
    return _apply(_PENN, text)


DETOKENISERS: dict[str, Callable[[str], str]] = {"none": str, "wikitext": wikitext, "ptb": penn_treebank}
"""By the names of the data sets."""


def count_words(text: str) -> int:
    """The words of a data set that was cut into words: what stands between white space, and an end for each line."""
    return len(text.split()) + sum(bool(line.strip()) for line in text.splitlines())


def per_unit(nats: float, text: str, original: str | None = None) -> dict[str, float]:
    """What a text's cross-entropy is per word, byte and character of the data set: a model's own tokens play no part.

    Args:
        nats: of the whole text that was scored.
        text: that text.
        original: the data set's, where it was de-tokenised; its words and bytes count then.

    Returns perplexity (a word), bits_per_byte (of UTF-8), bits_per_character. Raises ValueError for an empty text.
    """
    counted = text if original is None else original
    words = count_words(counted)
    if not words:
        raise ValueError("an empty text has no perplexity")
    bits = nats / math.log(2)
    return {
        "perplexity": math.exp(min(nats / words, 700.0)),
        "bits_per_byte": bits / len(counted.encode()),
        "bits_per_character": bits / len(counted),
    }


def detokeniser(name: str) -> Callable[[str], str]:
    """By name. Raises UsageError for an unknown one."""
    if name not in DETOKENISERS:
        raise unknown("de-tokeniser", name, DETOKENISERS)
    return DETOKENISERS[name]
