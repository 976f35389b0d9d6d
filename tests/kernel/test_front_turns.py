"""Single turns of the front's loop, with a channel and a session that a test plays."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from privsep.front import Front
from privsep.hostside import LARGE
from protocol.commands import BY_NAME
from protocol.request import Request


class Bare(Front):
    """Only what a turn needs."""

    def __init__(self, **parts: object) -> None:
        self.__dict__.update(parts)


@pytest.mark.parametrize(
    ("size", "resting", "asked"),
    [(LARGE, True, True), (LARGE + 1, True, True), (LARGE - 1, True, False), (LARGE, False, False)],
)
def test_the_rest_is_read_of_what_begins_and_is_large(size: int, resting: bool, asked: bool) -> None:
    came: list[bytes] = []
    session = SimpleNamespace(resting=resting, receive=lambda data, now: came.append(data))
    front = Bare(_session=session, _host=SimpleNamespace(rest=lambda data: data + b"rest"))
    front._read(b"x" * size, 0.0)
    assert came == [b"x" * size + (b"rest" if asked else b"")]


@pytest.mark.parametrize("stays", [True, False])
def test_a_client_that_goes_before_its_reply_is_written_ends_the_quick_loop(stays: bool) -> None:
    """Which polls the client's socket and not the listener."""
    request = Request()
    request.command = BY_NAME["guest-get-osinfo"]
    host = SimpleNamespace(connected=True)
    session = SimpleNamespace(output=b"reply", calls=[], sync_at=None)

    def write(now: float) -> None:
        session.output = b""
        host.connected = stays

    front = Bare(
        _session=session,
        _host=host,
        _links={"inventory": SimpleNamespace(hop=lambda request, now: True, deadline=None, usual=[])},
        _due=None,
        _wait=lambda left: [],
        _from_worker=lambda link, events, now: None,
        _write=write,
    )
    assert front._hop(request) is stays
