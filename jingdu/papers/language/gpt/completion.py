"""Text from a decoder, and classes from one that was fine-tuned."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from jingdu.errors import UsageError
from jingdu.papers.language.bpe import read_tokenizer
from jingdu.papers.language.rnn import Choose, generate, steps
from jingdu.prediction import Prediction, origin_of

from .model import GPT
from .tasks import pair, single

__all__ = ["complete", "known", "label", "tokenizer_of"]


def tokenizer_of(model: nn.Module, path: Path | None) -> Any:
    """The tokenizer at `path`, or the one that lies beside the network's weights. Raises UsageError where there is none."""
    place = path or origin_of(model).tokenizer
    if place is None:
        raise UsageError(
            "these weights have no tokenizer beside them: give --tokenizer FILE (tokenizer.json, a folder with vocab.json "
            "and merges.txt, or a .tiktoken file)"
        )
    tokenizer = read_tokenizer(place)
    if tokenizer.n_vocab > model.words.weight.shape[0]:
        raise UsageError(
            f"{place}: its {tokenizer.n_vocab} tokens are more than the {model.words.weight.shape[0]} of this network"
        )
    return tokenizer


def known(words: Any, choose: Choose) -> Choose:
    """`choose` among the tokens that the tokenizer has: a network may have more rows, which it was never shown."""
    return lambda logits, generator=None: choose(logits[:, : words.n_vocab], generator)


def complete(
    model: GPT,
    inputs: Sequence[str],
    *,
    tokenizer: Path | None,
    length: int,
    choose: Choose,
    seed: int,
    stream: bool,
) -> Iterator[Prediction]:
    """Continuations of texts: all at once, or where `stream` is asked one after the other, in pieces as they come.

    A text may be empty where the vocabulary has a token that ends documents, which then starts one. It ends the
    continuation too. Raises UsageError for what does not fit into the network's positions.
    """
    words = tokenizer_of(model, tokenizer)
    stop = () if words.end is None else (words.end,)
    prompts = [torch.tensor(words.encode(text) or list(stop), dtype=torch.int64) for text in inputs]
    if empty := [text for text, prompt in zip(inputs, prompts, strict=True) if not len(prompt)]:
        raise UsageError(f"the prompt {empty[0]!r} has no tokens: give a letter or more")
    if length < 1 or max(map(len, prompts), default=0) + length > model.context:
        raise UsageError(
            f"length {length}, and a prompt of {max(map(len, prompts), default=0)} tokens: this network has positions for "
            f"{model.context}, and at least one token is made"
        )
    model.eval()
    draws = torch.Generator().manual_seed(seed)
    options = {"choose": known(words, choose), "stop": stop, "generator": draws}
    if stream:
        for text, prompt in zip(inputs, prompts, strict=True):
            yield Prediction(text, text, {}, more=True)
            made: list[int] = []
            for chosen, _ in steps(model, [prompt], length, **options):
                before = words.decode(made)
                made.append(int(chosen[0]))
                now = words.decode(made[:-1] if made[-1] in stop else made)
                # Bytes of a character that is not whole yet come with its last one.
                if not now.endswith("\ufffd"):
                    yield Prediction(text, now.removeprefix(before.rstrip("\ufffd")), {}, more=True)
            yield _completed(text, "", prompt, made, words, stop)
        return
    for text, prompt, row in zip(inputs, prompts, generate(model, prompts, length, **options), strict=True):
        made = row.tolist()
        yield _completed(text, text + words.decode(made[:-1] if made[-1] in stop else made), prompt, made, words, stop)


def _completed(text: str, shown: str, prompt: Tensor, made: list[int], words: Any, stop: tuple[int, ...]) -> Prediction:
    ended = bool(made) and made[-1] in stop
    data = {
        "prompt": text,
        "text": words.decode(made[:-1] if ended else made),
        "tokens": made,
        "prompt_tokens": len(prompt),
    }
    return Prediction(text, shown, {**data, "ended": ended})


@torch.no_grad()
def label(model: GPT, inputs: Sequence[str], tokenizer: Path | None, top: int = 5) -> Iterator[Prediction]:
    """The most probable classes of texts, by a network that was fine-tuned; a tab divides the two texts of a pair."""
    words, names = tokenizer_of(model, tokenizer), origin_of(model).classes
    count = model.vocabulary
    for text in inputs:
        first, tab, second = text.partition("\t")
        sequence = pair(words.encode(first), words.encode(second), count) if tab else single(words.encode(first), count)
        tokens = torch.tensor(sequence)
        if tokens.shape[1] > model.context:
            raise UsageError(f"{tokens.shape[1]} tokens with the marks: this network has positions for {model.context}")
        found = model.eval().head(model.hidden(tokens)[:, -1]).softmax(1)[0].topk(min(top, model.head.out_features))
        best = [
            {"class": names[i] if names else f"class {i}", "index": i, "probability": p}
            for p, i in zip(found.values.tolist(), found.indices.tolist(), strict=True)
        ]
        shown = [f"  {entry['probability']:.4f}  {entry['class']}" for entry in best]
        yield Prediction(text, "\n".join([text, *shown]), {"text": text, "top": best})
