"""word2vec in use: questions to the vectors, files, runs through the engine, the command line, texts."""

import dataclasses
import gzip
import json
import math
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import jingdu
from jingdu.cli import main
from jingdu.engine import read_log, train
from jingdu.engine.checkpoint import newest_checkpoint
from jingdu.engine.state import read_tree, tree_bytes
from jingdu.errors import BadInput, Missing, Refused, UsageError
from jingdu.papers.language import word2vec as w2v
from jingdu.papers.language.word2vec import Word2Vec, predict
from jingdu.papers.language.word2vec.network import spell
from jingdu.papers.language.word2vec.planted import RELATIONS, speak
from jingdu.papers.language.word2vec.wikipedia import without_markup
from tests.weights.test_wrong_networks import _changes, _create

# Questions -------------------------------------------------------------------------------------------


def toy() -> Word2Vec:
    words = ["man", "woman", "king", "queen", "zebra"]
    model = Word2Vec(5, 3, spelling=len(spell(words)))
    model.spelling.copy_(spell(words))
    model.input.data.copy_(torch.tensor([[1, 0, 1], [1, 1, 1], [1, 0, -1], [1, 1, -1], [-1, 0.1, 0]]))
    return model


def test_analogies_leave_the_question_out() -> None:
    model = toy()
    questions = [("man", "woman", "king", "queen"), ("man", "king", "woman", "queen"), ("man", "yeti", "king", "zebra")]
    assert w2v.analogies(model, questions) == (2, 2)
    assert w2v.analogies(model, questions, restrict=3) == (0, 0)
    assert w2v.solve(model.unit(), torch.tensor([[0, 1, 2]])).tolist() == [3]
    found = model.analogy(["king", "woman"], ["man"], top=9)
    assert found[0][0] == "queen" and {word for word, _ in found} == {"queen", "zebra"}


def test_neighbours_and_cosines() -> None:
    model, unit = toy(), toy().unit()
    assert [word for word, _ in model.neighbours("king", 1)] == ["queen"]
    assert model.similarity("man", "woman") == pytest.approx(2 / math.sqrt(6))
    pairs = [("man", "woman", 9.0), ("man", "king", 3.0), ("man", "zebra", 1.0), ("man", "yeti", 5.0)]
    assert w2v.spearman(model, pairs) == (pytest.approx(1.0), 3)
    assert math.isnan(w2v.spearman(model, pairs[:1])[0])
    assert torch.allclose(model.sentence(["king", "yeti", "man"]), (unit[2] + unit[0]) / 2)
    for ask, message in (
        (lambda: model.vector("kingg"), "Did you mean king"),
        (lambda: model.sentence(["yeti"]), "none of the words"),
        (lambda: Word2Vec(5, 3).vector("king"), "not known"),
    ):
        with pytest.raises(UsageError, match=message):
            ask()


def test_question_and_pair_files(tmp_path: Path) -> None:
    path = tmp_path / "q.txt"
    path.write_text(": family\nMan Woman King Queen\n: more\nman king woman queen\n\n")
    assert w2v.read_questions(path)["family"] == [["man", "woman", "king", "queen"]]
    assert list(w2v.read_questions(path, case="kept")["family"][0]) == ["Man", "Woman", "King", "Queen"]
    path.write_text("# Word 1\tWord 2\tmean\nMan\twoman\t8.3\n")
    assert w2v.read_pairs(path) == [("man", "woman", 8.3)]
    for read, content, message in (
        (w2v.read_questions, "a b c\n", "line 1: a question"), (w2v.read_questions, "", "no questions"),
        (w2v.read_pairs, "a\tb\n", "line 1"),
    ):  # fmt: skip
        path.write_text(content)
        with pytest.raises(BadInput, match=message):
            read(path)


