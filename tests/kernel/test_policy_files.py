"""File rules in the real file worker, behind its walls: what is inside the rules' paths is served, and nothing else is, however it is
reached."""

from __future__ import annotations

import base64
import ctypes
import errno
import os
import stat
import threading
from pathlib import Path

import pytest

from policy import load
from privsep.runtime import Context
from tests.support.agent import Agent, AgentError
from tests.support.handlers import Lines, confined
from tests.support.namespace import isolated
from workers import file

pytestmark = [pytest.mark.root]

COMMANDS = 'profile = "default"\n[commands]\nallow = ["@file"]\n'
NOBODY = 65534
BIND = 4096


def policy(rules: str) -> list[str]:
    path = Path("/tmp/policy.toml")
    path.write_text(COMMANDS + rules)
    path.chmod(0o644)
    return ["--policy", str(path)]


def tree() -> Path:
    """/srv/in, which the rules are about, /srv/out and /etc/shadow, which they are not."""
    top = Path("/srv")
    for name in ("in", "out"):
        (top / name).mkdir(parents=True)
        (top / name / "f").write_text(name)
    return top


def content(agent: Agent, path: object, mode: str = "r") -> bytes:
    handle = agent.call("guest-file-open", path=str(path), mode=mode)
    data = base64.b64decode(agent.call("guest-file-read", handle=handle)["buf-b64"])
    agent.call("guest-file-close", handle=handle)
    return data


def refused(agent: Agent, path: object, mode: str = "r") -> str:
    with pytest.raises(AgentError) as e:
        content(agent, path, mode)
    return e.value.desc


def write(agent: Agent, path: object, data: bytes, mode: str = "w") -> None:
    handle = agent.call("guest-file-open", path=str(path), mode=mode)
    try:
        agent.call("guest-file-write", handle=handle, buf_b64=base64.b64encode(data).decode())
    finally:
        agent.call("guest-file-close", handle=handle)


IN = '[[file]]\npath = "/srv/in"\naccess = ["read", "write", "create"]\n'


@isolated
def test_inside_is_served_and_outside_is_not() -> None:
    top = tree()
    with Agent(*policy(IN)) as agent:
        assert content(agent, top / "in" / "f") == b"in"
        assert content(agent, "/srv//in/./f") == b"in"
        write(agent, top / "in" / "new", b"hello")
        assert (top / "in" / "new").read_text() == "hello"
        assert stat.S_IMODE((top / "in" / "new").stat().st_mode) == 0o666
        write(agent, top / "in" / "new", b"x")
        assert (top / "in" / "new").read_text() == "x"  # truncated
        for path in ("/srv/out/f", "/etc/shadow", "/srv/inside", "/srv", "/"):
            assert refused(agent, path) == (
                "guest-file-open is not allowed by policy (rule file): no file rule has this path"
            )
        assert "the path is not absolute" in refused(agent, "srv/in/f")
        assert "'..'" in refused(agent, "/srv/in/../out/f")
        assert "rule file (/tmp/policy.toml:4)" in agent.log()
        os.mkfifo(top / "in" / "fifo")
        assert "(rule file-1): it is not a regular file" in refused(agent, "/srv/in/fifo")
        assert "Permission denied" in refused(agent, "/srv/in")
        assert "No such file" in refused(agent, "/srv/in/none")


@isolated
def test_what_a_rule_is_not_for_is_refused() -> None:
    top = tree()
    rules = '[[file]]\nid = "look"\npath = "/srv/in"\n[[file]]\npath = "/srv/out"\naccess = ["read", "write"]\n'
    with Agent(*policy(rules)) as agent:
        assert content(agent, top / "in" / "f") == b"in"
        for mode in ("w", "a", "r+", "w+"):
            assert refused(agent, top / "in" / "f", mode).startswith(
                "guest-file-open is not allowed by policy (rule look): this path may not be opened to"
            )
        assert (top / "in" / "f").read_text() == "in"
        write(agent, top / "out" / "f", b"new")
        assert (top / "out" / "f").read_text() == "new"
        # Nothing is made where the rule does not say create.
        assert "No such file" in refused(agent, top / "out" / "g", "w")
        assert not (top / "out" / "g").exists()


