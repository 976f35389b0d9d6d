"""An agent that can be held at fault points, a service manager for it, and writers that time when a file system takes writes.

    with Points() as points, FaultAgent(points, "--policy", policy) as agent:
        points.arm(faultpoint.UNSAID)
        agent.client.request("guest-fsfreeze-freeze")
        points.wait()                    # FIFREEZE is done and the reply is not
        os.kill(agent.process("thawer"), signal.SIGKILL)
        points.release()

Only inside a private root (`tests/support/namespace.py`).
"""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import TracebackType

from privsep import rundir
from tests.support import faultpoint
from tests.support.agent import PROJECT, Agent, children, state

LIBEXEC = PROJECT / ".venv" / "libexec" / "privsep-ga"
PROGRAM = PROJECT / ".venv" / "bin" / "privsep-ga"
FAST = 0.05  # seconds: a write that takes longer was stopped (or the machine is busy, which only makes times longer)


class Points:
    """The test's side of the fault points, and the folder with the entry scripts that have them."""

    def __init__(self, variant: str = "") -> None:
        self.folder = tempfile.mkdtemp(prefix="faults-", dir="/tmp")
        os.chmod(self.folder, 0o755)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(f"{self.folder}/points")
        self._listener.listen(64)
        os.chmod(f"{self.folder}/points", 0o777)
        fd = os.open(f"{self.folder}/page", os.O_RDWR | os.O_CREAT, 0o644)
        os.ftruncate(fd, mmap.PAGESIZE)
        self._page = mmap.mmap(fd, mmap.PAGESIZE)
        os.close(fd)
        self._ends: list[socket.socket] = []
        self._held: socket.socket | None = None
        self.libexec = f"{self.folder}/libexec"
        os.mkdir(self.libexec)
        for script in LIBEXEC.iterdir():
            if script.is_dir():
                os.symlink(script, f"{self.libexec}/{script.name}")
                continue
            self._script(script, f"{self.libexec}/{script.name}", script.name, variant)
        self.program = f"{self.folder}/privsep-ga"
        self._script(PROGRAM, self.program, "supervisor", variant)

    def _script(self, real: Path, path: str, name: str, variant: str) -> None:
        """The real entry script, with `install` before its import."""
        text = real.read_text().replace(f"libexec={str(LIBEXEC)!r}", f"libexec={self.libexec!r}")
        if name in ("fs", "thawer", "supervisor"):
            first, found, rest = text.partition("\nfrom privsep")
            assert found
            text = (
                f"{first}\nfrom tests.support.faultpoint import install\n"
                f"install({name!r}, {self.folder!r}, {variant!r})\n{found}{rest}"
            )
        with open(path, "w") as file:
            file.write(text)
        os.chmod(path, 0o755)

    def arm(self, number: int) -> None:
        """The next process that passes this point is held there."""
        self._page[0] = number

    def wait(self, limit: float = 10.0) -> None:
        """Until a process is held.  TimeoutError."""
        end = time.monotonic() + limit
        while (left := end - time.monotonic()) > 0:
            ready, _, _ = select.select([self._listener, *self._ends], [], [], left)
            for found in ready:
                if found is self._listener:
                    self._ends.append(self._listener.accept()[0])
                elif found.recv(1):
                    self._page[0] = 0
                    self._held = found
                    return
                else:
                    self._ends.remove(found)
                    found.close()
        raise TimeoutError(f"nobody came to the fault point {faultpoint.NAMES[self._page[0]]!r}")

    def release(self) -> None:
        """Let it go on, if it lives."""
        held, self._held = self._held, None
        if held is not None:
            with contextlib.suppress(OSError):
                held.send(b"g")

    def close(self) -> None:
        self._page[0] = 0
        self.release()
        for end in (*self._ends, self._listener):
            end.close()

    def __enter__(self) -> Points:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class FaultAgent(Agent):
    """An agent with these points; a process group of its own.

    watchdog  seconds of silence after which its service manager kills it, 0: it has none
    """

    GROUP = 0

    def __init__(self, points: Points, *args: str, directory: str | None = None, watchdog: float = 0.0) -> None:
        self.points = points
        super().__init__(*args, directory=directory)
        self.manager = Manager(self, watchdog) if watchdog else None
        if self.manager is not None:
            self._env |= {"NOTIFY_SOCKET": self.manager.address, "WATCHDOG_USEC": str(int(watchdog * 1e6))}

    def command(self) -> list[str]:
        return [self.points.program, *super().command()[1:]]

    @property
    def journal(self) -> str:
        return f"{rundir.runtime_dir(self.directory, 0, {})}/journal"

    def recover(self) -> int:
        """What the service manager runs after the agent has ended (ExecStopPost)."""
        return subprocess.run([f"{self.points.libexec}/recover", self.journal], capture_output=True).returncode

    def status(self, limit: float = 5.0) -> int:
        """Wait for its end; the exit status."""
        assert self._process is not None
        return self._process.wait(limit)

    def ended(self) -> bool:
        assert self._process is not None
        return self._process.poll() is not None

    def forget(self) -> None:
        """The process is over, whoever reaped what; the folder stays for the next agent."""
        for client in self._clients:
            client.close()
        self._clients.clear()
        if self.manager is not None:
            self.manager.close()


