"""Situations that are no death: workers that hang in the kernel, channels that nobody empties."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from privsep import wiring
from privsep.crew import FIFREEZE, FITHAW
from privsep.domains import NUMBER
from tests.faults import cells
from tests.faults.runner import LAPSED, Outcome, ask_thaw, reply_of, write_policy
from tests.support import faultpoint
from tests.support.agent import state, wait_for
from tests.support.faultkit import FaultAgent, Points, Writers
from tests.support.loopfs import LoopFs

UNDYING: Final = 4.0  # seconds: a second try may be needed
STOPPING: Final = 10.0  # seconds; a service manager's patience is longer (TimeoutStopSec of the unit)
_PIDFD_GETFD: Final = 438  # asm-generic/unistd.h


@dataclass(frozen=True, slots=True)
class Extra:
    name: str
    text: str
    play: Callable[[Outcome], None]

    def __str__(self) -> str:
        return self.name


def run(extra: Extra) -> Outcome:
    begun = time.monotonic()
    out = Outcome(extra.name)
    try:
        extra.play(out)
    except Exception as e:
        out.red.append(f"{type(e).__name__}: {e}"[:900])
    out.seconds = time.monotonic() - begun
    return out


def _ioctl(point: str, request: int) -> None:
    fd = os.open(point, os.O_RDONLY)
    try:
        fcntl.ioctl(fd, request, 0)
    finally:
        os.close(fd)


class _Hanging:
    """What `_hanging` has made: `worker` is fs, `begun` when its FIFREEZE came to wait."""

    def __init__(self, agent: FaultAgent, worker: int, writers: Writers, mounts: list[str], begun: float) -> None:
        self.agent, self.worker, self.writers, self.mounts, self.begun = agent, worker, writers, mounts, begun

    def all_writable_within(self, bound: float, out: Outcome) -> None:
        assert self.writers.watch(bound)
        out.writable = {w.point.rpartition("/")[2]: round(w.late - self.begun, 3) for w in self.writers.all}
        assert max(w.late - self.begun for w in self.writers.all) <= bound


@contextlib.contextmanager
def _hanging(auto_thaw: int) -> Iterator[_Hanging]:
    """A FIFREEZE of fs waits in the kernel for another file system, which was frozen under its feet."""
    with LoopFs("ext4", "xfs") as fs:
        lower, free, upper = *fs.points, f"{fs.folder}/upper"
        fs.add(upper, "ext4", f"{lower}/image")
        fs.release()
        fs.guard()
        with (
            Points() as points,
            FaultAgent(points, "--policy", write_policy(auto_thaw)) as agent,
            Writers([lower, free, upper]) as writers,
        ):
            agent.client.sync()
            agent.call("guest-fsfreeze-status")
            points.arm(faultpoint.REGISTERED)
            agent.client.request("guest-fsfreeze-freeze-list", {"mountpoints": [lower, free, upper]})
            points.wait()
            worker = agent.process("fs")
            Path(f"{upper}/dirty").write_bytes(os.urandom(1 << 20))
            _ioctl(lower, FIFREEZE)
            begun = time.monotonic()
            points.release()
            writers.poke(sure=True)
            wait_for(lambda: _some_thread_hangs(worker), 3.0, "a FIFREEZE that hangs")
            yield _Hanging(agent, worker, writers, [lower, free, upper], begun)


def _fs_hangs(out: Outcome, auto_thaw: int, act: Callable[[FaultAgent, int], None], bound: float) -> None:
    """`act` is done, and within so many seconds all is writable and the host is told."""
    with _hanging(auto_thaw) as hanging:
        agent = hanging.agent
        act(agent, hanging.worker)
        hanging.all_writable_within(bound, out)
        out.answer = reply_of(agent.client, 3.0)
        assert not out.answer.isdigit()
        wait_for(lambda: agent.call("guest-fsfreeze-status") == "thawed", 5.0, "the flag")
        out.then = ask_thaw(agent.client)
        assert out.then == LAPSED
        assert agent.call("guest-fsfreeze-freeze-list", mountpoints=hanging.mounts) == 3
        assert agent.call("guest-fsfreeze-thaw") == 3


def fs_hangs_and_the_agent_is_stopped(out: Outcome) -> None:
    """SIGTERM to the supervisor, as a service manager does, with no deadline to help."""
    with _hanging(0) as hanging:
        os.kill(hanging.agent.pid, signal.SIGTERM)
        hanging.all_writable_within(STOPPING, out)
        out.answer = reply_of(hanging.agent.client, 3.0)
        assert not out.answer.isdigit()
        wait_for(lambda: state(hanging.agent.pid) in ("Z", "X", ""), STOPPING, "the agent's end")


def fs_hangs(out: Outcome) -> None:
    """Nothing else happens: the watchdog's deadline comes."""
    _fs_hangs(out, cells.SHORT, lambda agent, worker: None, cells.AFTER_DEADLINE)


