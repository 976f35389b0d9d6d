"""A thawer or a hook worker that was taken over, and what fs makes of its answers: an error for the host, nothing left frozen.

What they may do by their privilege alone is another matter (SECURITY.md): here they answer wrongly, or not at all."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest

from tests.sandbox import stage
from tests.sandbox.test_hostile_front import hostile_program
from tests.support.agent import Agent, AgentError, wait_for
from tests.support.loopfs import LoopFs, takes_writes
from tests.support.namespace import isolated

pytestmark = [pytest.mark.root, pytest.mark.loop]

# It answers as it should, but for what `lie` answers in its place (None: honestly; b"": not at all).
THAWER = """
import select
from privsep import thawer, thawwire as wire, wiring

cycle = [0]
honest = {{
    wire.ASK: wire.STATUS_BODY.pack(wire.STATUS, wire.PHASE_IDLE, 0, 0, 0, 0, 0, 0, 0),
    wire.BEGIN: wire.KIND.pack(wire.OK),
    wire.HOLD: wire.KIND.pack(wire.OK),
    wire.FROZEN: wire.KIND.pack(wire.OK),
    wire.THAW: wire.THAWED_BODY.pack(wire.THAWED, 0, 0, 0, 0),
}}
lies = {lies}

def prepare(control, **_):
    def run():
        poll = select.poll()
        poll.register(control.fileno(), select.POLLIN)
        sockets = {{}}
        while True:
            for fd, _ in poll.poll():
                if fd == control.fileno():
                    data, given = wiring.receive_fd(control)
                    if not data:
                        return
                    if data[:1] == wiring.TAG_FS:
                        sockets[given] = wiring.adopt(given)
                        poll.register(given, select.POLLIN)
                    continue
                data = sockets[fd].recv(4096)
                if not data:
                    poll.unregister(fd)
                    sockets.pop(fd).close()
                    continue
                for answer in lies.get(data[0], [honest.get(data[0], b"")]):
                    if answer:
                        try:
                            sockets[fd].send(answer)
                        except OSError:
                            pass
    return run

thawer.prepare = prepare
from privsep.child import main
main("thawer", {filters!r})
"""

THAWER_LIES = {
    "garbage-for-a-status": "{wire.ASK: [b'\\xff' * 100]}",
    "a-status-that-is-cut": "{wire.ASK: [wire.KIND.pack(wire.STATUS)]}",
    "a-status-that-is-long": "{wire.ASK: [wire.KIND.pack(wire.STATUS) * 100000]}",
    "a-status-with-a-reason-that-is-none": (
        "{wire.ASK: [wire.STATUS_BODY.pack(wire.STATUS, wire.PHASE_IDLE, 0, 0, 0, 0, 200, 0, 0)]}"
    ),
    "no-answer-to-anything": "{wire.ASK: [], wire.BEGIN: [], wire.THAW: []}",
    "refuses": "{wire.BEGIN: [wire.KIND.pack(wire.NO)]}",
    "does-not-say-that-it-holds": "{wire.HOLD: []}",
    "garbage-when-it-should-hold": "{wire.HOLD: [b'\\0']}",
    "garbage-after-the-freeze": "{wire.FROZEN: [b'\\0']}",
    "refuses-after-the-freeze": "{wire.FROZEN: [wire.KIND.pack(wire.NO)]}",
    "two-answers": "{wire.BEGIN: [wire.KIND.pack(wire.OK)] * 2, wire.FROZEN: [wire.KIND.pack(wire.OK)] * 20}",
    "results-that-it-does-not-have": "{wire.THAW: [wire.THAWED_BODY.pack(wire.THAWED, 0, 0, 0, 60000)]}",
    "a-reason-that-is-none": "{wire.THAW: [wire.THAWED_BODY.pack(wire.THAWED, 0, 0, 200, 0)]}",
    "garbage-for-a-thaw": "{wire.THAW: [b'\\xff' * 4000]}",
}


@pytest.mark.parametrize("lie", THAWER_LIES)
@isolated
def test_a_thawer_that_answers_wrongly_leaves_nothing_frozen(lie: str) -> None:
    folder = Path("/tmp/hostile")
    folder.mkdir()
    thawer = THAWER.replace("{lies}", THAWER_LIES[lie]).replace("{filters!r}", repr(stage.FILTERS))
    thawer = thawer.replace("{{", "{").replace("}}", "}")
    os.environ["PRIVSEP_GA"] = hostile_program(folder, {"thawer": thawer})
    policy = Path("/tmp/policy.toml")
    policy.write_text('profile = "backup"\n[fsfreeze]\nauto-thaw = 2\n')
    with LoopFs("ext4") as disks, Agent("--policy", str(policy)) as agent:
        front = agent.process("front")
        with contextlib.suppress(AgentError):
            agent.call("guest-fsfreeze-freeze-list", mountpoints=disks.points, limit=20)
        with contextlib.suppress(AgentError):
            agent.call("guest-fsfreeze-thaw", limit=20)
        assert all(takes_writes(p) for p in disks.points)
        # It may keep the agent from hearing of the thaw, but not beyond the deadline: the supervisor has one of its own.
        assert wait_for(lambda: answers(agent), 15)
        assert agent.process("front") == front
        assert all(takes_writes(p) for p in disks.points)


def answers(agent: Agent) -> bool:
    try:
        return bool(agent.call("guest-get-osinfo"))
    except AgentError as e:
        assert "frozen" in e.desc
        return False


HOOK = """
import select
from privsep import runtime, hookwire as wire, wiring
import workers.hook as hook

