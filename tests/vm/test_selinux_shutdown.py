"""SELinux enforcing: the way down, read from the disk of the guest when it is off."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.vm.harness.machine import Guest
from tests.vm.harness.seen import Seen
from tests.vm.test_selinux import AUDIT, denials


@pytest.mark.parametrize("mode", ["powerdown", "reboot"])
def test_shutting_down(mode: str, tmp_path: Path, seen: Seen) -> None:
    """Shutting down works, and nothing was denied on the way"""
    with Guest("selinux") as guest:
        guest.wait_booted()
        with guest.agent() as agent:
            agent.ask("guest-shutdown", mode=mode)
            reason = guest.qmp.wait("SHUTDOWN", limit=180)["data"]["reason"]
        guest.wait_exit()
        disk = tmp_path / "root"
        subprocess.run(["qemu-img", "convert", "-O", "raw", str(guest.disk("root")), str(disk)], check=True)
        text = subprocess.run(["debugfs", "-R", f"cat {AUDIT}", str(disk)], capture_output=True, text=True, check=True)
    assert "avc" in text.stdout or "type=" in text.stdout
    assert denials(text.stdout) == []
    seen(f"{mode}: {reason}")
