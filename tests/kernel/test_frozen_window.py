"""From the first FIFREEZE to the last FITHAW: nothing is imported, opened for writing, logged or mapped, by any process.

The first test looks from outside, by strace; the second from inside, by the interpreter's audit hook; the third at the log.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.faults.runner import write_policy
from tests.sandbox import stage
from tests.sandbox.test_hostile_front import LIBEXEC
from tests.sandbox.traced import Traced
from tests.support.agent import Agent, AgentError, wait_for
from tests.support.loopfs import LoopFs, takes_writes
from tests.support.namespace import isolated

pytestmark = [pytest.mark.root, pytest.mark.loop]

DECODED = ["-ttt", "-T", "-y", "-s", "300"]  # times, durations, what descriptors are
CALL = re.compile(r"^(\d+\.\d+) (\w+)\((.*)\) += (-?\w+).*<(\d+\.\d+)>$")
ENTRY = re.compile(r'execve\("[^"]*/(?:libexec/privsep-ga/([\w-]+)|bin/(privsep-ga))"')
# What takes memory or starts something: neither fs nor thawer may, whose pages the frozen disk would have to give.
GROWS = {"mmap", "brk", "mremap", "munmap", "mprotect", "execve", "execveat", "fork", "vfork", "clone", "clone3"}


class Call:
    def __init__(self, process: str, start: float, name: str, text: str, result: str, took: float) -> None:
        self.process = process
        self.start = start
        self.end = start + took
        self.name = name
        self.text = text
        self.result = result

    def __repr__(self) -> str:
        return f"{self.process}: {self.name}({self.text}) = {self.result}"

    @property
    def opens_for_writing(self) -> bool:
        return self.name in ("open", "openat", "creat") and bool(
            re.search(r"O_WRONLY|O_RDWR|O_CREAT|O_TRUNC", self.text)
        )

    @property
    def opens_code(self) -> bool:
        return self.name in ("open", "openat") and bool(re.search(r'\.(py|pyc|so)[".]', self.text))

    def writes_to(self, path: str) -> bool:
        return self.name in ("write", "writev", "pwrite64", "sendfile", "ftruncate") and f"<{path}" in self.text


def calls(folder: Path) -> list[Call]:
    """All calls of all processes in order, threads under the name of their process."""
    texts = {int(p.suffix[1:]): p.read_text(errors="replace") for p in folder.iterdir()}
    names: dict[int, str] = {}
    for pid, text in texts.items():
        entries = ENTRY.findall(text)
        if entries:
            names[pid] = entries[-1][0] or "supervisor"
    for _ in range(3):  # threads of threads
        for pid, text in texts.items():
            if pid in names:
                for child in re.findall(r" (?:clone3?|fork|vfork)\(.*\) += (\d+)", text):
                    names.setdefault(int(child), names[pid])
    found = []
    for pid, text in texts.items():
        for line in text.splitlines():
            if match := CALL.match(line):
                start, name, arguments, result, took = match.groups()
                found.append(Call(names.get(pid, "?"), float(start), name, arguments, result, float(took)))
    return sorted(found, key=lambda c: c.start)


def window(found: list[Call]) -> list[Call]:
    """What was begun between the begin of the first FIFREEZE and the end of the last FITHAW that thawed something."""
    freezes = [c.start for c in found if c.name == "ioctl" and "FIFREEZE" in c.text and c.result == "0"]
    thaws = [c.end for c in found if c.name == "ioctl" and "FITHAW" in c.text and c.result == "0"]
    assert freezes and thaws
    return [c for c in found if min(freezes) <= c.start <= max(thaws)]


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.timeout(180)
@isolated
def test_no_import_no_open_for_writing_no_log_and_no_memory_while_frozen() -> None:
    traces = Path("/tmp/traces")
    traces.mkdir()
    with (
        LoopFs("ext4", "xfs", "btrfs") as fs,
        Traced("--policy", write_policy(60), "-v", traces=str(traces), show=DECODED) as agent,
    ):
        client = agent.client
        assert client.call("guest-fsfreeze-status", limit=30) == "thawed"
        assert client.call("guest-fsfreeze-freeze-list", limit=30, mountpoints=fs.points) == 3
        for _ in range(30):
            assert client.call("guest-fsfreeze-status", limit=30) == "frozen"
            assert client.call("guest-ping") == {}
        with pytest.raises(AgentError, match="frozen state"):
            client.call("guest-get-osinfo")
        with pytest.raises(AgentError, match="has been disabled"):
            client.call("guest-fsfreeze-freeze")
        client.raw(b'{"execute": nonsense}\n')
        assert "error" in client.reply()
        client.sync(5)
        assert client.call("guest-info")["supported_commands"]
        assert client.call("guest-fsfreeze-thaw", limit=30) == 3
        assert client.call("guest-get-osinfo", limit=30)["id"]
        log = agent.log_path
        assert "froze 3" in agent.log()
    found = calls(traces)
    assert {c.process for c in found} >= {"supervisor", "front", "fs", "thawer"}
    inside = window(found)
    assert {c.process for c in inside} >= {"front", "fs", "thawer"}
    assert sum(c.name == "ioctl" and "FIFREEZE" in c.text for c in inside) == 3
    assert [c for c in inside if c.opens_for_writing] == []
    assert [c for c in inside if c.opens_code] == []
    assert [c for c in inside if c.writes_to(log) or c.text.startswith("2<")] == []
    assert [c for c in inside if c.process in ("fs", "thawer") and c.name in GROWS] == []
    assert [c for c in inside if c.name.startswith("execve")] == []
    # What was looked for is there, before and after.
    outside = [c for c in found if c not in inside]
    assert any(c.opens_for_writing for c in outside)
    assert any(c.opens_code for c in outside)
    assert any(c.writes_to(log) for c in outside)
    assert {c.process for c in outside if c.name in GROWS} >= {"fs", "thawer"}
    assert any("mlockall" in c.name for c in outside)


# In front of each entry script: whatever is imported while the board says that file systems are frozen is named in the log.
WATCH = """
import os
from privsep import board

