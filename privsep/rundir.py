"""The runtime directory: the freeze journal and the status are kept there.

It has to be on a tmpfs whatever the state folder is on, because it is written while disks are frozen: /run, and where that is
none (containers, minimal systems) /dev/shm.  Agents with state folders of their own have directories of their own.
"""

from __future__ import annotations

import binascii
import errno
import os
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Final

NAME: Final = "privsep-ga"
_PLACES: Final = ("/run", "/dev/shm")  # noqa: S108 - what is made there is checked to be ours
_IN_MEMORY: Final = (b"tmpfs", b"ramfs")


def runtime_dir(statedir: str, uid: int, environ: Mapping[str, str] | None = None) -> str:
    """The directory's path; it need not exist yet.

    In this order: what the service manager made (RUNTIME_DIRECTORY); for root /run/privsep-ga, with the checksum of the
    state folder's path below it unless that is the usual one; for other users XDG_RUNTIME_DIR, else the state folder."""
    environ = os.environ if environ is None else environ
    given = environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    if given:
        return given
    real = os.path.realpath(statedir)
    if uid != 0:
        mine = environ.get("XDG_RUNTIME_DIR")
        return f"{mine}/{NAME}" if mine else real
    base = next((p for p in _PLACES if in_memory(p)), _PLACES[0])
    if real in (os.path.realpath("/var/run"), "/run"):
        return f"{base}/{NAME}"
    return f"{base}/{NAME}/{binascii.crc32(os.fsencode(real)):08x}"


def in_memory(path: str) -> bool:
    """Whether the path is on a file system that no disk can stop."""
    try:
        device = os.stat(path).st_dev
    except OSError:
        return False
    if os.major(device):  # a block device is behind it
        return False
    wanted = b" %d:%d " % (os.major(device), os.minor(device))
    try:
        with open("/proc/self/mountinfo", "rb") as f:
            for line in f:
                if wanted in line:
                    return line.partition(b" - ")[2].split(b" ", 1)[0] in _IN_MEMORY
    except OSError:
        pass
    return False


def make(path: str, uid: int) -> None:
    """Make the directory, and check that it is one, ours, and that nobody else may write it.  Raises OSError."""
    if is_instance(path):
        _make_one(os.path.dirname(path), uid)
    _make_one(path, uid)


def _make_one(path: str, uid: int) -> None:
    try:
        os.mkdir(path, 0o755)
    except FileExistsError:
        pass
    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, "Not a directory of our own", path)
    if found.st_uid not in (uid, 0) or found.st_mode & 0o022:
        raise PermissionError(errno.EPERM, "Others may write it or own it", path)


def is_instance(path: str) -> bool:
    """Whether it is the directory of an agent with a state folder of its own."""
    return os.path.basename(os.path.dirname(path)) == NAME


def remove(path: str, *files: str) -> None:
    """Remove a directory that nobody needs any more, and these files in it; what cannot be removed stays."""
    try:
        for file in files:
            if os.path.lexists(file):
                os.unlink(file)
        os.rmdir(path)
    except OSError:
        pass
