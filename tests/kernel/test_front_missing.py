"""An agent whose front cannot run ends, says why, and leaves nothing behind."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from tests.sandbox.test_hostile_front import hostile_program
from tests.support.agent import Agent
from tests.support.loopfs import LoopFs, takes_writes
from tests.support.namespace import isolated

pytestmark = [pytest.mark.root]

BROKEN = {
    "missing": ("", "No such file or directory"),
    "not executable": ("#!/bin/sh\n", "Permission denied"),
    "no interpreter": ("#!/nonexistent/python\n", "No such file or directory"),
    "no program": ("\0\0\0\0", "Exec format error"),
    "ends at once": ("#!/bin/sh\nexit 3\n", "ends before it is ready"),
}


def program(broken: str) -> str:
    folder = Path("/tmp/broken")
    folder.mkdir()
    path = hostile_program(folder, {"front": ""})
    front = folder / "libexec" / "front"
    front.unlink()
    text, _ = BROKEN[broken]
    if text:
        front.write_text(text)
        front.chmod(0o644 if broken == "not executable" else 0o755)
    return path


@pytest.mark.parametrize("log", ["standard error", "file"])  # started early, or by the supervisor
@pytest.mark.parametrize("broken", BROKEN)
@isolated
def test_it_ends_with_status_1_and_says_why(broken: str, log: str) -> None:
    state = Path("/tmp/state")
    state.mkdir()
    words = [
        program(broken),
        "-m",
        "unix-listen",
        "-p",
        "/tmp/state/ga.sock",
        "-t",
        "/tmp/state",
        "--policy",
        "default",
    ]
    if log == "file":
        words += ["-l", "/tmp/state/log"]
    begun = time.monotonic()
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20)
    text = Path("/tmp/state/log").read_text() if log == "file" else done.stderr
    assert done.returncode == 1, text
    assert time.monotonic() - begun < 5
    assert BROKEN[broken][1] in text
    assert "the agent ends" in text
    if "exit 3" not in BROKEN[broken][0]:
        assert "/tmp/broken/libexec/front" in text
    assert not list(Path("/run/privsep-ga").rglob("status"))


@pytest.mark.loop
@isolated
def test_one_that_cannot_be_started_again_while_frozen_is_thawed_for() -> None:
    """As when the package is removed under a running agent."""
    os.environ["PRIVSEP_GA"] = program("missing")
    front = Path("/tmp/broken/libexec/front")
    front.symlink_to(Path(os.readlink("/tmp/broken/libexec/fs")).with_name("front"))
    with LoopFs("ext4") as fs, Agent("--policy", "default") as agent:
        assert agent.call("guest-fsfreeze-freeze-list", mountpoints=fs.points) == 1
        front.unlink()
        os.kill(agent.process("front"), 9)
        assert takes_writes(fs.points[0], 1.0)
        assert agent._process is not None
        assert agent._process.wait(5) == 1
        assert "the agent ends" in agent.log()
