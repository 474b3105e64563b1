"""BERT: gaps, pairs, heads, fine-tuning, and what it says of texts."""

import dataclasses
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import jingdu
from jingdu.cli import main
from jingdu.data.draws import Draws
from jingdu.data.roles import ROLES, name_roles, roles_in
from jingdu.engine import Recipe, Stage, train
from jingdu.engine.contracts import Objective
from jingdu.engine.optimise import make_optimizer, make_schedule
from jingdu.errors import UsageError
from jingdu.papers.language.bert import (
    BERT,
    SPECIAL,
    FineTuning,
    Lines,
    Marked,
    PreTraining,
    best_span,
    cut_pairs,
    cut_singles,
    examples,
    features,
    leave_gaps,
    recipes,
    sentence_vectors,
    shorten,
    take_encoder,
    windows_of,
)
from jingdu.papers.language.bpe import fit

SMALL: dict[str, Any] = {"vocabulary": 101, "width": 24, "layers": 3, "heads": 4, "context": 37, "dropout": 0.0}
MARKED = Marked(fit(["the cats sat on unhappy mats and the rats ran", "banana bandana"] * 3, 61, "bert_cased", SPECIAL))
LETTERS = MARKED.tokenizer.n_vocab - len(SPECIAL)


def batch(count: int, time: int = 11, draw: int = 0) -> dict[str, torch.Tensor]:
    seeded = torch.Generator().manual_seed(draw)
    sizes = torch.randint(3, time + 1, (count, 1), generator=seeded)
    return {"tokens": torch.randint(101, (count, time), generator=seeded), "mask": torch.arange(time) < sizes}


# The network -------------------------------------------------------------------------------------------


def test_no_token_sees_padding_and_all_see_both_sides() -> None:
    torch.manual_seed(1)
    model = BERT(**SMALL).eval()
    x, mask = torch.randint(101, (2, 11)), torch.arange(11) < torch.tensor([[11], [7]])
    with torch.inference_mode():
        base = model(x, mask)
        for place, moved in ((9, False), (6, True)):
            y = x.clone()
            y[1, place] = (y[1, place] + 1) % 101
            assert torch.equal(model(y, mask)[1, :6], base[1, :6]) is not moved
        causal = BERT(**SMALL, causal=True).eval()
        y = x.clone()
        y[:, 6] = (y[:, 6] + 1) % 101
        assert torch.equal(causal(y)[:, :6], causal(x)[:, :6]) and not torch.equal(causal(y)[:, 6:], causal(x)[:, 6:])


@pytest.mark.parametrize("head", [None, "words", "follows", "pretraining", "class", "tags", "span", "choice"])
def test_every_head_trains_all_that_it_reads(head: str | None) -> None:
    model = BERT(**SMALL, head=head, labels=5)
    x = torch.randint(101, (3, 2, 11) if head == "choice" else (3, 11))
    output = model(x, None, x % 2)
    shapes = {
        None: (3, 11, 24), "words": (3, 11, 101), "follows": (3, 2), "class": (3, 5), "tags": (3, 11, 5), "span": (3, 11, 2),
        "choice": (3, 2),
    }  # fmt: skip
    first, *more = output if isinstance(output, tuple) else (output,)
    assert first.shape == shapes["words" if head == "pretraining" else head]
    sum([x.square().sum() for x in more], first.square().sum()).backward()
    unread = {"pooler.weight", "pooler.bias"} if head is None else set()
    assert {name for name, p in model.named_parameters() if p.grad is None} == unread


def test_words_are_predicted_at_places_alone_and_the_table_is_tied() -> None:
    model = BERT(**SMALL, head="pretraining").eval()
    torch.nn.init.normal_(model.words.bias)
    x, places = torch.randint(101, (3, 11)), torch.tensor([[5, 0], [7, 7], [10, 1]])
    everywhere, follows = model(x)
    some, again = model(x, None, None, places)
    torch.testing.assert_close(some, everywhere.take_along_dim(places[..., None], 1))
    assert torch.equal(follows, again)
    states = model.states(x)[-1]
    inner = model.words.norm(torch.nn.functional.gelu(model.words.dense(states)))
    torch.testing.assert_close(everywhere, inner @ model.embeddings.words.weight.T + model.words.bias)


