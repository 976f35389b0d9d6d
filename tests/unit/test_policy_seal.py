"""Slices: who is told what, and that nobody can change it."""

from __future__ import annotations

import fcntl
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.builtin import COMMANDS
from policy.errors import PolicyError
from policy.model import builtin
from policy.seal import escape, for_reading, parse_slice, read_sealed, seal, slice_for, unescape
from privsep.config import Config
from privsep.domains import DOMAINS


def settings() -> dict[str, str]:
    config = Config()
    config.complete()
    return {**config.settings(builtin("qemu-ga")), "uid": "5", "gid": "6", "privileged": "1"}


def test_one_for_reading_is_the_same_and_cannot_be_written() -> None:
    fd = for_reading(seal(b"allow guest-ping\n", "test"))
    try:
        assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
        assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
        assert read_sealed(fd) == b"allow guest-ping\n"
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.write(fd, b"x")
    finally:
        os.close(fd)


def test_every_process_gets_its_own_and_no_more() -> None:
    policy = builtin("qemu-ga")
    for row in DOMAINS:
        allowed, told = parse_slice(slice_for(row.name, policy, settings()))
        if row.name == "front":
            assert allowed == policy.allowed
        else:
            assert allowed == {c for c, d in COMMANDS.items() if d == row.name}
        assert (told["uid"], told["gid"], told["privileged"], told["verbose"]) == ("5", "6", "1", "0")
        assert ("statedir" in told) == (row.name in ("fs", "file"))
        assert ("fsfreeze-hook" in told) == (row.name in ("fs", "hook"))
        assert ("auto-thaw" in told) == (row.name in ("fs", "thawer"))
    assert "profile" in parse_slice(slice_for("front", policy, settings()))[1]


def test_what_is_not_allowed_is_in_no_slice() -> None:
    policy = builtin("minimal")
    for row in DOMAINS:
        allowed, _ = parse_slice(slice_for(row.name, policy, {}))
        assert allowed <= policy.allowed


def test_a_sealed_slice_is_read_and_cannot_be_changed() -> None:
    data = slice_for("fs", builtin("default"), settings())
    fd = seal(data, "test")
    try:
        assert read_sealed(fd) == data
        assert not os.get_inheritable(fd)
        with pytest.raises(PermissionError):
            os.pwrite(fd, b"x", 0)
        with pytest.raises(PermissionError):
            os.ftruncate(fd, 0)
        with pytest.raises(PermissionError):
            os.ftruncate(fd, 1 << 20)
        with pytest.raises(PermissionError):
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, 0x10)
        # Opened anew it is no other: the seals are the inode's.
        again = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
        with pytest.raises(PermissionError):
            os.write(again, b"x")
        os.close(again)
    finally:
        os.close(fd)


def test_what_is_not_wholly_sealed_is_not_read() -> None:
    fd = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.write(fd, b"allow guest-exec\n")
    with pytest.raises(PolicyError, match="not sealed"):
        read_sealed(fd)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
    with pytest.raises(PolicyError, match="not sealed"):
        read_sealed(fd)
    os.close(fd)
    reading, writing = os.pipe()
    with pytest.raises(PolicyError, match="not sealed"):
        read_sealed(reading)
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize(
    "data",
    [
        b"allow guest-ping",
        b"allow\n",
        b"allow a b\n",
        b"deny x\n",
        b"set x\n",
        b"set x 1\nset x 2\n",
        b"\n",
        b"set x %zz\n",
    ],
)
def test_what_slice_for_does_not_write_is_refused(data: bytes) -> None:
    with pytest.raises(PolicyError):
        parse_slice(data)


@given(st.text(max_size=50))
def test_any_value_stays_on_one_line(value: str) -> None:
    assert "\n" not in escape(value) and "\0" not in escape(value)
    assert unescape(escape(value)) == value


@given(st.binary(max_size=30))
def test_file_names_of_any_bytes_arrive(raw: bytes) -> None:
    value = os.fsdecode(raw)
    _, told = parse_slice(slice_for("hook", builtin("default"), {"fsfreeze-hook": value}))
    assert os.fsencode(told["fsfreeze-hook"]) == raw
