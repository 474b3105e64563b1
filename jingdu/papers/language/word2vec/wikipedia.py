"""Real text and real questions for experiments: what the gensim wheel ships for its own tests.

A hundred pages of Wikipedia of April 2016 (by its authors, CC BY-SA 3.0), the analogies of paper 1 (questions-words.txt
of Google's word2vec, Apache 2.0) and WordSim-353 (Finkelstein et al. 2002). gensim itself (LGPL-2.1) is not imported.
"""

import bz2
import html
import re
from pathlib import Path
from typing import Literal

from jingdu.data.base import Tensors
from jingdu.data.shipped import shipped_file
from jingdu.papers.language.ngram import sentences

from .evaluation import Question, read_pairs, read_questions

_FOLDER = "gensim/test/test_data"
_DUMP = "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"

_PAGE = re.compile(r"<title>(.*?)</title>\s*<ns>0</ns>.*?<text[^>]*>(.*?)</text>", re.S)
_HIDDEN = re.compile(r"<!--.*?-->|<ref[^>]*/>|<(ref|math|gallery|timeline|source)\b.*?</\1>", re.S)
_TEMPLATE = re.compile(r"\{\{[^{}]*\}\}|\{\|(?:[^{}]|\{(?!\|)|(?<!\|)\})*\|\}")
_LINK = re.compile(r"\[\[([^\[\]]*)\]\]")
_REST = re.compile(r"^[=;|!].*$|<[^>]*>|\[?https?://\S*|'{2,}|^[*:#]+|&\w+;", re.M)


def without_markup(page: str) -> str:
    """The prose of a page of Wikipedia: no templates, tables, references, headings, addresses; of links their text."""

    def text_of(link: re.Match[str]) -> str:
        target, *rest = link[1].split("|")
        return "" if ":" in target else (rest or [target])[-1]

    for pattern, text in ((_HIDDEN, lambda found: ""), (_TEMPLATE, lambda found: ""), (_LINK, text_of)):
        changed = 1
        while changed:  # they lie in one another: the innermost goes first
            page, changed = pattern.subn(text, page)
    return _REST.sub("", page)


def wikipedia(split: Literal["train", "test"], case: Literal["kept", "lower"] = "lower") -> Tensors:
    """English as data: `text`, one page a document; for testing `analogy`, the questions of paper 1.

    A page is lines, one sentence each, of words between spaces; signs and numbers are left out. Raises Missing, with the
    line for pip, where gensim is not installed.
    """
    if split == "test":
        return Tensors({"analogy": [question for found in shipped_questions(case).values() for question in found]})
    pages = []
    for _, markup in _PAGE.findall(bz2.decompress(_file(_DUMP).read_bytes()).decode()):
        text = html.unescape(markup)
        if text.lstrip()[:9].upper() != "#REDIRECT":
            found = sentences(without_markup(text), "prose", case)
            pages.append("\n".join(" ".join(word for word in words if word.isalpha()) for words in found))
    return Tensors({"text": pages})


def _file(name: str) -> Path:
    return shipped_file("gensim", f"{_FOLDER}/{name}")


def shipped_questions(case: Literal["kept", "lower"] = "lower") -> dict[str, list[Question]]:
    """The 19,544 questions of paper 1, by section. Raises Missing without gensim."""
    return read_questions(_file("questions-words.txt"), case)


def shipped_similarities() -> list[tuple[str, str, float]]:
    """WordSim-353: pairs of words, and how alike people found them, 0 to 10. Raises Missing without gensim."""
    return read_pairs(_file("wordsim353.tsv"))
