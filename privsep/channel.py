"""The channel to the host, as the supervisor opens it: bind, listen, open, or take over from the service manager.

What is returned is handed to the front.  A listening socket stays open here too, so that clients wait in its backlog while a
front is restarted; a device is closed here at once, since a virtio port can be open only once.
"""

from __future__ import annotations

import _socket
import fcntl
import os
import stat

from privsep import wiring

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from privsep.wiring import Socket

DEFAULT_PATHS: Final = {
    "virtio-serial": "/dev/virtio-ports/org.qemu.guest_agent.0",
    "isa-serial": "/dev/ttyS0",
}
METHODS: Final = ("virtio-serial", "isa-serial", "unix-listen", "vsock-listen")
_BACKLOG: Final = 1  # as the peer


class ChannelError(Exception):
    """The channel cannot be opened; the text says which and why."""


class Channel:
    """`tag` says what the front gets: a listener or a device."""

    __slots__ = ("tag", "socket", "fd")

    def __init__(self, tag: bytes, *, socket: Socket | None = None, fd: int = -1) -> None:
        self.tag = tag
        self.socket = socket
        self.fd = socket.fileno() if socket is not None else fd


def activated(environ: dict[str, str], pid: int) -> Channel | None:
    """The socket that the service manager passed (sd_listen_fds(3)), or None.

    Raises ChannelError when there is more than one or it is no stream socket of a kind that we serve."""
    if environ.get("LISTEN_PID") != str(pid) or not environ.get("LISTEN_FDS", "").isdigit():
        return None
    count = int(environ["LISTEN_FDS"])
    if count == 0:
        return None
    if count > 1:
        raise ChannelError("privsep-ga only supports listening on one socket")
    moved = fcntl.fcntl(3, fcntl.F_DUPFD_CLOEXEC, 10)
    os.close(3)
    if not stat.S_ISSOCK(os.fstat(moved).st_mode):
        raise ChannelError("the descriptor passed by the service manager is not a socket")
    socket = wiring.adopt(moved)
    if socket.family not in (_socket.AF_UNIX, _socket.AF_VSOCK) or socket.type != _socket.SOCK_STREAM:
        raise ChannelError("the socket passed by the service manager is neither a unix nor a vsock stream socket")
    return Channel(wiring.TAG_LISTENER, socket=socket)


def open_channel(method: str, path: str) -> Channel:
    """Raises ChannelError."""
    try:
        if method == "unix-listen":
            return Channel(wiring.TAG_LISTENER, socket=_unix(path))
        if method == "vsock-listen":
            return Channel(wiring.TAG_LISTENER, socket=_vsock(path))
        if method == "virtio-serial":
            return Channel(wiring.TAG_DEVICE, fd=os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY))
        if method == "isa-serial":
            return Channel(wiring.TAG_DEVICE, fd=_serial(path))
    except OSError as e:
        raise ChannelError(f"error opening channel '{path}': {e.strerror or e}") from None
    raise ChannelError(f"unsupported channel method/type: {method}")


def _unix(path: str) -> Socket:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    socket.bind(path)
    socket.listen(_BACKLOG)
    return socket  # type: ignore[return-value]


def _vsock(path: str) -> Socket:
    cid, colon, port = path.partition(":")
    if not (colon and cid.isdigit() and port.isdigit() and int(cid) < 1 << 32 and int(port) < 1 << 32):
        raise ChannelError(f"'{path}' is not CID:PORT")
    socket = _socket.socket(_socket.AF_VSOCK, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    socket.bind((int(cid), int(port)))
    socket.listen(_BACKLOG)
    return socket  # type: ignore[return-value]


def _serial(path: str) -> int:
    """Raw, 8 bits, 38400 baud, what was there before flushed: as the peer sets it."""
    import termios  # on this path only

    fd = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        control: list[bytes | int] = [b"\0"] * 32
        control[termios.VMIN] = b"\x01"
        flags = termios.CS8 | termios.CLOCAL | termios.CREAD
        raw: list[int | list[bytes | int]] = [0, 0, flags, 0, termios.B38400, termios.B38400, control]
        termios.tcsetattr(fd, termios.TCSANOW, raw)
        termios.tcflush(fd, termios.TCIFLUSH)
    except termios.error as e:
        os.close(fd)
        raise ChannelError(f"'{path}' cannot be set up as a serial port: {e.args[1]}") from None
    return fd
