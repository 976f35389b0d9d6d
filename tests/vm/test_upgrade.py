"""The package is exchanged from inside: by the host, through the agent that is exchanged."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from tests.vm.harness.hostagent import HostAgent
from tests.vm.harness.machine import Guest
from tests.vm.harness.seen import Seen
from tests.vm.harness.service import UNIT, set_policy

TREE = Path(__file__).resolve().parents[2]
NEWER = "99.0"
LATER = "privsep-ga-{}-when-idle.service"
SLOW = 600.0  # dpkg and the compilation of the modules in an emulated guest
PATIENCE = 120.0  # the grace is 20 s


@pytest.fixture(scope="module")
def newer(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The same package under a higher version than that in the image."""
    out = tmp_path_factory.mktemp("deb")
    script = [TREE / "packaging/deb.sh", "--version", NEWER, "--out", out]
    run = subprocess.run(script, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return Path(run.stdout.strip()).read_bytes()


def main_pid(guest: Guest) -> str:
    return guest.check(f"systemctl show -P MainPID {UNIT}").strip()


def state(guest: Guest, unit: str) -> str:
    return guest.check(f"systemctl show -P ActiveState {unit}").strip()


@pytest.fixture(scope="module")
def own(guest: Guest) -> Guest:
    """This module's guest, with a policy under which the host may run programs."""
    set_policy(guest, "ansible", dropin="ansible")
    return guest


def run(agent: HostAgent, *words: str) -> dict[str, object]:
    pid = agent.call("guest-exec", path=words[0], arg=list(words[1:]), capture_output=True)["pid"]
    end = time.monotonic() + SLOW
    while not (status := agent.call("guest-exec-status", pid=pid))["exited"]:
        assert time.monotonic() < end
        time.sleep(0.5)
    return status


def test_an_upgrade_by_guest_exec_ends_well_and_the_restart_follows(own: Guest, newer: bytes, seen: Seen) -> None:
    """The host upgrades the package by guest-exec: dpkg ends, its result is told, then the service is restarted"""
    own.put(newer, f"/root/{NEWER}.deb")
    before = main_pid(own)
    with own.agent() as agent:
        status = run(agent, "/usr/bin/dpkg", "-i", f"/root/{NEWER}.deb")
        ended = time.monotonic()
        assert status["exitcode"] == 0, status
        assert main_pid(own) == before
        assert state(own, LATER.format("restart")) == "active"
    assert own.check("dpkg-query -W -f '${Status} ${Version}' privsep-ga") == f"install ok installed {NEWER}"
    while main_pid(own) == before or state(own, UNIT) != "active":
        assert time.monotonic() - ended < PATIENCE, own.check("journalctl -n 40 --no-pager")
        time.sleep(1)
    took = time.monotonic() - ended
    with own.agent() as agent:
        assert agent.call("guest-ping") == {}
        assert run(agent, "/usr/bin/dpkg", "--audit")["exitcode"] == 0
    assert own.check("privsep-gactl selfcheck")
    seen(f"restarted {took:.0f} s after the result was fetched")


def test_without_its_port_an_installation_does_not_wait_for_it(own: Guest, seen: Seen) -> None:
    """Where the host gives no port the package installs at once; udev starts the service when one comes"""
    own.qmp.call("device_del", id="agent")
    own.qmp.wait("DEVICE_DELETED")
    end = time.monotonic() + PATIENCE
    while state(own, UNIT) != "inactive":
        assert time.monotonic() < end
        time.sleep(0.5)
    took = float(own.check("t=$(cut -d' ' -f1 /proc/uptime); /usr/libexec/privsep-ga/when-idle start; "
                           "awk -v t=$t '{ print $1 - t }' /proc/uptime"))  # fmt: skip
    assert took < 30, took
    own.qmp.call(
        "device_add", driver="virtserialport", bus="ports.0", nr=1, chardev="agent", id="agent", name="org.qemu.guest_agent.0"
    )  # fmt: skip
    with own.agent() as agent:
        assert agent.call("guest-ping") == {}
    seen(f"{took:.1f} s")


def test_a_removal_by_guest_exec_ends_well_and_the_stop_follows(own: Guest, seen: Seen) -> None:
    """The host removes the package by guest-exec: dpkg ends, its result is told, then the service is stopped"""
    with own.agent() as agent:
        status = run(agent, "/usr/bin/dpkg", "--purge", "privsep-ga")
        ended = time.monotonic()
        assert status["exitcode"] == 0, status
    while state(own, UNIT) == "active":
        assert time.monotonic() - ended < PATIENCE, own.check("journalctl -n 40 --no-pager")
        time.sleep(1)
    while (
        own.sh("grep privsep-ga /etc/passwd /etc/group /etc/shadow").status == 0
        or own.sh("ls -d /run/privsep-ga /var/lib/selinux/default/active/modules/400/privsep_ga").out
    ):
        assert time.monotonic() - ended < SLOW, own.check("journalctl -n 40 --no-pager")
        time.sleep(1)
    left = own.check("find / -xdev -name '*privsep*' -not -path '/proc/*' -not -path '/root/*' -not -path '/var/log/*'")
    assert not [p for p in left.splitlines() if not p.startswith(f"/etc/systemd/system/{UNIT}.d")], left
    seen("no file and no account of it is left but the administrator's drop-in")
