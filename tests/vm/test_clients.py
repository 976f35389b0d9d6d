"""Other programs that hosts speak to the agent with: qemu.qmp, and the order of things that Proxmox VE and KubeVirt use."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from tests.vm.harness.hostagent import Refused
from tests.vm.harness.machine import Guest
from tests.vm.harness.seen import Seen
from tests.vm.harness.service import FILE_SYSTEMS, LIMITED, Writers, set_policy

ALL = len(FILE_SYSTEMS)
QMP_PROGRAM = """
import asyncio, sys
from qemu.qmp import QMPClient

async def main() -> None:
    client = QMPClient("agent")
    client.await_greeting = client.negotiate = False
    await client.connect(sys.argv[1])
    assert await client.execute("guest-sync", {"id": 4711}) == 4711
    print((await client.execute("guest-get-osinfo"))["id"])
    try:
        await client.execute("guest-no-such-command")
    except Exception as e:
        print(type(e).__name__, e)
    await client.disconnect()

asyncio.run(main())
"""


def test_qemu_qmp(guest: Guest, tools: Path, seen: Seen) -> None:
    """PyPI's qemu.qmp: sync, a command, an error"""
    with guest.agent():
        pass  # it has synced
    words = [str(tools / "python"), "-c", QMP_PROGRAM, str(guest.agent_path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "debian"
    assert "has not been found" in done.stdout
    seen(done.stdout.splitlines()[1])


def test_proxmox(guest: Guest, seen: Seen) -> None:
    """Proxmox VE's order: ping, freeze with a time-out of its own, status, thaw in any case"""
    set_policy(guest, "default")
    with guest.agent() as agent:
        writers = Writers(guest)
        assert agent.call("guest-ping") == {}
        agent.ask("guest-fsfreeze-freeze")
        agent.ask("guest-fsfreeze-status")  # it does not wait for the first answer when its time is over
        assert agent.answer() == ALL
        assert agent.answer() == "frozen"
        frozen = writers.now()
        time.sleep(1)
        writers.blocked_since(frozen)
        assert agent.call("guest-fsfreeze-thaw") == ALL
        writers.thawed(frozen)
        assert agent.call("guest-fsfreeze-thaw") == 0
    seen("frozen, status after it, thawed, and a thaw too many is 0")


def test_kubevirt(guest: Guest, seen: Seen) -> None:
    """KubeVirt's order: polls, status, freeze, polls refused, a controller that dies, its unfreeze after the deadline"""
    set_policy(guest, "default", "[fsfreeze]\nauto-thaw = 6\n")
    polls = ("guest-get-osinfo", "guest-network-get-interfaces", "guest-get-users", "guest-get-fsinfo")
    with guest.agent() as agent:
        writers = Writers(guest)
        for name in polls:
            agent.sync()
            agent.call(name)
        assert agent.call("guest-fsfreeze-status") == "thawed"
        assert agent.call("guest-fsfreeze-freeze") == ALL
        frozen = writers.now()
        for name in polls:
            with pytest.raises(Refused, match="frozen state"):
                agent.call(name)
        assert agent.call("guest-ping") == {}
    # The one that would have thawed is gone; a new one comes late.
    writers.thawed(frozen)
    with guest.agent() as agent:
        assert agent.call("guest-fsfreeze-status") == "thawed"
        with pytest.raises(Refused, match=LIMITED):
            agent.call("guest-fsfreeze-thaw")
        for name in polls:
            agent.call(name)
    set_policy(guest, "default")
    seen("the snapshot that outlived the deadline is not called consistent")