def test_initial_weights_are_cut_off() -> None:
    model = BERT(vocabulary=1009, width=96, layers=2, heads=3)
    weight = model.embeddings.words.weight
    assert weight.abs().max() <= 0.04 and weight.std().item() == pytest.approx(0.02 * 0.88, rel=0.02)
    assert not any(layer.expand.bias.any() for layer in model.layers)


def test_what_a_network_cannot_do_is_refused() -> None:
    with pytest.raises(UsageError, match="head of BERT"):
        BERT(**SMALL, head="wrods")
    with pytest.raises(UsageError, match="24 does not divide into 5"):
        BERT(**{**SMALL, "heads": 5})
    model = BERT(**SMALL, head="tags")
    with pytest.raises(UsageError, match="38 tokens"):
        model(torch.zeros(1, 38, dtype=torch.int64))
    with pytest.raises(UsageError, match="no pooler"):
        model.pool(torch.zeros(1, 2, 24))
    with pytest.raises(UsageError, match="predicts words"):
        model.predict_words(torch.zeros(2, 24))
    with pytest.raises(UsageError, match="none of words, pretraining"):
        PreTraining(model)
    with pytest.raises(UsageError, match="none of class"):
        FineTuning(BERT(**SMALL))


def test_features_are_the_last_layers_side_by_side() -> None:
    model = BERT(**SMALL).eval()
    data = batch(3)
    found = features(model, data["tokens"], data["mask"], last=2)
    states = model.states(data["tokens"], data["mask"])
    torch.testing.assert_close(found[data["mask"]], torch.cat(states[-2:], 2)[data["mask"]])


# Gaps and pairs ----------------------------------------------------------------------------------------


def numbers(lines: list[list[int]]) -> Lines:
    """Documents of lines of so many tokens, numbered through."""
    sizes = [size for document in lines for size in document]
    ends = np.cumsum([0, *sizes])
    return Lines(np.arange(ends[-1]), ends, np.cumsum([0, *map(len, lines)]))


def test_pairs_follow_or_come_from_elsewhere() -> None:
    draw = random.Random(1)
    text = numbers([[draw.randint(1, 9) for _ in range(draw.randint(1, 40))] for _ in range(31)])
    pairs = np.concatenate([cut_pairs(text, 33, random.Random(seed)) for seed in range(20)])
    document = np.searchsorted(text.lines[text.documents], np.arange(len(text.ids)), side="right")
    a, b, c, d, random_next = pairs.T
    assert (a < b).all() and (c < d).all()
    assert np.isin(pairs[:, :4], text.lines).all()  # sentences stay whole
    assert (document[a] == document[b - 1]).all() and (document[c] == document[d - 1]).all()
    follows = random_next == 0
    assert (b == c)[follows].all() and (document[a] != document[c])[~follows].mean() > 0.99
    assert 0.5 < random_next.mean() < 0.65  # a single line is never followed
    assert (d - a)[follows].mean() > 25 and ((d - a)[follows] >= 30).mean() > 0.7
    # Lines that a random segment displaced come back: every line is a first or a following one.
    once = cut_pairs(text, 33, random.Random(5))
    seen = np.zeros(len(text.ids), dtype=bool)
    for low, end, first, last, other in once:
        seen[low:end] = True
        if not other:
            seen[first:last] = True
    assert seen.all()


def test_singles_are_neighbouring_lines() -> None:
    text = numbers([[3, 4, 5, 30, 2], [7], [4] * 9])
    singles = cut_singles(text, 14, random.Random(0), short=0.0)
    assert singles[:, :2].tolist() == [[0, 12], [12, 42], [42, 44], [44, 51], [51, 63], [63, 75], [75, 87]]


