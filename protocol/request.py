"""One request that stands in the queue or is with a worker."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from protocol.commands import Command
    from protocol.errors import CommandError


class Request:
    """What was asked, and what became of it."""

    __slots__ = (
        "command", "arguments", "id", "has_id", "error", "called", "muted", "call", "checked", "reason", "known", "unheard", "weight",
        "rows",
    )  # fmt: skip

    def __init__(self, like: Request | None = None) -> None:
        """A new one; with the command and the arguments of another, which have been checked."""
        self.command: Command | None = None
        self.arguments: dict[str, object] = {}
        self.id: object = None
        self.has_id = False
        self.error: CommandError | None = None
        self.called = False
        self.muted = False
        self.call = 0  # the number under which its worker knows it
        self.checked = False  # the arguments were
        self.reason = ""  # why it was refused: POLICY or FROZEN (protocol/session.py)
        self.known: Known | None = None
        self.unheard = False  # its reply confirms nothing: no host had the channel open meanwhile
        self.rows: list[bytes] = []  # of a reply that is a long list, what has come: JSON without the brackets
        self.weight = 0  # bytes that it came in, while it is with a worker or waits
        if like is not None:
            self.command = like.command
            self.arguments = like.arguments
            self.id = like.id
            self.has_id = like.has_id
            self.checked = True
            self.known = like.known


class Known:
    """What is the same each time a request is asked with the same bytes.

    asked   its frame for the worker from behind the number, None until it was made
    reply   the worker's last reply from behind the number, None when it is not worth keeping
    line    what the host was told then, and is told again when the same reply comes
    size    bytes of bulk data that come behind `line` with each such reply, 0: none
    end     what stands behind them
    """

    __slots__ = ("asked", "reply", "line", "size", "end")

    def __init__(self) -> None:
        self.asked: bytes | None = None
        self.reply: bytes | None = None
        self.line = b""
        self.size = 0
        self.end = b""
