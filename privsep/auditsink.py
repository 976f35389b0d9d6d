"""Where audit records go: the journal, a file with a line of JSON for each, the agent's log, or nowhere.

`write` takes the records of one turn and returns how many were lost: nothing here waits for a reader.  Only the supervisor
holds a sink.
"""

from __future__ import annotations

import _socket
import os
import stat

from privsep.auditrecord import as_journal, as_json, as_text, priority

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final, TypeAlias

    from privsep.auditrecord import Record
    from privsep.log import Log
    from privsep.wiring import Socket

JOURNAL: Final = "journal"
LOG: Final = "log"
NONE: Final = "none"
FILE: Final = "file:"
JOURNAL_SOCKET: Final = "/run/systemd/journal/socket"
_WARNING: Final = 4


class SinkError(Exception):
    """The sink cannot be had; the text says why."""


class ToJournal:
    """journald's socket for native records; `/run/systemd/journal/socket`, which outlives journald (systemd holds it)."""

    name: Final = JOURNAL

    def __init__(self, path: str = JOURNAL_SOCKET) -> None:
        """Raises SinkError."""
        self._path = path
        try:
            self._socket = self._connected()
        except OSError as e:
            raise SinkError(f"the journal cannot be reached at {path}: {e.strerror}") from None

    def _connected(self) -> Socket:
        made: Socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_NONBLOCK)  # type: ignore[assignment]
        try:
            # What a journal that is busy has not taken waits here, as systemd's own programs let it.
            made.setsockopt(_socket.SOL_SOCKET, _socket.SO_SNDBUF, 8 << 20)
            made.connect(self._path)
        except OSError:
            made.close()
            raise
        return made

    def write(self, records: list[Record]) -> int:
        return sum(not self._put(as_journal(record)) for record in records)

    def _put(self, data: bytes) -> bool:
        try:
            self._socket.send(data)
        except BlockingIOError:
            return False
        except OSError:  # another journal, or none
            try:
                fresh = self._connected()
                self._socket.close()
                self._socket = fresh
                fresh.send(data)
            except OSError:
                return False
        return True


class ToFile:
    """A regular file, for root alone, only ever appended to.  One that was renamed or removed is made anew."""

    def __init__(self, path: str) -> None:
        """Raises SinkError."""
        self.name = FILE + path
        self._path = path
        self._fd = -1
        try:
            self._open()
        except OSError as e:
            raise SinkError(f"the audit file {path} cannot be opened: {e.strerror}") from None

    def _open(self) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NOCTTY | os.O_NONBLOCK
        fd = os.open(self._path, flags, 0o600)
        found = os.fstat(fd)
        wrong = ""
        if not stat.S_ISREG(found.st_mode):
            wrong = "not a regular file"
        elif found.st_uid not in (0, os.geteuid()) or found.st_mode & 0o022 or found.st_nlink > 1:
            wrong = "others may write it: it must be root's, with one name and no write permission for others"
        if wrong:
            os.close(fd)
            raise OSError(22, wrong)
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = fd

    def write(self, records: list[Record]) -> int:
        lines = [as_json(record).encode("utf-8", "backslashreplace") + b"\n" for record in records]
        data = b"".join(lines)
        try:
            self._follow()
            done = os.write(self._fd, data)
            if done == len(data):
                return 0
            # A full disk: leave no half of a line, which would spoil the next one too.
            whole = data.rfind(b"\n", 0, done) + 1
            os.ftruncate(self._fd, os.fstat(self._fd).st_size - (done - whole))
            return len(lines) - data.count(b"\n", 0, whole)
        except OSError:
            return len(lines)

    def _follow(self) -> None:
        """Log rotation renames; then what is at the path is not what we have."""
        try:
            there, ours = os.lstat(self._path), os.fstat(self._fd)
            if (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino):
                return
        except FileNotFoundError:
            pass
        self._open()


class ToLog:
    """The agent's own log, one line for each."""

    name: Final = LOG

    def __init__(self, log: Log) -> None:
        self._log = log

    def write(self, records: list[Record]) -> int:
        for record in records:
            say = self._log.warning if priority(record) <= _WARNING else self._log.info
            say(as_text(record))
        return 0


class Nowhere:
    name: Final = NONE

    def write(self, records: list[Record]) -> int:
        return 0


if TYPE_CHECKING:
    Sink: TypeAlias = ToJournal | ToFile | ToLog | Nowhere


def open_sink(to: str, log: Log) -> Sink:
    """`to`: journal, log, none, file:/PATH; "" for the journal if there is one, else the log.  Raises SinkError."""
    if to == NONE:
        return Nowhere()
    if to.startswith(FILE):
        return ToFile(to[len(FILE) :])
    if to == JOURNAL:
        return ToJournal()
    if not to:
        try:
            if stat.S_ISSOCK(os.stat(JOURNAL_SOCKET).st_mode):
                return ToJournal()
        except (OSError, SinkError):
            pass
    return ToLog(log)
