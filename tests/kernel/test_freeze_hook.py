"""The freeze hook: how it is called, what becomes of what it says, and that `thaw` follows `freeze` once, whatever dies."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.faults.runner import write_policy
from tests.support.agent import Agent, AgentError, Client, wait_for
from tests.support.freezekit import Failed, Kit
from tests.support.loopfs import LoopFs, frozen, takes_writes
from tests.support.namespace import PROJECT, isolated

pytestmark = [pytest.mark.root, pytest.mark.loop]

CALLS = Path("/tmp/calls")
LIMITED = "fsfreeze is limited up to"


def hook(body: str) -> str:
    """A hook that notes what it was called with, then does that."""
    path = Path("/tmp/the hook")
    path.write_text(f'#!/bin/sh\necho "$1" >> {CALLS}\n{body}\n')
    path.chmod(0o755)
    return str(path)


def calls() -> list[str]:
    return CALLS.read_text().split() if CALLS.exists() else []


# -- the contract


@isolated
def test_one_argument_the_agent_s_environment_no_input_a_session_of_its_own() -> None:
    path = hook(
        'echo "$#" > /tmp/count; env > /tmp/env; readlink /proc/self/fd/0 > /tmp/input;'
        " cut -d' ' -f1,6 /proc/$$/stat > /tmp/session"
    )
    os.environ["FOR_THE_HOOK"] = "a value"
    with LoopFs("ext4") as fs, Agent("--policy", write_policy(60), f"-F{path}") as agent:
        assert agent.call("guest-fsfreeze-freeze-list", mountpoints=fs.points) == 1
        assert calls() == ["freeze"]
        assert Path("/tmp/count").read_text() == "1\n"
        assert "FOR_THE_HOOK=a value" in Path("/tmp/env").read_text().splitlines()
        assert not [x for x in Path("/tmp/env").read_text().splitlines() if x.startswith(("LISTEN_", "NOTIFY_"))]
        assert Path("/tmp/input").read_text() == "/dev/null\n"
        pid, session = Path("/tmp/session").read_text().split()
        assert pid == session
        assert agent.call("guest-fsfreeze-thaw") == 1
        assert calls() == ["freeze", "thaw"]


@isolated
def test_what_it_says_is_in_the_log_and_bounded_there_and_in_the_error() -> None:
    path = hook(
        'echo "$1 begins"; printf "with \\033[31mcolour\\n"; [ $1 = thaw ] && exit 0;'
        " i=0; while [ $i -lt 20000 ]; do echo line $i of many; i=$((i+1)); done; exit 4"
    )
    with LoopFs("ext4") as fs, Kit(hook=path) as kit:
        with pytest.raises(Failed) as told:
            kit.freeze(fs.points)
        text = str(told.value)
        assert text.startswith("child process has failed to execute fsfreeze hook: freeze begins\n")
        assert "line 1000 of many" in text
        assert len(text) < 70_000
        log = kit.logged()
        assert "hook: hook freeze: failed after " in log
        assert "hook: hook freeze says: freeze begins" in log
        assert "hook: hook freeze says: with \\x1b[31mcolour" in log
        assert "more lines of its output are left out" in log
        assert log.count("hook freeze says: ") == 50
        assert not frozen(fs.points[0], 0.2)
        assert kit.thaw() == 0
        assert "hook: hook thaw says: thaw begins" in kit.logged()
        assert "hook: hook thaw: ok after " in kit.logged()


@isolated
def test_the_hook_that_is_shipped_runs_a_folder_of_scripts() -> None:
    """By name for freeze, in reverse for thaw; one that fails has those before it thawed, and nothing freezes."""
    folder = Path("/tmp/etc")
    (folder / "fsfreeze-hook.d").mkdir(parents=True)
    shutil.copy(PROJECT / "packaging" / "hook" / "fsfreeze-hook", folder)

    def script(name: str, body: str = "") -> None:
        path = folder / "fsfreeze-hook.d" / name
        path.write_text(f'#!/bin/sh\necho {name}-$1 >> {CALLS}\necho "{name} says $1"\n{body}\n')
        path.chmod(0o755)

    script("10-database")
    script("20-queue")
    script("30-left.bak")
    (folder / "fsfreeze-hook.d" / "40-not-executable").write_text("exit 1\n")
    with LoopFs("ext4") as fs, Agent("--policy", write_policy(60), f"-F{folder}/fsfreeze-hook") as agent:
        assert agent.call("guest-fsfreeze-freeze-list", mountpoints=fs.points) == 1
        assert agent.call("guest-fsfreeze-thaw") == 1
        assert calls() == ["10-database-freeze", "20-queue-freeze", "20-queue-thaw", "10-database-thaw"]
        assert "hook thaw says: 10-database says thaw" in agent.log()
        CALLS.unlink()
        script("20-queue", "[ $1 = thaw ]")
        with pytest.raises(AgentError, match=r"20-queue freeze: exit status 1"):
            agent.call("guest-fsfreeze-freeze-list", mountpoints=fs.points)
        assert not frozen(fs.points[0], 0.2)
        assert calls() == ["10-database-freeze", "20-queue-freeze", "10-database-thaw"]
        assert agent.call("guest-fsfreeze-status") == "thawed"


# -- in pairs, whatever dies

SLOW = 0.6  # seconds that a half of the hook takes where something is to die in it


def kill(agent: Agent, names: str) -> None:
    """All at once: none sees another's death first."""
    pids = [agent.process(name) for name in names.split("+")]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def status(client: Client) -> str:
    """A request that meets a death may be the one error that it costs."""
    for _ in range(3):
        with contextlib.suppress(AgentError):
            return str(client.call("guest-fsfreeze-status"))
    raise AssertionError("no status")