def test_the_longer_segment_loses_tokens_at_both_ends() -> None:
    first, second = np.arange(29), np.arange(100, 107)
    starts = set()
    for seed in range(40):
        a, b = shorten(first, second, 17, np.random.default_rng(seed))
        assert len(a) == 10 and np.array_equal(b, second) and np.array_equal(a, np.arange(a[0], a[0] + 10))
        starts.add(int(a[0]))
    assert len(starts) > 5 and 7 < np.mean(list(starts)) < 12
    a, b = shorten(np.arange(9), np.arange(8), 5, np.random.default_rng(0))
    assert (len(a), len(b)) == (2, 3)  # of equal ones the first


@pytest.mark.parametrize("whole_words", [False, True])
def test_gaps(whole_words: bool) -> None:
    rng = np.random.default_rng(0)
    fates = np.zeros(3)
    for _ in range(300):
        inner = rng.integers(LETTERS, size=rng.integers(1, 90))
        tokens = np.array([MARKED.cls, *inner, MARKED.sep])
        found, places, targets = leave_gaps(tokens, rng, MARKED, most=7, whole_words=whole_words)
        wanted = min(7, max(1, round(0.15 * len(tokens))))
        assert len(places) == wanted if not whole_words else len(places) <= wanted
        assert (np.diff(places) > 0).all() and (targets == tokens[places]).all()
        assert not np.isin(targets, [MARKED.cls, MARKED.sep]).any()
        untouched = np.setdiff1d(np.arange(len(tokens)), places)
        assert (found[untouched] == tokens[untouched]).all()
        changed, same = found[places] == MARKED.mask, found[places] == targets
        fates += [changed.sum(), same.sum(), (~changed & ~same).sum()]
        if whole_words:  # a chosen word is chosen to its end
            goes_on = MARKED.goes_on.numpy()[tokens]
            for place in places:
                assert place + 1 not in untouched or not goes_on[place + 1]
                assert not goes_on[place] or place - 1 in places or tokens[place - 1] == MARKED.cls
    share = fates / fates.sum()
    assert share == pytest.approx([0.8, 0.1, 0.1], abs=0.03)


def test_examples_are_the_same_in_every_epoch_and_have_duplicates() -> None:
    few = examples("train", "pydoc_topics", 300, 32, duplicates=1, gaps=5)
    data = examples("train", "pydoc_topics", 300, 32, duplicates=3, gaps=5)
    assert len(data) > 2.5 * len(few) and len(examples("test", "pydoc_topics", 300, 32, duplicates=3)) < len(few)
    rows = np.array([7, len(few) + 3, 2 * len(few)])
    first, again, alone = (data.batch(r, Draws(s, e, r)) for r, s, e in ((rows, 0, 0), (rows, 5, 9), (rows[1:2], 1, 1)))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert torch.equal(alone["targets"][0], first["targets"][1])
    marked = data.marked
    for row in range(3):
        tokens = first["tokens"][row][first["mask"][row]]
        ends = (tokens == marked.sep).nonzero()[:, 0]
        assert tokens[0] == marked.cls and len(ends) == 2 and ends[1] == len(tokens) - 1 <= 31
        assert first["segments"][row].sum() == ends[1] - ends[0]
        asked = first["targets"][row] != -100
        assert 1 <= asked.sum() <= 5
    plain = examples("test", "pydoc_topics", 300, 32, gaps=0, pairs=False).batch(rows[:1], Draws(0, 0, rows[:1]))
    assert set(plain) == {"tokens", "mask", "segments"} and not plain["segments"].any()
    with pytest.raises(UsageError, match="length=3"):
        examples("train", "pydoc_topics", 300, 3)
    with pytest.raises(UsageError, match=r"no \[PAD\]"):
        Marked(fit(["abc"], 301))


