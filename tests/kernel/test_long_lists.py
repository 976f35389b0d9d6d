"""A long list comes from its worker in parts: what the host gets is all of it, or an error and none of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from privsep import dispatch, frame, wiring
from privsep.fingerprint import fingerprint
from privsep.runtime import Context, Worker
from privsep.wiring import Socket
from protocol.commands import verbs_of
from protocol.errors import CommandError, ProtocolViolation
from tests.support.agent import Agent, AgentError, program, wait_for
from tests.support.links import ask, greeted

NAME = "guest-network-get-interfaces"
VERB = [c.name for c in verbs_of("network")].index(NAME)
PAIRS = 1500


def worker(rows: Iterator[object]) -> tuple[Worker, Socket]:
    """One that answers with these, greeted, and the front's end."""
    log: Any = SimpleNamespace(**dict.fromkeys(("error", "warning", "info", "debug"), lambda text: None))
    module: Any = SimpleNamespace(guest_network_get_interfaces=lambda ctx: rows)
    made = Worker("network", module, Context(log=log), frozenset((NAME,)))
    made._front, front = wiring.pair()
    made._request([1, frame.HELLO, {"tables": fingerprint()}])
    front.recv(1000)
    front.setblocking(False)
    return made, front


def replies(front: Socket) -> list[Any]:
    """What it has sent."""
    found = []
    assembler = frame.Assembler(frame.REPLY_LIMIT)
    while True:
        try:
            value = assembler.feed(front.recv(frame.DATAGRAM))
        except BlockingIOError:
            return found
        if value is not None:
            found.append(value)


@pytest.mark.parametrize("count", [0, 1, frame.ROWS, frame.ROWS + 1, 2 * frame.ROWS, 3 * frame.ROWS + 7])
def test_rows_are_sent_while_they_are_made(count: int) -> None:
    made, front = worker(iter(()))
    seen: list[Any] = []

    def rows() -> Iterator[object]:
        for n in range(count):
            if n > frame.ROWS and n % frame.ROWS == 1:  # the part before has gone out
                seen.extend(replies(front))
                assert len(seen) == n // frame.ROWS
            yield n

    made._verbs[VERB].handler = lambda ctx: rows()
    made._request([2, VERB, {}])
    seen += replies(front)
    assert [s[:2] for s in seen] == [[2, None]] * (len(seen) - 1) + [[2, True]]
    assert [row for s in seen for row in s[2]] == list(range(count))
    assert all(0 < len(s[2]) <= frame.ROWS for s in seen) or count == 0


def test_an_error_in_the_middle_is_the_reply() -> None:
    def rows() -> Iterator[object]:
        yield from range(frame.ROWS + 1)
        raise CommandError("no more")

    made, front = worker(rows())
    made._request([2, VERB, {}])
    assert [s[1:] for s in replies(front)][1:] == [[False, ["GenericError", "no more"]]]


def test_a_list_is_no_longer_than_a_reply_may_be() -> None:
    def rows() -> Iterator[object]:
        for _ in range(100 * frame.ROWS):
            replies(front)
            yield "x" * (frame.REPLY_LIMIT // frame.ROWS // 50)

    made, front = worker(rows())
    made._request([2, VERB, {}])
    number, ok, (kind, text) = replies(front)[-1]
    assert (number, ok, kind) == (2, False, "GenericError")
    assert text == f"the reply is too large: at most {frame.REPLY_LIMIT} bytes are told"


@pytest.fixture
def ends() -> Iterator[tuple[dispatch.Link, Socket]]:
    """The front's link to a network worker that was asked for its interfaces (number 2), and the worker's end."""
    link, theirs = greeted("network")
    assert ask(link, NAME) == 2
    yield link, theirs
    link.close()
    theirs.close()


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ([2, None, {}], "not a reply"),
        ([2, None, None], "not a reply"),
        ([2, None, [], [], 0], "not a reply"),
        ([2, 0, []], "not a reply"),
        ([1, None, [1]], "a part of nothing"),
        ([0, None, [1]], "a part of nothing"),
        ([3, None, [1]], "a part of nothing"),
    ],
)
def test_parts_of_nothing_are_a_violation(ends: tuple[dispatch.Link, Socket], value: list[object], why: str) -> None:
    ours, theirs = ends
    theirs.send(frame.encode(value)[0])
    with pytest.raises(ProtocolViolation, match=why):
        ours.read(0.0)


