"""The supervisor's loop: descriptors with a function each, and timers with a name each.

A function is called when its descriptor has something to read, and never for a descriptor that was forgotten, or whose number
has become another's, in the same turn: a handler that ends one child may start another, and the kernel gives
the lowest free numbers again.
"""

from __future__ import annotations

import select
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class Loop:
    __slots__ = ("_poll", "_functions", "_timers")

    def __init__(self) -> None:
        self._poll = select.poll()
        self._functions: dict[int, Callable[[], None]] = {}
        self._timers: dict[str, tuple[float, Callable[[], None]]] = {}

    def watch(self, fd: int, function: Callable[[], None]) -> None:
        """Call the function whenever the descriptor can be read.  It must be one made for this call (see `turn`)."""
        self._functions[fd] = function
        self._poll.register(fd, select.POLLIN)

    def forget(self, fd: int) -> None:
        """Before the descriptor is closed; nothing happens when it is not watched."""
        if self._functions.pop(fd, None) is not None:
            self._poll.unregister(fd)

    def at(self, name: str, delay: float, function: Callable[[], None]) -> None:
        """Call the function once in so many seconds, in place of what that name had."""
        self._timers[name] = (time.monotonic() + delay, function)

    def cancel(self, name: str) -> None:
        self._timers.pop(name, None)

    def cancel_all(self) -> None:
        self._timers.clear()

    def due(self, name: str) -> float | None:
        """When (CLOCK_MONOTONIC, seconds) that timer is due; None when there is none."""
        timer = self._timers.get(name)
        return None if timer is None else timer[0]

    def turn(self) -> None:
        """Wait for the next thing and do what is to be done."""
        ready = [(fd, self._functions.get(fd)) for fd, _ in self._poll.poll(self._timeout())]
        for fd, function in ready:
            if function is not None and self._functions.get(fd) is function:
                function()
        now = time.monotonic()
        for name in [n for n, (at, _) in self._timers.items() if at <= now]:
            timer = self._timers.get(name)
            if timer is not None and timer[0] <= now:  # the one before may have cancelled it or put it off
                del self._timers[name]
                timer[1]()

    def _timeout(self) -> int | None:
        if not self._timers:
            return None
        due = min(at for at, _ in self._timers.values()) - time.monotonic()
        return max(0, int(due * 1000) + 1)
