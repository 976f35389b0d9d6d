"""The numbers of file handles, which never repeat, not over a restart of the worker or of the agent.

The counter is the peer's and stands where the peer keeps it, so that either agent goes on where the other stopped: the file
`qga.state` in the state folder, `[global]` and `fd_counter=N`, N being the next number, 1000 at first.  It is replaced
atomically before a number is given out.

It is not synced: what a rename loses is lost in a crash of the whole system only, and then no handle is left to be mistaken.
"""

from __future__ import annotations

import os

from privsep.keyfile import KeyFile, KeyFileError
from protocol.errors import CommandError, strerror
from protocol.schema import INT64_MAX

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

FIRST: Final = 1000
STATE_FILE: Final = "qga.state"
_NEW_FILE: Final = "qga.state.new"
_LONGEST: Final = 65536  # bytes of state file that are looked at


class HandleCounter:
    """The counter in the state folder behind the descriptor `folder`; None: there is no such folder.

    `start` is the first number that this process can give out.  A counter that cannot be read gives out none, because
    any number might be a repeated one.  `in_place`: the file is opened once and written over, by a process that will not be
    able to make another; that is not torn by this process's end either.
    """

    __slots__ = ("_folder", "_file", "_next", "_fault", "start")

    def __init__(self, folder: int | None, *, in_place: bool = False) -> None:
        self._folder = folder
        self._file = -1
        self._next = FIRST
        self._fault = ""
        if folder is None:
            self._fault = "there is no state folder"
        else:
            try:
                self._next = _load(folder)
                self._store(self._next)
                if in_place:
                    self._file = os.open(STATE_FILE, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
            except (OSError, ValueError, KeyFileError) as e:
                self._fault = strerror(e.errno or 0) if isinstance(e, OSError) else f"{STATE_FILE} is damaged: {e}"
        self.start = self._next

    @property
    def fault(self) -> str:
        """Why no number can be had; empty when one can."""
        return self._fault

    def take(self) -> int:
        """The next number, on disk before it is returned.  Raises CommandError, in the peer's words and the reason."""
        failed = "failed to commit persistent state to disk"
        if self._folder is not None and not self._fault:
            if self._next >= INT64_MAX:
                raise CommandError(f"{failed}: no number is left")
            try:
                self._store(self._next + 1)
            except OSError as e:
                raise CommandError.from_errno(failed, e.errno or 0) from None
            self._next += 1
            return self._next - 1
        raise CommandError(f"{failed}: {self._fault}")

    def _store(self, number: int) -> None:
        text = f"[global]\nfd_counter={number}\n".encode()
        if self._file >= 0:  # a later number is never shorter
            os.lseek(self._file, 0, os.SEEK_SET)
            os.write(self._file, text)
            return
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(_NEW_FILE, flags, 0o600, dir_fd=self._folder)
        try:
            os.write(fd, text)
        finally:
            os.close(fd)
        os.rename(_NEW_FILE, STATE_FILE, src_dir_fd=self._folder, dst_dir_fd=self._folder)


def _load(folder: int) -> int:
    """Raises OSError, KeyFileError, or ValueError for a counter that is no number."""
    try:
        fd = os.open(STATE_FILE, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except FileNotFoundError:
        return FIRST
    try:
        text = os.read(fd, _LONGEST)
    finally:
        os.close(fd)
    value = KeyFile(text).get("global", "fd_counter")
    if value is None:
        return FIRST
    if not (value.isascii() and value.isdigit() and len(value) < 20):
        raise ValueError(f"fd_counter is '{value}'")
    return int(value)