@isolated
def test_links_out_lead_nowhere() -> None:
    top = tree()
    (top / "in" / "link").symlink_to("/etc/shadow")
    (top / "in" / "folder").symlink_to("/srv/out")
    (top / "in" / "made").symlink_to("/srv/out/made")
    (top / "in" / "within").symlink_to("f")
    (top / "in" / "fd").symlink_to("/proc/self/fd")
    (top / "in" / "root").symlink_to("/proc/self/root")
    with Agent(*policy(IN)) as agent:
        assert content(agent, top / "in" / "within") == b"in"
        for name in ("link", "folder/f", "root/etc/shadow"):
            for mode in ("r", "r+", "w", "a"):
                assert "Permission denied" in refused(agent, top / "in" / name, mode)
        # An open file is reached through the process's own list; what it leads to still counts.
        handle = agent.call("guest-file-open", path="/srv/in/f")
        for number in range(30):
            try:
                assert content(agent, top / "in" / "fd" / str(number)) == b"in"
            except AgentError as e:
                # The board is such a file: the kernel lets internal ones be opened anew, the worker does not.
                words = ("Permission denied", "No such file", "No such device", "not beneath the path of a rule")
                assert any(w in e.desc for w in words), e.desc
        agent.call("guest-file-close", handle=handle)
        assert "No such file" in refused(agent, top / "in" / "made", "w")
    assert not (top / "out" / "made").exists()
    assert (top / "out" / "f").read_text() == "out"


@isolated
def test_a_hard_link_to_a_file_outside_is_refused_unharmed() -> None:
    top = tree()
    os.link(top / "out" / "f", top / "in" / "hard")
    with Agent(*policy(IN)) as agent:
        for mode in ("r", "r+", "w", "w+", "a"):
            assert refused(agent, top / "in" / "hard", mode) == (
                "guest-file-open is not allowed by policy (rule file-1): the file has 2 names, and some may be elsewhere"
            )
    assert (top / "out" / "f").read_text() == "out"  # not cut off by the attempts
    with Agent(*policy(IN + "hard-links = true\n")) as agent:
        assert content(agent, top / "in" / "hard") == b"out"


@isolated
def test_owner_and_size() -> None:
    top = tree()
    for name, uid in (("theirs", NOBODY), ("mine", 0)):
        (top / "in" / name).write_text(name)
        os.chown(top / "in" / name, uid, uid)
    (top / "in" / "large").write_bytes(bytes(21))
    with Agent(*policy(IN + 'owner = ["root"]\nmax-size = 20\n')) as agent:
        assert content(agent, top / "in" / "mine") == b"mine"
        assert "a user whom the rule does not name" in refused(agent, top / "in" / "theirs")
        assert "larger than 20 bytes" in refused(agent, top / "in" / "large")
        write(agent, top / "in" / "new", b"x" * 20)
        with pytest.raises(
            AgentError, match=r"guest-file-write is not allowed by policy \(rule file-1\): the file would be"
        ):
            write(agent, top / "in" / "new", b"x", "a")
        with pytest.raises(AgentError, match="would be larger"):
            write(agent, top / "in" / "new2", b"x" * 21)
        handle = agent.call("guest-file-open", path="/srv/in/mine", mode="r+")
        agent.call("guest-file-seek", handle=handle, offset=1 << 40, whence="set")
        with pytest.raises(AgentError, match="would be larger"):
            agent.call("guest-file-write", handle=handle, buf_b64="QQ==")
    assert (top / "in" / "new").stat().st_size == 20


@isolated
def test_a_folder_bound_inside_is_inside_and_one_bound_outside_stays_outside() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    top = tree()
    (top / "in" / "bound").mkdir()
    (top / "elsewhere").mkdir()
    assert libc.mount(b"/srv/out", b"/srv/in/bound", b"", ctypes.c_ulong(BIND), b"") == 0
    assert libc.mount(b"/srv/in", b"/srv/elsewhere", b"", ctypes.c_ulong(BIND), b"") == 0
    with Agent(*policy(IN)) as agent:
        # Only root binds, and what root puts beneath a rule's path is what the rule says.
        assert content(agent, "/srv/in/bound/f") == b"out"
        assert "no file rule has this path" in refused(agent, "/srv/elsewhere/f")
        (top / "in" / "link").symlink_to("/srv/elsewhere/f")
        # The kernel sees the same folder; the worker sees by which name.
        assert "not beneath the path of a rule" in refused(agent, "/srv/in/link")


