"""Training steps against torch.nn.Transformer, and beam search against transformers' generate: python -m benchmarks.transformer."""

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import jingdu
from benchmarks.paired import compare, save
from jingdu.papers.language.transformer import Translation, beam_search, power, sinusoids
from jingdu.speed.references import import_library

VOCABULARY, WIDTH = 37_000, 512


class Plain(nn.Module):
    """The base model as most would write it: torch.nn.Transformer between one embedding and its transpose."""

    def __init__(self, dropout: float):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.body = nn.Transformer(WIDTH, 8, 6, 6, 2048, dropout, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("places", sinusoids(torch.arange(256), WIDTH))

    def embed(self, tokens: Tensor) -> Tensor:
        return self.dropout(self.embedding(tokens) * WIDTH**0.5 + self.places[: tokens.shape[1]])

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        causal = nn.Transformer.generate_square_subsequent_mask(target.shape[1])
        padding = source == 0
        y = self.body(
            self.embed(source), self.embed(target), tgt_mask=causal, src_key_padding_mask=padding.float() * -1e9,
            memory_key_padding_mask=padding.float() * -1e9, tgt_is_causal=True,
        )  # fmt: skip
        return y @ self.embedding.weight.T


def sentences(rows: int, time: int, vocabulary: int, pad: int = 0) -> Tensor:
    """Random tokens; the later rows are shorter, by up to a quarter."""
    tokens = torch.randint(2, vocabulary - 1, (rows, time), generator=torch.Generator().manual_seed(rows))
    lengths = time - torch.arange(rows) * time // (4 * rows)
    return tokens.masked_fill(torch.arange(time) >= lengths[:, None], pad)


def training(dropout: float, rounds: int, rows: int = 16, time: int = 32) -> dict[str, Any]:
    """A step of the base model with label smoothing and Adam; biases and dropout are torch's, in all places."""
    options = {"bias": True, "dropout": dropout, "attention_dropout": dropout, "inner_dropout": dropout}
    system = Translation(jingdu.create("transformer_base_v37000", **options), over="all").train()
    plain = Plain(dropout).train()
    ours, theirs = (torch.optim.Adam(m.parameters(), 1e-5, (0.9, 0.98), 1e-9) for m in (system, plain))
    source, target = sentences(rows, time, VOCABULARY), sentences(rows, time + 1, VOCABULARY)

    def our_step() -> None:
        ours.zero_grad()
        system({"source": [source], "target": [target]}, "loss")[0].backward()
        ours.step()

    def their_step() -> None:
        theirs.zero_grad()
        logits = plain(source, target[:, :-1]).flatten(0, 1)
        F.cross_entropy(logits, target[:, 1:].flatten(), ignore_index=0, label_smoothing=0.1).backward()
        theirs.step()

    title = f"transformer_base, a training step of {rows} x {time} tokens, dropout {dropout}, torch.nn.Transformer"
    return compare(our_step, their_step, title, rounds=rounds)


def decoding(rows: int, rounds: int, beams: int = 4, time: int = 24, length: int = 24) -> dict[str, Any]:
    """Beam search with the sizes of opus-mt-en-de and the same random weights; no sentence ends before `length`."""
    transformers = import_library("transformers")
    config = transformers.MarianConfig(
        d_model=512, encoder_layers=6, decoder_layers=6, encoder_ffn_dim=2048, decoder_ffn_dim=2048,
        encoder_attention_heads=8, decoder_attention_heads=8, max_position_embeddings=512, scale_embedding=True,
        activation_function="swish", forced_eos_token_id=None,
    )  # fmt: skip
    theirs = transformers.MarianMTModel(config).eval()
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            if p.ndim > 1 and "embed_positions" not in name:
                p.normal_(std=1.5 * p.shape[1] ** -0.5, generator=torch.Generator().manual_seed(len(name)))
        theirs.final_logits_bias[0, 0] = -1e9
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        ours = jingdu.create("transformer", weights=Path(folder))
    source = sentences(rows, time, 58_100, pad=58_100)
    mask, start = (source != 58_100).long(), torch.tensor([58_100])

    def our_search() -> Tensor:
        found = beam_search(
            ours.reading(source), [start] * rows, length, stop=0, beams=beams, penalty=partial(power, alpha=1.0),
            until="likely",
        )  # fmt: skip
        return torch.stack([best.tokens for best, *_ in found])

    def their_search() -> Tensor:
        return theirs.generate(
            source, attention_mask=mask, num_beams=beams, max_new_tokens=length, length_penalty=1.0, do_sample=False
        )[:, 1:]

    assert torch.equal(our_search(), their_search())
    title = f"opus_mt_en_de, {beams} beams, {rows} sentences of {time} tokens to {length}, transformers' generate"
    return compare(our_search, their_search, title, rounds=rounds)


def cases(rounds: int = 8) -> list[dict[str, Any]]:
    return [
        training(0.1, rounds), training(0.0, rounds), decoding(1, 2 * rounds), decoding(8, rounds),
    ]  # fmt: skip


if __name__ == "__main__":
    save(cases(), "transformer.json")
