"""A device without a host: nobody looks at it until something changes, and then at once.

A FIFO behaves as a virtio port does: without a writer there is no data and a hang-up, and whoever polls it is woken when one comes.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from privsep.hostside import LOOK_AGAIN, HostSide


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
