"""Who is logged in: login records to the entries of guest-get-users.  Pure.

Two sources: the C library's utmp file, and where a system has none (systemd without utmp, musl) the session files of logind.

Facts: utmp(5), bits/utmp.h of glibc.  A record has 384 bytes where 64-bit programs share the file with 32-bit ones
(x86, POWER, RISC-V), 400 where they do not (arm64).  Session files are KEY=VALUE, times in microseconds
(systemd, src/login/logind-session.c).  The peer reports each user name once, with the earliest login, in order of appearance.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Final, Literal

    ByteOrder = Literal["little", "big"]

USER_PROCESS: Final = 7
_LAST_TYPE: Final = 9

# Record length -> where seconds and microseconds stand, and how long each is.
_LAYOUTS: Final = {384: (340, 344, 4), 400: (344, 352, 8)}
_USER: Final = slice(44, 76)


class Login:
    """One login: the user's name as the system has it (surrogate escapes) and the time in seconds since the epoch."""

    __slots__ = ("user", "since")

    def __init__(self, user: str, since: float) -> None:
        self.user = user
        self.since = since


def parse_utmp(data: bytes, byteorder: ByteOrder, machine: str = "") -> list[Login]:
    """The records of type USER_PROCESS.  byteorder and machine are this system's (sys.byteorder, uname's machine); the
    machine only decides where both record lengths fit.  A torn last record is left out."""
    size = _record_size(data, byteorder, machine)
    seconds, micros, width = _LAYOUTS[size]
    logins = []
    for at in range(0, len(data) - size + 1, size):
        record = data[at : at + size]
        user = record[_USER].partition(b"\0")[0]
        if int.from_bytes(record[:2], byteorder) != USER_PROCESS or not user:
            continue
        # 32-bit seconds are read as unsigned: they last until 2106 that way.
        since = int.from_bytes(record[seconds : seconds + width], byteorder)
        fraction = int.from_bytes(record[micros : micros + width], byteorder)
        logins.append(Login(user.decode("utf-8", "surrogateescape"), since + fraction / 1e6))
    return logins


def _record_size(data: bytes, byteorder: ByteOrder, machine: str) -> int:
    likely = (400, 384) if machine.startswith(("aarch64", "loongarch")) else (384, 400)
    for size in likely:
        if len(data) % size == 0 and _plausible(data, size, byteorder):
            return size
    return likely[0]


def _plausible(data: bytes, size: int, byteorder: ByteOrder) -> bool:
    """Do records of this length begin with a record type and two bytes of padding?"""
    return all(
        int.from_bytes(data[at : at + 2], byteorder) <= _LAST_TYPE and data[at + 2 : at + 4] == b"\0\0"
        for at in range(0, len(data), size)
    )


def parse_session(text: bytes) -> Login | None:
    """One of logind's session files; None for what is no login of a user (greeters, services, sessions being closed)."""
    values = {}
    for line in text.split(b"\n"):
        key, equals, value = line.partition(b"=")
        if equals:
            values[key] = value
    user, since = values.get(b"USER", b""), values.get(b"REALTIME", b"")
    if not values.get(b"CLASS", b"").startswith(b"user") or values.get(b"STATE") == b"closing":
        return None
    if not user or not since.isdigit():
        return None
    return Login(user.decode("utf-8", "surrogateescape"), int(since) / 1e6)


def earliest_by_user(logins: Iterable[Login]) -> list[Login]:
    """One login a user name, the earliest, in order of first appearance."""
    found: dict[str, Login] = {}
    for login in logins:
        known = found.get(login.user)
        if known is None:
            found[login.user] = Login(login.user, login.since)
        elif login.since < known.since:
            known.since = login.since
    return list(found.values())
