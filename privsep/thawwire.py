"""What fs and thawer say to each other: fixed structures, one a datagram, on a SEQPACKET socket.

No msgpack: the thawer must be as small as it can be and believes nothing that has not exactly the right length.  Every message
has a name, a structure and, from fs, an answer unless it says so.  Descriptors travel with HOLD only.

    fs -> thawer
      ASK                         what do you hold?                                       -> STATUS
      BEGIN  cycle seconds rcu n  n descriptors will come; they may be frozen for so long -> OK | NO
      HOLD   cycle first n + fds  these; answered once they are held                      -> OK | NO
      FROZEN cycle n marks        what became of each (`MARK_*`)                          -> OK | NO
      COMMIT cycle                the host was told (no answer)
      THAW   flags                thaw all, and let the supervisor lower the flag         -> THAWED
      TOLD   cycle                the host knows of the lapse (no answer)
      SHORTEN cycle seconds       the deadline is so far away at most: the host has gone (no answer)
    thawer -> fs
      STATUS phase committed cycle n seconds reason lapsed-cycle lapsed-seconds
      OK, NO
      THAWED cycle seconds reason n results (`RESULT_*`, in the order of registration)
"""

from __future__ import annotations

import _socket
import array
import os
import select
import struct
import time

from privsep import freezestate

TYPE_CHECKING = False
if TYPE_CHECKING:
    from socket import socket as Socket
    from typing import Final

ASK: Final = 1
BEGIN: Final = 2
HOLD: Final = 3
FROZEN: Final = 4
COMMIT: Final = 5
THAW: Final = 6
TOLD: Final = 7
SHORTEN: Final = 8
STATUS: Final = 16
OK: Final = 17
NO: Final = 18
THAWED: Final = 19

KIND: Final = struct.Struct("<B")
BEGIN_BODY: Final = struct.Struct("<BQIBH")
HOLD_BODY: Final = struct.Struct("<BQHH")
FROZEN_BODY: Final = struct.Struct("<BQH")
CYCLE_BODY: Final = struct.Struct("<BQ")
SHORTEN_BODY: Final = struct.Struct("<BQI")
THAW_BODY: Final = struct.Struct("<BB")
STATUS_BODY: Final = struct.Struct("<BBBQHIBQI")
THAWED_BODY: Final = struct.Struct("<BQIBH")

MOST: Final = 1024  # superblocks in one freeze: a thread and a descriptor each
CHUNK: Final = 250  # descriptors in one message; the kernel's limit is 253 (SCM_MAX_FD)
BIGGEST: Final = THAWED_BODY.size + MOST

MARK_FROZEN: Final = ord("f")  # frozen by us
MARK_SKIPPED: Final = ord("s")  # frozen by somebody else, or cannot be: not ours to thaw
MARK_NOT: Final = ord("n")  # not frozen, or it is not known
MARKS: Final = frozenset((MARK_FROZEN, MARK_SKIPPED, MARK_NOT))

RESULT_HELD: Final = ord("h")  # was frozen when the thaw was asked for
RESULT_LOST: Final = ord("l")  # was not frozen any more
RESULT_NONE: Final = ord("-")  # given up before (MARK_SKIPPED)

FLAG_LOWER: Final = 1  # have the flag lowered even if nothing is held

PHASE_IDLE: Final = freezestate.THAWED
PHASE_HELD: Final = freezestate.FREEZING
PHASE_FROZEN: Final = freezestate.FROZEN
PHASE_THAWING: Final = freezestate.THAWING
PHASE_LAPSING: Final = freezestate.LAPSED

# Why a freeze did not hold, as the host is told.
REASON_DEADLINE: Final = freezestate.DEADLINE
REASON_UNCONFIRMED: Final = freezestate.UNCONFIRMED
REASON_NOT_BACK: Final = freezestate.NOT_BACK
REASON_ORPHANED: Final = freezestate.ORPHANED
REASON_BROKEN: Final = freezestate.BROKEN
REASON_LOST: Final = freezestate.LOST
REASON_STUCK: Final = freezestate.STUCK
REASONS: Final = (
    "",
    "the time limit has passed",
    "the fs worker died before the freeze was confirmed",
    "the fs worker died and was not back in time",
    "the agent's supervisor died",
    "the fs worker broke its protocol",
    "a file system was thawed by another program",
    "a file system cannot be thawed",
)


