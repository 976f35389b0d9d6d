"""Sets a user's password by chpasswd(8), which knows the machine's own rules (PAM, shadow, locks).

The order of the checks and their words are qemu-ga's; a NUL is refused where the peer silently cuts the password there,
and so is a colon in a crypted password, which can only be a damaged shadow line.

Where the password is: it arrives as base64 text, is decoded into a buffer of fixed size, goes through a pipe to chpasswd's
standard input and the buffer is overwritten.  It is never in an argument, the environment, a log line, an exception's text
or a file of ours.  What cannot be scrubbed from here, because Python's strings and bytes are immutable: the base64 text
that the caller handed over, with the frame it was in (here and in the front), until their memory is used again; the
pipe's page in the kernel; chpasswd's own memory.  These processes are not dumpable, and chpasswd dumps no core.

chpasswd rewrites /etc/shadow as uid 0 and gives the new file the old one's owner: CAP_CHOWN, measured on Debian 12.
Where /etc/shadow has mode 0000 it also wants CAP_DAC_OVERRIDE; without it, its own message is what the host gets.
"""

from __future__ import annotations

import pwd

from protocol.errors import CommandError
from workers import programs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from privsep.runtime import Context

LIMIT: Final = 20.0  # seconds for chpasswd, below the command's own 30

# shadow's chpasswd takes lines of up to BUFSIZ (8192) bytes.
_LINE: Final = 8190

# Shorter ones occur in any text by chance.
_TELLING: Final = 4

_ALPHABET: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_VALID: Final = frozenset(_ALPHABET + "=\n")


def uid_of(username: str) -> int | None:
    """For rules about users (policy/decide.py)."""
    try:
        return pwd.getpwnam(username).pw_uid
    except (KeyError, ValueError):
        return None


def guest_set_user_password(ctx: Context, username: str, password: str, crypted: bool) -> dict[str, object]:
    """`password` is base64; `crypted` says that it already is a hash."""
    if not _VALID.issuperset(password):
        raise CommandError("Base64 data contains invalid characters")
    name = _name(username)  # None: refused, but the peer looks at the password first
    prefix = len(name) + 1 if name is not None else 0
    if prefix + len(password) * 3 // 4 > _LINE:
        raise CommandError("user name and password are too long")
    # One buffer, made at its final size: a bytearray that grows leaves copies behind.
    line = bytearray(prefix + len(password) * 3 // 4 + 1)
    try:
        end = _decode_into(line, prefix, password)
        if line.find(b"\n", prefix, end) >= 0 or line.find(b"\0", prefix, end) >= 0:
            raise CommandError("forbidden characters in raw password")
        if name is None:
            raise CommandError("forbidden characters in username")
        if crypted and line.find(b":", prefix, end) >= 0:
            raise CommandError("forbidden characters in crypted password")
        line[: len(name)] = name
        line[len(name)] = ord(":")
        line[end] = ord("\n")
        _chpasswd(ctx, line, prefix, end, crypted)
    finally:
        line[:] = bytes(len(line))
    return {}


def _name(username: str) -> bytes | None:
    """The name as chpasswd reads it; None when it would not be the one name of the one line."""
    try:
        name = username.encode()
    except UnicodeEncodeError:
        return None
    return None if any(c in name for c in (b"\n", b":", b"\0")) else name


def _decode_into(line: bytearray, at: int, text: str) -> int:
    """Base64 as lenient as the peer's: newlines are skipped, `=` counts as a place wherever it stands, an incomplete last
    group is dropped.  Returns the place after the last byte."""
    value = places = 0
    before = last = ""
    for char in text:
        if char == "\n":
            continue
        before, last = last, char
        value = value << 6 | (0 if char == "=" else _ALPHABET.index(char))
        places += 1
        if places == 4:
            line[at] = value >> 16
            at += 1
            if before != "=":
                line[at] = value >> 8 & 0xFF
                at += 1
            if last != "=":
                line[at] = value & 0xFF
                at += 1
            value = places = 0
    return at


def _chpasswd(ctx: Context, line: bytearray, start: int, end: int, crypted: bool) -> None:
    path = programs.find("chpasswd", ctx.root)
    if path is None:
        raise CommandError("cannot find 'chpasswd' program in PATH")
    argv = (path, "-e") if crypted else (path,)
    with memoryview(line) as whole, whole[: end + 1] as stdin:
        try:
            result = programs.run(argv, stdin=stdin, limit=LIMIT)
        except OSError as e:
            raise CommandError.from_errno("failed to create child process", e.errno or 0) from None
    if result.late:
        raise CommandError(f"child process has failed to set user password: it did not end within {LIMIT:.0f} seconds")
    if result.status is None or result.status < 0:
        raise CommandError("child process has terminated abnormally")
    if result.status:
        said = result.text() or f"exit status {result.status}"
        # A program that quotes its input must not make us tell it to the host and the log.
        if end - start >= _TELLING and _holds(result.output, line, start, end):
            said = f"exit status {result.status} (what it said quotes the password)"
        raise CommandError(f"child process has failed to set user password: {said}")


def _holds(text: bytes, line: bytearray, start: int, end: int) -> bool:
    """Whether line[start:end] stands in the text; without a copy of it."""
    size = end - start
    with memoryview(line) as whole, whole[start:end] as part, memoryview(text) as said:
        return any(said[at : at + size] == part for at in range(len(text) - size + 1))
