"""Every system call that a real agent's processes make behind their walls, by strace, and the rules that let each through.

    python -m tests.sandbox.traced          # which rules no call of the run used (root; in a private root)

The agent runs with all commands allowed; the host asks each that this machine survives, on real loop file systems, and fs,
thawer and front are killed while a freeze holds.  strace numbers everything (-e raw), so arguments are compared as the kernel
compares them.  A process is behind its filter from prctl(PR_SET_SECCOMP) on, and so is what it starts.

Facts: strace(1); PR_SET_SECCOMP is 22 (linux/prctl.h).
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from privsep import blob
from privsep.sandbox import rules
from tests.support.agent import Agent, AgentError, wait_for
from tests.support.loopfs import LoopFs
from tests.support.namespace import private_root

_LINE = re.compile(r"(\w+)\((.*?)\)? += (-?\w+|\?)")
_PR_SET_SECCOMP = 22
_ENTRY = re.compile(r'execve\("[^"]*/libexec/privsep-ga/([\w-]+)"')
_STARTS = {"clone", "clone3", "fork", "vfork"}
POLICY = 'profile = "qemu-ga"\n[fsfreeze]\nauto-thaw = 10\n'

# (row, name of the call, arguments) -> how often.
Seen = Counter[tuple[str, str, tuple[int, ...]]]


class Traced(Agent):
    """An agent under strace; each thread's calls are in a file of their own."""

    def __init__(self, *args: str, traces: str, show: Sequence[str] = ("-s", "64", "-e", "raw=!execve")) -> None:
        super().__init__(*args)
        self._traces = traces
        self._show = show

    def command(self) -> list[str]:
        # -f without --seccomp-bpf: the calls that a filter answers are seen too.
        # -D: the agent is our child, and strace its grandchild.
        strace = [
            "strace",
            "-D",
            "-ff",
            "-q",
            "-q",
            "-e",
            "signal=none",
            *self._show,
            "-o",
            f"{self._traces}/t",
        ]
        return [*strace, "--", *super().command()]


def numbers(text: str) -> tuple[int, ...]:
    found = []
    for word in text.split(", "):
        try:
            found.append(int(word, 0))
        except ValueError:
            break  # a string, or the end of what strace shows
    return tuple(found)


def collect(folder: Path) -> Seen:
    """What was called behind a filter, from the files of one run."""
    seen: Seen = Counter()
    texts = {int(p.suffix[1:]): p.read_text(errors="replace") for p in folder.iterdir()}
    starts: dict[int, str] = {}  # a thread or child that begins behind a row's filter
    for pid in sorted(texts, key=lambda p: (_ENTRY.search(texts[p]) is None, p)):
        _read(pid, texts[pid], seen, starts)
    return seen


def _read(pid: int, text: str, seen: Seen, starts: dict[int, str]) -> None:
    row, behind = starts.get(pid, ""), pid in starts
    for line in text.splitlines():
        if entry := _ENTRY.match(line):
            row, behind = entry[1], False
            continue
        match = _LINE.match(line)
        if match is None or row not in rules.FILTERS:
            continue
        name, arguments = match[1], numbers(match[2])
        if not behind:
            behind = name == "prctl" and arguments[:1] == (_PR_SET_SECCOMP,)
            continue
        seen[row, name, arguments] += 1
        if name in _STARTS and match[3] not in ("?", "0") and not match[3].startswith("-"):
            starts[int(match[3], 0)] = row


def deciding(row: str, name: str, arguments: tuple[int, ...]) -> list[int]:
    """The places of the rules that fit a call.  An argument that strace did not show fits what is asked of it."""
    found = []
    for place, call in enumerate(rules.FILTERS[row].calls):
        if name in call.names and all(
            t.number >= len(arguments)
            or ((arguments[t.number] & t.mask == t.value) if t.same else (arguments[t.number] != t.value))
            for t in call.tests
        ):
            found.append(place)
    return found


def used(seen: Seen) -> set[tuple[str, int, str]]:
    """(row, place of the rule, name of the call) of what was used."""
    return {(row, place, name) for row, name, arguments in seen for place in deciding(row, name, arguments)}


