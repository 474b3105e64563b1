"""The report folder of a claim.

report.json   everything: the claim, values, tests, verdict, versions, machine; written last
report.md     for people: verdict first
picture.png   the claim's own picture, or a panel a test
report.html   the same on one page that needs nothing else
curves.json   the curves that the claim kept, if it kept some
"""

import base64
import html
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from jingdu.engine.checkpoint import write_whole
from jingdu.lab import style
from jingdu.lab.claims import Outcome
from jingdu.lab.judge import Judgement
from jingdu.lab.machine import machine, today, versions
from jingdu.lab.reports import duration, number

SMOKE = "SMOKE RUN with tiny budgets: the code was tried, nothing was shown."


def _finite(value: float) -> float | None:
    """JSON has no NaN; the reason of a verdict names it."""
    return value if math.isfinite(value) else None


def _test(judgement: Judgement) -> dict[str, Any]:
    test = judgement.test
    return {
        "about": test.about,
        "compared": test.compared,
        "statement": test.statement,
        "left": test.left,
        "right": test.right,
        "above": test.above,
        "below": test.below,
        "ratio": test.ratio,
        "per_seed": [_finite(v) for v in judgement.per_seed],
        "difference": _finite(judgement.difference),
        "interval": [_finite(v) for v in judgement.interval],
        "verdict": judgement.verdict,
        "reason": judgement.reason,
    }


def report_of(outcome: Outcome) -> dict[str, Any]:
    """All that a report says, as plain values of JSON."""
    claim = outcome.claim
    values = {
        arm: {name: [_finite(v) for v in row] for name, row in measures.items()}
        for arm, measures in outcome.values.items()
    }
    return {
        "paper": claim.paper,
        "claim": claim.name,
        "text": claim.text,
        "source": claim.source,
        "about": claim.about,
        "verdict": outcome.verdict,
        "reason": outcome.reason,
        "smoke": outcome.smoke,
        "tests": [_test(judgement) for judgement in outcome.judgements],
        "values": values,
        "seeds": outcome.seeds,
        "seeds_stated": claim.seeds,
        "deterministic": claim.deterministic,
        "date": today(),
        "minutes": round(outcome.minutes, 2),
        "minutes_cached": round(outcome.minutes_cached, 2),
        "seconds": [round(s, 1) for s in outcome.seconds],
        "machine": machine(),
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "picture_problem": outcome.problem,
    }


def write_report(outcome: Outcome) -> Exception | None:
    """Write the folder `outcome.folder`, each file whole. Returns what went wrong in the claim's figure function."""
    folder = outcome.folder
    picture, problem = _picture(outcome)
    outcome.problem = f"{type(problem).__name__}: {problem}" if problem is not None else ""
    report = report_of(outcome)
    write_whole(folder / "picture.png", picture)
    if outcome.curves:
        write_whole(folder / "curves.json", _curves(outcome))
    else:
        (folder / "curves.json").unlink(missing_ok=True)
    write_whole(folder / "report.md", as_markdown(report).encode())
    write_whole(folder / "report.html", as_html(report, picture).encode())
    text = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False)
    write_whole(folder / "report.json", (text + "\n").encode())
    return problem


def _picture(outcome: Outcome) -> tuple[bytes, Exception | None]:
    """The claim's picture as PNG; where its function fails, the default one and what it raised."""
    problem: Exception | None = None
    with style.styled():
        for draw in (*outcome.claim.drawings, style.draw_default):
            figure = style.new_figure()
            try:
                draw(figure, outcome)
                if outcome.smoke:
                    style.mark_smoke(figure)
                return style.png(figure), problem
            except Exception as error:  # whatever a figure function raises, the results stay
                if draw is style.draw_default:
                    raise
                problem = error
    raise AssertionError("the default picture is always tried")


def _curves(outcome: Outcome) -> bytes:
    """Curves with 6 significant digits: {name: {x, y, seeds: [{xs, ys}]}}."""

    def short(values: Sequence[float]) -> list[float | None]:
        return [float(f"{v:.6g}") if math.isfinite(v) else None for v in values]

    table = {
        name: {
            "x": outcome.axes[name][0],
            "y": outcome.axes[name][1],
            "seeds": [{"xs": short(xs), "ys": short(ys)} for xs, ys in seeds],
        }
        for name, seeds in outcome.curves.items()
    }
    return (json.dumps(table, ensure_ascii=False, allow_nan=False) + "\n").encode()


