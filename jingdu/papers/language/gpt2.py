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
  and each block has two. The released code scales nothing (openai/gpt-2, src/model.py).
- The paper's counts (117M, 345M, 762M, 1542M) are known mistakes; the card has the right ones.
- Nucleus sampling (Holtzman et al. 2019, https://arxiv.org/abs/1904.09751) is in the released code, not in the text.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from jingdu.engine.contracts import Recipe, Stage
from jingdu.errors import UsageError
from jingdu.papers.language.gpt import GPT, MLP, CausalSelfAttention, complete
from jingdu.papers.language.rnn import Choose, greedy, sample
from jingdu.papers.language.transformer import Cache
from jingdu.prediction import Prediction

__all__ = ["GPT2", "PreNormBlock", "build", "example", "predict", "sampler", "top_k", "top_p"]


# The network (Sec. 2.3) -------------------------------------------------------------------------------


class PreNormBlock(nn.Module):
    """Layer normalisation moved to the input of each sublayer; the sum is left as it is."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), CausalSelfAttention(width, heads, dropout)
        self.norm2, self.mlp = nn.LayerNorm(width), MLP(width)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Float[Tensor, "batch time width"],
        mask: Bool[Tensor, "batch 1 1 time"] | None = None,
        state: Cache | None = None,
        layer: int = 0,
    ) -> Float[Tensor, "batch time width"]:
        x = x + self.dropout(self.attention(self.norm1(x), mask, state, layer))
        return x + self.dropout(self.mlp(self.norm2(x)))


class GPT2(GPT):
    """GPT with pre-norm blocks and a last layer normalisation, which "largely follows" the first one (Sec. 2.3).

    Args:
        vocabulary: tokens; rows of the table of embeddings.
        width: of the state at each position.
        layers: blocks.
        heads: of each attention.
        context: positions.
        dropout: on embeddings, attention weights and residuals.
    """

    block = PreNormBlock

    def __init__(
        self,
        vocabulary: int = 50257,
        width: int = 768,
        layers: int = 12,
        heads: int = 12,
        context: int = 1024,
        dropout: float = 0.1,
    ):
        super().__init__(vocabulary, width, layers, heads, context, dropout)
        self.norm = nn.LayerNorm(width)

    def initialise(self) -> None:
        """N(0, 0.02), positions N(0, 0.01); what is added to the residual is scaled down by how often that is done."""
        super().initialise()
        nn.init.normal_(self.places.weight, std=0.01)
        for block in self.blocks:
            for layer in (block.attention.project, block.mlp.project):
                nn.init.normal_(layer.weight, std=0.02 / math.sqrt(2 * len(self.blocks)))


VARIANTS: dict[str, dict[str, Any]] = {
    # Table 2
    "gpt2": {},
    "gpt2_medium": {"width": 1024, "layers": 24, "heads": 16},
    "gpt2_large": {"width": 1280, "layers": 36, "heads": 20},
    "gpt2_xl": {"width": 1600, "layers": 48, "heads": 25},
}


def build(variant: str, **overrides: Any) -> GPT2:
    """The network of a variant; overrides are the arguments of `GPT2`."""
    return GPT2(**{**VARIANTS[variant], **overrides})


def example(variant: str, batch: int) -> Int64[Tensor, "batch time"]:
    """Tokens as a bench feeds them: 128 of each row."""
    return torch.randint(50257, (batch, 128), generator=torch.Generator().manual_seed(0))


# Sampling (openai/gpt-2, src/sample.py) ---------------------------------------------------------------


def top_k(logits: Float[Tensor, "batch vocabulary"], k: int) -> Float[Tensor, "batch vocabulary"]:
    """Only the `k` most probable tokens of each row (Fan et al. 2018); of equal ones at the border, all."""
    least = logits.topk(min(k, logits.shape[1])).values[:, -1:]
    return logits.masked_fill(logits < least, float("-inf"))


def top_p(
    logits: Float[Tensor, "batch vocabulary"], p: float | int, crossing: bool = True
) -> Float[Tensor, "batch vocabulary"]:
    """The nucleus: the fewest most probable tokens whose probabilities reach `p` together (Holtzman et al. 2019).

    `crossing` False leaves out the token that crosses `p`, as the released code does, but never the first one.
    """
    ordered, places = logits.sort(-1, descending=True)
    reached = ordered.softmax(-1).cumsum(-1)
    before = reached - ordered.softmax(-1)
    kept = before < p if crossing else reached <= p
    kept[:, 0] = True
    return logits.masked_fill(~torch.zeros_like(kept).scatter(1, places, kept), float("-inf"))


def sampler(temperature: float | int = 1.0, k: int | None = None, p: float | int | None = None) -> Choose:
    """How `generate` chooses: by temperature, then the `k` best, then the nucleus `p`; temperature 0 is greedy.

    Raises UsageError for a negative temperature, `k` below 1, or `p` outside (0, 1].
    """
    if not 0 <= temperature < math.inf:
        raise UsageError(f"temperature is {temperature}: it must be 0 (greedy) or more, and finite")
    if k is not None and k < 1:
        raise UsageError(f"top-k is {k}: it must be 1 or more")
    if p is not None and not 0 < p <= 1:
        raise UsageError(f"top-p is {p}: it must be above 0 and at most 1")
    if temperature == 0:
        return greedy

    def choose(logits: Tensor, generator: torch.Generator | None = None) -> Int64[Tensor, " batch"]:
        logits = logits.float() / temperature
        logits = logits if k is None else top_k(logits, k)
        return sample(logits if p is None else top_p(logits, p), generator)

    return choose


_TOKENS = "bpe.tokens(of='stdlib', vocabulary=2048, length=128)"

recipes = {
    "laptop": Recipe(
        stages=(
            Stage(
                system="language_modelling",
                networks={"network": "gpt2(vocabulary=2048, width=128, layers=4, heads=4, context=256, dropout=0.0)"},
                data=_TOKENS,
                batch_size=16,
                steps=800,
                optimizer="adamw",
                lr=2e-3,
                betas=(0.9, 0.95),
                weight_decay=0.1,
                schedule="cosine(warmup=80, end=0.1)",
                clip=1.0,
            ),
        ),
        minutes=3,
        expect={"bits_per_byte": (1.2, 2.0)},
        about="a GPT-2 of a million weights reads the standard library",
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
    length: int = 64,
    temperature: float = 1.0,
    top_k: int | None = 40,
    top_p: float | None = None,
    seed: int = 0,
    tokenizer: Path | None = None,
    stream: bool = False,
) -> Iterator[Prediction]:
    """Continuations of texts.

    Args:
        length: the most new tokens.
        temperature: of sampling; 0 takes the most probable token.
        top_k: how many of the most probable tokens are drawn from; None for all.
        top_p: the share of the probability that is drawn from (the nucleus); None for all.
        seed: of sampling.
        tokenizer: a file or folder, where none lies beside the weights.
        stream: print the text while it comes.
    """
    choose = sampler(temperature, top_k, top_p)
    yield from complete(model, inputs, tokenizer=tokenizer, length=length, choose=choose, seed=seed, stream=stream)
