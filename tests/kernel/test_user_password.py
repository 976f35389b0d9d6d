"""guest-set-user-password with the machine's own chpasswd and exactly the row's privileges, on a throw-away user."""

from __future__ import annotations

import base64
import ctypes
import ctypes.util
import os
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest

from protocol.errors import CommandError
from tests.support.handlers import BareContext, confined
from workers import user

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs uid 0")]

NAME = f"psga-pw-{os.getpid()}"


@pytest.fixture(scope="module")
def throw_away() -> Iterator[str]:
    subprocess.run(["useradd", "-M", "-d", "/nonexistent", "-s", "/usr/sbin/nologin", NAME], check=True)
    try:
        yield NAME
    finally:
        subprocess.run(["userdel", NAME], check=True, stderr=subprocess.DEVNULL)


def shadow(name: str) -> str:
    with open("/etc/shadow") as f:
        return next(line.split(":")[1] for line in f if line.startswith(f"{name}:"))


def crypt(password: str, hashed: str) -> str:
    library = ctypes.CDLL(ctypes.util.find_library("crypt") or "libcrypt.so.1")
    library.crypt.restype = ctypes.c_char_p
    return (library.crypt(password.encode(), hashed.encode()) or b"").decode()


def set_password(name: str, password: bytes, crypted: bool = False, without: str = "") -> Any:
    """The handler's result, or the exception, and what it logged."""
    text = base64.b64encode(password).decode()

    def call() -> Any:
        ctx: Any = BareContext()
        try:
            return user.guest_set_user_password(ctx, username=name, password=text, crypted=crypted), ctx.log.lines
        except Exception as e:
            return e, ctx.log.lines

    return confined("user", call, without=without)


def test_the_declared_capabilities_are_enough(throw_away: str) -> None:
    status = os.stat("/etc/shadow")
    assert set_password(throw_away, b"corpus:pass \xc3\xa4") == ({}, [])
    hashed = shadow(throw_away)
    assert hashed.startswith("$") and crypt("corpus:pass \u00e4", hashed) == hashed
    after = os.stat("/etc/shadow")
    assert (after.st_uid, after.st_gid, after.st_mode) == (status.st_uid, status.st_gid, status.st_mode)


def test_a_hash_is_stored_as_it_is(throw_away: str) -> None:
    hashed = "$6$saltsalt$" + "A" * 86
    assert set_password(throw_away, hashed.encode(), crypted=True) == ({}, [])
    assert shadow(throw_away) == hashed


def test_chown_is_not_declared_for_nothing(throw_away: str) -> None:
    before = shadow(throw_away)
    answer, _ = set_password(throw_away, b"never-set", without="CHOWN")
    assert isinstance(answer, CommandError)
    assert answer.desc.startswith("child process has failed to set user password: ")
    assert shadow(throw_away) == before


@pytest.mark.parametrize("name", ["qga-no-such-user", "", " ", "-e", "\u00fc", "a" * 300])
def test_an_unknown_user_gets_chpasswd_s_own_message(throw_away: str, name: str) -> None:
    before = shadow(throw_away)
    answer, _ = set_password(name, b"some-secret")
    assert isinstance(answer, CommandError)
    assert answer.desc.startswith("child process has failed to set user password: ")
    assert "chpasswd" in answer.desc and "some-secret" not in answer.desc
    assert shadow(throw_away) == before


def test_the_password_is_seen_nowhere(throw_away: str) -> None:
    """While it is being set, no process has it in its arguments or environment; chpasswd is seen running, without a core."""
    canary = b"Kanarienvogel-" + os.urandom(6).hex().encode()
    reader, writer = os.pipe()
    watcher = os.fork()
    if watcher == 0:
        found: set[str] = set()
        try:
            os.close(reader)
            own = str(os.getpid())
            end = time.monotonic() + 20
            while time.monotonic() < end and os.path.exists(f"/proc/{os.getppid()}/status"):
                if os.getppid() == 1 or os.path.exists(flag):
                    break
                for pid in filter(str.isdigit, os.listdir("/proc")):
                    if pid == own:
                        continue
                    try:
                        for kind in ("cmdline", "environ"):
                            with open(f"/proc/{pid}/{kind}", "rb") as f:
                                data = f.read()
                            if canary in data or base64.b64encode(canary) in data:
                                found.add(f"leak in {kind}")
                        with open(f"/proc/{pid}/comm") as comm:
                            if comm.read().strip() == "chpasswd":
                                with open(f"/proc/{pid}/limits") as limits:
                                    core = next(x.split()[4] for x in limits if x.startswith("Max core"))
                                found.add(f"chpasswd with core {core}")
                    except (OSError, StopIteration):
                        pass
            os.write(writer, "\n".join(sorted(found)).encode())
        finally:
            os._exit(0)
    os.close(writer)
    try:
        for _ in range(4):
            answer, lines = set_password(throw_away, canary)
            assert answer == {}
            assert not any(canary.decode() in line for line in lines)
        answer, lines = set_password("qga-no-such-user", canary)
        assert canary.decode() not in repr(answer) + "".join(lines)
    finally:
        with open(flag, "w"):
            pass
        with os.fdopen(reader, "rb") as f:
            seen = f.read().decode().splitlines()
        os.waitpid(watcher, 0)
        os.unlink(flag)
    assert crypt(canary.decode(), shadow(throw_away)) == shadow(throw_away)
    assert seen in (["chpasswd with core 1"], ["chpasswd with core 0"])


flag = f"/tmp/psga-watch-{os.getpid()}"
