r"""Tasks that nobody taught (Section 3): asked by a prompt, or answered by what the model finds most probable.

All functions take a network, a tokenizer (`encode`, `decode`, and `end`, the token between documents) and texts. The first
token of a text is predicted from `end`, with which training documents began.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from jingdu.errors import UsageError
from jingdu.papers.language.gpt import known
from jingdu.papers.language.rnn import generate, greedy

from .detokenise import detokeniser, per_unit
from .model import GPT2
from .sampling import sampler

__all__ = [
    "LastWord", "answer", "cloze", "guess_word", "last_word", "log_probabilities", "score_text", "summarise", "translate",
    "winograd",
]  # fmt: skip

Ids = Sequence[int]


# Scores -----------------------------------------------------------------------------------------------


@torch.no_grad()
def log_probabilities(
    model: GPT2, pairs: Sequence[tuple[Ids, Ids]], batch: int = 8
) -> list[Float[Tensor, " continuation"]]:
    """The log-probability of each token of a continuation, given a context: (context, continuation) ids for each.

    A context that is too long loses its beginning. Raises UsageError for an empty context, an empty continuation, or one
    that does not fit into the network's positions.
    """
    found: list[Tensor] = []
    device = model.words.weight.device
    for start in range(0, len(pairs), batch):
        rows = []
        for context, continuation in pairs[start : start + batch]:
            room = model.context + 1 - len(continuation)  # the last token is not read
            if not context or not continuation or room < 1:
                raise UsageError(
                    f"{len(context)} and {len(continuation)} tokens: give one or more of each, and no continuation longer "
                    f"than the network's {model.context} positions"
                )
            rows.append(([*context][-room:], [*continuation]))
        time = max(len(a) + len(b) for a, b in rows) - 1
        tokens = torch.zeros(len(rows), time, dtype=torch.int64, device=device)
        for row, (a, b) in enumerate(rows):
            tokens[row, : len(a) + len(b) - 1] = torch.tensor([*a, *b][:-1])
        hidden = model(tokens, states=True)  # what is behind a row's end changes nothing before it
        for row, (a, b) in enumerate(rows):
            logits = model.logits(hidden[row, len(a) - 1 : len(a) + len(b) - 1]).float()
            found.append(logits.log_softmax(-1).gather(1, torch.tensor(b, device=device)[:, None])[:, 0])
    return found


def _start(words: Any) -> list[int]:
    if words.end is None:
        raise UsageError("this vocabulary has no token that ends documents, so nothing predicts a text's first token")
    return [words.end]


def score_text(
    model: GPT2, words: Any, text: str, detokenise: str = "none", stride: int | None = None
) -> dict[str, float]:
    """How well a text is predicted, per unit of the data set (Sec. 3.1, Tab. 3).

    Args:
        model: the network.
        words: its tokenizer.
        text: of the data set, as it is.
        detokenise: how its traces of a tokenizer are removed: none, wikitext, ptb.
        stride: tokens from one window to the next; only the new ones count. By default half of the network's positions.

    Returns nats, tokens, and what `per_unit` gives. Raises UsageError for an unknown name or a stride that leaves gaps.
    """
    step = stride or max(model.context // 2, 1)
    if not 1 <= step <= model.context:
        raise UsageError(f"stride {step}: from 1 to the network's {model.context} positions")
    plain = detokeniser(detokenise)(text)
    ids = words.encode(plain, disallowed=())
    whole = _start(words) + ids
    pairs, done = [], 1
    while done < len(whole):
        end = min(done + (model.context if done == 1 else step), len(whole))
        pairs.append((whole[max(0, end - 1 - model.context) : done], whole[done:end]))
        done = end
    nats = -float(sum(x.double().sum() for x in log_probabilities(model, pairs)))
    return {"nats": nats, "tokens": float(len(ids)), **per_unit(nats, plain, text)}


# The last word (LAMBADA, Sec. 3.3) --------------------------------------------------------------------


@dataclass(frozen=True)
class LastWord:
    """What the model makes of a passage's last word."""

    nats: float
    """Of all its tokens: exp of the mean over passages is LAMBADA's perplexity."""
    guess: str
    correct: bool


