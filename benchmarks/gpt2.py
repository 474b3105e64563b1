"""GPT-2 against transformers: forward, in training, and one token after the other: python -m benchmarks.gpt2."""

import warnings
from typing import Any

import torch

import jingdu
from benchmarks.paired import compare, save
from jingdu.papers.language.rnn import generate
from jingdu.speed.case import make_pair

PROMPT, LENGTH = 32, 64


def decoding(dtype: torch.dtype, rounds: int = 6) -> dict[str, Any]:
    """64 tokens after a prompt of 32 at batch 1, greedily: ours by `generate`, theirs by theirs, both eager."""
    pair = make_pair("gpt2", "transformers", 1)
    ours, theirs = pair.ours.to(dtype), pair.reference.to(dtype)
    prompt = pair.inputs[0][0, :PROMPT]

    def our_text() -> list[torch.Tensor]:
        with torch.inference_mode():
            return generate(ours, [prompt], LENGTH)

    def their_text() -> torch.Tensor:
        return theirs.generate(
            prompt[None], attention_mask=torch.ones_like(prompt)[None], max_new_tokens=LENGTH, min_new_tokens=LENGTH,
            do_sample=False, pad_token_id=0, eos_token_id=None,
        )  # fmt: skip

    row = compare(our_text, their_text, f"gpt2, {LENGTH} tokens decoded, {str(dtype).removeprefix('torch.')}", rounds)
    read = sum(p.numel() * p.element_size() for p in ours.parameters()) * LENGTH
    return row | {"tokens_per_second": LENGTH / row["ours"], "bytes_per_second": read / row["ours"]}


def cases(rounds: int = 6) -> list[dict[str, Any]]:
    """The same weights and tokens."""
    rows = [jingdu.bench("gpt2", "transformers", batch=1, train=train, rounds=rounds) for train in (False, True)]
    return [*rows, decoding(torch.float32), decoding(torch.bfloat16)]


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    save(cases(), "gpt2.json")