@isolated
def test_another_rule_counts_where_a_link_leads() -> None:
    top = tree()
    (top / "in" / "link").symlink_to("/srv/out/f")
    os.chown(top / "out" / "f", NOBODY, NOBODY)
    rules = IN + '[[file]]\nid = "strict"\npath = "/srv/out"\nowner = ["root"]\n'
    with Agent(*policy(rules)) as agent:
        assert "(rule strict): the file belongs" in refused(agent, top / "in" / "link")
        for mode in ("r+", "w", "a"):
            assert "Permission denied" in refused(agent, top / "in" / "link", mode)


@isolated
def test_a_rules_path_through_somebody_elses_link_allows_nothing() -> None:
    top = tree()
    (top / "theirs").mkdir()
    os.chown(top / "theirs", NOBODY, NOBODY)
    (top / "theirs" / "share").symlink_to("/etc")
    os.lchown(top / "theirs" / "share", NOBODY, NOBODY)
    (top / "ours").symlink_to("/srv/in")
    rules = '[[file]]\npath = "/srv/theirs/share"\n[[file]]\npath = "/srv/ours"\n'
    with Agent(*policy(rules)) as agent:
        assert "Permission denied" in refused(agent, "/srv/theirs/share/passwd")
        assert "is a symbolic link of uid 65534" in agent.log()
        assert content(agent, "/srv/ours/f") == b"in"


@isolated
def test_one_file_that_was_replaced_is_served_by_the_next_worker() -> None:
    top = tree()
    rules = '[[file]]\npath = "/srv/in/f"\naccess = ["read", "write"]\n[[file]]\npath = "/srv/later"\n'
    with Agent(*policy(rules)) as agent:
        assert content(agent, "/srv/in/f") == b"in"
        first = agent.process("file")
        assert "No such file" in refused(agent, "/srv/later/f")
        (top / "in" / "g").write_text("other")
        os.rename(top / "in" / "g", top / "in" / "f")
        assert "another file has taken its place, ask again" in refused(agent, "/srv/in/f")
        assert content(agent, "/srv/in/f") == b"other"
        assert agent.process("file") != first
        assert "no file rule" in refused(agent, "/srv/in/g")
        (top / "later").mkdir()
        (top / "later" / "f").write_text("there")
        assert "ask again" in refused(agent, "/srv/later/f")
        assert content(agent, "/srv/later/f") == b"there"


@isolated
def test_races_are_the_kernels() -> None:
    """A link flips between a file inside and one outside while the host asks: what is read is never the one outside."""
    top = tree()
    flip, over = top / "in" / "flip", threading.Event()

    def swap() -> None:
        turn = 0
        while not over.is_set():
            turn += 1
            os.symlink(("/srv/in/f", "/srv/out/f")[turn % 2], top / "in" / "next")
            os.rename(top / "in" / "next", flip)

    flip.symlink_to("/srv/in/f")
    thread = threading.Thread(target=swap)
    with Agent(*policy(IN)) as agent:
        thread.start()
        try:
            seen = {"in": 0, "refused": 0}
            for _ in range(400):
                try:
                    assert content(agent, flip, "r+") == b"in"
                    seen["in"] += 1
                except AgentError as e:
                    assert "Permission denied" in e.desc
                    seen["refused"] += 1
        finally:
            over.set()
            thread.join()
    assert min(seen.values()) > 0, seen
    assert (top / "out" / "f").read_text() == "out"


@isolated
def test_handles_go_on_over_workers_although_the_counter_cannot_be_replaced() -> None:
    tree()
    with Agent(*policy(IN)) as agent:
        first = agent.call("guest-file-open", path="/srv/in/f")
        os.kill(agent.process("file"), 9)
        second = agent.call("guest-file-open", path="/srv/in/f")
        assert second == first + 1
        assert f"fd_counter={second + 1}" in Path(agent.directory, "qga.state").read_text()