def _is_whole(words: Any, ids: Ids) -> bool:
    """Whether the last token of `ids` begins something else than the word before it."""
    return bool(re.match(r"[^\w'-]", words.decode([ids[-1]]) or " "))


@torch.no_grad()
def guess_word(
    model: GPT2, words: Any, context: Ids, but: Collection[str] = (), width: int = 20, longest: int = 6
) -> str:
    """The most probable next word: the most probable first tokens are each continued to the end of a word.

    Args:
        model: the network.
        words: its tokenizer.
        context: ids.
        but: words, in small letters, that cannot be it: the stop-word filter.
        width: how many first tokens are tried.
        longest: tokens of a word at most.

    Returns an empty text where all words that were tried are among `but`.
    """
    device = model.words.weight.device
    prompt = torch.tensor([*context][-(model.context - longest) :], device=device)
    first = model(prompt[None])[0, -1, : words.n_vocab].topk(min(width, words.n_vocab)).indices
    rows = generate(model, [torch.cat([prompt, token[None]]) for token in first], longest, choose=known(words, greedy))
    found: dict[str, list[int]] = {}
    for token, row in zip(first.tolist(), rows, strict=True):
        ids, more = [token], row.tolist()
        while more and not _is_whole(words, [*ids, more[0]]):
            ids.append(more.pop(0))
        word = words.decode(ids).strip()
        if re.fullmatch(r"[\w'-]+", word) and word.lower() not in but:
            found.setdefault(word, ids)
    if not found:
        return ""
    scores = [float(x.sum()) for x in log_probabilities(model, [(context, ids) for ids in found.values()])]
    return max(zip(scores, found, strict=True))[1]


def last_word(model: GPT2, words: Any, passage: str, but: Collection[str] = ()) -> LastWord:
    """LAMBADA: predict the last word of a passage.

    Without a filter the guess is right if each of the word's tokens is the most probable one. With stop words in `but`,
    which the text's last words never are, the guess is the most probable other word (52.66 to 63.24 % in the paper).
    """
    context, _, target = passage.strip().rpartition(" ")
    before, ids = _start(words) + words.encode(context, disallowed=()), words.encode(f" {target}", disallowed=())
    nats = -float(log_probabilities(model, [(before, ids)])[0].sum())
    if but:
        guess = guess_word(model, words, before, but)
        return LastWord(nats, guess, guess == target)
    prompt = torch.tensor(before[-(model.context - len(ids)) :], device=model.words.weight.device)
    made = generate(model, [prompt], len(ids), choose=known(words, greedy))[0].tolist()
    return LastWord(nats, words.decode(made).strip(), made == ids)


# Choices (CBT, Winograd: Sec. 3.2, 3.4) ---------------------------------------------------------------


def _blank(sentence: str, blank: str) -> tuple[str, str]:
    before, found, after = sentence.partition(blank)
    if not found:
        raise UsageError(f"{sentence[:60]!r} has no blank {blank!r}")
    return before, after


def _best(model: GPT2, pairs: Sequence[tuple[Ids, Ids]]) -> tuple[int, list[float]]:
    scores = [float(x.double().sum()) for x in log_probabilities(model, pairs)]
    return max(range(len(scores)), key=scores.__getitem__), scores


def cloze(
    model: GPT2, words: Any, context: str, sentence: str, choices: Sequence[str], blank: str = "XXXXX"
) -> tuple[int, list[float]]:
    """The Children's Book Test: which word is missing. Of each choice the log-probability of it *and* of the rest of the
    sentence behind it, given all before. Returns the best one's number, and all scores."""
    before, after = _blank(f"{context.rstrip()} {sentence.strip()}".strip(), blank)
    start = _start(words) + words.encode(before.rstrip(), disallowed=())
    space = " " if before.strip() else ""
    return _best(model, [(start, words.encode(space + choice + after, disallowed=())) for choice in choices])


