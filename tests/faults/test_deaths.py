"""kill -9 of any process while a file system is frozen: it is writable again in time, and nobody is told that it held when
it did not."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

import pytest

from tests.support.agent import Agent, AgentError, wait_for
from tests.support.loopfs import LoopFs, frozen, takes_writes
from tests.support.namespace import isolated

pytestmark = [pytest.mark.root, pytest.mark.loop]

LIMITED = "fsfreeze is limited up to"
FILE_SYSTEMS = ["ext4", "xfs", "btrfs"]


def policy(seconds: int) -> str:
    """A policy file that allows what the default profile does, with that deadline."""
    path = Path("/tmp/policy.toml")
    path.write_text(f'profile = "default"\n\n[fsfreeze]\nauto-thaw = {seconds}\n')
    path.chmod(0o644)
    return str(path)


def freeze(agent: Agent, fs: LoopFs) -> None:
    assert agent.call("guest-fsfreeze-freeze-list", mountpoints=fs.points) == len(fs.points)
    assert agent.call("guest-fsfreeze-status") == "frozen"
    assert all(frozen(p, 0.2) for p in fs.points)


def told_lapse(agent: Agent) -> None:
    """The next thaw says that the freeze did not hold, the one after that is normal."""
    with pytest.raises(AgentError, match=LIMITED):
        agent.call("guest-fsfreeze-thaw")
    assert agent.call("guest-fsfreeze-thaw") == 0
    assert agent.call("guest-fsfreeze-status") == "thawed"


@pytest.mark.parametrize("fstype", FILE_SYSTEMS)
@isolated
def test_fs_worker_killed_the_freeze_goes_on_and_a_thaw_is_honest(fstype: str) -> None:
    with LoopFs(fstype) as fs, Agent("--policy", policy(60)) as agent:
        freeze(agent, fs)
        victim = agent.process("fs")
        os.kill(victim, signal.SIGKILL)
        assert agent.call("guest-fsfreeze-status") == "frozen"
        assert all(frozen(p, 0.3) for p in fs.points)
        assert agent.process("fs") != victim
        assert agent.call("guest-fsfreeze-thaw") == 1
        assert all(takes_writes(p, 1.0) for p in fs.points)
        assert agent.call("guest-get-osinfo")["id"]


@pytest.mark.parametrize("fstype", FILE_SYSTEMS)
@isolated
def test_thawer_killed_it_is_thawed_at_once_and_the_host_is_told(fstype: str) -> None:
    with LoopFs(fstype) as fs, Agent("--policy", policy(60)) as agent:
        freeze(agent, fs)
        os.kill(agent.process("thawer"), signal.SIGKILL)
        assert all(takes_writes(p, 1.0) for p in fs.points)
        told_lapse(agent)
        assert agent.call("guest-fsfreeze-freeze-list", mountpoints=fs.points) == 1
        assert agent.call("guest-fsfreeze-thaw") == 1


@pytest.mark.parametrize("fstype", FILE_SYSTEMS)
@isolated
def test_front_killed_the_freeze_goes_on_and_a_thaw_is_honest(fstype: str) -> None:
    with LoopFs(fstype) as fs, Agent("--policy", policy(60)) as agent:
        freeze(agent, fs)
        os.kill(agent.process("front"), signal.SIGKILL)
        client = agent.connect()
        assert client.call("guest-fsfreeze-status") == "frozen"
        with pytest.raises(AgentError, match="frozen state"):
            client.call("guest-get-osinfo")
        assert all(frozen(p, 0.3) for p in fs.points)
        assert client.call("guest-fsfreeze-thaw") == 1
        assert all(takes_writes(p, 1.0) for p in fs.points)


@pytest.mark.parametrize("fstype", FILE_SYSTEMS)
@isolated
def test_supervisor_killed_it_is_thawed_at_once_and_a_restarted_agent_tells(fstype: str) -> None:
    with LoopFs(fstype) as fs, Agent("--policy", policy(60)) as agent:
        freeze(agent, fs)
        os.kill(agent.pid, signal.SIGKILL)
        assert all(takes_writes(p, 1.0) for p in fs.points)
        agent._process.wait()  # type: ignore[union-attr]
        with Agent("--policy", policy(60), directory=agent.directory) as again:
            assert again.call("guest-fsfreeze-status") == "thawed"
            told_lapse(again)


@pytest.mark.parametrize("fstype", FILE_SYSTEMS)
@isolated
def test_all_killed_at_once_the_next_start_thaws_and_tells(fstype: str) -> None:
    with LoopFs(fstype) as fs, Agent("--policy", policy(60)) as agent:
        freeze(agent, fs)
        processes = agent.processes().values()
        for pid in processes:
            os.kill(pid, signal.SIGSTOP)  # so that none sees another's death
        for pid in processes:
            os.kill(pid, signal.SIGKILL)
        agent._process.wait()  # type: ignore[union-attr]
        assert all(frozen(p, 0.3) for p in fs.points)  # without a service manager nobody is left
        with Agent("--policy", policy(60), directory=agent.directory) as again:
            assert all(takes_writes(p, 1.0) for p in fs.points)
            told_lapse(again)


@isolated
def test_nobody_thaws_the_watchdog_does_and_the_host_is_told() -> None:
    with LoopFs(*FILE_SYSTEMS) as fs, Agent("--policy", policy(2)) as agent:
        begun = time.monotonic()
        assert agent.call("guest-fsfreeze-freeze-list", mountpoints=fs.points) == 3
        assert all(takes_writes(p, 5.0) for p in fs.points)
        assert 1.9 < time.monotonic() - begun < 3.5
        assert agent.call("guest-fsfreeze-status") == "thawed"
        told_lapse(agent)


@pytest.mark.parametrize("stopped", ["fs", "thawer", "supervisor", "fs+thawer", "fs+front+supervisor"])
@isolated
def test_a_stopped_process_costs_the_deadline_and_no_more(stopped: str) -> None:
    with LoopFs("ext4") as fs, Agent("--policy", policy(2)) as agent:
        freeze(agent, fs)
        pids = [agent.process(name) for name in stopped.split("+")]
        try:
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            assert takes_writes(fs.points[0], 4.0)
        finally:
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGCONT)
                except ProcessLookupError:
                    pass
        time.sleep(0.3)
        assert takes_writes(fs.points[0], 0.5)
        told_lapse(agent)


@isolated
def test_a_death_of_fs_beside_a_watchdog_that_is_stopped_costs_the_deadline_and_no_more() -> None:
    """Nobody may start another fs meanwhile: it would ask a watchdog that does not answer, or think that nothing is frozen."""
    with LoopFs("ext4") as fs, Agent("--policy", policy(2)) as agent:
        freeze(agent, fs)
        worker, thawer = agent.process("fs"), agent.process("thawer")
        os.kill(thawer, signal.SIGSTOP)
        try:
            os.kill(worker, signal.SIGKILL)
            assert takes_writes(fs.points[0], 5.0)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(thawer, signal.SIGCONT)
        told_lapse(agent)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@isolated
def test_sigterm_while_frozen_thaws_within_a_second_and_exits_0(number: signal.Signals) -> None:
    with LoopFs(*FILE_SYSTEMS) as fs:
        agent = Agent("--policy", policy(60))
        agent.start()
        freeze(agent, fs)
        begun = time.monotonic()
        os.kill(agent.pid, number)
        assert all(takes_writes(p, 1.0) for p in fs.points)
        assert agent._process.wait(5) == 0  # type: ignore[union-attr]
        assert time.monotonic() - begun < 2.0
        with Agent("--policy", policy(60), directory=agent.directory) as again:
            told_lapse(again)


@isolated
def test_a_worker_that_is_killed_costs_one_error_within_100_ms_and_nothing_else() -> None:
    hook = Path("/tmp/slow-hook")
    hook.write_text("#!/bin/sh\n[ $1 = thaw ] || { touch /tmp/in-hook; sleep 5; }\n")
    hook.chmod(0o755)
    with Agent("--policy", "qemu-ga", f"-F{hook}") as agent:
        agent.client.request("guest-fsfreeze-freeze-list", {"mountpoints": []})
        wait_for(Path("/tmp/in-hook").exists)
        begun = time.monotonic()
        os.kill(agent.process("fs"), signal.SIGKILL)
        reply = agent.client.reply()
        assert time.monotonic() - begun < 0.1
        assert "died" in reply["error"]["desc"]
        assert agent.call("guest-get-osinfo")["id"]
        assert agent.call("guest-ping") == {}


@isolated
def test_a_request_that_a_dying_worker_never_read_goes_to_the_next_one() -> None:
    with Agent("--policy", "qemu-ga") as agent:
        agent.call("guest-get-osinfo")
        victim = agent.process("inventory")
        os.kill(victim, signal.SIGSTOP)
        agent.client.request("guest-get-osinfo")
        time.sleep(0.1)
        os.kill(victim, signal.SIGKILL)
        assert agent.client.reply()["return"]["id"]


@isolated
def test_a_worker_that_keeps_dying_is_throttled_and_its_commands_fail_with_an_error() -> None:
    with Agent("--policy", "qemu-ga") as agent:
        for _ in range(4):
            agent.call("guest-get-load")
            pid = agent.process("inventory")
            os.kill(pid, signal.SIGKILL)
            wait_for(lambda pid=pid: agent.processes().get("inventory") != pid, 5)
        begun = time.monotonic()
        agent.call("guest-get-load")
        assert time.monotonic() - begun > 0.2
        assert agent.call("guest-ping") == {}


@isolated
def test_fs_that_dies_when_nothing_is_frozen_is_asked_again_while_its_helpers_leave() -> None:
    hook = Path("/tmp/hook")
    hook.write_text("#!/bin/sh\nexit 0\n")
    hook.chmod(0o755)
    with LoopFs("ext4") as fs, Agent("--policy", policy(60), f"-F{hook}") as agent:
        supervisor = agent.pid
        for _ in range(4):
            assert agent.call("guest-fsfreeze-status") == "thawed"
            os.kill(agent.process("fs"), signal.SIGKILL)
            assert agent.call("guest-fsfreeze-status") == "thawed"
        assert agent.call("guest-fsfreeze-freeze-list", mountpoints=fs.points) == 1
        assert agent.call("guest-fsfreeze-thaw") == 1
        assert agent.processes()["supervisor"] == supervisor
