"""The audit trail, where it begins: what a process says about each privileged action and each refusal of its own.

A worker says `begin` before it acts and `end` after; whoever refuses says `refused`.  A record is one datagram to the
supervisor, which alone knows the sink (`privsep/ledger.py`): it stamps the record with the name and pid of the process it has
come from, so that nobody can sign with another's name, and no child holds anything that leads out of the agent.  The socket
keeps what comes while file systems are frozen and nothing may be written, and what its process said before it died.

Nothing waits but a `begin`, which has to stand before its action: whoever asks so much that the socket is full is served more
slowly.  What the socket does not take is dropped, counted, and told with the next record that goes out.

A record is text, its parts (`privsep/auditrecord.py`) separated by NULs, which no part can contain.  Secret arguments and bulk
data (flags in the command table) are not among them, nor is what a policy's rule masks.
"""

from __future__ import annotations

import os
import select
import time

from privsep.jsontext import structure
from protocol import tally

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, MutableSequence
    from typing import Final

    from protocol.commands import Command

BEGIN: Final = "begin"
END: Final = "end"
REFUSED: Final = "refused"
EVENT: Final = (
    "event"  # what the agent does by itself; the event stands in the command's place, its cause in the error's
)

LONGEST: Final = 2048  # characters of one value
RECORD: Final = 16 * 1024  # bytes of one record; one that is larger goes without its arguments
PARTS: Final = 11  # before the arguments
PATIENCE: Final = 3000  # milliseconds that a `begin` waits for room; a budget is for a second
SECRET: Final = "(secret)"  # noqa: S105 - it stands for one
MASKED: Final = "(masked)"
_QUOTING: Final = "(its text quotes a secret)"
_TELLING: Final = 16  # characters of a secret that are one too
MASKABLE: Final = ("arg",)  # the arguments that a rule's `mask` hides
_CUT: Final = "..."


class Audit:
    """One process's; `fd` is the socket, not blocking, -1 for none."""

    __slots__ = ("_fd", "_numbers", "_lost")

    def __init__(self, fd: int, numbers: MutableSequence[int] | memoryview) -> None:
        self._fd = fd
        self._numbers = numbers
        self._lost = 0

    def begin(
        self, number: int, command: str, arguments: list[str], rule: str = "", *, patience: int = PATIENCE
    ) -> bool:
        """False when there was no room for it, not even after `patience` milliseconds."""
        return self._write((BEGIN, str(number), command, rule, "", "", "", "", ""), arguments, patience)

    def end(
        self, number: int, command: str, *, error: str | None, took: float, taken: int, given: int, rule: str = ""
    ) -> None:
        """`error` None: it went well; `took` in seconds; bytes of bulk data from and to the host."""
        result = "ok" if error is None else "error"
        micro = str(int(took * 1e6))
        self._write((END, str(number), command, rule, result, _cut(error or ""), micro, str(taken), str(given)), [])

    def lost(self, number: int, command: str, error: str) -> None:
        """An end that the worker cannot say any more."""
        self._write((END, str(number), command, "", "lost", _cut(error), "", "", ""), [])

    def refused(self, number: int, command: str, arguments: list[str], rule: str = "", error: str = "") -> None:
        """`rule` "": the one that decides about the command, which the supervisor knows."""
        self._write((REFUSED, str(number), command, rule, "refused", _cut(error), "", "", ""), arguments)

    def lapse(self, reason: str) -> None:
        """A freeze did not hold."""
        self._numbers[tally.LAPSES] += 1
        self._write((EVENT, "", "lapse", "", "", reason, "", "", ""), [])

    def _write(self, parts: tuple[str, ...], arguments: list[str], patience: int = 0) -> bool:
        numbers = self._numbers
        numbers[tally.RECORDS] += 1
        if self._fd < 0:
            return True
        text = "\0".join((str(time.time_ns() // 1000), str(self._lost), *[_whole(p) for p in parts], *arguments))
        data = text.encode("utf-8", "backslashreplace")
        try:
            if len(data) > RECORD:
                data = "\0".join(text.split("\0")[:PARTS]).encode("utf-8", "backslashreplace")
            self._send(data, patience)
            self._lost = 0
        except OSError as e:  # full, or the supervisor is gone
            self._lost += 1
            numbers[tally.DROPPED] += 1
            return not isinstance(e, BlockingIOError)
        return True

    def _send(self, data: bytes, patience: int) -> None:
        """Raises OSError."""
        try:
            os.write(self._fd, data)
        except BlockingIOError:
            if not patience:
                raise
            room = select.poll()
            room.register(self._fd, select.POLLOUT)
            room.poll(patience)
            os.write(self._fd, data)


def arguments(command: Command, given: Mapping[str, object], masked: Collection[str] = ()) -> list[str]:
    """Names and values, one after the other, of what may be seen of a request's arguments."""
    found: list[str] = []
    for arg in command.args:
        value = given.get(arg.name)
        if value is None:
            continue
        if arg.bulk:
            continue  # its size is told at the end
        if arg.secret:
            text = SECRET
        elif arg.name in masked:
            text = MASKED
        elif type(value) is str:
            text = value
        elif type(value) is list or type(value) is dict:
            text = structure(value, LONGEST)
        elif type(value) is bool:
            text = "true" if value else "false"
        else:
            text = str(value)
        found += (arg.name, _whole(_cut(text)))
    return found


def without_secrets(command: Command, given: Mapping[str, object], text: str) -> str:
    """An error's text, unless it quotes a secret argument."""
    for arg in command.args:
        value = given.get(arg.name) if arg.secret else None
        for one in value if type(value) is list else (value,):
            if type(one) is str and one and (one in text or (len(one) > _TELLING and one[:_TELLING] in text)):
                return _QUOTING
    return text


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - len(_CUT)] + _CUT


def _whole(text: str) -> str:
    """Without the separator."""
    return text.replace("\0", "\\0") if "\0" in text else text
