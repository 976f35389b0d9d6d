"""The real qemu-ga, started as `Agent` starts ours, so that a test can ask both the same and compare.

    with Peer() as peer, Agent("--policy", "qemu-ga") as agent:
        assert agent.call("guest-get-host-name") == peer.call("guest-get-host-name")

Tests that use it carry the marker `peer`.  It freezes whatever it sees: only inside a private root, with a dead man.
"""

from __future__ import annotations

import os
import re
import subprocess

from tests.support.agent import Agent

PROGRAM = "/usr/sbin/qemu-ga"


def version() -> tuple[int, ...]:
    """Its release, such as (7, 2, 22)."""
    text = subprocess.run([PROGRAM, "--version"], capture_output=True, text=True, check=True, timeout=10).stdout
    found = re.search(r"(\d+(?:\.\d+)+)", text)
    assert found is not None, text
    return tuple(map(int, found[1].split(".")))


class Peer(Agent):
    """A running qemu-ga.  It keeps its pid file and state in the folder of its socket and reads no configuration."""

    NAME = "qemu-ga"

    def command(self) -> list[str]:
        pidfile = os.path.join(self.directory, "pid")
        return [PROGRAM, "-m", "unix-listen", "-p", self.path, "-t", self.directory, "-f", pidfile, *self._args]

    def stop(self, limit: float = 1.0) -> int:
        """It sometimes loses a SIGTERM that comes right after a close: then it is killed, which is no failure of ours."""
        try:
            return super().stop(limit)
        except RuntimeError:
            return -9
