"""A reload's reading: the policy read again by a short-lived child of the supervisor, and how the result gets there.

Reading a policy takes a TOML parser and whatever it drags in, which the supervisor must neither run nor keep in memory.  So the
supervisor forks; the child gives up every capability (as uid 0 it reads what root owns, which is all that a policy may be read
from), reads the command line, qemu-ga.conf and the policy files as the start did, and writes the policy into a memfd, in plain
lines (`policy/lines.py`).  What is wrong is told there too, a line each.

Nothing else of the configuration takes effect before the agent is restarted; what has changed is said.
"""

from __future__ import annotations

import os

from policy import lines
from policy.errors import PolicyError
from policy.model import replaced

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

    from policy.model import Policy
    from privsep.config import Config

LIMIT: Final = 4 << 20  # bytes of a result
_GOOD: Final = b"good\n"
_BAD: Final = b"bad\n"

# What of the configuration is looked at once, at start: attribute -> its name in qemu-ga.conf.
_AT_START: Final = {
    "daemonize": "daemon",
    "method": "method",
    "path": "path",
    "logfile": "logfile",
    "pidfile": "pidfile",
    "hook": "fsfreeze-hook",
    "statedir": "statedir",
    "verbose": "verbose",
    "retry": "retry-path",
}
_PATHS: Final = ("statedir",)  # made absolute by the start


class Bad(Exception):
    """The policy cannot be followed; `lines` say why."""

    def __init__(self, why: list[str]) -> None:
        super().__init__("\n".join(why))
        self.lines = why


def read_into(fd: int, again: Callable[[], tuple[Config, Policy]], running: Config) -> int:
    """The child's work; its exit status.  `again` reads what there is now, `running` is what the agent was started with."""
    try:
        data = _GOOD + lines.encode(_with_notes(*again(), running))
        if len(data) > LIMIT:
            raise ValueError(f"the policy is larger than {LIMIT} bytes")
    except Exception as e:  # whatever is wrong, the old policy stays and the administrator is told
        text = str(e) or type(e).__name__
        data = _BAD + text.encode("utf-8", "surrogateescape")[: LIMIT // 2]
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
    return 0


def _with_notes(config: Config, policy: Policy, running: Config) -> Policy:
    notes = list(policy.notes)
    for attribute, key in _AT_START.items():
        found, was = getattr(config, attribute), getattr(running, attribute)
        if attribute in _PATHS and found is not None:
            found = os.path.abspath(found)
        if found != was:
            notes.append(f"{key} of the configuration has changed: that takes effect when the agent is restarted")
    return replaced(policy, notes=tuple(notes))


def result(fd: int) -> Policy:
    """What the child has written.  Raises Bad."""
    size = os.fstat(fd).st_size
    data = os.pread(fd, min(size, LIMIT), 0)
    if data.startswith(_GOOD):
        try:
            return lines.decode(data[len(_GOOD) :])
        except (ValueError, LookupError, PolicyError):
            raise Bad(["the policy could not be read whole"]) from None
    if not data.startswith(_BAD):
        raise Bad(["the policy could not be read: its reader died"])
    raise Bad(data[len(_BAD) :].decode("utf-8", "surrogateescape").split("\n"))