class Manager:
    """As much of a service manager as matters here: WatchdogSec, then SIGKILL to all, then ExecStopPost."""

    def __init__(self, agent: FaultAgent, seconds: float) -> None:
        self._agent = agent
        self._seconds = seconds
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.address = f"{agent.directory}/notify"
        self._socket.bind(self.address)
        self.fired = False
        self._over = False
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        self._socket.settimeout(0.1)
        heard = 0.0
        while not self._over:
            with contextlib.suppress(TimeoutError):
                self._socket.recv(64)
                heard = time.monotonic()
            if heard and time.monotonic() - heard > self._seconds:
                # All at once, as by cgroup.kill: the supervisor's end alone would have the kernel continue the others.
                tree = list(self._agent.processes().values())
                os.killpg(self._agent.pid, signal.SIGKILL)
                end = time.monotonic() + 5
                while any(state(pid) not in ("", "Z", "X") for pid in tree) and time.monotonic() < end:
                    time.sleep(0.005)
                self._agent.recover()
                self.fired = True
                return

    def close(self) -> None:
        self._over = True
        self._thread.join(8)
        self._socket.close()


_WRITER = """
import os, sys, time
path = sys.argv[1]
while os.read(0, 1):
    fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    os.write(fd, b"x")
    os.fsync(fd)
    os.close(fd)
    os.write(1, b"%.6f\\n" % time.monotonic())
"""


class Writer:
    """A process that writes one file whenever it is asked, and says when the write was through."""

    def __init__(self, point: str) -> None:
        self.point = point
        self._process = subprocess.Popen(
            [sys.executable, "-IS", "-c", _WRITER, f"{point}/probe"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd="/",
            start_new_session=True,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._to, self.fd = self._process.stdin.fileno(), self._process.stdout.fileno()
        self.asked: float | None = None
        self.sure = False  # the file system is known to be frozen
        self.through = 0  # writes that went through
        self.late = 0.0  # when the last one that had been stopped went through
        self.free_since: float | None = None

    def poke(self, sure: bool = False) -> None:
        if self.asked is None:
            self.sure = sure
            self.asked = time.monotonic()
            os.write(self._to, b"w")

    def collect(self) -> None:
        """After poll: its answer."""
        done = float(os.read(self.fd, 64).split(b"\n")[0])
        assert self.asked is not None
        slow = self.sure or done - self.asked > FAST
        self.asked = None
        self.through += 1
        if slow:
            self.late = done
        if slow or self.free_since is None:
            self.free_since = done

    def blocked(self, now: float) -> bool:
        return self.asked is not None and now - self.asked > FAST

    def held(self) -> bool:
        """Whether it waits for a frozen file system, as the kernel says; a disk that is slow is another wait.

        `sb_start_write` of a frozen superblock waits on its percpu_rw_semaphore (include/linux/fs.h)."""
        wchan = Path(f"/proc/{self._process.pid}/wchan").read_text()
        return self.asked is not None and wchan == "percpu_rwsem_wait"

    def close(self) -> None:
        """Only when the file system takes writes."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(2)
        self._process.stdout.close()


class Writers:
    """A writer for each file system."""

    def __init__(self, points: list[str]) -> None:
        self.all = [Writer(p) for p in points]

    def poke(self, sure: bool = False) -> None:
        for writer in self.all:
            writer.poke(sure)

    def through(self) -> int:
        return sum(w.through for w in self.all)

    def watch(self, limit: float, *, steady: float = 0.25, at_least: float = 0.0) -> bool:
        """Write again and again until all have taken writes for `steady` seconds (True), or for `limit` seconds."""
        begun = time.monotonic()
        for writer in self.all:
            writer.free_since = None
        while True:
            now = time.monotonic()
            if now - begun >= at_least and all(
                w.free_since is not None and not w.blocked(now) and now - w.free_since >= steady for w in self.all
            ):
                return True
            if now - begun > limit:
                return False
            self.poke()
            for fd in select.select([w.fd for w in self.all], [], [], 0.01)[0]:
                next(w for w in self.all if w.fd == fd).collect()
            time.sleep(0.005)

    def settle(self, limit: float = 5.0) -> bool:
        """Until no write is on its way.  ValueError when a writer failed, as on a file system that became read-only."""
        end = time.monotonic() + limit
        while any(w.asked is not None for w in self.all) and (left := end - time.monotonic()) > 0:
            for fd in select.select([w.fd for w in self.all if w.asked is not None], [], [], left)[0]:
                next(w for w in self.all if w.fd == fd).collect()
        return all(w.asked is None for w in self.all)

    def close(self) -> None:
        for writer in self.all:
            writer.close()

    def __enter__(self) -> Writers:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def signal_all(pids: list[int], number: int) -> None:
    """Send it to each at once, then wait until it has worked (dead or stopped; a SIGTERM may be ignored).

    The supervisor comes last: its end makes the process group an orphan, and the kernel continues what is stopped there."""
    if number in (signal.SIGKILL, signal.SIGSEGV) and len(pids) > 1:
        for pid in pids:  # so that none of them sees another's death
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
            if number == signal.SIGSEGV:
                os.kill(pid, signal.SIGCONT)
    wanted = {signal.SIGKILL: ("", "Z", "X"), signal.SIGSEGV: ("", "Z", "X"), signal.SIGSTOP: ("T", "", "Z", "X")}.get(
        number
    )
    end = time.monotonic() + 1.0
    while wanted and time.monotonic() < end and any(state(pid) not in wanted for pid in pids):
        time.sleep(0.001)


def tree(agent: Agent) -> list[int]:
    """Every process of the agent, the supervisor first."""
    found = [agent.pid]
    for pid in found:
        found += [p for p in children(pid) if p not in found]
    return found
