"""A front that was taken over: it has a worker's socket and the control socket, and says whatever it likes on both.

The worker is the installed one with its walls up, started as the supervisor starts it; the frames are raw bytes."""

from __future__ import annotations

import contextlib
import os
import pwd
import signal
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import msgpack
import pytest

from policy import load
from policy.builtin import PROFILES
from policy.model import Policy, builtin
from privsep import frame, wiring
from privsep.domains import BY_NAME, DOMAINS, NUMBER
from privsep.fingerprint import fingerprint
from privsep.orders import enabled_rows
from protocol.commands import verbs_of
from tests.sandbox import stage
from tests.support.agent import Agent, program, wait_for
from tests.support.namespace import isolated

pytestmark = [pytest.mark.root]

LIBEXEC = Path(program()).resolve().parents[1] / "libexec" / "privsep-ga"
HELLO = [1, frame.HELLO, {"tables": fingerprint()}]
VERB = {c.name: n for d in DOMAINS for n, c in enumerate(verbs_of(d.name))}
BROKEN = 70 << 8  # the worker found that its peer breaks the protocol


class Worker:
    """The installed worker of a row, and our end of its socket to the front."""

    def __init__(self, name: str, *allowed: str, policy: Policy | None = None) -> None:
        self.reader, writer = os.pipe()
        self.pid, self.control = stage.start(name, str(LIBEXEC / name), writer, only=allowed, policy=policy)
        os.close(writer)
        self.control.settimeout(10)
        assert self.control.recv(8)[:1] == wiring.READY
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(10)
        socket.send_fds(self.control, [wiring.TAG_CHANNEL], [theirs.fileno()])
        theirs.close()
        self.number = 1  # the hello's
        self.control.send(wiring.TAG_START)

    def raw(self, *datagrams: bytes) -> None:
        for datagram in datagrams:
            self.socket.send(datagram)

    def say(self, value: object) -> None:
        self.raw(*frame.encode(value))

    def answer(self) -> list[object]:
        assembler = frame.Assembler()
        while True:
            data = self.socket.recv(frame.DATAGRAM + 1)
            if not data:
                raise EOFError
            value = assembler.feed(data)
            if value is not None:
                assert isinstance(value, list)
                return value

    def ask(self, value: object) -> list[object]:
        self.say(value)
        return self.answer()

    def request(self, verb: int, arguments: object, *more: object) -> list[object]:
        """With an id that was not used; the answer without it."""
        self.number += 1
        number, *answer = self.ask([self.number, verb, arguments, *more])
        assert number == self.number
        return answer

    def status(self, limit: float = 5.0) -> int | None:
        """How it ended; None when it has not."""
        end = time.monotonic() + limit
        while time.monotonic() < end:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.pid = 0
                return status
            time.sleep(0.01)
        return None

    def close(self) -> None:
        self.socket.close()
        self.control.close()
        if self.pid and self.status() is None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self.reader)


@contextlib.contextmanager
def worker(name: str, *allowed: str, greeted: bool = True) -> Iterator[Worker]:
    """Allowed is what is named."""
    found = Worker(name, *allowed)
    try:
        if greeted:
            assert found.ask(HELLO) == [1, True, True]
        yield found
    finally:
        found.close()


def packed(value: object) -> bytes:
    return b"\0" + msgpack.packb(value)


@isolated
def test_what_policy_forbids_is_forbidden_to_the_front_too() -> None:
    Path("/root/secret").write_text("secret")
    with worker("file", "guest-file-close") as w:
        for name, arguments in (
            ("guest-file-open", {"path": "/root/secret", "mode": "r"}),
            ("guest-file-open", {"path": "/etc/attack", "mode": "w"}),
            ("guest-file-read", {"handle": 1000}),
        ):
            ok, value = w.request(VERB[name], arguments)
            assert not ok and "disabled" in str(value)
        assert not os.path.exists("/etc/attack")
    with worker("inventory", "guest-get-osinfo") as w:
        for verb in range(len(verbs_of("inventory"))):
            ok, _ = w.request(verb, {})
            assert ok == (verb == VERB["guest-get-osinfo"])


