"""Reads and writes a user's authorized_keys, as that user.

qemu-ga does this as root inside a folder that the user controls, and follows symbolic links there.  Here each request is
acted on by a child that has become the user before it looks at the home directory (`workers/asuser.py`), and that walks
there without following links (`workers/homefile.py`).  What a file means and how it changes is `workers/authorized_keys.py`.

Whose keys the host may change is decided before this is called (policy/decide.py).  Settings: uid 0 is refused unless `ssh-root`
is "1", which is why root's home is within reach; `ssh-strict` "1" refuses what sshd would not take for a key.

The order of the checks and the words of errors are qemu-ga's: keys first, then the user.
"""

from __future__ import annotations

import errno
import os
import pwd

from protocol.errors import CommandError, strerror
from workers import authorized_keys, homefile
from workers.asuser import Account, as_user

TYPE_CHECKING = False
if TYPE_CHECKING:
    from privsep.runtime import Context


def uid_of(username: str) -> int | None:
    """For rules about users (policy/decide.py)."""
    try:
        return pwd.getpwnam(username).pw_uid
    except (KeyError, ValueError):
        return None


def prepare(ctx: Context) -> None:
    """Have the C library load the modules of the account database: later none can be mapped to be executed."""
    try:
        pwd.getpwuid(0)
        os.getgrouplist("root", 0)
    except (KeyError, OSError):
        pass  # asked for their side effect only


def guest_ssh_get_authorized_keys(ctx: Context, username: str) -> dict[str, object]:
    """The user's keys, the last line of the file first."""
    account = _lookup(ctx, username)

    def read() -> bytes:
        home = homefile.open_home(ctx.root, account)
        folder = homefile.open_folder(home, account)
        found = homefile.read(folder, account) if folder is not None else None
        if found is None:
            raise homefile.cannot_read(account, strerror(errno.ENOENT))
        return found[0]

    return {"keys": authorized_keys.listed(as_user(account, read))}


def guest_ssh_add_authorized_keys(
    ctx: Context, username: str, keys: list[str], reset: bool = False
) -> dict[str, object]:
    """Adds what is not there yet; with `reset` the keys given are all there is."""
    _check_keys(ctx, keys)
    account = _lookup(ctx, username)

    def add() -> bytes:
        home = homefile.open_home(ctx.root, account)
        folder = homefile.open_folder(home, account)
        if folder is None:
            folder = homefile.make_folder(home, account)
        found = homefile.read(folder, account, content=not reset)
        homefile.write(folder, account, authorized_keys.added(found[0] if found else b"", keys), found)
        return b""

    as_user(account, add)
    return {}


def guest_ssh_remove_authorized_keys(ctx: Context, username: str, keys: list[str]) -> dict[str, object]:
    """Removes the lines that are one of the keys; no file, no work."""
    _check_keys(ctx, keys, adding=False)
    account = _lookup(ctx, username)

    def remove() -> bytes:
        home = homefile.open_home(ctx.root, account)
        folder = homefile.open_folder(home, account)
        found = homefile.read(folder, account) if folder is not None else None
        if folder is not None and found is not None:
            content = authorized_keys.removed(found[0], keys)
            if content != found[0]:
                homefile.write(folder, account, content, found)
        return b""

    as_user(account, remove)
    return {}


def _check_keys(ctx: Context, keys: list[str], *, adding: bool = True) -> None:
    strict = adding and ctx.setting("ssh-strict") == "1"
    good = authorized_keys.well_formed if strict else authorized_keys.acceptable
    for key in keys:
        if not good(key):
            raise CommandError(f"invalid OpenSSH public key: '{_shown(key)}'")


def _shown(text: str) -> str:
    """What the host sent, as it may stand in an error: of bounded length, and something that UTF-8 can say."""
    text = text if len(text) <= authorized_keys.KEY_LIMIT else f"{text[:64]}..."
    return text.encode("utf-8", "replace").decode()


def _lookup(ctx: Context, username: str) -> Account:
    try:
        entry = pwd.getpwnam(username)
    except (KeyError, ValueError):  # ValueError: a NUL, or what no file system encoding can say
        # The reason is the peer's: errno after a lookup that found nothing.
        raise CommandError(f"failed to lookup user '{_shown(username)}': Success") from None
    if entry.pw_uid == 0 and ctx.setting("ssh-root") != "1":
        raise CommandError(f"the authorized keys of user '{username}' (uid 0) are not allowed by policy")
    groups = os.getgrouplist(username, entry.pw_gid)
    return Account(username, entry.pw_uid, entry.pw_gid, groups, entry.pw_dir)