def answered(sock, number):
    {act}

def from_fs(ctx):
    sock = ctx.state.hostile
    data = sock.recv(100)
    if data:
        number, what = wire.QUESTION.unpack(data)
        answered(sock, number)
    else:
        ctx.state.hostile = None
        sock.close()

def watch(ctx):
    if "fs" in ctx.fds:
        ctx.state.hostile = wiring.adopt(ctx.fds.pop("fs"))
    sock = getattr(ctx.state, "hostile", None)
    return {} if sock is None else {sock.fileno(): from_fs}

hook.watch = watch
from privsep.child import main
main("hook", {filters!r})
"""
HOOK_LIES = {
    "silence": "pass",
    "garbage": "sock.send(b'\\0')",
    "another-number": "[sock.send(wire.ANSWER.pack(number + n + 1, 0)) for n in range(20)]",
    "a-result-that-is-none": "sock.send(wire.ANSWER.pack(number, 99) + b'x')",
    "bytes-for-words": "sock.send(wire.ANSWER.pack(number, wire.FAILED) + b'\\xff\\0' * 30000)",
    "more-than-it-may-say": "sock.send(wire.ANSWER.pack(number, wire.FAILED) + b'x' * 150000)",
}


@pytest.mark.parametrize("lie", HOOK_LIES)
@isolated
def test_a_hook_worker_that_answers_wrongly_costs_the_freeze_and_nothing_else(lie: str) -> None:
    folder = Path("/tmp/hostile")
    folder.mkdir()
    script = Path("/tmp/the-hook")
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    policy = Path("/tmp/policy.toml")
    policy.write_text('profile = "backup"\n[fsfreeze]\nhook-limit = 2\n')
    hook = HOOK.replace("{act}", HOOK_LIES[lie]).replace("{filters!r}", repr(stage.FILTERS))
    os.environ["PRIVSEP_GA"] = hostile_program(folder, {"hook": hook})
    with LoopFs("ext4") as disks, Agent("--policy", str(policy), f"--fsfreeze-hook={script}") as agent:
        front = agent.process("front")
        with pytest.raises(AgentError) as caught:
            agent.call("guest-fsfreeze-freeze-list", mountpoints=disks.points, limit=20)
        assert len(caught.value.desc) < 200_000
        assert all(takes_writes(p) for p in disks.points)
        assert wait_for(lambda: agent.call("guest-fsfreeze-status") == "thawed", 20)
        assert agent.call("guest-get-osinfo")
        assert agent.process("front") == front
