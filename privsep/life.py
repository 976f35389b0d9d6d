"""The life of one child: when it may be started, and how long to wait after it has died.  No I/O, no clock.

        absent --start--> starting --ready--> up
          ^                  |                 |
          +---- back-off ----+------- died ----+

A child that dies before it was ready, or within `SETTLED` seconds after, failed; each failure in a row doubles the pause
before the next start, up to `LONGEST`.  A child that lived longer is started again at once when somebody asks.
All times are seconds of one monotonic clock.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

FIRST: Final = 0.1
LONGEST: Final = 30.0
SETTLED: Final = 2.0

ABSENT: Final = "absent"
STARTING: Final = "starting"
UP: Final = "up"


class Life:
    __slots__ = ("state", "failures", "not_before", "ready_at", "restarts")

    def __init__(self) -> None:
        self.state = ABSENT
        self.failures = 0
        self.not_before = 0.0
        self.ready_at = 0.0
        self.restarts = 0

    def may_start(self, now: float) -> bool:
        return self.state == ABSENT and now >= self.not_before

    def wait(self, now: float) -> float:
        """Seconds until it may be started; 0.0 when it may be now."""
        return max(0.0, self.not_before - now)

    def started(self) -> None:
        assert self.state == ABSENT
        self.state = STARTING

    def ready(self, now: float) -> None:
        assert self.state == STARTING
        self.state = UP
        self.ready_at = now

    def settled(self, now: float) -> bool:
        """Whether it has been up for so long that its end is not the fault of its start."""
        return self.state == UP and now - self.ready_at >= SETTLED

    def died(self, now: float, *, expected: bool) -> None:
        """`expected`: it left because it was idle or was told to; no failure."""
        settled = self.settled(now)
        self.state = ABSENT
        if expected:
            self.failures = 0
            self.not_before = 0.0
            return
        self.restarts += 1
        if settled:
            self.failures = 0
        self.failures += 1
        # The first failure costs no pause: whoever is waiting gets a new child at once.
        pause = 0.0 if self.failures == 1 else min(FIRST * 2.0 ** (self.failures - 2), LONGEST)
        self.not_before = now + pause
