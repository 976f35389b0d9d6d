"""What hosts do around a snapshot when things do not go well, with the answer that keeps their backup honest.

libvirt (virDomainFSFreeze) syncs before each command, gives up after a time-out of its own and then syncs again; Proxmox VE
asks the status when its freeze timed out and thaws in any case; KubeVirt's virt-launcher goes through libvirt, asks the status
between, and thaws once more when it does not know.  Each of them takes an error from guest-fsfreeze-thaw as "the snapshot is
not consistent".
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.faults.runner import write_policy
from tests.support.agent import Agent, AgentError, Client, wait_for
from tests.support.loopfs import LoopFs, frozen, takes_writes
from tests.support.namespace import isolated

pytestmark = [pytest.mark.root, pytest.mark.loop]

LIMITED = "fsfreeze is limited up to"
DISABLED = "has been disabled"
SLOW = 1.0  # seconds that the slow hook takes


def slow_hook() -> str:
    """A freeze hook that outlasts the host's patience, and says when it began."""
    path = Path("/tmp/slow-hook")
    path.write_text(f'#!/bin/sh\necho $1 >> /tmp/calls\n[ "$1" = thaw ] || sleep {SLOW:g}\n')
    path.chmod(0o755)
    return f"-F{path}"


def hook_began() -> bool:
    path = Path("/tmp/calls")
    return path.exists() and "freeze" in path.read_text()


def hook_calls() -> list[str]:
    return Path("/tmp/calls").read_text().split()


def ask_freeze(client: Client, points: list[str]) -> None:
    client.request("guest-fsfreeze-freeze-list", {"mountpoints": points})


def lapsed(client: Client) -> None:
    with pytest.raises(AgentError, match=LIMITED):
        client.call("guest-fsfreeze-thaw")


@isolated
def test_libvirt_gives_a_freeze_up_then_syncs_asks_and_thaws() -> None:
    """The freeze that nobody waits for any more still happens; status waits for it, the thaw ends it."""
    with LoopFs("ext4", "xfs") as fs, Agent("--policy", write_policy(60), slow_hook()) as agent:
        client = agent.client
        client.sync(1)
        ask_freeze(client, fs.points)
        wait_for(hook_began)
        begun = time.monotonic()
        client.sync(2)  # the host's time-out is over
        assert time.monotonic() - begun < 0.5
        assert client.call("guest-ping") == {}
        assert client.call("guest-fsfreeze-status") == "frozen"
        assert time.monotonic() - begun > SLOW / 2
        assert all(frozen(p, 0.2) for p in fs.points)
        client.sync(3)
        assert client.call("guest-fsfreeze-thaw") == 2
        assert all(takes_writes(p, 1.0) for p in fs.points)
        assert hook_calls() == ["freeze", "thaw"]
        assert client.call("guest-fsfreeze-thaw") == 0


@isolated
def test_libvirt_thaws_without_asking_while_the_freeze_it_gave_up_is_running() -> None:
    """The thaw stands behind the freeze, so nothing is left frozen."""
    with LoopFs("ext4") as fs, Agent("--policy", write_policy(60), slow_hook()) as agent:
        client = agent.client
        ask_freeze(client, fs.points)
        wait_for(hook_began)
        client.sync(2)
        assert client.call("guest-fsfreeze-thaw") == 1
        assert client.call("guest-fsfreeze-status") == "thawed"
        assert takes_writes(fs.points[0], 1.0)
        assert client.silent()  # no late reply to the freeze


@isolated
def test_a_freeze_that_was_given_up_is_never_confirmed_and_still_has_its_deadline() -> None:
    with LoopFs("ext4") as fs, Agent("--policy", write_policy(2), slow_hook()) as agent:
        client = agent.client
        ask_freeze(client, fs.points)
        wait_for(hook_began)
        client.sync(2)
        assert client.call("guest-fsfreeze-status") == "frozen"
        assert takes_writes(fs.points[0], 4.0)
        lapsed(client)
        assert client.call("guest-fsfreeze-thaw") == 0


@isolated
def test_proxmox_asks_the_status_while_the_freeze_is_running() -> None:
    with LoopFs("ext4") as fs, Agent("--policy", write_policy(60), slow_hook()) as agent:
        client = agent.client
        ask_freeze(client, fs.points)
        client.request("guest-fsfreeze-status")
        assert client.reply()["return"] == 1
        assert client.reply()["return"] == "frozen"
        assert client.call("guest-fsfreeze-thaw") == 1


