"""The front's log where the log is a file: the front may make no file longer, so what it says comes through a pipe and the
supervisor copies it as it is.

At most so much a second, and nothing while file systems are frozen: the pipe keeps the rest, and when it is full the front
counts the lines that it loses.
"""

from __future__ import annotations

import os

from privsep import spawn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

    from privsep.loop import Loop

_COPIED: Final = 64 * 1024  # bytes in one second
_PAUSE: Final = 1.0


class FrontLog:
    """`writer` is the front's end; `to` is the file; `held` says that it must not be written to now."""

    __slots__ = ("_loop", "_to", "_held", "_reader", "writer")

    def __init__(self, loop: Loop, to: int, held: Callable[[], bool]) -> None:
        self._loop = loop
        self._to = to
        self._held = held
        reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        # Both ends where no dup2 target of a child hits them.
        self._reader, self.writer = spawn.above(reader), spawn.above(writer)

    def watch(self) -> None:
        self._loop.watch(self._reader, lambda: self.copy())

    def copy(self) -> None:
        self._loop.forget(self._reader)  # until its second is over
        if self._held():
            return  # `watch` is called when that ends
        try:
            os.write(self._to, os.read(self._reader, _COPIED))
        except OSError:
            pass  # nothing to read at the end, or a full disk
        self._loop.at("front log", _PAUSE, self.watch)
