"""JSON over a unix socket, a line each way: what QMP, the agent's channel and the control port have in common."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.vm.harness.cache import HarnessError


class Silence(HarnessError):
    """Nothing came in time."""


def connect(path: Path, patience: float = 20.0) -> socket.socket:
    """A connection to a socket that may not be there yet.  Raises HarnessError."""
    end = time.monotonic() + patience
    while True:
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.connect(str(path))
            return sock
        except OSError as e:
            sock.close()
            if time.monotonic() > end:
                raise HarnessError(f"{path}: {e.strerror}") from None
            time.sleep(0.02)


class JsonLines:
    """A connection; every read has a limit in seconds."""

    def __init__(self, path: Path, patience: float = 20.0) -> None:
        self.socket = connect(path, patience)
        self._pending = b""

    def close(self) -> None:
        try:
            self.socket.shutdown(socket.SHUT_RDWR)  # wakes a reader in another thread
        except OSError:
            pass
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def send(self, data: bytes, limit: float = 30.0) -> None:
        self.socket.settimeout(limit)
        self.socket.sendall(data)

    def send_json(self, message: object) -> None:
        self.send(json.dumps(message).encode() + b"\n")

    def line(self, limit: float) -> bytes:
        """The next line without its end.  Raises Silence, or HarnessError when the other side has gone."""
        end = time.monotonic() + limit
        while b"\n" not in self._pending:
            left = end - time.monotonic()
            if left <= 0:
                raise Silence(f"no answer within {limit:g} s")
            self.socket.settimeout(left)
            try:
                data = self.socket.recv(1 << 16)
            except TimeoutError:
                continue
            except OSError as e:
                raise HarnessError(f"the connection broke: {e.strerror}") from None
            if not data:
                raise HarnessError("the other side closed the connection")
            self._pending += data
        line, _, self._pending = self._pending.partition(b"\n")
        return line

    def json(self, limit: float) -> Any:
        return json.loads(self.line(limit))
