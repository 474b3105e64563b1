r"""Language Models are Unsupervised Multitask Learners. Radford, Wu, Child, Luan, Amodei, Sutskever. 2019.
https://cdn.openai.com/better-language-models/language_models_are_unsupervised_multitask_learners.pdf

**Problem.** Pre-training and fine-tuning still needs labelled data and a new set of weights for every task.

**Idea.** A task is a conditional distribution, $p(\text{output} \mid \text{input}, \text{task})$, and language can say all
three. Varied text contains its own demonstrations of translating, answering and summarising, so a language model that is
large enough, trained on web pages that people found worth a link, has learned tasks that nobody taught it. They are
asked for by a prompt; no weight changes.

**Showed.** Best published results on 7 of 8 language-model data sets without training on any, better with each of four
sizes: LAMBADA perplexity 35.1 to 8.6, WikiText-2 29.4 to 18.3, from 124M to 1558M parameters (Tab. 3).

Differs from the paper in:
- Residual projections start scaled by $1/\sqrt{2 \cdot \text{layers}}$; the text says $1/\sqrt N$ with N residual layers,
  and each block has two. The released code scales nothing (openai/gpt-2, src/model.py): `scaled=False`.
- The paper's counts (117M, 345M, 762M, 1542M) are known mistakes; the card has the right ones.
- Nucleus sampling (Holtzman et al. 2019, https://arxiv.org/abs/1904.09751) is in the released code, not in the text. That
  code leaves out the token that crosses p, as `crossing=False` does; the paper of the nucleus and transformers keep it.
- The de-tokenisers and the list of stop words were not published; these are ours, after what Section 3 says of them.

Reading order: `model`, `sampling`; `zero_shot` (tasks as prompts and as scores), `detokenise` (texts that were cut into
words, as a person writes them).
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from jingdu.engine.contracts import Recipe, Stage
from jingdu.errors import Refused, UsageError
from jingdu.papers.language.gpt import complete, tokenizer_of
from jingdu.prediction import Prediction

from .detokenise import DETOKENISERS, count_words, penn_treebank, per_unit, wikitext
from .model import GPT2, VARIANTS, PreNormBlock, build, example
from .sampling import sampler, top_k, top_p
from .zero_shot import (
    LastWord,
    answer,
    cloze,
    guess_word,
    last_word,
    log_probabilities,
    score_text,
    summarise,
    translate,
    winograd,
)

__all__ = [
    "DETOKENISERS", "GPT2", "LastWord", "VARIANTS", "PreNormBlock", "answer", "build", "cloze", "count_words", "example",
    "guess_word", "last_word", "log_probabilities", "penn_treebank", "per_unit", "predict", "sampler", "score_text",
    "summarise", "top_k", "top_p", "translate", "wikitext", "winograd",
]  # fmt: skip

_TOKENS = "bpe.tokens(of='stdlib', vocabulary=2048, length=128)"

recipes = {
    "laptop": Recipe(
        stages=(
            Stage(
                system="language_modelling",
                networks={"network": "gpt2(vocabulary=2048, width=144, layers=4, heads=6, context=128, dropout=0.0)"},
                data=_TOKENS,
                batch_size=8,
                steps=300,
                optimizer="adamw",
                lr=3e-3,
                betas=(0.9, 0.95),
                weight_decay=0.1,
                schedule="cosine(warmup=30, end=0.1)",
                clip=1.0,
            ),
        ),
        minutes=3,
        expect={"bits_per_byte": (1.7, 2.8)},
        about="a GPT-2 of a million weights reads the standard library; measured: 2.19 bits a byte",
    ),
    "paper": Recipe(
        stages=(
            Stage(
                system="language_modelling",
                networks={"network": "gpt2"},
                data="bpe.tokens(of='hf:Skylion007/openwebtext', vocabulary='vocabulary', length=1024)",
                batch_size=512,
                steps=600_000,
                optimizer="adamw",
                lr=6e-4,
                betas=(0.9, 0.95),
                weight_decay=0.1,
                schedule="cosine(warmup=2000, end=0.1)",
                clip=1.0,
                accumulate=8,
                precision="bf16",
                compile=True,
                save_every=1000,
            ),
        ),
        minutes=4 * 24 * 60,
        expect={"loss": (2.8, 2.95)},
        machine="8 GPUs",
        about="Batches of 512 times 1024 tokens (Sec. 2.3) of an open copy of WebText, with GPT-2's vocabulary in the "
        "folder ./vocabulary; the learning rate's schedule was not published: this is nanoGPT's",
    ),
}


def predict(
    model: GPT2,
    inputs: Sequence[str],
    *,
    task: Literal["continue", "score", "summarise", "translate", "answer"] = "continue",
    length: int | None = None,
    temperature: float = 1.0,
    top_k: int | None = 40,
    top_p: float | None = None,
    examples: Path | None = None,
    seed: int = 0,
    tokenizer: Path | None = None,
    stream: bool = False,
) -> Iterator[Prediction]:
    """Continuations of texts; or how probable they are; or tasks that a prompt asks for (Sec. 3).

    Args:
        task: continue; score (bits a byte and perplexity a word); summarise (TL;DR:, top-k 2); translate and answer (greedy).
        length: the most new tokens: 64, of a summary 100, of an answer 32.
        temperature: of sampling; 0 takes the most probable token.
        top_k: how many of the most probable tokens are drawn from; None for all.
        top_p: the share of the probability that is drawn from (the nucleus); None for all.
        examples: for translate and answer, a text file of lines with a tab between input and output.
        seed: of sampling.
        tokenizer: a file or folder, where none lies beside the weights.
        stream: print the text while it comes.
    """
    if task == "continue":
        choose = sampler(temperature, top_k, top_p)
        options = {"length": 64 if length is None else length, "seed": seed, "stream": stream}
        yield from complete(model, inputs, tokenizer=tokenizer, choose=choose, **options)
        return
    words, shown = tokenizer_of(model, tokenizer), _examples(examples)
    model.eval()
    for text in inputs:
        if task == "score":
            found = score_text(model, words, text)
            line = f"{found['bits_per_byte']:.4f} bits a byte, perplexity {found['perplexity']:.4g} a word"
            yield Prediction(text, f"{text}\n  {line}", {"text": text, **found})
            continue
        if task == "summarise":
            made = summarise(model, words, text, 100 if length is None else length, seed=seed)
        elif task == "translate":
            made = translate(model, words, text, shown, 64 if length is None else length)
        else:
            made = answer(model, words, text, shown, length=32 if length is None else length)
        yield Prediction(text, made, {"text": text, task: made})


def _examples(path: Path | None) -> list[tuple[str, str]]:
    """Lines with a tab between input and output. Raises UsageError for others, Refused for what cannot be read."""
    if path is None:
        return []
    try:
        lines = [line for line in path.read_text("utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise Refused(f"{path}: cannot be read ({type(error).__name__})") from None
    found = [tuple(line.split("\t")) for line in lines]
    for number, parts in enumerate(found, 1):
        if len(parts) != 2:
            raise UsageError(
                f"{path}, line {number}: one tab stands between input and output, and here are {len(parts) - 1}"
            )
    return found
