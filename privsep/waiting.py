"""Waiting for the next message, awake for a moment where it is about to come.

A processor with nothing to do is halted, and in a virtual machine it takes the host 30 to 90 us to wake it: several times what
a request costs, at every hop.  So whoever waited only briefly the last time looks again and again for `AWAKE` seconds
before it sleeps.  Between two looks it lets everybody else run.  An agent that is asked now and then never does this: the time
between two requests of one stream is what starts it, and one wait that was long ends it.  Nor does it where there is
only one processor, on which nobody else could be doing what is waited for.

The same idea: the kernel's cpuidle-haltpoll (Documentation/virt/guest-halt-polling.rst), which most guests do not have on.
"""

from __future__ import annotations

import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    import select
    from typing import Final

AWAKE: Final = 0.0002  # seconds; more than the wake-up that it saves
BRIEF: Final = 0.0005  # a wait that was no longer, with the wake-ups in it, makes the next one worth it


class Waiting:
    """poll(2) for one loop.  To be made before the walls are up: they do not let it ask for the processors."""

    __slots__ = ("_poll", "_several", "_brief")

    def __init__(self, poll: select.poll) -> None:
        self._poll = poll.poll
        self._several = len(os.sched_getaffinity(0)) > 1
        self._brief = False

    def wait(self, timeout: int | None) -> list[tuple[int, int]]:
        """What `poll.poll(timeout)` (milliseconds; None: for ever) returns."""
        poll = self._poll
        if not self._several:
            return poll(timeout)
        began = time.monotonic()
        if self._brief:
            until = began + AWAKE
            while True:
                ready = poll(0)
                if ready:
                    return ready
                if time.monotonic() >= until:
                    break
                os.sched_yield()
        ready = poll(timeout)
        self._brief = time.monotonic() - began < BRIEF
        return ready
