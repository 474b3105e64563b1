"""The command line: exit codes, messages without tracebacks, and no torch where none is needed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from jingdu import canon, verbs
from jingdu.cli import _stage_flags, main

TRAIN = ["train", "resnet", "--epochs", "1", "--batch-size", "256", "--save-every", "1", "--quiet"]


def fails(capsys: pytest.CaptureFixture[str], code: int, *words: str) -> str:
    """Run a command that must end with `code`; its one message."""
    assert main([str(word) for word in words]) == code
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("jingdu: ") and "Traceback" not in message
    return message


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "R"
    assert main([*TRAIN, "--out", str(folder)]) == 0
    return folder


def in_process(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=120)


def test_list_and_show_import_no_torch() -> None:
    code = "import sys, jingdu.cli as c; r = c.main({!r}); assert 'torch' not in sys.modules; sys.exit(r)"
    for words in (["list"], ["list", "--json"], ["show", "resnet"], ["show", "resnet", "--lang", "zh"], ["--help"]):
        done = in_process("-c", code.format(words))
        assert done.returncode == 0, done.stderr
        assert done.stdout


def test_import_is_light() -> None:
    code = "import time; t = time.perf_counter(); import jingdu, sys; assert 'torch' not in sys.modules; print(time.perf_counter() - t)"
    assert min(float(in_process("-c", code).stdout) for _ in range(3)) < 0.1


def test_show_says_what_a_reader_wants(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "resnet"]) == 0
    text = capsys.readouterr().out
    for part in ("Deep Residual Learning", "resnet50", "25,557,032", "degradation", "builds on", "lecture"):
        assert part in text
    assert main(["show", "resnet", "--lang", "zh"]) == 0
    assert "恒等捷径" in capsys.readouterr().out
    assert main(["show", "resnet", "--source"]) == 0
    assert "class Bottleneck" in capsys.readouterr().out
    assert main(["show", "resnet", "--bib"]) == 0
    assert "1512.03385" in capsys.readouterr().out


def test_list_filters(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--json", "--years", "2015-2015", "--area", "cnn"]) == 0
    assert [row["key"] for row in json.loads(capsys.readouterr().out)] == ["unet", "resnet"]
    fails(capsys, 2, "list", "--area", "cmm")
    fails(capsys, 2, "list", "--years", "soon")


def test_wrong_usage(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "train" in fails(capsys, 2, "trian", "resnet")
    assert "resnet" in fails(capsys, 2, "show", "resnte")
    assert "resnet" in fails(capsys, 2, "train", "resnte", "--out", tmp_path / "a")
    assert "laptop" in fails(capsys, 2, "train", "resnet", "--preset", "labtop", "--out", tmp_path / "a")
    assert "degradation" in fails(capsys, 2, "reproduce", "resnet", "--claim", "degradaton")
    assert "resnet50" in fails(capsys, 2, "train", "resnet", "--variant", "resnet5", "--out", tmp_path / "a")
    assert "--lr" in fails(capsys, 2, "train", "resnet", "--lr", "fast", "--out", tmp_path / "a")
    assert "learning" not in fails(capsys, 2, "train", "resnet", "--lr", "fast", "--out", tmp_path / "a")
    for flag, value in (("lr", "-1"), ("batch-size", "0"), ("steps", "0"), ("epochs", "-2"), ("accumulate", "0")):
        message = fails(capsys, 2, "train", "resnet", f"--{flag}", value, "--out", tmp_path / "a")
        assert f"{flag} is {value}" in message and "must be" in message
    assert not (tmp_path / "a").exists()
    assert "--lrr" in fails(capsys, 2, "train", "resnet", "--lrr", "1", "--out", tmp_path / "a")
    assert "cosine" in fails(capsys, 2, "train", "resnet", "--schedule", "cosin", "--out", tmp_path / "b")
    assert "digits" in fails(capsys, 2, "train", "resnet", "--data", "digit", "--out", tmp_path / "c")
    assert "device" in fails(capsys, 2, "train", "resnet", "--device", "tpu", "--out", tmp_path / "d")
    assert "weights" in fails(capsys, 2, "predict", "resnet", "x.jpg")


RECIPES = [(paper.key, preset) for paper in canon.papers() for preset in paper.load().recipes]


@pytest.mark.parametrize("key, preset", RECIPES)
def test_every_recipe_has_its_fields_as_flags(capsys: pytest.CaptureFixture[str], key: str, preset: str) -> None:
    assert main(["train", key, "--preset", preset, "--fields"]) == 0
    assert "batch-size" in capsys.readouterr().out
    stages = list(verbs.recipe(key, preset).stages)
    where = f"{stages[-1].name}." if len(stages) > 1 else ""
    changed = _stage_flags(stages, [f"--{where}lr", "0.5", f"--{where}steps", "3"], "jingdu train")
    assert (changed[-1].lr, changed[-1].steps, changed[-1].epochs) == (0.5, 3, None)
    assert changed[:-1] == stages[:-1] and [stage.name for stage in changed] == [stage.name for stage in stages]


def test_a_folder_whose_run_never_began_can_be_used(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    fails(capsys, 2, "train", "resnet", "--data", "digit", "--out", tmp_path / "a")
    assert (
        main(["train", "resnet", "--steps", "1", "--override", "width=2", "--quiet", "--out", str(tmp_path / "a")]) == 0
    )


def test_folders_are_kept(capsys: pytest.CaptureFixture[str], run: Path, tmp_path: Path) -> None:
    assert "--resume" in fails(capsys, 2, *TRAIN, "--out", run)
    assert "another recipe" in fails(capsys, 2, *TRAIN, "--lr", "0.3", "--resume", "--out", run)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    assert "not empty" in fails(capsys, 2, *TRAIN, "--out", tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years of work"
    (tmp_path / "file").write_text("")
    fails(capsys, 2, *TRAIN, "--out", tmp_path / "file" / "run")
    fails(capsys, 2, "reproduce", "resnet", "--smoke", "--out", tmp_path / "file" / "run")


def test_resume_of_a_finished_run_does_nothing(capsys: pytest.CaptureFixture[str], run: Path) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != "lock"}
    assert main([*TRAIN, "--out", str(run), "--resume"]) == 0
    assert before == {path: path.read_bytes() for path in before}


def test_predict_from_a_run(capsys: pytest.CaptureFixture[str], run: Path, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (11, 13, 3), dtype=np.uint8)
    for name in ("a.png", "b.jpg"):
        Image.fromarray(pixels).save(tmp_path / name)
    assert main(["predict", "resnet", str(tmp_path), "--weights", str(run), "--json", "--top", "3"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 2 and all(len(row["top"]) == 3 for row in rows)
    assert {entry["class"] for entry in rows[0]["top"]} <= {str(c) for c in range(10)}
    assert main(["predict", "resnet", str(tmp_path / "a.png"), "--weights", str(run)]) == 0
    assert "a.png" in capsys.readouterr().out
    fails(capsys, 4, "predict", "resnet", tmp_path / "none.jpg", "--weights", run)
    (tmp_path / "text.jpg").write_text("not an image")
    assert "text.jpg" in fails(capsys, 4, "predict", "resnet", tmp_path / "text.jpg", "--weights", run)
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:100])
    assert "cut.png" in fails(capsys, 4, "predict", "resnet", tmp_path / "cut.png", "--weights", run)


def test_eval_of_a_run(capsys: pytest.CaptureFixture[str], run: Path) -> None:
    assert main(["eval", "resnet", "--weights", str(run), "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)
    assert measured == pytest.approx(json.loads((run / "result.json").read_text())["metrics"])


class _Gadget:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch executed",)


def test_weights_that_are_none(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("x.png")
    Path("text.safetensors").write_text("no weights at all")
    torch.save({"a": _Gadget()}, "evil.pth")
    for name in ("text.safetensors", "evil.pth"):
        assert name in fails(capsys, 4, "predict", "resnet50", "x.png", "--weights", name)
    assert not Path("executed").exists()
    assert main(["predict", "resnet50", "x.png", "--weights", "absent.pth"]) in (2, 3)


def test_unreachable_hub(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    started = time.monotonic()
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    message = fails(capsys, 3, "predict", "resnet50", "x.png", "--weights", "hf:timm/resnet50.a1_in1k")
    assert "HF_ENDPOINT" in message and time.monotonic() - started < 20


@pytest.mark.slow
def test_kill_and_resume_give_the_same_bits(tmp_path: Path) -> None:
    """kill -9 at several moments, --resume each time: the weights and the log of the run that was let alone."""
    words = ["-m", "jingdu", "train", "resnet", "--epochs", "3", "--seed", "7", "--quiet", "--save-every", "3"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    whole = subprocess.run([sys.executable, *words, "--out", tmp_path / "A"], env=environment, capture_output=True)
    assert whole.returncode == 0, whole.stderr
    killed = 0
    for attempt in range(12):
        process = subprocess.Popen(
            [sys.executable, *words, "--out", tmp_path / "B", "--resume"], env=environment,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        log = tmp_path / "B" / "log.jsonl"
        seen = log.stat().st_size if log.exists() else 0
        # Let it get at least a few steps further, then kill it without warning; the last attempts may finish.
        while attempt < 4 and process.poll() is None and (not log.exists() or log.stat().st_size < seen + 700):
            time.sleep(0.01)
        if attempt < 4 and process.poll() is None:
            process.send_signal(signal.SIGKILL)
            killed += 1
        if process.wait() == 0:
            break
    assert killed >= 2
    last = sorted((tmp_path / "A" / "checkpoints").iterdir())[-1].name
    ours = load_file(tmp_path / "B" / "checkpoints" / last / "model.safetensors")
    theirs = load_file(tmp_path / "A" / "checkpoints" / last / "model.safetensors")
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert (tmp_path / "A" / "log.jsonl").read_bytes() == (tmp_path / "B" / "log.jsonl").read_bytes()


def test_sigterm_saves_and_says_how_to_go_on(tmp_path: Path) -> None:
    words = ["-m", "jingdu", "train", "resnet", "--epochs", "50", "--save-every", "100000", "--quiet"]
    process = subprocess.Popen([sys.executable, *words, "--out", tmp_path / "R"], stderr=subprocess.PIPE, text=True)
    log = tmp_path / "R" / "log.jsonl"
    while not log.exists() or log.stat().st_size < 500:
        assert process.poll() is None
        time.sleep(0.02)
    process.terminate()
    _, message = process.communicate(timeout=30)
    assert process.returncode == 130 and "--resume" in message
    assert len(list((tmp_path / "R" / "checkpoints").iterdir())) == 1
