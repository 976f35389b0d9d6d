"""fs, thawer and hook worker as real processes, with a small supervisor that a test can make misbehave.

The children run the project's own code (`privsep.runtime`, `privsep.thawer`, `workers.fs`, `workers.hook`) over real
socket pairs; walls are not put up (the sandbox has tests of its own).  The kit answers `A` and `T`, kills fs on `K`, and
does nothing else by itself, so a test decides who dies when and who is started again.

    with Kit(seconds=5) as kit, LoopFs("ext4") as fs:
        assert kit.call("guest-fsfreeze-freeze-list", mountpoints=fs.points) == 1
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import tempfile
import threading
import time
from types import TracebackType
from typing import Any

from privsep import frame, journal, thawwire, wiring
from privsep.board import Board
from privsep.fingerprint import fingerprint
from protocol.commands import verbs_of
from tests.support.namespace import PROJECT

LIMIT = 15.0
_CHILD = "import sys; sys.path[:0] = {path!r}; from tests.support.freezekit import child; child({name!r}, {settings!r})"


class Failed(Exception):
    """The command's error; str() is the text for the host."""


class Died(Exception):
    """The worker ended before it answered."""


def child(name: str, settings: dict[str, str]) -> None:
    """What runs in the child: as privsep/child.py, without the walls."""
    from privsep.log import Log

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    control = wiring.adopt(wiring.CONTROL_FD)
    board = Board.attach(wiring.BOARD_FD)
    for fd in (wiring.CONTROL_FD, wiring.BOARD_FD):
        os.set_inheritable(fd, False)
    log = Log(2, name, verbose=True, hold=lambda: board.frozen)
    if name == "thawer":
        from privsep import thawer

        run = thawer.prepare(control, settings=settings, board=board, log=log)
    else:
        from privsep.runtime import Context, Worker

        module = __import__(f"workers.{name}", fromlist=["workers"])
        context = Context(log=log, settings=settings, control=control, board=board)
        if hasattr(module, "prepare"):
            module.prepare(context)
        run = Worker(name, module, context, frozenset(c.name for c in verbs_of(name))).run
    run()
    log.flush()
    os._exit(0)


class Process:
    """One child and our end of its control socket."""

    def __init__(self, name: str, settings: dict[str, str], board: int, log: int) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.control = ours
        code = _CHILD.format(path=[str(PROJECT), *sys.path], name=name, settings=settings)
        # The numbers 3 and 5 are dup2 targets, so the sources must not be there.
        sources = [os.dup(fd) for fd in (theirs.fileno(), board)]
        while min(sources) < 10:
            sources = [os.dup(fd) for fd in sources]
        self.pid = os.posix_spawn(
            sys.executable,
            [sys.executable, "-c", code],
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, log, 1),
                (os.POSIX_SPAWN_DUP2, log, 2),
                (os.POSIX_SPAWN_DUP2, sources[0], wiring.CONTROL_FD),
                (os.POSIX_SPAWN_DUP2, sources[1], wiring.BOARD_FD),
            ],
        )
        theirs.close()
        self.status: int | None = None

    def give(self, tag: bytes, fd: int) -> None:
        """Hand a descriptor over; it is closed here."""
        wiring.send_fd(self.control, tag, fd)
        os.close(fd)

    def kill(self, number: int = signal.SIGKILL) -> None:
        if self.status is None:
            os.kill(self.pid, number)

    def ended(self, seconds: float) -> bool:
        """Wait for its end and reap it."""
        end = time.monotonic() + seconds
        while self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
                self.control.close()
            elif time.monotonic() > end:
                return False
            else:
                time.sleep(0.005)
        return True


