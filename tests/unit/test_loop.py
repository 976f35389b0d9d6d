"""The supervisor's loop: no function for a descriptor that is another's by now, no timer that was called off."""

from __future__ import annotations

import os

import pytest

from privsep.loop import Loop


def readable() -> int:
    """The read end of a pipe with something in it."""
    reader, writer = os.pipe()
    os.write(writer, b"x")
    os.close(writer)
    return reader


def test_what_can_be_read_has_its_function_called() -> None:
    loop, seen = Loop(), []
    fds = [readable(), readable()]
    for fd in fds:
        loop.watch(fd, lambda fd=fd: seen.append(fd))
    loop.turn()
    assert sorted(seen) == sorted(fds)
    loop.forget(fds[0])
    loop.forget(fds[0])
    loop.turn()
    assert sorted(seen) == sorted([*fds, fds[1]])
    for fd in fds:
        os.close(fd)


@pytest.mark.parametrize("again", [False, True], ids=["forgotten", "number given again"])
def test_a_handler_that_ends_another_ends_its_calls_in_the_same_turn(again: bool) -> None:
    loop, seen = Loop(), []
    fds = [readable(), readable()]

    def end_the_other(own: int, other: int) -> None:
        seen.append(own)
        loop.forget(other)
        if again:
            os.close(other)
            os.dup2(own, other)
            loop.watch(other, lambda: seen.append(-1))

    loop.watch(fds[0], lambda: end_the_other(fds[0], fds[1]))
    loop.watch(fds[1], lambda: end_the_other(fds[1], fds[0]))
    loop.turn()
    assert len(seen) == 1
    assert seen[0] in fds
    for fd in fds:
        os.close(fd)


def test_timers_by_name_each_once_the_last_word_counts() -> None:
    loop, seen = Loop(), []
    loop.at("a", 0.0, lambda: seen.append("old"))
    loop.at("a", 0.0, lambda: seen.append("a"))
    loop.turn()
    assert seen == ["a"]
    assert loop.due("a") is None
    loop.at("first", 0.0, lambda: loop.cancel("second"))
    loop.at("second", 0.0, lambda: seen.append("second"))
    loop.at("third", 0.0, lambda: (loop.at("fourth", 0.0, lambda: seen.append("fourth")), seen.append("third")))  # type: ignore[func-returns-value]
    loop.turn()
    assert seen == ["a", "third"]
    loop.turn()
    assert seen == ["a", "third", "fourth"]
    loop.at("fifth", 30.0, lambda: seen.append("fifth"))
    assert loop.due("fifth") is not None
    loop.cancel_all()
    assert loop.due("fifth") is None
