"""Bulk data between a worker and the front: what is sent arrives, and a peer that lies is found out."""

from __future__ import annotations

import base64
import fcntl
import functools
import os
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from privsep import blob, dispatch, frame, wiring
from privsep.fingerprint import fingerprint
from privsep.runtime import Context, Worker
from privsep.wiring import Socket
from protocol import tally
from protocol.commands import BY_NAME, verbs_of
from protocol.errors import ProtocolViolation
from protocol.longtext import LongText, Rope
from tests.support.agent import Agent, AgentError, wait_for
from tests.support.links import ask, greeted
from workers import file
from workers.base64 import decoded

WRITE = next(n for n, c in enumerate(verbs_of("file")) if c.name == "guest-file-write")


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def ends() -> Iterator[tuple[dispatch.Link, Socket]]:
    """The front's link to a file worker, greeted, and the worker's end."""
    link, theirs = greeted("file")
    yield link, theirs
    link.close()
    theirs.close()


def sealed(data: bytes, seals: int | None = None) -> int:
    fd = os.memfd_create("t", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    os.write(fd, data)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, blob._SEALS if seals is None else seals)
    return fd


def kept(size: int = blob.KEPT, seals: int = blob._SIZED) -> int:
    fd = os.memfd_create("t", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    os.ftruncate(fd, size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def test_a_memfd_arrives_as_a_blob(ends: tuple[dispatch.Link, Socket]) -> None:
    link, worker = ends
    number = ask(link)
    before = descriptors()
    fd = sealed(b"0123456789")
    (part,) = frame.encode([number, True, {"count": 10, "buf-b64": 10, "eof": True}, ["buf-b64"], frame.SEALED])
    wiring.send_fd(worker, part, fd)
    os.close(fd)
    reply = link.read(0.0)
    assert reply is not None and reply[1]
    value = reply[2]
    assert isinstance(value, dict)
    data = value["buf-b64"]
    assert (data.size, data.read(2, 5)) == (10, b"23456")
    with pytest.raises(ProtocolViolation):
        data.read(8, 3)
    data.close()
    assert descriptors() == before


def test_two_streams_share_a_memfd() -> None:
    memory = blob.take(sealed(b"outerr"), kept=False)
    one, two = blob.parts(memory, [3, 3], kept=False)
    del memory
    before = descriptors()
    assert (one.read(0, 3), two.read(0, 3)) == (b"out", b"err")
    one.close()
    assert two.read(0, 3) == b"err"
    two.close()
    assert descriptors() == before - 1


def test_memory_that_is_kept_is_read_again_and_again(ends: tuple[dispatch.Link, Socket]) -> None:
    link, worker = ends
    before = descriptors()
    fd = kept()
    for number, text in enumerate((b"first", b"the second", b"3rd")):
        os.pwrite(fd, text, 0)
        asked = ask(link)
        value = {"count": len(text), "buf-b64": len(text), "eof": True}
        (part,) = frame.encode([asked, True, value, ["buf-b64"], frame.KEPT])
        if number:
            worker.send(part)
        else:
            wiring.send_fd(worker, part, fd)
        reply = link.read(0.0)
        assert reply is not None and isinstance(reply[2], dict)
        data = reply[2]["buf-b64"]
        assert data.read(0, data.size) == text
        data.close()
    assert descriptors() == before + 3  # a mapping has one of its own
    os.close(fd)
    link.close()
    assert descriptors() <= before


@pytest.mark.parametrize(
    ("what", "make", "size"),
    [
        ("nothing", lambda: None, 10),
        ("a regular file", lambda: _regular(), 10),
        ("a pipe", lambda: os.pipe2(os.O_CLOEXEC)[0], 10),
        ("more than is kept", lambda: kept(), blob.KEPT + 1),
        ("may shrink", lambda: kept(seals=blob._SIZED & ~fcntl.F_SEAL_SHRINK), 10),
        ("may be sealed otherwise", lambda: kept(seals=blob._SIZED & ~fcntl.F_SEAL_SEAL), 10),
        ("too short", lambda: kept(size=blob.KEPT - 1), 10),
    ],
)
def test_kept_memory_that_is_none_is_a_violation(
    ends: tuple[dispatch.Link, Socket], what: str, make: object, size: int
) -> None:
    link, worker = ends
    number = ask(link)
    fd = make()  # type: ignore[operator]
    (part,) = frame.encode([number, True, {"count": 10, "buf-b64": size, "eof": True}, ["buf-b64"], frame.KEPT])
    wiring.send_fd(worker, part, fd)
    if fd is not None:
        os.close(fd)
    with pytest.raises(ProtocolViolation):
        link.read(0.0)


def _regular() -> int:
    fd, path = tempfile.mkstemp()
    os.unlink(path)
    os.write(fd, b"x" * 10)
    return fd


@pytest.mark.parametrize(
    ("what", "make"),
    [
        ("too short", lambda: sealed(b"x" * 9)),
        ("too long", lambda: sealed(b"x" * 11)),
        ("may be written", lambda: sealed(b"x" * 10, blob._SEALS & ~fcntl.F_SEAL_WRITE)),
        ("may shrink", lambda: sealed(b"x" * 10, blob._SEALS & ~fcntl.F_SEAL_SHRINK)),
        ("may grow", lambda: sealed(b"x" * 10, blob._SEALS & ~fcntl.F_SEAL_GROW)),
        ("may be sealed otherwise", lambda: sealed(b"x" * 10, blob._SEALS & ~fcntl.F_SEAL_SEAL)),
        ("a regular file", _regular),
        ("a pipe", lambda: os.pipe2(os.O_CLOEXEC)[0]),
        ("nothing", lambda: None),
    ],
)
def test_another_descriptor_is_a_violation_and_is_closed(
    ends: tuple[dispatch.Link, Socket], what: str, make: object
) -> None:
    link, worker = ends
    number = ask(link)
    fd = make()  # type: ignore[operator]
    before = descriptors() - (fd is not None)
    (part,) = frame.encode([number, True, {"count": 10, "buf-b64": 10, "eof": True}, ["buf-b64"], frame.SEALED])
    wiring.send_fd(worker, part, fd)
    if fd is not None:
        os.close(fd)
    with pytest.raises(ProtocolViolation):
        link.read(0.0)
    assert descriptors() == before, what


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ({"buf-b64": 10}, ["count"]),
        ({"buf-b64": 10}, []),
        ({"buf-b64": 10}, ["buf-b64", "buf-b64"]),
        ({"buf-b64": 10}, [["buf-b64"], frame.SEALED]),
        ({"buf-b64": 10}, "buf-b64"),
        ({"buf-b64": True}, ["buf-b64"]),
        ({"buf-b64": -10}, ["buf-b64"]),
        ({"buf-b64": 1 << 40}, ["buf-b64"]),
        ({}, ["buf-b64"]),
        ([], ["buf-b64"]),
        (7, ["buf-b64"]),
    ],
)
def test_another_announcement_is_a_violation(ends: tuple[dispatch.Link, Socket], value: object, names: object) -> None:
    link, worker = ends
    number = ask(link)
    fd = sealed(b"x" * 10)
    before = descriptors() - 1
    (part,) = frame.encode([number, True, value, names, frame.SEALED])
    wiring.send_fd(worker, part, fd)
    os.close(fd)
    with pytest.raises(ProtocolViolation):
        link.read(0.0)
    assert descriptors() == before