_boards = []
_pid = os.getpid()
_made = board.Board.__init__

def _remember(self, fd, page):
    _made(self, fd, page)
    _boards.append(self)

board.Board.__init__ = _remember

def _hook(event, arguments):
    if event == "import" and _boards and _boards[-1].frozen:
        os.write(2, b"IMPORTED %a %d %a\\n" % ({name!r}, _pid, arguments[0]))

sys.addaudithook(_hook)
"""
# A fs worker that imports while frozen, to see that it would be noticed.
CARELESS = """
from workers import fs
_status = fs.guest_fsfreeze_status

def _careless(ctx):
    import _symtable  # built in: for any other one the filter would end it
    return _status(ctx)

fs.guest_fsfreeze_status = _careless
"""


def watched(careless: bool) -> str:
    folder = Path("/tmp/watched")
    (folder / "libexec").mkdir(parents=True)
    folder.chmod(0o755)
    for entry in LIBEXEC.iterdir():
        if entry.is_dir() or entry.name == "recover":
            (folder / "libexec" / entry.name).symlink_to(entry)
            continue
        more = CARELESS if careless and entry.name == "fs" else ""
        body = f"from privsep.child import main\nsys.exit(main({entry.name!r}, {stage.FILTERS!r}))"
        stage.script(str(folder / "libexec"), entry.name, WATCH.replace("{name!r}", repr(entry.name)) + more + body)
    body = f"from privsep.cli import main\nsys.exit(main(libexec={str(folder / 'libexec')!r}))"
    return stage.script(str(folder), "privsep-ga", WATCH.replace("{name!r}", "'supervisor'") + body)


@pytest.mark.parametrize("careless", [False, True])
@isolated
def test_no_process_imports_anything_while_frozen(careless: bool) -> None:
    os.environ["PRIVSEP_GA"] = watched(careless)
    with LoopFs("ext4", "btrfs") as fs, Agent("--policy", write_policy(3)) as agent:
        client = agent.client
        assert client.call("guest-get-osinfo")["id"]  # a worker that is there while frozen
        for how in ("thaw", "deadline", "fs", "thawer"):
            assert client.call("guest-fsfreeze-freeze-list", mountpoints=fs.points) == 2
            assert client.call("guest-fsfreeze-status") == "frozen"
            client.raw(b'{"execute": nonsense}\n')
            assert "error" in client.reply()
            if how in ("fs", "thawer"):
                os.kill(agent.process(how), signal.SIGKILL)
            if how != "fs" or careless:
                time.sleep(0.1)
            if how != "thaw":
                assert all(takes_writes(p, 6.0) for p in fs.points)
            for _ in range(3):  # a lapse is told, and a request that meets a death is an error
                try:
                    client.call("guest-fsfreeze-thaw")
                except AgentError:
                    continue
                break
        log = agent.log()
    found = [line for line in log.splitlines() if line.startswith("IMPORTED")]
    # Processes that are started again while frozen import what they need, from what can be read.
    mine = [line for line in found if "_symtable" in line]
    assert bool(mine) == careless
    if not careless:
        fresh = restarted(found)
        assert [line for line in found if line not in fresh] == []


def restarted(found: list[str]) -> list[str]:
    """Imports of processes that began their lives while frozen: they had their loops still to come."""
    pids = {line.split()[2] for line in found if line.endswith(("'privsep.runtime'", "'privsep.thawer'"))}
    return [line for line in found if line.split()[2] in pids]


@isolated
def test_the_log_has_a_line_for_freeze_thaw_lapse_and_hook_and_none_is_written_while_frozen() -> None:
    hook = Path("/tmp/hook")
    hook.write_text("#!/bin/sh\necho the database is $1\n")
    hook.chmod(0o755)
    with LoopFs("ext4", "xfs") as fs, Agent("--policy", write_policy(2), f"-F{hook}", "-v") as agent:
        client = agent.client
        client.call("guest-fsfreeze-status")
        assert client.call("guest-fsfreeze-freeze-list", mountpoints=fs.points) == 2
        before = Path(agent.log_path).stat().st_size
        for _ in range(5):
            assert client.call("guest-fsfreeze-status") == "frozen"
            with pytest.raises(AgentError):
                client.call("guest-fstrim")
        time.sleep(0.3)
        assert Path(agent.log_path).stat().st_size == before
        assert "froze 2" not in agent.log()
        assert client.call("guest-fsfreeze-thaw") == 2
        names = ", ".join(map(re.escape, reversed(fs.points)))
        wait_for(
            lambda: re.search(
                rf"info: fs: froze 2, for at most 2 s: {names}; sync \d+\.\d ms, freeze \d+\.\d ms\n", agent.log()
            )
        )
        wait_for(lambda: re.search(r"info: fs: thawed 2, held for \d+\.\d{3} s\n", agent.log()))
        wait_for(lambda: re.search(r"info: hook: hook freeze: ok after \d\.\d s\n", agent.log()))
        wait_for(lambda: "hook: hook thaw says: the database is thaw\n" in agent.log())
        assert agent.log().count("froze 2") == agent.log().count("thawed 2") == 1
        # And where it does not hold.
        assert client.call("guest-fsfreeze-freeze-list", mountpoints=fs.points) == 2
        assert takes_writes(fs.points[0], 5.0)
        wait_for(lambda: "error: thawer: the freeze did not hold: the time limit has passed\n" in agent.log())
        assert agent.log().count("the freeze did not hold") == 1
        with pytest.raises(AgentError, match="limited up to 2 seconds"):
            client.call("guest-fsfreeze-thaw")
