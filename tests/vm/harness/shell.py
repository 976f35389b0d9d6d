"""Work inside a guest, whoever started it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

from tests.vm.harness import denials
from tests.vm.harness.cache import HarnessError
from tests.vm.harness.control import Control, Result

_up: list[Shell] = []


class Shell(ABC):
    """What can be done through the control port."""

    image: str
    control: Control
    _audited = 0  # bytes of the audit log that were looked at

    # What a kind of guest has of its own.

    @abstractmethod
    def running(self) -> bool:
        """Whether its machine is up."""

    @abstractmethod
    def root_disk(self) -> Path:
        """The image file that its root file system is in."""

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

    # -- SELinux

    def denials(self) -> list[str]:
        """What was denied to the agent, or about it, since the last call.  Raises HarnessError."""
        if self.image != "selinux":
            return []
        start = self._audited
        new = self.control.get(denials.LOG, start) if self.running() else denials.from_disk(self.root_disk())[start:]
        new = new[: new.rfind(b"\n") + 1]
        self._audited += len(new)
        return denials.denials(new.decode(errors="replace"))

    def is_up(self) -> None:
        """From now on `look_for_denials` asks this guest too."""
        _up.append(self)

    def ends(self, *, well: bool) -> None:
        """Call before the guest and its disk go away; a second call does nothing.  Raises HarnessError."""
        if self not in _up:
            return
        _up.remove(self)
        try:
            _none(self.denials())
        except HarnessError:
            if well:  # else there is an error already
                raise


def look_for_denials() -> None:
    """Nobody has asked for these and so nobody expects them.  Raises HarnessError when there are any in a guest that is up."""
    _none([line for guest in _up for line in guest.denials()])


def _none(lines: list[str]) -> None:
    if lines:
        raise HarnessError("\n".join([f"SELinux denied what its policy should allow, {len(lines)} times:", *lines]))