def winograd(
    model: GPT2, words: Any, sentence: str, choices: Sequence[str], partial: bool = True, blank: str = "_"
) -> tuple[int, list[float]]:
    """The Winograd challenge: whom a pronoun means (Trinh and Le 2018). The pronoun's place is the blank.

    Partial scoring, the paper's, is the log-probability of what follows the choice, given all up to it, so that it does not
    matter how frequent the choices themselves are; full scoring is that of the whole sentence. Returns as `cloze`.
    """
    before, after = _blank(sentence.strip(), blank)
    if partial and not after.strip():
        raise UsageError(f"{sentence[:60]!r}: nothing follows the blank, so partial scoring has nothing to score")
    pairs = []
    for choice in choices:
        head = before + choice
        if partial:
            pairs.append((_start(words) + words.encode(head, disallowed=()), words.encode(after, disallowed=())))
        else:
            pairs.append((_start(words), words.encode(head + after, disallowed=())))
    return _best(model, pairs)


# Prompts (Sec. 3.6 to 3.8) ----------------------------------------------------------------------------


def _sentences(text: str) -> list[str]:
    return [part for part in re.split(r"(?<=[.!?])\s+", text.strip()) if part]


def _go_on(model: GPT2, words: Any, prompt: str, length: int, choose: Any, seed: int = 0) -> str:
    """The continuation of a prompt, of which the end is read where it is too long."""
    ids, room = words.encode(prompt, disallowed=()), model.context - length
    if room < 1:
        raise UsageError(f"length {length}: this network has positions for {model.context}, and the prompt needs some")
    device = model.words.weight.device
    draws = torch.Generator(device).manual_seed(seed)
    tokens = torch.tensor(ids[-room:], device=device)
    stop = () if words.end is None else (words.end,)
    made = generate(model, [tokens], length, choose=known(words, choose), stop=stop, generator=draws)[0].tolist()
    return words.decode(made[:-1] if made and made[-1] in stop else made)


def summarise(
    model: GPT2, words: Any, article: str, length: int = 100, k: int = 2, sentences: int = 3, seed: int = 0
) -> str:
    """`TL;DR:` behind the article, 100 tokens drawn from the 2 most probable each time, their first 3 sentences.

    Of an article that is too long its end is left out.
    """
    hint = words.encode("\nTL;DR:", disallowed=())
    ids = words.encode(article.strip(), disallowed=())[: max(model.context - length - len(hint), 0)]
    prompt = words.decode(ids) + "\nTL;DR:"
    return " ".join(_sentences(_go_on(model, words, prompt, length, sampler(k=k), seed))[:sentences])


def translate(model: GPT2, words: Any, sentence: str, pairs: Sequence[tuple[str, str]], length: int = 64) -> str:
    """Lines `english = french` show what is wanted; greedily, and the first sentence that comes."""
    shown = "".join(f"{source.strip()} = {target.strip()}\n" for source, target in pairs)
    made = _go_on(model, words, f"{shown}{sentence.strip()} =", length, greedy)
    return (_sentences(made.strip().partition("\n")[0]) or [""])[0]


def answer(
    model: GPT2,
    words: Any,
    question: str,
    examples: Sequence[tuple[str, str]] = (),
    document: str = "",
    length: int = 32,
) -> str:
    """Questions with answers show the style (Natural Questions), or come from a conversation about a document (CoQA).

    Greedily behind `A:`, the first line that comes.
    """
    shown = "".join(f"Q: {q.strip()}\nA: {a.strip()}\n" for q, a in examples)
    text = f"{document.strip()}\n" if document.strip() else ""
    return _go_on(model, words, f"{text}{shown}Q: {question.strip()}\nA:", length, greedy).strip().partition("\n")[0]
