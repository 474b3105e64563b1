"""From a text to what each head says of it: fillers, labels, tags, spans, choices, vectors."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from jingdu.errors import UsageError
from jingdu.prediction import Prediction, origin_of

from .model import BERT
from .tasks import best_span, sentence_vectors
from .text import Marked, Row

__all__ = ["answer_question", "choose", "classify", "compare_texts", "fill_gaps", "tag_words", "windows_of"]

STRIDE = 128
"""Tokens from the beginning of one window of a long passage to that of the next (Sec. 4.2, run_squad.py)."""


@torch.no_grad()
def _ask_network(model: BERT, marked: Marked, rows: Sequence[Row], choices: bool = False) -> Any:
    """The network's answer to some rows."""
    place = next(model.parameters()).device
    inputs = [x.to(place)[None] if choices else x.to(place) for x in marked.batch(rows)]
    return model(*inputs)


def _best(probabilities: Tensor, names: Sequence[str], top: int) -> tuple[list[dict[str, Any]], list[str]]:
    """The most probable of some names: as data, and a line of text each."""
    found = probabilities.topk(min(top, len(names)))
    best = [
        {"name": names[i], "index": i, "probability": p}
        for p, i in zip(found.values.tolist(), found.indices.tolist(), strict=True)
    ]
    return best, [f"  {entry['probability']:.4f}  {entry['name']}" for entry in best]


def fill_gaps(model: BERT, marked: Marked, length: int, text: str, top: int) -> Prediction:
    """The most probable tokens for each [MASK]. Raises UsageError for a text that is too long."""
    tokens = marked.encode(text, masks=True)
    if len(tokens) + 2 > length:
        raise UsageError(f"{len(tokens)} tokens and their marks: this network reads {length}")
    row = marked.join(tokens, None, length)
    found = _ask_network(model, marked, [row])
    logits = found[0] if isinstance(found, tuple) else found
    names = [marked.tokenizer.tokens.get(i, b"").decode("utf-8", "replace") for i in range(logits.shape[2])]
    gaps = [i for i, token in enumerate(row[0]) if token == marked.mask]
    masks, shown, filled = [], [text], text
    for number, place in enumerate(gaps):
        best, lines = _best(logits[0, place].softmax(0), names, top)
        masks.append(best)
        shown += [f" [MASK] {number + 1}:"] * (len(gaps) > 1) + lines
        filled = filled.replace("[MASK]", best[0]["name"], 1)
    return Prediction(text, "\n".join(shown), {"text": text, "masks": masks, "filled": filled})


def compare_texts(model: BERT, marked: Marked, length: int, texts: Sequence[str]) -> Iterator[Prediction]:
    """A vector of each text, and its cosine with those of the others."""
    vectors = sentence_vectors(model, [marked.join(marked.encode(text), None, length) for text in texts], marked)
    cosines = (vectors @ vectors.T).tolist()
    for i, text in enumerate(texts):
        others = [{"text": other, "cosine": cosines[i][j]} for j, other in enumerate(texts) if j != i]
        few = " ".join(f"{value:.4f}" for value in vectors[i, :6].tolist())
        shown = [text, f"  {vectors.shape[1]} numbers of length 1: {few} ..."]
        shown += [f"  {other['cosine']:+.4f}  {other['text']}" for other in others]
        yield Prediction(text, "\n".join(shown), {"text": text, "vector": vectors[i].tolist(), "cosines": others})


def classify(model: BERT, marked: Marked, length: int, text: str, top: int) -> Prediction:
    """The classes of a text or, with a tab between them, of two; or whether the second follows; or a number."""
    first, tab, second = text.partition("\t")
    row = marked.join(marked.encode(first), marked.encode(second) if tab else None, length)
    found = _ask_network(model, marked, [row])
    if isinstance(found, tuple):
        found = found[1]
    if model.head == "class" and found.shape[1] == 1:
        return Prediction(text, f"{text}\n  {float(found):.4f}", {"text": text, "value": float(found)})
    names = origin_of(model).classes or tuple(f"class {i}" for i in range(found.shape[1]))
    names = names if model.head == "class" else ("the second follows the first", "it is from elsewhere")
    best, lines = _best(found[0].softmax(0), names, top)
    return Prediction(text, "\n".join([text, *lines]), {"text": text, "top": best})


