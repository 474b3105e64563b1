r"""Improving Language Understanding by Generative Pre-Training. Radford, Narasimhan, Salimans, Sutskever. 2018.
https://cdn.openai.com/research-covers/language-unsupervised/language_understanding_paper.pdf

**Problem.** Text is plentiful, labelled text is not. Word vectors carry over from one to the other, but what stands above
them was still built and learned anew for every task.

**Idea.** Train one Transformer decoder to predict the next token of books (Eq. 1), then go on with the same weights on
the task, which is written as one sequence of tokens with a start, a delimiter and an end (Fig. 1). Only one linear
layer is new; it reads the state at the end token (Eq. 3), and predicting the tokens stays a second aim (Eq. 5):

$$ L_3(\mathcal C) = L_2(\mathcal C) + \lambda\, L_1(\mathcal C), \qquad
   L_2 = \sum \log P(y \mid x^1 \ldots x^m), \quad L_1 = \sum_i \log P(x^i \mid x^{i-k} \ldots x^{i-1}) $$

**Showed.** Best published results on 9 of 12 tasks, among them Story Cloze (86.5 %, +8.9) and RACE (59.0 %, +5.7);
without pre-training the mean over tasks falls from 74.7 to 59.9 (Tab. 5).

Differs from the paper in:
- Positions have a table of their own. The released code keeps them in the table of the words, and its softmax runs over
  all of it in fine-tuning; here it runs over the words and the three marks.
- Of a padded batch, positions count the real tokens of a row, so padding on either side changes nothing.
- The laptop recipes learn a byte-level vocabulary from their own text; the paper's is of characters, lower-cased.

Reading order: `model` (the decoder), `tasks` (as sequences; fine-tuning), `labelled` (a task for the laptop),
`completion` (text and labels from a trained network).
"""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from jingdu.engine.contracts import Recipe, Stage
from jingdu.errors import UsageError
from jingdu.papers.language.rnn import greedy, sample
from jingdu.prediction import Prediction

from .completion import complete, known, label, tokenizer_of
from .labelled import PACKAGES, SHARE, snippets
from .model import GPT, MLP, VARIANTS, Block, CausalSelfAttention, build, example
from .tasks import FineTuning, multiple_choice, pair, similarity, single, take_up

__all__ = [
    "GPT", "MLP", "PACKAGES", "SHARE", "VARIANTS", "Block", "CausalSelfAttention", "FineTuning", "build", "complete", "example",
    "known", "label", "multiple_choice", "pair", "predict", "similarity", "single", "snippets", "take_up", "tokenizer_of",
]  # fmt: skip

_TOKENS = f"bpe.tokens(of='stdlib(share={SHARE})', vocabulary=2048, length=128)"
_SMALL = "vocabulary=2048, width=96, layers=3, heads=4, context=128, dropout=0.0, spread=0.08"

recipes = {
    "laptop": Recipe(
        stages=(
            Stage(
                name="pre-training",
                system="language_modelling",
                networks={"network": f"gpt1({_SMALL})"},
                data=_TOKENS,
                batch_size=8,
                steps=500,
                optimizer="adamw",
                lr=2e-3,
                weight_decay=0.01,
                schedule="cosine(warmup=50)",
                clip=1.0,
            ),
            Stage(
                name="fine-tuning",
                system="gpt.FineTuning(start='pre-training')",
                networks={"network": f"gpt1({_SMALL}, marks=3, classes=8)"},
                data=f'gpt.snippets(tokenizer="{_TOKENS}", length=96)',
                batch_size=16,
                steps=100,
                optimizer="adamw",
                lr=1e-3,
                weight_decay=0.01,
                schedule="cosine(warmup=10)",
                clip=1.0,
            ),
        ),
        minutes=2.0,
        expect={"error": (0.6, 0.8)},
        about="a small GPT reads the standard library, then learns from 200 functions which of 8 packages one is from",
    ),
    "paper": Recipe(
        stages=(
            Stage(
                name="pre-training",
                system="language_modelling",
                networks={"network": "gpt1"},
                data="bpe.tokens(of='hf:bookcorpus/bookcorpus', vocabulary=40000, family='gpt', length=512)",
                batch_size=64,
                epochs=100,
                optimizer="adamw",
                lr=2.5e-4,
                weight_decay=0.01,
                schedule="cosine(warmup=2000)",
                clip=1.0,
                save_every=5000,
            ),
        ),
        minutes=30 * 24 * 60,
        expect={"perplexity": (17.0, 20.0)},
        machine="8 GPUs",
        about="Section 4.1: 100 epochs over BooksCorpus (--data), sequences of 512 tokens, 64 at a time; 18.4 held out",
    ),
}


def predict(
    model: GPT,
    inputs: Sequence[str],
    *,
    length: int = 64,
    temperature: float = 0.8,
    seed: int = 0,
    tokenizer: Path | None = None,
    stream: bool = False,
) -> Iterator[Prediction]:
    """Continuations of texts, or where the network was fine-tuned their classes.

    Args:
        length: the most new tokens.
        temperature: of sampling; 0 takes the most probable token.
        seed: of sampling.
        tokenizer: a file or folder, where none lies beside the weights.
        stream: print the text while it comes.
    """
    if model.head is not None:
        yield from label(model, inputs, tokenizer)
        return
    if temperature < 0:
        raise UsageError(f"temperature is {temperature}: it must be 0 (the most probable token) or more")
    choose = greedy if temperature == 0 else partial(sample, temperature=temperature)
    yield from complete(model, inputs, tokenizer=tokenizer, length=length, choose=choose, seed=seed, stream=stream)
