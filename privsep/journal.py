"""The freeze journal: what a survivor needs to know to thaw, and to tell that a freeze did not hold.

A file on a tmpfs (it must take writes while disks are frozen) to which fs, thawer and recovery append whole records,
each by a single write on an O_APPEND descriptor.  A record is a line `KEY CYCLE FIELDS .`; it begins and ends with a
newline and closes with a dot, so that one that was cut short by a death can neither pass for a shorter one nor spoil the
next.  Lines that are not whole are passed over.

    boot ID                        first: the journal of another boot is void
    begin C SECONDS                a freeze cycle starts; SECONDS is its deadline, 0 none
    hook C freeze|thaw             before the hook is called: from now on `thaw` is due, or is not due any more
    hook C off|again               the freeze hook failed, so none is due; the hook worker died in `thaw`, so it is due again
    hold C MAJ:MIN MOUNT-ID PATH   before FIFREEZE: this superblock may be frozen from now on
    rcu C 0, rcu-back C            rcu_expedited was 0 and is about to be raised; it was put back
    commit C                       the host was told that the freeze holds
    lapse C SECONDS REASON         the freeze did not hold, and the host does not know yet
    thawed C                       none of the cycle's superblocks is frozen any more
    told C                         the host knows of the lapse

Paths and reasons are percent-escaped.  The fold is pure: the same bytes give the same state, whoever asks.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

BOOT_ID: Final = "/proc/sys/kernel/random/boot_id"
_LIMIT: Final = 32 * 1024 * 1024  # bytes that are read; a cycle of a thousand longest paths is 4 MiB


class Entry:
    """One superblock that may be frozen, and a mount through which it was reached."""

    __slots__ = ("cycle", "major", "minor", "mount", "path")

    def __init__(self, cycle: int, major: int, minor: int, mount: int, path: str) -> None:
        self.cycle = cycle
        self.major = major
        self.minor = minor
        self.mount = mount
        self.path = path

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Entry) and all(getattr(self, n) == getattr(other, n) for n in self.__slots__)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Entry({self.cycle}, {self.major}:{self.minor}, {self.mount}, {self.path!r})"


class Lapse:
    """A freeze that did not hold: of which cycle, what its limit was in seconds (0: none), and why."""

    __slots__ = ("cycle", "seconds", "reason")

    def __init__(self, cycle: int, seconds: int, reason: str) -> None:
        self.cycle = cycle
        self.seconds = seconds
        self.reason = reason

    def text(self) -> str:
        """The error for the host.  Host tools look for its second half's first words."""
        return f"couldn't hold writes: fsfreeze is limited up to {self.seconds} seconds: {self.reason}"


class JournalState:
    """What the journal says.

    cycle      number of the last cycle, 0 if there was none; its time limit in `seconds`
    entries    superblocks that may be frozen still
    committed  the host was told that it holds
    lapse      one that the host was not told of
    hook_due   the freeze hook ran and the thaw hook did not
    rcu        "0", what rcu_expedited is to be put back to; None: it is not changed
    """

    __slots__ = ("boot", "cycle", "seconds", "entries", "committed", "lapse", "hook_due", "rcu")

    def __init__(self) -> None:
        self.boot = ""
        self.cycle = 0
        self.seconds = 0
        self.entries: list[Entry] = []
        self.committed = False
        self.lapse: Lapse | None = None
        self.hook_due = False
        self.rcu: str | None = None

    @property
    def pending(self) -> bool:
        """Whether somebody has to do something: thaw, put back, or run the thaw hook."""
        return bool(self.entries) or self.hook_due or self.rcu is not None

    @property
    def clear(self) -> bool:
        """Whether nothing would be lost with the journal."""
        return not self.pending and self.lapse is None


def escape(text: str) -> str:
    """Printable ASCII without blanks."""
    data = text.encode("utf-8", "surrogateescape")
    return "".join(chr(b) if 0x21 <= b <= 0x7E and b != 0x25 else f"%{b:02X}" for b in data) or "%"


