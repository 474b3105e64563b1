"""The table: what may go wrong, what is promised, and how often it is tried."""

from tests.faults import disk, files, kills, values
from tests.faults.case import Row

ROWS = {
    row.number: row
    for row in (
        Row(1, "kill -9 at any moment", "the resumed run ends with equal bits", kills.kills, 8, 1600),
        Row(2, "kill -9 inside a save", "the newest checkpoint loads, none is lost", disk.cut_saves, 12, 10_000),
        Row(3, "resume within an epoch", "the sequence of samples is equal", kills.order, 4, 49),
        Row(4, "disk full", "what was saved stays; one message; resumable", disk.full_disk, 8, 10_000),
        Row(5, "changed or cut checkpoint", "refused, and the one before is used", disk.changed_bytes, 60, 1000),
        Row(6, "weights that attack", "refused in 5 s, nothing runs, no memory", files.attacks, 12, 10_000),
        Row(9, "one byte of data changed", "noticed at first use", files.silent_damage, 4, 40),
        Row(11, "NaN, infinity", "nothing updated, no checkpoint lost, done again", values.not_finite, 12, 100),
        Row(12, "no memory", "resumable, and what is advised works", values.no_memory, 4, 40),
        Row(14, "wrong keys on load", "refused, a transposed square of ours too", files.wrong_keys, 60, 10_000),
        Row(16, "several writers", "one wins, the others leave with 2", disk.races, 2, 100),
        Row(17, "Ctrl-C, SIGTERM", "saved, resume command, exit 130, equal bits", kills.signals, 5, 100),
        Row(18, "a process dies or hangs", "named, the others leave, equal bits", kills.deaths, 5, 100),
    )
}
"""Where a count is above the number of places there are, each place is tried once."""
