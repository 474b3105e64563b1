"""The same ids from compiled libraries, for big text: tiktoken, and tokenizers for what tiktoken does not know."""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from itertools import pairwise

from jingdu.errors import need_extra

from .interchange import Model, write_json
from .merges import Merges
from .pieces import FAMILIES

Encode = Callable[[Sequence[str]], list[list[int]]]

_COVERING = tuple(FAMILIES[name].cuts for name in ("gpt2", "cl100k", "o200k"))
"""Patterns whose matches leave nothing out; tiktoken drops what lies between matches."""


def tiktoken_ranks(model: Model) -> dict[bytes, int] | None:
    """The table from which tiktoken gives the model's ids; None where there is none.

    tiktoken merges any two neighbours that spell a token, lowest id first, and knows no list of merges. For merges that
    were learned that is the same: ids rise with the ranks, and the bytes of each token merge to it. Both are looked at.
    """
    family = model.family
    if not isinstance(model, Merges) or model.byte_fallback or model.unknown is not None:
        return None
    if family.normal or family.suffix or family.prefix or family.alphabet != "bytes" or family.cuts not in _COVERING:
        return None
    made = [model.results[rank] for rank in sorted(set(model.ranks.values()))]
    alphabet = [model.vocabulary.get(bytes([byte])) for byte in range(256)]
    if None in alphabet or any(low >= high for low, high in pairwise(made)):
        return None
    wanted = {*made, *alphabet}
    ranks = {token: number for token, number in model.vocabulary.items() if number in wanted}
    if not model.whole:
        spelled = (token.decode("utf-8", "surrogateescape") for token in ranks)
        if any(model.encode(piece) != [number] for piece, number in zip(spelled, ranks.values(), strict=True)):
            return None
    return ranks


def compiled(model: Model) -> Encode:
    """A function from texts to the ids of each, which knows no special tokens.

    Raises Missing where neither library that could do it is installed.
    """
    ranks = tiktoken_ranks(model) if find_spec("tiktoken") else None
    if ranks is not None:
        import tiktoken

        (cut,) = model.family.cuts
        encoding = tiktoken.Encoding(model.family.name, pat_str=cut.pattern, mergeable_ranks=ranks, special_tokens={})
        return lambda texts: [encoding.encode_ordinary(text) for text in texts]
    try:
        import tokenizers
    except ImportError:
        raise need_extra("tiktoken or tokenizers", "text", "the fast way of encoding") from None
    library = tokenizers.Tokenizer.from_str(write_json(model, {}))
    return lambda texts: [found.ids for found in library.encode_batch_fast(list(texts), add_special_tokens=False)]
