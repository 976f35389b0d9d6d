"""A hundred thousand requests and a thousand programs later nothing has grown.  The figures are in its output (pytest -rP)."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import pytest

from tests.support.agent import Agent, children, state
from tests.support.namespace import isolated

pytestmark = [pytest.mark.root, pytest.mark.timeout(240)]

COMMANDS = 10_000
CHEAP = 90_000
PROGRAMS = 1_000
# A worker that was idle for some seconds meanwhile would be another one in the end.
POLICY = """profile = "qemu-ga"

[workers]
preload = ["inventory", "network", "file", "exec", "fs"]
"""
GROWTH = 1.0  # MiB that all processes together may grow


def private_mib(pid: int) -> float:
    """What it has for itself, but for huge pages: the kernel makes one of small ones when it likes, and that is no growth."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    found = {name: int(rest.split()[0]) / 1024 for name, _, rest in (line.partition(":") for line in lines[1:])}
    return found["Private_Dirty"] - found["AnonHugePages"]


class Figures:
    def __init__(self, agent: Agent) -> None:
        pids = agent.processes()
        self.names = sorted(pids)
        self.descriptors = sum(len(os.listdir(f"/proc/{p}/fd")) for p in pids.values())
        self.each = {name: private_mib(p) for name, p in pids.items()}
        self.mib = sum(self.each.values())
        self.zombies = sum(state(c) == "Z" for p in pids.values() for c in children(p))

    def __str__(self) -> str:
        return (
            f"{len(self.names)} processes, {self.descriptors} descriptors, {self.mib:.2f} MiB, {self.zombies} zombies"
        )


def commands(agent: Agent, count: int) -> None:
    done = 0
    while done < count:
        for name in (
            "guest-ping",
            "guest-info",
            "guest-get-time",
            "guest-get-host-name",
            "guest-get-osinfo",
            "guest-get-vcpus",
            "guest-get-users",
            "guest-get-timezone",
            "guest-network-get-interfaces",
            "guest-fsfreeze-status",
        ):
            agent.call(name)
            done += 1
        handle = agent.call("guest-file-open", path="/tmp/soak", mode="w+")
        agent.call("guest-file-write", handle=handle, buf_b64=base64.b64encode(b"x" * 4096).decode())
        agent.call("guest-file-seek", handle=handle, offset=0, whence="set")
        assert agent.call("guest-file-read", handle=handle)["count"] == 4096
        agent.call("guest-file-close", handle=handle)
        done += 5


def cheap(agent: Agent, count: int) -> None:
    """What the front answers by itself."""
    for number in range(0, count, 3):
        agent.call("guest-ping")
        agent.client.sync(number)
        agent.call("guest-get-time")


def programs(agent: Agent, count: int) -> None:
    for number in range(count):
        pid = agent.call("guest-exec", path="/bin/echo", arg=[str(number)], capture_output=True)["pid"]
        while not (found := agent.call("guest-exec-status", pid=pid))["exited"]:
            pass
        assert base64.b64decode(found["out-data"]) == b"%d\n" % number


@isolated
def test_nothing_grows() -> None:
    Path("/tmp/policy.toml").write_text(POLICY)
    with Agent("--policy", "/tmp/policy.toml") as agent:
        cheap(agent, CHEAP // 5)
        commands(agent, COMMANDS)
        programs(agent, PROGRAMS // 5)
        before = Figures(agent)
        cheap(agent, CHEAP)
        commands(agent, COMMANDS)
        programs(agent, PROGRAMS)
        after = Figures(agent)
    report = f"before: {before}; after {CHEAP + COMMANDS} requests and {PROGRAMS} programs: {after}"
    print(report)
    print(*(f"{name} {before.each[name]:.2f} -> {after.each.get(name, 0):.2f} MiB" for name in before.names), sep="\n")
    assert after.names == before.names
    assert after.descriptors == before.descriptors, report
    assert after.zombies == 0, report
    assert after.mib - before.mib <= GROWTH, report
