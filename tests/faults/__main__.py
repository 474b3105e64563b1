"""python -m tests.faults [--full] [--row N ...] [--seed S] [--out FOLDER]: do the faults and write what came of them.

Some rows alone take their places in the report that is there, if that is of the same kind: the same counts, seed,
machine and versions.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from jingdu.lab.machine import machine, versions
from tests.faults.case import Outcome, measure
from tests.faults.rows import ROWS


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--full", action="store_true", help="the whole counts; else the share of each commit")
    parser.add_argument("--row", type=int, nargs="+", choices=sorted(ROWS), default=sorted(ROWS), help="only these")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="results/faults for whole counts, else runs/faults")
    flags = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    os.environ["HF_HUB_OFFLINE"] = "1"
    out = flags.out or Path("results/faults" if flags.full else "runs/faults")
    kind = json.loads(json.dumps(
        {"full": flags.full, "seed": flags.seed, "machine": machine(), "versions": versions()}
    ))  # fmt: skip
    rows = {} if set(flags.row) == set(ROWS) else read(out, kind)
    outcomes = []
    for number in flags.row:
        row = ROWS[number]
        with tempfile.TemporaryDirectory(prefix="jingdu-faults-") as folder:
            os.environ["JINGDU_CACHE"] = f"{folder}/cache"
            outcome = measure(row, row.full if flags.full else row.share, flags.seed, Path(folder) / "row")
        outcomes.append(outcome)
        print(f"row {number}: {outcome.passed} of {outcome.done} in {outcome.duration:.0f} s", file=sys.stderr)
        for failure in outcome.failures[:5]:
            print(f"  {failure}", file=sys.stderr)
        rows[number] = entry(outcome)
        write(rows, kind, out)
    print(f"wrote {out}/report.md and report.json")
    return 0 if all(o.passed == o.done for o in outcomes) else 1


def entry(outcome: Outcome) -> dict[str, Any]:
    """A row of the report."""
    row = outcome.row
    return {"row": row.number, "event": row.event, "promise": row.promise, "done": outcome.done,
            "passed": outcome.passed, "worst_seconds": round(outcome.worst, 3), "seconds": round(outcome.duration, 1),
            "failures": outcome.failures}  # fmt: skip


def read(out: Path, kind: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """The rows of the report in `out`, by number; none where there is no report. Exits where it is of another kind."""
    path = out / "report.json"
    if not path.exists():
        return {}
    found = json.loads(path.read_text("utf-8"))
    rows = {row["row"]: row for row in found.pop("rows")}
    if changed := [name for name in kind if found.get(name) != kind[name]]:
        sys.exit(f"{path} is of another kind ({', '.join(changed)}): do all rows anew, or give another --out")
    return rows


def write(rows: dict[int, dict[str, Any]], kind: dict[str, Any], out: Path) -> None:
    """The table so far, as Markdown and JSON."""
    out.mkdir(parents=True, exist_ok=True)
    table = [rows[number] for number in sorted(rows)]
    (out / "report.json").write_text(json.dumps({**kind, "rows": table}, indent=1) + "\n", "utf-8")
    lines = ["# Faults", "", "`python -m tests.faults" + (" --full" if kind["full"] else "") + "`", ""]
    lines += ["| row | event | promise | faults | kept | worst | took |", "| --- | --- | --- | --- | --- | --- | --- |"]
    for r in table:
        worst = f"{r['worst_seconds']:.2f} s" if r["worst_seconds"] else ""
        lines.append(
            f"| {r['row']} | {r['event']} | {r['promise']} | {r['done']:,} | {r['passed']:,} | {worst} | {r['seconds']:.0f} s |"
        )
    (out / "report.md").write_text("\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
    sys.exit(main())
