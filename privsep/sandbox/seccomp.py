"""Load a row's system call filter, as `packaging/filters.py` compiled it out of `rules.py` when the programs were installed.

Compiled ahead, because libseccomp and the rules would cost each process more than its start may take, and because what a
process runs under is then a file that can be looked at.  A file is one line that names the row, the machine and a checksum of
`rules.py`, then the BPF instructions.  The checksum is compared with the `rules.py` beside this file, so that a filter
of another version is never used in silence.
"""

from __future__ import annotations

import binascii
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_LONGEST: Final = 4096 * 8 + 256  # the kernel takes 4096 instructions


class NoFilter(Exception):
    """There is no filter that fits; the text says what to do."""


def stamp() -> str:
    """Eight hexadecimal digits that change with the rules.  Raises OSError."""
    with open(os.path.join(os.path.dirname(__file__), "rules.py"), "rb", 0) as f:
        return f"{binascii.crc32(f.read()):08x}"


def file_name(row: str, machine: str) -> str:
    return f"{row}.{machine}"


def header(row: str, machine: str, rules: str) -> bytes:
    return f"privsep-ga filter: {row} on {machine}, rules {rules}\n".encode("ascii")


def load(folder: str, row: str) -> bytes:
    """The instructions.  Raises NoFilter."""
    machine = os.uname().machine
    path = f"{folder}/{file_name(row, machine)}"
    try:
        with open(path, "rb", 0) as f:
            data = f.read(_LONGEST)
        wanted = header(row, machine, stamp())
    except OSError as e:
        raise NoFilter(f"no system call filter: {e.filename}: {e.strerror}; install the programs again") from None
    if not data.startswith(wanted):
        raise NoFilter(f"{path} was made from other rules; install the programs again")
    return data[len(wanted) :]
