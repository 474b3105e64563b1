r"""Efficient Estimation of Word Representations in Vector Space. Mikolov, Chen, Corrado, Dean. January 2013 (2013a).
https://arxiv.org/abs/1301.3781. Distributed Representations of Words and Phrases and their Compositionality. Mikolov,
Sutskever, Chen, Corrado, Dean. October 2013 (2013b). https://arxiv.org/abs/1310.4546

**Problem.** A neural language model learns good vectors for words on the way, but its hidden layer and its softmax over
all words cost so much that it sees only some millions of them.

**Idea.** Leave the hidden layer out, and do not ask for a distribution. For each pair of a word and a neighbour in a
window, tell the neighbour o from a few noise words n by the sign of a dot product (2013b, Eq. 4):

$$ \log \sigma(u_o^\top v) + \sum_{i=1}^{K} \mathbb E_{n_i \sim P_n} \log \sigma(-u_{n_i}^\top v),
   \qquad P_n(w) \propto c(w)^{3/4} $$

where v is the vector of the word (skip-gram), or the mean over all neighbours of the word that is asked for (CBOW). The
other way out of the softmax is a path through a binary tree (hierarchical softmax). Frequent words are dropped at random
before windows are cut: that is faster, and rare words learn from more of their kind.

**Showed.** Billions of words in hours on one machine; and differences of vectors that mean something: king - man +
woman is near queen. Paper 2: NEG-15 with subsampling answers 61 % of the analogies.

Differs from the paper in:
- The released C code goes pair by pair, in several threads without locks. Here a step takes some 1,000 centre words at
  once, in blocks from all over the text, and noise words are shared by 64 predictors (see `learning`).
- Where that code looks the sigmoid up in a table on [-6, 6], it is exact here, and no update is left out beyond 6.
- Subsampling keeps with the code's probability, a little more than the text's Eq. 5 (see `keep_probability`).
- As in the code, skip-gram's input is the neighbour and its output the centre word: over a window that reaches as far
  to either side, these are the text's pairs the other way round.
- CBOW takes the mean of the neighbours, as the text; the first release of the code took the sum.
- There is no `</s>` in the vocabulary, and a sentence has no greatest length.

Reading order: `vocabulary` (counts, subsampling, noise, the tree, phrases), `network` (the vectors, and questions to
them), `learning` (windows, objectives, a step), `training` (passes over text), `evaluation` (analogies, similarity),
`files` (the C tool's formats), `planted` (a little language with planted relations), `wikipedia` (real text).
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jingdu.engine.contracts import Recipe, Stage
from jingdu.errors import UsageError
from jingdu.prediction import Prediction

from .evaluation import analogies, questions, read_pairs, read_questions, solve, spearman
from .files import header, read_vectors, write_vectors
from .learning import Learner, cut_windows
from .network import Word2Vec, spell
from .planted import planted
from .training import Learning, fit
from .vocabulary import (
    Tree,
    count_bigrams,
    draw_noise,
    find_phrases,
    huffman,
    join_phrases,
    keep_probability,
    noise_distribution,
    sort_words,
)  # fmt: skip
from .wikipedia import shipped_questions, shipped_similarities, wikipedia

__all__ = [
    "Learner", "Learning", "Tree", "Word2Vec", "analogies", "build", "count_bigrams", "cut_windows", "draw_noise",
    "find_phrases", "fit", "huffman", "join_phrases", "keep_probability", "noise_distribution", "planted", "predict",
    "questions", "read_pairs", "read_questions", "read_vectors", "read_weights", "shipped_questions",
    "shipped_similarities", "solve", "sort_words", "spearman", "wikipedia", "write_vectors",
]  # fmt: skip

VARIANTS: dict[str, dict[str, Any]] = {
    # Released with paper 2: trained on some 100 billion words of Google News, phrases included
    "word2vec_googlenews_300d": {"vocabulary": 3_000_000, "dim": 300},
}


def build(variant: str, **overrides: Any) -> Word2Vec:
    """The network of a variant; overrides are the arguments of `Word2Vec`."""
    return Word2Vec(**{**VARIANTS[variant], **overrides})


def read_weights(path: Path) -> tuple[Mapping[str, Any], Mapping[str, Tensor]] | None:
    """The sizes and tensors of a file in the C tool's text or binary format; None for files of other formats.

    Raises BadInput where it is damaged. Counts are not in it: words stand for them, since the most frequent is first.
    """
    if header(path) is None:
        return None
    words, vectors = read_vectors(path)
    spelling = spell(words)
    sizes = {"vocabulary": len(words), "dim": vectors.shape[1], "spelling": len(spelling)}
    counts = torch.zeros(len(words), dtype=torch.int64)
    return sizes, {"input": vectors, "counts": counts, "spelling": spelling}


def _stage(data: str, dim: int, batch_size: int, **options: Any) -> tuple[Stage, ...]:
    arguments = ", ".join(f"{name}={value!r}" for name, value in options.items())
    return (
        Stage(
            "learn", method="fit", system=f"word2vec.Learning({arguments})", data=data, batch_size=batch_size,
            networks={"network": f"word2vec(vocabulary=0, dim={dim}, output=True)"},
        ),
    )  # fmt: skip


recipes = {
    "laptop": Recipe(
        stages=_stage("word2vec.planted", dim=100, batch_size=20, sample=1e-4, epochs=20),
        minutes=0.5,
        expect={"analogy": (0.7, 1.0)},
        about="skip-gram on a little made-up language in which king - man + woman is planted to be queen",
    ),
    "wikipedia": Recipe(
        stages=_stage("word2vec.wikipedia", dim=100, batch_size=20, sample=1e-4, lr=0.05, epochs=10),
        minutes=1.0,
        expect={"analogy": (0.01, 1.0)},
        about="skip-gram on the 440,000 words of Wikipedia that the gensim wheel ships (pip install gensim)",
    ),
    "paper": Recipe(
        stages=_stage(
            "text(path='corpus')", dim=300, batch_size=100, tokens="prose", window=5, negative=5, sample=1e-5, epochs=3,
            phrases=(200.0, 100.0),
        ),
        minutes=24 * 60,
        expect={"loss": (1.0, 3.0)},
        about="2013b, Sec. 3 and 4, on your own text: --data FILE.txt, or --data \"text(path='FOLDER')\". The paper has a "
        "billion words of news, 15 or 5 noise words and phrases joined in 2 to 4 passes. "
        "jingdu eval word2vec --weights RUN --data \"word2vec.questions(path='questions-words.txt')\" asks analogies",
    ),
}  # fmt: skip

_SIGNS = re.compile(r"\s+([+~-])\s+")


def predict(model: Word2Vec, inputs: Sequence[str], *, top: int = 10, out: Path | None = None) -> Iterator[Prediction]:
    """What vectors say of words.

    "king" gives its neighbours; "king - man + woman" the words nearest to the sum; "king ~ queen" their cosine; several
    words ("the king of france") the words nearest to their mean, and those that are not known. Signs stand between
    spaces.

    Args:
        top: how many words to give.
        out: also write all vectors to this file, in the C tool's format: binary if it ends in .bin, else text.

    Raises UsageError for a word that is not in the vocabulary.
    """
    if top < 1:
        raise UsageError(f"top {top}: give 1 or more")
    if out is not None:
        if not model.words:
            raise UsageError("these vectors have no words to write: load a run or a file of vectors")
        write_vectors(out, model.words, model.input)
        words, dim = model.input.shape
        yield Prediction("", f"{words:,} words of {dim} numbers", {"words": words, "dim": dim}, (out,))
    for text in inputs:
        yield _answer(model, text, top)


def _answer(model: Word2Vec, text: str, top: int) -> Prediction:
    first, *rest = _SIGNS.split(text.strip())
    signs, terms = rest[::2], [first, *rest[1::2]]
    data: dict[str, Any] = {"text": text}
    if any(len(term.split()) != 1 for term in terms) and signs:
        raise UsageError(f"{text!r}: between signs stands one word (a phrase is new_york)")
    if "~" in signs:
        if len(terms) != 2:
            raise UsageError(f"{text!r}: ~ compares two words")
        data["cosine"] = model.similarity(*terms)
        return Prediction(text, f"{text}: {data['cosine']:.4f}", data)
    if signs:
        plus = [term for sign, term in zip(["+", *signs], terms, strict=True) if sign == "+"]
        minus = [term for sign, term in zip(signs, terms[1:], strict=True) if sign == "-"]
        found, note = model.analogy(plus, minus, top), ""
    elif len(words := text.split()) == 1:
        data["vector"] = model.vector(words[0]).tolist()
        found, note = model.neighbours(words[0], top), ""
    else:
        mean, unknown = model.sentence(words), [word for word in words if word not in model]
        data |= {"vector": mean.tolist(), "unknown": unknown}
        found, note = model.nearest(mean, top), f" (not known: {', '.join(unknown)})" if unknown else ""
    data["nearest"] = [{"word": word, "cosine": cosine} for word, cosine in found]
    return Prediction(text, f"{text}{note}: " + ", ".join(f"{word} {cosine:.3f}" for word, cosine in found), data)
