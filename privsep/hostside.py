"""The front's end of the channel: accept, read, write, notice that the host has gone.

Two kinds, both handed over by the supervisor.  A *listener* (unix, vsock) takes one client at a time; others wait in the
backlog and find what they sent meanwhile answered.  A *device* (virtio-serial, isa-serial) is one stream for ever: on a
virtio port "no data" and a hang-up mean that no host has it open.  poll(2) would report the hang-up at once, each time, so
until something changes an epoll(7) instance that tells of changes only is polled in its place.

Facts: drivers/char/virtio_console.c: whoever polls a port is woken when the host opens it or something comes.
"""

from __future__ import annotations

import _socket
import os
import select

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Final

    from privsep.wiring import Socket

# Bytes at a time; a request that comes whole is read the short way.  (privsep/spawn.py sees to it that this much is cheap.)
READ_SIZE: Final = 256 * 1024
LARGE: Final = 4096  # bytes: as much as a virtio port hands out at once
_SEND_BUFFER: Final = 1 << 20  # bytes; the kernel gives what net.core.wmem_max allows
LOOK_AGAIN: Final = 5.0  # seconds, should a driver tell of no change
_SOON: Final = 0.01  # seconds

_NOT_NOW: Final = (BlockingIOError, InterruptedError)


class HostSide:
    """One channel.  `fd` is what to poll now, -1 for nothing; `gone` is set when a device failed for good.

    `lost` is set when a read or write found the client or device gone; the owner clears it.
    `silent` is set when a device says that no host has it open; the owner calls `sleep` then.
    `asleep` is set until `wake` is called, as the owner does when `fd` is readable or it is `look_at`."""

    __slots__ = (
        "_listener", "_device", "_client", "_ended", "_changes", "_watched", "asleep", "gone", "lost", "look_at", "silent",
    )  # fmt: skip

    def __init__(self) -> None:
        """To be made before the walls are up: they let it make no epoll instance."""
        self._changes = select.epoll(1, select.EPOLL_CLOEXEC)
        self._watched = False  # the device is in `_changes`
        self.asleep = False
        self._listener: Socket | None = None
        self._device = -1
        self._client: Socket | None = None
        self._ended = False  # the client has sent its last byte; it may still read
        self.silent = False
        self.gone = False
        self.lost = False
        self.look_at: float | None = None  # a device without a host: when to look again

    def listen(self, fd: int) -> None:
        self._listener = _socket.socket(fileno=fd)  # type: ignore[assignment]
        assert self._listener is not None
        self._listener.setblocking(False)
        self.gone = False

    def use_device(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self._device = fd
        self._watched = False
        self.gone = False
        self.silent = False
        self.wake()

    @property
    def connected(self) -> bool:
        return self._client is not None or self._device >= 0

    @property
    def ended(self) -> bool:
        """The client will send nothing more; close it when everything is answered."""
        return self._ended

    @property
    def fd(self) -> int:
        if self._client is not None:
            return self._client.fileno()
        if self._device >= 0:
            return self._changes.fileno() if self.asleep else self._device
        return self._listener.fileno() if self._listener is not None else -1

    def events(self, *, read: bool, write: bool) -> int:
        """What to poll `fd` for."""
        if not self.connected or self.asleep:
            return select.POLLIN
        wanted = select.POLLIN if read and not self._ended else 0
        return wanted | (select.POLLOUT if write else 0)

    def accept(self) -> bool:
        assert self._listener is not None
        try:
            fd, _ = self._listener._accept()  # type: ignore[attr-defined]
        except (*_NOT_NOW, ConnectionAbortedError):
            return False
        self._client = _socket.socket(fileno=fd)  # type: ignore[assignment]
        assert self._client is not None
        self._client.setblocking(False)
        try:
            self._client.setsockopt(_socket.SOL_SOCKET, _socket.SO_SNDBUF, _SEND_BUFFER)
        except OSError:
            pass  # it is slower without
        self._ended = False
        return True

    def read(self) -> bytes:
        """What has come; b"" when nothing has, and then `connected`, `ended`, `gone` or `silent` may have changed."""
        self.silent = False
        return self._read(READ_SIZE)

    def rest(self, data: bytes) -> bytes:
        """The beginning of a request that was just read, and what has come of it since, in all no more than is read at once: a socket
        hands out some 36 KiB at a time and a port 4, and as a whole it is less work."""
        parts = [data]
        left = READ_SIZE - len(data)
        while left > 0 and data and not data.endswith(b"\n"):
            data = self._read(left)
            parts.append(data)
            left -= len(data)
        self.silent = False  # it will be found out again, when there is nothing to tell
        return b"".join(parts) if len(parts) > 1 else data

    def _read(self, size: int) -> bytes:
        try:
            if self._client is not None:
                data: bytes = self._client.recv(size)
                if not data:
                    self._ended = True
            else:
                data = os.read(self._device, size)
                self.silent = not data
        except _NOT_NOW:
            return b""
        except OSError:
            self._lost()
            return b""
        return data

    def write(self, data: bytes | bytearray) -> int:
        """Bytes that the channel took; 0 when it takes none now."""
        try:
            if self._client is not None:
                return self._client.send(data)
            if self._device >= 0:
                return os.write(self._device, data[:READ_SIZE])
        except _NOT_NOW:
            pass
        except OSError:
            self._lost()
        return 0

    def write_parts(self, parts: Sequence[bytes | bytearray]) -> int:
        """`write` of these one after the other."""
        if self._client is None:
            count = 0
            for part in parts:
                done = self.write(part)
                count += done
                if done < len(part):
                    break
            return count
        try:
            return os.writev(self._client.fileno(), parts)
        except _NOT_NOW:
            pass
        except OSError:
            self._lost()
        return 0

    def hung_up(self) -> None:
        """poll said POLLHUP or POLLERR: the client is gone in both directions, or no host has the port open."""
        if self._client is not None:
            self.close_client()
        elif self._device >= 0:
            self.silent = True

    def sleep(self, now: float) -> None:
        """No host has the device open: wait for a change."""
        changed = False
        try:
            if not self._watched:
                self._changes.register(self._device, select.EPOLLIN | select.EPOLLET)
                self._watched = True
            # It may have changed after it was read: then it is read once more.
            changed = bool(self._changes.poll(0))
        except OSError:
            pass  # a device that cannot be waited for so
        self.asleep = True
        self.look_at = now + (_SOON if changed else LOOK_AGAIN)

    def wake(self) -> None:
        """Poll the device itself again."""
        self.asleep = False
        self.look_at = None

    def close_client(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None
        self._ended = False

    def _lost(self) -> None:
        self.lost = True
        if self._client is not None:
            self.close_client()
        elif self._device >= 0:
            if self._watched:
                self._changes.unregister(self._device)  # the supervisor has the same open file
                self._watched = False
            self.wake()
            os.close(self._device)
            self._device = -1
            self.gone = True
