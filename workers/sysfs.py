"""Small files of the kernel and of udev: read them whole, and what their lines mean.

One system call each for open, read and close: these walks are counted in system calls, so there is no buffering and no
file object.  A sysfs file is at most a page long (kernel, Documentation/filesystems/sysfs.rst).
"""

from __future__ import annotations

import os

_PAGE = 4096
_CHUNK = 1 << 16


def read_page(path: str, dir_fd: int | None = None) -> bytes:
    """A sysfs file.  Raises OSError."""
    fd = os.open(path, os.O_RDONLY, dir_fd=dir_fd)
    try:
        return os.read(fd, _PAGE)
    finally:
        os.close(fd)


def read_whole(path: str, limit: int = 1 << 24) -> bytes:
    """Any other file, at most limit bytes of it.  Raises OSError; never waits on a FIFO that has no writer."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        chunks = [os.read(fd, _CHUNK)]
        size = len(chunks[0])
        while chunks[-1] and size < limit:
            chunks.append(os.read(fd, _CHUNK))
            size += len(chunks[-1])
        return b"".join(chunks)[:limit]
    finally:
        os.close(fd)


def assignments(text: bytes, prefix: bytes = b"") -> dict[bytes, bytes]:
    """KEY=VALUE lines, those that begin with prefix: a `uevent` file (no prefix) or a record of udev (`E:`)."""
    found = {}
    for line in text.split(b"\n"):
        if line.startswith(prefix):
            key, equals, value = line[len(prefix) :].partition(b"=")
            if equals:
                found[key] = value
    return found


def numbered(names: list[str], prefix: str) -> list[int]:
    """The numbers of the names that are prefix and a decimal number, in the order of names."""
    start = len(prefix)
    return [int(n[start:]) for n in names if n.startswith(prefix) and n[start:].isdecimal() and n.isascii()]
