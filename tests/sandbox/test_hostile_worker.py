"""A worker that was taken over says whatever it likes to the front: the request in flight gets an error (or, where it is a
well-formed reply, whatever the worker says), nobody else notices."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from privsep.domains import DOMAINS
from tests.sandbox import stage
from tests.sandbox.test_hostile_front import LIBEXEC, hostile_program
from tests.support.agent import Agent, AgentError, wait_for
from tests.support.namespace import isolated

pytestmark = [pytest.mark.root]

# The worker comes to its loop as always; what it does with a request is `act(socket, number)`.
TEMPLATE = """
import time
import msgpack
from privsep import frame, runtime

def act(socket, number):
{act}

def request(self, value):
    number, verb, _ = value
    if verb == frame.HELLO:
        self._reply(number, True, True)
    else:
        act(self._front, number)
    return True

runtime.Worker._request = request
from privsep.child import main
main("{name}", {filters!r})
"""

HEAVY = "    try:\n        while True:\n            socket.send(b'\\1' + bytes(frame.PART))\n    except OSError:\n        pass"
LIES = {
    "garbage": "    socket.send(b'\\0\\xc1\\xff\\xff')",
    "not-a-reply": "    socket.send(b'\\0' + msgpack.packb({'id': number}))",
    "another-id": "    socket.send(b'\\0' + msgpack.packb([number + 1, True, {}]))",
    "an-earlier-id": "    socket.send(b'\\0' + msgpack.packb([1, True, {}]))",
    "ok-is-a-number": "    socket.send(b'\\0' + msgpack.packb([number, 1, {}]))",
    "error-without-words": "    socket.send(b'\\0' + msgpack.packb([number, False, 'no']))",
    "extension": "    socket.send(b'\\0' + msgpack.packb([number, True, msgpack.ExtType(1, b'x')]))",
    "not-a-number": "    socket.send(b'\\0' + msgpack.packb([number, True, float('nan')]))",
    "nested": "    socket.send(b'\\0' + b'\\x91' * 100000 + b'\\1')",
    "claims-4-GiB": "    socket.send(b'\\0\\xdd\\xff\\xff\\xff\\xff')",
    "claims-1-GiB-of-bytes": "    socket.send(b'\\0\\x93' + msgpack.packb(number) + b'\\xc3\\xc6\\x40\\0\\0\\0')",
    "claims-1-GiB-of-text": "    socket.send(b'\\0\\x93' + msgpack.packb(number) + b'\\xc3\\xdb\\x40\\0\\0\\0')",
    "announces-1-GiB-of-bulk": "    socket.send(b'\\0' + msgpack.packb([number, True, {'id': 1 << 30}, ['id']]))",
    "a-descriptor-along": "    import _socket\n    socket.sendmsg([b'\\0' + msgpack.packb([number, True, 7])], "
    "[(1, 1, (3).to_bytes(4, 'little'))])",
    "no-end": HEAVY,
    "many-replies": "    for n in range(2000):\n        socket.send(b'\\0' + msgpack.packb([number + n + 1, True, {}]))",
    "another-type": "    socket.send(b'\\0' + msgpack.packb([number, True, 7]))",
    "a-member-of-another-type": "    socket.send(b'\\0' + msgpack.packb([number, True, {'id': 7}]))",
    "a-member-that-it-does-not-have": "    socket.send(b'\\0' + msgpack.packb([number, True, {'id': 'x', 'more': 'y'}]))",
    "bytes": "    socket.send(b'\\0' + msgpack.packb([number, True, {'id': b'x'}]))",
    "says-nothing": "    time.sleep(0) if False else socket.recv(1)",
    "drips": "    while True:\n        socket.send(b'\\1x')\n        self_wait(0.2)",
}
LIMIT = 2.0

# Its limits are shorter than the table's, so that a test of them is.
FRONT = """
from protocol import commands
for command in commands.COMMANDS:
    if command.limit == commands.QUICK:
        command.limit = {limit}
from privsep.child import main
main("front", {filters!r})
"""


def program(act: str, name: str = "inventory") -> str:
    folder = Path("/tmp/hostile")
    folder.mkdir()
    # Waiting by poll: this row may not sleep.
    act = act.replace("self_wait(0.2)", "__import__('select').poll().poll(200)")
    worker = TEMPLATE.replace("{act}", act).replace("{name}", name).replace("{filters!r}", repr(stage.FILTERS))
    front = FRONT.replace("{limit}", str(LIMIT)).replace("{filters!r}", repr(stage.FILTERS))
    assert (LIBEXEC / name).exists()
    return hostile_program(folder, {name: worker, "front": front})


def peak(pid: int) -> int:
    """KiB."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(next(line.split()[1] for line in text.splitlines() if line.startswith("VmHWM")))