def tag_words(model: BERT, marked: Marked, length: int, text: str) -> Prediction:
    """The tag of each word, read at its first token."""
    tokens, spans = marked.tokenizer.encode_with_offsets(text, disallowed=())
    row = marked.join(tokens, None, length)
    found = _ask_network(model, marked, [row])[0].softmax(1)
    names = origin_of(model).classes or tuple(f"tag {i}" for i in range(found.shape[1]))
    tags = []
    for place, (token, (start, end)) in enumerate(zip(row[0][1:-1], spans, strict=False), start=1):
        if marked.goes_on[token]:
            tags[-1]["end"], tags[-1]["word"] = end, text[tags[-1]["start"] : end]
            continue
        probability, index = found[place].max(0)
        tags.append({"word": text[start:end], "start": start, "end": end, "tag": names[int(index)],
                     "probability": float(probability)})  # fmt: skip
    shown = [f"  {tag['probability']:.4f}  {tag['tag']:12} {tag['word']}" for tag in tags]
    return Prediction(text, "\n".join([text, *shown]), {"text": text, "tags": tags})


def windows_of(size: int, room: int, stride: int = STRIDE) -> list[tuple[int, int]]:
    """The windows in which a passage of `size` tokens is read, `room` tokens at a time."""
    stride, found = min(stride, room), [(0, min(room, size))]
    while found[-1][1] < size:
        low = found[-1][0] + stride
        found.append((low, min(low + room, size)))
    return found


def _owners(size: int, windows: Sequence[tuple[int, int]]) -> list[int]:
    """For each token the window that shows most of its shorter side, longer windows first."""

    def shown(token: int, low: int, high: int) -> float:
        return min(token - low, high - 1 - token) + 0.01 * (high - low) if low <= token < high else -1.0

    return [max(range(len(windows)), key=lambda w: shown(token, *windows[w])) for token in range(size)]


def answer_question(
    model: BERT, marked: Marked, length: int, text: str, threshold: float | int | None, longest: int = 30
) -> Prediction:
    """The part of a passage that answers a question; the two stand in `text` with a tab between.

    A passage that does not fit is read in windows, and each token belongs to the one that shows most of what stands
    around it. With a `threshold` there may be no answer.
    """
    question, tab, passage = text.partition("\t")
    if not tab or not passage.strip():
        raise UsageError("a question, a tab and the passage that has the answer are needed")
    asked = marked.encode(question)[:64]
    tokens, spans = marked.tokenizer.encode_with_offsets(passage, disallowed=())
    room = length - len(asked) - 3
    if room < 1:
        raise UsageError(f"a question of {len(asked)} tokens leaves no room among {length}")
    windows = windows_of(len(tokens), room)
    owner = _owners(len(tokens), windows)
    best, none = None, float("inf")
    for number, (low, high) in enumerate(windows):
        scores = _ask_network(model, marked, [marked.join(asked, tokens[low:high], length)])[0].cpu()
        offset = len(asked) + 2
        allowed = torch.zeros(len(scores), dtype=torch.bool)
        allowed[offset : offset + high - low] = torch.tensor([owner[i] == number for i in range(low, high)])
        none = min(none, float(scores[0].sum()))
        found = best_span(scores, allowed, longest)
        if found is not None and (best is None or found[2] > best[2]):
            best = found[0] - offset + low, found[1] - offset + low, found[2]
    data: dict[str, Any] = {"question": question, "answer": None, "score_of_none": none}
    if best is None or (threshold is not None and best[2] <= none + threshold):
        return Prediction(text, f"{question}\n  no answer", data)
    start, end = spans[best[0]][0], spans[best[1]][1]
    data |= {"answer": passage[start:end], "start": start, "end": end, "score": best[2]}
    return Prediction(text, f"{question}\n  {passage[start:end]}", data)


def choose(model: BERT, marked: Marked, length: int, text: str) -> Prediction:
    """Which of several continuations fits best: a context and the choices, with tabs between."""
    context, *offered = text.split("\t")
    if len(offered) < 2:
        raise UsageError("a context and two choices or more are needed, with tabs between")
    rows = [marked.join(marked.encode(context), marked.encode(choice), length) for choice in offered]
    best, lines = _best(_ask_network(model, marked, rows, choices=True)[0].softmax(0), offered, len(offered))
    return Prediction(text, "\n".join([context, *lines]), {"text": context, "top": best})