def test_the_loss_is_of_the_gaps_and_the_sentence() -> None:
    torch.manual_seed(2)
    network = BERT(**SMALL, head="pretraining")
    data = {**batch(3), "segments": torch.zeros(3, 11, dtype=torch.int64), "follows": torch.tensor([1, 0, 1])}
    data |= {"places": torch.tensor([[1, 2], [2, 0], [0, 1]]), "targets": torch.tensor([[7, 9], [3, -100], [5, 8]])}
    loss, _ = PreTraining(network)(data, "loss")
    words, follows = network(data["tokens"], data["mask"])
    nats = [
        -words[row, place].log_softmax(0)[token]
        for row, place, token in ((0, 1, 7), (0, 2, 9), (1, 2, 3), (2, 0, 5), (2, 1, 8))
    ]
    second = -follows.log_softmax(1)[torch.arange(3), data["follows"]].mean()
    torch.testing.assert_close(loss, torch.stack(nats).mean() + second)


# Tasks -------------------------------------------------------------------------------------------------


def test_what_each_task_is_taught() -> None:
    torch.manual_seed(3)
    data = batch(5)
    cases: list[tuple[str, int, torch.Tensor, Callable[[torch.Tensor], torch.Tensor]]] = [
        ("class", 3, torch.tensor([0, 2, 1, 1, 0]), lambda y: torch.nn.functional.cross_entropy(y, torch.tensor([0, 2, 1, 1, 0]))),
        ("class", 1, torch.tensor([0.5, 2, 1, 3, 0]), lambda y: (y[:, 0] - torch.tensor([0.5, 2, 1, 3, 0])).square().mean()),
        ("span", 2, torch.tensor([[0, 0], [1, 2], [2, 2], [0, 1], [1, 1]]), None),
    ]  # fmt: skip
    for head, labels, label, expected in cases:
        system = FineTuning(BERT(**SMALL, head=head, labels=labels))
        loss, _ = system({**data, "label": label}, "loss")
        if expected is not None:
            torch.testing.assert_close(loss, expected(system.network(data["tokens"], data["mask"])))
        system.eval().update({**data, "label": label})
        measures = system.compute()
        assert set(measures) - {"top5_error"} == (
            {"squared_error", "correlation"} if labels == 1 else {"error", "loss"}
        )
    choice = FineTuning(BERT(**SMALL, head="choice"))
    two = {name: torch.stack([x, x.flip(0)], 1) for name, x in data.items()}
    loss, _ = choice({**two, "label": torch.tensor([0, 1, 1, 0, 1])}, "loss")
    assert loss.item() == pytest.approx(math.log(2), rel=0.05)


def test_only_tokens_with_a_label_count() -> None:
    torch.manual_seed(3)
    system = FineTuning(BERT(**SMALL, head="tags", labels=4))
    data, label = batch(3), torch.full((3, 11), -100)
    label[0, 2], label[2, 1] = 3, 1
    loss, values = system({**data, "label": label}, "loss")
    output = system.network(data["tokens"], data["mask"]).log_softmax(2)
    torch.testing.assert_close(loss, -(output[0, 2, 3] + output[2, 1, 1]) / 2)
    assert float(values["error"]) in (0.0, 0.5, 1.0)


def test_the_encoder_is_taken_and_the_head_is_new() -> None:
    old, new = BERT(**SMALL, head="pretraining"), BERT(**SMALL, head="class", labels=3)
    head = new.classifier.weight.clone()
    take_encoder(new, old)
    for name, p in new.named_parameters():
        assert torch.equal(p, head if name == "classifier.weight" else dict(old.named_parameters()).get(name, p))
    assert torch.equal(new.pooler.weight, old.pooler.weight)
    longer = PreTraining(BERT(**SMALL, head="pretraining"), "short", {"short": PreTraining(old)}).network
    assert all(torch.equal(a, b) for a, b in zip(longer.parameters(), old.parameters(), strict=True))
    frozen = FineTuning(new, frozen=True)
    assert {n for n, p in frozen.named_parameters() if p.requires_grad} == {
        "network.classifier.weight",
        "network.classifier.bias",
    }
    with pytest.raises(UsageError, match="another shape"):
        take_encoder(BERT(**{**SMALL, "context": 41}), old)
    with pytest.raises(UsageError, match="no earlier stage 'reading'"):
        FineTuning(new, start="reading")


