"""The agent as a service of the guest: its policy, its processes, and writers that tell when a file system took writes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from tests.vm.harness import inside
from tests.vm.harness.cache import HarnessError
from tests.vm.harness.shell import Shell

UNIT = "privsep-ga.service"
INSIDE = "/run/inside.py"
POLICY = "/etc/privsep-ga/policy.toml"
DROPINS = "/usr/share/privsep-ga/privsep-ga.service.d"
# What an administrator sets where SELinux is on and the host may run programs and reach files (selinux/README.md).
BOOLEANS = ("privsep_ga_exec", "privsep_ga_file")
WITH_PROGRAMS = ("ansible", "qemu-ga")  # profiles
FILE_SYSTEMS = ("/", "/mnt/ext4", "/mnt/xfs")
LIMITED = "fsfreeze is limited up to"


def tool(guest: Shell) -> str:
    """The command line of inside.py in the guest."""
    if guest.sh(f"test -e {INSIDE}").status != 0:
        guest.put(Path(inside.__file__).read_text(), INSIDE, 0o755)
    return f"python3 -IS {INSIDE}"


def set_policy(guest: Shell, profile: str, more: str = "", dropin: str = "") -> None:
    """Put a policy in force by a restart.  `dropin` names the drop-in of the unit that it needs."""
    guest.check("mkdir -p /etc/privsep-ga /etc/systemd/system/privsep-ga.service.d")
    guest.put(f'profile = "{profile}"\n{more}', POLICY)
    guest.check("rm -f /etc/systemd/system/privsep-ga.service.d/*.conf")
    if dropin:
        guest.check(f"cp {DROPINS}/{dropin}.conf /etc/systemd/system/privsep-ga.service.d/")
    if guest.image == "selinux":
        value = "on" if profile in WITH_PROGRAMS else "off"
        guest.check(f"setsebool {' '.join(f'{name}={value}' for name in BOOLEANS)}")
    guest.check(f"systemctl daemon-reload && systemctl reset-failed {UNIT} && systemctl restart {UNIT}")


def processes(guest: Shell) -> dict[str, int]:
    found: dict[str, int] = json.loads(guest.check(f"{tool(guest)} agent"))
    return found


def kill(guest: Shell, number: int, names: Iterable[str]) -> float:
    """Signal these processes of the agent; the guest's monotonic time just before."""
    pids = processes(guest)
    words = " ".join(str(pids[name]) for name in names)
    return float(guest.check(f"{tool(guest)} kill {number} {words}"))


def memory(guest: Shell, kind: str = "Pss") -> dict[str, int]:
    """Each process's memory in kB, by a word of smaps (proc(5)): its share of all ("Pss"), or its own, which does not depend on
    who else there is ("Anonymous")."""
    found = {}
    for name, pid in processes(guest).items():
        text = guest.check(f"cat /proc/{pid}/smaps_rollup 2>/dev/null || true")
        if text:  # else it was idle and has just left
            found[name] = next(int(line.split()[1]) for line in text.splitlines() if line.startswith(f"{kind}:"))
    return found


def log(guest: Shell) -> str:
    """What the agent has logged since boot."""
    return guest.check(f"journalctl -b --no-pager -o cat -u {UNIT}")


class Writers:
    """A writer on each file system, from now on, in the guest's memory."""

    LOG = "/run/writers"

    def __init__(self, guest: Shell, mounts: tuple[str, ...] = FILE_SYSTEMS) -> None:
        self._guest = guest
        self.paths = [f"{mount.rstrip('/')}/written" for mount in mounts]
        command = tool(guest)
        guest.check("systemctl stop writers.service 2>/dev/null; rm -f " + self.LOG)
        guest.check(
            f"systemd-run --quiet --unit=writers -p OOMScoreAdjust=-900 {command} writer {self.LOG} {' '.join(self.paths)}"
        )
        self._wait(lambda lines: {line[0] for line in lines} >= set(self.paths), 60)

    def _lines(self) -> list[list[str]]:
        return [line.split() for line in self._guest.check(f"cat {self.LOG} 2>/dev/null || :").splitlines()]

    def _wait(self, met: Callable[[list[list[str]]], bool], limit: float) -> list[list[str]]:
        end = time.monotonic() + limit
        while True:
            lines = self._lines()
            if met(lines):
                return lines
            if time.monotonic() > end:
                raise HarnessError(f"not all file systems were writable within {limit:g} s: {lines}")
            time.sleep(0.2)

    def _waits(self, lines: list[list[str]], since: float) -> dict[str, float]:
        """Path -> when its last long wait ended, of those that lasted beyond `since`."""
        return {path: float(done) for path, begun, done in lines if begun != "ready" and float(done) > since}

    def now(self) -> float:
        return self._guest.control.ping()["monotonic"]

    def blocked_since(self, since: float) -> None:
        """Raises HarnessError if a writer got through between then and now."""
        early = self._waits(self._lines(), since)
        if early:
            raise HarnessError(f"writes went through: {early}")

    def thawed(self, since: float, limit: float = 60.0) -> float:
        """The guest's time at which the last of them could write again, after having waited through `since`."""
        lines = self._wait(lambda lines: set(self._waits(lines, since)) >= set(self.paths), limit)
        return max(self._waits(lines, since).values())
