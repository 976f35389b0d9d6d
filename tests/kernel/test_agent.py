"""The whole agent on real sockets and terminals: who runs as whom, what holds up what, and what a channel may do."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from privsep.dispatch import FIRST_STAY
from privsep.domains import BY_NAME, CAPABILITIES
from tests.support.agent import Agent, AgentError, Client, program, wait_for
from tests.support.loopfs import LoopFs
from tests.support.namespace import isolated

root = pytest.mark.root
PING = b'{"execute":"guest-ping"}\n'


def status_of(pid: int) -> dict[str, str]:
    text = Path(f"/proc/{pid}/status").read_text()
    return {k: " ".join(v.split()) for k, v in (line.split(":", 1) for line in text.splitlines())}


# -- privileges


@root
@isolated
def test_every_process_is_exactly_what_its_row_says() -> None:
    everything = int(status_of(os.getpid())["CapPrm"], 16)
    found: dict[str, dict[str, str]] = {}  # each as it was last seen
    with LoopFs("ext4"), Agent("--policy", "qemu-ga", "-F/bin/true") as agent:
        for command, arguments in (
            ("guest-get-osinfo", {}),
            ("guest-network-get-interfaces", {}),
            ("guest-fsfreeze-status", {}),
            ("guest-fstrim", {}),
            ("guest-exec-status", {"pid": 1}),
            ("guest-file-close", {"handle": 1}),
            ("guest-ssh-get-authorized-keys", {"username": "nobody-at-all"}),
            ("guest-set-user-password", {"username": "a:b", "password": "", "crypted": False}),
            ("guest-set-vcpus", {"vcpus": []}),
            ("guest-shutdown", {"mode": "no such mode"}),
            ("guest-set-time", {"time": -1}),
        ):
            try:
                agent.call(command, **arguments)
            except AgentError as e:
                assert "worker" not in e.desc, (command, e.desc)
            for name, pid in agent.processes().items():
                if name != "supervisor":
                    with contextlib.suppress(OSError):  # it has just left
                        found[name] = status_of(pid)
    assert set(found) == set(BY_NAME)
    for name, status in found.items():
        row = BY_NAME[name]
        mask = everything if "ALL" in row.caps else sum(1 << CAPABILITIES[c] for c in row.caps)
        for field in ("CapPrm", "CapEff", "CapBnd"):
            assert int(status[field], 16) == mask, (name, field)
        for field in ("CapInh", "CapAmb"):
            assert int(status[field], 16) == 0, (name, field)
        assert status["NoNewPrivs"] == "1"
        uids = set(status["Uid"].split())
        assert len(uids) == 1 and (uids == {"0"}) == (row.user == "root"), name
        assert status["Groups"] == ""
    others = [found[n]["Uid"] for n, d in BY_NAME.items() if d.user != "root"]
    assert len(set(others)) == len(others)


@root
@isolated
def test_a_domain_without_an_allowed_command_is_never_started() -> None:
    with Agent("--policy", "minimal") as agent:
        for command in ("guest-exec", "guest-file-open", "guest-fsfreeze-status"):
            with pytest.raises(AgentError, match="disabled"):
                agent.call(command)
        assert set(agent.processes()) == {"supervisor", "front"}


@root
@isolated
def test_idle_workers_leave_and_come_back() -> None:
    # The time worker's idle time is the shortest.
    with Agent("--policy", "qemu-ga") as agent:
        with pytest.raises(AgentError):
            agent.call("guest-set-time", time=-1)
        assert "time" in agent.processes()
        wait_for(lambda: "time" not in agent.processes(), BY_NAME["time"].idle + 5)
        with pytest.raises(AgentError, match="Invalid time"):
            agent.call("guest-set-time", time=-1)


@root
@isolated
def test_who_is_asked_once_leaves_early_and_who_is_wanted_again_stays() -> None:
    with Agent("--policy", "qemu-ga") as agent:
        agent.call("guest-get-osinfo")
        first = agent.processes()["inventory"]
        wait_for(lambda: "inventory" not in agent.processes(), FIRST_STAY + 5)
        agent.call("guest-get-osinfo")
        second = agent.processes()["inventory"]
        time.sleep(FIRST_STAY * 2)
        agent.call("guest-get-osinfo")
        assert agent.processes()["inventory"] == second != first


# -- order


def slow_hook() -> str:
    Path("/tmp/hook").write_text("#!/bin/sh\n[ $1 = thaw ] || { touch /tmp/in-hook; sleep 1; }\n")
    os.chmod("/tmp/hook", 0o755)
    return "-F/tmp/hook"


@root
@isolated
def test_a_sync_overtakes_a_busy_command_whose_late_reply_is_dropped() -> None:
    with Agent("--policy", "qemu-ga", slow_hook()) as agent:
        agent.client.request("guest-fsfreeze-freeze-list", {"mountpoints": []})
        wait_for(Path("/tmp/in-hook").exists)
        begun = time.monotonic()
        agent.client.sync(7)
        assert time.monotonic() - begun < 0.05
        assert agent.call("guest-ping") == {}
        assert agent.call("guest-fsfreeze-status") == "thawed"  # waited for the freeze to end
        assert time.monotonic() - begun > 0.5
        assert agent.client.silent(0.3)


@root
@isolated
def test_requests_are_answered_in_order_across_workers() -> None:
    with Agent("--policy", "qemu-ga") as agent:
        names = [
            "guest-get-osinfo",
            "guest-ping",
            "guest-network-get-interfaces",
            "guest-get-time",
            "guest-get-load",
        ] * 20
        agent.client.raw(b"".join(b'{"execute":"%s","id":%d}' % (n.encode(), i) for i, n in enumerate(names)))
        assert [agent.client.reply()["id"] for _ in names] == list(range(len(names)))


# -- channels


@root
@isolated
def test_a_client_that_reads_nothing_costs_bounded_memory_and_nobody_else() -> None:
    with Agent("--policy", "qemu-ga") as agent:
        agent.client.socket.settimeout(0.3)
        with pytest.raises(TimeoutError):
            while True:
                agent.client.socket.sendall(b'{"execute":"guest-info"}\n' * 500)
        front = agent.process("front")
        assert int(status_of(front)["VmRSS"].split()[0]) < 40_000

        def rests() -> bool:
            before = Path(f"/proc/{front}/stat").read_text().split()[13:15]
            time.sleep(0.5)
            return Path(f"/proc/{front}/stat").read_text().split()[13:15] == before

        wait_for(rests)  # it does not spin
        agent.client.close()
        again = agent.connect()
        again.sync()  # a half request of the one before may stand in the way
        assert again.call("guest-ping") == {}


@root
@isolated
def test_a_client_that_leaves_with_replies_unread_ends_nothing() -> None:
    with Agent("--policy", "qemu-ga") as agent:
        agent.client.raw(PING * 2000)
        agent.client.close()
        again = agent.connect()
        assert again.call("guest-ping") == {}


@root
@isolated
def test_the_next_client_waits_in_the_backlog_and_is_served() -> None:
    with Agent("--policy", "qemu-ga") as agent:
        second = Client(agent.path)
        second.raw(PING)
        assert second.silent(0.2)
        agent.client.close()
        assert second.reply() == {"return": {}}
        second.close()


@pytest.fixture
def terminal() -> Iterator[tuple[int, str]]:
    master, slave = pty.openpty()
    name = os.ttyname(slave)
    os.close(slave)
    yield master, name
    os.close(master)


def _serve(*argv: str, **kw: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen([program(), *argv], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, **kw)  # type: ignore[call-overload, no-any-return]


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    assert process.wait(5) == 0
    assert process.stderr is not None
    process.stderr.close()


def _exchange(fd: int, data: bytes, lines: int = 1, limit: float = 5.0) -> list[object]:
    os.write(fd, data)
    os.set_blocking(fd, False)
    found, end = b"", time.monotonic() + limit
    while found.count(b"\n") < lines and time.monotonic() < end:
        try:
            found += os.read(fd, 65536)
        except (BlockingIOError, OSError):
            time.sleep(0.01)
    return [json.loads(line) for line in found.splitlines()]


@root
def test_serves_a_serial_line_and_opens_it_again(terminal: tuple[int, str], tmp_path: Path) -> None:
    master, name = terminal
    agent = _serve("--policy", "qemu-ga", "-m", "isa-serial", "-p", name, "-t", str(tmp_path))
    try:
        wait_for(lambda: not termios.tcgetattr(master)[3] & termios.ECHO, 5, "the line set to raw")
        assert _exchange(master, PING) == [{"return": {}}]
        assert _exchange(master, b'{"execute":"guest-sync","arguments":{"id":5}}') == [{"return": 5}]
        front = next(
            int(p)
            for p in Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()
            if b"front" in Path(f"/proc/{p}/cmdline").read_bytes()
        )
        os.kill(front, signal.SIGKILL)  # the device goes with it
        time.sleep(0.5)
        assert _exchange(master, PING) == [{"return": {}}]
    finally:
        _end(agent)


@root
def test_a_device_without_a_host_wakes_nobody_up(tmp_path: Path) -> None:
    master, slave = pty.openpty()
    name = os.ttyname(slave)
    agent = _serve("--policy", "qemu-ga", "-m", "virtio-serial", "-p", name, "-t", str(tmp_path))
    try:
        os.close(slave)
        time.sleep(0.4)
        fcntl.fcntl(master, fcntl.F_GETFD)
        os.close(master)  # from now on the line is hung up

        def switches() -> int:
            total = 0
            for p in [agent.pid, *map(int, Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split())]:
                total += int(status_of(p)["voluntary_ctxt_switches"])
            return total

        time.sleep(0.5)
        before = switches()
        time.sleep(4)
        assert switches() - before <= 4  # reading the counts, and one look at most
    finally:
        _end(agent)


@root
def test_takes_over_a_socket_from_the_service_manager(tmp_path: Path) -> None:
    path = str(tmp_path / "activated")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()

        script = (
            "import os, sys; os.dup2(int(sys.argv[1]), 3); "
            "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1'); os.execv(sys.argv[2], sys.argv[2:])"
        )
        agent = subprocess.Popen(
            [sys.executable, "-IS", "-c", script, str(listener.fileno()), program(), "-t", str(tmp_path)],
            pass_fds=[listener.fileno()],
            stderr=subprocess.PIPE,
        )
        try:
            with Client(path) as client:
                assert client.call("guest-ping") == {}
        finally:
            _end(agent)


@root
def test_a_missing_device_is_an_error_unless_told_to_retry(tmp_path: Path) -> None:
    path = str(tmp_path / "port")
    failed = subprocess.run(
        [program(), "-m", "virtio-serial", "-p", path, "-t", str(tmp_path)],
        capture_output=True,
        timeout=10,
        check=False,
    )
    assert failed.returncode == 1 and path.encode() in failed.stderr
    agent = _serve("-r", "-m", "virtio-serial", "-p", path, "-t", str(tmp_path))
    try:
        time.sleep(0.5)
        assert agent.poll() is None
    finally:
        _end(agent)


# -- not root


@root
def test_without_root_it_answers_what_needs_no_privilege_and_names_what_it_lacks() -> None:
    directory = tempfile.mkdtemp(prefix="privsep-ga-")
    os.chown(directory, 65534, 65534)
    path = f"{directory}/sock"
    agent = subprocess.Popen(
        [program(), "--policy", "qemu-ga", "-m", "unix-listen", "-p", path, "-t", directory],
        user=65534,
        group=65534,
        extra_groups=[],
        stderr=subprocess.PIPE,
        cwd="/",
        env={"PATH": os.environ["PATH"]},
    )
    try:
        wait_for(lambda: os.path.exists(path))
        with Client(path) as client:
            assert client.call("guest-ping") == {}
            assert client.call("guest-get-osinfo")
            assert client.call("guest-network-get-interfaces")
            for command, lacks in (
                ("guest-fsfreeze-thaw", "CAP_SYS_ADMIN"),
                ("guest-set-time", "CAP_SYS_TIME"),
                ("guest-fstrim", "CAP_SYS_ADMIN"),
            ):
                with pytest.raises(AgentError, match=lacks):
                    client.call(command)
            with pytest.raises(AgentError, match="uid 0"):
                client.call("guest-set-vcpus", vcpus=[])
    finally:
        agent.send_signal(signal.SIGTERM)
        _, log = agent.communicate(timeout=5)
        shutil.rmtree(directory)
    assert agent.returncode == 0
    assert log.count(b"warning: supervisor: not started as root") == 1