def test_spans() -> None:
    scores = torch.zeros(9, 2)
    scores[2, 0], scores[7, 1], scores[5, 0], scores[3, 1] = 4.0, 5.0, 3.0, 6.0
    allowed = torch.arange(9) >= 1
    assert best_span(scores, allowed) == (2, 3, 10.0)
    assert best_span(scores, torch.arange(9) >= 4) == (5, 7, 8.0)
    assert best_span(scores, torch.arange(9) >= 4, longest=2)[:2] != (5, 7)
    scores[0] = 4.5
    assert best_span(scores, allowed, threshold=0.5) == (2, 3, 10.0)
    assert best_span(scores, allowed, threshold=1.5) is None
    assert best_span(scores, torch.zeros(9, dtype=torch.bool)) is None


def test_windows_cover_a_passage() -> None:
    assert windows_of(5, 7) == [(0, 5)]
    assert windows_of(300, 200, 128) == [(0, 200), (128, 300)]
    assert windows_of(20, 7, 128) == [(0, 7), (7, 14), (14, 20)]


# Names in code -----------------------------------------------------------------------------------------


def test_roles_of_names() -> None:
    source = "def grow(é, size=1):\n    self.total += round(é, digits=size)\n    return self.plan(é[size])\n"
    found = [(source[a:b], ROLES[role]) for a, b, role in roles_in(source)]
    assert found == [
        ("grow", "definition"), ("é", "argument"), ("size", "argument"), ("self", "load"), ("total", "attribute"),
        ("round", "call"), ("é", "load"), ("digits", "argument"), ("size", "load"), ("self", "load"), ("plan", "call"),
        ("é", "load"), ("size", "load"),
    ]  # fmt: skip
    train_split, other, test = (
        name_roles(*a) for a in (("train", 301, 97, 0), ("train", 301, 97, 1), ("test", 301, 97))
    )
    assert 301 <= sum(map(len, train_split.fields["names"])) < 420 and train_split.classes == ROLES
    assert set(train_split.fields["text"]) != set(other.fields["text"])
    with pytest.raises(UsageError, match="names for the train split"):
        name_roles("train", labelled=10**9, share=0.99)
    assert not set(train_split.fields["text"]) & set(test.fields["text"])


# The engine's new parts --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["adam", "adamw"])
def test_no_bias_correction(kind: str) -> None:
    """theta -= lr (m / (sqrt(v) + eps) + decay theta), for AdamW, from averages that start at zero."""
    torch.manual_seed(4)
    layer = torch.nn.Linear(3, 2)
    stage = Stage(
        optimizer=kind, lr=0.01, eps=1e-3, betas=(0.8, 0.9), weight_decay=0.1, bias_correction=False, decay="all"
    )  # type: ignore[arg-type]
    optimizer = make_optimizer(stage, layer, Objective("loss"))
    theta = layer.weight.detach().clone()
    m, v = torch.zeros_like(theta), torch.zeros_like(theta)
    for _ in range(5):
        layer.weight.grad = torch.randn(2, 3)
        layer.bias.grad = torch.zeros(2)
        g = layer.weight.grad + (0.1 * theta if kind == "adam" else 0)
        m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g * g
        theta = theta - 0.01 * (m / (v.sqrt() + 1e-3) + (0.1 * theta if kind == "adamw" else 0))
        optimizer.step()
        torch.testing.assert_close(layer.weight.detach(), theta)
    assert optimizer.param_groups[0]["lr"] == 0.01 and optimizer.param_groups[0]["eps"] == 1e-3


def test_the_line_down() -> None:
    schedule = make_schedule("linear(warmup=10)")
    assert [schedule(step, 100, 1.0)["lr"] for step in (0, 4, 9, 10, 55, 99)] == pytest.approx(
        [0.1, 0.5, 1, 0.9, 0.45, 0.01]
    )


# From nothing to answers -------------------------------------------------------------------------------