def test_parts_behind_the_end_are_a_violation(ends: tuple[dispatch.Link, Socket]) -> None:
    ours, theirs = ends
    for ok in (None, True, None):
        theirs.send(frame.encode([2, ok, [1]])[0])
    assert [ours.read(0.0)[1] for _ in range(2)] == [None, True]  # type: ignore[index]
    with pytest.raises(ProtocolViolation, match="a part of nothing"):
        ours.read(0.0)


def test_parts_without_end_are_a_violation(ends: tuple[dispatch.Link, Socket]) -> None:
    ours, theirs = ends
    part = frame.encode([2, None, ["x" * 100_000]])[0]
    with pytest.raises(ProtocolViolation, match="too large"):
        for _ in range(frame.REPLY_LIMIT // 100_000 + 1):
            theirs.send(part)
            assert ours.read(0.0) is not None


def test_a_worker_that_dies_in_the_middle_is_not_asked_again(ends: tuple[dispatch.Link, Socket]) -> None:
    """Not even where it has left something unread behind: what it has said already stands in the request."""
    ours, theirs = ends
    theirs.send(frame.encode([2, None, [1]])[0])
    assert ours.read(0.0) is not None
    theirs.close()  # the request is in it, unread
    with pytest.raises(EOFError):
        ours.read(0.0)
    assert ours.unread
    assert ours.lost() is not None and not ours.queue


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Agent]:
    """One in a network namespace with many links."""
    name = f"privsep-ga-{os.getpid()}-{os.urandom(3).hex()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        lines = "\n".join(f"link add a{n} type veth peer name b{n}" for n in range(PAIRS))
        subprocess.run(["ip", "-n", name, "-batch", "-"], input=lines + "\n", text=True, check=True)
        inside = tmp_path / "inside"
        inside.write_text(f'#!/bin/sh\nexec nsenter --net=/run/netns/{name} {program()} "$@"\n')
        inside.chmod(0o755)
        monkeypatch.setenv("PRIVSEP_GA", str(inside))
        with Agent("--policy", "qemu-ga") as it:
            yield it
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)


def quickest(agent: Agent) -> float:
    """Seconds for the list, where nothing else happens on the machine."""
    took = []
    for _ in range(5):
        began = time.monotonic()
        agent.call(NAME)
        took.append(time.monotonic() - began)
    return min(took)


def answered(agent: Agent) -> Any:
    try:
        return agent.call(NAME)
    except AgentError:
        return None


@pytest.mark.root
@pytest.mark.timeout(180)
def test_whenever_the_worker_dies_it_is_all_or_an_error(agent: Agent) -> None:
    wanted = {"lo"} | {f"{side}{n}" for n in range(PAIRS) for side in "ab"}
    rows = agent.call(NAME)
    assert len(rows) == len(wanted) and {row["name"] for row in rows} == wanted
    took = quickest(agent)
    outcomes = {"all": 0, "error": 0}
    for part in (0.2, 0.4, 0.6, 0.7, 0.8, 1.0):
        agent.client.raw(json.dumps({"execute": NAME}).encode() + b"\n")
        time.sleep(part * took)
        os.kill(agent.processes()["network"], signal.SIGKILL)
        reply = json.loads(agent.client.recv_line(30))
        if "return" in reply:
            assert reply["return"] == rows
            outcomes["all"] += 1
        else:
            assert "worker" in reply["error"]["desc"]
            outcomes["error"] += 1
        again = wait_for(lambda: answered(agent), 60, "a worker")  # those that die are started again ever more slowly
        assert again == rows
    assert outcomes["error"], outcomes


@pytest.mark.root
@pytest.mark.timeout(180)
def test_a_sync_overtakes_a_list_whose_worker_stands_still(agent: Agent) -> None:
    """What had come of the list is told nobody, not even when the worker goes on."""
    rows = agent.call(NAME)
    took = quickest(agent)
    pid = agent.processes()["network"]
    for part in (0.4, 0.6, 0.8, 0.9):
        agent.client.raw(json.dumps({"execute": NAME}).encode() + b"\n")
        time.sleep(part * took)
        os.kill(pid, signal.SIGSTOP)
        try:
            agent.client.raw(b'{"execute": "guest-sync", "arguments": {"id": 7}}\n')
            first = json.loads(agent.client.recv_line(3))
            if first["return"] != 7:  # it was all there
                assert first["return"] == rows
                first = json.loads(agent.client.recv_line(3))
            assert first == {"return": 7}
            assert agent.call("guest-fsfreeze-status") == "thawed"
        finally:
            os.kill(pid, signal.SIGCONT)
        assert agent.call(NAME) == rows
    assert agent.processes()["network"] == pid