class Kit:
    """`hook` is the path of a freeze hook, `seconds` the freeze's time limit."""

    def __init__(
        self, *, seconds: int = 30, hook: str = "", hook_limit: float = 10, fs: bool = True, **settings: str
    ) -> None:
        self.settings = {"auto-thaw": str(seconds), "hook-limit": str(hook_limit), "fsfreeze-hook": hook, **settings}
        self.folder = tempfile.mkdtemp(prefix="freezekit-", dir="/dev/shm")
        self.journal_path = f"{self.folder}/journal"
        self.log = os.open(f"{self.folder}/log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC)
        self.board = Board.create()
        self.seen: list[str] = []  # the bytes that fs and thawer sent, as "fs A"
        self.answers = True  # acknowledge A and T, obey K
        self._lock = threading.Lock()
        self._over = False
        self._front: socket.socket | None = None
        self._assembler = frame.Assembler()
        self._number = 0
        self.thawer: Process | None = None
        self.hook: Process | None = None
        self.fs: Process | None = None
        self.start_thawer()
        if hook:
            self.start_hook()
        self._thread = threading.Thread(target=self._supervise, daemon=True)
        self._thread.start()
        if fs:
            self.start_fs()

    # -- who runs

    def _journal_fd(self) -> int:
        return os.open(self.journal_path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def start_thawer(self) -> None:
        self.thawer = Process("thawer", self.settings, self.board.fd, self.log)
        self.thawer.give(wiring.TAG_JOURNAL, self._journal_fd())

    def start_hook(self) -> None:
        self.hook = Process("hook", self.settings, self.board.fd, self.log)

    def give_hook(self) -> None:
        """A new hook worker's socket for an fs that runs."""
        assert self.fs and self.hook
        ours, theirs = wiring.pair()
        self.fs.give(wiring.TAG_HOOK, ours.detach())
        self.hook.give(wiring.TAG_FS, theirs.detach())

    def link(self) -> thawwire.Link:
        """Be the fs worker: its end of a new socket to the thawer."""
        assert self.thawer
        ours, theirs = wiring.pair()
        self.thawer.give(wiring.TAG_FS, theirs.detach())
        return thawwire.Link(ours, LIMIT)

    def start_fs(self) -> None:
        self.fs = Process("fs", self.settings, self.board.fd, self.log)
        self.fs.give(wiring.TAG_JOURNAL, self._journal_fd())
        assert self.thawer
        ours, theirs = wiring.pair()
        self.fs.give(wiring.TAG_THAWER, ours.detach())
        self.thawer.give(wiring.TAG_FS, theirs.detach())
        if self.hook is not None:
            self.give_hook()
        ours, theirs = wiring.pair()
        self.fs.give(wiring.TAG_CHANNEL, ours.detach())
        self.fs.control.send(wiring.TAG_START)
        self._front = socket.socket(fileno=theirs.detach())
        self._assembler = frame.Assembler()
        try:
            assert self.request(frame.HELLO, {"tables": fingerprint()}) is True
        except (Died, TimeoutError):
            raise RuntimeError(f"fs does not come up:\n{self.logged()}") from None

    def _supervise(self) -> None:
        while not self._over:
            processes = [p for p in (self.fs, self.thawer) if p is not None and p.status is None]
            poll = select.poll()
            for p in processes:
                if p.control.fileno() >= 0:
                    poll.register(p.control.fileno(), select.POLLIN)
            for fd, _ in poll.poll(20):
                for p in processes:
                    if p.control.fileno() == fd:
                        self._byte(p)

    def _byte(self, process: Process) -> None:
        try:
            data = process.control.recv(8, socket.MSG_DONTWAIT)
        except OSError:
            data = b""
        if not data:
            time.sleep(0.01)  # it is gone; the test reaps it
            return
        name = "fs" if process is self.fs else "thawer"
        with self._lock:
            self.seen.append(f"{name} {data.decode()}")
        if not self.answers:
            return
        if data in (b"A", b"a"):
            self.board.set_frozen(True)
            process.control.send(b"A")
        elif data == b"T":
            self.board.set_frozen(False)
            process.control.send(b"T")
        elif data == b"K" and self.fs is not None:
            self.fs.kill()

    # -- requests

    def send(self, verb: int, args: dict[str, object]) -> int:
        assert self._front is not None
        self._number += 1
        for part in frame.encode([self._number, verb, args]):
            self._front.send(part)
        return self._number

    def reply(self, number: int, limit: float = LIMIT) -> Any:
        assert self._front is not None
        self._front.settimeout(limit)
        while True:
            try:
                data = self._front.recv(frame.DATAGRAM)
            except ConnectionResetError:
                data = b""
            if not data:
                raise Died
            value = self._assembler.feed(data)
            if value is None:
                continue
            assert isinstance(value, list) and value[0] == number, value
            if not value[1]:
                raise Failed(value[2][1])
            return value[2]

    def request(self, verb: int, args: dict[str, object], limit: float = LIMIT) -> Any:
        return self.reply(self.send(verb, args), limit)

    def verb(self, command: str) -> int:
        return [c.name for c in verbs_of("fs")].index(command)

    def call(self, command: str, deliver: bool = True, limit: float = LIMIT, **args: object) -> Any:
        """A command's result; Failed, Died.  Its delivery is reported at once unless told otherwise."""
        number = self.send(self.verb(command), args)
        try:
            return self.reply(number, limit)
        finally:
            if deliver and self._front is not None:
                try:
                    self.send(frame.DELIVERED, {"id": number})
                except OSError:
                    pass

    def freeze(self, points: list[str], **kw: Any) -> int:
        result: int = self.call("guest-fsfreeze-freeze-list", mountpoints=points, **kw)
        return result

    def thaw(self, **kw: Any) -> int:
        result: int = self.call("guest-fsfreeze-thaw", **kw)
        return result

    def status(self) -> str:
        result: str = self.call("guest-fsfreeze-status")
        return result

    # -- what is left

    def journal(self) -> journal.JournalState:
        with open(self.journal_path, "rb") as f:
            return journal.fold(f.read(), journal.boot_id())

    def wait_journal(self, condition: Any, seconds: float = 5.0) -> journal.JournalState:
        end = time.monotonic() + seconds
        while not condition(state := self.journal()):
            assert time.monotonic() < end, "the journal does not say so in time"
            time.sleep(0.01)
        return state

    def logged(self) -> str:
        with open(f"{self.folder}/log", encoding="utf-8", errors="replace") as f:
            return f.read()

    def __enter__(self) -> Kit:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        if kind is not None:
            print(self.logged(), file=sys.stderr)
            with open(self.journal_path, errors="replace") as f:
                print(f.read(), self.seen, file=sys.stderr)
        self._over = True
        self._thread.join(2)
        for process in (self.fs, self.hook, self.thawer):
            if process is not None and process.status is None:
                process.kill(signal.SIGCONT)
                process.control.close()
                if not process.ended(3):
                    process.kill()
                    process.ended(5)
