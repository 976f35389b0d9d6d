"""The package is exchanged from inside: by the host, through the agent that is exchanged."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from tests.vm.harness.hostagent import HostAgent
from tests.vm.harness.machine import Guest
from tests.vm.harness.seen import Seen
from tests.vm.harness.service import UNIT

TREE = Path(__file__).resolve().parents[2]
LATER = "privsep-ga-{}-when-idle.service"
PATIENCE = 90.0  # the grace is 20 s; an emulated guest is slow


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("deb")
    found = {}
    for version in ("9.0", "9.1"):
        run = subprocess.run(
            [TREE / "packaging/deb.sh", "--version", version, "--out", out], capture_output=True, text=True
        )
        assert run.returncode == 0, run.stderr
        found[version] = Path(run.stdout.strip()).read_bytes()
    return found


def main_pid(guest: Guest) -> str:
    return guest.check(f"systemctl show -P MainPID {UNIT}").strip()


def state(guest: Guest, unit: str) -> str:
    return guest.check(f"systemctl show -P ActiveState {unit}").strip()


def install(guest: Guest, packages: dict[str, bytes]) -> None:
    """The older version, with a policy under which the host may run programs."""
    for version, data in packages.items():
        guest.put(data, f"/root/{version}.deb")
    guest.check("dpkg -i --force-confnew /root/9.0.deb", limit=300)
    guest.put('profile = "ansible"\n', "/etc/privsep-ga/policy.toml")
    drop = f"/etc/systemd/system/{UNIT}.d"
    guest.check(f"mkdir -p {drop} && cp /usr/share/privsep-ga/{UNIT}.d/ansible.conf {drop}/")
    guest.check(f"systemctl daemon-reload && systemctl restart {UNIT}")


def run(agent: HostAgent, *words: str) -> dict[str, object]:
    pid = agent.call("guest-exec", path=words[0], arg=list(words[1:]), capture_output=True)["pid"]
    end = time.monotonic() + 300
    while not (status := agent.call("guest-exec-status", pid=pid))["exited"]:
        assert time.monotonic() < end
        time.sleep(0.5)
    return status


def test_an_upgrade_by_guest_exec_ends_well_and_the_restart_follows(
    fresh: Guest, packages: dict[str, bytes], seen: Seen
) -> None:
    """The host upgrades the package by guest-exec: dpkg ends, its result is told, then the service is restarted"""
    install(fresh, packages)
    before = main_pid(fresh)
    with fresh.agent() as agent:
        status = run(agent, "/usr/bin/dpkg", "-i", "/root/9.1.deb")
        ended = time.monotonic()
        assert status["exitcode"] == 0, status
        assert main_pid(fresh) == before
        assert state(fresh, LATER.format("restart")) == "active"
    assert fresh.check("dpkg-query -W -f '${Status} ${Version}' privsep-ga") == "install ok installed 9.1"
    while main_pid(fresh) == before or state(fresh, UNIT) != "active":
        assert time.monotonic() - ended < PATIENCE, fresh.check("journalctl -n 40 --no-pager")
        time.sleep(1)
    took = time.monotonic() - ended
    with fresh.agent() as agent:
        assert agent.call("guest-ping") == {}
        assert run(agent, "/usr/bin/dpkg", "--audit")["exitcode"] == 0
    assert fresh.check("privsep-gactl selfcheck")
    seen(f"restarted {took:.0f} s after the result was fetched")


def test_a_removal_by_guest_exec_ends_well_and_the_stop_follows(
    fresh: Guest, packages: dict[str, bytes], seen: Seen
) -> None:
    """The host removes the package by guest-exec: dpkg ends, its result is told, then the service is stopped"""
    install(fresh, packages)
    with fresh.agent() as agent:
        status = run(agent, "/usr/bin/dpkg", "--purge", "privsep-ga")
        ended = time.monotonic()
        assert status["exitcode"] == 0, status
    while state(fresh, UNIT) == "active":
        assert time.monotonic() - ended < PATIENCE, fresh.check("journalctl -n 40 --no-pager")
        time.sleep(1)
    left = fresh.check(
        "find / -xdev -name '*privsep*' -not -path '/proc/*' -not -path '/root/*' -not -path '/var/log/*'"
    )
    assert not [p for p in left.splitlines() if not p.startswith(f"/etc/systemd/system/{UNIT}.d")], left
    seen("no file of it is left but the administrator's drop-in")
