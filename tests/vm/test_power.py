"""Shutting down and starting again, as QEMU sees it."""

from __future__ import annotations

import time

import pytest

from tests.vm.harness.hostagent import Refused
from tests.vm.harness.machine import Guest
from tests.vm.harness.seen import Seen


def test_reboot(guest: Guest, seen: Seen) -> None:
    """guest-shutdown, mode reboot: QEMU resets the machine, and the agent is there again"""
    guest.qmp.call("set-action", reboot="reset")
    guest.qmp.seen()
    with guest.agent() as agent:
        begun = time.monotonic()
        agent.ask("guest-shutdown", mode="reboot")
        reason = guest.qmp.wait("RESET")["data"]["reason"]
        took = time.monotonic() - begun
    assert reason == "guest-reset"
    guest.wait_control()
    guest.wait_booted()
    with guest.agent() as agent:
        assert agent.call("guest-ping") == {}
    seen(f"event RESET ({reason}) after {took:.1f} s")


def test_halt(guest: Guest, seen: Seen) -> None:
    """guest-shutdown, mode halt: the system halts, QEMU runs on"""
    said = guest.console().count("System halted")
    guest.qmp.seen()
    with guest.agent() as agent:
        begun = time.monotonic()
        agent.ask("guest-shutdown", mode="halt")
        while guest.console().count("System halted") == said:
            assert time.monotonic() - begun < 90, guest.console()[-800:]
            time.sleep(0.2)
        took = time.monotonic() - begun
    assert guest.qmp.call("query-status")["status"] == "running"
    assert "SHUTDOWN" not in guest.qmp.seen()
    guest.qmp.call("system_reset")
    guest.wait_control()
    guest.wait_booted()
    seen(f'"System halted" on the console after {took:.1f} s')


def test_a_mode_that_there_is_not(guest: Guest) -> None:
    """guest-shutdown with an unknown mode: refused in the peer's words, and the system runs on"""
    with guest.agent() as agent:
        with pytest.raises(Refused, match="mode"):
            agent.call("guest-shutdown", mode="sideways")
        assert agent.call("guest-ping") == {}
    assert guest.check("systemctl is-system-running").strip() == "running"


def test_suspend_without_swap(guest: Guest, seen: Seen) -> None:
    """guest-suspend-disk where there is no swap: an error, and the agent answers on"""
    with guest.agent() as agent:
        with pytest.raises(Refused) as refusal:
            agent.call("guest-suspend-disk", limit=120)
        assert agent.call("guest-ping") == {}
    seen(refusal.value.desc)


def test_powerdown(guest: Guest, seen: Seen) -> None:
    """guest-shutdown: QEMU powers off, in order"""
    guest.qmp.seen()
    with guest.agent() as agent:
        begun = time.monotonic()
        agent.ask("guest-shutdown")
        reason = guest.qmp.wait("SHUTDOWN")["data"]["reason"]
        took = time.monotonic() - begun
    assert reason == "guest-shutdown"
    assert guest.wait_exit() == 0
    seen(f"event SHUTDOWN ({reason}) after {took:.1f} s")
