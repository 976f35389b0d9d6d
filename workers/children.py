"""The programs that were started and not yet asked to their end: feeds, reads and reaps them between the requests.

One epoll instance waits for all of them, so that the worker's loop has a single descriptor to watch, and writing (which that
loop does not wait for) is covered too.  A death is seen through a pidfd, and only that child is reaped.

Everything is bounded: programs that run, results that nobody asked for, bytes that are kept or wait to be fed.
"""

from __future__ import annotations

import _signal
import os
import select
import time

from protocol.errors import CommandError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Final

    from privsep.runtime import Context

RUNNING: Final = 200  # programs at once; with four descriptors each they stay below the usual limit of 1024
REMEMBERED: Final = 1024  # ended programs whose status was not asked for
STREAM: Final = 16 << 20  # bytes kept of one stream, as the peer
KEPT: Final = 128 << 20  # bytes kept of all streams together, and apart from that as much input that waits
HEAD: Final = 4096  # bytes that stay of an old result when room is needed

_CHUNK: Final = 64 << 10  # bytes a read, the size of a pipe
_TURN: Final = 1 << 20  # bytes read of one stream before the others, and requests, have their turn
_LOST: Final = 1024  # pids of dropped results that are still known as such
_NOTHING: Final = memoryview(b"")


class Stream:
    """One captured stream; `fd` is None from its end of file on."""

    __slots__ = ("fd", "data", "truncated")

    def __init__(self, fd: int) -> None:
        self.fd: int | None = fd
        self.data = bytearray()
        self.truncated = False


class Child:
    """A program: `exitcode` or `signal` is set once it was reaped, `pidfd` is None then; `rest` is input it has not got."""

    __slots__ = ("pid", "pidfd", "out", "err", "stdin", "rest", "size", "exitcode", "signal", "begun", "keep", "due")

    def __init__(
        self, pid: int, out: int | None, err: int | None, stdin: int | None, data: bytes, keep: int = STREAM
    ) -> None:
        """`keep`: bytes of each stream.  Raises OSError."""
        self.keep = keep
        self.due: float | None = None  # when it is killed
        self.pid = pid
        self.pidfd: int | None = os.pidfd_open(pid)
        self.out = Stream(out) if out is not None else None
        self.err = Stream(err) if err is not None else None
        self.stdin = stdin
        self.rest = memoryview(data)
        self.size = len(data)
        self.exitcode: int | None = None
        self.signal: int | None = None
        self.begun = time.monotonic()

    @property
    def streams(self) -> Iterator[Stream]:
        return (s for s in (self.out, self.err) if s is not None)

    @property
    def ended(self) -> bool:
        """Reaped, and nobody holds its captured pipes any more: a background process may do so for long."""
        return self.pidfd is None and all(s.fd is None for s in self.streams)


def _ring(number: int, frame: object) -> None:
    """What matters is the byte that the signal leaves in the pipe."""


