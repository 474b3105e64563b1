r"""An Empirical Study of Smoothing Techniques for Language Modeling. Chen, Goodman. 1996.
https://aclanthology.org/P96-1041. Its long version (Harvard TR-10-98, 1998; Computer Speech and Language,
1999) adds Kneser-Ney smoothing and its modified form: "Sec." below is the long version's.

**Problem.** A sentence's probability is a product of next-word probabilities given the last n-1
words. Counted from text, most of them are zero: most n-grams of tomorrow have never been seen.

**Idea.** Take a little from the n-grams that were seen, and give it to all words in proportion to a model
of order n-1. And let that model answer the right question: not how often a word occurs (Francisco, often),
but after how many different words (Francisco, after one). With $N_{1+}(\bullet hw)$ different words to the left,

$$ p(w \mid h) = \frac{\max(c(hw) - D, 0)}{c(h)} + \frac{D\, N_{1+}(h\,\bullet)}{c(h)}\, p(w \mid h'),
   \qquad c(hw) := N_{1+}(\bullet hw) \text{ below the highest order,} $$

where $h'$ is $h$ without its first word (Kneser and Ney 1995, interpolated). The modified form has one
discount each for n-grams seen once, twice, and more often.

**Showed.** From thousands to tens of millions of words, for bigrams and trigrams, modified interpolated
Kneser-Ney has the lowest cross-entropy of all methods; interpolation beats back-off.

Differs from the paper in:
- Discounts come from counts of counts, as in the paper's `kneser-ney-mod-fix` and in toolkits;
  `discount="held-out"` tunes them, as in its `kneser-ney-mod`.
- Held-out data are every tenth sentence where none are given; then all sentences are counted, with the
  weights or discounts that were found.
- N-grams that start with `<s>` keep their counts at lower orders, as in every toolkit.
- Where Katz discounting leaves nothing to the unseen words of a history, one count is set aside.
- Stupid back-off (Brants et al. 2007, https://aclanthology.org/D07-1090) came later.

Reading order: `text` (words and sentences), `counting` (n-grams in sorted arrays), `smoothing` (the paper),
`arpa` (the file format), `model` (the n-gram model and the pass that makes it).
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from jingdu.engine.contracts import Recipe, Stage
from jingdu.errors import UsageError
from jingdu.prediction import Prediction

from .arpa import read_arpa, write_arpa
from .counting import Counts, count_ngrams, histories_of, look_up
from .model import Counting, NGram, Scores
from .smoothing import Table, back_off, estimate, held_out_discounts, held_out_weights, interpolate
from .text import close_vocabulary, encode, growing_index, join, sentences

__all__ = [
    "Counting", "Counts", "NGram", "Scores", "Table", "back_off", "build", "close_vocabulary", "count_ngrams", "encode",
    "estimate", "growing_index", "held_out_discounts", "held_out_weights", "histories_of", "interpolate", "join", "look_up",
    "predict", "read_arpa", "sentences", "write_arpa",
]  # fmt: skip


def build(variant: str = "ngram", **overrides: Any) -> NGram:
    """An n-gram model that has counted nothing yet; overrides are the arguments of `NGram`."""
    return NGram(**overrides)


def _counting(network: str, data: str) -> tuple[Stage, ...]:
    return (
        Stage("count", method="fit", system="ngram.Counting", networks={"model": network}, data=data, batch_size=16),
    )


recipes = {
    "laptop": Recipe(
        stages=_counting("ngram(order=3, tokens='code')", "stdlib"),
        minutes=1.0,
        expect={"perplexity": (30.0, 80.0)},
        about="a trigram model of the source of Python's standard library, tested on modules of its own",
    ),
    "english": Recipe(
        stages=_counting("ngram(order=3)", "pydoc_topics"),
        minutes=0.1,
        expect={"perplexity": (5.0, 20.0)},
        about="a trigram model of the help texts of Python. Its topics repeat each other's paragraphs, those for "
        "testing too, hence the low perplexity; the claims count each paragraph once",
    ),
    "paper": Recipe(
        stages=_counting("ngram(order=3)", "text(path='corpus')"),
        minutes=10,
        expect={"perplexity": (60.0, 300.0)},
        about="Sec. 4: trigrams of your own text: --data FILE, or --data \"text(path='FOLDER')\" of UTF-8 .txt files. "
        "The paper's corpora are Brown, Wall Street Journal, Broadcast News and Switchboard, which are licensed",
    ),
}


def predict(
    model: NGram,
    inputs: Sequence[str],
    *,
    tokens: int = 30,
    temperature: float = 1.0,
    beams: int = 0,
    seed: int = 0,
    arpa: Path | None = None,
) -> Iterator[Prediction]:
    """Score texts, and continue them to the end of the sentence; without a text, begin one.

    Args:
        tokens: longest continuation, in tokens; 0 only scores.
        temperature: of sampling; below 1 the probable words are favoured.
        beams: continue by beam search of this width instead of sampling.
        seed: of sampling.
        arpa: also write the model to this file, in the ARPA format.

    Raises UsageError for values that make no sense.
    """
    if tokens < 0 or beams < 0 or not 0 < temperature < math.inf:
        raise UsageError(
            f"tokens {tokens}, beams {beams}, temperature {temperature}: give counts, and a positive number"
        )
    if not -(2**63) <= seed < 2**63:
        raise UsageError(f"seed {seed}: give a 64-bit number")
    if arpa is not None:
        yield Prediction(
            "", f"{model.order}-grams: {sum(model.sizes):,}", {"ngrams": model.sizes}, (model.write_arpa(arpa),)
        )
        if not inputs:
            return
    generator = torch.Generator().manual_seed(seed)
    for text in inputs or [""]:
        yield _one(model, text, tokens, temperature, beams, generator)


def _one(
    model: NGram, text: str, tokens: int, temperature: float, beams: int, generator: torch.Generator
) -> Prediction:
    scores, lines, data = model.score(text), [], {}
    if len(scores.tokens):
        # JSON has no infinity: a word without a probability is null, and so is what it enters.
        rows = [
            {"token": token, "log10": value if math.isfinite(value) else None, "known": known}
            for token, value, known in zip(scores.tokens, scores.log10.tolist(), scores.known.tolist(), strict=True)
        ]
        lines = [" ".join(f"{row['token']}{'' if row['known'] else '?'}({row['log10']:.2f})" if row["log10"] is not None
                          else f"{row['token']}(-inf)" for row in rows)]  # fmt: skip
        summary = f"log10 {'probability' if model.normalised else 'score'} {scores.total:.4f}, {len(rows)} tokens"
        measures = {"log10": scores.total}
        if model.normalised:
            summary += f", perplexity {scores.perplexity:.4g}"
            measures |= {"perplexity": scores.perplexity}
        lines.append(summary + (", ? unknown words" if not scores.known.all() else ""))
        data = {name: value if math.isfinite(value) else None for name, value in measures.items()} | {"tokens": rows}
    if tokens:
        found = (
            model.beam_search(text, tokens, beams)[0][0]
            if beams
            else model.sample(text, tokens, generator, temperature)
        )
        data["continuation"] = join(found, model.tokens)
        lines.append(f"{text} [{data['continuation']}]".lstrip())
    return Prediction(text, "\n".join(lines), {"text": text, **data})
