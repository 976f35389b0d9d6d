"""The files of a running agent in its runtime directory: the freeze journal and the status that privsep-gactl reads.

The directory is on a tmpfs (see `privsep/rundir.py`), so writing here never waits for a file system that is frozen.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from privsep.journal import JournalState


class RunFiles:
    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.journal_path = f"{directory}/journal"
        self._status_path = f"{directory}/status"

    def open_journal(self) -> int:
        """A descriptor of its own for a child: it reads all and can only append."""
        return os.open(self.journal_path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)

    def journal_pending(self) -> bool:
        """Something is, or may be, frozen or owed by an agent that is gone."""
        state = self._journal_state()
        return state is not None and state.pending

    def journal_clear(self) -> bool:
        """Nothing would be lost with the journal: a lapse that the host was not told of would."""
        state = self._journal_state()
        return state is None or state.clear

    def _journal_state(self) -> JournalState | None:
        try:
            if os.stat(self.journal_path).st_size == 0:
                return None
        except FileNotFoundError:
            return None
        from privsep.journal import Journal, boot_id  # only after a freeze

        fd = self.open_journal()
        try:
            return Journal(fd, boot_id()).read()
        finally:
            os.close(fd)

    def write_status(self, text: str) -> None:
        """Atomically; a directory that has become unwritable costs the status, not the agent."""
        temporary = f"{self._status_path}.new"
        try:
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
            try:
                os.write(fd, text.encode())
            finally:
                os.close(fd)
            os.rename(temporary, self._status_path)
        except OSError:
            pass

    def remove_status(self) -> None:
        try:
            os.unlink(self._status_path)
        except OSError:
            pass
