"""QEMU's own control socket: commands, and events kept until somebody asks for them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from tests.vm.harness.cache import HarnessError
from tests.vm.harness.jsonlines import JsonLines, Silence


class Qmp(JsonLines):
    def __init__(self, path: Path, patience: float = 20.0) -> None:
        super().__init__(path, patience)
        self.events: list[dict[str, Any]] = []
        self.json(patience)
        self.call("qmp_capabilities")

    def call(self, command: str, limit: float = 30.0, **arguments: object) -> Any:
        """Members by keyword as QMP spells them, with underscores for dashes.  Raises HarnessError."""
        named = {key.replace("_", "-"): value for key, value in arguments.items()}
        self.send_json({"execute": command, "arguments": named})
        while True:
            message = self.json(limit)
            if "event" in message:
                self.events.append(message)
            elif "error" in message:
                raise HarnessError(f"QMP {command}: {message['error']['desc']}")
            else:
                return message["return"]

    def wait(self, *names: str, limit: float = 90.0) -> dict[str, Any]:
        """The next event of one of these names; one that came before counts, once.  Raises Silence."""
        end = time.monotonic() + limit
        while True:
            for event in self.events:
                if event["event"] in names:
                    self.events.remove(event)
                    return event
            left = end - time.monotonic()
            if left <= 0:
                raise Silence(f"no event {' or '.join(names)} within {limit:g} s")
            message = self.json(left)
            if "event" in message:
                self.events.append(message)

    def seen(self) -> list[str]:
        """Names of the events so far, which are forgotten."""
        while True:
            try:
                self.events.append(self.json(0.01))
            except HarnessError:
                break
        names = [event["event"] for event in self.events]
        self.events.clear()
        return names
