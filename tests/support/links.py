"""The front's link to a worker that a test plays: what the front makes of replies, right ones and others."""

from __future__ import annotations

from privsep import dispatch, frame, wiring
from privsep.wiring import Socket
from protocol.commands import BY_NAME
from protocol.request import Request


def greeted(domain: str) -> tuple[dispatch.Link, Socket]:
    """The link, which has given out the number 1, and the worker's end.  Both are the caller's to close."""
    link = dispatch.Link(domain, "x", [0])
    ours, theirs = wiring.pair()
    link.connect(ours, 0.0)
    theirs.recv(1000)
    theirs.send(frame.encode([1, True, True])[0])
    assert link.read(0.0) is None
    return link, theirs


def ask(link: dispatch.Link, name: str = "guest-file-read", **arguments: object) -> int:
    """Give the link a request; its number."""
    request = Request()
    request.command = BY_NAME[name]
    request.arguments = arguments
    link.queue.append(request)
    link.push(0.0)
    return link.current_id