def fs_hangs_and_all_is_killed(out: Outcome) -> None:
    """fs and thawer are killed: fs does not die while its FIFREEZE waits, and what else is frozen is thawed all the same."""

    def kill(agent: FaultAgent, worker: int) -> None:
        os.kill(agent.process("thawer"), signal.SIGKILL)
        os.kill(worker, signal.SIGKILL)

    _fs_hangs(out, cells.DEADLINE, kill, UNDYING)


def fs_hangs_and_the_thawer_is_stopped(out: Outcome) -> None:
    """The thawer is stopped: the deadline is the supervisor's, and fs does not die of it."""
    _fs_hangs(
        out, cells.SHORT, lambda agent, _: os.kill(agent.process("thawer"), signal.SIGSTOP), cells.SHORT + UNDYING
    )


def _some_thread_hangs(pid: int) -> bool:
    for task in os.listdir(f"/proc/{pid}/task"):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/task/{task}/stat").read_text().rpartition(")")[2].split()[0] == "D":
                return True
    return False


def other_hangs(out: Outcome) -> None:
    """The file worker hangs in a write to a file system that somebody else froze: no signal ends it."""
    with LoopFs("ext4", "xfs") as fs:
        stuck, free = fs.points
        with Points() as points, FaultAgent(points, "--policy", "qemu-ga") as agent:
            client = agent.client
            client.sync()
            client.call("guest-fsfreeze-status")
            handle = client.call("guest-file-open", path=f"{stuck}/file", mode="w")
            client.call("guest-file-write", handle=handle, **{"buf-b64": "eA=="})
            client.call("guest-file-flush", handle=handle)
            _ioctl(stuck, FIFREEZE)
            try:
                client.request("guest-file-write", {"handle": handle, "buf-b64": "eA=="})
                worker = agent.process("file")
                client.request("guest-file-flush", {"handle": handle})
                wait_for(lambda: state(worker) == "D", 3.0, "a write that hangs")
                os.kill(worker, signal.SIGKILL)
                begun = time.monotonic()
                client.sync(7)
                assert client.call("guest-fsfreeze-freeze-list", mountpoints=[free]) == 1
                assert client.call("guest-fsfreeze-status") == "frozen"
                out.then = ask_thaw(client)
                assert out.then == "1"
                assert time.monotonic() - begun < 2.0
                assert state(worker) == "D"
            finally:
                _ioctl(stuck, FITHAW)
            wait_for(lambda: state(worker) in ("", "Z", "X"), 3.0, "its end")
            assert client.call("guest-ping") == {}
            out.writable = {"xfs": 0.0}


