r"""Attention Is All You Need. Vaswani, Shazeer, Parmar, Uszkoreit, Jones, Gomez, Kaiser, Polosukhin. 2017.
https://arxiv.org/abs/1706.03762

**Problem.** A recurrent network reads a sentence one word after the other: each state waits for the one before it, so a
sentence cannot be worked on in parallel, and what two distant words have to do with each other must pass through all the
states between them.

**Idea.** Leave recurrence out. Every position asks all others at once, by the products of queries and keys, and takes the
mean of their values with the weights that it found (Eq. 1); several heads ask in subspaces of their own:

$$ \mathrm{Attention}(Q, K, V) = \mathrm{softmax}\!\left(\frac{Q K^\top}{\sqrt{d_k}}\right) V $$

Any two words are one step apart, and all positions of a sentence train in the same few matrix products. What order there
is, is said by a wave added to each embedding.

**Showed.** On WMT 2014, 28.4 BLEU from English to German and 41.8 to French, better than all single models and ensembles
before it, for a small part of their training (Tab. 2).

Differs from the paper in:
- The sinusoids are interleaved as Section 3.5 has them; the released code, tensor2tensor, has all sines before all
  cosines, and other frequencies: `positions="tensor2tensor"`.
- tensor2tensor ends every source with the end mark, which the paper does not say and we do as well. It begins targets
  with a zero vector; here the start has an embedding, that of the padding.
- It also adds an embedding of the target language to each source position. We write the language as a first token.
- Post-norm with dropout after the sublayers alone is the paper and the first set of hyperparameters in tensor2tensor,
  transformer_base_v1: the preset `paper`. Its later ones have pre-norm, dropout on attention weights and within the
  feed-forward networks (0.1 each), 8,000 steps of warm-up, and twice the rate of Equation 3: the preset
  `tensor2tensor_v2`. From the third set on b2 is 0.997: `--betas 0.9 0.997`.
- In beam search a translation ends only from among the k most probable continuations, and at the limit of length all of
  those count as they stand, as in fairseq and transformers; tensor2tensor looks for ends among 2k, and takes what has
  not ended only where nothing has.
- Batches are the same groups of lengths in every epoch, with other members; tensor2tensor fills them as they come.

Reading order: `attention`, `layers`, `positions`, `model`; `search` (beams); `spelling`, `pairs` (text as batches of
tokens); `translation` (training, translating, averaging); `drawing`.
"""

import math
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from jingdu.engine.contracts import Recipe, Stage
from jingdu.errors import Missing, UsageError, unknown
from jingdu.prediction import Prediction, origin_of

from .attention import Cache, attention, attention_weights
from .drawing import draw_attention
from .layers import DecoderLayer, EncoderLayer, FeedForward, MultiHeadAttention, add_and_norm
from .model import VARIANTS, Decoding, Reader, Transformer, build
from .pairs import Pairs, pairs
from .positions import sinusoids
from .search import Hypothesis, beam_search, gnmt, power
from .spelling import BytePairs, MarianPieces, Speller, learn_spelling, read_spelling
from .translation import (
    Translation,
    average_checkpoints,
    last_checkpoints,
    noam_peak,
    smoothed_cross_entropy,
    translate,
)

__all__ = [
    "BytePairs", "Cache", "Decoding", "DecoderLayer", "EncoderLayer", "FeedForward", "Hypothesis", "MarianPieces",
    "MultiHeadAttention", "Pairs", "Reader", "Transformer", "Translation", "VARIANTS", "add_and_norm", "attention",
    "attention_weights", "average_checkpoints", "beam_search", "build", "draw_attention", "gnmt", "last_checkpoints",
    "learn_spelling", "noam_peak", "pairs", "power", "predict", "read_spelling", "sinusoids", "smoothed_cross_entropy",
    "translate",
]  # fmt: skip

ROMANCE = "catalogues(languages=('ca', 'es', 'fr', 'gl', 'it', 'pt', 'ro'), pairs='all', longest=60)"


def _paper(
    network: str, warmup: int, steps: int, keep: int, expect: tuple[float, float], about: str, times: float = 1.0
) -> Recipe:
    width = VARIANTS[network.partition("(")[0]].get("width", 512)
    return Recipe(
        stages=(
            Stage(
                networks={"network": network},
                system="transformer.Translation(beams=4)",
                data='transformer.pairs(of=\'hf:wmt/wmt14(config="de-en", source="en", target="de")\', '
                "vocabulary=37000, tokens=4096)",
                batch_size=8,  # batches of 4,096: about 25,000 tokens on either side, without the padding
                steps=steps,
                optimizer="adam",
                betas=(0.9, 0.98),
                eps=1e-9,
                lr=times * noam_peak(width, warmup),
                schedule=f"inverse_sqrt(warmup={warmup})",
                save_every=1500,
                keep=keep,
                evaluate_every=20_000,
                workers=4,
            ),
        ),
        minutes=60 * (12 if keep == 5 else 84),
        expect={"bleu": expect},
        machine="8 P100 GPUs",
        about=about,
    )


