"""A reload's reading: the policy read again by a short-lived child of the supervisor, and how the result gets there.

Reading a policy takes a TOML parser and whatever it drags in, which the supervisor must neither run nor keep in memory.  So the
supervisor forks; the child gives up every capability (as uid 0 it reads what root owns, which is all that a policy may be read
from), reads the command line, qemu-ga.conf and the policy files as the start did, and writes the orders that follow
into a memfd: lines and sizes, for which the supervisor needs no parser.  What is wrong is told there too, a line each.

Nothing else of the configuration takes effect before the agent is restarted; what has changed is said.
"""

from __future__ import annotations

import os

from privsep.orders import Orders, orders_of

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

    def __init__(self, lines: list[str]) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines


def read_into(fd: int, again: Callable[[], tuple[Config, Policy]], running: Config) -> int:
    """The child's work; its exit status.  `again` reads what there is now, `running` is what the agent was started with."""
    try:
        data = _GOOD + encode(_orders(*again(), running))
        if len(data) > LIMIT:
            raise ValueError(f"the policy's slices are larger than {LIMIT} bytes")
    except Exception as e:  # whatever is wrong, the old policy stays and the administrator is told
        text = str(e) or type(e).__name__
        data = _BAD + text.encode("utf-8", "surrogateescape")[: LIMIT // 2]
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
    return 0


def _orders(config: Config, policy: Policy, running: Config) -> Orders:
    notes: list[str] = []
    for attribute, key in _AT_START.items():
        found, was = getattr(config, attribute), getattr(running, attribute)
        if attribute in _PATHS and found is not None:
            found = os.path.abspath(found)
        if found != was:
            notes.append(f"{key} of the configuration has changed: that takes effect when the agent is restarted")
        setattr(config, attribute, was)
    orders = orders_of(config, policy)
    orders.notes += tuple(notes)
    return orders


def result(fd: int) -> Orders:
    """What the child has written.  Raises Bad."""
    size = os.fstat(fd).st_size
    data = os.pread(fd, min(size, LIMIT), 0)
    if data.startswith(_GOOD):
        try:
            return decode(data[len(_GOOD) :])
        except (ValueError, KeyError):
            raise Bad(["the policy could not be read whole"]) from None
    if not data.startswith(_BAD):
        raise Bad(["the policy could not be read: its reader died"])
    raise Bad(data[len(_BAD) :].decode("utf-8", "surrogateescape").split("\n"))


def encode(orders: Orders) -> bytes:
    """Lines `name`, `auto-thaw`, `hook-limit`, `note` and, for each row, `row NAME SIZE`; an empty line; the slices."""
    rows = sorted(orders.rows)
    slices = [orders.slice(row) for row in rows]
    lines = [f"name {orders.name}", f"auto-thaw {orders.auto_thaw!r}", f"hook-limit {orders.hook_limit!r}"]
    lines += [f"note {note}" for note in orders.notes]
    lines += [f"row {row} {len(data)}" for row, data in zip(rows, slices, strict=True)]
    return "\n".join([line.replace("\n", " ") for line in lines] + ["", ""]).encode(
        "utf-8", "surrogateescape"
    ) + b"".join(slices)


def decode(data: bytes) -> Orders:
    """The inverse of `encode`.  Raises ValueError or KeyError for anything else."""
    head, _, rest = data.partition(b"\n\n")
    words: dict[str, str] = {}
    notes: list[str] = []
    slices: dict[str, bytes] = {}
    for line in head.decode("utf-8", "surrogateescape").split("\n"):
        word, _, value = line.partition(" ")
        if word == "note":
            notes.append(value)
        elif word == "row":
            name, _, size = value.partition(" ")
            slices[name], rest = rest[: int(size)], rest[int(size) :]
            if len(slices[name]) != int(size):
                raise ValueError("cut off")
        else:
            words[word] = value
    return Orders(
        words["name"],
        frozenset(slices),
        auto_thaw=float(words["auto-thaw"]),
        hook_limit=float(words["hook-limit"]),
        notes=tuple(notes),
        cut=lambda row: slices.get(row, b""),
    )