@isolated
def test_arguments_are_checked_again() -> None:
    with worker("file", "guest-file-open", "guest-file-read") as w:
        for arguments in (
            {"path": 1},
            {"path": "/etc/passwd", "mode": True},
            {"path": "/etc/passwd", "more": 1},
            {},
            {"path": ["/etc/passwd"]},
            {"path": None},
            {"path": b"/etc/passwd"},
        ):
            ok, value = w.request(VERB["guest-file-open"], arguments)
            assert not ok, (arguments, value)
        for arguments in (
            {"handle": True},
            {"handle": 1.0},
            {"handle": 1, "count": -1},
            {"handle": 1, "count": 1 << 62},
        ):
            ok, value = w.request(VERB["guest-file-read"], arguments)
            assert not ok, (arguments, value)


def allowed_by(profile: str, domain: str) -> list[str]:
    policy = builtin(profile)
    return [c.name for c in verbs_of(domain) if policy.allows(c.name)]


DOMAINS_ASKED = [(p, d.name) for p in PROFILES for d in DOMAINS if d.channel == "front" and allowed_by(p, d.name)]


@pytest.mark.parametrize(("profile", "domain"), DOMAINS_ASKED, ids="-".join)
@isolated
def test_under_each_profile_a_worker_refuses_what_its_policy_does_not_allow(profile: str, domain: str) -> None:
    """Every command of its domain that is not allowed, and whatever is allowed with members that do not belong there."""
    allowed = allowed_by(profile, domain)
    with worker(domain, *allowed) as w:
        for verb, command in enumerate(verbs_of(domain)):
            wrong = {"no-such-member": 1, **{a.name: {"wrong": [None]} for a in command.args}}
            ok, value = w.request(verb, wrong)
            assert ok is False, command.name
            assert ("disabled" in str(value)) == (command.name not in allowed), (command.name, value)


NOT_FRAMES = {
    "not-msgpack": b"\0\xc1",
    "cut-off": b"\0\x93\x01",
    "with-a-tail": packed([2, 0, {}]) + b"x",
    "empty": b"\0",
    "unknown-mark": b"\2" + msgpack.packb([2, 0, {}]),
    "nil": packed(None),
    "no-list": packed({"a": 1}),
    "two-members": packed([2, 0]),
    "four-members": packed([2, 0, {}, 1]),
    "id-is-a-bool": packed([True, 0, {}]),
    "id-is-a-text": packed(["2", 0, {}]),
    "verb-is-a-bool": packed([2, False, {}]),
    "verb-is-a-float": packed([2, 0.0, {}]),
    "verb-is-unknown": packed([2, 99, {}]),
    "verb-is-negative": packed([2, -99, {}]),
    "a-second-hello": packed([2, frame.HELLO, {"tables": fingerprint()}]),
    "arguments-are-a-list": packed([2, 0, []]),
    "not-a-number": packed([2, 0, {"path": float("nan")}]),
    "extension": packed([2, 0, {"path": msgpack.ExtType(5, b"x")}]),
    "timestamp": packed([2, 0, {"path": msgpack.Timestamp(1, 0)}]),
    "duplicate-key": b"\0\x93\x02\x00\x82\xa1a\x01\xa1a\x02",
    "key-is-a-number": packed([2, 0, {1: 1}]),
    "nested": b"\0" + b"\x91" * 100 + b"\x01",
    "nested-very-deep": b"\0" + b"\x91" * 100_000 + b"\x01",
    "claims-4-GiB": b"\0\xdd\xff\xff\xff\xff",
    "bytes-claim-4-GiB": b"\0\xc6\xff\xff\xff\xff",
}


@pytest.mark.parametrize("data", NOT_FRAMES.values(), ids=NOT_FRAMES.keys())
@isolated
def test_what_is_no_frame_ends_the_worker(data: bytes) -> None:
    with worker("file", "guest-file-open") as w:
        w.raw(data)
        assert w.status() == BROKEN


@isolated
def test_nothing_goes_before_the_hello_and_the_tables_must_be_the_same() -> None:
    with worker("inventory", "guest-get-osinfo", greeted=False) as w:
        w.say([1, VERB["guest-get-osinfo"], {}])
        assert w.status() == BROKEN
    with worker("inventory", "guest-get-osinfo", greeted=False) as w:
        assert w.ask([1, frame.HELLO, {"tables": "0" * 16}]) == [1, False, ["GenericError", "restart needed"]]
        w.say([2, VERB["guest-get-osinfo"], {}])
        assert w.status() == BROKEN


