"""What happens when the machine, the disk, the numbers or the user go wrong: each promise and the test that holds it.

`rows` is the table; pytest runs a share of each count, `python -m tests.faults --full` all of it, with a report.
Reading order: `rows`, `nursery` (processes that can be killed), `shim` (a system that fails), `work` (what they
train) and `faulty` (what goes wrong in it), then the rows: `kills`, `disk`, `values`, `files` (with `caches`).
"""
