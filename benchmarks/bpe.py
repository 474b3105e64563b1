"""Encoding and learning against tiktoken and tokenizers, one thread each: python -m benchmarks.bpe.

Encoding is with GPT-2's and GPT-4's published vocabularies, of 400 kB of Python source; ids are compared first. "Warm" is
with pieces remembered, as in all text after the first megabytes; "cold" is without any.
"""

import os
from typing import Any

from benchmarks.paired import compare, save
from jingdu.claims.language.bpe import VOCABULARIES, published, tiktoken_encoding
from jingdu.papers.language.bpe import fit, read_texts, read_tokenizer


def corpus(size: int) -> list[str]:
    """Modules of the standard library, `size` bytes of them."""
    found: list[str] = []
    for text in read_texts("stdlib", "train"):
        if sum(map(len, found)) >= size:
            break
        found.append(text)
    return found


def encoding(name: str, rounds: int, size: int) -> list[dict[str, Any]]:
    """The same texts with one vocabulary: ours cold, warm and by the fast way against tiktoken; warm against tokenizers."""
    import tokenizers

    ours, theirs, texts = read_tokenizer(published(name)), tiktoken_encoding(name), corpus(size)
    library = tokenizers.Tokenizer.from_str(ours.to_json())

    def tiktokens() -> list[list[int]]:
        return [theirs.encode_ordinary(text) for text in texts]

    def tokenizers_library() -> list[list[int]]:
        return [found.ids for found in library.encode_batch_fast(texts, add_special_tokens=False)]

    def warm() -> list[list[int]]:
        return ours.encode_batch(texts, disallowed=())

    def cold() -> list[list[int]]:
        ours._cache.clear()
        return warm()

    def fast() -> list[list[int]]:
        return ours.encode_batch(texts, disallowed=(), fast=True)

    ids = tiktokens()
    assert warm() == ids == fast() == tokenizers_library()
    work, count, rows = f"{sum(len(text.encode()) for text in texts):,} bytes", sum(map(len, ids)), []
    for way, function, other, reference in (
        ("cold", cold, "tiktoken", tiktokens), ("warm", warm, "tiktoken", tiktokens),
        ("warm", warm, "tokenizers", tokenizers_library), ("fast", fast, "tiktoken", tiktokens),
    ):  # fmt: skip
        row = compare(function, reference, f"bpe, encoding with {name}, {way}, {other}", rounds, 1, work)
        speeds = {"tokens_per_second": count / row["ours"], "reference_tokens_per_second": count / row["reference"]}
        rows.append(row | speeds)
    return rows


def learning(rounds: int, size: int, vocabulary: int = 4096) -> list[dict[str, Any]]:
    """Learning from texts against the trainer of tokenizers; both give the same merges."""
    import tokenizers

    texts = corpus(size)

    def theirs() -> Any:
        parts = tokenizers.pre_tokenizers
        library = tokenizers.Tokenizer(tokenizers.models.BPE())
        library.pre_tokenizer = parts.ByteLevel(add_prefix_space=False)
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=vocabulary, show_progress=False, initial_alphabet=parts.ByteLevel.alphabet()
        )
        library.train_from_iterator(texts, trainer)
        return library

    work = f"{sum(len(text.encode()) for text in texts):,} bytes, {vocabulary} tokens"
    return [
        compare(lambda: fit(texts, vocabulary, special=()), theirs, "bpe, learning, tokenizers", rounds, 1, work),
        compare(lambda: fit(texts, vocabulary, special=(), fast=True), theirs, "bpe, learning fast, tokenizers", rounds, 1, work),
    ]  # fmt: skip


def cases(rounds: int = 7, size: int = 400_000) -> list[dict[str, Any]]:
    """All comparisons."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    return [row for name in VOCABULARIES for row in encoding(name, rounds, size)] + learning(rounds, size)


if __name__ == "__main__":
    save(cases(), "bpe.json")
