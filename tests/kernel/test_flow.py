"""Large reads, that are written to the host while they are read: all of it arrives, and whoever fails in the middle is survived."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from privsep import blob, dispatch, frame, wiring
from privsep.blob import SLOT, SLOTS, SPEND
from privsep.dispatch import FIRST_STAY
from privsep.wiring import Socket
from protocol.commands import BY_NAME
from protocol.errors import CommandError, ProtocolViolation
from protocol.request import Known, Request
from protocol.session import SYNC_PATIENCE, Session
from tests.support.agent import Agent, Client, wait_for
from tests.support.links import ask, greeted

READ = b'{"execute": "guest-file-read", "arguments": {"handle": 1, "count": 1000000}}\n'
COUNT = 20 * SLOT + 7
SYNC = b'{"execute": "guest-sync", "arguments": {"id": 7}}\n'


@pytest.fixture
def ends() -> Iterator[tuple[dispatch.Link, Socket, int]]:
    """The front's link to a file worker whose reply has begun, the worker's end and the request's number."""
    link, theirs = greeted("file")
    ask(link, handle=1, count=COUNT)
    theirs.recv(1000)
    fd = os.memfd_create("t", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    os.ftruncate(fd, blob.KEPT)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, blob._SIZED)
    os.pwrite(fd, b"a" * SLOT + b"b" * SLOT, 0)
    wiring.send_fd(theirs, begun(link.current_id), fd)
    os.close(fd)
    yield link, theirs, link.current_id
    link.close()
    theirs.close()


def begun(number: int, size: int = SLOT) -> bytes:
    return frame.encode([number, True, {"buf-b64": size}, ["buf-b64"], frame.FLOW])[0]


def begin(link: dispatch.Link) -> blob.Stream:
    reply = link.read(0.0)
    assert reply is not None
    assert isinstance(reply[2], blob.Stream)
    return reply[2]


def given_back(worker: Socket) -> int:
    """How many times the worker was told that slots were taken."""
    worker.setblocking(False)
    count = 0
    while True:
        try:
            assert worker.recv(10) == frame.TAKEN
        except BlockingIOError:
            return count
        count += 1


def test_slots_come_in_turn_and_are_given_back(ends: tuple[dispatch.Link, Socket, int]) -> None:
    link, worker, number = ends
    stream = begin(link)
    assert stream.waiting
    worker.send(frame.encode([number, True, 5])[0])
    assert link.read(0.0) == (link.current, True, stream)
    assert stream.take(bytes) == b"a" * SLOT
    assert stream.take(bytes) == b"b" * 5
    assert stream.take(bytes) == b""
    assert given_back(worker) == 0  # there are enough others
    worker.send(frame.encode([number, True, {"count": SLOT + 5, "eof": True}])[0])
    assert link.read(0.0) is not None
    assert link.current is None
    for _ in range(2):
        assert stream.take(bytes) is None
    assert stream.rest == {"count": SLOT + 5, "eof": True}
    assert given_back(worker) == 1


