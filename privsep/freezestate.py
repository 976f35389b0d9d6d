"""A freeze as a state machine: its states, what moves it from one to the next, and who may cause that.  No I/O, no clock.

The thawer is in one of these states and moves by `step` alone; what is not in the table cannot happen.  Its numbers are
those on the wire (`privsep/thawwire.py`).  When the thawer is dead, whoever thaws in its place does `LEFT`.
docs/freeze-states.md is generated from the table.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

THAWED: Final = 0  # nothing is held
FREEZING: Final = 1  # registered; maybe frozen
FROZEN: Final = 2
THAWING: Final = 3  # asked to
LAPSED: Final = 4  # thawing because it had to, and the host was not told yet
STATES: Final = ("thawed", "freezing", "frozen", "thawing", "lapsed")

# Causes.  The first seven are the reasons of a lapse, with their numbers on the wire.
DEADLINE: Final = 1
UNCONFIRMED: Final = 2
NOT_BACK: Final = 3
ORPHANED: Final = 4
BROKEN: Final = 5
LOST: Final = 6
STUCK: Final = 7
REGISTER: Final = 8
DONE: Final = 9
ASK: Final = 10
FREE: Final = 11
LEFT: Final = 12


class Transition:
    """`by` are the processes that can cause it, `why` says how."""

    __slots__ = ("state", "cause", "to", "by", "why")

    def __init__(self, state: int, cause: int, to: int, by: str, why: str) -> None:
        self.state = state
        self.cause = cause
        self.to = to
        self.by = by
        self.why = why


_FS: Final = "fs"
_THAWER: Final = "thawer"
_SUPERVISOR: Final = "supervisor"
_OTHERS: Final = "fs, supervisor, service manager"

TRANSITIONS: Final = (
    Transition(THAWED, REGISTER, FREEZING, _FS, "registers what it is about to freeze; the deadline runs"),
    Transition(FREEZING, DONE, FROZEN, _FS, "says what became of each FIFREEZE"),
    Transition(FREEZING, ASK, THAWING, _FS, "asks for the thaw of a freeze that failed"),
    Transition(FROZEN, ASK, THAWING, _FS, "asks for the thaw"),
    Transition(LAPSED, ASK, THAWING, _FS, "asks for the thaw, and will be told of the lapse"),
    Transition(THAWING, FREE, THAWED, _THAWER, "FITHAW has answered EINVAL for all"),
    Transition(LAPSED, FREE, THAWED, _THAWER, "the same, and nobody who could still freeze is left"),
    Transition(THAWING, STUCK, LAPSED, _THAWER, "FITHAW fails; it goes on trying"),
    Transition(FREEZING, DEADLINE, LAPSED, _THAWER, "the deadline passes; fs is killed"),
    Transition(FROZEN, DEADLINE, LAPSED, _THAWER, "the deadline passes; fs is killed"),
    Transition(FREEZING, UNCONFIRMED, LAPSED, _FS, "ends"),
    Transition(FROZEN, UNCONFIRMED, LAPSED, _FS, "ends before the host was told"),
    Transition(THAWING, UNCONFIRMED, LAPSED, _FS, "ends before the host was told"),
    Transition(FROZEN, NOT_BACK, LAPSED, _THAWER, "fs ended and no other took over in time"),
    Transition(FREEZING, ORPHANED, LAPSED, _SUPERVISOR, "ends"),
    Transition(FROZEN, ORPHANED, LAPSED, _SUPERVISOR, "ends"),
    Transition(THAWING, ORPHANED, LAPSED, _SUPERVISOR, "ends"),
    Transition(FREEZING, BROKEN, LAPSED, _FS, "breaks its protocol; it is killed"),
    Transition(FROZEN, BROKEN, LAPSED, _FS, "breaks its protocol; it is killed"),
    Transition(THAWING, BROKEN, LAPSED, _FS, "breaks its protocol; it is killed"),
    Transition(FREEZING, LEFT, THAWED, _OTHERS, "thaws in place of a dead thawer, and journals the lapse"),
    Transition(FROZEN, LEFT, THAWED, _OTHERS, "thaws in place of a dead thawer, and journals the lapse"),
    Transition(THAWING, LEFT, THAWED, _OTHERS, "thaws in place of a dead thawer, and journals the lapse"),
    Transition(LAPSED, LEFT, THAWED, _OTHERS, "thaws in place of a dead thawer"),
)

_NEXT: Final = {(t.state, t.cause): t.to for t in TRANSITIONS}


class Impossible(Exception):
    """No such transition: our own mistake."""


def step(state: int, cause: int) -> int:
    """The next state.  Raises Impossible."""
    try:
        return _NEXT[state, cause]
    except KeyError:
        raise Impossible(f"{STATES[state]}, {cause}") from None


def can(state: int, cause: int) -> bool:
    return (state, cause) in _NEXT
