"""How often a minute: counts by seconds, in memory that outlives the worker.

A worker keeps them on its page of counters (privsep/counters.py), which the supervisor hands to its successor; so neither leaving
when idle nor a crash sets a count back.  What is counted are requests that were let through, by seconds of the monotonic clock.

Each command has `WORDS` words of four bytes: the last second that was counted, then 61 counts.  61, because sixty seconds
that begin in the middle of one end in the middle of another.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_SECONDS: Final = 61
WORDS: Final = 1 + _SECONDS


def admit(words: memoryview[int] | list[int], limit: int, now: float) -> bool:
    """Whether one more is within the limit of so many a minute; it is counted then.  `now`: seconds, monotonic."""
    second = int(now) & 0xFFFFFFFF
    last = words[0]
    if last != second:
        # A clock that went back (another boot's page cannot be here) forgets everything rather than nothing.
        stale = second - last if 0 < second - last < _SECONDS else _SECONDS
        for n in range(stale):
            words[1 + (second - n) % _SECONDS] = 0
        words[0] = second
    if sum(words[1 : 1 + _SECONDS]) >= limit:
        return False
    words[1 + second % _SECONDS] += 1
    return True
