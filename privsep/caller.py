"""The host's side of the protocol, for one command at a time: what `privsep-gactl call` does on a unix socket.

A sync goes first, as hosts do it: 0xFF makes the agent drop a half request of an earlier client, and everything before the 0xFF
that precedes the sync's own answer is somebody else's.
"""

from __future__ import annotations

import json
import secrets
import socket
import time
from typing import Any


class CallError(Exception):
    """The agent could not be asked, or did not answer in time."""


class Caller:
    """One connection.  `limit` is in seconds, for each answer."""

    def __init__(self, path: str, limit: float) -> None:
        """Raises CallError."""
        self._limit = limit
        self._buffer = b""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(limit)
        try:
            self._socket.connect(path)
        except OSError as e:
            raise CallError(f"{path}: {e.strerror or e}") from None

    def close(self) -> None:
        self._socket.close()

    def sync(self) -> None:
        """Throw away what is not ours.  Raises CallError."""
        number = secrets.randbits(31)
        self._send(
            b"\xff" + json.dumps({"execute": "guest-sync-delimited", "arguments": {"id": number}}).encode() + b"\n"
        )
        end = time.monotonic() + self._limit
        while True:
            line = self._line(end)
            _, mark, rest = line.rpartition(b"\xff")
            if mark and _decoded(rest) == {"return": number}:
                return

    def call(self, command: str, arguments: dict[str, Any] | None, *, replies: bool = True) -> dict[str, Any] | None:
        """The agent's answer.  Where success is not answered, None after two seconds without an error.  Raises CallError."""
        request: dict[str, Any] = {"execute": command}
        if arguments:
            request["arguments"] = arguments
        self._send(json.dumps(request).encode() + b"\n")
        try:
            return _decoded(self._line(time.monotonic() + (self._limit if replies else min(self._limit, 2.0))))
        except CallError:
            if replies:
                raise
            return None

    def _send(self, data: bytes) -> None:
        try:
            self._socket.settimeout(self._limit)
            self._socket.sendall(data)
        except OSError as e:
            raise CallError(f"cannot send: {e}") from None

    def _line(self, end: float) -> bytes:
        while b"\n" not in self._buffer:
            left = end - time.monotonic()
            if left <= 0:
                raise CallError(f"no answer within {self._limit:g} seconds")
            self._socket.settimeout(left)
            try:
                part = self._socket.recv(1 << 20)
            except TimeoutError:
                continue
            except OSError as e:
                raise CallError(f"cannot receive: {e}") from None
            if not part:
                raise CallError("the agent closed the connection")
            self._buffer += part
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line


def _decoded(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError:
        raise CallError(f"the answer is not JSON: {line[:200]!r}") from None
    if not isinstance(value, dict):
        raise CallError(f"the answer is not an object: {line[:200]!r}")
    return value


def arguments_of(words: list[str]) -> dict[str, Any]:
    """`key=value` words, or one JSON object.  A value that is JSON is that value, any other is a string.  Raises ValueError."""
    if len(words) == 1 and words[0].lstrip().startswith("{"):
        value = json.loads(words[0])
        if not isinstance(value, dict):
            raise ValueError("the arguments must be an object")
        return value
    found: dict[str, Any] = {}
    for word in words:
        key, sign, text = word.partition("=")
        if not sign or not key:
            raise ValueError(f"'{word}' is neither key=value nor a JSON object")
        if key in found:
            raise ValueError(f"'{key}' is given twice")
        try:
            found[key] = json.loads(text)
        except ValueError:
            found[key] = text
    return found
