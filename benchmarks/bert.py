"""BERT against transformers on the CPU, and sentences of mixed lengths without padding: python -m benchmarks.bert."""

from typing import Any

import numpy as np
import torch

import jingdu
from benchmarks.paired import compare, save
from jingdu.papers.language.bert import SPECIAL, Marked, sentence_vectors
from jingdu.papers.language.bpe import Tokenizer, WordPiece, family_of
from jingdu.papers.language.bpe.added import Added
from jingdu.speed.case import make_pair

SENTENCES = 32


def mixed_lengths(rounds: int = 8) -> dict[str, Any]:
    """32 sentences of 5 to 128 tokens, most of them short: their vectors by MiniLM's network with random weights.

    transformers reads them as they come, padded to the longest; ours computes nothing for padding. Outputs are compared
    first.
    """
    pair = make_pair("bert_all_minilm_l6_v2", "transformers", batch=1)
    draw = np.random.default_rng(0)
    sizes = np.clip(draw.lognormal(3.2, 0.7, SENTENCES).round(), 5, 128).astype(int).tolist()
    rows = [(draw.integers(5, 30522, size).tolist(), [0] * size) for size in sizes]
    special = {name: Added(number) for number, name in enumerate(SPECIAL)}
    marked = Marked(Tokenizer(WordPiece({b"a": 5}, 1, family_of("bert")), special))
    tokens, mask, _ = marked.batch(rows)

    def theirs() -> torch.Tensor:
        with torch.inference_mode():
            states = pair.reference(input_ids=tokens, attention_mask=mask.long()).last_hidden_state
            weight = mask[..., None].float()
            return torch.nn.functional.normalize((states * weight).sum(1) / weight.sum(1), dim=1)

    def ours() -> torch.Tensor:
        with torch.inference_mode():
            return sentence_vectors(pair.ours, rows, marked)

    difference = float((ours() - theirs()).abs().max())
    assert difference < 1e-4, difference
    real = sum(sizes) / (len(sizes) * max(sizes))
    work = f"{SENTENCES} sentences of 5 to {max(sizes)} tokens, {real:.0%} of the padded batch real"
    row = compare(ours, theirs, f"bert_all_minilm_l6_v2, mixed lengths: {work}", rounds, 1, work)
    return {**row, "difference": difference, "variant": "bert_all_minilm_l6_v2", "against": "transformers"}


def cases(rounds: int = 8) -> list[dict[str, Any]]:
    """The same weights and tokens in eager float32, 128 tokens a row; and mixed lengths."""
    plain = [
        jingdu.bench(name, "transformers", batch=batch, train=train, rounds=rounds)
        for name, batch, train in (
            ("bert_all_minilm_l6_v2", 4, False), ("bert_all_minilm_l6_v2", 4, True), ("bert_base_uncased", 1, False),
        )
    ]  # fmt: skip
    return [mixed_lengths(rounds), *plain]


if __name__ == "__main__":
    save(cases(), "bert.json")
