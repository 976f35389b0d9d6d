"""The log of every process: one line an event, to a file, standard error or the journal, and never a wait.

Lines are as qemu-ga's, `SECONDS.MICROSECONDS: level: text`, the text beginning with the process's name; where the descriptor is
the journal's, which has its own clock, the line begins with the priority instead (`<6>`, sd-daemon(3)).

While file systems are frozen nothing is written, because a write to a frozen one cannot even be killed: `hold()` says so,
lines stay in a ring of fixed size, and what falls out of it is counted and said.  A pipe or socket that would block loses
lines, which is counted and said too.  What a line quotes may come from the host, so whatever is not printable is escaped.
"""

from __future__ import annotations

import os
import select
import stat
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Final

LONGEST: Final = 4096  # bytes of one line: what a pipe takes whole
RING: Final = 256  # lines kept while nothing may be written

# Priorities as in syslog(3).
_ERROR: Final = 3
_WARNING: Final = 4
_INFO: Final = 6
_DEBUG: Final = 7
_WORDS: Final = {_ERROR: "error", _WARNING: "warning", _INFO: "info", _DEBUG: "debug"}
_CUT: Final = b"..."


class Log:
    """`prefix` is the process's name; `hold` may be set later, and is asked before each write."""

    __slots__ = (
        "hold",
        "verbose",
        "_fd",
        "_prefix",
        "_journal",
        "_poll",
        "_ring",
        "_first",
        "_held",
        "_lost",
        "_may_block",
    )

    def __init__(
        self,
        fd: int,
        prefix: str,
        verbose: bool = False,
        hold: Callable[[], bool] | None = None,
        *,
        journal: bool | None = None,
    ) -> None:
        self.hold = hold
        self.verbose = verbose
        self._fd = fd
        self._prefix = prefix
        self._journal = is_journal(fd, os.environ) if journal is None else journal
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)
        try:
            # A file always polls as writable.
            self._may_block = not stat.S_ISREG(os.fstat(fd).st_mode)
        except OSError:
            self._may_block = True
        self._ring: list[bytes] = [b""] * RING  # made now: nothing may have to grow while frozen
        self._first = 0
        self._held = 0
        self._lost = 0

    def error(self, text: str) -> None:
        self._line(_ERROR, text)

    def warning(self, text: str) -> None:
        self._line(_WARNING, text)

    def info(self, text: str) -> None:
        self._line(_INFO, text)

    def debug(self, text: str) -> None:
        """With --verbose only."""
        if self.verbose:
            self._line(_DEBUG, text)

    def later(self, text: str) -> None:
        """As `info`, but written with the next line or by `flush`: after the reply to the request that it is about."""
        self._keep(self._format(_INFO, text))

    def flush(self) -> None:
        """Write what was kept; does nothing while there is reason to hold it."""
        if self._held and not self._must_hold():
            self._drain()

    # -- how

    def _must_hold(self) -> bool:
        return self.hold is not None and self.hold()

    def _line(self, priority: int, text: str) -> None:
        line = self._format(priority, text)
        if self._must_hold():
            self._keep(line)
            return
        if self._held:
            self._drain()
        self._write(line)

    def _format(self, priority: int, text: str) -> bytes:
        if self._journal:
            line = f"<{priority}>{self._prefix}: {printable(text)}\n"
        else:
            now = time.time_ns() // 1000
            line = f"{now // 1000000}.{now % 1000000:06}: {_WORDS[priority]}: {self._prefix}: {printable(text)}\n"
        data = line.encode("utf-8", "backslashreplace")
        if len(data) > LONGEST:
            data = data[: LONGEST - len(_CUT) - 1].decode("utf-8", "ignore").encode() + _CUT + b"\n"
        return data

    def _keep(self, line: bytes) -> None:
        if self._held == RING:
            self._ring[self._first] = line
            self._first = (self._first + 1) % RING
            self._lost += 1
        else:
            self._ring[(self._first + self._held) % RING] = line
            self._held += 1

    def _drain(self) -> None:
        while self._held:
            line, self._ring[self._first] = self._ring[self._first], b""
            self._first = (self._first + 1) % RING
            self._held -= 1
            self._write(line)

    def _write(self, line: bytes) -> None:
        if self._lost:
            lost, self._lost = self._lost, 0
            if not self._put(self._format(_WARNING, f"{lost} lines of the log were lost")):
                self._lost = lost
        if not self._put(line):
            self._lost += 1

    def _put(self, line: bytes) -> bool:
        """One write, if the other end takes it at once: a pipe that polls as writable has room for a whole line."""
        try:
            if self._may_block and not any(events & select.POLLOUT for _, events in self._poll.poll(0)):
                return False
            return os.write(self._fd, line) == len(line)
        except OSError:  # EAGAIN, a full disk, a reader that has gone: the log must not end the process
            return False


def printable(text: str) -> str:
    """The text on one line with nothing that a terminal or a log reader would obey."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    """As Python writes it in a string; not by its codec, a module that would have to be imported now, frozen or behind walls."""
    short = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(character)
    number = ord(character)
    return short or (
        f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"
    )


def is_journal(fd: int, environ: Mapping[str, str]) -> bool:
    """Whether the descriptor is the stream that the journal gave us (JOURNAL_STREAM, systemd.exec(5))."""
    stream = environ.get("JOURNAL_STREAM")
    if not stream:
        return False
    try:
        found = os.fstat(fd)
    except OSError:
        return False
    return stream == f"{found.st_dev}:{found.st_ino}"