def test_predictions() -> None:
    model = toy()
    near, sums, pair, mean = predict(model, ["king", "king - man + woman", "man ~ woman", "a king"], top=2)
    assert near.data["nearest"][0]["word"] == "queen" and near.data["vector"] == [1, 0, -1]
    assert sums.text.startswith("king - man + woman: queen")
    assert pair.data["cosine"] == pytest.approx(2 / math.sqrt(6)) and "0.8165" in pair.text
    assert mean.data["unknown"] == ["a"] and "not known: a" in mean.text
    assert all(json.loads(json.dumps(dict(one.data))) for one in (near, sums, pair, mean))
    for text in ("king ~ man ~ woman", "old king - man", "king - unicorn"):
        with pytest.raises(UsageError):
            list(predict(model, [text]))
    with pytest.raises(UsageError, match="no words to write"):
        list(predict(Word2Vec(3, 2), [], out=Path("x.txt")))


# Files -----------------------------------------------------------------------------------------------

ODD = ["the", "naïve", "東京", "a_b", "\udcff\udc80x", "</s>"]


@pytest.mark.parametrize("name", ["v.bin", "v.txt", "v.bin.gz", "v.txt.gz"])
def test_vectors_come_back_exactly(name: str, tmp_path: Path) -> None:
    vectors = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)) * torch.logspace(-30, 30, 5)
    path = w2v.write_vectors(tmp_path / name.removesuffix(".gz"), ODD, vectors)
    if name.endswith(".gz"):
        (tmp_path / name).write_bytes(gzip.compress(path.read_bytes()))
    model = jingdu.create("word2vec", weights=tmp_path / name)
    assert model.words == ODD and torch.equal(model.input, vectors) and model.output is None
    assert model.origin.overrides == {"vocabulary": 6, "dim": 5, "spelling": len(spell(ODD))}
    assert torch.equal(model(torch.tensor([[2, 0]])), vectors[[2, 0]][None])
    for wrong in ({"dim": 7}, {"vocabulary": 11}, {"output": True}, {"tree": True}):  # another network than the file's
        with pytest.raises(Refused, match=r"v\.(bin|txt)"):
            jingdu.create("word2vec", weights=tmp_path / name, **wrong)


def test_large_binary_files_and_text_of_the_c_tool(tmp_path: Path) -> None:
    """Words across the borders of what is read at a time; six decimals, and a space before the line end."""
    rows = np.random.default_rng(0).standard_normal((3000, 400)).astype("<f4")
    lines = [f"word{i} ".encode() + row.tobytes() for i, row in enumerate(rows)]
    (tmp_path / "g.bin").write_bytes(b"3000 400\n" + b"".join(lines))  # without line ends, as gensim writes
    found, vectors = w2v.read_vectors(tmp_path / "g.bin")
    assert found == [f"word{i}" for i in range(3000)] and np.array_equal(vectors, rows)
    (tmp_path / "c.txt").write_text("2 3\nthe 0.100000 -0.200000 0.300000 \nNew York 1 2 3e0 \n")
    words, vectors = w2v.read_vectors(tmp_path / "c.txt")
    assert words == ["the", "New York"] and torch.allclose(vectors, torch.tensor([[0.1, -0.2, 0.3], [1, 2, 3]]))


@pytest.mark.parametrize(("content", "message"), [
    (b"2 3\na 1 2 3\n", "line 3: 0 numbers"),
    (b"2 3\na 1 2 3\nb 1 2 x\n", "line 3"),
    (b"1 3\na 1 2 3\nb 1 2 3\n", "more than the 1 words"),
    (b"2 3\na " + bytes(12) + b"\nb " + bytes(7), "the file is cut"),
    (b"1 3\na " + bytes(12) + b"\nb " + bytes(12), "more than the 1 words"),
    (b"900000000 300\na 1 2", "do not fit"),
    (b"\x1f\x8b\x08 broken", None),
    (b"word2vec", None),
])  # fmt: skip
def test_damaged_files_say_where(content: bytes, message: str | None, tmp_path: Path) -> None:
    (tmp_path / "v.bin").write_bytes(content)
    with pytest.raises(Refused, match=message):
        jingdu.create("word2vec", weights=tmp_path / "v.bin")
    assert message is not None or w2v.read_weights(tmp_path / "v.bin") is None


