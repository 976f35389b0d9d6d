"""How long the front lets a worker that nobody asks anything stay: the first briefly, one that is wanted again longer."""

from __future__ import annotations

import socket

import pytest

from privsep import frame
from privsep.dispatch import DOWN, FIRST_STAY, SOON, UP, Link
from privsep.domains import BY_NAME


class Theirs:
    """The worker's end; it agrees to everything but `holds`."""

    def __init__(self, link: Link, now: float) -> None:
        self.holds = False
        self._link = link
        ours, self._socket = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        link.connect(ours, now)
        self.answer(now)

    def answer(self, now: float) -> None:
        number, verb, _ = frame.Assembler().feed(self._socket.recv(1 << 16))  # type: ignore[misc]
        reply = not self.holds if verb == frame.IDLE else True
        for part in frame.encode([number, True, reply]):
            self._socket.send(part)
        assert self._link.read(now) is None

    def leave(self) -> float:
        """When it was asked to and went."""
        at = self._link.idle_at()
        assert at is not None
        self._link.probe()
        self.answer(at)
        assert self._link.state == DOWN
        self._socket.close()
        return at


def stays(link: Link, begun: float) -> float:
    """Seconds that a worker stays that comes then and is not asked anything."""
    return Theirs(link, begun).leave() - begun


def test_the_first_stays_briefly_and_the_next_longer_up_to_the_row() -> None:
    link = Link("inventory", "x", [0])
    now, found = 100.0, []
    for _ in range(4):
        found.append(stays(link, now))
        now += found[-1] + SOON / 2
    assert found == [FIRST_STAY, FIRST_STAY * 4, BY_NAME["inventory"].idle, BY_NAME["inventory"].idle]


def test_who_is_wanted_much_later_is_the_first_again() -> None:
    link = Link("inventory", "x", [0])
    assert stays(link, 100.0) == FIRST_STAY
    assert stays(link, 100.0 + FIRST_STAY + SOON - 1) == FIRST_STAY * 4
    assert stays(link, 1000.0) == FIRST_STAY


def test_a_row_with_less_time_has_no_more() -> None:
    link = Link("time", "x", [0])
    assert BY_NAME["time"].idle < FIRST_STAY
    assert stays(link, 100.0) == BY_NAME["time"].idle == stays(link, 102.0)


def test_one_that_died_says_nothing_about_how_long_the_next_should_stay() -> None:
    link = Link("inventory", "x", [0])
    stays(link, 100.0)
    worker = Theirs(link, 110.0)
    assert link.lingers == FIRST_STAY * 4
    worker._socket.close()
    with pytest.raises(EOFError):
        link.read(111.0)
    link.lost()
    assert stays(link, 112.0) == FIRST_STAY * 4


def test_who_holds_something_stays_and_is_asked_again() -> None:
    link = Link("inventory", "x", [0])
    worker = Theirs(link, 100.0)
    worker.holds = True
    link.probe()
    worker.answer(100.0 + FIRST_STAY)
    assert link.state == UP
    assert link.idle_at() == 100.0 + 2 * FIRST_STAY
    worker.holds = False
    worker.leave()