def host_does_not_read(out: Outcome) -> None:
    """The reply to the freeze stays behind others in a channel that the host does not empty: it is not committed."""
    with LoopFs(*cells.FILE_SYSTEMS) as fs:
        with (
            Points() as points,
            FaultAgent(points, "--policy", write_policy(cells.SHORT)) as agent,
            Writers(fs.points) as writers,
        ):
            client = agent.client
            client.sync()
            client.call("guest-fsfreeze-status")
            info = b'{"execute":"guest-info"}\n' * 150
            freeze = json.dumps({"execute": "guest-fsfreeze-freeze-list", "arguments": {"mountpoints": fs.points}})
            client.raw(info + freeze.encode() + b"\n")
            wait_for(lambda: agent.processes().get("fs"), 5.0)
            begun = time.monotonic()
            assert writers.watch(cells.AFTER_DEADLINE, at_least=1.5)
            assert all(w.late for w in writers.all), "it was not frozen"
            out.writable = {
                p.rpartition("-")[2]: round(w.late - begun, 3) for p, w in zip(fs.points, writers.all, strict=True)
            }
            for _ in range(150):
                assert "error" not in client.reply(5.0)
            out.answer = reply_of(client, 5.0)
            out.then = ask_thaw(client)
            assert out.then == LAPSED
            assert client.call("guest-fsfreeze-freeze-list", mountpoints=fs.points) == 3
            assert client.call("guest-fsfreeze-thaw") == 3


def front_does_not_listen(out: Outcome) -> None:
    """A hostile front asks for workers for ever and reads none of the answers: supervisor and deadline do not mind."""
    with LoopFs(*cells.FILE_SYSTEMS) as fs:
        with (
            Points() as points,
            FaultAgent(points, "--policy", write_policy(cells.SHORT)) as agent,
            Writers(fs.points) as writers,
        ):
            client = agent.client
            client.sync()
            client.call("guest-fsfreeze-status")
            front, thawer = agent.process("front"), agent.process("thawer")
            control = os.pidfd_open(front)
            theirs = _steal(control, wiring.CONTROL_FD)
            assert client.call("guest-fsfreeze-freeze-list", mountpoints=fs.points) == 3
            client.call("guest-fsfreeze-status")
            begun = time.monotonic()
            os.kill(front, signal.SIGSTOP)
            os.kill(thawer, signal.SIGSTOP)  # so that the supervisor's deadline is what is left
            writers.poke(sure=True)
            try:
                os.set_blocking(theirs, False)
                end = time.monotonic() + 0.5
                while time.monotonic() < end:
                    with contextlib.suppress(OSError):  # full, or the front was ended for it
                        os.write(theirs, bytes((wiring.START | NUMBER["fs"],)))
                assert writers.watch(cells.AFTER_DEADLINE)
            finally:
                os.close(theirs)
                os.close(control)
                for pid in (front, thawer):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGCONT)
            out.writable = {
                p.rpartition("-")[2]: round(w.late - begun, 3) for p, w in zip(fs.points, writers.all, strict=True)
            }
            again = agent.connect()
            again.sync()
            out.then = ask_thaw(again)
            assert out.then == LAPSED
            assert again.call("guest-fsfreeze-freeze-list", mountpoints=fs.points) == 3
            assert again.call("guest-fsfreeze-thaw") == 3


