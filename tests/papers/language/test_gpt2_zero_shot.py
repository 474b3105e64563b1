"""GPT-2's tasks without training: scores and prompts by hand, on a network that is a table of bigrams."""

import math
import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from jingdu.errors import UsageError
from jingdu.papers.language.gpt2 import (
    GPT2,
    answer,
    cloze,
    count_words,
    guess_word,
    last_word,
    log_probabilities,
    penn_treebank,
    per_unit,
    score_text,
    summarise,
    translate,
    wikitext,
    winograd,
)


class Words:
    """A vocabulary of words with and without a space before them, found from the left, the longest first; 0 ends documents."""

    end = 0

    def __init__(self, text: str):
        words = dict.fromkeys(text.split(" "))
        self.pieces = ["<end>", *(space + word for word in words for space in ("", " "))]
        self.n_vocab = len(self.pieces)

    def encode(self, text: str, disallowed: tuple[str, ...] = ()) -> list[int]:
        ids = []
        while text:
            ids.append(max((i for i, piece in enumerate(self.pieces) if text.startswith(piece)), key=self.size))
            text = text[self.size(ids[-1]) :]
        return ids

    def size(self, number: int) -> int:
        return len(self.pieces[number])

    def decode(self, ids: list[int]) -> str:
        return "".join(self.pieces[i] for i in ids)

    def __getitem__(self, piece: str) -> int:
        return self.pieces.index(piece)


class Bigrams(GPT2):
    """What follows a token depends on it alone."""

    def __init__(self, words: Words, likes: dict[str, str], context: int = 37):
        """`likes`: piece -> what follows it, the most probable first, each e times the next; others are rare."""
        super().__init__(vocabulary=words.n_vocab + 3, width=8, layers=1, heads=2, context=context)
        table = torch.full((self.vocabulary, self.vocabulary), -9.0)
        for piece, followers in likes.items():
            for rank, other in enumerate(words.encode(followers)):
                table[words[piece], other] = -float(rank)
        table[:, words.n_vocab :] = 5.0  # rows that the tokenizer does not know
        self.register_buffer("table", table.log_softmax(1))

    def hidden(self, tokens: Tensor, mask: object = None, positions: object = None, state: object = None) -> Tensor:
        return F.one_hot(tokens, self.vocabulary).float()

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden @ self.table


def test_log_probabilities_are_the_tables() -> None:
    words = Words("a b c d")
    model = Bigrams(words, {"a": " b c", " b": " c a d"}, context=5)
    pairs = [([1, 2], [3]), ([1], [2, 3, 4, 1]), ([4] * 11 + [2], [4, 4])]  # the last one loses its beginning
    found = log_probabilities(model, pairs, batch=2)
    for (context, ids), scores in zip(pairs, found, strict=True):
        before = [context[-1], *ids[:-1]]
        torch.testing.assert_close(scores, model.table[before, ids])
    for wrong in (([], [1]), ([1], []), ([1], [2] * 6)):
        with pytest.raises(UsageError, match="positions"):
            log_probabilities(model, [wrong])


@pytest.mark.parametrize("stride", [None, 1, 3, 11])
def test_windows_score_every_token_once(stride: int | None) -> None:
    words = Words("x y z w \n")
    model = Bigrams(words, {"<end>": "x", " y": " z w"}, context=11)
    text = "x y z\n" + 7 * " y w z"
    ids = words.encode(text)
    expected = -float(model.table[[0, *ids[:-1]], ids].sum())
    found = score_text(model, words, text, stride=stride)
    assert found["nats"] == pytest.approx(expected, rel=1e-5) and found["tokens"] == len(ids)
    assert found["bits_per_byte"] == pytest.approx(expected / math.log(2) / len(text))
    assert found["perplexity"] == pytest.approx(math.exp(expected / (24 + 2)))
    with pytest.raises(UsageError, match="stride 12"):
        score_text(model, words, text, stride=12)


def test_a_network_sees_the_longest_past_there_is() -> None:
    """Of a true network, within one window: the same as its cross-entropy; then with half of it as context."""
    torch.manual_seed(1)
    words = Words("a b c d e")
    model = GPT2(vocabulary=words.n_vocab, width=16, layers=2, heads=2, context=8, dropout=0.0).eval()
    text = "a b c e d a b c d b e a"
    ids = torch.tensor([0, *words.encode(text)])
    nats = 0.0
    for first, last in ((0, 8), (4, 12)):
        loss = F.cross_entropy(model(ids[None, first:last])[0], ids[first + 1 : last + 1], reduction="none")
        nats += float((loss[-4:] if first else loss).sum().detach())
    assert score_text(model, words, text)["nats"] == pytest.approx(nats, rel=1e-5)


def test_units_are_the_data_sets() -> None:
    """Two lines of 4 and 3 words and their ends are 9 units, whatever was scored."""
    original = " he did n't go \n no way . \n"
    assert count_words(original) == 9
    found = per_unit(9 * math.log(5), wikitext(original), original)
    assert found["perplexity"] == pytest.approx(5.0)
    assert found["bits_per_byte"] == pytest.approx(9 * math.log2(5) / len(original))
    assert per_unit(1.0, "é")["bits_per_byte"] == pytest.approx(per_unit(1.0, "é")["bits_per_character"] / 2)
    with pytest.raises(ValueError, match="empty"):
        per_unit(1.0, " ")


