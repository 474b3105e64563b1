"""A claim run over its seeds, and the report that it leaves."""

import base64
import html.parser
import io
import json
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from jingdu.errors import UsageError
from jingdu.lab import Claim, Lab, Outcome, Test, claim
from jingdu.lab.reports import number, read_report, summary
from jingdu.lab.run import run_claim
from jingdu.lab.style import draw_dots, new_figure

DEEP = Test("deep.error", "flat.error", below=-0.1, about="deep has the lower error")
FAST = Test("deep.steps", "flat.steps", below=0.9, ratio=True)


def deep(lab: Lab, seed: int) -> dict[str, dict[str, Any]]:
    lab.curve("deep", [1, 2, 3], [0.9, 0.5, 0.1 + 0.01 * seed], x="step", y="error")
    lab.image("sample", np.full((4, 6), seed / 10))
    values = {"error": np.float32(0.125 * seed), "steps": torch.tensor(30 + seed)}
    return {"deep": values, "flat": {"error": 0.125 * seed + 0.5, "steps": 60}}


def make(measure: Any = deep, tests: tuple[Test, ...] = (DEEP, FAST), **options: Any) -> Claim:
    return claim("Deep <nets> win | always.", source="Tab. 2", tests=tests, **options)(measure)


def picture(folder: Path) -> np.ndarray:
    """Pixels [height, width, 3] of a report's picture."""
    return np.asarray(Image.open(io.BytesIO((folder / "picture.png").read_bytes())).convert("RGB"))


def test_values_are_collected_per_seed(tmp_path: Path) -> None:
    said: list[str] = []
    outcome = run_claim(make(), out=tmp_path / "new" / "folder", progress=said.append)
    assert outcome.verdict == "holds" and outcome.reason == ""
    assert outcome.seeds == [0, 1, 2]
    assert outcome.values["deep"] == {"error": [0.0, 0.125, 0.25], "steps": [30.0, 31.0, 32.0]}
    assert outcome.curves["deep"][2] == ([1.0, 2.0, 3.0], pytest.approx([0.9, 0.5, 0.12]))
    assert outcome.images["sample"].tolist() == np.zeros((4, 6)).tolist()
    assert [j.verdict for j in outcome.judgements] == ["holds", "holds"]
    assert len(outcome.seconds) == 3 and outcome.folder == tmp_path / "new" / "folder"
    assert said[0] == "test_run.deep: seed 0, 1 of 3" and "holds" in said[-1] and str(outcome.folder) in said[-1]
    names = {"curves.json", "picture.png", "report.html", "report.json", "report.md"}
    assert {path.name for path in outcome.folder.iterdir()} == names