def test_words_that_no_file_can_hold(tmp_path: Path) -> None:
    for word in ("new york", "", "a\n"):
        with pytest.raises(UsageError, match="white space"):
            w2v.write_vectors(tmp_path / "x.txt", ["a", word], torch.zeros(2, 3))
    with pytest.raises(Refused, match="cannot be written"):
        w2v.write_vectors(tmp_path / "no" / "x.txt", ["a"], torch.zeros(1, 3))


def test_sizes_and_first_values() -> None:
    with torch.device("meta"):
        both = jingdu.create("word2vec", vocabulary=101, dim=7, output=True, tree=True)
    assert sum(p.numel() for p in both.parameters()) == 7 * (101 + 101 + 100)
    model = Word2Vec(501, 40, output=True, tree=True)
    assert model.input.abs().max() <= 0.5 / 40  # word2vec.c, InitNet
    assert model.input.detach().std() == pytest.approx(0.5 / 40 / math.sqrt(3), rel=0.05)
    assert not model.output.any() and not model.inner.any()
    with pytest.raises(UsageError):
        jingdu.create("word2vec", dim=0)


# Through the engine and the command line -------------------------------------------------------------


def _wrong_tensors_are_refused(checkpoint: Path, folder: Path) -> None:
    """A checkpoint whose manifest is in order, and one of whose tensors is renamed, missing or turned round."""
    files = {path.name: path.read_bytes() for path in checkpoint.iterdir() if path.name != "manifest.json"}
    tree, done = read_tree(checkpoint / "model.safetensors"), set()
    tensors = tree["network"]
    for how, which, instead in _changes(tensors, random.Random(3)):
        changed = {key: x for key, x in tensors.items() if key != which} | instead
        with pytest.raises(Refused, match=which):
            _create(folder / how, {**files, "model.safetensors": tree_bytes({**tree, "network": changed})}, "word2vec")
        done.add(how)
    assert done >= {"renamed", "dropped", "transposed"}


