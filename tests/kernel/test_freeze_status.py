"""What privsep-gactl status says of a freeze and of what the agent could not have."""

from __future__ import annotations

import ctypes
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from privsep.domains import CAPABILITIES
from tests.faults.runner import write_policy
from tests.support.agent import Agent, AgentError, wait_for
from tests.support.loopfs import LoopFs, frozen, takes_writes
from tests.support.namespace import PROJECT, isolated

pytestmark = [pytest.mark.root, pytest.mark.loop]

_PR_CAPBSET_DROP = 24


def gactl(*words: str) -> str:
    command = [sys.executable, "-m", "privsep.ctl", *words]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True).stdout


def status() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(gactl("status", "--json"))
    return found


@isolated
def test_the_time_that_is_left_is_shown_while_frozen() -> None:
    with LoopFs("ext4") as fs, Agent("--policy", write_policy(50)) as agent:
        assert (status()["frozen"], status()["thaws-in"], status()["auto-thaw"]) == (False, None, 50)
        assert "frozen   no\n" in gactl("status")
        assert agent.call("guest-fsfreeze-freeze-list", mountpoints=fs.points) == 1
        first = status()
        assert first["frozen"]
        assert 40 < first["thaws-in"] <= 50
        time.sleep(0.3)
        match = re.search(r"frozen   yes, thaws by itself in (\d+\.\d) s\n", gactl("status"))
        assert match
        assert float(match[1]) < first["thaws-in"]
        assert agent.call("guest-fsfreeze-thaw") == 1
        wait_for(lambda: not status()["frozen"])
        assert status()["thaws-in"] is None


@isolated
def test_without_a_time_limit_it_is_warned_at_the_start_and_in_the_status() -> None:
    with LoopFs("ext4") as fs, Agent("--policy", write_policy(0)) as agent:
        wait_for(lambda: "warning: supervisor: auto-thaw is 0: " in agent.log())
        warning = "; warning: auto-thaw is 0, so a freeze that the host does not end lasts for ever\n"
        assert "frozen   no" + warning in gactl("status")
        assert agent.call("guest-fsfreeze-freeze-list", mountpoints=fs.points) == 1
        assert "frozen   yes" + warning in gactl("status")
        assert (status()["auto-thaw"], status()["thaws-in"]) == (0, None)
        assert agent.call("guest-fsfreeze-thaw") == 1
    with Agent("--policy", "minimal"):  # which cannot freeze
        assert status()["auto-thaw"] is None


def impatient(seconds: int) -> str:
    path = write_policy(0, "/tmp/impatient.toml")
    with open(path, "a") as file:
        file.write(f"auto-thaw-on-disconnect = {seconds}\n")
    return path


@isolated
def test_a_deadline_that_became_shorter_is_the_one_that_is_shown() -> None:
    with LoopFs("ext4") as fs, Agent("--policy", impatient(30)) as agent:
        assert agent.call("guest-fsfreeze-freeze-list", mountpoints=fs.points) == 1
        assert status()["thaws-in"] is None
        agent.client.close()
        left = wait_for(lambda: status()["thaws-in"])
        assert 20 < left <= 30
        client = agent.connect()
        assert client.call("guest-fsfreeze-thaw") == 1


@isolated
def test_the_supervisor_keeps_the_shorter_deadline_too() -> None:
    """With the thawer stopped nobody else does."""
    with LoopFs("ext4") as fs, Agent("--policy", impatient(1)) as agent:
        assert agent.call("guest-fsfreeze-freeze-list", mountpoints=fs.points) == 1
        assert agent.call("guest-fsfreeze-status") == "frozen"
        thawer = agent.process("thawer")
        agent.client.close()
        wait_for(lambda: status()["thaws-in"])
        os.kill(thawer, signal.SIGSTOP)
        assert frozen(fs.points[0], 0.1)
        assert takes_writes(fs.points[0], 3.0)
        client = agent.connect()
        client.sync(2)
        with pytest.raises(AgentError, match="fsfreeze is limited up to"):
            client.call("guest-fsfreeze-thaw")


@isolated
def test_what_could_not_be_had_is_in_the_log_and_in_the_status() -> None:
    """Without CAP_IPC_LOCK and with a limit of nothing; freezing works all the same."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    with LoopFs("ext4") as fs:
        assert prctl(_PR_CAPBSET_DROP, CAPABILITIES["IPC_LOCK"], 0, 0, 0) == 0
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))
        with Agent("--policy", write_policy(60)) as agent:
            assert agent.call("guest-fsfreeze-freeze-list", mountpoints=fs.points) == 1
            lines = status()["degraded"]
            for name in ("fs", "thawer"):
                assert f"{name}: its memory is not locked (LimitMEMLOCK= or CAP_IPC_LOCK is missing)" in lines
                if int(Path("/proc/self/oom_score_adj").read_text()) >= 0:
                    assert f"{name}: it may be killed when memory is short (OOMScoreAdjust= is not set)" in lines
            assert "degraded: thawer: its memory is not locked" in gactl("status")
            assert agent.call("guest-fsfreeze-thaw") == 1
            for name in ("fs", "thawer"):
                wait_for(lambda name=name: f"warning: {name}: degraded: memory is not locked: " in agent.log())


@isolated
def test_what_is_there_is_not_called_degraded() -> None:
    with LoopFs("ext4") as fs, Agent("--policy", write_policy(60)) as agent:
        assert agent.call("guest-fsfreeze-freeze-list", mountpoints=fs.points) == 1
        assert [line for line in status()["degraded"] if "Landlock" not in line and "memory is short" not in line] == []
        assert agent.call("guest-fsfreeze-thaw") == 1
