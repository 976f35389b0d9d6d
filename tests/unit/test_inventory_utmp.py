"""Logins are read out of both utmp record lengths and out of logind's session files."""

from __future__ import annotations

import struct
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.utmp import Login, earliest_by_user, parse_session, parse_utmp

LAYOUTS = {"x86_64": "hxxi32s4s32s256shhiii16s20s", "aarch64": "hxxi32s4s32s256shhqqq16s20sxxxx"}


def record(machine: str, kind: int, user: bytes, seconds: int, micros: int = 0, order: str = "little") -> bytes:
    sign = "<" if order == "little" else ">"
    values = (kind, 77, b"pts/0", b"ts/0", user, b"host", 0, 0, 1, seconds, micros, b"", b"")
    return struct.pack(sign + LAYOUTS[machine], *values)


def found(logins: list[Login]) -> list[tuple[str, float]]:
    return [(login.user, login.since) for login in logins]


@pytest.mark.parametrize("machine", LAYOUTS)
@pytest.mark.parametrize("order", ["little", "big"])
def test_only_user_processes_with_their_time(machine: str, order: str) -> None:
    data = b"".join(
        (
            record(machine, 2, b"reboot", 1000, order=order),
            record(machine, 7, b"alice", 1700000000, 250000, order=order),
            record(machine, 8, b"gone", 1700000001, order=order),
            record(machine, 7, b"", 1700000002, order=order),
            record(machine, 7, b"b" * 32, 1700000003, order=order),
        )
    )
    assert found(parse_utmp(data, order, machine)) == [("alice", 1700000000.25), ("b" * 32, 1700000003.0)]  # type: ignore[arg-type]


def test_record_lengths() -> None:
    assert len(record("x86_64", 7, b"a", 1)) == 384
    assert len(record("aarch64", 7, b"a", 1)) == 400


@pytest.mark.parametrize("machine", LAYOUTS)
def test_the_length_is_found_without_knowing_the_machine(machine: str) -> None:
    data = record(machine, 2, b"reboot", 5) + record(machine, 7, b"alice", 7) * 2
    assert found(parse_utmp(data, "little", "riscv64")) == [("alice", 7.0)] * 2


def test_where_both_lengths_fit_the_machine_decides() -> None:
    for machine in LAYOUTS:
        size = len(record(machine, 7, b"alice", 7))
        data = record(machine, 7, b"alice", 7) * (9600 // size)
        assert found(parse_utmp(data, "little", machine)) == [("alice", 7.0)] * (9600 // size)


def test_a_torn_record_is_left_out() -> None:
    data = record("x86_64", 7, b"alice", 7) * 2
    assert len(parse_utmp(data[:-5], "little", "x86_64")) == 1
    assert parse_utmp(b"", "little", "x86_64") == []


def test_times_beyond_2038_and_names_that_are_not_utf8() -> None:
    data = bytearray(record("x86_64", 7, b"m\xfcller", 0))
    data[340:344] = (3000000000).to_bytes(4, "little")
    assert found(parse_utmp(bytes(data), "little", "x86_64")) == [("m\udcfcller", 3000000000.0)]


@given(st.binary(max_size=2000))
def test_any_bytes_are_taken(data: bytes) -> None:
    parse_utmp(data, sys.byteorder, "x86_64")
    parse_session(data)


SESSION = (
    b"# private\nUID=1000\nUSER=alice\nACTIVE=1\nSTATE=active\nCLASS=user\nREALTIME=1700000000250000\nMONOTONIC=5\n"
)


def test_session_files() -> None:
    login = parse_session(SESSION)
    assert login is not None
    assert (login.user, login.since) == ("alice", 1700000000.25)
    for old, new in (
        (b"CLASS=user", b"CLASS=greeter"),
        (b"CLASS=user", b"CLASS=manager"),
        (b"STATE=active", b"STATE=closing"),
        (b"USER=alice\n", b""),
        (b"REALTIME=1700000000250000", b"REALTIME=x"),
    ):
        assert parse_session(SESSION.replace(old, new)) is None
    assert parse_session(SESSION.replace(b"CLASS=user", b"CLASS=user-early")) is not None


def test_one_entry_a_user_the_earliest_in_order_of_appearance() -> None:
    logins = [Login("b", 5.0), Login("a", 4.0), Login("b", 3.0), Login("a", 9.0)]
    assert found(earliest_by_user(logins)) == [("b", 3.0), ("a", 4.0)]
    assert logins[0].since == 5.0
