"""guest-set-user-password up to and around chpasswd: checks, what chpasswd is given, what is told of its failure.

A stand-in chpasswd writes down its arguments and input; the real one is in tests/kernel/test_user_password.py."""

from __future__ import annotations

import base64
import traceback
from pathlib import Path
from typing import Any

import pytest

from protocol.errors import CommandError
from tests.support.handlers import BareContext
from workers import programs, user

SECRET = b"Canary-7531"
RAW = "forbidden characters in raw password"
NAME = "forbidden characters in username"
BASE64 = "Base64 data contains invalid characters"
TOO_LONG = "user name and password are too long"


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.fixture
def ctx(tmp_path: Path) -> Any:
    chpasswd(tmp_path, "exit 0")
    return BareContext(tmp_path)


def chpasswd(root: Path, body: str) -> None:
    (root / "usr/sbin").mkdir(parents=True, exist_ok=True)
    file = root / "usr/sbin/chpasswd"
    file.write_text(f'#!/bin/sh\necho "$*" > {root}/args\ncat > {root}/input\n{body}\n')
    file.chmod(0o755)


def given(ctx: Any) -> tuple[str, bytes]:
    root = Path(ctx.root)
    return (root / "args").read_text().strip(), (root / "input").read_bytes()


def untouched(ctx: Any) -> bool:
    return not (Path(ctx.root) / "args").exists()


def test_raw_and_crypted_reach_chpasswd_on_its_standard_input(ctx: Any) -> None:
    assert user.guest_set_user_password(ctx, username="joe", password=b64(b"a:b c\xff"), crypted=False) == {}
    assert given(ctx) == ("", b"joe:a:b c\xff\n")
    assert user.guest_set_user_password(ctx, username="joe", password=b64(b"$6$x$y"), crypted=True) == {}
    assert given(ctx) == ("-e", b"joe:$6$x$y\n")


@pytest.mark.parametrize(
    ("text", "password"),
    [
        ("", b""),
        ("eA==", b"x"),
        ("e\nA=\n=\n", b"x"),
        ("YWJj", b"abc"),
        ("YWJjZ", b"abc"),  # an incomplete last group is dropped
        ("YWJjZA", b"abc"),
        ("Y=Jj", base64.b64decode("YAJj")),  # padding in an odd place counts as a zero
        ("eA==YWJj", b"xabc"),
        ("====", None),  # NUL
    ],
)
def test_base64_is_as_lenient_as_the_peer_s(ctx: Any, text: str, password: bytes | None) -> None:
    if password is None:
        with pytest.raises(CommandError, match=RAW):
            user.guest_set_user_password(ctx, username="joe", password=text, crypted=False)
        return
    user.guest_set_user_password(ctx, username="joe", password=text, crypted=False)
    assert given(ctx)[1] == b"joe:" + password + b"\n"


@pytest.mark.parametrize(
    ("username", "password", "crypted", "words"),
    [
        ("joe", "@@", False, BASE64),
        ("joe", "eA== ", False, BASE64),
        ("joe", "eA-_", False, BASE64),
        ("joe", "\u00e9A==", False, BASE64),
        ("joe", "eA==\0", False, BASE64),
        ("joe", "\ud800", False, BASE64),
        ("a:b", "@@", False, BASE64),  # the password's characters come first
        ("joe", b64(b"a\nb"), False, RAW),
        ("joe", b64(b"\n"), True, RAW),
        ("joe", b64(b"a\0b"), False, RAW),
        ("joe", b64(b"abc\0"), True, RAW),
        ("a:b", b64(b"a\nb"), False, RAW),  # then its content, then the name
        ("a:b", "eA==", False, NAME),
        ("a\nroot:x", "eA==", False, NAME),
        ("a\0b", "eA==", False, NAME),
        ("\ud800", "eA==", False, NAME),
        (":", "", True, NAME),
        ("joe", b64(b"$6$x:0:0:99999"), True, "forbidden characters in crypted password"),
        ("joe", b64(b"x" * 9000), False, TOO_LONG),
        ("j" * 9000, "eA==", False, TOO_LONG),
        ("joe", "A" * 10_000_000, False, TOO_LONG),
    ],
)
def test_what_could_be_more_than_one_line_for_one_user_never_reaches_chpasswd(
    ctx: Any, username: str, password: str, crypted: bool, words: str
) -> None:
    with pytest.raises(CommandError) as e:
        user.guest_set_user_password(ctx, username=username, password=password, crypted=crypted)
    assert e.value.desc == words
    assert untouched(ctx)


