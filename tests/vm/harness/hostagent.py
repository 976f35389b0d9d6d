"""A host's side of the agent's channel, no more than the protocol: sync, commands, replies."""

from __future__ import annotations

import base64
import json
import random
import time
from typing import Any

from tests.vm.harness.cache import HarnessError
from tests.vm.harness.jsonlines import JsonLines, Silence


class Refused(HarnessError):
    """The agent's answer was an error."""

    def __init__(self, error: dict[str, str]) -> None:
        super().__init__(f"{error['class']}: {error['desc']}")
        self.kind = error["class"]
        self.desc = error["desc"]


class HostAgent(JsonLines):
    """Members of the arguments are given by keyword, with underscores for dashes."""

    def sync(self, limit: float = 30.0) -> None:
        """What is left of earlier requests and replies is thrown away on both sides.  Raises Silence."""
        end = time.monotonic() + limit
        while time.monotonic() < end:
            number = random.randrange(1 << 30)
            self.send(b"\xff")
            self.send_json({"execute": "guest-sync-delimited", "arguments": {"id": number}})
            until = min(end, time.monotonic() + 5)  # a guest that boots may have lost it: ask again
            while (left := until - time.monotonic()) > 0:
                try:
                    _, mark, text = self.line(left).rpartition(b"\xff")
                except Silence:
                    break
                if mark and json.loads(text) == {"return": number}:
                    return
        raise Silence(f"the agent did not answer guest-sync-delimited within {limit:g} s")

    def ask(self, name: str, **arguments: object) -> None:
        """Send a command and do not wait."""
        named = {key.replace("_", "-"): value for key, value in arguments.items()}
        self.send_json({"execute": name, "arguments": named} if named else {"execute": name})

    def answer(self, limit: float = 60.0) -> Any:
        """The next reply's value.  Raises Refused, Silence."""
        reply = json.loads(self.line(limit).rpartition(b"\xff")[2])
        if "error" in reply:
            raise Refused(reply["error"])
        return reply["return"]

    def call(self, name: str, limit: float = 60.0, **arguments: object) -> Any:
        self.ask(name, **arguments)
        return self.answer(limit)

    def run(self, path: str, *words: str, stdin: bytes | None = None, limit: float = 60.0) -> dict[str, Any]:
        """guest-exec with its output, waited for: the last guest-exec-status, data decoded."""
        more: dict[str, Any] = {} if stdin is None else {"input_data": base64.b64encode(stdin).decode()}
        pid = self.call("guest-exec", path=path, arg=list(words), capture_output=True, **more)["pid"]
        end = time.monotonic() + limit
        while True:
            status: dict[str, Any] = self.call("guest-exec-status", pid=pid)
            if status["exited"]:
                return {k: base64.b64decode(v) if k.endswith("-data") else v for k, v in status.items()}
            if time.monotonic() > end:
                raise Silence(f"{path} did not end within {limit:g} s")
            time.sleep(0.05)
