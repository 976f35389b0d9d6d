"""What is remembered of short requests that came alone, by their bytes: what they are, and what is answered.

Hosts ask the same things again and again, in the same words.  A request that was parsed once need not be parsed again; where the
reply hangs on nothing else it is remembered too: ping, info, time and host name (which are functions), and syncs but for
their number.  Of a request to a worker the worker's last reply is kept and what was made of it (`keep`), which is told again when the
worker says the same again.  All of it is bounded.
"""

from __future__ import annotations

from protocol import wire
from protocol.request import Known, Request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

    Answer = bytes | Callable[[], bytes]

SHORT: Final = 128  # bytes of a request that is worth it, at most
MOST: Final = 16  # requests, and answers
_LARGE: Final = 4096  # bytes of a worker's reply of which there is one only
_DIGITS: Final = 18  # of a sync's number, at most: those that are surely an int64


class Remembered:
    """See the module's text."""

    __slots__ = ("_requests", "_answers", "_syncs", "_large")

    def __init__(self) -> None:
        self._requests: dict[bytes, Request] = {}
        self._answers: dict[bytes, tuple[Answer, int]] = {}  # and where that is counted
        # Syncs without their number: what stands around it in the reply, and where they are counted.
        self._syncs: dict[bytes, tuple[tuple[bytes, bytes], int]] = {}
        self._large: Known | None = None  # what has a large reply

    def forget_answers(self) -> None:
        """Another policy is in force."""
        self._answers.clear()
        self._syncs.clear()

    def request(self, data: bytes) -> Request | None:
        """What these bytes are."""
        return self._requests.get(data)

    def answer(self, data: bytes) -> tuple[bytes, int] | None:
        """What is answered to these bytes, and where that is counted."""
        found = self._answers.get(data)
        if found is not None:
            answer, cell = found
            return answer if type(answer) is bytes else answer(), cell  # type: ignore[operator]
        if self._syncs:
            at, end = _number(data)
            digits = data[at:end].lstrip(b" ")
            if _is_number(digits):
                around = self._syncs.get(data[:at] + data[end:])
                if around is not None:
                    return digits.join(around[0]), around[1]
        return None

    @property
    def has_room(self) -> bool:
        """For one more answer; requests make room."""
        return len(self._answers) + len(self._syncs) < MOST

    def add_request(self, data: bytes, request: Request) -> None:
        """It was checked.  For a worker's command the reply may be the same again."""
        command = request.command
        assert command is not None
        if command.replies and not (request.has_id or command.takes or command.confirm):
            request.known = Known()
        if len(self._requests) >= MOST:
            del self._requests[next(iter(self._requests))]
        self._requests[data] = request

    def add_answer(self, data: bytes, answer: Answer, cell: int) -> None:
        self._answers[data] = answer, cell

    def add_sync(self, data: bytes, number: object, errors: bytes, delimited: bool, cell: int) -> None:
        """A sync with this number, if that is where it seems to be; `errors` are answered before it."""
        at, end = _number(data)
        if type(number) is not int or data[at:end].lstrip(b" ") != b"%d" % number or not _is_number(b"%d" % number):
            return
        # An error before it is one about the reset byte: hosts send one, and the peer complains.
        if data.lstrip(wire.DELIMITER)[:1] != b"{":
            return
        after = wire.success(0)
        head, _, tail = (wire.delimited(after) if delimited else after).rpartition(b"0")
        self._syncs[data[:at] + data[end:]] = ((errors + head, tail), cell)

    def keep(self, known: Known, reply: bytes | None, line: bytes, size: int = 0, end: bytes = b"") -> None:
        """A worker's reply and what was made of it (`Known`); None: nothing is to be kept (it came in several datagrams, or to a
        request that did not go the short way).  Of large ones the last one only is."""
        if reply is None:
            line, size, end = b"", 0, b""
        elif len(reply) > _LARGE:
            if self._large is not None and self._large is not known:
                self.keep(self._large, None, b"")
            self._large = known
        known.reply, known.line, known.size, known.end = reply, line, size, end


def _number(data: bytes) -> tuple[int, int]:
    """Where the number of a sync stands."""
    at = data.rfind(b":") + 1
    return at, data.find(b"}", at)


def _is_number(digits: bytes) -> bool:
    """As JSON writes a number that is not negative, and surely an int64."""
    return digits.isdigit() and len(digits) <= _DIGITS and (digits[0] != 0x30 or len(digits) == 1)