def test_a_run_resumes_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two documents; a pass for phrases, one that counts, two that learn: cut in three of them."""
    from jingdu.engine.training import Training

    lines = [" ".join(words) for words in speak(900, 1)]
    for name, some in (("train/a.txt", lines[:400]), ("train/b.txt", lines[400:800]), ("test/c.txt", lines[800:])):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("\n".join(some))
    frequent = " ".join(word for word, _ in Counter(" ".join(lines[:800]).split()).most_common(4))
    (tmp_path / "q.txt").write_text(f"{frequent}\nking queen yeti woman\n")
    stage = dataclasses.replace(
        jingdu.paper("word2vec").load().recipes["laptop"].stages[0],
        system="word2vec.Learning(epochs=2, phrases=(0.5,), min_count=2)", data=f"text(path={str(tmp_path)!r})",
        networks={"network": "word2vec(vocabulary=0, dim=6, output=True)"}, batch_size=1, save_every=1,
        eval_data=f"word2vec.questions(path={str(tmp_path / 'q.txt')!r})",
    )  # fmt: skip
    whole = train(stage, tmp_path / "whole", device="cpu", quiet=True)
    assert whole.metrics["known"] == 0.5
    for cut in (1, 3, 5):
        run = tmp_path / f"cut{cut}"
        with monkeypatch.context() as patch:
            advance = Training.advance

            def dying(self: Training, cut: int = cut, advance: Any = advance) -> dict[str, Any]:
                if self.step == cut:
                    raise RuntimeError("as a kill would")
                return advance(self)

            patch.setattr(Training, "advance", dying)
            with pytest.raises(RuntimeError, match="kill"):
                train(stage, run, device="cpu", quiet=True)
        train(stage, run, device="cpu", quiet=True, resume=True)
        files = [newest_checkpoint(folder) / "model.safetensors" for folder in (tmp_path / "whole", run)]
        assert files[0].read_bytes() == files[1].read_bytes()
        assert read_log(tmp_path / "whole") == read_log(run)
    _wrong_tensors_are_refused(newest_checkpoint(run), tmp_path / "wrong")
    model = jingdu.create("word2vec", weights=run)
    assert len(model.words) == len(model.input) > 300 and model.output is not None and int(model.counts.sum()) > 5000
    assert any("_" in word for word in model.words)
    lines = [line for line in read_log(run) if "lr" in line]
    assert [line["lr"] for line in lines] == pytest.approx([0.025 * x for x in (0.75, 0.5, 0.25, 1e-4)], rel=0.05)


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, vectors, questions = (str(tmp_path / name) for name in ("R", "v.bin", "q.txt"))
    (tmp_path / "mine.txt").write_text("\n".join(" ".join(words) for words in speak(4000, 3)))
    words = ["train", "word2vec", "--out", run, "--data", str(tmp_path / "mine.txt"), "--quiet", "--override", "dim=8"]
    assert main([*words, "--system", "word2vec.Learning(epochs=1, sample=1e-3, min_count=1)"]) == 0
    assert "loss" in capsys.readouterr().out
    asked = ["france", "paris - france + italy"]
    assert main(["predict", "word2vec", *asked, "--weights", run, "--out", vectors]) == 0
    assert vectors in capsys.readouterr().out
    assert main(["predict", "word2vec", "king ~ queen", "the king", "--weights", vectors, "--json", "--top", "3"]) == 0
    found = capsys.readouterr().out
    assert '"cosine"' in found and '"unknown"' in found
    Path(questions).write_text(": c\nfrance paris italy rome\n")
    for weights in (run, vectors):
        data = f"word2vec.questions(path={questions!r})"
        assert main(["eval", "word2vec", "--weights", weights, "--data", data]) == 0
        assert "analogy" in capsys.readouterr().out
    assert main(["predict", "word2vec", "qqqq", "--weights", run]) == 2
    assert "unknown word 'qqqq'" in capsys.readouterr().err
    assert main(["predict", "word2vec", "a", "--weights", run, "--top", "0"]) == 2


# Texts -----------------------------------------------------------------------------------------------


def test_the_planted_language() -> None:
    text = speak(4000, seed=1)
    assert text == speak(4000, seed=1) != speak(4000, seed=2) and {len(words) for words in text} == {12}
    counts = Counter(word for words in text for word in words)
    assert 1900 < len(counts) <= 2000
    assert all(word in counts for pairs in RELATIONS.values() for pair in pairs for word in pair)
    with pytest.raises(UsageError, match="needs"):
        speak(10, 1, vocabulary=700)


def test_prose_without_markup() -> None:
    page = (
        "{{Infobox|a={{b|c}}}}\n== Name ==\n'''Rome''' is the [[capital city|capital]] of [[Italy]].<ref name=x>no</ref>\n"
        "{| class=w\n|-\n| {{d}} e\n|}\n* [[File:a.png|thumb|The [[Tiber]] there]]A [http://x.org river]&nbsp;\n[[fr:Rome]]"
    )
    words = without_markup(page).replace(".", "").replace("]", "").split()
    assert words == ["Rome", "is", "the", "capital", "of", "Italy", "A", "river"]


def test_without_gensim_the_line_for_pip_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import metadata

    def absent(name: str) -> Any:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", absent)
    for ask in (lambda: w2v.wikipedia("train"), lambda: w2v.wikipedia("test"), w2v.shipped_similarities):
        with pytest.raises(Missing, match="pip install gensim"):
            ask()