def next_one(agent: Agent) -> Agent:
    """What a service manager does: once everything of the old agent is gone, the next."""
    assert agent._process is not None
    agent._process.wait(5)
    time.sleep(SLOW + 0.5)
    again = Agent(*agent._args, directory=agent.directory)
    again.start()
    return again


@pytest.mark.parametrize("when", ["in the freeze hook", "frozen", "in the thaw hook"])
@pytest.mark.parametrize(
    "names", ["fs", "thawer", "hook", "supervisor", "front", "fs+hook", "fs+thawer", "thawer+hook"]
)
@isolated
def test_the_thaw_half_runs_exactly_once_whoever_is_killed(names: str, when: str) -> None:
    path = hook(f'[ "$1" = "$(cat /tmp/slow)" ] && sleep {SLOW:g}; echo "$1-done" >> {CALLS}')
    slow = Path("/tmp/slow")
    slow.write_text("freeze\n" if when == "in the freeze hook" else "no\n")
    with LoopFs("ext4") as fs:
        agent = Agent("--policy", write_policy(60), f"-F{path}")
        agent.start()
        try:
            client = agent.client
            client.request("guest-fsfreeze-freeze-list", {"mountpoints": fs.points})
            if when == "in the freeze hook":
                wait_for(lambda: calls() == ["freeze"])
            else:
                assert client.reply()["return"] == 1
                assert client.call("guest-fsfreeze-status") == "frozen"
                if when == "in the thaw hook":
                    slow.write_text("thaw\n")
                    client.request("guest-fsfreeze-thaw")
                    wait_for(lambda: "thaw" in calls())
            kill(agent, names)
            client.close()
            if names == "supervisor":
                agent = next_one(agent)
                client = agent.client
            else:
                client = agent.connect()
            client.sync(3)
            if status(client) == "frozen":  # it goes on, or nobody who knew of it died
                assert "thaw" not in calls()
                with contextlib.suppress(AgentError):
                    client.call("guest-fsfreeze-thaw")
            wait_for(lambda: "thaw-done" in calls(), 6.0)
            assert takes_writes(fs.points[0], 1.0)
            found = [c for c in calls() if not c.endswith("-done")]
            if when == "in the thaw hook" and "hook" in names:
                # It may not have run to its end: once more is better than never.
                assert found in (["freeze", "thaw"], ["freeze", "thaw", "thaw"])
            else:
                assert found == ["freeze", "thaw"]
        except BaseException:
            print(agent.log(), calls(), file=sys.stderr)
            raise
        finally:
            agent.stop()
        again = [c for c in calls() if not c.endswith("-done")]
        assert again == found


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@isolated
def test_a_stop_while_frozen_thaws_within_a_second_and_waits_for_the_thaw_hook(number: signal.Signals) -> None:
    path = hook(f'[ "$1" = freeze ] || sleep 2; echo "$1-done" >> {CALLS}')
    with LoopFs("ext4", "btrfs") as fs:
        agent = Agent("--policy", write_policy(60), f"-F{path}")
        agent.start()
        assert agent.call("guest-fsfreeze-freeze-list", mountpoints=fs.points) == 2
        assert agent.call("guest-fsfreeze-status") == "frozen"
        begun = time.monotonic()
        os.kill(agent.pid, number)
        assert all(takes_writes(p, 1.0) for p in fs.points)
        assert calls()[-1:] != ["thaw-done"]
        assert agent._process is not None
        assert agent._process.wait(10) == 0
        assert 2.0 < time.monotonic() - begun < 4.0
        assert calls() == ["freeze", "freeze-done", "thaw", "thaw-done"]
        with Agent("--policy", write_policy(60), directory=agent.directory) as again:
            with pytest.raises(AgentError, match=LIMITED):
                again.call("guest-fsfreeze-thaw")
