"""What the service manager is told: ready, stopping, still alive (sd_notify(3)).

The protocol is one datagram to a unix socket named in the environment; a library for it would cost more than these lines.
"""

from __future__ import annotations

import _socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping


class Notifier:
    """`interval` is the number of seconds between two `alive`s, None when no watchdog is asked for."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._socket = None
        self.interval: float | None = None
        if self._address:
            self._socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
            usec = environ.get("WATCHDOG_USEC", "")
            if usec.isdigit() and int(usec) > 0:
                self.interval = int(usec) / 2e6

    def _tell(self, text: bytes) -> None:
        if self._socket is not None:
            try:
                self._socket.sendto(text, _socket.MSG_DONTWAIT, self._address)
            except OSError:
                pass  # a manager that does not listen is not our failure

    def ready(self) -> None:
        self._tell(b"READY=1")

    def stopping(self) -> None:
        self._tell(b"STOPPING=1")

    def alive(self) -> None:
        self._tell(b"WATCHDOG=1")