@pytest.mark.parametrize("slots", [1, SPEND - 1, SPEND, SPEND + 1, SLOTS, SLOTS + 1, 2 * SLOTS, 2 * SLOTS + 1])
@pytest.mark.parametrize("wanted", ["all", "nothing", "nothing any more"])
def test_the_worker_is_told_once_for_some_and_once_for_the_rest(
    ends: tuple[dispatch.Link, Socket, int], slots: int, wanted: str
) -> None:
    """Which is what it waits for: no more and no less, whoever wants what."""
    link, worker, number = ends
    stream = begin(link)
    if wanted == "nothing":
        stream.close()
    told = 0
    for came in range(1, slots):
        if wanted == "all" or (wanted == "nothing any more" and came < slots // 2):
            stream.take(bytes)
        worker.send(frame.encode([number, True, SLOT])[0])
        if wanted == "nothing any more" and came == slots // 2:
            stream.close()
        assert link.read(0.0) is not None
        told += given_back(worker)
    if wanted == "all":
        stream.take(bytes)
        told += given_back(worker)
    assert told == (slots if wanted != "nothing any more" or slots > 1 else 0) // SPEND
    worker.send(frame.encode([number, True, {"count": slots * SLOT, "eof": True}])[0])
    assert link.read(0.0) is not None
    if wanted == "nothing any more":
        stream.close()
    elif wanted == "all":
        assert stream.take(bytes) is None
    assert told + given_back(worker) == -(-slots // SPEND)


@pytest.mark.parametrize(
    "said",
    [
        [0],
        [-1],
        [SLOT + 1],
        [True],
        ["x"],
        [None],
        [5, 5],
        [SLOT] * SLOTS,  # one more than there are
        [{"count": SLOT}],
        [{"count": SLOT + 1, "eof": True}],
        [{"count": SLOT, "eof": 1}],
        [{"count": SLOT, "eof": True, "buf-b64": "x"}],
        [{"count": SLOT, "eof": True, "more": 1}],
    ],
    ids=str,
)
def test_another_way_on_is_a_violation(ends: tuple[dispatch.Link, Socket, int], said: list[object]) -> None:
    link, worker, number = ends
    assert link.read(0.0) is not None
    for value in said:
        worker.send(frame.encode([number, True, value])[0])
    with pytest.raises(ProtocolViolation):
        for _ in said:
            link.read(0.0)


def test_more_than_was_asked_for_is_a_violation(ends: tuple[dispatch.Link, Socket, int]) -> None:
    link, worker, number = ends
    assert link.read(0.0) is not None
    stream = link._stream
    assert stream is not None
    for _ in range(19):
        stream.take(bytes)
        worker.send(frame.encode([number, True, SLOT])[0])
        assert link.read(0.0) is not None
    stream.take(bytes)
    worker.send(frame.encode([number, True, 8])[0])
    with pytest.raises(ProtocolViolation, match="more bulk data than was asked for"):
        link.read(0.0)


@pytest.mark.parametrize("count", [None, SLOT - 1])
def test_a_flow_for_less_than_a_slot_is_a_violation(ends: tuple[dispatch.Link, Socket, int], count: int | None) -> None:
    link, _, _ = ends
    assert link.current is not None
    link.current.arguments = {"handle": 1} if count is None else {"handle": 1, "count": count}
    with pytest.raises(ProtocolViolation):
        link.read(0.0)


def test_slots_that_cannot_be_mapped_are_a_violation_before_the_reply_begins(
    ends: tuple[dispatch.Link, Socket, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(blob.mmap, "mmap", no)
    with pytest.raises(ProtocolViolation, match="cannot be read"):
        ends[0].read(0.0)


def test_the_same_reply_as_last_time_does_not_end_a_flow(ends: tuple[dispatch.Link, Socket, int]) -> None:
    link, worker, number = ends
    request = link.current
    assert request is not None
    request.known = Known()
    last = frame.encode([number, True, {"count": 0, "buf-b64": b"", "eof": True}])[0]
    link._head = last[2 : last.index(b"\xc3")]  # as `hop` leaves it
    request.known.reply = last[2 + len(link._head) :]
    assert link.read(0.0) is not None
    worker.send(last)
    with pytest.raises(ProtocolViolation):
        link.read(0.0)


def test_an_error_or_a_second_beginning_in_the_middle_is_a_violation(ends: tuple[dispatch.Link, Socket, int]) -> None:
    link, worker, number = ends
    assert link.read(0.0) is not None
    for datagram in (frame.encode([number, False, ["GenericError", "x"]])[0], begun(number)):
        worker.send(datagram)
        with pytest.raises(ProtocolViolation):
            link.read(0.0)


def test_other_commands_and_other_beginnings_are_violations(ends: tuple[dispatch.Link, Socket, int]) -> None:
    link, worker, number = ends
    assert link.read(0.0) is not None
    link._stream = None
    worker.send(begun(number, SLOT - 1))
    with pytest.raises(ProtocolViolation):
        link.read(0.0)
    assert link.current is not None
    link.current.command = BY_NAME["guest-exec-status"]
    worker.send(frame.encode([number, True, {"out-data": SLOT}, ["out-data"], frame.FLOW])[0])
    with pytest.raises(ProtocolViolation):
        link.read(0.0)


def test_the_limit_is_for_the_worker_and_not_for_the_host(ends: tuple[dispatch.Link, Socket, int]) -> None:
    link, worker, number = ends
    reply = link.read(10.0)
    limit = BY_NAME["guest-file-read"].limit
    assert link.deadline == 10.0 + limit
    assert link.spare(200.0) and link.deadline == 200.0 + limit
    assert reply is not None and isinstance(reply[2], blob.Stream)
    reply[2].take(bytes)
    assert not link.spare(400.0)


class Parts:
    """A flow of so many bytes, of which so many have come."""

    member = "buf-b64"

    def __init__(self) -> None:
        self.parts: list[bytes] = [b"x" * 300]
        self.total = 300
        self.rest: dict[str, object] | None = None
        self.ended = self.closed = False

    @property
    def waiting(self) -> bool:
        return bool(self.parts)

    def take(self, encode: Callable[[memoryview], bytes]) -> bytes | None:
        return encode(memoryview(self.parts.pop(0))) if self.parts else None if self.ended else b""

    def end(self, rest: dict[str, object] | None) -> None:
        self.rest, self.ended = rest, True

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def session() -> Session:
    return Session(allowed=frozenset(BY_NAME), frozen=lambda: False, version="1", host_name=lambda: "h")


def asked(session: Session, flow: Parts) -> Request:
    session.receive(READ, 0.0)
    (request,) = session.calls
    session.calls.clear()
    session.flows(request, flow, 0.0)
    return request


def lines(session: Session) -> list[Any]:
    return [json.loads(line) for line in bytes(session.output).splitlines()]


SHORT = {"return": {"buf-b64": base64.b64encode(b"x" * 300).decode(), "count": 300, "eof": False}}


def test_a_worker_that_dies_in_the_middle_leaves_a_short_read(session: Session) -> None:
    request = asked(session, Parts())
    session.failed(request, CommandError("it is gone"), 1.0)
    assert lines(session) == [SHORT]
    assert session._queue == []


def test_a_sync_overtakes_a_worker_that_does_nothing_and_only_such_a_one(session: Session) -> None:
    flow = Parts()
    request = asked(session, flow)
    session.receive(SYNC, 1.0)
    assert session.sync_at == 1.0 + SYNC_PATIENCE
    flow.parts.append(b"")  # there is something to take: it is the host that is slow
    session.advance(1.1)
    assert session.sync_at is None and not flow.closed
    flow.parts.clear()
    session.written(0, 1.2)
    assert session.sync_at == 1.2 + SYNC_PATIENCE
    session.advance(1.2)
    assert not flow.closed
    session.advance(1.3)
    assert lines(session) == [SHORT, {"return": 7}]
    assert flow.closed and request.muted and session.idle is False  # there is output
    session.flows(request, flow, 1.4)  # what still comes is nobody's
    assert lines(session) == [SHORT, {"return": 7}]


def test_the_rest_of_a_read_comes_behind_its_data(session: Session) -> None:
    flow = Parts()
    request = asked(session, flow)
    flow.parts.append(b"yz")
    flow.end({"count": 302, "eof": True})
    session.flows(request, flow, 1.0)
    text = base64.b64encode(b"x" * 300 + b"yz").decode()
    assert lines(session) == [{"return": {"buf-b64": text, "count": 302, "eof": True}}]


def test_a_host_that_goes_in_the_middle_lets_the_worker_go_on(session: Session) -> None:
    flow = Parts()
    request = asked(session, flow)
    session.disconnected()
    assert flow.closed and not session.output
    session.receive(SYNC, 1.0)
    session.flows(request, flow, 2.0)
    assert lines(session) == [{"return": 7}]


@pytest.fixture
def big(tmp_path: Path) -> Path:
    path = tmp_path / "big"
    path.write_bytes(os.urandom(8 * 1024 * 1024))
    return path


def test_reads_of_every_size_are_what_is_in_the_file(big: Path) -> None:
    data = big.read_bytes()
    with Agent("--policy", "qemu-ga") as agent:
        for size in (
            SLOT - 1,
            SLOT,
            SLOT + 1,
            2 * SLOT - 1,
            2 * SLOT,
            2 * SLOT + 1,
            SPEND * SLOT - 1,
            SPEND * SLOT,
            SPEND * SLOT + 1,
            SLOTS * SLOT,
            SLOTS * SLOT + 1,
            5_000_000,
            len(data) + 1,
        ):
            handle = agent.call("guest-file-open", path=str(big))
            at = 0
            while True:
                reply = agent.call("guest-file-read", handle=handle, count=size)
                part = base64.b64decode(reply["buf-b64"])
                assert part == data[at : at + size] and reply["count"] == len(part)
                at += len(part)
                assert reply["eof"] == (len(part) < size)
                if reply["eof"]:
                    break
            agent.call("guest-file-close", handle=handle)


def test_a_read_with_an_id_has_it_behind_everything(big: Path) -> None:
    with Agent("--policy", "qemu-ga") as agent:
        handle = agent.call("guest-file-open", path=str(big))
        agent.client.request("guest-file-read", {"handle": handle, "count": 1 << 20}, id=[1])
        line = agent.client.recv_line()
    assert line.endswith(b', "count": 1048576, "eof": false}, "id": [1]}\n')


def _slow(agent: Agent, path: Path) -> tuple[Client, int]:
    """A host that has asked for all of the file and reads nothing."""
    handle = agent.call("guest-file-open", path=str(path))
    client = agent.client
    client.request("guest-file-read", {"handle": handle, "count": 8 << 20})
    assert client.socket.recv(1, 2) == b"{"  # MSG_PEEK: the reply has begun
    return client, handle


def test_a_worker_killed_in_the_middle_of_a_reply_leaves_what_came(big: Path) -> None:
    data = big.read_bytes()
    with Agent("--policy", "qemu-ga") as agent:
        client, handle = _slow(agent, big)
        os.kill(agent.processes()["file"], signal.SIGKILL)
        reply = json.loads(client.recv_line())["return"]
        part = base64.b64decode(reply["buf-b64"])
        assert 0 < reply["count"] == len(part) < len(data) and not reply["eof"]
        assert data.startswith(part)
        client.raw(b'{"execute": "guest-file-read", "arguments": {"handle": %d}}\n' % handle)
        error = json.loads(client.recv_line())["error"]
        assert "lost with it" in error["desc"]


def test_a_worker_that_stops_in_the_middle_of_a_reply_does_not_keep_a_sync_from_the_host(big: Path) -> None:
    data = big.read_bytes()
    with Agent("--policy", "qemu-ga") as agent:
        client, handle = _slow(agent, big)
        pid = agent.processes()["file"]
        os.kill(pid, signal.SIGSTOP)
        try:
            client.raw(SYNC)
            reply = json.loads(client.recv_line())["return"]
            part = base64.b64decode(reply["buf-b64"])
            assert 0 < reply["count"] == len(part) < len(data) and data.startswith(part)
            assert json.loads(client.recv_line()) == {"return": 7}
            client.raw(b'{"execute": "guest-ping"}\n')
            assert json.loads(client.recv_line()) == {"return": {}}
        finally:
            os.kill(pid, signal.SIGCONT)
        client.raw(b'{"execute": "guest-file-read", "arguments": {"handle": %d}}\n' % handle)
        rest = json.loads(client.recv_line())["return"]
        assert (rest["count"], rest["eof"]) == (0, True)  # the worker read what it was asked to


def test_after_a_host_that_left_in_the_middle_of_a_reply_the_next_one_is_served(big: Path) -> None:
    with Agent("--policy", "qemu-ga") as agent:
        client, handle = _slow(agent, big)
        client.close()
        following = agent.connect()
        reply = following.call("guest-file-read", handle=handle)
        assert (reply["count"], reply["eof"]) == (0, True)
        following.call("guest-file-close", handle=handle)


def test_a_host_that_reads_nothing_keeps_no_worker_of_an_older_policy(big: Path, tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text('[commands]\nallow = ["@front", "@file"]\n')
    with Agent("--policy", str(policy)) as agent:
        client, _ = _slow(agent, big)
        policy.write_text('[commands]\nallow = ["@front"]\n')
        os.kill(agent.pid, signal.SIGHUP)
        wait_for(lambda: "file" not in agent.processes())
        reply = json.loads(client.recv_line())["return"]
        assert 0 < reply["count"] == len(base64.b64decode(reply["buf-b64"])) < big.stat().st_size


def test_a_host_that_is_slow_at_the_end_of_a_reply_costs_no_worker(big: Path) -> None:
    """The worker has said all of it and waits for its last slots to be taken: it cannot say whether it is idle."""
    data = big.read_bytes()
    with Agent("--policy", "qemu-ga") as agent:
        client, handle = _slow(agent, big)
        line, left = (
            b"",
            len(data) * 4 // 3 - 2_400_000,
        )  # what is left is more than the socket holds, and less than that and all slots
        while len(line) < left:
            line += client.socket.recv(left - len(line))
        time.sleep(FIRST_STAY + 1)
        line += client.recv_line()
        assert base64.b64decode(json.loads(line)["return"]["buf-b64"]) == data
        assert agent.call("guest-file-seek", handle=handle, offset=0, whence="set") == {"position": 0, "eof": False}
        agent.call("guest-file-close", handle=handle)


@pytest.mark.parametrize("left", [5_000_000, 2_400_000, 100_000])
def test_a_front_killed_while_a_slow_host_reads_costs_no_file(big: Path, left: int) -> None:
    """In the middle, when the worker has said all and waits for its slots to be taken, and when all was taken."""
    with Agent("--policy", "qemu-ga") as agent:
        client, handle = _slow(agent, big)
        text = 0
        while text < (8 << 20) * 4 // 3 - left:
            text += len(client.socket.recv(1 << 16))
        front, worker = agent.processes()["front"], agent.processes()["file"]
        os.kill(front, signal.SIGKILL)
        client.close()
        following = wait_for(lambda: _greeted(agent), 10, "another front")
        found = following.call("guest-file-seek", handle=handle, offset=0, whence="set")
        assert found == {"position": 0, "eof": False}
        reply = following.call("guest-file-read", handle=handle, count=2 * SLOT)
        assert base64.b64decode(reply["buf-b64"]) == big.read_bytes()[: 2 * SLOT]
        assert agent.processes()["file"] == worker and agent.processes()["front"] != front


def _greeted(agent: Agent) -> Client | None:
    try:
        client = agent.connect()
        client.sync(7)
    except (OSError, EOFError):
        return None
    return client