def test_bulk_data_for_another_request_or_command_is_a_violation(ends: tuple[dispatch.Link, Socket]) -> None:
    link, worker = ends
    number = ask(link, "guest-file-close", handle=1)
    for answer in (
        [number, True, {"buf-b64": 1}, ["buf-b64"], frame.SEALED],
        [number + 1, True, {"buf-b64": 1}, ["buf-b64"], frame.SEALED],
    ):
        fd = sealed(b"x")
        wiring.send_fd(worker, frame.encode(answer)[0], fd)
        os.close(fd)
        with pytest.raises(ProtocolViolation):
            link.read(0.0)


def test_two_descriptors_are_a_violation_and_one_too_many_is_closed(ends: tuple[dispatch.Link, Socket]) -> None:
    link, worker = ends
    number = ask(link)
    fds = [sealed(b"x"), sealed(b"y")]
    before = descriptors() - 2
    data = frame.encode([number, True, {"buf-b64": 1}, ["buf-b64"], frame.SEALED])[0]
    worker.sendmsg(
        [data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, b"".join(f.to_bytes(4, sys.byteorder) for f in fds))]
    )
    for fd in fds:
        os.close(fd)
    with pytest.raises(ProtocolViolation):
        link.read(0.0)
    assert descriptors() == before


def test_a_descriptor_that_nobody_asked_for_is_closed(ends: tuple[dispatch.Link, Socket]) -> None:
    link, worker = ends
    number = ask(link)
    fd = sealed(b"x")
    before = descriptors() - 1
    wiring.send_fd(worker, frame.encode([number, True, {"count": 0, "buf-b64": b"", "eof": True}])[0], fd)
    os.close(fd)
    assert link.read(0.0) is not None
    assert descriptors() == before