recipes = {
    "laptop": Recipe(
        stages=(
            Stage(
                networks={"network": "transformer_base_v37000(width=128, inner=512, heads=4, layers=2)"},
                system="transformer.Translation(beams=4)",
                data=f"transformer.pairs(of={ROMANCE!r}, vocabulary=1000, tokens=512)",
                batch_size=1,
                steps=1200,
                optimizer="adam",
                betas=(0.9, 0.98),
                eps=1e-9,
                lr=3e-3,
                schedule="inverse_sqrt(warmup=150)",
                save_every=100,
                keep=5,
            ),
        ),
        minutes=4.0,
        expect={"loss": (2.6, 3.1), "bleu": (27, 38)},
        about="Django's messages between every two of seven Romance languages, with the target language as first token",
    ),
    "paper": _paper(
        "transformer_base_v37000", 4000, 100_000, 5, (25.0, 28.0),
        "Tab. 3, base: WMT14 English to German from the hub, or two text files: --data \"transformer.pairs(of='parallel("
        "source=..., target=...)', vocabulary=37000)\". On one GPU, --accumulate 8. The paper's 27.3 BLEU is of the mean "
        "of the last 5 checkpoints (predict --average 5), tokenised and with compounds split; sacrebleu gives a little less",
    ),
    "big": _paper(
        "transformer_big_v37000", 4000, 300_000, 20, (26.0, 29.5),
        "Tab. 3, big, whose 28.4 BLEU is of the mean of the last 20 checkpoints",
    ),
    "tensor2tensor_v2": _paper(
        "transformer_base_v37000(norm='pre', attention_dropout=0.1, inner_dropout=0.1, positions='tensor2tensor')", 8000,
        100_000, 5, (25.0, 28.0), "base with the released code's second set of hyperparameters (transformer_base_v2): norms "
        "first, more dropout, a longer warm-up to twice the equation's rate", times=2.0,
    ),
}  # fmt: skip


PENALTIES = {"gnmt": gnmt, "power": power}


def _speller_of(model: Transformer) -> Speller:
    path = origin_of(model).tokenizer
    if path is None:
        raise Missing(
            "these weights come without a vocabulary: use a run folder (jingdu train transformer), or a folder with "
            "source.spm, target.spm and vocab.json"
        )
    return read_spelling(path)


def _sentences(inputs: Sequence[str]) -> list[str]:
    """Texts as they are; of a .txt file its lines."""
    found: list[str] = []
    for text in inputs:
        if text.endswith(".txt") and Path(text).is_file():
            found += [line for line in Path(text).read_text("utf-8").splitlines() if line.strip()]
        else:
            found.append(text)
    return found


def predict(
    model: Transformer,
    inputs: Sequence[str],
    *,
    to: str | None = None,
    beams: int = 4,
    alpha: float = 0.6,
    penalty: Literal["gnmt", "power"] = "gnmt",
    average: int = 1,
    attention_map: Path | None = None,
) -> Iterator[Prediction]:
    """Translate sentences, and the lines of .txt files.

    Args:
        to: the target language, where the network knows several; a text may begin with >>NAME<< instead.
        beams: of beam search.
        alpha: exponent of the length penalty; larger ones favour longer translations.
        penalty: what a log-probability is divided by: ((5 + length) / 6) ** alpha is gnmt, the paper's; length ** alpha is
            power, which transformers and fairseq have.
        average: use the mean of the weights in so many of the run's last checkpoints.
        attention_map: also draw what the decoder looked at, for the last sentence, into this file.

    Raises UsageError for values that make no sense or no known language, Missing for weights without a vocabulary.
    """
    if beams < 1 or average < 1 or not inputs:
        raise UsageError(f"{beams} beams, {average} checkpoints, {len(inputs)} texts: give at least one of each")
    if not 0 <= alpha < math.inf:
        raise UsageError(f"a length penalty of exponent {alpha}: give 0 or more")
    if penalty not in PENALTIES:
        raise unknown("length penalty", penalty, PENALTIES)
    speller = _speller_of(model)
    if average > 1:
        checkpoint = Path(str(origin_of(model).source))
        if not checkpoint.name.startswith("step-"):
            raise UsageError(f"{checkpoint}: only a run's checkpoints can be averaged")
        model = average_checkpoints(model, last_checkpoints(checkpoint, average))
    texts = _sentences(inputs)
    sources = [speller.source(text, to) for text in texts]
    found = translate(model, sources, beams=beams, penalty=partial(PENALTIES[penalty], alpha=alpha))
    for number, (text, source, best) in enumerate(zip(texts, sources, found, strict=True)):
        tokens = best.tokens.tolist()
        translation = speller.text(tokens)
        data: dict[str, Any] = {
            "source": text, "translation": translation, "log_probability": best.log_probability, "score": best.score,
            "tokens": speller.pieces(tokens),
        }  # fmt: skip
        files: tuple[Path, ...] = ()
        if attention_map is not None and number == len(texts) - 1:
            place = next(model.parameters()).device
            target = torch.tensor([[model.marks[2], *tokens[:-1]]], device=place)
            maps = model.attention_maps(torch.tensor([source], device=place), target)
            names = speller.pieces(source), speller.pieces(tokens)
            files = (draw_attention(attention_map, [layer[0] for layer in maps], *names),)
        yield Prediction(text, translation, data, files)
