"""Which processors there are and which are on line, in two reads where nothing was plugged.

Facts: the kernel's Documentation/ABI/testing/sysfs-devices-system-cpu and Documentation/admin-guide/cputopology.rst.  `present`
and `online` are lists of ranges; a processor without an `online` file of its own cannot be taken off line.
"""

from __future__ import annotations

import errno
import os

from protocol.errors import CommandError
from workers.sysfs import numbered, read_page

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

FOLDER: Final = "/sys/devices/system/cpu"
_LIST: Final = 1 << 16  # bytes of a list, more than the kernel's page


class Processors:
    """Rows of guest-get-vcpus.  The two lists stay open; who has which file is looked up again when `present` has changed."""

    __slots__ = ("_root", "_present", "_online", "_seen", "_known")

    def __init__(self, root: str) -> None:
        self._root = root
        self._seen = b""  # `present` when `_known` was made
        self._known: list[tuple[int, bool]] = []  # number, whether it can be taken off line
        try:
            self._present = os.open(f"{root}{FOLDER}/present", os.O_RDONLY)
            self._online = os.open(f"{root}{FOLDER}/online", os.O_RDONLY)
        except OSError:
            self._present = self._online = -1

    def rows(self) -> list[dict[str, object]]:
        """Raises CommandError."""
        if self._online < 0:
            return _walk(self._root)
        try:
            present = os.pread(self._present, _LIST, 0)
            online = numbers(os.pread(self._online, _LIST, 0))
        except (OSError, ValueError):
            return _walk(self._root)
        if present != self._seen:
            found = _walk(self._root)
            self._known = [(row["logical-id"], row["can-offline"] is True) for row in found]  # type: ignore[misc]
            self._seen = present
            return found
        return [{"logical-id": n, "online": n in online, "can-offline": removable} for n, removable in self._known]


def numbers(text: bytes) -> set[int]:
    """Those of a list as the kernel writes it: 0-3,8.  Raises ValueError."""
    found: set[int] = set()
    for part in text.strip().split(b","):
        first, dash, last = part.partition(b"-")
        if part:
            found.update(range(int(first), int(last if dash else first) + 1))
    return found


def _walk(root: str) -> list[dict[str, object]]:
    """Each processor's own files.  Raises CommandError."""
    try:
        folder = os.open(root + FOLDER, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as e:
        raise CommandError.from_errno(f"failed to list entries: {FOLDER}", e.errno or 0) from None
    try:
        cpus: list[dict[str, object]] = []
        # By its path: of a descriptor listdir makes a copy, with three system calls more.
        for number in numbered(os.listdir(root + FOLDER), "cpu"):
            online, removable = True, True
            try:
                online = read_page(f"cpu{number}/online", folder)[:1] != b"0"
            except FileNotFoundError:
                removable = False
            except OSError as e:
                if e.errno == errno.ENODEV:
                    continue  # unplugged meanwhile
                raise CommandError.from_errno(f'pread("{FOLDER}/cpu{number}//online")', e.errno or 0) from None
            cpus.append({"logical-id": number, "online": online, "can-offline": removable})
        return cpus
    finally:
        os.close(folder)
