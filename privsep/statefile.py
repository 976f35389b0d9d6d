"""The peer's two files in the state folder, kept so that either agent can go on where the other stopped.

`qga.state` holds the number of the next file handle; the file worker keeps it (`workers/counter.py`), the start makes it.
`qga.state.isfrozen`, empty, is there while file systems are frozen.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

STATE: Final = "qga.state"
MARKER: Final = "qga.state.isfrozen"
FIRST_HANDLE: Final = 1000


def text(fd_counter: int = FIRST_HANDLE) -> bytes:
    """The content of qga.state."""
    return f"[global]\nfd_counter={fd_counter}\n".encode()


def ensure(statedir: str) -> None:
    """Make qga.state where there is none.  Raises OSError: the folder does not exist, or cannot be written."""
    path = f"{statedir}/{STATE}"
    try:
        os.stat(path)
        return
    except FileNotFoundError:
        pass
    replace(path, text())


def replace(path: str, data: bytes) -> None:
    """Atomically: a reader sees the old file or the new one.  Not synced: a crash of the system ends the handles too."""
    draft = f"{path}.new"
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
    finally:
        os.close(fd)
    os.rename(draft, path)


def is_marked(statedir: str) -> bool:
    """Whether an agent left, or is in, a freeze."""
    return os.path.lexists(f"{statedir}/{MARKER}")


def mark(statedir: str, frozen: bool) -> None:
    """Make or remove the marker.  Raises OSError."""
    path = f"{statedir}/{MARKER}"
    if frozen:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
    else:
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass
