"""Each capability of each row is needed: without it the worker's own work fails, and says so.

The agent under test is the real one, started by entry scripts that take one capability out of the table first, in the
supervisor and in every child alike.  (With all of them the same work is done in the other tests of this folder.)
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path

import pytest

from privsep.domains import BY_NAME, DOMAINS
from tests.support.agent import PROJECT, Agent, AgentError
from tests.support.deadman import DeadMan
from tests.support.handlers import confined
from tests.support.loopfs import LoopFs, frozen, takes_writes
from tests.support.namespace import isolated

pytestmark = [pytest.mark.root, pytest.mark.loop]

ENTRY = """#!{python} -IS
import sys
sys.dont_write_bytecode = True
sys.path.insert(0, {project!r})
sys.path.append({libraries!r})
import privsep.domains
row = privsep.domains.BY_NAME[{domain!r}]
row.caps = {{name: why for name, why in row.caps.items() if name != {capability!r}}}
{call}
"""


class Lesser(Agent):
    """An agent whose table lacks one capability of one row."""

    def __init__(self, domain: str, capability: str, *args: str) -> None:
        super().__init__(*args)
        self._folder = Path(self.directory) / "libexec"
        shutil.copytree(PROJECT / ".venv/libexec/privsep-ga", self._folder)
        values = {
            "python": os.path.realpath(sys.executable),
            "project": str(PROJECT),
            "libraries": next(p for p in sys.path if p.endswith("site-packages")),
            "domain": domain,
            "capability": capability,
        }
        for row in DOMAINS:
            call = f"from privsep.child import main; main({row.name!r}, {str(self._folder / 'filters')!r})"
            (self._folder / row.name).write_text(ENTRY.format(**values, call=call))
        self._program = Path(self.directory) / "agent"
        call = f"from privsep.cli import main; sys.exit(main(libexec={str(self._folder)!r}))"
        self._program.write_text(ENTRY.format(**values, call=call))
        self._program.chmod(0o755)
        os.chmod(self.directory, 0o755)

    def command(self) -> list[str]:
        return [str(self._program), *super().command()[1:]]


def entries() -> set[tuple[str, str]]:
    return {(d.name, c) for d in DOMAINS for c in d.caps if c != "ALL"}


def test_every_capability_of_the_table_stands_in_these_tests_or_beside_its_worker() -> None:
    assert entries() == {
        ("fs", "SYS_ADMIN"),
        ("fs", "DAC_READ_SEARCH"),
        ("fs", "IPC_LOCK"),
        ("thawer", "SYS_ADMIN"),
        ("thawer", "IPC_LOCK"),
        ("trim", "SYS_ADMIN"),
        ("trim", "DAC_READ_SEARCH"),
        ("time", "SYS_TIME"),
        ("file", "DAC_OVERRIDE"),
        ("user", "CHOWN"),  # test_user_password.py
        ("ssh", "SETUID"),  # test_ssh_as_user.py
        ("ssh", "SETGID"),  # test_ssh_as_user.py
    }


@isolated
def test_fs_without_sys_admin_freezes_nothing() -> None:
    with LoopFs("ext4") as fs, Lesser("fs", "SYS_ADMIN", "--policy", "qemu-ga") as agent:
        with pytest.raises(AgentError, match=r"failed to freeze .*: Operation not permitted"):
            agent.call("guest-fsfreeze-freeze-list", mountpoints=fs.points)
        assert agent.call("guest-fsfreeze-status") == "thawed"
        assert takes_writes(fs.points[0], 1)


@pytest.mark.parametrize("capability", ["", "DAC_READ_SEARCH"])
@isolated
def test_fs_opens_a_mount_point_that_only_its_owner_may_enter_by_dac_read_search(capability: str) -> None:
    with LoopFs("ext4") as fs, Lesser("fs", capability, "--policy", "qemu-ga") as agent:
        os.chown(fs.points[0], 12345, 12345)
        os.chmod(fs.points[0], 0o700)
        if not capability:
            assert agent.call("guest-fsfreeze-freeze-list", mountpoints=fs.points) == 1
            assert agent.call("guest-fsfreeze-thaw") == 1
            return
        with pytest.raises(AgentError, match=f"failed to open {fs.points[0]}: Permission denied"):
            agent.call("guest-fsfreeze-freeze-list", mountpoints=fs.points)


@pytest.mark.parametrize("domain", ["fs", "thawer"])
@isolated
def test_without_ipc_lock_memory_is_not_locked_and_the_log_says_so(domain: str) -> None:
    with LoopFs("ext4") as fs, Lesser(domain, "IPC_LOCK", "--policy", "qemu-ga") as agent:
        agent.call("guest-fsfreeze-freeze-list", mountpoints=fs.points)
        agent.call("guest-fsfreeze-thaw")
        time.sleep(0.2)
        assert [line for line in agent.log().splitlines() if f"{domain}: degraded: memory is not locked" in line]


@isolated
def test_thawer_without_sys_admin_thaws_nothing_and_says_so_and_the_supervisor_does() -> None:
    policy = Path("/tmp/policy.toml")
    policy.write_text('profile = "qemu-ga"\n\n[fsfreeze]\nauto-thaw = 2\n')
    with LoopFs("ext4") as fs, DeadMan(30, *fs.points), Lesser("thawer", "SYS_ADMIN", "--policy", str(policy)) as agent:
        assert agent.call("guest-fsfreeze-freeze-list", mountpoints=fs.points) == 1
        with pytest.raises(AgentError):
            agent.call("guest-fsfreeze-thaw")
        assert frozen(fs.points[0], 0.2)
        assert takes_writes(fs.points[0], 6)


@pytest.mark.parametrize("capability", ["", "SYS_ADMIN", "DAC_READ_SEARCH"])
@isolated
def test_trim_needs_sys_admin_to_trim_and_dac_read_search_to_open(capability: str) -> None:
    with LoopFs("ext4") as fs, Lesser("trim", capability, "--policy", "qemu-ga") as agent:
        os.chown(fs.points[0], 12345, 12345)
        os.chmod(fs.points[0], 0o700)
        (found,) = agent.call("guest-fstrim")["paths"]
        error = {
            "": None,
            "SYS_ADMIN": "failed to trim: Operation not permitted",
            "DAC_READ_SEARCH": "failed to open: Permission denied",
        }
        assert found.get("error") == error[capability]
        assert ("trimmed" in found) == (not capability)


@pytest.mark.parametrize("capability", ["", "DAC_OVERRIDE"])
@isolated
def test_file_opens_what_belongs_to_others_by_dac_override(capability: str) -> None:
    path = Path("/tmp/of-somebody")
    path.write_text("theirs")
    os.chown(path, 12345, 12345)
    path.chmod(0o600)
    with Lesser("file", capability, "--policy", "qemu-ga") as agent:
        if not capability:
            assert agent.call("guest-file-open", path=str(path)) >= 1000
            return
        with pytest.raises(AgentError, match="Permission denied"):
            agent.call("guest-file-open", path=str(path))


def test_the_clock_cannot_be_set_without_sys_time() -> None:
    # Only this side: this machine's clock is not for tests, the other one is shown in a virtual machine.
    answer = confined("time", lambda: time.clock_settime_ns(time.CLOCK_REALTIME, time.time_ns()), without="SYS_TIME")
    assert isinstance(answer, PermissionError)
    assert set(BY_NAME["time"].caps) == {"SYS_TIME"}