@pytest.mark.parametrize("size", [frame.INLINE + 1, frame.BULK_PART, frame.BULK_PART + 1, 5_000_001])
@pytest.mark.parametrize("parts", [0, 1, 2, 7, 300])
def test_text_of_any_size_reaches_the_worker(ends: tuple[dispatch.Link, Socket], size: int, parts: int) -> None:
    link, worker = ends
    text = ("ABCDEFG" * (size // 7 + 1))[:size]
    got = bytearray()

    def receive() -> None:
        head = frame.Assembler().feed(worker.recv(frame.DATAGRAM))
        assert isinstance(head, list)
        assert head[1:3] == [WRITE, {"handle": 1}]
        member, announced, end = frame.bulk_of(head[3])
        assert (member, announced, end) == ("buf-b64", size, None)
        for piece in frame.Incoming(worker, announced, end, bytearray(frame.DATAGRAM)):
            got.extend(piece)

    thread = threading.Thread(target=receive)
    thread.start()
    step = size // parts + 1 if parts else size
    argument = LongText([text[at : at + step].encode() for at in range(0, size, step)]) if parts else text
    ask(link, "guest-file-write", **{"handle": 1, "buf-b64": argument})
    while link.wants_to_write:
        link.flush()
    thread.join(10)
    assert got == text.encode()


@pytest.mark.parametrize("size", [3, 98_304, 98_305, 3_000_001])
@pytest.mark.parametrize("step", [1000, 65_537, 262_144])
def test_what_is_decoded_reaches_the_worker_as_data(ends: tuple[dispatch.Link, Socket], size: int, step: int) -> None:
    link, worker = ends
    data = os.urandom(size)
    text = base64.b64encode(data)
    rope = Rope(0, b"")
    assert all(rope.decode(text[at : at + step]) for at in range(0, len(text), step))
    sizes: list[int] = []
    got = bytearray()

    def receive() -> None:
        head = frame.Assembler().feed(worker.recv(frame.DATAGRAM))
        assert isinstance(head, list)
        _, announced, end = frame.bulk_of(head[3])
        assert (end is None) == (size == 3)  # too short to be worth it
        incoming = frame.Incoming(worker, announced, end, bytearray(frame.DATAGRAM))
        told, pieces = decoded(incoming)
        sizes.extend((incoming.length, told))
        for piece in pieces:
            got.extend(piece)

    thread = threading.Thread(target=receive)
    thread.start()
    ask(link, "guest-file-write", **{"handle": 1, "buf-b64": rope.whole()})
    while link.wants_to_write:
        link.flush()
    thread.join(10)
    assert got == data
    assert sizes == [len(text), size]


@pytest.mark.parametrize("sizes", [[10], [frame.BULK_PART + 1], [frame.BULK_PART, 11], [frame.BULK_PART, 9]])
def test_pieces_of_another_size_are_a_violation(sizes: list[int]) -> None:
    ours, theirs = wiring.pair()
    for size in sizes:
        ours.send(b"A" * size)
    with pytest.raises(ProtocolViolation):
        frame.Incoming(theirs, frame.BULK_PART + 10, None, bytearray(frame.DATAGRAM)).drain()


def test_a_front_that_goes_in_the_middle_is_noticed() -> None:
    ours, theirs = wiring.pair()
    ours.send(b"A" * frame.BULK_PART)
    ours.close()
    with pytest.raises(frame.FrontGone):
        frame.Incoming(theirs, frame.BULK_PART + 10, None, bytearray(frame.DATAGRAM)).drain()


@pytest.mark.parametrize(
    "value",
    [
        None,
        1,
        [],
        ["a"],
        ["a", 0],
        ["a", -1],
        ["a", True],
        [1, 1],
        ["a", frame.LIMIT + 1],
        ["a", 3, None],
        ["a", 3, 1],
        ["a", 4, ""],
        ["a", 3, "AAAAA"],
        ["a", 3, "", ""],
    ],
)
def test_an_announcement_of_anything_else_is_a_violation(value: object) -> None:
    with pytest.raises(ProtocolViolation):
        frame.bulk_of(value)


@pytest.mark.root
def test_an_agent_moves_large_data_in_the_peers_words(tmp_path: Path) -> None:
    path = tmp_path / "file"
    data = os.urandom(3_000_001)
    text = base64.b64encode(data).decode()
    with Agent("--policy", "qemu-ga") as agent:
        handle = agent.call("guest-file-open", path=str(path), mode="w+")
        write = functools.partial(agent.call, "guest-file-write")
        assert write(handle=handle, buf_b64=text) == {"count": len(data), "eof": False}
        assert path.read_bytes() == data
        assert write(handle=handle, buf_b64=text, count=2_000_000) == {"count": 2_000_000, "eof": False}
        assert path.read_bytes() == data + data[:2_000_000]
        assert write(handle=handle, buf_b64=text, count=200) == {"count": 200, "eof": False}  # buffered
        agent.call("guest-file-flush", handle=handle)
        assert path.read_bytes() == data + data[:2_000_000] + data[:200]
        os.truncate(path, len(data) + 2_000_000)
        agent.call("guest-file-seek", handle=handle, offset=len(data) + 2_000_000, whence=0)
        for bad, desc in (
            ({"handle": handle + 1, "buf_b64": text}, f"handle '{handle + 1}' has not been found"),
            ({"handle": handle, "buf_b64": text[:-1] + "@"}, "Base64 data contains invalid characters"),
            ({"handle": handle, "buf_b64": text + "é"}, "Base64 data contains invalid characters"),
            ({"handle": handle, "buf_b64": text, "count": 1 << 30}, f"value '{1 << 30}' is invalid for argument count"),
            ({"handle": "1", "buf_b64": text}, "Invalid parameter type for 'handle', expected: integer"),
        ):
            with pytest.raises(AgentError) as error:
                write(**bad)
            assert error.value.desc == desc
        assert path.stat().st_size == len(data) + 2_000_000
        lines = "\n".join(text[i : i + 76] for i in range(0, len(text), 76))
        assert write(handle=handle, buf_b64=lines) == {"count": len(data), "eof": False}
        agent.call("guest-file-seek", handle=handle, offset=len(data) + 2_000_000, whence="set")
        reply = agent.call("guest-file-read", handle=handle, count=len(data) + 1)
        assert (reply["count"], reply["eof"], reply["buf-b64"]) == (len(data), True, text)

        pid = agent.call(
            "guest-exec",
            path="/bin/sh",
            arg=["-c", "tee /proc/self/fd/2"],
            input_data=text,
            capture_output="separated",
        )["pid"]
        status = wait_for(lambda: (s := agent.call("guest-exec-status", pid=pid))["exited"] and s)
        assert (status["out-data"], status["err-data"]) == (text, text)


@pytest.mark.root
def test_what_gives_less_at_a_time_is_read_too(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    holder = os.open(fifo, os.O_RDWR)
    os.write(holder, b"x" * 5000)
    with Agent("--policy", "qemu-ga") as agent:
        handle = agent.call("guest-file-open", path=str(fifo))
        reply = agent.call("guest-file-read", handle=handle, count=1 << 20)
        assert (reply["count"], reply["eof"]) == (5000, False)
        with pytest.raises(AgentError, match="failed to read file: Resource temporarily unavailable"):
            agent.call("guest-file-read", handle=handle, count=1 << 20)
        handle = agent.call("guest-file-open", path="/proc/cpuinfo")
        reply = agent.call("guest-file-read", handle=handle, count=1 << 20)
        assert reply["eof"]
        assert base64.b64decode(reply["buf-b64"]).startswith(b"processor")
    os.close(holder)


def test_a_reply_that_is_too_large_is_an_error_of_the_command() -> None:
    log: Any = SimpleNamespace(**dict.fromkeys(("error", "warning", "info", "debug"), lambda text: None))
    module: Any = SimpleNamespace(guest_get_osinfo=lambda ctx: {"name": "x" * frame.REPLY_LIMIT})
    worker = Worker("inventory", module, Context(log=log), frozenset(("guest-get-osinfo",)))
    worker._front, front = wiring.pair()
    verb = [c.name for c in verbs_of("inventory")].index("guest-get-osinfo")
    worker._request([1, frame.HELLO, {"tables": fingerprint()}])
    front.recv(1000)
    worker._request([2, verb, {}])
    number, ok, (kind, text) = frame.decode(front.recv(1000)[1:])  # type: ignore[misc]
    assert (number, ok, kind) == (2, False, "GenericError")
    assert text.startswith("the reply is too large: 1677")


def test_a_worker_cannot_fill_the_front(ends: tuple[dispatch.Link, Socket]) -> None:
    ours, worker = ends
    worker.setblocking(False)
    with pytest.raises(ProtocolViolation, match="frame too large"):
        for _ in range(frame.REPLY_LIMIT // frame.PART + 1):
            worker.send(b"\1" + b"\x90" * frame.PART)
            assert ours.read(0.0) is None


def test_replies_to_nothing_are_a_violation(ends: tuple[dispatch.Link, Socket]) -> None:
    ours, worker = ends
    worker.send(frame.encode([0, True, False])[0])
    with pytest.raises(ProtocolViolation, match="to nothing"):
        ours.read(0.0)


@pytest.mark.parametrize("last", [b"", b"x" * 7])
def test_what_breaks_off_is_counted(tmp_path: Path, last: bytes) -> None:
    log: Any = SimpleNamespace(**dict.fromkeys(("error", "warning", "info", "debug"), lambda text: None))
    ctx = Context(log=log, settings={"statedir": str(tmp_path)})
    file.prepare(ctx)
    handle = file.guest_file_open(ctx, path=str(tmp_path / "file"), mode="w")
    worker = Worker("file", file, ctx, frozenset(("guest-file-write",)))
    worker._front, front = wiring.pair()
    worker._request([1, frame.HELLO, {"tables": fingerprint()}])
    front.send(b"x" * frame.BULK_PART)
    if last:
        front.send(last)
    front.shutdown(socket.SHUT_WR)
    request = [2, WRITE, {"handle": handle}, ["buf-b64", 3 * frame.BULK_PART, ""]]
    if last:
        with pytest.raises(ProtocolViolation):
            worker._request(request)
    else:
        assert worker._request(request) is False
    cell = BY_NAME["guest-file-write"].cell
    assert (ctx.counts[cell + tally.ERROR], ctx.counts[cell + tally.TAKEN]) == (1, frame.BULK_PART)
    file.guest_file_close(ctx, handle)
