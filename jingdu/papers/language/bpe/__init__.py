r"""Neural Machine Translation of Rare Words with Subword Units. Sennrich, Haddow, Birch. 2015. arXiv:1508.07909.
Its byte-level form is of the GPT-2 report (Radford et al. 2019, Sec. 2.2), WordPiece as BERT has it (Devlin et al. 2018).

**Problem.** A model over words knows the words of its list and calls all others <unk>: names, compounds and numbers,
which are most of what a text can hold. Letters know everything, and make texts too long.

**Idea.** Learn what lies between from the text itself, by an old way of compressing it (Gage 1994). Begin with symbols
that can spell everything, characters or bytes. Again and again make one new symbol of the two that stand beside each
other most often,

$$ (a, b) = \arg\max_{(x, y)} \sum_{w} c(w)\, n_w(xy), \qquad ab \to \text{a symbol of its own}, $$

with $c(w)$ how often the piece $w$ occurs in the text and $n_w(xy)$ how often $x$ stands before $y$ in it. The merges
in their order are the tokenizer: new text is spelled by applying them, first ones first. What is frequent becomes one
token, what is rare falls into parts, and nothing is unknown. Pieces are words (Sennrich) or what a pattern cuts
(GPT-2), and no merge crosses their borders.

**Showed.** Translation with subword units beats a dictionary for rare words by up to 1.1 (English to German) and 1.3
BLEU (English to Russian), and translates words that it never saw. Over bytes, GPT-2 needs no <unk> at all.

Differs from the paper in:
- Equally frequent pairs: the paper takes any. Here the one with smaller ids is first, as in the tokenizers library.
- </w> is part of a word's last symbol, as in the released code since version 0.2, and not a symbol of its own.
- The family `gpt` takes BERT's words (clean, small letters, no accents), as transformers does, in place of GPT-1's own
  from spaCy and ftfy, which cut contractions otherwise (`is n't`, where it is `isn ' t` here).
- No joint vocabulary of two languages (Sec. 3.2): give the texts of both to one `fit`.
- SentencePiece (Kudo and Richardson 2018, arXiv 1808.06226) takes text with its white space as one piece, spelled with
  the meta-space U+2581 after NFKC, and unknown characters by their bytes, as LLaMA's 32,000 merges do; its unigram
  model prunes a large vocabulary by EM and takes the most probable spelling (Viterbi), or samples one. LLaMA's
  tokenizer.json is read; unigram models are not.

Reading order: `pieces` (cutting text), `merges` (learning and encoding), `wordpiece`, `added` (special tokens),
`tokenizer` (all of it together), `interchange` and `files` (published vocabularies), `learning` (from texts), `windows`
(data for language models).
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from jingdu.engine.contracts import Recipe, Stage
from jingdu.errors import Refused, UsageError
from jingdu.prediction import Prediction

from .added import Added
from .files import read_parts
from .interchange import read_json, write_json
from .learning import END, Learning, count_pieces, empty, fit
from .merges import Merges, byte_characters, learn
from .pieces import FAMILIES, Cut, Family, compile_pattern, family_of, normalise, split
from .tokenizer import Tokenizer, read_tokenizer
from .windows import Windows, encode_documents, read_texts, tokenizer_for, tokens
from .wordpiece import WordPiece

__all__ = [
    "FAMILIES", "Added", "Cut", "Family", "Learning", "Merges", "Tokenizer", "Windows", "WordPiece", "build", "byte_characters",
    "compile_pattern", "count_pieces", "empty", "encode_documents", "family_of", "fit", "learn", "normalise", "predict",
    "read_json", "read_parts", "read_texts", "read_tokenizer", "split", "tokenizer_for", "tokens", "write_json",
]  # fmt: skip


def build(variant: str = "bpe", family: str = "gpt2", special: Sequence[str] = (END,)) -> Tokenizer:
    """A tokenizer that has learnt nothing yet: of a family of bytes, it spells every text byte by byte.

    Args:
        variant: bpe.
        family: how text is cut (`FAMILIES`).
        special: its special tokens.
    """
    return empty(family, special)


def _learning(data: str, vocabulary: int) -> tuple[Stage, ...]:
    return (
        Stage(
            "learn", method="fit", system=f"bpe.Learning(vocabulary={vocabulary})", networks={"model": "bpe"},
            data=data, batch_size=16,
        ),
    )  # fmt: skip


recipes = {
    "laptop": Recipe(
        stages=_learning("stdlib", 4096),
        minutes=0.5,
        expect={"bytes_per_token": (2.5, 4.5), "round_trip": (1.0, 1.0)},
        about="4,096 tokens from the source of Python's standard library, tested on modules of its own",
    ),
    "paper": Recipe(
        stages=_learning("text(path='corpus')", 50257),
        minutes=60,
        expect={"bytes_per_token": (3.5, 5.0), "round_trip": (1.0, 1.0)},
        about="GPT-2's size on your own text: --data FILE, or --data \"text(path='FOLDER')\" of UTF-8 .txt files; "
        "Sennrich's 59,500 merges: --override family=words, on text whose words stand between spaces",
    ),
}


def predict(
    model: Tokenizer,
    inputs: Sequence[str],
    *,
    special: bool = False,
    decode: bool = False,
    write: Path | None = None,
) -> Iterator[Prediction]:
    """Show the tokens of texts with their ids, and how many there are.

    Args:
        special: special tokens in the text become their ids; without it they are text like any other.
        decode: inputs are ids, with spaces or commas between, and their text is shown.
        write: also write the tokenizer to this file, as tokenizer.json.

    Raises UsageError for ids that are none.
    """
    if write is not None:
        try:
            write.write_text(model.to_json(), "utf-8")
        except OSError as error:
            raise Refused(f"{write}: cannot be written ({error.strerror})") from None
        about = {"family": model.family.name, "n_vocab": model.n_vocab}
        yield Prediction("", f"{model.n_vocab:,} tokens, family {model.family.name}", about, (write,))
    for text in inputs:
        yield _decoded(model, text) if decode else _encoded(model, text, special)


def _decoded(model: Tokenizer, text: str) -> Prediction:
    try:
        ids = [int(word) for word in text.replace(",", " ").split()]
    except ValueError:
        raise UsageError(f"{text[:40]!r}: give ids as whole numbers, with spaces or commas between") from None
    found = model.decode(ids)
    return Prediction(text, found, {"ids": ids, "text": found})


def _encoded(model: Tokenizer, text: str, special: bool) -> Prediction:
    ids = model.encode(text, allowed="all" if special else (), disallowed=())
    spelled = [model.tokens[i].decode("utf-8", "backslashreplace") for i in ids]
    data = {
        "text": text, "ids": ids, "tokens": spelled, "count": len(ids), "bytes": len(text.encode()),
        "vocabulary": model.n_vocab, "round_trip": model.decode(ids) == text,
    }  # fmt: skip
    shown = " ".join(
        f"{token!r}" if set(token) & set(" \t\r\n'") or not token.isprintable() else token for token in spelled
    )
    counts = f"{len(ids)} tokens, {data['bytes']} bytes, {len(text)} characters"
    return Prediction(text, f"{shown}\n{' '.join(map(str, ids))}\n{counts}", data)