@isolated
def test_sizes_of_reads_and_writes() -> None:
    tree()
    with Agent(*policy('[sizes]\nfile-read = 100\nfile-write = "1K"\n')) as agent:
        handle = agent.call("guest-file-open", path="/srv/in/f", mode="r+")
        assert agent.call("guest-file-read", handle=handle, count=100)["count"] == 2
        with pytest.raises(AgentError, match=r"\(rule sizes.file-read\): 101 bytes at a time are more than 100"):
            agent.call("guest-file-read", handle=handle, count=101)
        with pytest.raises(AgentError, match=r"\(rule sizes.file-read\): 4096 bytes"):
            agent.call("guest-file-read", handle=handle)
        for size in (1026, 200_000):
            data = base64.b64encode(bytes(size)).decode()
            with pytest.raises(AgentError, match=r"\(rule sizes.file-write\)"):
                agent.call("guest-file-write", handle=handle, buf_b64=data)
        assert (
            agent.call("guest-file-write", handle=handle, buf_b64=base64.b64encode(bytes(1023)).decode())["count"]
            == 1023
        )


@isolated
def test_a_worker_that_was_taken_over_reaches_nothing_beside_the_rules_paths() -> None:
    """Behind its walls, past every decision of ours: what the kernel itself lets it open."""
    top = tree()
    (top / "in" / "d").mkdir()
    os.symlink("/etc/shadow", top / "in" / "link")
    path = Path(
        policy(IN.replace(', "write", "create"', "") + '[[file]]\npath = "/srv/out/f"\naccess = ["write"]\n')[1]
    )
    found = load.from_files([str(path)])
    ctx = Context(log=Lines(), settings={"statedir": "/run"})  # type: ignore[arg-type]
    ctx.scope = found.scope("file")
    file.prepare(ctx)
    wanted = {
        ("/srv/in/f", os.O_RDONLY): 0,
        ("/srv/in/f", os.O_WRONLY): errno.EACCES,
        ("/srv/in/new", os.O_WRONLY | os.O_CREAT): errno.EACCES,
        ("/srv/in/d", os.O_RDONLY): errno.EACCES,  # a listing
        ("/srv/in/link", os.O_RDONLY): errno.EACCES,
        ("/srv/in/d/../../out/f", os.O_RDONLY): errno.EACCES,
        ("/srv/out/f", os.O_WRONLY): 0,
        ("/srv/out/f", os.O_RDONLY): errno.EACCES,
        ("/srv/out/new", os.O_WRONLY | os.O_CREAT): errno.EACCES,
        ("/etc/shadow", os.O_RDONLY): errno.EACCES,
        ("/run/qga.state", os.O_WRONLY): errno.EACCES,
        ("/run/new", os.O_WRONLY | os.O_CREAT): errno.EACCES,
        ("/proc/self/mem", os.O_RDWR): errno.EACCES,
        ("/dev/mem", os.O_RDONLY): errno.EACCES,
        ("/proc/self/root/etc/shadow", os.O_RDONLY): errno.EACCES,
    }

    def attack() -> dict[tuple[str, int], int]:
        results = {}
        for name, flags in wanted:
            try:
                os.close(os.open(name, flags | os.O_NONBLOCK))
                results[name, flags] = 0
            except OSError as e:
                results[name, flags] = e.errno or -1
        return results

    results = confined("file", attack, granted=ctx.granted)
    # What is not there at all is as good.
    assert {k: v for k, v in results.items() if v not in (wanted[k], errno.ENOENT)} == {}
    assert results["/srv/in/f", os.O_RDONLY] == results["/srv/out/f", os.O_WRONLY] == 0
    # The counter goes on without the folder.
    assert confined("file", lambda: _next(ctx), granted=[]) == 1000
    assert "fd_counter=1001" in Path("/run/qga.state").read_text()


def _next(ctx: Context) -> int:
    return file._table(ctx).counter.take()
