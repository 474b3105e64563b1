"""The table: what may go wrong, what is promised, and how often it is tried."""

from tests.faults import disk, kills
from tests.faults.case import Row

ROWS = {
    row.number: row
    for row in (
        Row(1, "kill -9 at any moment", "the resumed run ends with equal bits", kills.kills, 7, 1400),
        Row(2, "kill -9 inside a save", "the newest checkpoint loads, none is lost", disk.cut_saves, 12, 10_000),
        Row(3, "resume within an epoch", "the sequence of samples is equal", kills.order, 4, 49),
        Row(4, "disk full", "what was saved stays; one message; resumable", disk.full_disk, 8, 10_000),
        Row(5, "changed or cut checkpoint", "refused, and the one before is used", disk.changed_bytes, 60, 1000),
        Row(16, "several writers", "one wins, the others leave with 2", disk.races, 2, 100),
        Row(17, "Ctrl-C, SIGTERM", "saved, resume command, exit 130, equal bits", kills.signals, 6, 100),
    )
}
"""Where a count is above the number of places there are, each place is tried once."""
