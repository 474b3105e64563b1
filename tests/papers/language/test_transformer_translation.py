"""Text as batches of tokens, the objective, training and resuming, averaging, and predictions."""

import json
import math
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import jingdu
from jingdu import engine, verbs
from jingdu.cli import main
from jingdu.data.draws import Draws
from jingdu.engine.checkpoint import list_checkpoints
from jingdu.engine.contracts import Stage
from jingdu.engine.optimise import make_schedule
from jingdu.engine.state import read_tree
from jingdu.engine.training import Training
from jingdu.errors import BadInput, Missing, Refused, UsageError
from jingdu.metrics.translation import TranslationScores
from jingdu.names import Call
from jingdu.papers.language.bpe import fit
from jingdu.papers.language.transformer import (
    BytePairs,
    MarianPieces,
    Pairs,
    Transformer,
    Translation,
    average_checkpoints,
    last_checkpoints,
    learn_spelling,
    noam_peak,
    pairs,
    read_spelling,
    recipes,
    smoothed_cross_entropy,
    translate,
)
from jingdu.papers.language.transformer.pairs import group

OF = "catalogues(languages=('es', 'gl', 'pt'), pairs='all', longest=24)"
DATA = f"transformer.pairs(of={OF!r}, vocabulary=300, tokens=256)"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One cache for what several tests share."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("shared")
        patch.setenv("JINGDU_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def train(cache: Path) -> Pairs:
    return pairs("train", OF, vocabulary=300, tokens=256)


@pytest.fixture(scope="module")
def test(cache: Path) -> Pairs:
    return pairs("test", OF, vocabulary=300, tokens=256)


def batch_of(data: Any, indices: list[int], seed: int = 0, epoch: int = 0) -> dict[str, Any]:
    chosen = np.array(indices)
    return data.batch(chosen, Draws(seed, epoch, chosen))


# Spelling ---------------------------------------------------------------------------------------------


def test_marks_are_the_first_tokens() -> None:
    speller = learn_spelling(["una casa", "uma casa", "uma coisa"], 270, ["es", "pt"])
    assert speller.languages == {"es": 2, "pt": 3} and speller.special["<pad>"] == 0 and speller.special["</s>"] == 1
    ids = speller.source("uma casa azul", "pt")
    assert ids[0] == 3 and ids[-1] == 1 and speller.text(ids) == "uma casa azul"
    assert speller.source(">>pt<< uma casa azul") == ids
    assert speller.source(" >>pt<<", "es")[0] == 2 and speller.text(speller.source(">>pt<<", "es")) == ">>pt<<"
    assert len(ids) < len("uma casa azul") and speller.pieces(ids)[0] == ">>pt<<"
    assert speller.tokenizer.n_vocab == 270
    with pytest.raises(UsageError, match="pt"):
        speller.source("uma casa")
    with pytest.raises(UsageError, match="--to"):
        speller.source("uma casa", "fr")


def test_one_language_needs_no_mark(tmp_path: Path) -> None:
    speller = learn_spelling(["a house", "ein Haus"], 260)
    assert speller.languages == {} and speller.text(speller.source("ein Haus")) == "ein Haus"
    assert speller.text(speller.source(">>de<< ein Haus")) == ">>de<< ein Haus"
    (tmp_path / "tokenizer.json").write_text(speller.tokenizer.to_json())
    again = read_spelling(tmp_path / "tokenizer.json")
    assert again.source("a house") == speller.source("a house")
    with pytest.raises(UsageError, match="fr"):
        speller.source("a house", "fr")
    with pytest.raises(UsageError, match="room"):
        learn_spelling(["a"], 4, ["de", "en"])
    with pytest.raises(UsageError, match="translator"):
        BytePairs(fit(["a house"], 260))


def test_pieces_of_marian(tmp_path: Path) -> None:
    spm = pytest.importorskip("sentencepiece")
    text = ["die Katze schläft im Haus", "das Haus ist alt", "eine alte Katze", "im alten Haus schläft die Katze"] * 5
    (tmp_path / "text").write_text("\n".join(text), "utf-8")
    for side in ("source", "target"):
        spm.SentencePieceTrainer.train(
            input=str(tmp_path / "text"), model_prefix=str(tmp_path / side), vocab_size=40, minloglevel=2,
            hard_vocab_limit=False,
        )  # fmt: skip
        (tmp_path / f"{side}.model").rename(tmp_path / f"{side}.spm")
    model = spm.SentencePieceProcessor(model_file=str(tmp_path / "source.spm"))
    pieces = [model.id_to_piece(i) for i in range(model.get_piece_size()) if not model.is_control(i)]
    numbers = {"</s>": 0, "<unk>": 1, ">>nl<<": 2, **{p: i + 3 for i, p in enumerate(pieces[1:])}}
    numbers["<pad>"] = len(numbers)
    (tmp_path / "vocab.json").write_text(json.dumps(numbers))
    ours = read_spelling(tmp_path)
    assert isinstance(ours, MarianPieces) and ours.languages == {"nl": 2}
    ids = ours.source("die alte Katze", "nl")
    assert ids[0] == 2 and ids[-1] == 0 and 1 in ours.source("Qyx", "nl")
    assert ours.text([numbers["<pad>"], *ids]) == "die alte Katze"
    from tests.parity.references import import_transformers

    with pytest.warns(UserWarning, match="sacremoses"):
        theirs = import_transformers().MarianTokenizer.from_pretrained(tmp_path)
    for sentence in ("die alte Katze", "Haus, Qyx und ein Hut"):
        assert ours.source(f">>nl<< {sentence}") == theirs(f">>nl<< {sentence}").input_ids
        assert ours.text(ids) == theirs.decode(ids, skip_special_tokens=True).removeprefix(">>nl<<").strip()
    (tmp_path / "vocab.json").write_text("[1]")
    with pytest.raises(BadInput, match="number"):
        read_spelling(tmp_path)
    (tmp_path / "target.spm").write_bytes(b"no model")
    with pytest.raises(BadInput, match="target"):
        read_spelling(tmp_path)


# Batches ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [5, 23, 64, 1000])
def test_batches_hold_so_many_tokens(tokens: int) -> None:
    longest = np.sort(np.random.default_rng(tokens).integers(1, 30, 211))
    starts = group(longest, tokens)
    assert starts[0] == 0 and starts[-1] == 211 and (np.diff(starts) > 0).all()
    for low, high in pairwise(starts):
        assert (high - low) * longest[high - 1] <= tokens or high - low == 1
        assert high == 211 or (high + 1 - low) * longest[high] > tokens  # no more would fit


def test_pairs_in_batches_of_similar_length(train: Pairs) -> None:
    data = train
    batch = batch_of(data, list(range(len(data))))
    assert set(batch) == {"source", "target"} and data.tokenizer.n_vocab == 300
    rows = 0
    for source, target in zip(batch["source"], batch["target"], strict=True):
        assert len(source) == len(target) and len(source) * max(source.shape[1], target.shape[1] - 1) <= 256
        assert (target[:, 0] == 0).all()
        for row in (source, target[:, 1:]):
            real = (row != 0).sum(1)
            assert (row.gather(1, real[:, None] - 1) == 1).all() and ((row == 1).sum(1) == 1).all()
            assert real.max() == row.shape[1]
        assert set(source[:, 0].tolist()) <= {2, 3, 4}
        rows += len(source)
    assert rows == len(data.longest) > 1000
    speller, source, target = data.speller, batch["source"][-1][0], batch["target"][-1][0]
    texts = {speller.text(row.tolist()) for half in (batch["source"], batch["target"]) for part in half for row in part}
    assert speller.text(source.tolist()) in texts and len(speller.text(target.tolist())) > 5


def test_a_batch_is_a_function_of_seed_epoch_and_number(train: Pairs) -> None:
    data, other = train, Pairs(train.source, train.target, train.speller, 256, train.marks)
    whole = batch_of(data, list(range(len(data))), seed=3, epoch=2)
    for i in (5, 0, len(data) - 1):
        one = batch_of(other, [i], seed=3, epoch=2)
        assert all(torch.equal(one[k][0], whole[k][i]) for k in one)
        batch_of(other, [i], seed=3, epoch=1)
    later = batch_of(data, list(range(len(data))), seed=3, epoch=3)
    assert [x.shape[0] for x in later["source"]] == [x.shape[0] for x in whole["source"]]
    assert sum(not torch.equal(a, b) for a, b in zip(later["source"], whole["source"], strict=True)) > len(data) / 2

    def everything(batch: dict[str, Any]) -> list[tuple[int, ...]]:
        return sorted(tuple(row[row != 0].tolist()) for part in batch["source"] for row in part)

    assert everything(later) == everything(whole)


def test_test_pairs_bring_their_texts(test: Pairs) -> None:
    batch = batch_of(test, [1, 4])
    for target, reference, speller in zip(batch["target"], batch["reference"], batch["speller"], strict=True):
        assert [speller.text(row.tolist()) for row in target] == reference


def test_pairs_that_are_refused(train: Pairs, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JINGDU_CACHE", str(cache))
    with pytest.raises(UsageError, match="no pairs"):
        pairs("train", "stdlib")
    with pytest.raises(UsageError, match="at most 2"):
        pairs("train", OF, vocabulary=300, longest=2)
    with pytest.raises(Missing, match="vocabulary"):
        pairs("train", OF, vocabulary=str(tmp_path / "none.json"))
    file = tmp_path / "tokenizer.json"
    file.write_text(learn_spelling(["casa"], 270, ["es", "pt"]).tokenizer.to_json())
    with pytest.raises(UsageError, match="gl"):
        pairs("train", OF, vocabulary=str(file))
    kept = pairs("train", OF, vocabulary=300, longest=8)
    assert 0 < len(kept.longest) < len(train.longest) and kept.longest.max() <= 8


# The objective ----------------------------------------------------------------------------------------


def test_smoothing_shares_what_it_takes() -> None:
    logits, targets = torch.randn(13, 7, dtype=torch.float64), torch.randint(0, 7, (13,))
    log_p = logits.log_softmax(1)
    for over in ("others", "all"):
        q = torch.full((13, 7), 0.1 / (6 if over == "others" else 7), dtype=torch.float64)
        rows = torch.arange(13)
        q[rows, targets] = 0.9 if over == "others" else 0.9 + 0.1 / 7
        torch.testing.assert_close(q.sum(1), torch.ones(13, dtype=torch.float64))
        smoothed, nats = smoothed_cross_entropy(logits, targets, 0.1, over)
        torch.testing.assert_close(smoothed, -(q * log_p).sum(1))
        torch.testing.assert_close(nats, -log_p[rows, targets])
    assert smoothed_cross_entropy(logits.bfloat16(), targets)[0].dtype == torch.float32
    with pytest.raises(UsageError, match="others"):
        smoothed_cross_entropy(logits, targets, 0.1, "some")


def test_equation_3() -> None:
    schedule = make_schedule("inverse_sqrt(warmup=4000)")
    for step in (1, 17, 4000, 4001, 90_000):
        expected = 512**-0.5 * min(step**-0.5, step * 4000**-1.5)
        assert noam_peak(512) * schedule(step - 1, 100_000, 1.0)["lr"] == pytest.approx(expected)
    (stage,) = recipes["big"].stages
    assert stage.lr == noam_peak(1024) and stage.steps == 300_000 and stage.keep == 20


def test_the_second_set_of_hyperparameters_of_tensor2tensor() -> None:
    """transformer_base_v2: its rate, 0.2, is divided by the 0.1 that gives the equation's."""
    (stage,) = recipes["tensor2tensor_v2"].stages
    (first,) = recipes["paper"].stages
    assert stage.lr == 2 * noam_peak(512, 8000) and stage.schedule == "inverse_sqrt(warmup=8000)"
    assert stage.betas == first.betas == (0.9, 0.98) and first.lr == noam_peak(512, 4000)
    call = Call.parse(stage.networks["network"])
    network = jingdu.create(call.name, **{**call.arguments, "width": 16, "inner": 24, "heads": 2, "vocabulary": 11})
    layer = network.decoder[0]
    assert (layer.norm, layer.dropout.p, layer.feed_forward.dropout.p) == ("pre", 0.1, 0.1)
    assert layer.self_attention.dropout == layer.cross_attention.dropout == 0.1 and network.positions == "tensor2tensor"


def small(**options: Any) -> Transformer:
    torch.manual_seed(5)
    return jingdu.create(
        "transformer", vocabulary=300, width=16, inner=24, heads=2, layers=1, dropout=0.0, **options
    ).eval()


def test_the_loss_is_a_mean_over_tokens_then_over_batches(train: Pairs) -> None:
    network = small()
    batch = batch_of(train, [3, 40])
    loss, values = Translation(network)(batch, "loss")
    means, counts = [], []
    for source, target in zip(batch["source"], batch["target"], strict=True):
        each = [
            smoothed_cross_entropy(network(s[s != 0][None], t[None, :-1][:, : n - 1])[0], t[1:n])
            for s, t in zip(source, target, strict=True)
            for n in [int((t != 0).sum()) + 1]
        ]
        means.append([torch.cat([pair[i] for pair in each]).mean() for i in (0, 1)])
        counts.append(sum(len(pair[0]) for pair in each))
    torch.testing.assert_close(loss, (means[0][0] + means[1][0]) / 2)
    torch.testing.assert_close(values["nats"], (means[0][1] + means[1][1]) / 2)
    assert values["tokens"] == sum(counts) / 2
    # A batch alone costs what its share does: what processes and accumulation count on.
    parts = [Translation(network)({k: v[i : i + 1] for k, v in batch.items()}, "loss")[0] for i in (0, 1)]
    torch.testing.assert_close(loss, (parts[0] + parts[1]) / 2)


def test_evaluation_is_unsmoothed_and_translates(test: Pairs) -> None:
    pytest.importorskip("sacrebleu")
    network = small()
    system = Translation(network, beams=2)
    batch = batch_of(test, [0, 1])
    system.update(batch)
    found = system.compute()
    assert set(found) == {"loss", "perplexity", "bleu", "chrf"}
    plain = Translation(network, smoothing=0.0)
    nats = [plain({k: v[i : i + 1] for k, v in batch.items()}, "loss") for i in (0, 1)]
    expected = sum(float(loss.detach()) * v["tokens"] for loss, v in nats) / sum(v["tokens"] for _, v in nats)
    assert found["loss"] == pytest.approx(expected, rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(expected), rel=1e-5)


def test_bleu_and_chrf_are_sacrebleus() -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    ours, references = ["the cat sat on the mat", "a dog"], ["the cat sat on a mat", "the dog barked"]
    scores = TranslationScores()
    for hypothesis, reference in zip(ours, references, strict=True):
        scores.update([hypothesis], [reference])
    found = scores.compute()
    assert found["bleu"] == sacrebleu.corpus_bleu(ours, [references]).score > 0
    assert found["chrf"] == sacrebleu.corpus_chrf(ours, [references]).score > 0
    with pytest.raises(Refused, match="no translations"):
        scores.compute()
    with pytest.raises(ValueError, match="2 translations and 1"):
        scores.update(ours, references[:1])


def test_translations_of_any_number_of_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    from jingdu.papers.language.transformer import translation

    network = small()
    torch.nn.init.normal_(network.embedding.weight, std=0.7)
    sources = [[2, *range(5, 5 + n), 1] for n in (3, 9, 1, 6)]
    whole = translate(network, sources, longer=4)
    monkeypatch.setattr(translation, "BEAM_TOKENS", 1)
    apart = translate(network, sources, longer=4)
    for a, b, source in zip(whole, apart, sources, strict=True):
        assert torch.equal(a.tokens, b.tokens) and len(a.tokens) <= len(source) + 4
    assert translate(network, []) == []


# Training, averaging, predicting ----------------------------------------------------------------------


def stage(**changes: Any) -> Stage:
    base = Stage(
        networks={"network": "transformer_base_v37000(width=16, inner=24, heads=2, layers=1)"},
        system="transformer.Translation(beams=0)", data=DATA, batch_size=4, steps=6, optimizer="adam", lr=3e-3,
        schedule="inverse_sqrt(warmup=4)", save_every=2, keep=3,
    )  # fmt: skip
    return verbs.change(base, **changes)


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    return read_tree(list_checkpoints(run / "checkpoints")[0] / "model.safetensors")


@pytest.fixture(scope="module")
def run(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return engine.train(stage(), tmp_path_factory.mktemp("run") / "run", device="cpu", quiet=True).folder


def test_training_resumes_to_the_same_bits(
    run: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JINGDU_CACHE", str(cache))
    plain = Training.advance
    monkeypatch.setattr(Training, "advance", lambda self: 1 / 0 if self.step == 5 else plain(self))
    with pytest.raises(ZeroDivisionError):
        engine.train(stage(), tmp_path / "cut", device="cpu", quiet=True)
    monkeypatch.setattr(Training, "advance", plain)
    cut = engine.train(stage(), tmp_path / "cut", device="cpu", quiet=True, resume=True)
    assert cut.metrics == json.loads((run / "result.json").read_text())["metrics"]
    assert cut.metrics["loss"] < math.log(300) + 0.5
    whole = weights_of(run)
    assert all(torch.equal(x, whole[key]) for key, x in weights_of(tmp_path / "cut").items())


def test_a_step_in_parts_is_the_same_step(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts are what processes have, too."""
    monkeypatch.setenv("JINGDU_CACHE", str(cache))
    networks = {"network": stage().networks["network"][:-1] + ", dropout=0.0)"}
    for parts in (1, 2):
        changed = stage(accumulate=parts, networks=networks, steps=2, optimizer="sgd", lr=0.1)
        engine.train(changed, tmp_path / str(parts), device="cpu", quiet=True)
    whole = weights_of(tmp_path / "1")
    for key, x in weights_of(tmp_path / "2").items():
        torch.testing.assert_close(x, whole[key], rtol=1e-4, atol=1e-6)


def test_means_of_checkpoints(run: Path) -> None:
    network = jingdu.load(run)
    newest = Path(network.origin.source)
    chosen = last_checkpoints(newest, 3)
    assert [path.name for path in chosen] == ["step-000000006", "step-000000004", "step-000000002"]
    tensors = [read_tree(path / "model.safetensors") for path in chosen]
    average_checkpoints(network, chosen)
    for name, x in network.state_dict().items():
        torch.testing.assert_close(x, torch.stack([t[f"network.{name}"] for t in tensors]).mean(0))
    assert len(last_checkpoints(chosen[1], 2)) == 2
    for count in (0, 4):
        with pytest.raises(UsageError, match=f"{count} are to be averaged"):
            last_checkpoints(newest, count)
    with pytest.raises(Refused, match="not of this network"):
        average_checkpoints(small(norm="pre"), chosen)


def test_predict(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "map.png"
    words = ["predict", "transformer", "--weights", str(run), "--to", "gl", "--beams", "2", "el nombre", "el año"]
    assert main([*words, "--attention-map", str(picture), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["source"] for row in found] == ["el nombre", "el año"] and found[1]["files"] == [str(picture)]
    network = jingdu.load(run)
    speller = read_spelling(network.origin.tokenizer)
    (best,) = translate(network, [speller.source("el nombre", "gl")], beams=2)
    assert found[0]["translation"] == speller.text(best.tokens.tolist())
    assert found[0]["score"] == pytest.approx(best.score) and picture.stat().st_size > 1000
    assert main([*words, "--penalty", "power", "--alpha", "1", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)[0]
    assert row["score"] == pytest.approx(row["log_probability"] / len(row["tokens"]))
    lines = tmp_path / "lines.txt"
    lines.write_text(">>gl<< el nombre\n\n>>pt<< el año\n", "utf-8")
    assert main(["predict", "transformer", "--weights", str(run), str(lines), "--average", "2", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 2


def test_predictions_that_cannot_be(run: Path, tmp_path: Path) -> None:
    model = jingdu.load(run)
    module = jingdu.paper("transformer").load()
    bad = ({"beams": 0}, {"average": 0}, {"alpha": -1.0}, {"alpha": math.inf})
    for options in (*({**options, "to": "gl"} for options in bad), {"to": "fr"}, {}):
        with pytest.raises(UsageError):
            list(module.predict(model, ["el nombre"], **options))
    with pytest.raises(UsageError, match="at least one"):
        list(module.predict(model, [], to="gl"))
    with pytest.raises(Missing, match="vocabulary"):
        list(module.predict(small(), ["el nombre"], to="gl"))
    (tmp_path / "merges.txt").write_text("")
    with pytest.raises(Missing, match="Moses"):
        read_spelling(tmp_path)
    with pytest.raises(Refused, match="picture"):
        list(module.predict(model, ["el nombre"], to="gl", attention_map=tmp_path / "map.nothing"))
