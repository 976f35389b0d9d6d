"""The os-release file: bytes to the values that guest-get-osinfo reports.  Pure.

Facts: os-release(5) says that the file is a list of shell-compatible assignments; what qemu-ga 7.2 and 10.2 make of it was
asked of the program: an ini body in which a line that is neither comment, section nor assignment spoils the whole file; an
unquoted value ends at the first blank, then at the first `;`; in double quotes a backslash covers `$ ' " \\ backtick`.
Deviations on purpose: single quotes are quotes, and an unclosed quote does not repeat the last character.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

# Where the file is looked for, in this order, when the environment does not say.
PATHS: Final = ("/etc/os-release", "/usr/lib/os-release")

# Key of the file -> member of the reply, in the order of the reply.
MEMBERS: Final = {
    "ID": "id",
    "NAME": "name",
    "PRETTY_NAME": "pretty-name",
    "VERSION": "version",
    "VERSION_ID": "version-id",
    "VARIANT": "variant",
    "VARIANT_ID": "variant-id",
}

_COVERED: Final = "$'\"\\`"


def parse_os_release(text: bytes) -> dict[str, str]:
    """The members that the file has.  Raises ValueError if it is not UTF-8 or a line is no assignment."""
    found: dict[str, str] = {}
    ours = True
    # To the peer the file is a C string.
    for number, line in enumerate(text.partition(b"\0")[0].decode("utf-8").split("\n"), 1):
        line = line.strip(" \t\r\f\v")
        if not line or line[0] == "#":
            continue
        if line[0] == "[":
            ours = line == "[os-release]"
            continue
        key, equals, value = line.partition("=")
        key = key.rstrip(" \t")
        if not equals or not key:
            raise ValueError(f"line {number} is no assignment")
        if ours and key in MEMBERS:
            found[key] = unquote(value.lstrip(" \t"))
    return {member: found[key] for key, member in MEMBERS.items() if key in found}


def unquote(value: str) -> str:
    """One value as the host gets it; what stands behind a closing quote is dropped."""
    match value[:1]:
        case "'":
            return value[1:].partition("'")[0]
        case '"':
            return _double_quoted(value)
    return value.partition(" ")[0].partition(";")[0]


def _double_quoted(value: str) -> str:
    if "\\" not in value:
        return value[1:].partition('"')[0]
    out: list[str] = []
    at, end = 1, len(value)
    while at < end and value[at] != '"':
        if value[at] == "\\" and at + 1 < end and value[at + 1] in _COVERED:
            at += 1
        out.append(value[at])
        at += 1
    return "".join(out)
