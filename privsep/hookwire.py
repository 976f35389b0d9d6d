"""What fs and the hook worker say to each other: one datagram each way on a SEQPACKET socket.

    fs -> hook   number, FREEZE | THAW
    hook -> fs   the same number, DONE | FAILED | CUT, and for the last two the text for the host

The number ties an answer to its question: fs may have given up on an earlier one.
"""

from __future__ import annotations

import select
import struct
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from socket import socket as Socket
    from typing import Final

QUESTION: Final = struct.Struct("<IB")
ANSWER: Final = struct.Struct("<IB")
FREEZE: Final = 1
THAW: Final = 2
DONE: Final = 0
FAILED: Final = 1  # it ended by itself, and not well
CUT: Final = 2  # it was ended at its time limit, so it may have left something half done

OUTPUT: Final = 64 * 1024  # bytes of the hook's output that are kept
BIGGEST: Final = ANSWER.size + OUTPUT + 4096  # and of the path and words around it


class HookLost(Exception):
    """The hook worker died or does not answer."""


def call(sock: Socket, number: int, what: int, seconds: float) -> tuple[int, str]:
    """Have the hook run; DONE, FAILED or CUT, and the text.  Raises HookLost."""
    try:
        sock.send(QUESTION.pack(number, what))
        poll = select.poll()
        poll.register(sock.fileno(), select.POLLIN)
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and poll.poll(left * 1000):
            data = sock.recv(BIGGEST)
            if not data:
                raise HookLost("it died")
            answered, result = ANSWER.unpack_from(data)
            if answered == number:
                return result, data[ANSWER.size :].decode("utf-8", "replace")
    except (OSError, struct.error):
        raise HookLost("it died") from None
    raise HookLost("it does not answer")