class Children:
    """All of them, oldest first."""

    def __init__(self) -> None:
        self._alarm = -1
        self._epoll = select.epoll()
        self._by_pid: dict[int, Child] = {}
        self._by_fd: dict[int, Child] = {}
        self._lost: dict[int, None] = {}
        self._running = 0
        self._kept = 0
        self._waiting = 0

    def __len__(self) -> int:
        return len(self._by_pid)

    def fileno(self) -> int:
        """Readable when `service` has something to do."""
        return self._epoll.fileno()

    def admit(self, size: int) -> None:
        """Raises CommandError when one more program, with so many bytes of input, would be too much."""
        if self._running >= RUNNING:
            raise CommandError(f"too many programs are running: {RUNNING}; wait until some have ended")
        if self._waiting + size > KEPT:
            raise CommandError(f"too much input waits for programs to read it: {self._waiting} bytes; try again later")

    def add(self, ctx: Context, child: Child, limit: int = 0) -> None:
        """Takes charge of a child and its descriptors, which must be non-blocking; ends it after so many seconds (0: never)."""
        old = self._by_pid.get(child.pid)
        if old is not None:  # reaped, so that the kernel could give its number again
            self._drop(ctx, old, "its pid came again")
        self._lost.pop(child.pid, None)
        self._by_pid[child.pid] = child
        self._running += 1
        self._waiting += child.size
        assert child.pidfd is not None
        self._watch(child, child.pidfd, select.EPOLLIN)
        for stream in child.streams:
            assert stream.fd is not None
            self._watch(child, stream.fd, select.EPOLLIN)
        if child.stdin is not None:
            self._watch(child, child.stdin, select.EPOLLOUT)
            self._feed(child)
        if limit:
            child.due = child.begun + limit
            self._wind()

    def claim(self, pid: int) -> Child | None:
        """The child, forgotten if it has ended; None when it still runs.  Raises CommandError for an unknown pid."""
        child = self._by_pid.get(pid)
        if child is None:
            if pid in self._lost:
                raise CommandError(f"the result of PID {pid} was dropped: too many were not asked for")
            raise CommandError("Invalid parameter 'pid'")
        if not child.ended:
            return None
        self._forget(child)
        return child

    def service(self, ctx: Context) -> None:
        """Does what can be done without waiting."""
        for fd, _ in self._epoll.poll(0):
            if fd == self._alarm:
                os.read(fd, 4096)
                self._end_late(ctx)
                continue
            child = self._by_fd.get(fd)
            if child is None:
                continue
            before = child.ended
            if fd == child.pidfd:
                self._reap(child)
            elif fd == child.stdin:
                self._feed(child)
            else:
                self._read(next(s for s in child.streams if s.fd == fd), child.keep)
            if child.ended and not before:
                self._running -= 1
                how = f"signal {child.signal}" if child.signal is not None else f"exit code {child.exitcode}"
                took = (time.monotonic() - child.begun) * 1000
                size = sum(len(s.data) for s in child.streams)
                ctx.log.later(f"guest-exec: pid {child.pid} ended, {how}, {took:.0f} ms, {size} bytes captured")
                self._limit(ctx)

    def _watch(self, child: Child, fd: int, events: int) -> None:
        self._by_fd[fd] = child
        self._epoll.register(fd, events)

    def _close(self, fd: int) -> None:
        del self._by_fd[fd]
        self._epoll.unregister(fd)
        os.close(fd)

    def _reap(self, child: Child) -> None:
        assert child.pidfd is not None
        result = os.waitid(os.P_PIDFD, child.pidfd, os.WEXITED)
        assert result is not None
        if result.si_code == os.CLD_EXITED:
            child.exitcode = result.si_status
        else:
            child.signal = result.si_status
        self._close(child.pidfd)
        child.pidfd = None

    def _feed(self, child: Child) -> None:
        """Writes what fits; a program that does not read any more loses the rest."""
        assert child.stdin is not None
        try:
            while child.rest:
                child.rest = child.rest[os.write(child.stdin, child.rest) :]
        except BlockingIOError:
            return
        except OSError:
            pass
        self._close(child.stdin)
        child.stdin = None
        self._let_go_of_input(child)

    def _let_go_of_input(self, child: Child) -> None:
        """An empty slice would still hold the whole of it."""
        self._waiting -= child.size
        child.size = 0
        child.rest = _NOTHING

    def _wind(self) -> None:
        """Have the clock ring for the next program whose time is up."""
        dues = [c.due for c in self._by_pid.values() if c.due is not None]
        if not dues:
            return
        if self._alarm < 0:
            # A signal that says so through a pipe: the loop waits for descriptors, and Python 3.11 has no timerfd.
            self._alarm, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            _signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
            _signal.signal(_signal.SIGALRM, _ring)
            self._epoll.register(self._alarm, select.EPOLLIN)
        _signal.setitimer(_signal.ITIMER_REAL, max(0.001, min(dues) - time.monotonic()))

    def _end_late(self, ctx: Context) -> None:
        """Kill the process groups of programs whose time is up, what they left behind included."""
        now = time.monotonic()
        for child in self._by_pid.values():
            if child.due is not None and child.due <= now:
                child.due = None
                if child.ended or (child.pidfd is None and os.path.exists(f"/proc/{child.pid}")):
                    continue  # its number is somebody else's by now, so nobody of its group is left
                ctx.log.warning(f"guest-exec: pid {child.pid} is over its time limit and is killed")
                try:
                    os.killpg(child.pid, _signal.SIGKILL)
                except ProcessLookupError:
                    pass
        self._wind()

    def _read(self, stream: Stream, limit: int) -> None:
        """Reads and keeps, and reads and drops what is too much, so that the program can go on."""
        assert stream.fd is not None
        for _ in range(_TURN // _CHUNK):
            try:
                data = os.read(stream.fd, _CHUNK)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._close(stream.fd)
                stream.fd = None
                return
            keep = min(len(data), limit - len(stream.data))
            if keep:
                keep = min(keep, self._room(keep))
            if keep < len(data):
                stream.truncated = True
                data = data[:keep]
            stream.data += data
            self._kept += keep

    def _room(self, wanted: int) -> int:
        """How many bytes may be kept now; old results nobody asked for shrink to their heads for it, which they tell."""
        if self._kept + wanted > KEPT:
            for child in self._by_pid.values():
                if child.ended:
                    for stream in child.streams:
                        if len(stream.data) > HEAD:
                            self._kept -= len(stream.data) - HEAD
                            stream.data = stream.data[:HEAD]
                            stream.truncated = True
                    if self._kept + wanted <= KEPT:
                        break
        return KEPT - self._kept

    def _limit(self, ctx: Context) -> None:
        """Drops the oldest result when there are too many."""
        if len(self._by_pid) - self._running > REMEMBERED:
            self._drop(ctx, next(c for c in self._by_pid.values() if c.ended), "too many results were not asked for")

    def _drop(self, ctx: Context, child: Child, why: str) -> None:
        ctx.log.warning(f"guest-exec: the result of pid {child.pid} is dropped: {why}")
        if not child.ended:
            self._running -= 1
        self._forget(child)
        self._lost[child.pid] = None
        if len(self._lost) > _LOST:
            del self._lost[next(iter(self._lost))]

    def _forget(self, child: Child) -> None:
        del self._by_pid[child.pid]
        self._kept -= sum(len(s.data) for s in child.streams)
        self._let_go_of_input(child)
        for fd in (child.stdin, *(s.fd for s in child.streams)):
            if fd is not None:
                self._close(fd)
