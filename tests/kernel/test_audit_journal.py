"""Audit records in the journal: a real journald in a private root, read back by journalctl and by privsep-gactl."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from privsep.auditrecord import MESSAGE_ID
from privsep.auditsink import JOURNAL_SOCKET
from tests.kernel.test_audit import Audited, ended
from tests.support.agent import AgentError, wait_for
from tests.support.namespace import isolated

JOURNALD = "/lib/systemd/systemd-journald"

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not os.access(JOURNALD, os.X_OK), reason=f"needs {JOURNALD} (package systemd)"),
]


def entries(*matches: str) -> list[dict[str, Any]]:
    done = subprocess.run(
        ["journalctl", "--no-pager", "-q", "--all", "-o", "json", *matches], capture_output=True, text=True, timeout=30
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def with_journald(test: Callable[[int], None]) -> None:
    os.makedirs("/run/systemd/journal", exist_ok=True)
    os.makedirs("/run/log/journal", exist_ok=True)
    Path("/etc/machine-id").write_text(os.urandom(16).hex() + "\n")
    # journald looks up the cgroup of whoever writes; the kernel's log and audit are the machine's and left alone.
    subprocess.run(["mount", "-t", "cgroup2", "none", "/sys/fs/cgroup"], check=True)
    os.makedirs("/etc/systemd", exist_ok=True)
    Path("/etc/systemd/journald.conf").write_text(
        "[Journal]\nStorage=volatile\nRuntimeMaxUse=64M\nRateLimitBurst=0\nReadKMsg=no\nAudit=\n"
        "ForwardToSyslog=no\nForwardToWall=no\n"
    )
    process = subprocess.Popen([JOURNALD], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: os.path.exists(JOURNAL_SOCKET), what="journald's socket")
        test(process.pid)
    finally:
        process.send_signal(signal.SIGCONT)
        process.terminate()
        process.wait(10)


class Journalled(Audited):
    """An agent whose records go where they go by default."""

    def __init__(self, policy: str = 'profile = "qemu-ga"\n[commands]\nblock = ["guest-fstrim"]') -> None:
        super().__init__(policy, "journal")
        self.policy_path.write_text(policy + "\n")

    def records(self, **wanted: object) -> list[dict[str, Any]]:
        found = [json.loads(line) for line in self.gactl("audit", "--json").splitlines()]
        return [r for r in found if all(r.get(k.replace("_", "-")) == v for k, v in wanted.items())]


@isolated
def test_each_part_of_a_record_is_a_field() -> None:
    def test(_: int) -> None:
        with Journalled() as agent:
            nasty = "/no/such\nPRIVSEP_GA_PROCESS=fs\n\u202e\x01"
            for path in ("/etc/hostname", nasty):
                try:
                    agent.call("guest-file-open", path=path)
                except AgentError as e:
                    error = e.desc
            with pytest.raises(AgentError):
                agent.call("guest-fstrim")
            wait_for(lambda: len(entries(f"MESSAGE_ID={MESSAGE_ID}")) == 5)
            (entry,) = entries("PRIVSEP_GA_COMMAND=guest-file-open", "PRIVSEP_GA_PHASE=end", "PRIVSEP_GA_RESULT=ok")
            assert (entry["PRIVSEP_GA_PROCESS"], entry["PRIVSEP_GA_DOMAIN"]) == ("file", "file")
            assert int(entry["PRIVSEP_GA_DURATION_US"]) >= 0
            assert (entry["_PID"], entry["_UID"], entry["PRIORITY"]) == (str(agent.pid), "0", "6")
            assert entry["PRIVSEP_GA_PID"] == str(agent.process("file"))
            assert entry["SYSLOG_IDENTIFIER"] == "privsep-ga" and entry["MESSAGE"].startswith("end ")
            # A value with line feeds makes no field of its own.
            assert entries("PRIVSEP_GA_PROCESS=fs") == []
            shown = agent.records()
            assert [r["phase"] for r in shown] == ["begin", "end", "begin", "end", "refused"]
            assert shown[2]["arguments"] == {"path": nasty}
            assert shown[3]["error"] == error and shown[3]["result"] == "error"
            line = 1 + agent.policy_path.read_text().splitlines().index('block = ["guest-fstrim"]')
            assert shown[4]["origin"] == f"{agent.policy_path}:{line}" and shown[4]["decision"] == "deny"
            (entry,) = entries("PRIVSEP_GA_DECISION=deny")
            assert entry["PRIORITY"] == "4" and entry["MESSAGE"].endswith(f" at {agent.policy_path}:{line}")
            # Filters, and the same through the lines for people.
            assert len(agent.gactl("audit", "--result", "refused", "--since", "1h").splitlines()) == 1
            assert len(agent.gactl("audit", "--journal", "--command", "guest-file-open").splitlines()) == 4

    with_journald(test)


@isolated
def test_records_that_another_user_wrote_are_not_shown() -> None:
    def test(_: int) -> None:
        with Journalled() as agent:
            agent.call("guest-file-open", path="/etc/hostname")
            forged = (
                f"MESSAGE=x\nMESSAGE_ID={MESSAGE_ID}\nPRIVSEP_GA_PHASE=end\nPRIVSEP_GA_COMMAND=guest-exec\n".encode()
            )
            pid = os.fork()
            if pid == 0:
                try:
                    os.setuid(65534)
                    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
                        s.connect(JOURNAL_SOCKET)
                        s.send(forged)
                finally:
                    os._exit(0)
            os.waitpid(pid, 0)
            wait_for(lambda: len(entries(f"MESSAGE_ID={MESSAGE_ID}")) == 3)
            ended(agent, "guest-file-open")
            assert [r["command"] for r in agent.records()] == ["guest-file-open"] * 2

    with_journald(test)


@isolated
def test_a_journald_that_is_stopped_blocks_nobody_and_what_is_lost_is_said() -> None:
    def test(journald: int) -> None:
        with Journalled() as agent:
            handle = agent.call("guest-file-open", path="/etc/hostname")
            os.kill(journald, signal.SIGSTOP)
            worst = 0.0
            dropped = 0.0
            end = time.monotonic() + 60
            while not dropped and time.monotonic() < end:
                for _ in range(200):
                    begun = time.monotonic()
                    agent.call("guest-file-seek", handle=handle, offset=0, whence="set")
                    worst = max(worst, time.monotonic() - begun)
                dropped = agent.count("audit_records_dropped_total", process="supervisor")
            assert dropped > 0 and worst < 2.0
            assert "audit records were lost: journal did not take them" in agent.log()
            os.kill(journald, signal.SIGCONT)
            time.sleep(0.5)
            agent.call("guest-file-close", handle=handle)
            ended(agent, "guest-file-close")  # and it goes on

    with_journald(test)


@isolated
def test_without_a_journal_the_default_is_the_log_and_asking_for_it_is_an_error() -> None:
    assert not os.path.exists(JOURNAL_SOCKET)
    with Journalled() as agent:
        agent.call("guest-file-open", path="/etc/hostname")
        wait_for(lambda: "guest-file-open path=/etc/hostname" in agent.log())
        assert "audit log\n" in (Path(agent.rundir) / "status").read_text()
    demanding = Audited('profile = "default"', "journal")
    with pytest.raises(RuntimeError, match="the journal cannot be reached"):
        demanding.start()