DATA = "bert.examples(of='pydoc_topics', vocabulary=300, length=24, duplicates=1, gaps=4)"
TINY = "width=16, layers=1, heads=2, context=140, dropout=0.0"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps of reading, and two of learning roles."""
    read = Stage(name="reading", system="bert.PreTraining", networks={"network": f"bert_base_uncased(head='pretraining', {TINY})"},
                 data=DATA, batch_size=3, steps=2, optimizer="adamw", lr=1e-3, bias_correction=False)  # fmt: skip
    task = dataclasses.replace(
        read, name="roles", system="bert.FineTuning(start='reading')",
        networks={"network": f"bert_base_uncased(head='tags', labels=6, {TINY})"},
        data=f'bert.roles(tokenizer="{DATA}", labelled=120, tested=40)',
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("bert") / "run"
    result = train(Recipe((read, task), 1, {}), folder, device="cpu", quiet=True)
    assert 0 <= result.metrics["error"] <= 1
    return folder


def test_predictions(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = str(run / "reading")
    assert main(["predict", "bert", "the [MASK] of a [MASK]", "--weights", weights, "--top", "3"]) == 0
    out = capsys.readouterr().out
    assert "[MASK] 2:" in out and sum(line.startswith("  0.") for line in out.splitlines()) == 6
    assert main(["predict", "bert", "an object", "a class of objects", "--weights", weights]) == 0
    assert "16 numbers of length 1" in capsys.readouterr().out
    assert main(["predict", "bert", "an object\tis a thing", "--weights", weights]) == 0
    assert "the second follows" in capsys.readouterr().out
    assert main(["predict", "bert", "def f(x): return x", "--weights", str(run)]) == 0
    out = capsys.readouterr().out
    assert any(role in out for role in ROLES) and out.count("  0.") == 8
    assert main(["predict", "bert", "the [MASK]", "--weights", weights, "--top", "0"]) == 2


def test_heads_of_other_tasks_predict(run: Path) -> None:
    weights, predict = run / "reading", jingdu.papers.language.bert.predict
    network = jingdu.create("bert", weights=weights)
    made = {}
    for head in ("class", "span", "choice"):
        made[head] = jingdu.create("bert", **{**network.origin.overrides, "head": head})
        made[head].origin = dataclasses.replace(network.origin)
        take_encoder(made[head], network)
    (found,) = predict(made["span"], ["what is it?\t" + "an object of a class, which is a thing. " * 20])
    answer = found.data["answer"]
    assert answer and answer in found.input
    assert next(iter(predict(made["span"], ["what?\tan object"], threshold=1e9))).data["answer"] is None
    (found,) = predict(made["choice"], ["an object\tis a thing\thas a name\truns"])
    assert sum(entry["probability"] for entry in found.data["top"]) == pytest.approx(1, abs=1e-5)
    (found,) = predict(made["class"], ["an object"])
    assert len(found.data["top"]) == 2
    for wrong in ("no tab here", "question\t "):
        with pytest.raises(UsageError, match="a tab and the passage"):
            list(predict(made["span"], [wrong]))


def test_sentence_vectors_do_not_depend_on_their_company(run: Path) -> None:
    network = jingdu.create("bert", weights=run / "reading")
    marked = Marked(jingdu.papers.language.bpe.read_tokenizer(network.origin.tokenizer))
    rows = [
        marked.join(marked.encode(text)) for text in ("an object", "a", "the name of a class of objects", "an object")
    ]
    together = sentence_vectors(network, rows, marked, batch=3)
    for row, vector in zip(rows, together, strict=True):
        torch.testing.assert_close(sentence_vectors(network, [row], marked)[0], vector)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(4))


def test_recipes_fit_together() -> None:
    from jingdu.names import Call

    networks = [
        jingdu.create("bert_base_uncased", vocabulary=301, **Call.parse(stage.networks["network"]).arguments)
        for stage in recipes["roles"].stages
    ]
    take_encoder(networks[1], networks[0])
    assert networks[1].classifier.out_features == len(ROLES)