@isolated
def test_an_id_is_used_once() -> None:
    verb = VERB["guest-get-osinfo"]
    for number in (2, 1, 0, -5):
        with worker("inventory", "guest-get-osinfo") as w:
            assert w.ask([2, verb, {}])[1] is True
            w.say([number, verb, {}])
            assert w.status() == BROKEN
    with worker("inventory", "guest-get-osinfo") as w:
        assert w.ask([(1 << 64) - 1, verb, {}])[:2] == [(1 << 64) - 1, True]  # the largest; there is none after it


# What is announced as bulk data, and the datagrams that follow.
BULK_LIES: dict[str, tuple[object, tuple[bytes, ...]]] = {
    "claims-1-GiB": (["buf-b64", 1 << 30], ()),
    "claims-less-than-nothing": (["buf-b64", -1], ()),
    "size-is-a-bool": (["buf-b64", True], ()),
    "size-is-a-float": (["buf-b64", 1e5], ()),
    "another-member": (["handle", 100_000], ()),
    "no-member": ([], ()),
    "not-a-list": ({"buf-b64": 100_000}, ()),
    "three-members": (["buf-b64", 100_000, 1], ()),
    "no-whole-groups": (["buf-b64", 100_000, ""], ()),
    "an-end-that-is-no-text": (["buf-b64", 99_999, 1], ()),
    "an-end-that-is-none": (["buf-b64", 99_999, None], ()),
    "an-end-that-is-long": (["buf-b64", 99_999, "AAAAA"], ()),
    "data-beyond-every-text": (["buf-b64", frame.LIMIT // 3 * 3, ""], ()),
    "pieces-that-are-too-long": (["buf-b64", 100_000], (b"A" * 100_000, b"A" * 100_000)),
    "pieces-that-are-too-short": (["buf-b64", 200_000], (b"A", b"A", b"A")),
}


@pytest.mark.parametrize("lie", BULK_LIES)
@isolated
def test_bulk_data_that_is_not_as_announced_ends_the_worker_and_costs_no_memory(lie: str) -> None:
    announced, pieces = BULK_LIES[lie]
    with worker("file", "guest-file-open", "guest-file-write") as w:
        ok, handle = w.request(VERB["guest-file-open"], {"path": "/tmp/bulk", "mode": "w"})
        assert ok
        w.say([9, VERB["guest-file-write"], {"handle": handle}, announced])
        with contextlib.suppress(OSError):
            w.raw(*pieces)
        if lie == "claims-1-GiB":
            assert w.status(0.5) in (None, BROKEN)  # it may wait for them; nothing is set aside for what was only said
            if w.pid:
                size = next(x for x in Path(f"/proc/{w.pid}/status").read_text().splitlines() if x.startswith("VmHWM"))
                assert int(size.split()[1]) < 64 * 1024
        else:
            assert w.status() == BROKEN
    assert os.path.getsize("/tmp/bulk") == 0


@isolated
def test_a_write_that_breaks_off_is_said_and_goes_no_further_than_it_came() -> None:
    with worker("file", "guest-file-open", "guest-file-write") as w:
        ok, handle = w.request(VERB["guest-file-open"], {"path": "/tmp/bulk", "mode": "w"})
        assert ok
        w.say([9, VERB["guest-file-write"], {"handle": handle}, ["buf-b64", 3 * frame.BULK_PART, ""]])
        w.raw(b"A" * frame.BULK_PART, b"A")  # whatever is written was let through as any write is
        assert w.status() == BROKEN
    assert os.path.getsize("/tmp/bulk") == frame.BULK_PART


@isolated
def test_bulk_data_for_a_command_that_takes_none_ends_the_worker() -> None:
    with worker("file", "guest-file-open") as w:
        w.say([2, VERB["guest-file-open"], {"path": "/tmp/x"}, ["mode", 1000]])
        assert w.status() == BROKEN


@isolated
def test_a_frame_without_end_costs_bounded_memory() -> None:
    with worker("inventory", "guest-get-osinfo") as w:
        part = b"\1" + bytes(frame.PART)
        with contextlib.suppress(OSError):
            for _ in range(2 * frame.LIMIT // frame.PART):
                w.socket.send(part)
        assert w.status() == BROKEN


@isolated
def test_descriptors_that_come_along_are_not_taken() -> None:
    with worker("inventory", "guest-get-osinfo") as w:
        before = len(os.listdir(f"/proc/{w.pid}/fd"))
        for number in range(2, 52):
            spare = os.open("/dev/null", os.O_RDONLY)
            socket.send_fds(w.socket, [packed([number, frame.IDLE, {}])], [spare] * 20)
            os.close(spare)
            assert w.answer() == [number, True, True]
        assert len(os.listdir(f"/proc/{w.pid}/fd")) == before


@isolated
def test_a_front_that_does_not_read_stops_the_worker_and_costs_nothing() -> None:
    with worker("inventory", "guest-get-osinfo") as w:
        w.socket.setblocking(False)
        sent = 0
        with contextlib.suppress(BlockingIOError):
            while sent < 1_000_000:
                w.raw(packed([2 + sent, frame.IDLE, {}]))
                sent += 1
        assert sent < 100_000
        size = next(x for x in Path(f"/proc/{w.pid}/status").read_text().splitlines() if x.startswith("VmRSS"))
        assert int(size.split()[1]) < 64 * 1024
        w.socket.close()
        assert w.status() == 0


@isolated
def test_silence_is_waited_for_without_work() -> None:
    with worker("inventory", "guest-get-osinfo") as w:

        def used() -> int:
            return sum(map(int, Path(f"/proc/{w.pid}/stat").read_text().rpartition(")")[2].split()[11:13]))

        before = used()
        time.sleep(1.0)
        assert used() - before <= 1
        assert w.ask([3, VERB["guest-get-osinfo"], {}])[1] is True


# -- the control socket

HOSTILE = """
import os, sys, time
from privsep import front, wiring

def run(self):
    control = self._control
    for _ in range(20):
        for byte in range(256):
            control.send(bytes((byte,)))
            control.send(bytes((byte,)) * 8)
    control.setblocking(False)
    got = set()
    end = time.monotonic() + 3
    while time.monotonic() < end:
        try:
            data, fd = wiring.receive_fd(control)
        except BlockingIOError:
            time.sleep(0.01)
            continue
        if not data:
            break
        got.add(data.hex())
        if fd is not None:
            os.close(fd)
    os.write(2, ("got " + " ".join(sorted(got)) + "\\n").encode())
    control.setblocking(True)
    while wiring.receive_fd(control)[0]:
        pass

front.Front.run = run
from privsep.child import main
main("front", {filters!r})
"""


def hostile_program(folder: Path, entries: dict[str, str]) -> str:
    """An agent whose entries of these names are scripts of a test; the path of its program."""
    os.chmod(folder, 0o755)
    libexec = folder / "libexec"
    libexec.mkdir()
    for path in LIBEXEC.iterdir():
        if path.name not in entries:
            (libexec / path.name).symlink_to(path)
    for name, body in entries.items():
        stage.script(str(libexec), name, body)
    return stage.script(
        str(folder), "privsep-ga", f"from privsep.cli import main\nsys.exit(main(libexec={str(libexec)!r}))"
    )


@pytest.mark.parametrize("profile", PROFILES)
@isolated
def test_the_supervisor_is_told_nonsense_and_gives_no_more_than_it_would(profile: str) -> None:
    folder = Path("/tmp/hostile")
    folder.mkdir()
    os.environ["PRIVSEP_GA"] = hostile_program(folder, {"front": HOSTILE.replace("{filters!r}", repr(stage.FILTERS))})
    enabled = enabled_rows(builtin(profile), hook=False)
    with Agent("--policy", profile) as agent:
        line = wait_for(lambda: next((x for x in agent.log().splitlines() if x.startswith("got ")), None), 15)
        given = {bytes.fromhex(x) for x in line.split()[1:]}
        workers = {x[1] for x in given if x[:1] in (wiring.TAG_WORKER, wiring.TAG_UNAVAILABLE, wiring.TAG_UNPRIVILEGED)}
        names = {d.name for d in DOMAINS if NUMBER[d.name] in workers}
        assert names <= {row for row in enabled if BY_NAME[row].channel == "front"}
        assert {x[:1] for x in given} <= {
            wiring.TAG_LISTENER, wiring.TAG_WORKER, wiring.TAG_UNAVAILABLE, wiring.TAG_UNPRIVILEGED,
        }  # fmt: skip
        assert set(agent.processes()) <= {"supervisor", *enabled}
        assert os.path.exists(f"/proc/{agent.pid}")


def test_the_layout_of_a_descriptor_is_the_kernels() -> None:
    assert struct.calcsize("i") == wiring._FD_SIZE


RULES = """
profile = "qemu-ga"
[[file]]
path = "/srv"
[[exec]]
program = "/bin/true"
user = "nobody"
[[user]]
names = ["nobody"]
[power]
modes = []
[rates]
guest-get-timezone = 1
"""


@isolated
def test_rules_hold_against_a_front_that_skips_its_own_checks() -> None:
    path = Path("/tmp/policy.toml")
    path.write_text(RULES)
    path.chmod(0o644)
    policy = load.from_files([str(path)])
    for domain, name, arguments in (
        ("file", "guest-file-open", {"path": "/etc/shadow"}),
        ("file", "guest-file-open", {"path": "/srv/x", "mode": "w"}),
        ("exec", "guest-exec", {"path": "/bin/sh"}),
        ("exec", "guest-exec", {"path": "/bin/true", "env": ["LD_PRELOAD=/tmp/x"]}),
        ("user", "guest-set-user-password", {"username": "root", "password": "QQ==", "crypted": False}),
        ("ssh", "guest-ssh-get-authorized-keys", {"username": "root"}),
        ("power", "guest-shutdown", {}),
        ("power", "guest-suspend-ram", {}),
    ):
        found = Worker(domain, policy=policy)
        try:
            assert found.ask(HELLO) == [1, True, True]
            ok, value = found.request(VERB[name], arguments)
            decision = policy.decide(name, arguments, uid=lambda name: pwd.getpwnam(name).pw_uid)
            assert not ok and not decision.allowed and value == ["GenericError", decision.error(name)]
            if domain == "exec":
                ok, value = found.request(VERB[name], {"path": "/bin/true"})
                assert ok, value
        finally:
            found.close()


def _stir() -> None:
    """Something for file rules to be about."""
    for folder in ("/srv/a", "/srv/b"):
        os.makedirs(folder, exist_ok=True)
        for name in ("one", "two"):
            Path(folder, name).write_text(name)


PLACES = ["/srv", "/srv/a", "/srv/b", "/srv/b/two", "/etc"]
ASKED = ["/srv/a/one", "/srv/b/two", "/srv/b/one", "/srv/./a//two", "/srv/a/../b/one", "/etc/passwd", "/root/x", "srv"]
PROGRAMS = ["/bin/true", "/bin/false", "/bin/echo"]
WORDS = ["a", "b", "", "-n", "*"]


@isolated
def test_real_workers_agree_with_decide_on_many_policies() -> None:
    """Random policies and requests, straight to the installed file and exec workers behind their walls."""
    _stir()
    random = Random(6)
    results = {True: 0, False: 0}
    for _ in range(8):
        lines = ['profile = "ansible"']
        for _ in range(random.randint(1, 3)):
            access = random.choice((["read"], ["read", "write"], ["write"]))
            lines += ["[[file]]", f'path = "{random.choice(PLACES)}"', f"access = {access}"]
        for _ in range(random.randint(1, 3)):
            patterns = random.sample(["a", "*", "?", "-n", "..."], random.randint(0, 2))
            patterns.sort(key="...".__eq__)
            lines += ["[[exec]]", f'program = "{random.choice(PROGRAMS)}"', f"args = {patterns}", "user = 65534"]
        path = Path("/tmp/policy.toml")
        path.write_text("\n".join(lines) + "\n")
        path.chmod(0o644)
        policy = load.from_files([str(path)])
        for domain in ("file", "exec"):
            found = Worker(domain, policy=policy)
            try:
                assert found.ask(HELLO) == [1, True, True]
                for _ in range(40):
                    arguments: dict[str, object]
                    if domain == "file":
                        name = "guest-file-open"
                        arguments = {"path": random.choice(ASKED), "mode": random.choice(("r", "r+", "a"))}
                    else:
                        name = "guest-exec"
                        words = random.choices(WORDS, k=random.randint(0, 2))
                        arguments = {"path": random.choice([*PROGRAMS, "true"]), "arg": words}
                    ok, value = found.request(VERB[name], arguments)
                    decision = policy.decide(name, arguments)
                    assert ok == decision.allowed or "No such file" in str(value), (lines, arguments, decision, value)
                    if not decision.allowed:
                        assert value == ["GenericError", decision.error(name)]
                    results[ok is True] += 1
            finally:
                found.close()
    assert min(results.values()) > 50, results
