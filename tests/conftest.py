"""What every test run shares: who may run what, and an account at the end of what did not run and why.

A test that needs something says so by a marker (pyproject.toml lists them).  Where that is missing the test is skipped, and
the last lines of the run name each group that was skipped or left out, with the reason and the number of tests, so that a green
run cannot hide that half of it never happened.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from pathlib import Path

import hypothesis
import msgpack  # noqa: F401 - the whole package, before privsep.codec loads its C half alone
import pytest

from privsep.domains import CAPABILITIES

MARKERS = ("root", "loop", "peer", "vm", "slow")
PEER = "/usr/sbin/qemu-ga"

_deselected: Counter[str] = Counter()

# How long an example takes says more of the machine than of the code.
hypothesis.settings.register_profile(
    "here", hypothesis.settings.default, deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("here")


def _lost_capabilities() -> list[str]:
    """What the privilege table names and this process has not, as in a container (CapEff of proc_pid_status(5))."""
    status = Path("/proc/self/status").read_text()
    effective = next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("CapEff"))
    return [name for name, number in CAPABILITIES.items() if not effective >> number & 1]


def missing(marker: str) -> str:
    """What a test with this marker needs and this machine lacks; empty if it may run."""
    if marker in ("root", "loop"):
        if os.geteuid() != 0:
            return "needs root"
        lost = _lost_capabilities()
        if lost:
            return f"needs root with {', '.join(lost)}"
    if marker == "loop":
        if not os.path.exists("/dev/loop-control"):
            return "needs loop devices (modprobe loop)"
        tools = [t for t in ("mkfs.ext4", "mkfs.xfs", "losetup", "mount") if shutil.which(t) is None]
        if tools:
            return f"needs {', '.join(tools)} (make setup)"
        if "\toverlay\n" not in Path("/proc/filesystems").read_text():
            return "needs overlayfs for a private root"
    if marker == "peer" and not os.access(PEER, os.X_OK):
        return f"needs {PEER} (package qemu-guest-agent)"
    return ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reasons = {marker: missing(marker) for marker in MARKERS}
    for item in items:
        for marker, reason in reasons.items():
            if reason and item.get_closest_marker(marker) is not None:
                item.add_marker(pytest.mark.skip(reason=reason))
                break


def pytest_addoption(parser: pytest.Parser) -> None:
    names = ("plain", "selinux", "both")
    parser.addoption("--vm-image", choices=names, default="both", help="the image that vm tests boot (default: both)")
    parser.addoption("--vm-rows", metavar="FILE", help="where vm tests append a line of JSON for each test")


def pytest_deselected(items: list[pytest.Item]) -> None:
    for item in items:
        groups = [m for m in ("vm", "slow") if item.get_closest_marker(m) is not None]
        _deselected[groups[0] if groups else "by name"] += 1


def _group(nodeid: str) -> str:
    """The folder below tests/ that a test stands in."""
    parts = Path(nodeid.split("::")[0]).parts
    return parts[1] if len(parts) > 2 else parts[-1]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped: Counter[tuple[str, str]] = Counter()
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        skipped[_group(report.nodeid), reason.removeprefix("Skipped: ")] += 1
    how = {"vm": "make test-vm", "slow": "make test-long"}
    if not skipped and not _deselected:
        terminalreporter.write_line("nothing was skipped")
        return
    terminalreporter.section("not run", sep="-")
    for (group, reason), count in sorted(skipped.items()):
        terminalreporter.write_line(f"skipped     {group:14} {count:5}  {reason}")
    for group, count in sorted(_deselected.items()):
        terminalreporter.write_line(f"left out    {group:14} {count:5}  {how.get(group, 'deselected')}")