@pytest.mark.parametrize("lie", LIES)
@isolated
def test_it_costs_one_error_and_nobody_else_anything(lie: str) -> None:
    os.environ["PRIVSEP_GA"] = program(LIES[lie])
    with Agent("--policy", "default") as agent:
        front = agent.process("front")
        begun = time.monotonic()
        with pytest.raises(AgentError):
            agent.call("guest-get-osinfo", limit=LIMIT + 8)
        assert time.monotonic() - begun < LIMIT + 5
        assert agent.call("guest-ping") == {}
        assert agent.call("guest-network-get-interfaces")
        agent.client.sync(7)
        assert agent.process("front") == front
        assert peak(front) < 256 * 1024


# A request of each domain that the real worker would refuse or answer harmlessly.
ASKED: dict[str, tuple[str, dict[str, object]]] = {
    "fs": ("guest-fsfreeze-status", {}),
    "trim": ("guest-fstrim", {}),
    "network": ("guest-network-get-interfaces", {}),
    "power": ("guest-shutdown", {"mode": "no such mode"}),
    "time": ("guest-set-time", {"time": -1}),
    "hotplug": ("guest-set-vcpus", {"vcpus": [{"logical-id": 100000, "online": True}]}),
    "user": ("guest-set-user-password", {"username": "nobody of that name", "password": "eA==", "crypted": False}),
    "ssh": ("guest-ssh-get-authorized-keys", {"username": "nobody of that name"}),
    "file": ("guest-file-open", {"path": "/nowhere/file"}),
    "exec": ("guest-exec", {"path": "/nowhere/program"}),
}
OFTEN = ("garbage", "claims-1-GiB-of-bytes", "announces-1-GiB-of-bulk")


def test_every_domain_is_asked() -> None:
    assert {*ASKED, "inventory"} == {d.name for d in DOMAINS if d.channel == "front"}


@pytest.mark.parametrize("lie", OFTEN)
@pytest.mark.parametrize("domain", ASKED)
@isolated
def test_so_it_is_with_each_domain(domain: str, lie: str) -> None:
    os.environ["PRIVSEP_GA"] = program(LIES[lie], domain)
    with Agent("--policy", "qemu-ga") as agent:
        front = agent.process("front")
        name, arguments = ASKED[domain]
        agent.client.request(name, arguments)
        if domain != "power":  # which answers nothing when it works, and when nobody knows
            assert "error" in agent.client.reply(LIMIT + 8)
        agent.client.sync(6)
        assert wait_for(lambda: f"the {domain} worker broke the protocol" in agent.log(), what=agent.log())
        assert agent.call("guest-get-osinfo")
        assert agent.process("front") == front
        assert peak(front) < 128 * 1024
        assert set(agent.processes()) <= {"supervisor", "front", "inventory", domain, "thawer"}


@isolated
def test_two_replies_to_one_request_are_one_and_a_violation() -> None:
    reply = "    for _ in range(2):\n        socket.send(b'\\0' + msgpack.packb([number, True, {'size': 4096}]))"
    os.environ["PRIVSEP_GA"] = program(reply)
    with Agent("--policy", "default") as agent:
        front = agent.process("front")
        assert agent.call("guest-get-memory-block-info") == {"size": 4096}
        for _ in range(3):
            # The second reply belongs to nothing: the worker is ended, the next request gets another one.
            try:
                assert agent.call("guest-get-memory-block-info") == {"size": 4096}
            except AgentError as e:
                assert "inventory" in e.desc
        assert agent.call("guest-network-get-interfaces")
        assert agent.process("front") == front
        assert "broke the protocol" in agent.log()


@isolated
def test_while_it_keeps_the_front_waiting_other_domains_answer() -> None:
    os.environ["PRIVSEP_GA"] = program(LIES["says-nothing"])
    with Agent("--policy", "default") as agent:
        agent.client.request("guest-get-osinfo")
        time.sleep(0.2)
        # Replies keep the order of the requests, so what is asked of others is seen at a sync, which overtakes.
        begun = time.monotonic()
        agent.client.sync(8)
        assert time.monotonic() - begun < 0.5
        assert agent.call("guest-network-get-interfaces", limit=1.0)


# Reads the hello, which is not answered, and goes: each time, as politely as one that was idle.
POLITE = """
import os
from privsep import runtime

def request(self, value):
    {first}
    os._exit(0)

runtime.Worker._request = request
from privsep.child import main
main("inventory", {filters!r})
"""


@pytest.mark.parametrize("first", ["pass", "self._reply(value[0], True, True)"], ids=["no hello", "hello"])
@isolated
def test_a_worker_that_leaves_with_status_0_as_soon_as_it_comes_costs_one_error(first: str) -> None:
    folder = Path("/tmp/hostile")
    folder.mkdir()
    worker = POLITE.replace("{first}", first).replace("{filters!r}", repr(stage.FILTERS))
    os.environ["PRIVSEP_GA"] = hostile_program(folder, {"inventory": worker})
    with Agent("--policy", "default") as agent:
        front = agent.process("front")
        for _ in range(3):
            with pytest.raises(AgentError, match="inventory worker"):
                agent.call("guest-get-osinfo", limit=5.0)
            assert agent.call("guest-ping") == {}
        assert agent.call("guest-network-get-interfaces")
        assert agent.process("front") == front
        assert 2 <= agent.log().count("inventory ended by exit status 0") <= 6