# -- the run


def run(folder: Path) -> Seen:
    """A day in the life; in a private root."""
    traces = folder / "traces"
    traces.mkdir()
    policy = folder / "policy.toml"
    policy.write_text(POLICY)
    with LoopFs("ext4", "btrfs") as disks, Traced("--policy", str(policy), traces=str(traces)) as agent:
        _questions(agent)
        _files(agent, folder)
        _keys(agent)
        _freezes(agent, disks)
    return collect(traces)


def _ask(agent: Agent, name: str, **arguments: object) -> object:
    """An answer or an error, whatever it is: the calls are what counts."""
    try:
        return agent.call(name, limit=60, **arguments)
    except AgentError as e:
        return e


def _questions(agent: Agent) -> None:
    from protocol.commands import COMMANDS

    for command in COMMANDS:
        if command.name.startswith("guest-get-") or command.name in (
            "guest-info", "guest-ping", "guest-network-get-interfaces", "guest-network-get-route", "guest-fsfreeze-status",
        ):  # fmt: skip
            _ask(agent, command.name)
    agent.client.sync(1)
    agent.client.raw(b'{"execute":"guest-ping"}{"nonsense":')  # and what is no request
    agent.client.sync(2)
    _ask(agent, "guest-fstrim")
    # The clock chip, which this machine has or not; what would set the clock is the virtual machine's.
    _ask(agent, "guest-set-time", time=-1)
    _ask(agent, "guest-set-vcpus", vcpus=[{"logical-id": 100000, "online": True}])
    _ask(agent, "guest-set-memory-blocks", **{"mem-blks": [{"phys-index": 100000, "online": True}]})


def _files(agent: Agent, folder: Path) -> None:
    import base64

    path = str(folder / "file")
    handle = agent.call("guest-file-open", path=path, mode="w+")
    data = base64.b64encode(os.urandom(300_000)).decode()
    agent.call("guest-file-write", handle=handle, **{"buf-b64": data})
    agent.call("guest-file-write", handle=handle, **{"buf-b64": "YWJj"})
    agent.call("guest-file-flush", handle=handle)
    agent.call("guest-file-seek", handle=handle, offset=0, whence="set")
    assert agent.call("guest-file-read", handle=handle, count=250_000)["count"] == 250_000
    agent.call("guest-file-read", handle=handle, count=blob.KEPT + 1)  # asked for, not there: memory of its own
    agent.call("guest-file-seek", handle=handle, offset=250_000, whence="set")
    assert agent.call("guest-file-read", handle=handle, count=10)["count"] == 10
    agent.call("guest-file-close", handle=handle)
    for wanted, mode in ((path, "a"), (path, "r"), ("/proc/nowhere/x", "w"), ("/tmp", "r")):
        found = _ask(agent, "guest-file-open", path=wanted, mode=mode)
        if isinstance(found, int):
            agent.call("guest-file-close", handle=found)


def _keys(agent: Agent) -> None:
    subprocess.run(["useradd", "-m", "traced"], check=True, capture_output=True)
    key = "ssh-ed25519 AAAAkey one"
    for name, more in (
        ("guest-ssh-add-authorized-keys", {"keys": [key]}),
        ("guest-ssh-get-authorized-keys", {}),
        ("guest-ssh-remove-authorized-keys", {"keys": [key]}),
    ):
        agent.call(name, limit=60, username="traced", **more)
    _ask(agent, "guest-ssh-get-authorized-keys", username="nobody-of-that-name")


