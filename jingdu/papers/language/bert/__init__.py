r"""BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding. Devlin, Chang, Lee, Toutanova. 2018.
https://arxiv.org/abs/1810.04805

**Problem.** A language model reads in one direction, because a network that sees both sides of a word would see the word
itself. So what it learns of a word knows only what stands before it (GPT), or two half-blind readers are put beside each
other (ELMo).

**Idea.** Hide some of the words and predict them from all others (the masked language model). With a set $M$ of hidden
places and $\tilde x$ the text with gaps at them,

$$ L = -\frac{1}{|M|} \sum_{i \in M} \log P(x_i \mid \tilde x) \;-\; \log P(\text{next} \mid \tilde x_A, \tilde x_B), $$

where the second part asks whether segment B follows segment A. Then every task gets one new layer on the same encoder,
and all of it is trained on.

**Showed.** GLUE 82.1 (large) and 79.6 (base) against 75.1 for GPT, SQuAD 1.1 F1 93.2 (Tab. 1, 2); a left-to-right network
of the same size, without the second part, loses 9.2 points on MRPC and 10.7 on SQuAD (Tab. 5).

Differs from the paper in:
- The paper says "80 % of the time [MASK]" and no more; the least and most tokens of an example, the shorter examples, the
  lines that are put back and the static duplicates are the released code's (create_pretraining_data.py).
- A sentence is a line of text, and blank lines do not part documents: a document is a sample of the data.
- Whole-word masking is the released code's option of 2019.
- The preset `paper` warms up and decays anew for its second part, the tenth of the steps with 512 tokens; the paper's rate
  goes on along one line.
- Positions are counted from the first column of a batch, padding included, as in the released code.
- `bert_all_minilm_l6_v2` is of Wang et al. 2020 and sentence-transformers: it has a BERT's network and neither head.

Reading order: `model` (the encoder and its heads), `text` (marks), `examples` (gaps and pairs), `tasks` (pre-training and
fine-tuning), `answers` (from a text to what a head says of it).
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from jingdu.engine.contracts import Recipe, Stage
from jingdu.errors import UsageError
from jingdu.prediction import Prediction

from .answers import answer_question, choose, classify, compare_texts, fill_gaps, tag_words, windows_of
from .examples import Examples, Lines, cut_pairs, cut_singles, examples, leave_gaps, shorten
from .model import BERT, VARIANTS, Embeddings, Layer, Packing, SelfAttention, Words, build, example
from .tasks import (
    FineTuning,
    PreTraining,
    Sentences,
    best_span,
    features,
    roles,
    sentence_vectors,
    sentences,
    take_encoder,
)
from .text import SPECIAL, Marked, read_marks

__all__ = [
    "BERT", "Embeddings", "Examples", "FineTuning", "Layer", "Lines", "Marked", "Packing", "PreTraining", "SPECIAL",
    "SelfAttention", "Sentences", "VARIANTS", "Words", "answer_question", "best_span", "build", "choose", "classify",
    "compare_texts", "cut_pairs", "cut_singles", "example", "examples", "features", "fill_gaps", "leave_gaps", "predict",
    "read_marks", "roles", "sentence_vectors", "sentences", "shorten", "tag_words", "take_encoder", "windows_of",
]  # fmt: skip

_CODE = "bert.examples(of='stdlib(share=0.3)', vocabulary=2048, length=64, duplicates=2, gaps=10)"
_SMALL_BERT = "width=128, layers=3, heads=4, context=128, dropout=0.0, std=0.05"

_READING = Stage(
    name="pre-training",
    system="bert.PreTraining",
    networks={"network": f"bert_base_uncased(head='pretraining', {_SMALL_BERT})"},
    data=_CODE,
    batch_size=16,
    steps=1500,
    optimizer="adamw",
    lr=2e-3,
    eps=1e-6,
    weight_decay=0.01,
    schedule="linear(warmup=100)",
    clip=1.0,
)


def _published(length: int, batch: int, steps: int, gaps: int, start: str | None = None) -> Stage:
    return Stage(
        name=f"length-{length}",
        system="bert.PreTraining" if start is None else f"bert.PreTraining(start={start!r})",
        networks={"network": "bert_base_uncased(head='pretraining')"},
        data=f"bert.examples(of=\"text(path='corpus')\", vocabulary='vocab.txt', length={length}, gaps={gaps})",
        batch_size=batch,
        steps=steps,
        optimizer="adamw",
        lr=1e-4,
        betas=(0.9, 0.999),
        eps=1e-6,
        bias_correction=False,
        weight_decay=0.01,
        schedule="linear(warmup=10000)",
        clip=1.0,
        save_every=5000,
        workers=4,
    )


recipes = {
    "laptop": Recipe(
        stages=(_READING,),
        minutes=6,
        expect={"word_error": (0.3, 0.88), "follows_error": (0.2, 0.55)},
        about="a BERT of 0.9 million weights fills the gaps of the standard library's code",
    ),
    "roles": Recipe(
        stages=(
            _READING,
            Stage(
                name="fine-tuning",
                system="bert.FineTuning(start='pre-training')",
                networks={"network": f"bert_base_uncased(head='tags', labels=6, {_SMALL_BERT})"},
                data=f'bert.roles(tokenizer="{_CODE}")',
                batch_size=8,
                steps=120,
                optimizer="adamw",
                lr=5e-4,
                weight_decay=0.01,
                schedule="linear(warmup=12)",
                clip=1.0,
            ),
        ),
        minutes=7,
        expect={"error": (0.05, 0.35)},
        about="the same, and then from 2,000 names of the library's functions which part each plays",
    ),
    "paper": Recipe(
        stages=(_published(128, 256, 900_000, 20), _published(512, 256, 100_000, 77, "length-128")),
        minutes=4 * 24 * 60,
        expect={"word_error": (0.25, 0.4), "follows_error": (0.0, 0.05)},
        machine="16 TPU chips",
        about="A.2: BooksCorpus and Wikipedia as text files, a sentence a line (--data), 256 sequences at a time, a million "
        "steps, the last tenth of them with 512 tokens; vocab.txt is the published vocabulary, or a number to learn one",
    ),
    "fine-tuning": Recipe(
        stages=(
            Stage(
                name="fine-tuning",
                system="bert.FineTuning(start='hf:google-bert/bert-base-uncased')",
                networks={"network": "bert_base_uncased(head='class', labels=2)"},
                data="bert.sentences(of='hf:stanfordnlp/sst2(text=\"sentence\")', tokenizer='vocab.txt')",
                batch_size=32,
                epochs=3,
                optimizer="adamw",
                lr=2e-5,
                eps=1e-6,
                bias_correction=False,
                weight_decay=0.01,
                schedule="linear(warmup=630)",
                clip=1.0,
            ),
        ),
        minutes=60,
        expect={"error": (0.055, 0.085)},
        machine="1 GPU",
        about="A.3: 3 epochs from published weights on SST-2, whose error was 6.5 % (Tab. 1)",
    ),
}


def predict(
    model: BERT,
    inputs: Sequence[str],
    *,
    top: int = 5,
    vectors: bool = False,
    threshold: float | None = None,
    tokenizer: Path | None = None,
) -> Iterator[Prediction]:
    """What the network's head says of texts: tokens for [MASK], classes, tags, a span, a choice; else vectors.

    Two texts of one input stand with a tab between: a pair to classify, a question and its passage, a context and the
    choices. A network that predicts words gives vectors of inputs without [MASK] and tab, and each one's cosine with
    the others.

    Args:
        top: how many of the most probable tokens or classes.
        vectors: give vectors, whatever the head.
        threshold: no answer to a question unless its score exceeds that of none by more than this.
        tokenizer: a file or folder, where none lies beside the weights.

    Raises UsageError for weights without a vocabulary, and for inputs that do not fit.
    """
    if top < 1:
        raise UsageError(f"top is {top}: it must be 1 or more")
    marked, length = read_marks(model, tokenizer)
    model.eval()
    compared = []
    for text in inputs:
        gaps, pair = "[MASK]" in text and model.words is not None, "\t" in text and model.follows is not None
        # A head of a task answers any text; one that predicts words has nothing to say of a text without gaps.
        answers = model.head is not None and (model.words is None or gaps or pair)
        if vectors or not answers:
            compared.append(text)
        elif gaps:
            yield fill_gaps(model, marked, length, text, top)
        elif model.head == "tags":
            yield tag_words(model, marked, length, text)
        elif model.head == "span":
            yield answer_question(model, marked, length, text, threshold)
        elif model.head == "choice":
            yield choose(model, marked, length, text)
        else:
            yield classify(model, marked, length, text, top)
    if compared:
        yield from compare_texts(model, marked, length, compared)