def test_the_last_word_with_and_without_a_filter() -> None:
    words = Words("we play the foot ball .")
    model = Bigrams(words, {" play": " the foot", " the": " .", " foot": "ball", "ball": " . the"})
    found = last_word(model, words, "we play football")
    nats = -(model.table[words[" play"], words[" foot"]] + model.table[words[" foot"], words["ball"]])
    assert found.nats == pytest.approx(float(nats), rel=1e-5)
    assert not found.correct and found.guess == "the ."
    assert last_word(model, words, "we play football", but={"the"}).correct
    context = [0, *words.encode("we play")]
    assert guess_word(model, words, context) == "the" and guess_word(model, words, context, {"the"}) == "football"


def test_a_choice_is_scored_with_what_follows() -> None:
    """`cat` is more probable than `dog` after `the`, but not before `barks`."""
    words = Words("I saw . the cat dog barks")
    model = Bigrams(words, {" the": " cat dog", " dog": " barks"})
    best, scores = cloze(model, words, "I saw .", "the XXXXX barks", ["cat", "dog"])
    the, cat, dog, barks = (words[f" {w}"] for w in ("the", "cat", "dog", "barks"))
    t = model.table
    assert best == 1
    assert scores == pytest.approx([float(t[the, cat] + t[cat, barks]), float(t[the, dog] + t[dog, barks])], rel=1e-5)
    with pytest.raises(UsageError, match="no blank"):
        cloze(model, words, "I saw .", "the dog barks", ["cat"])


def test_partial_scoring_leaves_out_how_frequent_a_name_is() -> None:
    words = Words("said cup bag that is big")
    model = Bigrams(words, {" that": " cup said is big bag", " bag": " is cup", " cup": " bag is", " is": " big"})
    cup, bag, is_, big = (words[f" {w}"] for w in ("cup", "bag", "is", "big"))
    best, scores = winograd(model, words, "said that _ is big", [" cup", " bag"], blank=" _")
    t = model.table
    assert best == 1 and scores == pytest.approx([float(t[x, is_] + t[is_, big]) for x in (cup, bag)], rel=1e-5)
    assert winograd(model, words, "said that _ is big", [" cup", " bag"], partial=False, blank=" _")[0] == 0
    with pytest.raises(UsageError, match="nothing follows"):
        winograd(model, words, "is big _", ["cup", "bag"])


def test_prompts_ask_for_what_is_wanted() -> None:
    words = Words("the a = le un . no \n TL;DR : Q A who you me")
    french = Bigrams(words, {" =": " le", " le": " un", " un": " .", " .": " no", " no": "\n"})
    assert translate(french, words, "the", [("a", "un .")], length=9) == "le un ."
    reply = Bigrams(words, {":": " you", " you": " me", " me": "\n", "\n": " no"})
    assert answer(reply, words, "who", [("who", "me")], document="the a", length=7) == "you me"
    short = Bigrams(words, {":": " le le", " le": " . .", " .": " no no", " no": " . ."}, context=24)
    made = summarise(short, words, "the a" + 40 * " a", length=12, k=1)
    assert made == "le . no . no ." and len(re.findall(r"\.", made)) == 3


def test_summaries_are_drawn_from_two() -> None:
    words = Words("\n TL;DR : yes no maybe .")
    model = Bigrams(words, {":": " yes no maybe", " yes": " no yes maybe", " no": " yes no maybe"})
    texts = {summarise(model, words, "yes", length=8, seed=seed) for seed in range(9)}
    assert len(texts) > 3 and not any("maybe" in text for text in texts)
    with pytest.raises(UsageError, match="positions"):
        summarise(model, words, "yes", length=37)


@pytest.mark.parametrize(
    "cut, whole",
    [
        (" = = = Early life = = = ", "=== Early life ==="),
        (" It sold 1 @,@ 250 @.@ 5 copies of a well @-@ known game . ", "It sold 1,250.5 copies of a well-known game."),
        (
            " He said \" no \" , and didn 't ( at all ) go : it 's $ 5 . ",
            "He said \"no\", and didn't (at all) go: it's $5.",
        ),
        (" the players ' first <unk> ; 5 % ", "the players' first <unk>; 5%"),
        (" one \n two . \n", "one\ntwo.\n"),
    ],
)
def test_wikitext_by_hand(cut: str, whole: str) -> None:
    assert wikitext(cut) == whole


@pytest.mark.parametrize(
    "cut, whole",
    [
        (" mr. <unk> is chairman of n.v. ", "mr. <unk> is chairman of n.v."),
        (" they do n't say it 's $ N billion or N % ", "they don't say it's $N billion or N%"),
        (" `` we 've n't , '' he said -lrb- twice -rrb- ", "\"we'ven't,\" he said (twice)"),
        (" investors ' money \\/ stock", "investors' money / stock"),
    ],
)
def test_penn_treebank_by_hand(cut: str, whole: str) -> None:
    assert penn_treebank(cut) == whole