@isolated
def test_proxmox_comes_back_on_a_new_connection_after_its_time_out() -> None:
    with LoopFs("ext4") as fs, Agent("--policy", write_policy(60), slow_hook()) as agent:
        ask_freeze(agent.client, fs.points)
        wait_for(hook_began)
        agent.client.close()
        client = agent.connect()
        client.sync(2)
        assert client.call("guest-fsfreeze-status") == "frozen"
        assert client.call("guest-fsfreeze-thaw") == 1
        assert client.call("guest-fsfreeze-status") == "thawed"


@isolated
def test_kubevirt_freezes_what_is_frozen_and_thaws_what_is_thawed() -> None:
    with LoopFs("ext4") as fs, Agent("--policy", write_policy(60)) as agent:
        client = agent.client
        assert client.call("guest-fsfreeze-thaw") == 0
        assert client.call("guest-fsfreeze-freeze-list", mountpoints=fs.points) == 1
        for command in ("guest-fsfreeze-freeze", "guest-fsfreeze-freeze-list"):
            with pytest.raises(AgentError, match=DISABLED):
                client.call(command)
        assert frozen(fs.points[0], 0.2)
        assert client.call("guest-fsfreeze-status") == "frozen"
        assert client.call("guest-fsfreeze-thaw") == 1
        assert client.call("guest-fsfreeze-thaw") == 0
        assert client.call("guest-fsfreeze-status") == "thawed"


@isolated
def test_kubevirt_is_told_of_the_time_out_on_its_unfreeze_whatever_it_asked_before() -> None:
    """guest-fsfreeze-status says `thawed` after a lapse; that alone must not use the lapse up."""
    with LoopFs("ext4") as fs, Agent("--policy", write_policy(1)) as agent:
        client = agent.client
        assert client.call("guest-fsfreeze-freeze-list", mountpoints=fs.points) == 1
        assert takes_writes(fs.points[0], 3.0)
        for _ in range(2):
            client.sync(4)
            assert client.call("guest-fsfreeze-status") == "thawed"
        lapsed(client)
        assert client.call("guest-fsfreeze-thaw") == 0


@isolated
def test_the_next_backup_is_told_when_the_last_one_never_thawed() -> None:
    with LoopFs("ext4") as fs, Agent("--policy", write_policy(1)) as agent:
        client = agent.client
        assert client.call("guest-fsfreeze-freeze-list", mountpoints=fs.points) == 1
        assert takes_writes(fs.points[0], 3.0)
        wait_for(lambda: client.call("guest-fsfreeze-status") == "thawed")
        with pytest.raises(AgentError, match=LIMITED):
            client.call("guest-fsfreeze-freeze-list", mountpoints=fs.points)
        assert not frozen(fs.points[0], 0.2)
        assert client.call("guest-fsfreeze-freeze-list", mountpoints=fs.points) == 1
        assert client.call("guest-fsfreeze-thaw") == 1


@isolated
def test_a_lapse_is_told_again_when_the_host_went_before_it_could_read_it() -> None:
    """A thaw whose reply nobody took tells nobody: the next connection is told."""
    with LoopFs("ext4") as fs, Agent("--policy", write_policy(1)) as agent:
        assert agent.call("guest-fsfreeze-freeze-list", mountpoints=fs.points) == 1
        assert takes_writes(fs.points[0], 3.0)
        wait_for(lambda: agent.call("guest-fsfreeze-status") == "thawed")
        worker = agent.process("fs")
        os.kill(worker, signal.SIGSTOP)
        agent.client.request("guest-fsfreeze-thaw")
        time.sleep(0.1)
        agent.client.close()
        time.sleep(0.1)
        os.kill(worker, signal.SIGCONT)
        client = agent.connect()
        client.sync(2)
        lapsed(client)
        assert client.call("guest-fsfreeze-thaw") == 0


@isolated
def test_a_host_that_goes_and_comes_back_while_frozen_finds_its_freeze() -> None:
    with LoopFs("ext4", "btrfs") as fs, Agent("--policy", write_policy(60)) as agent:
        assert agent.call("guest-fsfreeze-freeze-list", mountpoints=fs.points) == 2
        agent.client.close()
        assert all(frozen(p, 0.3) for p in fs.points)
        client = agent.connect()
        client.sync(2)
        assert client.call("guest-fsfreeze-status") == "frozen"
        assert client.call("guest-fsfreeze-thaw") == 2
        assert all(takes_writes(p, 1.0) for p in fs.points)


