"""Sleep, in a guest of its own: a machine that has slept is another one under QEMU's q35 (it resets where it should power off)."""

from __future__ import annotations

import time

from tests.vm.harness.machine import Guest
from tests.vm.harness.seen import Seen


def test_suspend_to_memory(guest: Guest, seen: Seen) -> None:
    """guest-suspend-ram, and QEMU's system_wakeup: the agent answers, the same processes"""
    with guest.agent() as agent:
        before = guest.check("systemctl show privsep-ga -p MainPID -p NRestarts")
        begun = time.monotonic()
        agent.ask("guest-suspend-ram")
        guest.qmp.wait("SUSPEND")
        slept = time.monotonic() - begun
        time.sleep(2)
        assert guest.qmp.call("query-status")["status"] == "suspended"
        begun = time.monotonic()
        guest.qmp.call("system_wakeup")
        guest.qmp.wait("WAKEUP")
    with guest.agent() as agent:
        assert agent.call("guest-ping") == {}
        woke = time.monotonic() - begun
    assert guest.check("systemctl show privsep-ga -p MainPID -p NRestarts") == before
    seen(f"event SUSPEND after {slept:.1f} s; answers {woke:.1f} s after the wake-up")
