"""The demo: under a minute, on this machine, without danger to it.  `make demo`, as root.

The whole agent serves a unix socket inside a private root (tests/support/namespace.py) in which two file systems on loop devices
are all that there is to freeze.  What a host would send and what it gets back is shown line by line, and each promise
is checked where it can be seen: in another process that writes, in /proc, in the kernel's own answer.  A promise that is not
kept ends the demo with status 1.  A dead man (tests/support/deadman.py) stands behind every freeze.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from demo import show, table
from tests.support import loopfs, namespace
from tests.support.agent import Agent, AgentError, state, wait_for
from tests.support.deadman import DeadMan

AUTO_THAW = 5
LIMIT = 90  # seconds for the whole demo; it takes about fifteen
POLICY = f"""\
profile = "default"

[fsfreeze]
auto-thaw = {AUTO_THAW}
"""
FILE_SYSTEMS = {"/srv/documents": "ext4", "/srv/database": "xfs"}


def missing() -> list[str]:
    """What this demo needs and does not find here."""
    found = []
    if os.geteuid() != 0:
        found.append("root: it freezes file systems and gives processes users of their own (try: sudo make demo)")
    else:
        reason = namespace.why_not()
        found += [reason] if reason else []
        if not os.path.exists("/dev/loop-control"):
            found.append("loop devices (modprobe loop)")
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    found += [f"{t} (make setup)" for t in ("mkfs.ext4", "mkfs.xfs", "mount") if shutil.which(t, path=path) is None]
    return found


def make_file_systems() -> None:
    for number, (mountpoint, fstype) in enumerate(FILE_SYSTEMS.items()):
        loopfs.make(mountpoint, fstype, image=f"/tmp/image{number}")
    show.check(
        sorted(namespace.block_mounts()) == sorted(FILE_SYSTEMS),
        f"all that can be frozen here: {', '.join(FILE_SYSTEMS)} (ext4 and xfs, on loop devices)",
    )


def ask(agent: Agent, execute: str, short: Any = None, **arguments: object) -> Any:
    """Send a request and show it with its reply; `short` makes a long result presentable."""
    show.sent(json.dumps({"execute": execute} | ({"arguments": arguments} if arguments else {})))
    started = time.perf_counter()
    result = agent.call(execute, **arguments)
    took = time.perf_counter() - started
    show.received(json.dumps({"return": short(result) if short else result}), took)
    return result


def ask_for_error(agent: Agent, execute: str) -> str:
    show.sent(json.dumps({"execute": execute}))
    started = time.perf_counter()
    try:
        result = agent.call(execute)
    except AgentError as e:
        show.received(json.dumps(e.reply), time.perf_counter() - started)
        return e.desc
    raise show.Broken(f"{execute} answered {result!r} where an error was promised")


class Writer:
    """Another process that makes a file; on a frozen file system it stays in the kernel (state D) until the thaw."""

    def __init__(self, mountpoint: str) -> None:
        self.path = Path(mountpoint) / f"written-{time.monotonic_ns()}"
        code = f"open({str(self.path)!r}, 'w').write('written')"
        self.process = subprocess.Popen([sys.executable, "-ISc", code])

    def blocked(self) -> bool:
        """Whether it hangs now: in D at two looks in a row."""
        wait_for(lambda: state(self.process.pid) in ("D", "Z"), 3, "the writer to reach the file system")
        time.sleep(0.3)
        return state(self.process.pid) == "D"

    def finished(self, limit: float) -> bool:
        try:
            return self.process.wait(limit) == 0 and self.path.read_text() == "written"
        except subprocess.TimeoutExpired:
            return False


@contextmanager
def guarded() -> Iterator[None]:
    """A dead man for one act.  That he was not needed is checked too."""
    with DeadMan(AUTO_THAW + 15, *FILE_SYSTEMS) as man:
        yield
        show.check(man.cancel(), "the safety net of this demo had nothing to do")


def first_questions(agent: Agent) -> None:
    show.act("What a host asks first")

    def brief(info: Any) -> Any:
        commands = info["supported_commands"]
        enabled = sum(c["enabled"] for c in commands)
        return {"version": info["version"], "supported_commands": f"({len(commands)}, {enabled} of them enabled)"}

    info = ask(agent, "guest-info", brief)
    enabled = {c["name"]: c["enabled"] for c in info["supported_commands"]}
    show.check(enabled["guest-fsfreeze-freeze"], "the policy (profile default) lets the host freeze")
    show.check(
        not (enabled["guest-exec"] or enabled["guest-file-open"] or enabled["guest-set-user-password"]),
        "it lets nobody run programs, open files or set passwords",
    )
    desc = ask_for_error(agent, "guest-file-open")
    show.check("disabled" in desc, "and says so")
    links = ask(agent, "guest-network-get-interfaces")
    show.check(any(link["name"] == "lo" for link in links), "interfaces come from a process that can only read netlink")
    found = ask(agent, "guest-get-fsinfo", lambda r: [{k: f[k] for k in ("mountpoint", "type")} for f in r])
    mounts = {f["mountpoint"] for f in found}
    show.check(set(FILE_SYSTEMS) <= mounts, "file systems from another that may read and no more")


def freeze_and_thaw(agent: Agent) -> None:
    show.act("Freeze for a snapshot, thaw after it")
    with guarded():
        count = ask(agent, "guest-fsfreeze-freeze")
        show.check(count == len(FILE_SYSTEMS), "both are frozen")
        writer = Writer("/srv/database")
        show.check(
            writer.blocked(), f"a process that writes to /srv/database (pid {writer.process.pid}) waits in the kernel"
        )
        show.check(
            "disabled" in ask_for_error(agent, "guest-get-host-name"), "meanwhile only six commands are answered"
        )
        show.check(ask(agent, "guest-fsfreeze-status") == "frozen", "status is one of them")
        count = ask(agent, "guest-fsfreeze-thaw")
        show.check(count == len(FILE_SYSTEMS), "both are thawed, and were frozen all the time")
        show.check(writer.finished(2), "the write went through")


def kill_the_worker(agent: Agent) -> None:
    show.act("Frozen, and the process that froze is killed")
    with guarded():
        ask(agent, "guest-fsfreeze-freeze")
        writer = Writer("/srv/documents")
        show.check(writer.blocked(), "a writer waits")
        old = agent.process("fs")
        os.kill(old, signal.SIGKILL)
        show.note(f"kill -9 {old} (fs)")
        status = ask(agent, "guest-fsfreeze-status")
        show.check(status == "frozen", "still frozen: the watchdog holds it, and a new worker took over")
        new = agent.process("fs")
        show.check(new != old and state(writer.process.pid) == "D", f"the new one is pid {new}; the writer still waits")
        count = ask(agent, "guest-fsfreeze-thaw")
        show.check(count == len(FILE_SYSTEMS), "the thaw is as good as any")
        show.check(writer.finished(2), "the write went through")


def nobody_thaws(agent: Agent) -> None:
    show.act("Frozen, and the host never comes back")
    with guarded():
        started = time.monotonic()
        ask(agent, "guest-fsfreeze-freeze")
        writer = Writer("/srv/database")
        show.check(writer.blocked(), f"a writer waits; the policy says auto-thaw = {AUTO_THAW}")
        show.check(writer.finished(AUTO_THAW + 5), "the watchdog thawed, and the write went through ...")
        took = time.monotonic() - started
        show.check(AUTO_THAW - 0.5 < took < AUTO_THAW + 1, f"... {took:.1f} s after the freeze")
        desc = ask_for_error(agent, "guest-fsfreeze-thaw")
        show.check(
            f"fsfreeze is limited up to {AUTO_THAW} seconds" in desc,
            "the host learns that its snapshot is not consistent: a thaw is never reported as a success that it was not",
        )
        show.check(ask(agent, "guest-fsfreeze-thaw") == 0, "told once; then all is as usual")
        show.check(ask(agent, "guest-fsfreeze-status") == "thawed", "")


def who_runs(agent: Agent) -> None:
    show.act("Who runs, and what each may do")
    processes = table.read(agent.processes())
    for line in table.lines(processes):
        show.plain(line)
    front = next(p for p in processes if p.name == "front")
    show.check(
        front.uid != 0 and front.all_capabilities == 0 and front.seccomp and front.no_new_privs,
        "the only process that reads the host's bytes has no capability, no root, and a system call filter",
    )
    wrong = [p.name for p in processes if not p.as_declared()]
    show.check(
        not wrong, f"each holds exactly what its row in privsep/domains.py says{': not ' if wrong else ''}{wrong or ''}"
    )
    show.note(f"memory of all together: {sum(p.pss for p in processes) / 1024:.1f} MiB")


def play() -> None:
    started = time.monotonic()
    show.plain("privsep-ga: a guest agent in which no process both reads the host's bytes and holds a privilege.")
    make_file_systems()
    policy = "/tmp/policy.toml"
    Path(policy).write_text(POLICY)
    with Agent("--policy", policy) as agent:
        show.check(agent.call("guest-ping") == {}, f"the agent serves {agent.path}")
        first_questions(agent)
        freeze_and_thaw(agent)
        kill_the_worker(agent)
        nobody_thaws(agent)
        who_runs(agent)
        show.act("Stop")
        show.check(agent.stop() == 0, "SIGTERM ends all of it, with status 0")
    show.plain("")
    show.plain(f"Every promise above was checked while you read it.  {time.monotonic() - started:.0f} s.")


def main() -> int:
    reasons = missing()
    if reasons:
        print("The demo cannot run here.  It needs:", file=sys.stderr)
        for reason in reasons:
            print(f"  - {reason}", file=sys.stderr)
        return 1
    os.environ["PATH"] = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"

    def too_long(*_: object) -> None:
        raise show.Broken(f"the demo did not end within {LIMIT} s")

    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(LIMIT)
    with namespace.private_root():
        try:
            play()
        except (show.Broken, AgentError, EOFError, OSError, RuntimeError) as e:
            show.failed(str(e))
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
