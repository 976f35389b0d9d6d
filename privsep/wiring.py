"""Sockets between the processes: SEQPACKET pairs, and one descriptor with a message.

`_socket` is the C half of the standard `socket` module; the Python half costs every process 5 ms for enumerations that
nobody here looks at.
"""

from __future__ import annotations

import _socket
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from socket import socket
    from typing import Final, TypeAlias

    Socket: TypeAlias = socket
else:
    Socket = _socket.socket

_FD_SIZE: Final = 4  # a C int; the array module would import collections for it

# Descriptors that every child has (docs/architecture.md).
CONTROL_FD: Final = 3
SLICE_FD: Final = 4
BOARD_FD: Final = 5
AUDIT_FD: Final = 6
COUNTERS_FD: Final = 7

# One-byte messages of the control sockets.  `START` and `END` carry the domain's number in the low bits.
READY: Final = b"R"  # and a second byte: the level of Landlock
REOPEN: Final = b"\x01"
ADOPTED: Final = b"\x02"
START: Final = 0x40
END: Final = 0x60
NUMBER_MASK: Final = 0x1F
ARM: Final = b"A"
ARM_WITHOUT_MARKER: Final = b"a"
KILL_FS: Final = b"K"
THAWED: Final = b"T"
SHORTENED: Final = b"D"

TAG_LISTENER: Final = b"L"
TAG_DEVICE: Final = b"D"
TAG_WORKER: Final = b"W"
TAG_UNAVAILABLE: Final = b"X"
TAG_UNPRIVILEGED: Final = b"N"
TAG_CHANNEL: Final = b"C"
TAG_JOURNAL: Final = b"J"
TAG_THAWER: Final = b"Y"
TAG_HOOK: Final = b"H"
TAG_FS: Final = b"F"
TAG_START: Final = b"S"
GO: Final = b"G"  # to a front that was started early: the slice is sealed
TAG_QUIT: Final = b"Q"
TAG_POLICY: Final = b"P"  # to the front: another slice
TAG_RETIRE: Final = b"E"  # and a second byte: 1 if it must not wait until nothing is held


def adopt(fd: int) -> Socket:
    """The socket object of an inherited descriptor."""
    return _socket.socket(fileno=fd)  # type: ignore[return-value]


def pair() -> tuple[Socket, Socket]:
    """A SEQPACKET pair, close-on-exec, blocking."""
    ends = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    for end in ends:
        # As much as net.core.wmem_max admits, twice the default: bulk data then flows while the other end works.
        end.setsockopt(_socket.SOL_SOCKET, _socket.SO_SNDBUF, 1 << 20)
    return ends  # type: ignore[return-value]


def stream_pair() -> tuple[Socket, Socket]:
    return _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM)  # type: ignore[return-value]


def send_fd(sock: Socket, data: bytes, fd: int | None) -> None:
    """One message with at most one descriptor.  Raises OSError (EPIPE when the peer is gone)."""
    if fd is None:
        sock.send(data)
    else:
        sock.sendmsg([data], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, fd.to_bytes(_FD_SIZE, sys.byteorder))])


def receive_fd(sock: Socket, size: int = 16) -> tuple[bytes, int | None]:
    """One message and the descriptor that came with it (close-on-exec).  b"" at end of file.

    More descriptors than one are closed and the message is refused as b""."""
    data, ancillary, flags, _ = sock.recvmsg(size, _socket.CMSG_SPACE(8 * _FD_SIZE), _socket.MSG_CMSG_CLOEXEC)
    fds: list[int] = []
    for level, kind, payload in ancillary:
        if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS:
            whole = range(0, len(payload) - len(payload) % _FD_SIZE, _FD_SIZE)
            fds.extend(int.from_bytes(payload[i : i + _FD_SIZE], sys.byteorder) for i in whole)
    if len(fds) > 1 or flags & (_socket.MSG_CTRUNC | _socket.MSG_TRUNC):
        for fd in fds:
            os.close(fd)
        return b"", None
    return data, (fds[0] if fds else None)
