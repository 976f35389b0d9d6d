"""Where each count stands on a process's page of counters (privsep/counters.py): numbers, so that counting is one addition.

A page is an array of unsigned 64-bit numbers: first `FIRST` that belong to the process, then `WIDTH` for each command of the
table, in the table's order; `Command.cell` is where a command's begin, and the names below are the offsets from there.

`OK`, `ERROR`, `REFUSED`, `FROZEN` and `LOST` are counted by whoever decides, once a request: the worker that executed or refused
it, the front for what it answers itself, refuses itself, or lost with a worker.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

CELLS: Final = 512  # numbers on a page
FIRST: Final = 16
WIDTH: Final = 7

OK: Final = 0
ERROR: Final = 1
REFUSED: Final = 2  # by policy
LOST: Final = 3  # its worker died, was ended at its time limit, or could not be had
TAKEN: Final = 4  # bytes of bulk data from the host
GIVEN: Final = 5  # bytes of bulk data to the host
FROZEN: Final = 6  # refused because file systems were frozen
RESULTS: Final = ("ok", "error", "refused", "lost")

# What belongs to the process.
SINCE: Final = 0  # when the page was made: microseconds since the epoch
RECORDS: Final = 1  # audit records made
DROPPED: Final = 2  # audit records that nobody took
INVALID: Final = 3  # the front: requests that are none, and unknown commands
LAPSES: Final = 4  # thawer and fs: freezes that did not hold
FREEZES: Final = 5  # the supervisor: times that the frozen flag was raised
FROZEN_US: Final = 6  # the same: microseconds that it was up, freezes that are over
FROZEN_SINCE: Final = 7  # the same: since when it is up, microseconds of the monotonic clock; 0: it is not
RECOVERIES: Final = 8  # the same: thaws from the journal
