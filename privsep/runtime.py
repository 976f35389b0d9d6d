"""The worker's loop: one request at a time, blocking.  (Context first; the loop is below.)"""

from __future__ import annotations


class Log:
    """One line each, to descriptor 2; kept in memory while the board says frozen."""

    def error(self, text: str) -> None: ...
    def warning(self, text: str) -> None: ...
    def info(self, text: str) -> None: ...
    def debug(self, text: str) -> None: ...


class State:
    """A plain namespace for what a worker keeps between requests."""

    def __getattr__(self, name: str) -> object:
        raise AttributeError(name)


class Context:
    """What a handler is given besides its arguments."""

    def __init__(self, *, settings: dict[str, str] | None = None, root: str = "") -> None:
        self.settings = settings or {}
        self.root = root
        self.state = State()
        self.log = Log()
        self.fds: dict[str, int] = {}

    def setting(self, name: str, default: str = "") -> str:
        return self.settings.get(name, default)
