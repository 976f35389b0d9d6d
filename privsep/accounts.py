"""Which uid and gid a row's account has.

/etc/passwd is read directly and once: a lookup through NSS can ask a directory service over the network, and system users
made by sysusers.d are always in the file.  An account that is not there (a source tree, a demo) gets a fixed id of its
own out of the range that Debian's policy manual (9.2.2) reserves and no tool hands out.
"""

from __future__ import annotations

from privsep.domains import DOMAINS, NUMBER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

FALLBACK_BASE: Final = 65300


def parse_passwd(text: bytes) -> dict[str, tuple[int, int]]:
    """name -> (uid, gid); lines that are no account are skipped."""
    found: dict[str, tuple[int, int]] = {}
    for line in text.split(b"\n"):
        parts = line.split(b":")
        if len(parts) == 7 and parts[2].isdigit() and parts[3].isdigit():
            found.setdefault(parts[0].decode("utf-8", "surrogateescape"), (int(parts[2]), int(parts[3])))
    return found


def resolve(passwd: bytes) -> tuple[dict[str, tuple[int, int]], list[str]]:
    """domain -> (uid, gid), and the accounts that do not exist and got a fixed id.

    An account that exists with uid 0, or shares its uid with another row's, is refused: ValueError."""
    accounts = parse_passwd(passwd)
    ids: dict[str, tuple[int, int]] = {}
    missing: list[str] = []
    taken: dict[int, str] = {}
    for row in DOMAINS:
        if row.user == "root":
            ids[row.name] = (0, 0)
            continue
        if row.user in accounts:
            uid, gid = accounts[row.user]
        else:
            uid = gid = FALLBACK_BASE + NUMBER[row.name]
            missing.append(row.user)
        if uid == 0 or gid == 0:
            raise ValueError(f"the account {row.user} has uid or gid 0")
        if uid in taken:
            raise ValueError(f"the accounts {taken[uid]} and {row.user} share uid {uid}")
        taken[uid] = row.user
        ids[row.name] = (uid, gid)
    return ids, missing
