"""The front's end of the channel.

A device without a host: nobody looks at it until something changes, and then at once.  A FIFO behaves as a virtio port does: without a writer there is no data and a hang-up, and whoever polls it is woken when one comes.
"""

from __future__ import annotations

import base64
import json
import os
import select
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from privsep.hostside import LARGE, LOOK_AGAIN, READ_SIZE, HostSide
from tests.support.agent import Agent


@pytest.fixture
def port(tmp_path: Path) -> Iterator[tuple[HostSide, Path]]:
    path = tmp_path / "port"
    os.mkfifo(path)
    host = HostSide()
    host.use_device(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
    yield host, path


def readable(host: HostSide, seconds: float = 0) -> bool:
    poll = select.poll()
    poll.register(host.fd, host.events(read=True, write=False))
    return any(events & select.POLLIN for _, events in poll.poll(seconds * 1000))


def leave(path: Path, host: HostSide) -> None:
    """A host comes, says something and goes; the last thing seen of it is that it has gone."""
    with open(path, "wb", buffering=0) as writer:
        writer.write(b"hello")
        assert host.read() == b"hello"
    assert host.read() == b"" and host.silent


def test_nothing_wakes_up_who_waits_for_a_host(port: tuple[HostSide, Path]) -> None:
    host, path = port
    leave(path, host)
    host.sleep(time.monotonic())
    host.wake()
    for _ in range(3):
        assert host.read() == b"" and host.silent
        host.sleep(time.monotonic())
        assert host.asleep and host.look_at is not None and host.look_at > time.monotonic() + LOOK_AGAIN / 2
        assert not readable(host, 0.2)


def test_a_host_that_comes_is_noticed_at_once(port: tuple[HostSide, Path]) -> None:
    host, path = port
    for _ in range(3):
        leave(path, host)
        host.sleep(time.monotonic())
        with open(path, "wb", buffering=0) as writer:
            writer.write(b"again")
            assert readable(host, 1)
            host.wake()
            assert host.look_at is None
            assert readable(host) and host.read() == b"again"


def test_a_host_that_came_and_went_between_the_look_and_the_sleep_is_noticed(port: tuple[HostSide, Path]) -> None:
    host, path = port
    leave(path, host)
    host.sleep(time.monotonic())
    host.wake()
    assert host.read() == b"" and host.silent
    with open(path, "wb", buffering=0) as writer:
        writer.write(b"quick")
    host.sleep(time.monotonic())
    assert host.look_at is not None and host.look_at < time.monotonic() + 0.1
    host.wake()
    assert host.read() == b"quick"


def test_a_host_that_came_and_went_leaves_what_it_said(port: tuple[HostSide, Path]) -> None:
    host, path = port
    leave(path, host)
    host.sleep(time.monotonic())
    with open(path, "wb", buffering=0) as writer:
        writer.write(b"in passing")
    assert readable(host, 1)
    host.wake()
    assert host.read() == b"in passing"
    assert host.read() == b"" and host.silent


def test_a_device_that_cannot_be_waited_for_is_looked_at_now_and_then(tmp_path: Path) -> None:
    host = HostSide()
    path = tmp_path / "file"  # epoll takes no file
    path.touch()
    host.use_device(os.open(path, os.O_RDONLY))
    assert host.read() == b"" and host.silent
    host.sleep(10.0)
    assert host.asleep and host.look_at == 10.0 + LOOK_AGAIN and not readable(host)


@pytest.fixture
def client() -> Iterator[tuple[HostSide, socket.socket]]:
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as far:
        listener.bind("")  # a name of the kernel's choice
        listener.listen()
        far.connect(listener.getsockname())
        host = HostSide()
        host.listen(os.dup(listener.fileno()))
        assert host.accept()
        yield host, far
        host.close_client()


PART = b"x" * LARGE


def test_what_has_come_of_a_large_request_is_read_at_once(client: tuple[HostSide, socket.socket]) -> None:
    host, far = client
    for end in (b"x\n", b"x"):
        far.sendall(PART)
        first = host.read()
        far.sendall(PART)
        far.sendall(end)
        assert host.rest(first) == PART * 2 + end
        assert host.connected and not host.ended and not host.lost
        assert host.rest(PART) == PART  # nothing more is there


def test_the_rest_ends_where_a_request_ends(client: tuple[HostSide, socket.socket]) -> None:
    host, far = client
    far.sendall(PART + b"\n")
    assert host.rest(b"1\n") == b"1\n"
    assert host.rest(b"1") == b"1" + PART + b"\n"


def test_no_more_is_read_at_once_than_ever(client: tuple[HostSide, socket.socket]) -> None:
    host, far = client
    far.setblocking(False)
    far.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * READ_SIZE)
    sent = read = full = 0
    while read < 3 * READ_SIZE:
        try:
            while True:
                sent += far.send(PART)
        except BlockingIOError:
            pass
        data = host.rest(host.read())
        assert 0 < len(data) <= READ_SIZE and not host.ended
        read += len(data)
        full += len(data) == READ_SIZE
    assert full and read <= sent


def test_a_client_that_ends_in_the_middle_loses_nothing(client: tuple[HostSide, socket.socket]) -> None:
    host, far = client
    far.sendall(PART)
    first = host.read()
    far.sendall(b"y")
    far.shutdown(socket.SHUT_WR)
    assert host.rest(first) == PART + b"y"
    assert host.ended and host.connected and not host.lost
    assert host.read() == b""


def test_who_ends_in_the_middle_of_a_large_request_is_answered_what_came_before(tmp_path: Path) -> None:
    text = base64.b64encode(os.urandom(70_000)).decode()
    with Agent("--policy", "qemu-ga") as agent:
        handle = agent.call("guest-file-open", path=str(tmp_path / "out"), mode="w")
        agent.client.close()
        whole = json.dumps({"execute": "guest-file-write", "arguments": {"handle": handle, "buf-b64": text}}).encode()
        for request, replies in (
            (whole, 1),
            (whole[:-1], 0),
            (whole + b"\n", 1),
            (whole * 2, 2),
            (whole + whole[:50_000], 1),
        ):
            client = agent.connect()
            client.sync(7)  # what the last one left unfinished
            client.socket.sendall(request)
            client.socket.shutdown(socket.SHUT_WR)
            for _ in range(replies):
                assert client.reply() == {"return": {"count": 70_000, "eof": False}}
            assert client.socket.recv(1) == b""
            client.close()
        client = agent.connect()
        client.sync(7)
        client.call("guest-file-close", handle=handle)
    assert (tmp_path / "out").stat().st_size == 5 * 70_000


def test_a_port_that_the_host_leaves_in_the_middle_loses_nothing(port: tuple[HostSide, Path]) -> None:
    host, path = port
    with open(path, "wb", buffering=0) as writer:
        writer.write(PART)
        first = host.read()
        writer.write(b"y")
    assert host.rest(first) == PART + b"y"
    assert not host.silent
    assert host.read() == b"" and host.silent


def test_a_port_that_fails_in_the_middle_loses_nothing(tmp_path: Path) -> None:
    host = HostSide()
    host.use_device(os.open(tmp_path, os.O_RDONLY))  # EISDIR
    assert host.rest(PART) == PART
    assert host.lost and host.gone and not host.connected