def unescape(text: str) -> str:
    """The reverse.  Raises ValueError."""
    if text == "%":
        return ""
    first, *rest = text.encode("ascii").split(b"%")
    out = [first]
    for piece in rest:
        if len(piece) < 2:
            raise ValueError("cut short")
        out.append(bytes((int(piece[:2], 16),)) + piece[2:])
    return b"".join(out).decode("utf-8", "surrogateescape")


def fold(data: bytes, boot: str = "") -> JournalState:
    """The state that the records add up to; an empty one when `boot` is given and the journal is of another boot."""
    state = JournalState()
    for line in data.split(b"\n"):
        words = line.split(b" ")
        if len(words) < 3 or words[-1] != b".":
            continue
        try:
            fields = [w.decode("ascii") for w in words[:-1]]
            if fields[0] == "boot":
                state.boot = fields[1]
            else:
                _apply(state, fields[0], int(fields[1]), fields[2:])
        except (ValueError, IndexError):
            continue
    if boot and state.boot != boot:
        return JournalState()
    return state


def _apply(state: JournalState, key: str, cycle: int, fields: list[str]) -> None:
    if key == "begin":
        state.seconds = int(fields[0])
        state.cycle = cycle
        state.entries = []
        state.committed = False
    elif key == "hook":
        if fields[0] in ("freeze", "again"):
            state.hook_due = True
        elif fields[0] in ("thaw", "off"):
            state.hook_due = False
    elif key == "hold":
        major, _, minor = fields[0].partition(":")
        entry = Entry(cycle, int(major), int(minor), int(fields[1]), unescape(fields[2]))
        if cycle == state.cycle:
            state.entries.append(entry)
    elif key == "rcu":
        if fields[0] == "0":  # no other value is ever raised, so none is ever put back
            state.rcu = "0"
    elif key == "rcu-back":
        state.rcu = None
    elif key == "commit":
        state.committed = state.committed or cycle == state.cycle
    elif key == "lapse":
        if state.lapse is None or state.lapse.cycle != cycle:  # the first reason given is the cause
            state.lapse = Lapse(cycle, int(fields[0]), unescape(fields[1]))
    elif key == "thawed":
        if cycle == state.cycle:
            state.entries = []
            state.committed = False
    elif key == "told" and state.lapse is not None and state.lapse.cycle == cycle:
        state.lapse = None


def boot_id(root: str = "") -> str:
    """This boot's id; "" where the kernel does not say."""
    try:
        with open(root + BOOT_ID, "rb", 0) as file:
            return file.read(64).decode("ascii", "replace").strip()
    except OSError:
        return ""


class Journal:
    """The journal behind a descriptor (O_APPEND; readable too, except where it is only written)."""

    __slots__ = ("fd", "_boot")

    def __init__(self, fd: int, boot: str) -> None:
        self.fd = fd
        self._boot = boot

    def append(self, *records: str) -> None:
        """Write records, all by one write.  Raises OSError when it is not written whole."""
        data = "".join(f"\n{record} .\n" for record in records).encode("ascii")
        if os.write(self.fd, data) != len(data):
            raise OSError(28, os.strerror(28))

    def read(self) -> JournalState:
        """Raises OSError."""
        parts = []
        at = 0
        while at < _LIMIT and (part := os.pread(self.fd, 1 << 20, at)):
            parts.append(part)
            at += len(part)
        return fold(b"".join(parts), self._boot)

    def begin(self, cycle: int, seconds: int) -> None:
        """Start a cycle on an empty file.  Only when nothing is pending.  Raises OSError."""
        os.ftruncate(self.fd, 0)
        self.append(f"boot {self._boot}", f"begin {cycle} {seconds}")


def hold_record(entry: Entry) -> str:
    return f"hold {entry.cycle} {entry.major}:{entry.minor} {entry.mount} {escape(entry.path)}"


def lapse_record(lapse: Lapse) -> str:
    return f"lapse {lapse.cycle} {lapse.seconds} {escape(lapse.reason)}"