def test_the_report_holds_everything(tmp_path: Path) -> None:
    outcome = run_claim(make(about="Smaller."), out=tmp_path)
    report = json.loads((tmp_path / "report.json").read_text("utf-8"))
    assert (report["paper"], report["claim"], report["verdict"], report["smoke"]) == (
        "test_run", "deep", "holds", False,
    )  # fmt: skip
    assert (report["text"], report["source"], report["about"]) == ("Deep <nets> win | always.", "Tab. 2", "Smaller.")
    assert report["values"] == outcome.values
    first, second = report["tests"]
    assert (first["below"], first["above"], first["ratio"]) == (-0.1, None, False)
    assert first["per_seed"] == [-0.5, -0.5, -0.5] and first["interval"] == [-0.5, -0.5]
    assert second["difference"] == pytest.approx((30 * 31 * 32) ** (1 / 3) / 60)
    assert second["statement"] == "deep.steps / flat.steps < 0.9"
    assert report["versions"]["torch"] == torch.__version__ and {"python", "numpy", "jingdu"} <= set(report["versions"])
    assert report["threads"] == torch.get_num_threads()
    assert set(report["machine"]) == {"cpu", "capability", "cores", "system"}
    assert report["machine"]["cores"] >= 1 and report["machine"]["cpu"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", report["date"])
    assert report["minutes"] >= 0 and len(report["seconds"]) == 3
    curves = json.loads((tmp_path / "curves.json").read_text())
    assert curves["deep"]["x"] == "step" and curves["deep"]["seeds"][1] == {"xs": [1, 2, 3], "ys": [0.9, 0.5, 0.11]}


def test_the_report_names_no_host_and_no_user(tmp_path: Path) -> None:
    import getpass
    import platform

    run_claim(make(), out=tmp_path / "report")
    everything = "".join((tmp_path / "report" / name).read_text() for name in ("report.json", "report.md"))
    assert platform.node() not in everything and str(tmp_path) not in everything
    assert re.search(rf"\b{re.escape(getpass.getuser())}\b", everything) is None


class _Reader(html.parser.HTMLParser):
    """Tags, words and pictures of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.words = ""
        self.sources: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in ("meta", "img"):
            self.open.append(tag)
        found = dict(attributes)
        self.sources += [found[name] for name in ("src", "href") if name in found]
        assert not any(name.startswith("on") for name in found)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


def test_the_page_needs_nothing_else(tmp_path: Path) -> None:
    run_claim(make(), out=tmp_path)
    text = (tmp_path / "report.html").read_text("utf-8")
    page = _Reader(text)
    assert page.open == [] and "script" not in page.tags and "link" not in page.tags
    assert "nets" not in page.tags and "Deep <nets> win | always." in page.words
    (source,) = page.sources
    assert base64.b64decode(source.removeprefix("data:image/png;base64,")) == (tmp_path / "picture.png").read_bytes()
    assert "prefers-color-scheme: dark" in text and "http://" not in text and "https://" not in text
    assert "holds" in page.words and "deep has the lower error" in page.words and "−0.5" in page.words


def test_the_markdown_says_the_verdict_first(tmp_path: Path) -> None:
    run_claim(make(), out=tmp_path)
    lines = (tmp_path / "report.md").read_text("utf-8").splitlines()
    assert lines[0] == "# test_run: deep"
    assert lines[2].startswith("**HOLDS**: Deep <nets> win")
    assert "| deep | error | 0.125 | 0 | 0.125 | 0.25 |" in lines
    assert "| deep has the lower error | deep.error − flat.error | < −0.1 | −0.5 | −0.5 | holds |" in lines
    assert "    jingdu reproduce test_run --claim deep" in lines
    assert "![The measured values](picture.png)" in lines
    columns = {line.count("|") for line in lines if line.startswith("|")}
    assert columns == {7}  # both tables have six columns here, and no cell adds one


def test_seeds_fix_the_global_randomness(tmp_path: Path) -> None:
    def draws(lab: Lab, seed: int) -> dict[str, dict[str, float]]:
        return {"a": {"torch": torch.rand(()).item(), "numpy": np.random.rand(), "python": random.random()}}

    made = make(draws, (Test("a.torch", 0, above=0),))
    first = run_claim(made, out=tmp_path / "1").values
    torch.rand(7), np.random.rand(7), random.random()
    assert run_claim(made, out=tmp_path / "2").values == first
    assert all(len(set(first["a"][name])) == 3 for name in first["a"])


def test_fewer_seeds_prove_less_and_more_are_welcome(tmp_path: Path) -> None:
    fewer = run_claim(make(), seeds=2, out=tmp_path)
    # Each of its tests holds on two seeds (a ratio of 0.51 [0.41, 0.63], asked below 0.9), and yet:
    assert fewer.verdict == "inconclusive" and [j.verdict for j in fewer.judgements] == ["holds", "holds"]
    text = (tmp_path / "report.md").read_text()
    assert "**INCONCLUSIVE** (2 of the 3 seeds that the claim states were run)" in text
    assert run_claim(make(), seeds=1, out=tmp_path).verdict == "inconclusive"
    assert run_claim(make(), seeds=5, out=tmp_path).verdict == "holds"
    with pytest.raises(UsageError, match="seeds 0"):
        run_claim(make(), seeds=0, out=tmp_path)


def test_a_deterministic_claim_runs_once(tmp_path: Path) -> None:
    outcome = run_claim(make(tests=(DEEP,), seeds=1), out=tmp_path)
    assert outcome.seeds == [0] and outcome.verdict == "holds"
    text = (tmp_path / "report.md").read_text()
    assert "No chance plays a part" in text and "95 %" not in text


def test_nan_is_reported_and_never_holds(tmp_path: Path) -> None:
    def broken(lab: Lab, seed: int) -> dict[str, dict[str, float]]:
        lab.curve("c", [0, 1], [1.0, float("nan")])
        return {"a": {"x": float("nan") if seed == 1 else 1.0, "y": float("inf")}}

    made = make(broken, (Test("a.x", 0, above=0), Test("a.y", 0, above=0)))
    outcome = run_claim(made, out=tmp_path)
    assert outcome.verdict == "inconclusive"
    text = (tmp_path / "report.json").read_text()
    report = json.loads(text)
    assert "NaN" not in text and "Infinity" not in text
    assert report["values"]["a"] == {"x": [1.0, None, 1.0], "y": [None, None, None]}
    assert report["tests"][0]["reason"] == "a.x is nan at seed 1"
    assert report["tests"][1]["reason"] == "a.y is inf at seed 0"
    assert "a.x is nan at seed 1" in (tmp_path / "report.md").read_text()
    assert "a.x is nan at seed 1" in summary(report)


def test_smoke_runs_pass_for_nothing(tmp_path: Path) -> None:
    outcome = run_claim(make(), out=tmp_path / "smoke", smoke=True)
    assert outcome.verdict == "smoke" and outcome.seeds == [0, 1]
    report = read_report(outcome.folder)
    assert report is not None and report["smoke"] is True and report["verdict"] == "smoke"
    for name in ("report.md", "report.html"):
        text = (outcome.folder / name).read_text()
        assert "SMOKE RUN" in text and "HOLDS" not in text
    assert "reproduce test_run --claim deep --smoke" in (outcome.folder / "report.md").read_text()
    assert summary(report).startswith("smoke run, shows nothing")
    assert run_claim(make(seeds=1, tests=(DEEP,)), out=tmp_path / "one", smoke=True).seeds == [0]
    # The picture says so, too.
    real = run_claim(make(), out=tmp_path / "real")
    pixels = [picture(o.folder).astype(int) for o in (real, outcome)]
    red = [((p[..., 0] - p[..., 2]) > 60).mean() for p in pixels]
    assert red[1] > red[0] + 0.01


def test_a_smoke_run_never_replaces_a_real_report(tmp_path: Path) -> None:
    called: list[int] = []

    def count(lab: Lab, seed: int) -> dict[str, dict[str, float]]:
        called.append(seed)
        return {"a": {"x": 1.0}}

    made = make(count, (Test("a.x", 0, above=0),))
    run_claim(made, out=tmp_path)
    before = (tmp_path / "report.json").read_bytes()
    with pytest.raises(UsageError, match="holds a real report"):
        run_claim(made, out=tmp_path, smoke=True)
    assert called == [0, 1, 2] and (tmp_path / "report.json").read_bytes() == before
    run_claim(made, out=tmp_path / "smoke", smoke=True)
    run_claim(made, out=tmp_path / "smoke", smoke=True)
    assert run_claim(made, out=tmp_path / "smoke").verdict == "holds"
    assert run_claim(made, out=tmp_path).verdict == "holds"


def test_a_folder_that_cannot_be_written_is_known_at_once(tmp_path: Path) -> None:
    def never(lab: Lab, seed: int) -> dict[str, dict[str, float]]:
        raise AssertionError("measured before the folder was tried")

    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write there"):
        run_claim(make(never), out=tmp_path / "file" / "report")


def test_missing_measures_are_known_after_the_first_seed(tmp_path: Path) -> None:
    called: list[int] = []

    def short(lab: Lab, seed: int) -> dict[str, dict[str, float]]:
        called.append(seed)
        return {"deep": {"error": 1.0}}

    with pytest.raises(UsageError, match=r"'flat\.error', which the claim did not measure"):
        run_claim(make(short), out=tmp_path)
    assert called == [0]

    def uneven(lab: Lab, seed: int) -> dict[str, dict[str, float]]:
        return {"a": {"x": 1.0}} if seed == 0 else {"a": {"x": 1.0, "y": 2.0}}

    with pytest.raises(UsageError, match="different things"):
        run_claim(make(uneven, (Test("a.x", 0, above=0),)), out=tmp_path)


def test_a_failing_figure_costs_only_the_picture(tmp_path: Path) -> None:
    made = make()

    @made.figure
    def draw(figure: Any, outcome: Outcome) -> None:
        figure.subplots()
        raise KeyError("no such curve")

    with pytest.warns(
        RuntimeWarning, match=r"test_run\.deep: its figure function failed \(KeyError.*test_run\.py line"
    ):
        outcome = run_claim(made, out=tmp_path)
    assert outcome.verdict == "holds" and "no such curve" in outcome.problem
    report = read_report(tmp_path)
    assert report is not None and report["verdict"] == "holds" and "no such curve" in report["picture_problem"]
    assert picture(tmp_path).shape[1] == 1260
    for name in ("report.md", "report.html"):
        assert "could not be drawn: KeyError" in (tmp_path / name).read_text()


def test_the_figure_function_gets_the_outcome(tmp_path: Path) -> None:
    made, seen = make(), []

    @made.figure
    def draw(figure: Any, outcome: Outcome) -> None:
        seen.append((outcome.values, outcome.curves, outcome.images, outcome.judgements, outcome.verdict))
        axes = figure.subplots()
        axes.set_facecolor("#00ff00")

    outcome = run_claim(made, out=tmp_path)
    assert seen == [(outcome.values, outcome.curves, outcome.images, outcome.judgements, "holds")]
    assert (picture(tmp_path) == [0, 255, 0]).all(-1).mean() > 0.3


def test_dots_and_their_means(tmp_path: Path) -> None:
    outcome = run_claim(make(), out=tmp_path)
    axes = new_figure().subplots()
    draw_dots(
        axes, outcome, {"flat": "Flat", "deep": "Deep"}, "error", scale=100, colours={"flat": "red", "deep": "blue"}
    )
    assert [text.get_text() for text in axes.get_xticklabels()] == ["Flat", "Deep"]
    assert [text.get_text() for text in axes.texts] == ["62.5", "12.5"]
    first, second = (dots.get_offsets().tolist() for dots in axes.collections)
    assert first == [[0, 50], [0, 62.5], [0, 75]] and second == [[1, 0], [1, 12.5], [1, 25]]
    assert "3 seeds" in axes.get_title(loc="left") + axes.get_title()


def test_old_curves_do_not_stay(tmp_path: Path) -> None:
    run_claim(make(), out=tmp_path)
    assert (tmp_path / "curves.json").exists()
    run_claim(make(lambda lab, seed: {"a": {"x": 1.0}}, (Test("a.x", 0, above=0),)), out=tmp_path)
    assert not (tmp_path / "curves.json").exists()


def test_summaries(tmp_path: Path) -> None:
    def wrong(lab: Lab, seed: int) -> dict[str, dict[str, float]]:
        return {"a": {"x": -1.0 - seed / 10, "y": 1.0}, "b": {"x": 0.0}}

    good, bad = Test("a.y", 0, above=0), Test("a.x", "b.x", above=0)
    run_claim(make(wrong, (good, bad)), out=tmp_path)
    report = read_report(tmp_path)
    assert report is not None
    machine = report["machine"]
    report |= {"date": "2026-11-24", "minutes": 2.13}
    # -1, -1.1, -1.2: mean -1.1, half width 0.2484138
    assert summary(report) == (
        "fails: a.x − b.x > 0: −1.1 [−1.35, −0.852] (the interval lies on the wrong side of the margin); and 1 more test "
        f"(3 seeds, 2026-11-24, 2.1 min on {machine['cpu']}, {machine['cores']} cores)"
    )
    run_claim(make(wrong, (good,), seeds=1), out=tmp_path)
    report = read_report(tmp_path)
    assert report is not None and summary(report).startswith("holds: a.y > 0: 1 [1, 1] (1 seed, ")
    assert "\n" not in summary(report)


def test_reports_that_cannot_be_read_are_none(tmp_path: Path) -> None:
    assert read_report(tmp_path) is None
    (tmp_path / "report.json").write_text('{"verdict": "ho')
    assert read_report(tmp_path) is None
    (tmp_path / "report.json").write_text("[]")
    assert read_report(tmp_path) is None


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"), (0.1, "0.1"), (0.123456, "0.1235"), (-0.00123456, "−0.001235"), (12.3456, "12.35"), (100, "100"),
        (1234.5678, "1235"), (123456.7, "123457"), (2e6, "2.000e+06"), (1e-5, "1.000e−05"), (None, "–"),
        (float("nan"), "–"), (float("inf"), "–"), (1.0, "1"), (0.99999, "1"),
    ],
)  # fmt: skip
def test_numbers_for_people(value: float | None, text: str) -> None:
    assert number(value) == text


def test_pictures_are_wide_enough_and_small(tmp_path: Path) -> None:
    made = make()

    @made.figure
    def draw(figure: Any, outcome: Outcome) -> None:
        figure.set_size_inches(7, 7)
        figure.subplots().imshow(np.random.default_rng(0).random((997, 991, 3)))

    run_claim(made, out=tmp_path)
    noisy = (tmp_path / "picture.png").read_bytes()
    assert len(noisy) <= 200_000
    made.drawings.clear()
    run_claim(made, out=tmp_path)
    usual = (tmp_path / "picture.png").read_bytes()
    assert len(usual) <= 200_000 and picture(tmp_path).shape[1] == 1260
