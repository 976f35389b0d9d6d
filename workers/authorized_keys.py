"""What an authorized_keys file says and how it changes: bytes in, bytes out.

Facts: sshd(8), section AUTHORIZED_KEYS FILE FORMAT; RFC 4253 section 6.6 for the key blob.  Which lines count, their order and
that no newline is written at the end are as with qemu-ga 10.2.  One difference: a line is also removed when only the blanks
around it differ from the key, because that is how guest-ssh-get-authorized-keys tells it.

The peer's rule for a key that is added is only: no newline in it and no `#` in front.  `acceptable` adds what can never be
meant (control characters, more than 16 KiB); `well_formed` is the whole check, for profiles that ask for it.
"""

from __future__ import annotations

import binascii

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Final

KEY_LIMIT: Final = 16 * 1024  # bytes of one line; sshd's own limit is 8 KiB for a key, options come on top
_BLANKS: Final = " \t\r\n\f\v"


def acceptable(key: str) -> bool:
    """Whether the line may be written at all.  A CR at its end is what a file with DOS line ends leaves behind."""
    try:
        length = len(key.encode())
    except UnicodeEncodeError:  # a lone surrogate
        return False
    if length > KEY_LIMIT or key.lstrip(_BLANKS).startswith("#"):
        return False
    body = key.removesuffix("\r")
    return not any((c < " " and c != "\t") or c == "\x7f" for c in body)


def well_formed(key: str) -> bool:
    """Whether sshd would take the line for a key: `[options] type base64 [comment]`, the type standing in the blob too."""
    if not acceptable(key):
        return False
    words = _words(key.strip(_BLANKS))
    return any(_is_key(kind, blob) for kind, blob in ((words[i], words[i + 1]) for i in range(len(words) - 1)))


def _words(line: str) -> list[str]:
    """The first three words; a blank inside double quotes (as options have) separates nothing."""
    words: list[str] = []
    word = ""
    quoted = escaped = False
    for char in line:
        if char in " \t" and not quoted:
            if word:
                words.append(word)
            if len(words) == 3:
                return words
            word = ""
            continue
        if char == '"' and not escaped:
            quoted = not quoted
        escaped = char == "\\" and not escaped
        word += char
    return [*words, word] if word else words


def _is_key(kind: str, text: str) -> bool:
    try:
        blob = binascii.a2b_base64(text.encode("ascii"), strict_mode=True)
        name = kind.encode("ascii")
    except ValueError:  # binascii.Error and the encoding errors
        return False
    fields, at = 0, 0
    while at + 4 <= len(blob):
        length = int.from_bytes(blob[at : at + 4], "big")
        field = blob[at + 4 : at + 4 + length]
        if not fields and field != name:
            return False
        if fields and b"-cert-" in name:  # certificates also have fields that are no strings
            return True
        fields, at = fields + 1, at + 4 + length
    return fields > 1 and at == len(blob)


def listed(content: bytes) -> list[str]:
    """The keys of a file, stripped, without blank lines and comments, the last line first."""
    keys = []
    for line in reversed(content.decode("utf-8", "surrogateescape").split("\n")):
        key = line.strip(_BLANKS)
        if key and not key.startswith("#"):
            keys.append(key)
    return keys


def _lines(content: bytes) -> list[bytes]:
    return content.split(b"\n") if content else []


def added(content: bytes, keys: Sequence[str]) -> bytes:
    """`content` with the keys that no line of it equals; comments and blank lines stay as they are."""
    lines = _lines(content)
    known = set(lines)
    for key in keys:
        line = key.encode()
        if line not in known:
            known.add(line)
            lines.append(line)
    return b"\n".join(lines)


def removed(content: bytes, keys: Sequence[str]) -> bytes:
    """`content` without the lines that are one of the keys."""
    gone = {key.encode().strip() for key in keys}
    return b"\n".join(line for line in _lines(content) if line.strip() not in gone)