def _freezes(agent: Agent, disks: LoopFs) -> None:
    def freeze() -> None:
        assert agent.call("guest-fsfreeze-freeze-list", limit=30, mountpoints=disks.points) == len(disks.points)
        time.sleep(0.2)  # the worker is told that the answer was delivered

    def thaw() -> None:
        _ask(agent, "guest-fsfreeze-thaw")
        assert wait_for(lambda: agent.call("guest-fsfreeze-status") == "thawed", 30)

    freeze()
    thaw()
    freeze()
    os.kill(agent.process("fs"), signal.SIGKILL)  # taken over
    time.sleep(1)
    thaw()
    freeze()
    os.kill(agent.process("thawer"), signal.SIGKILL)  # fs thaws at once
    time.sleep(2)
    thaw()
    thaw()
    freeze()
    wait_for(lambda: _ask(agent, "guest-fsfreeze-status") == "thawed", 40)  # the deadline
    thaw()
    os.kill(agent.process("front"), signal.SIGKILL)
    with contextlib.suppress(OSError, EOFError):
        agent.client.sync(3, limit=1)
    again = agent.connect()
    again.sync(4, limit=30)
    again.call("guest-ping")


def unused(seen: Seen) -> list[tuple[str, str, str]]:
    """(row, name of the call, why of its rule) that no call used, of the filters that let through only what is listed."""
    touched = used(seen)
    return [
        (row, name, call.why)
        for row, wanted in rules.FILTERS.items()
        if wanted.otherwise != rules.ALLOW
        for place, call in enumerate(wanted.calls)
        for name in call.names
        if (row, place, name) not in touched
    ]


# What no call of the run used, and why the rule stays: (names of calls, rows, "" for any; why).
ELSEWHERE = "another machine or C library asks so for what this one asks by another name"
MEMORY = "when malloc or the interpreter need more, or less, memory than in the run"
EXCUSED = (
    ("open stat lstat fstat statx readlink readlinkat access faccessat faccessat2 newfstatat ppoll", "", ELSEWHERE),
    ("fork pipe mkdir rename renameat2 unlink unlinkat waitid setitimer rseq clone3 getpid", "ssh file", ELSEWHERE),
    ("clock_gettime gettimeofday time", "", "the vDSO answers, where the clock source is one that it can read"),
    ("brk munmap mremap mmap mprotect madvise futex", "", MEMORY),
    ("prctl", "", "interpreters from 3.12 on"),
    ("sched_yield", "", "where there are several processors, in a stream of requests that is quick enough"),
    ("restart_syscall", "", "a process that was stopped in a wait with a limit goes on"),
    ("openat", "front thawer network time", "an import or a traceback; the clock's zone"),
    ("read write", "front network time hotplug inventory", "a log line; a pipe or device in a socket's place"),
    ("clock_nanosleep", "front fs", "something else is going on at that very instant"),
    ("sched_getaffinity exit recvfrom", "thawer fs trim inventory", "how a thread begins and ends is the C library's"),
    ("pwrite64", "thawer fs", "when fs did not live to put rcu_expedited back; when somebody else has it raised"),
    ("clock_settime ioctl clock_nanosleep lseek", "time", "the clock is set in the virtual machine, never here"),
    ("epoll_ctl epoll_wait epoll_pwait", "front", "a virtio port that no host has open is the virtual machine's"),
    ("fcntl getdents64 lseek pwrite64", "hotplug", "a processor or memory block that changes is the virtual machine's"),
    ("ioctl", "inventory", "a mistake of ours that the log should name"),
    ("socket connect sendmsg sendmmsg fcntl getdents64 rt_sigaction", "ssh", "modules of the account database"),
    ("getuid getgid getegid getresgid getgroups", "ssh", "the same"),
    ("kill", "ssh", "a child that is late"),
    ("unlink unlinkat", "file", "a file system without modes"),
    ("ftruncate", "file", "a policy with file rules; the run has none"),
)


def excuse(row: str, name: str) -> list[int]:
    """The places in EXCUSED that are about it."""
    return [
        n for n, (names, rows, _) in enumerate(EXCUSED) if name in names.split() and (not rows or row in rows.split())
    ]


def main() -> int:
    with private_root():
        folder = Path("/tmp/traced")
        folder.mkdir()
        seen = run(folder)
        for row, name, why in unused(seen):
            if not excuse(row, name):
                print(f"{row:10} {name:20} {why}")
        for row, name, arguments in seen:
            if not deciding(row, name, arguments):
                print("NO RULE", row, name, arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
