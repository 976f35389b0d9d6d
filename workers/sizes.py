"""How full file systems are, without waiting for those that do not answer.

statvfs(2) is quick and can hang for ever: on a FUSE program that stopped, on a disk behind a dead network whose free block
count must be read first, or because the *path* to the mount point leads through either.  No type of file system is safe from
all three, so no list of types is kept.  One helper thread walks all mounts; the caller sleeps meanwhile and looks after it
when it has taken too long.  If it stands where it stood it is given up together with that mount, and another goes on behind.

What is stuck is remembered, and not asked again until it came back, so a dead mount costs one wait and one thread, not one
a request.  A thread in an uninterruptible sleep outlives even SIGKILL of its process, until the kernel lets it go.
"""

from __future__ import annotations

import _thread
import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Final

    Answers = list[os.statvfs_result | None]

# Seconds without any progress after which a mount counts as stuck, and that one request waits in all.
PATIENCE: Final = 0.5
LIMIT: Final = 3.0
# Threads that may be stuck at a time; beyond that mounts go without sizes.
MOST_STUCK: Final = 8


def sizes_of(status: os.statvfs_result) -> tuple[int, int, int]:
    """In bytes: what is used; what an ordinary user could have in all; everything, with what is reserved for root."""
    unit, blocks, used = status.f_frsize, status.f_blocks, status.f_blocks - status.f_bfree
    if used < 0:
        used = 0
    return used * unit, (used + status.f_bavail) * unit, blocks * unit


class _Walk:
    """One helper thread's way through the paths.  Results count only as long as it has not been given up.  Raises
    RuntimeError where no thread can be started."""

    __slots__ = ("_paths", "_results", "_ask", "at", "ended", "given_up", "returned")

    def __init__(
        self,
        paths: Sequence[str],
        start: int,
        results: Answers,
        ask: Callable[[str], os.statvfs_result],
    ) -> None:
        self._paths = paths
        self._results = results
        self._ask = ask
        self.at = start
        self.given_up = False
        self.returned = False
        self.ended = _thread.allocate_lock()
        self.ended.acquire()
        _thread.start_new_thread(self._run, ())

    def _run(self) -> None:
        paths, results, ask = self._paths, self._results, self._ask
        for at in range(self.at, len(paths)):
            self.at = at
            try:
                status = ask(paths[at])
            except (OSError, ValueError):
                status = None
            if self.given_up:
                break
            results[at] = status
        self.returned = True
        self.ended.release()


class Surveyor:
    """Asks for sizes; what is stuck outlives the request."""

    __slots__ = ("_stuck", "_ask")

    def __init__(self, ask: Callable[[str], os.statvfs_result] = os.statvfs) -> None:
        self._ask = ask
        self._stuck: dict[str, _Walk] = {}

    def stuck(self) -> list[str]:
        """The paths that have not come back so far."""
        for path in [p for p, walk in self._stuck.items() if walk.returned]:
            del self._stuck[path]
        return list(self._stuck)

    def survey(self, paths: Sequence[str], *, patience: float = PATIENCE, limit: float = LIMIT) -> Answers:
        """What statvfs says at each path; None where it fails or did not answer in time."""
        avoid = set(self.stuck())
        places = [n for n, path in enumerate(paths) if path not in avoid]
        wanted = [paths[n] for n in places]
        answers: Answers = [None] * len(wanted)
        if wanted and len(avoid) < MOST_STUCK:
            try:
                self._walk(wanted, answers, patience, time.monotonic() + limit)
            except RuntimeError:
                pass  # no thread to be had: the file systems are reported without their sizes
        if not avoid:
            return answers
        results: Answers = [None] * len(paths)
        for n, answer in zip(places, answers, strict=True):
            results[n] = answer
        return results

    def _walk(self, paths: list[str], answers: Answers, patience: float, deadline: float) -> None:
        walk, last = _Walk(paths, 0, answers, self._ask), 0
        while not walk.ended.acquire(timeout=max(0.0, min(patience, deadline - time.monotonic()))):
            late = time.monotonic() >= deadline
            if walk.at != last and not late:
                last = walk.at
                continue
            walk.given_up = True
            # Read after it was given up: from here on it takes no further step that counts.
            at = walk.at
            self._stuck[paths[at]] = walk
            if late or at + 1 >= len(paths) or len(self._stuck) >= MOST_STUCK:
                return
            walk, last = _Walk(paths, at + 1, answers, self._ask), at + 1
