"""The service's life: started by udev, ready by sd_notify(3), and always there for the host."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.vm.harness.machine import Guest
from tests.vm.harness.seen import Seen
from tests.vm.harness.service import UNIT, processes


@pytest.fixture(scope="module")
def guest(image: str) -> Iterator[Guest]:
    """One that boots, where others go on from a saved one."""
    with Guest(image, boot=True) as booted:
        booted.wait_booted()
        yield booted


def show(guest: Guest, *names: str) -> dict[str, str]:
    text = guest.check(f"systemctl show {UNIT} -p {','.join(names)}")
    return dict(line.split("=", 1) for line in text.splitlines())


def test_udev_starts_it_and_systemd_hears_that_it_is_ready(guest: Guest, seen: Seen) -> None:
    """Started by udev and systemd, ready by notification, and no unit failed"""
    with guest.agent() as agent:
        assert agent.call("guest-ping") == {}
    state = show(
        guest,
        "ActiveState",
        "SubState",
        "Type",
        "StatusErrno",
        "NRestarts",
        "ExecMainStartTimestampMonotonic",
        "ActiveEnterTimestampMonotonic",
    )
    assert (state["ActiveState"], state["SubState"], state["Type"]) == ("active", "running", "notify")
    assert state["NRestarts"] == "0"
    assert guest.check("systemctl list-units --failed --plain --no-legend") == ""
    wanted = guest.check("udevadm info -q property -n virtio-ports/org.qemu.guest_agent.0")
    assert f"SYSTEMD_WANTS={UNIT}" in wanted
    took = (int(state["ActiveEnterTimestampMonotonic"]) - int(state["ExecMainStartTimestampMonotonic"])) / 1e6
    seen(f"guest up after {guest.boot_seconds:.0f} s, the agent ready {took:.2f} s after its start")


def test_it_survives_the_host_closing_and_opening_the_port(guest: Guest, seen: Seen) -> None:
    """The host closes and opens the port, with a request half sent, again and again"""
    before = processes(guest)
    for _ in range(20):
        with guest.agent() as agent:
            assert agent.call("guest-ping") == {}
            agent.send(b'{"execute": "guest-')
    with guest.agent() as agent:
        assert agent.call("guest-get-host-name")["host-name"] == "guest"
    after = processes(guest)
    assert {n: after[n] for n in ("supervisor", "front")} == {n: before[n] for n in ("supervisor", "front")}
    seen("20 times, the same processes")


def test_the_port_goes_away_and_comes_back(guest: Guest, seen: Seen) -> None:
    """The port is unplugged and plugged: the service stops and comes back by itself"""
    guest.qmp.call("device_del", id="agent")
    guest.qmp.wait("DEVICE_DELETED")
    end = time.monotonic() + 60
    while show(guest, "ActiveState")["ActiveState"] != "inactive":
        assert time.monotonic() < end, show(guest, "ActiveState", "SubState")
        time.sleep(0.5)
    begun = time.monotonic()
    guest.qmp.call(
        "device_add",
        driver="virtserialport",
        bus="ports.0",
        nr=1,
        chardev="agent",
        id="agent",
        name="org.qemu.guest_agent.0",
    )
    with guest.agent() as agent:
        assert agent.call("guest-ping") == {}
    seen(f"answers {time.monotonic() - begun:.1f} s after it was plugged")


def test_a_killed_service_comes_back(guest: Guest, seen: Seen) -> None:
    """`kill -9` of the whole service: systemd starts it again"""
    begun = time.monotonic()
    guest.check(f"systemctl kill --signal=KILL {UNIT}")
    with guest.agent() as agent:
        assert agent.call("guest-ping") == {}
    assert int(show(guest, "NRestarts")["NRestarts"]) >= 1
    seen(f"answers again after {time.monotonic() - begun:.1f} s")


def test_the_host_restarts(guest: Guest, seen: Seen) -> None:
    """The guest is reset (a host that restarts it): the agent is there after the next boot"""
    first = guest.check("cat /proc/sys/kernel/random/boot_id")
    guest.qmp.call("set-action", reboot="reset")  # QEMU was told to end instead
    guest.qmp.call("system_reset")
    guest.qmp.wait("RESET")
    guest.wait_control()
    guest.wait_booted()
    assert guest.check("cat /proc/sys/kernel/random/boot_id") != first
    with guest.agent() as agent:
        assert agent.call("guest-ping") == {}
    assert show(guest, "ActiveState")["ActiveState"] == "active"
