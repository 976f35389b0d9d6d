"""What SELinux has denied to the agent in an enforcing guest, or denied to others about it, each line told once.

The audit daemon's log in the guest is read from where the last look ended; when the guest is off, from its disk.  A test that wants
a denial takes it by `Shell.denials()`; what nobody took by the end of a test is that test's fault (conftest.py).
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from tests.vm.harness.cache import HarnessError

LOG = "/var/log/audit/audit.log"


def denials(text: str) -> list[str]:
    """Lines of an audit log in which one of our types was denied something, or something was denied to one."""
    return [line for line in text.splitlines() if re.search(r"avc: +denied|SELINUX_ERR", line) and "privsep_ga" in line]


def from_disk(disk: Path) -> bytes:
    """The log of a guest that is off.  Raises HarnessError."""
    raw = disk.with_suffix(".audit")
    try:
        subprocess.run(["qemu-img", "convert", "-O", "raw", str(disk), str(raw)], check=True)
        found = subprocess.run(["debugfs", "-R", f"cat {LOG}", str(raw)], capture_output=True)
    finally:
        raw.unlink(missing_ok=True)
    if found.returncode != 0 or b"type=" not in found.stdout:
        raise HarnessError(f"no audit log on the disk: {found.stderr.decode(errors='replace')[-300:]}")
    return found.stdout