# For people ---------------------------------------------------------------------------------------

Rows = list[list[str]]


def _tests_table(report: Mapping[str, Any]) -> tuple[list[str], Rows]:
    rows = []
    for test in report["tests"]:
        side, margin = (">", test["above"]) if test["above"] is not None else ("<", test["below"])
        low, high = test["interval"]
        span = number(low) if low == high else f"{number(low)} to {number(high)}"
        verdict = test["verdict"] + (f": {test['reason']}" if test["reason"] else "")
        rows.append(
            [test["about"], test["compared"], f"{side} {number(margin)}", number(test["difference"]), span, verdict]
        )
    head = ["test", "compared", "asked", "found", "range" if report["deterministic"] else "95 % interval", "verdict"]
    if any(row[0] for row in rows):
        return head, rows
    return head[1:], [row[1:] for row in rows]


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean; none where a value is not finite."""
    return None if any(v is None for v in values) else math.fsum(v for v in values if v is not None) / len(values)


def _values_table(report: Mapping[str, Any]) -> tuple[list[str], Rows]:
    rows = [
        [arm, measure.replace("_", " "), number(_mean(values)), *map(number, values)]
        for arm, measures in report["values"].items()
        for measure, values in measures.items()
    ]
    return ["arm", "measure", "mean", *(f"seed {seed}" for seed in report["seeds"])], rows


def _facts(report: Mapping[str, Any]) -> list[str]:
    """Where and when, and how to do it again."""
    place, seen = report["machine"], report["versions"]
    saved = report["minutes_cached"]
    cached = f" ({duration(saved)} of it saved by parts trained before)" if saved else ""
    threads, seeds = report["threads"], len(report["seeds"])
    return [
        f"{report['date']}: {seeds} seed{'s' if seeds > 1 else ''}, {duration(report['minutes'])}{cached} on "
        f"{place['cpu']}, {place['cores']} cores, {threads} thread{'s' if threads > 1 else ''}, {place['system']}.",
        ", ".join(f"{name} {version}" for name, version in seen.items()) + ".",
    ]


def _again(report: Mapping[str, Any]) -> str:
    return f"jingdu reproduce {report['paper']} --claim {report['claim']}{' --smoke' if report['smoke'] else ''}"


def _rule(report: Mapping[str, Any]) -> str:
    if report["deterministic"]:
        return "No chance plays a part: the values are compared with the margins as they are."
    return (
        "A test holds if every seed agrees in direction and the 95 % Student-t interval of the paired difference (or "
        "ratio) over the seeds clears the margin, which stood before the run."
    )


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _table(head: Sequence[str], rows: Rows) -> list[str]:
    return [_row(head), _row(["---"] * len(head)), *map(_row, rows)]


def as_markdown(report: Mapping[str, Any]) -> str:
    """The report for people, verdict first."""
    lines = [f"# {report['paper']}: {report['claim'].replace('_', ' ')}", ""]
    if report["smoke"]:
        lines += [f"**{SMOKE}**", ""]
    reason = f" ({report['reason']})" if report["reason"] and not report["smoke"] else ""
    lines += [f"**{report['verdict'].upper()}**{reason}: {report['text']} [{report['source']}]", ""]
    if report["about"]:
        lines += [report["about"], ""]
    lines += ["## Tests", "", *_table(*_tests_table(report)), "", _rule(report), ""]
    lines += ["![The measured values](picture.png)", ""]
    if report["picture_problem"]:
        lines += [f"The claim's own picture could not be drawn: {report['picture_problem']}", ""]
    lines += ["## Values", "", *_table(*_values_table(report)), ""]
    lines += ["## Again", "", f"    {_again(report)}", "", *_facts(report), ""]
    return "\n".join(lines)


_STYLE = """
:root { color-scheme: light dark; --ink: #1d1d1f; --quiet: #62626a; --line: #d9d9de; --page: #fff; --panel: #f6f6f8;
  --holds: #00735a; --fails: #b33c00; --inconclusive: #62626a; --smoke: #b33c00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8ea; --quiet: #a2a2aa; --line: #3a3a40; --page: #17171a;
  --panel: #212125; --holds: #4fd1ae; --fails: #ff9a66; --inconclusive: #b6b6bd; --smoke: #ff9a66; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI",
  "Noto Sans", "Noto Sans SC", sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.05rem; font-weight: 600; color: var(--quiet); margin: 0 0 .75rem; }
