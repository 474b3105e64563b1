"""python -m tests.faults [--full] [--row N ...] [--seed S] [--out FOLDER]: do the faults and write what came of them."""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

from jingdu.lab.machine import machine, versions
from tests.faults.case import Outcome, measure
from tests.faults.rows import ROWS


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--full", action="store_true", help="the whole counts; else the share of each commit")
    parser.add_argument("--row", type=int, nargs="+", choices=sorted(ROWS), default=sorted(ROWS), help="only these")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("results/faults"))
    flags = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    os.environ["HF_HUB_OFFLINE"] = "1"
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
        write(outcomes, flags.out, flags.full, flags.seed)
    print(f"wrote {flags.out}/report.md and report.json")
    return 0 if all(o.passed == o.done for o in outcomes) else 1


def write(outcomes: list[Outcome], out: Path, full: bool, seed: int) -> None:
    """The table so far, as Markdown and JSON."""
    out.mkdir(parents=True, exist_ok=True)
    table = [{"row": o.row.number, "event": o.row.event, "promise": o.row.promise, "done": o.done, "passed": o.passed,
              "worst_seconds": round(o.worst, 3), "seconds": round(o.duration, 1), "failures": o.failures}
             for o in outcomes]  # fmt: skip
    made = {"full": full, "seed": seed, "machine": machine(), "versions": versions()}
    (out / "report.json").write_text(json.dumps({**made, "rows": table}, indent=1) + "\n", "utf-8")
    lines = ["# Faults", "", "`python -m tests.faults" + (" --full" if full else "") + "`", ""]
    lines += ["| row | event | promise | faults | kept | worst | took |", "| --- | --- | --- | --- | --- | --- | --- |"]
    for r in table:
        worst = f"{r['worst_seconds']:.2f} s" if r["worst_seconds"] else ""
        lines.append(
            f"| {r['row']} | {r['event']} | {r['promise']} | {r['done']} | {r['passed']} | {worst} | {r['seconds']:.0f} s |"
        )
    (out / "report.md").write_text("\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
    sys.exit(main())