def test_the_longest_line_arrives_whole(ctx: Any) -> None:
    password = b"p" * 6000
    user.guest_set_user_password(ctx, username="joe", password=b64(password), crypted=False)
    assert given(ctx)[1] == b"joe:" + password + b"\n"


def test_numbers_for_rules_about_users() -> None:
    assert user.uid_of("root") == 0
    for name in ("", "no-such-user", "a\0b", "\ud800"):
        assert user.uid_of(name) is None


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("echo bad >&2; exit 1", "child process has failed to set user password: bad\n"),
        ("exit 4", "child process has failed to set user password: exit status 4"),
        ("kill -11 $$", "child process has terminated abnormally"),
    ],
)
def test_chpasswd_s_own_message_is_told(ctx: Any, body: str, words: str) -> None:
    chpasswd(Path(ctx.root), body)
    with pytest.raises(CommandError) as e:
        user.guest_set_user_password(ctx, username="joe", password=b64(b"secret"), crypted=False)
    assert e.value.desc == words


def test_its_message_is_bounded(ctx: Any) -> None:
    chpasswd(Path(ctx.root), "head -c 100000 /dev/zero | tr '\\0' x; exit 1")
    with pytest.raises(CommandError) as e:
        user.guest_set_user_password(ctx, username="joe", password=b64(b"secret"), crypted=False)
    assert len(e.value.desc) < 5000


def test_a_message_that_quotes_the_password_is_not_told(ctx: Any) -> None:
    chpasswd(Path(ctx.root), f"echo 'line 1: cannot parse:'; cat {ctx.root}/input; exit 1")
    with pytest.raises(CommandError) as e:
        user.guest_set_user_password(ctx, username="joe", password=b64(SECRET), crypted=False)
    assert SECRET.decode() not in "".join(traceback.format_exception(e.value))
    assert "exit status 1" in e.value.desc


def test_no_chpasswd(tmp_path: Path) -> None:
    with pytest.raises(CommandError) as e:
        user.guest_set_user_password(BareContext(tmp_path), username="joe", password="eA==", crypted=False)
    assert e.value.desc == "cannot find 'chpasswd' program in PATH"


@pytest.mark.parametrize("body", ["exit 0", "exit 1", "kill -9 $$"])
def test_the_buffer_is_overwritten_however_it_ends(ctx: Any, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    chpasswd(Path(ctx.root), body)
    buffers: list[bytearray] = []
    real = programs.run

    def run(argv: Any, *, stdin: Any, limit: float) -> programs.Result:
        assert bytes(stdin) == b"joe:" + SECRET + b"\n"
        buffers.append(stdin.obj)
        return real(argv, stdin=stdin, limit=limit)

    monkeypatch.setattr(programs, "run", run)
    try:
        user.guest_set_user_password(ctx, username="joe", password=b64(SECRET), crypted=False)
    except CommandError:
        pass
    [buffer] = buffers
    assert isinstance(buffer, bytearray) and not any(buffer)


def test_a_program_that_cannot_be_started(ctx: Any) -> None:
    (Path(ctx.root) / "usr/sbin/chpasswd").write_text("no program")
    with pytest.raises(CommandError) as e:
        user.guest_set_user_password(ctx, username="joe", password=b64(SECRET), crypted=False)
    assert e.value.desc == "failed to create child process: Exec format error"
    assert SECRET.decode() not in "".join(traceback.format_exception(e.value))
