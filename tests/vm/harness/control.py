"""The host's side of guestctl.py.  Several threads may use one at a time."""

from __future__ import annotations

import base64
import itertools
import threading
import time
from pathlib import Path
from typing import Any

from tests.vm.harness.cache import HarnessError
from tests.vm.harness.jsonlines import JsonLines, Silence

_PIECE = 1 << 18


class Result:
    """What a program in the guest did; `status` is None where it could not even be killed."""

    def __init__(self, answer: dict[str, Any]) -> None:
        self.status: int | None = answer["status"]
        self.late: bool = answer["late"]
        self.seconds: float = answer["seconds"]
        self.data = base64.b64decode(answer["out"])
        self.out = self.data.decode(errors="replace")
        self.err = base64.b64decode(answer["err"]).decode(errors="replace")

    def __repr__(self) -> str:
        late = ", over its limit" if self.late else ""
        return f"status {self.status} after {self.seconds:.2f} s{late}: {self.out[-600:]!r} {self.err[-600:]!r}"


class Control:
    def __init__(self, path: Path) -> None:
        self._lines = JsonLines(path)
        self._numbers = itertools.count(time.monotonic_ns())
        self._sending = threading.Lock()
        self._changed = threading.Condition()
        self._answers: dict[int, dict[str, Any]] = {}
        self._waiting: set[int] = set()
        self._closed = False
        threading.Thread(target=self._read, daemon=True).start()

    def close(self) -> None:
        self._lines.close()

    def _read(self) -> None:
        while True:
            try:
                answer = self._lines.json(3600)
            except Silence:
                continue
            except (HarnessError, OSError):
                break
            except ValueError:
                continue  # the end of a line to an earlier connection
            with self._changed:
                if answer.get("id") in self._waiting:
                    self._answers[answer["id"]] = answer
                    self._changed.notify_all()
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def post(self, do: str, **members: object) -> int:
        """Send and do not wait."""
        number = next(self._numbers)
        with self._changed:
            self._waiting.add(number)
        with self._sending:
            self._lines.send_json({"do": do, "id": number, **members})
        return number

    def take(self, number: int, limit: float) -> dict[str, Any]:
        """The answer to what was posted.  Raises Silence, HarnessError."""
        with self._changed:
            self._changed.wait_for(lambda: number in self._answers or self._closed, limit)
            self._waiting.discard(number)
            answer = self._answers.pop(number, None)
            if answer is None:
                gone = HarnessError("the control port is closed")
                raise gone if self._closed else Silence(f"the guest did not answer within {limit:g} s")
        if "failed" in answer:
            raise HarnessError(f"in the guest: {answer['failed']}")
        return answer

    def ping(self, limit: float = 1.0) -> dict[str, float]:
        return self.take(self.post("ping"), limit)

    def start(self, command: str, limit: float = 120.0, stdin: bytes = b"") -> int:
        """Start a shell command; `finish` waits for it."""
        given = base64.b64encode(stdin).decode()
        return self.post("run", argv=["/bin/sh", "-c", command], limit=limit, stdin=given)

    def finish(self, number: int, limit: float = 130.0) -> Result:
        return Result(self.take(number, limit))

    def put(self, data: bytes, path: str, mode: int) -> None:
        for at in range(0, max(1, len(data)), _PIECE):
            piece = base64.b64encode(data[at : at + _PIECE]).decode()
            self.take(self.post("put", path=path, data=piece, append=at > 0, mode=mode), 60)

    def get(self, path: str, start: int = 0) -> bytes:
        """The file's bytes from `start` on."""
        data = b""
        while True:
            piece = base64.b64decode(
                self.take(self.post("get", path=path, offset=start + len(data), size=_PIECE), 60)["data"]
            )
            data += piece
            if len(piece) < _PIECE:
                return data