@isolated
def test_a_host_that_never_comes_back_costs_the_deadline() -> None:
    with LoopFs("ext4") as fs, Agent("--policy", write_policy(1)) as agent:
        assert agent.call("guest-fsfreeze-freeze-list", mountpoints=fs.points) == 1
        agent.client.close()
        assert takes_writes(fs.points[0], 3.0)
        client = agent.connect()
        client.sync(2)
        lapsed(client)


def impatient_policy() -> str:
    path = write_policy(60, "/tmp/impatient.toml")
    with open(path, "a") as file:
        file.write("auto-thaw-on-disconnect = 1\n")
    return path


@isolated
def test_a_host_that_closes_the_channel_can_be_given_a_shorter_deadline() -> None:
    with LoopFs("ext4", "xfs") as fs, Agent("--policy", impatient_policy()) as agent:
        assert agent.call("guest-fsfreeze-freeze-list", mountpoints=fs.points) == 2
        assert frozen(fs.points[0], 1.5)  # connected, nothing is shorter
        agent.client.close()
        assert frozen(fs.points[0], 0.4)
        assert all(takes_writes(p, 2.0) for p in fs.points)
        client = agent.connect()
        client.sync(2)
        lapsed(client)
        assert client.call("guest-fsfreeze-thaw") == 0


@isolated
def test_within_the_shorter_deadline_a_host_that_comes_back_can_thaw() -> None:
    with LoopFs("ext4") as fs, Agent("--policy", impatient_policy()) as agent:
        assert agent.call("guest-fsfreeze-freeze-list", mountpoints=fs.points) == 1
        agent.client.close()
        client = agent.connect()
        client.sync(2)
        assert client.call("guest-fsfreeze-thaw") == 1
        assert client.call("guest-fsfreeze-freeze-list", mountpoints=fs.points) == 1
        assert frozen(fs.points[0], 1.5)
        assert client.call("guest-fsfreeze-thaw") == 1


@isolated
def test_a_host_that_goes_in_the_middle_of_its_freeze_has_the_shorter_deadline_too() -> None:
    with LoopFs("ext4") as fs, Agent("--policy", impatient_policy(), slow_hook()) as agent:
        ask_freeze(agent.client, fs.points)
        wait_for(hook_began)
        agent.client.close()
        wait_for(lambda: frozen(fs.points[0], 0.2), SLOW + 1.0)
        assert takes_writes(fs.points[0], 2.0)
        client = agent.connect()
        client.sync(2)
        lapsed(client)


@isolated
def test_an_agent_that_was_restarted_while_frozen_does_not_say_that_it_held() -> None:
    """As after an upgrade of the package in the middle of a backup."""
    with LoopFs("ext4") as fs:
        first = Agent("--policy", write_policy(60))
        first.start()
        assert first.call("guest-fsfreeze-freeze-list", mountpoints=fs.points) == 1
        assert first.stop() == 0
        assert takes_writes(fs.points[0], 1.0)
        with Agent("--policy", write_policy(60), directory=first.directory) as agent:
            client = agent.client
            client.sync(2)
            assert client.call("guest-fsfreeze-status") == "thawed"
            lapsed(client)
            assert client.call("guest-fsfreeze-thaw") == 0
            assert client.call("guest-fsfreeze-freeze-list", mountpoints=fs.points) == 1
            assert client.call("guest-fsfreeze-thaw") == 1


@isolated
def test_while_frozen_only_what_the_peer_allows_is_answered() -> None:
    with LoopFs("ext4") as fs, Agent("--policy", write_policy(60)) as agent:
        client = agent.client
        assert client.call("guest-fsfreeze-freeze-list", mountpoints=fs.points) == 1
        for command in ("guest-get-osinfo", "guest-fstrim", "guest-get-fsinfo"):
            with pytest.raises(AgentError, match="frozen state"):
                client.call(command)
        assert client.call("guest-ping") == {}
        enabled = {c["name"] for c in client.call("guest-info")["supported_commands"] if c["enabled"]}
        assert {"guest-fsfreeze-thaw", "guest-fsfreeze-status", "guest-sync-delimited"} <= enabled
        assert "guest-fsfreeze-freeze" not in enabled
        assert client.call("guest-fsfreeze-thaw") == 1
