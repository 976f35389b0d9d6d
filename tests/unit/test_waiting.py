"""Waiting for a message: awake for a moment in a stream of them, asleep otherwise."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Iterator

import pytest

from privsep.waiting import AWAKE, BRIEF, Waiting


class Counted:
    """A real poll object that counts the looks that did not wait."""

    def __init__(self, fd: int) -> None:
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)
        self.looks = 0
        self.sleeps = 0

    def poll(self, timeout: int | None) -> list[tuple[int, int]]:
        if timeout == 0:
            self.looks += 1
        else:
            self.sleeps += 1
        return self._poll.poll(timeout)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


@pytest.fixture
def several() -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one processor")


def test_at_rest_it_sleeps(pipe: tuple[int, int]) -> None:
    counted = Counted(pipe[0])
    waiting = Waiting(counted)  # type: ignore[arg-type]
    for _ in range(3):
        assert waiting.wait(int(BRIEF * 1000) + 20) == []
    assert (counted.looks, counted.sleeps) == (0, 3)


@pytest.mark.usefixtures("several")
def test_in_a_stream_it_stays_awake_and_then_no_longer_than_it_says(pipe: tuple[int, int]) -> None:
    counted = Counted(pipe[0])
    waiting = Waiting(counted)  # type: ignore[arg-type]
    os.write(pipe[1], b"x")
    assert waiting.wait(None) == [(pipe[0], select.POLLIN)]  # there was nothing to wait for
    assert waiting.wait(None) == [(pipe[0], select.POLLIN)]
    assert (counted.looks, counted.sleeps) == (1, 1)
    os.read(pipe[0], 1)
    used = time.thread_time()
    assert waiting.wait(100) == []
    assert counted.looks > 1 and counted.sleeps == 2
    assert time.thread_time() - used < 10 * AWAKE
    looks = counted.looks
    assert waiting.wait(20) == []  # the last one was long
    assert (counted.looks, counted.sleeps) == (looks, 3)


def test_on_one_processor_it_never_looks_in_vain(pipe: tuple[int, int]) -> None:
    mine = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(mine)})
    try:
        counted = Counted(pipe[0])
        waiting = Waiting(counted)  # type: ignore[arg-type]
        os.write(pipe[1], b"x")
        for _ in range(3):
            assert waiting.wait(None)
    finally:
        os.sched_setaffinity(0, mine)
    assert (counted.looks, counted.sleeps) == (0, 3)
