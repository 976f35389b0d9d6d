"""Work inside a guest, whoever started it."""

from __future__ import annotations

from tests.vm.harness.cache import HarnessError
from tests.vm.harness.control import Control, Result


class Shell:
    """What can be done through the control port."""

    control: Control

    def sh(self, command: str, limit: float = 120.0, stdin: bytes = b"") -> Result:
        """Run a shell command as root in the guest."""
        return self.control.finish(self.control.start(command, limit, stdin), limit + 20)

    def check(self, command: str, limit: float = 120.0, stdin: bytes = b"") -> str:
        """The same; its output.  Raises HarnessError unless its status is 0."""
        result = self.sh(command, limit, stdin)
        if result.status != 0:
            raise HarnessError(f"in the guest: {command}: {result!r}")
        return result.out

    def put(self, data: bytes | str, path: str, mode: int = 0o644) -> None:
        self.control.put(data.encode() if isinstance(data, str) else data, path, mode)

    def get(self, path: str) -> bytes:
        return self.control.get(path)

    def wait_booted(self, limit: float = 600.0) -> str:
        """Until systemd has nothing left to start; its word for the state."""
        return self.sh("systemctl is-system-running --wait", limit).out.strip()
