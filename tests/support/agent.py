"""Start an agent the way a host meets it, talk to it, and look at its processes.

    with Agent("--policy", "qemu-ga") as agent:
        assert agent.call("guest-ping") == {}
        os.kill(agent.processes()["fs"], signal.SIGKILL)

The program is `.venv/bin/privsep-ga`, or what the environment's PRIVSEP_GA names.  It serves a unix socket in a folder of
its own.  When the body fails, what the agent logged and which processes it had is printed beside the failure.
Every wait has a limit; nothing here can hang a test run.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]
LIMIT = 10.0


def program() -> str:
    """The agent under test."""
    return os.environ.get("PRIVSEP_GA") or str(PROJECT / ".venv" / "bin" / "privsep-ga")


class AgentError(Exception):
    """The agent answered with an error; `kind` is its class, `desc` its text, `reply` all of it."""

    def __init__(self, reply: dict[str, Any]) -> None:
        self.kind: str = reply["error"]["class"]
        self.desc: str = reply["error"]["desc"]
        self.reply = reply
        super().__init__(f"{self.kind}: {self.desc}")


class Client:
    """One connection.  Limits are seconds for the whole answer; what is missing then is a TimeoutError."""

    def __init__(self, path: str, limit: float = LIMIT) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(limit)
        self.socket.connect(path)
        self._limit = limit
        self._buffer = b""

    def raw(self, data: bytes) -> None:
        """Send bytes as they are."""
        self.socket.settimeout(self._limit)
        self.socket.sendall(data)

    def recv_line(self, limit: float | None = None) -> bytes:
        """The next line with its LF.  EOFError when the agent closes first."""
        end = time.monotonic() + (self._limit if limit is None else limit)
        while b"\n" not in self._buffer:
            self.socket.settimeout(max(end - time.monotonic(), 0.001))
            data = self.socket.recv(1 << 20)
            if not data:
                raise EOFError(f"the agent closed the connection after {self._buffer!r}")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line + b"\n"

    def silent(self, seconds: float = 0.2) -> bool:
        """Whether nothing comes for so long."""
        if self._buffer:
            return False
        self.socket.settimeout(seconds)
        try:
            data = self.socket.recv(1 << 16)
        except TimeoutError:
            return True
        self._buffer += data
        return False

    def request(self, execute: str, arguments: dict[str, object] | None = None, **members: object) -> None:
        """Send one request without waiting."""
        message: dict[str, object] = {"execute": execute, **members}
        if arguments is not None:
            message["arguments"] = arguments
        self.raw(json.dumps(message).encode() + b"\n")

    def reply(self, limit: float | None = None) -> dict[str, Any]:
        """The next reply, as it is."""
        line = self.recv_line(limit)
        found: dict[str, Any] = json.loads(line.lstrip(b"\xff"))
        return found

    def call(self, execute: str, /, limit: float | None = None, **arguments: object) -> Any:
        """A request and its result; underscores in argument names become dashes.  AgentError when it answers one."""
        self.request(execute, {k.replace("_", "-"): v for k, v in arguments.items()} if arguments else None)
        reply = self.reply(limit)
        if "error" in reply:
            raise AgentError(reply)
        return reply["return"]

    def sync(self, number: int = 1, limit: float | None = None) -> None:
        """What a host does first: throw away whatever comes until the answer to our guest-sync-delimited."""
        self.raw(b'\xff{"execute":"guest-sync-delimited","arguments":{"id":%d}}\n' % number)
        end = time.monotonic() + (self._limit if limit is None else limit)
        while True:
            line = self.recv_line(max(end - time.monotonic(), 0.001))
            if line.startswith(b"\xff") and json.loads(line[1:]) == {"return": number}:
                return

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def wait_for(condition: Callable[[], object], limit: float = LIMIT, what: str = "") -> Any:
    """The first true value of condition(), looked at every 5 ms; TimeoutError when there is none in time."""
    end = time.monotonic() + limit
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise TimeoutError(f"not within {limit} s: {what or condition}")
        time.sleep(0.005)


def children(pid: int) -> list[int]:
    """The processes that this one started and has not reaped (proc_pid_task_children: all threads')."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            found += map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split())
    return found


def state(pid: int) -> str:
    """The letter of proc_pid_stat(5): R S D Z T ...; empty when there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


class Agent:
    """A running agent.  Arguments are its command line besides the channel.

    directory  where the socket, the log and the state files are; by default a new one that goes with the agent
    env        added to the environment
    """

    NAME = "supervisor"
    # None: the test's process group.  In one of its own the kernel continues stopped members when the supervisor dies.
    GROUP: int | None = None

    def __init__(self, *args: str, directory: str | None = None, env: dict[str, str] | None = None) -> None:
        self._args = args
        self._own_directory = directory is None
        self.directory = directory or tempfile.mkdtemp(prefix="privsep-ga-")
        self.path = os.path.join(self.directory, "ga.sock")
        self.log_path = os.path.join(self.directory, "log")
        # A configuration of this machine must not decide what a test sees.
        self._env = {"QGA_CONF": os.path.join(self.directory, "no-configuration"), **os.environ, **(env or {})}
        self._clients: list[Client] = []
        self._process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        return [program(), "-m", "unix-listen", "-p", self.path, "-t", self.directory, *self._args]

    def start(self, limit: float = LIMIT) -> None:
        """Start and wait until it listens.  RuntimeError with its log when it does not."""
        with open(self.log_path, "ab") as log:
            self._process = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._env,
                cwd="/",
                process_group=self.GROUP,
            )
        end = time.monotonic() + limit
        while True:
            try:
                self._clients.append(Client(self.path))
                return
            except (FileNotFoundError, ConnectionRefusedError):
                if self._process.poll() is not None or time.monotonic() > end:
                    self.kill()
                    text = f"{self.command()} does not serve: status {self._process.returncode}\n{self.log()}"
                    raise RuntimeError(text) from None
            time.sleep(0.005)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def client(self) -> Client:
        """The connection that `start` opened."""
        return self._clients[0]

    def connect(self, limit: float = LIMIT) -> Client:
        """Another connection; the agent serves one after the other."""
        self._clients.append(Client(self.path, limit))
        return self._clients[-1]

    def call(self, execute: str, /, limit: float | None = None, **arguments: object) -> Any:
        return self.client.call(execute, limit, **arguments)

    def processes(self) -> dict[str, int]:
        """name -> pid of the whole tree; a child's name is that of its entry script, zombies do not count."""
        found = {self.NAME: self.pid}
        left = children(self.pid)
        while left:
            pid = left.pop()
            if state(pid) in ("Z", "X", ""):
                continue
            left += children(pid)
            with contextlib.suppress(OSError):
                argv = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                script = next((a for a in argv[1:3] if not a.startswith(b"-")), b"") if b"python" in argv[0] else b""
                name = os.fsdecode(os.path.basename(script)) or Path(f"/proc/{pid}/comm").read_text().strip()
                found.setdefault(name, pid)
        return found

    def process(self, name: str, limit: float = LIMIT) -> int:
        """The pid of that process, as soon as there is one."""
        pid: int = wait_for(lambda: self.processes().get(name), limit, f"a process {name}")
        return pid

    def log(self) -> str:
        """What it has logged.  A record of the audit trail may come a millisecond after the reply (docs/audit.md)."""
        time.sleep(0.02)
        try:
            return Path(self.log_path).read_text(errors="replace")
        except OSError:
            return ""

    def stop(self, limit: float = LIMIT) -> int:
        """End it as a service manager does; its exit status.  RuntimeError when it does not end in time."""
        assert self._process is not None
        for client in self._clients:
            client.close()
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(limit)
        except subprocess.TimeoutExpired:
            self.kill()
            raise RuntimeError(f"the agent did not end within {limit} s of SIGTERM\n{self.log()}") from None

    def kill(self) -> None:
        """SIGKILL to each process of the tree, the supervisor first so that nothing is started again."""
        assert self._process is not None
        for pid in self.processes().values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait(LIMIT)

    def _clean(self) -> None:
        for client in self._clients:
            client.close()
        if self._own_directory:
            shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Agent:
        try:
            self.start()
        except BaseException:
            self._clean()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        assert self._process is not None
        try:
            if kind is None:
                self.stop()
                return
            print(f"--- {' '.join(self.command())}", file=sys.stderr)
            for name, pid in self.processes().items():
                print(f"    {name}: pid {pid}, state {state(pid) or 'gone'}", file=sys.stderr)
            if self._process.poll() is None:
                with contextlib.suppress(RuntimeError):
                    self.stop()
            print(f"    status {self._process.returncode}; its log:\n{self.log()}---", file=sys.stderr)
        finally:
            self._clean()