h2 { font-size: 1.05rem; margin: 2.25rem 0 .5rem; }
.text { font-size: 1.35rem; line-height: 1.4; margin: .25rem 0 .5rem; }
.verdict { display: inline-block; font-weight: 700; letter-spacing: .04em; text-transform: uppercase; font-size: .95rem;
  padding: .15rem .6rem; border: 1.5px solid currentColor; border-radius: .4rem; }
.holds { color: var(--holds); } .fails { color: var(--fails); } .inconclusive { color: var(--inconclusive); }
.smoke { color: var(--smoke); }
.quiet { color: var(--quiet); }
.banner { border: 2px solid var(--smoke); color: var(--smoke); padding: .6rem 1rem; border-radius: .5rem;
  font-weight: 700; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; width: 100%; }
th, td { text-align: left; padding: .4rem .8rem .4rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--quiet); font-weight: 600; white-space: nowrap; }
td.number { font-variant-numeric: tabular-nums; white-space: nowrap; }
img { display: block; width: 100%; height: auto; background: #fff; border-radius: .5rem; border: 1px solid var(--line);
  padding: .5rem; margin: 1.5rem 0; }
pre { background: var(--panel); padding: .75rem 1rem; border-radius: .5rem; overflow-x: auto; font-size: .9rem; }
"""


def as_html(report: Mapping[str, Any], picture: bytes) -> str:
    """The report as one page: no script, nothing from elsewhere, light and dark."""

    def say(text: object) -> str:
        return html.escape(str(text))

    def table(head: Sequence[str], rows: Rows, verdicts: bool) -> str:
        def cell(i: int, text: str) -> str:
            if verdicts and i == len(head) - 1:
                return f'<td class="{say(text.partition(":")[0])}">{say(text)}</td>'
            return f"<td class={'words' if i < 2 else 'number'}>{say(text)}</td>"

        body = "".join(f"<tr>{''.join(cell(i, text) for i, text in enumerate(row))}</tr>" for row in rows)
        return (
            f'<div class="wide"><table><thead><tr>{"".join(f"<th scope=col>{say(h)}</th>" for h in head)}</tr></thead>'
            f"<tbody>{body}</tbody></table></div>"
        )

    title = f"{report['paper']}: {report['claim'].replace('_', ' ')}"
    reason = f' <span class="quiet">{say(report["reason"])}</span>' if report["reason"] and not report["smoke"] else ""
    problem = report["picture_problem"]
    parts = [
        f"<h1>{say(title)}</h1>",
        f'<p class="banner">{say(SMOKE)}</p>' if report["smoke"] else "",
        f'<p><span class="verdict {say(report["verdict"])}">{say(report["verdict"])}</span>{reason}</p>',
        f'<p class="text">{say(report["text"])}</p><p class="quiet">{say(report["source"])}</p>',
        f"<p>{say(report['about'])}</p>" if report["about"] else "",
        f'<img alt="The measured values, drawn" src="data:image/png;base64,{base64.b64encode(picture).decode()}">',
        f"<p>The claim's own picture could not be drawn: {say(problem)}</p>" if problem else "",
        f'<h2>Tests</h2>{table(*_tests_table(report), True)}<p class="quiet">{say(_rule(report))}</p>',
        f"<h2>Values</h2>{table(*_values_table(report), False)}",
        f"<h2>Again</h2><pre>{say(_again(report))}</pre>",
        *(f'<p class="quiet">{say(line)}</p>' for line in _facts(report)),
    ]
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; style-src '
        f"'unsafe-inline'\"><title>{say(title)}</title><style>{_STYLE}</style>"
    )
    body = "\n".join(part for part in parts if part)
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body><main>\n{body}\n</main></body></html>\n'
