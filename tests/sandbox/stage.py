"""Starts one row's process as the supervisor does (privsep/spawn.py), with a test's own entry script.  In a private root."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from policy.model import Policy
from policy.seal import seal, slice_for
from privsep import spawn
from privsep.accounts import resolve
from privsep.board import Board
from privsep.counters import Page
from privsep.domains import BY_NAME
from tests.sandbox.attacks import ATTACKS
from tests.support.agent import PROJECT, program

FILTERS = str(Path(program()).resolve().parents[1] / "libexec" / "privsep-ga" / "filters")
LIMIT = 20.0


def script(folder: str, name: str, body: str) -> str:
    """An entry script as packaging/launchers.py writes them; its path."""
    path = Path(folder) / name
    lines = [
        f"#!{os.path.realpath(sys.executable)} -IS",
        "import sys",
        "sys.dont_write_bytecode = True",
        f"sys.path.insert(0, {str(PROJECT)!a})",
        f"sys.path.append({sysconfig.get_path('platlib')!a})",
        body,
    ]
    path.write_text("\n".join(lines) + "\n")
    path.chmod(0o755)
    return str(path)


def start(
    name: str, entry: str, log: int, only: tuple[str, ...] | None = None, policy: Policy | None = None
) -> tuple[int, socket.socket]:
    """(pid, our end of its control socket).  Allowed is everything that its domain has, or `only` those commands, or what
    the policy says."""
    from protocol.commands import COMMANDS

    with open("/etc/passwd", "rb") as f:
        ids, _ = resolve(f.read())
    uid, gid = ids.get(name, (0, 0))
    if only is None:
        only = tuple(c.name for c in COMMANDS if c.domain == name or name == "front")
    lines = [f"allow {c}" for c in only]
    told = {"uid": str(uid), "gid": str(gid), "privileged": "1", "statedir": "/tmp"}
    lines += [f"set {k} {v}" for k, v in told.items()]
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    data = "".join(f"{line}\n" for line in lines).encode()
    if policy is not None:
        data = slice_for(name, policy, {**policy.settings(), **told})
    slice_ = spawn.above(seal(data, f"test-{name}"))
    control = spawn.above(theirs.detach())
    board = Board.create()
    board.fd = spawn.above(board.fd)
    log = spawn.above(os.dup(log))
    ours_audit, audit = spawn.outlet()
    counters = Page.create(name)
    counters.fd = spawn.above(counters.fd)
    programs = name in BY_NAME and BY_NAME[name].programs
    try:
        pid = spawn.spawn(
            entry,
            control=control,
            policy=slice_,
            board=board.fd,
            log=log,
            audit=audit,
            counters=counters.fd,
            environ=spawn.environment(dict(os.environ), programs=programs),
        )
    finally:
        for fd in (slice_, control, board.fd, log, audit, counters.fd, ours_audit.detach()):
            os.close(fd)
    return pid, ours


class Scene:
    """What is attacked: a sibling, listeners, a secret, a disk."""

    def __init__(self) -> None:
        self._tcp = socket.create_server(("127.0.0.1", 0))
        self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._udp.bind(("127.0.0.1", 0))
        self._abstract = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.name = f"privsep-ga-attack-{os.getpid()}"
        self._abstract.bind(f"\0{self.name}")
        self._abstract.listen(64)
        Path("/root/secret").write_text("secret\n")
        os.chmod("/root/secret", 0o600)
        disks = sorted(os.listdir("/sys/block"))
        self.disk = f"/dev/{disks[0]}" if disks else "/dev/none"
        self.sibling = os.fork()
        if self.sibling == 0:
            try:
                import _prctl

                _prctl.prctl(_prctl.PR_SET_DUMPABLE, 0)
                while True:
                    signal.pause()
            finally:
                os._exit(0)

    def target(self) -> str:
        tcp, udp = self._tcp.getsockname()[1], self._udp.getsockname()[1]
        return f"Target({self.sibling}, {tcp}, {udp}, {self.name!r}, {self.disk!r})"

    def close(self) -> None:
        os.kill(self.sibling, signal.SIGKILL)
        os.waitpid(self.sibling, 0)
        for s in (self._tcp, self._udp, self._abstract):
            s.close()


@contextlib.contextmanager
def scene() -> Iterator[Scene]:
    made = Scene()
    try:
        yield made
    finally:
        made.close()


def column(name: str, scene: Scene, without: frozenset[str] = frozenset()) -> list[str]:
    """What each attack comes to behind that row's walls: `kill`, `no`, `YES`.  A killed process is started again for the rest."""
    outcomes: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        while len(outcomes) < len(ATTACKS):
            body = "\n".join(
                (
                    "from tests.sandbox.attacks import Target",
                    "from tests.sandbox.inside import main",
                    f"main({name!r}, {FILTERS!r}, {len(outcomes)}, {without!r}, {scene.target()})",
                )
            )
            text, status = _run(name, script(folder, name, body))
            found = [line.split()[2] for line in text.splitlines() if line.startswith("< ")]
            begun = sum(line.startswith("> ") for line in text.splitlines())
            outcomes += found
            if begun == len(found) + 1:
                outcomes.append("kill" if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGSYS else "YES")
            elif not text.endswith("done\n"):
                raise RuntimeError(f"{name} did not come to its attacks (status {status}):\n{text}")
            for path in ("/etc/attack", "/tmp/attack", "/tmp/attack-null", "/etc/attack-shadow"):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
    return outcomes


def _run(name: str, entry: str) -> tuple[str, int]:
    reader, writer = os.pipe()
    pid, control = start(name, entry, writer)
    os.close(writer)
    parts = []
    end = time.monotonic() + LIMIT
    with control, os.fdopen(reader, "rb", 0) as f:
        while part := f.read(65536):
            parts.append(part)
            if time.monotonic() > end:
                os.kill(pid, signal.SIGKILL)
    return b"".join(parts).decode(errors="replace"), os.waitpid(pid, 0)[1]