def _steal(pidfd: int, number: int) -> int:
    """A copy of another process's descriptor (pidfd_getfd(2)), not blocking (which it shares: that process is stopped)."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd: int = libc.syscall(_PIDFD_GETFD, pidfd, number, 0)
    if fd < 0:
        raise OSError(ctypes.get_errno(), "pidfd_getfd")
    return fd


def worker_channel_full(out: Outcome) -> None:
    """The socket from fs to the front is full and the front stopped: the reply to the freeze blocks fs."""
    with LoopFs(*cells.FILE_SYSTEMS) as fs:
        with (
            Points() as points,
            FaultAgent(points, "--policy", write_policy(cells.SHORT)) as agent,
            Writers(fs.points) as writers,
        ):
            client = agent.client
            client.sync()
            client.call("guest-fsfreeze-status")
            points.arm(faultpoint.UNSAID)
            client.request("guest-fsfreeze-freeze-list", {"mountpoints": fs.points})
            points.wait()
            front, worker = agent.process("front"), agent.process("fs")
            os.kill(front, signal.SIGSTOP)
            begun = time.monotonic()
            writers.poke(sure=True)
            process = os.pidfd_open(worker)
            theirs = _steal(process, _newest_socket(worker))
            try:
                _fill(theirs)
                points.release()
                wait_for(lambda: _blocks_in_a_send(worker), 3.0, "fs that blocks")
                assert writers.watch(cells.AFTER_DEADLINE)
            finally:
                os.close(theirs)
                os.close(process)
                os.kill(front, signal.SIGCONT)
            out.writable = {
                p.rpartition("-")[2]: round(w.late - begun, 3) for p, w in zip(fs.points, writers.all, strict=True)
            }
            out.answer = reply_of(client, 3.0)
            assert not out.answer.isdigit()
            out.then = ask_thaw(client)
            assert out.then == LAPSED
            assert client.call("guest-fsfreeze-freeze-list", mountpoints=fs.points) == 3
            assert client.call("guest-fsfreeze-thaw") == 3


def _blocks_in_a_send(pid: int) -> bool:
    """Where the kernel tells (wchan is 0 where it does not)."""
    return Path(f"/proc/{pid}/wchan").read_text() in ("sock_alloc_send_pskb", "0")


def _newest_socket(pid: int) -> int:
    """That of the front, which a worker gets last."""
    base = Path(f"/proc/{pid}/fd")
    return max(int(p.name) for p in base.iterdir() if os.readlink(p).startswith("socket:"))


def _fill(fd: int) -> None:
    """Say what is no reply until nothing more goes in."""
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    os.set_blocking(fd, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(fd, b"\0" + bytes(40_000))
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(fd, b"\0")
    fcntl.fcntl(fd, fcntl.F_SETFL, flags)  # the description is the worker's too


def log_is_full(out: Outcome) -> None:
    """Nobody reads the pipe that is the log."""
    with LoopFs(*cells.FILE_SYSTEMS) as fs:
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(writer, b"x" * 4096)
        os.set_blocking(writer, True)
        with Points() as points, Writers(fs.points) as writers:
            agent = _LoggedTo(writer, points, "--policy", write_policy(cells.SHORT))
            with agent:
                client = agent.client
                client.sync()
                client.call("guest-fsfreeze-status")
                assert client.call("guest-fsfreeze-freeze-list", mountpoints=fs.points) == 3
                begun = time.monotonic()
                writers.poke(sure=True)
                assert writers.watch(cells.AFTER_DEADLINE)
                out.writable = {
                    p.rpartition("-")[2]: round(w.late - begun, 3) for p, w in zip(fs.points, writers.all, strict=True)
                }
                out.then = ask_thaw(client)
                assert out.then == LAPSED
        os.close(reader)
        os.close(writer)


class _LoggedTo(FaultAgent):
    def __init__(self, fd: int, points: Points, *args: str) -> None:
        super().__init__(points, *args)
        self._log_fd = fd

    def start(self, limit: float = 10.0) -> None:
        self.log_path = f"/proc/self/fd/{self._log_fd}"
        super().start(limit)

    def log(self) -> str:
        return ""


EXTRAS: Final = (
    Extra("fs hangs", "a FIFREEZE of the fs worker hangs in the kernel (state D) on a file system below", fs_hangs),
    Extra(
        "fs hangs, all killed",
        "the same, and fs and thawer are killed: fs cannot die before its FIFREEZE returns",
        fs_hangs_and_all_is_killed,
    ),
    Extra(
        "fs hangs, thawer stopped",
        "the same, and the thawer is stopped: the supervisor's deadline, of which fs cannot die",
        fs_hangs_and_the_thawer_is_stopped,
    ),
    Extra(
        "fs hangs, agent stopped",
        "the same without a deadline, and the agent is stopped (SIGTERM) as by a service manager",
        fs_hangs_and_the_agent_is_stopped,
    ),
    Extra(
        "file hangs",
        "the file worker hangs in a write (state D) while the host freezes another file system",
        other_hangs,
    ),
    Extra("host channel full", "the host does not read: the reply to the freeze is never written", host_does_not_read),
    Extra(
        "control channel full",
        "the front floods the supervisor and reads nothing, the thawer is stopped",
        front_does_not_listen,
    ),
    Extra(
        "worker channel full",
        "the socket from fs to the front is full and the front stopped: fs blocks in its reply",
        worker_channel_full,
    ),
    Extra("log full", "nobody reads the pipe that the log goes to", log_is_full),
)
