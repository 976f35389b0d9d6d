"""Workers that policy wants up before anybody asks: they come behind the start, stay, and come back."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.support.agent import Agent, wait_for

pytestmark = pytest.mark.root
ALONE = {"supervisor", "front"}


def policy(folder: Path, *names: str, more: str = "") -> str:
    path = folder / "policy.toml"
    listed = ", ".join(f'"{n}"' for n in names)
    path.write_text(f'profile = "default"\n[workers]\npreload = [{listed}]\n{more}')
    path.chmod(0o644)
    return str(path)


def test_they_come_unasked_and_after_the_first_answer(tmp_path: Path) -> None:
    with Agent("--policy", policy(tmp_path, "inventory", "network")) as agent:
        assert agent.call("guest-ping") == {}
        assert agent.processes().keys() == ALONE  # not in the way
        wait_for(lambda: agent.processes().keys() == ALONE | {"inventory", "network"})
        assert agent.call("guest-get-osinfo")["id"]


def test_one_that_dies_comes_back_unasked(tmp_path: Path) -> None:
    with Agent("--policy", policy(tmp_path, "inventory")) as agent:
        wait_for(lambda: "inventory" in agent.processes())
        first = agent.processes()["inventory"]
        os.kill(first, signal.SIGKILL)
        wait_for(lambda: agent.processes().get("inventory", first) != first)


def test_one_without_an_allowed_command_does_not_come(tmp_path: Path) -> None:
    with Agent("--policy", policy(tmp_path, "exec", "time", more='[commands]\nblock = ["@time"]\n')) as agent:
        assert agent.call("guest-ping") == {}
        time.sleep(1.0)
        assert agent.processes().keys() == ALONE