class ThawerLost(Exception):
    """The thawer is gone, does not answer in time, or answers nonsense."""


class Status:
    """The thawer's answer to ASK; `reason` 0: no lapse that the host was not told of."""

    __slots__ = ("phase", "committed", "cycle", "held", "seconds", "reason", "lapsed", "lapsed_seconds")

    def __init__(self, data: bytes) -> None:
        try:
            (
                _,
                self.phase,
                self.committed,
                self.cycle,
                self.held,
                self.seconds,
                self.reason,
                self.lapsed,
                self.lapsed_seconds,
            ) = STATUS_BODY.unpack(data)
        except struct.error:
            raise ThawerLost("its status has a wrong length") from None
        if self.reason >= len(REASONS):
            raise ThawerLost("unknown reason")


class Thawed:
    """The thawer's answer to THAW; `reason` 0: it was not thawed before it was asked for."""

    __slots__ = ("cycle", "seconds", "reason", "results")

    def __init__(self, data: bytes) -> None:
        try:
            _, self.cycle, self.seconds, self.reason, count = THAWED_BODY.unpack_from(data)
        except struct.error:
            raise ThawerLost("its answer has a wrong length") from None
        self.results = data[THAWED_BODY.size :]
        if len(self.results) != count or self.reason >= len(REASONS):
            raise ThawerLost("its answer has a wrong length")


class Link:
    """fs's end.  Each method raises ThawerLost.

    `seconds` is how long the thawer may take for one answer: it is local and idle, so a slow one is a stopped one."""

    __slots__ = ("socket", "seconds", "_poll")

    def __init__(self, socket: Socket, seconds: float) -> None:
        self.socket = socket
        self.seconds = seconds
        self._poll = select.poll()
        self._poll.register(socket.fileno(), select.POLLIN)

    def ask(self) -> Status:
        self._send(KIND.pack(ASK))
        return Status(self._receive(STATUS))

    def begin(self, cycle: int, seconds: int, rcu: str | None, fds: list[int]) -> bool:
        """Register everything that is going to be frozen; True once it is all held."""
        self._send(BEGIN_BODY.pack(BEGIN, cycle, seconds, ord(rcu[:1]) if rcu else 0, len(fds)))
        if not self._agreed():
            return False
        for first in range(0, len(fds), CHUNK):
            part = fds[first : first + CHUNK]
            self._send(HOLD_BODY.pack(HOLD, cycle, first, len(part)), part)
            if not self._agreed():
                return False
        return True

    def frozen(self, cycle: int, marks: bytes) -> bool:
        self._send(FROZEN_BODY.pack(FROZEN, cycle, len(marks)) + marks)
        return self._agreed()

    def commit(self, cycle: int) -> None:
        self._send(CYCLE_BODY.pack(COMMIT, cycle))

    def told(self, cycle: int) -> None:
        self._send(CYCLE_BODY.pack(TOLD, cycle))

    def shorten(self, cycle: int, seconds: int) -> None:
        self._send(SHORTEN_BODY.pack(SHORTEN, cycle, seconds))

    def thaw(self, *, lower: bool) -> Thawed:
        self._send(THAW_BODY.pack(THAW, FLAG_LOWER if lower else 0))
        return Thawed(self._receive(THAWED))

    def _agreed(self) -> bool:
        return self._receive(OK, NO)[0] == OK

    def _send(self, data: bytes, fds: list[int] | None = None) -> None:
        ancillary = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            self.socket.sendmsg([data], ancillary, _socket.MSG_DONTWAIT | _socket.MSG_NOSIGNAL)
        except OSError as e:
            raise ThawerLost(e.strerror or "it cannot be reached") from None

    def _receive(self, *kinds: int) -> bytes:
        end = time.monotonic() + self.seconds
        while True:
            left = end - time.monotonic()
            if left <= 0 or not self._poll.poll(left * 1000):
                raise ThawerLost("it does not answer")
            try:
                data = self.socket.recv(BIGGEST + 1, _socket.MSG_DONTWAIT)
            except BlockingIOError:
                continue
            except OSError as e:
                raise ThawerLost(e.strerror or "it cannot be reached") from None
            if not data:
                raise ThawerLost("it died")
            if data[0] in kinds:
                return data
            raise ThawerLost("it answers what was not asked")


def take_descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    """The descriptors of a message."""
    fds = array.array("i")
    for level, kind, payload in ancillary:
        if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS:
            fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
    return list(fds)


def close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
