"""An audit record as it leaves the agent: what came from a process, stamped by the supervisor, and the forms it is written in.

What a process sent is text between NULs (`privsep/audit.py`).  It is only gossip: numbers are taken when they are numbers, the
phase when it is one of the three, and everything else is data inside of a field, escaped or counted, so that no process can add
a field, a line or a record, nor sign with another's name.  Decision, domain and rule of a command are looked up in the policy here,
not believed.

Forms: a line of JSON <https://www.rfc-editor.org/rfc/rfc8259>; a datagram of the journal's native protocol
<https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>, where a value with a line feed is written with its length; a line for people.
"""

from __future__ import annotations

import time

from privsep.audit import BEGIN, END, EVENT, PARTS, REFUSED
from privsep.jsontext import quoted
from privsep.log import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Final

    Record = dict[str, str | int | dict[str, str]]

# Every field of a record, in the order in which it is written; empty ones are left out.  docs/audit.md has this table.
FIELDS: Final = (
    ("time", "when it was said, UTC, RFC 3339 with microseconds"),
    (
        "phase",
        "`begin` (before a privileged action), `end` (after it), `refused`, `event` (what the agent does by itself)",
    ),
    (
        "id",
        "the request's number: the same in `begin` and `end`; larger than every one before since the system was started",
    ),
    ("process", "the process that says so: a row of the privilege table, or `supervisor`; stamped by the supervisor"),
    ("pid", "its number; stamped by the supervisor"),
    ("command", "the protocol's command"),
    ("domain", "the domain that executes it"),
    ("decision", "`allow` or `deny`"),
    ("rule", "the id of the rule that decided; `frozen` where file systems were frozen"),
    ("origin", "where that rule stands: file and line, profile, or option"),
    ("result", "`end`: `ok`, `error`, `lost` (its worker died, was ended at its time limit, or could not be had)"),
    ("error", "`end`: the error's text, as the host has it; `refused`: the rule's reason, where it has one"),
    (
        "event",
        "`lapse` (a freeze that did not hold), `recovery` (a thaw from the journal), `policy` (a policy took over)",
    ),
    ("detail", "of an event: its cause"),
    ("duration-us", "`end`: microseconds from the decision to the reply"),
    ("bytes-in", "`end`: bytes of bulk data from the host (input of a program)"),
    ("bytes-out", "`end`: bytes of bulk data to the host"),
    ("lost", "records of this process that could not be handed over before this one"),
    (
        "arguments",
        "the command's arguments but for bulk data, as strings; lists as JSON text; `(secret)` and `(masked)` stand for values",
    ),
)

# What all our records in the journal have in common.
MESSAGE_ID: Final = "5b1d3c0e9a7f4f0f8c52d6a1e47b90c3"
IDENTIFIER: Final = "privsep-ga"
PREFIX: Final = "PRIVSEP_GA_"
ARGUMENT: Final = PREFIX + "ARG_"

FRONT: Final = "front"
_WITNESSES: Final = frozenset(("fs", "thawer"))  # of events
_PHASES: Final = frozenset((BEGIN, END, REFUSED, EVENT))
_EVENTS: Final = frozenset(("lapse", "recovery", "policy"))
_RESULTS: Final = frozenset(("ok", "error", "lost"))
_DIGITS: Final = 18
_NAME: Final = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-")
_second = (-1, "")  # the last one that was written, and its text: most records are of the same
_NOTICE: Final = 5
_WARNING: Final = 4
_INFO: Final = 6


def stamped(
    datagram: bytes, process: str, pid: int, domains: Mapping[str, str], about: Callable[[str, str], tuple[str, str]]
) -> Record | None:
    """The record, or None for what is none, or is not that process's to say.

    A worker speaks of its own commands; the front of what it refused, or lost with a worker; fs and thawer of a freeze.
    `domains`: command -> domain; `about` gives (rule id, origin) for a command and the id of a rule about its arguments."""
    parts = datagram.decode("utf-8", "backslashreplace").split("\0")
    if len(parts) < PARTS or parts[2] not in _PHASES:
        return None
    if parts[2] == EVENT:
        if process not in _WITNESSES:
            return None
        return event(parts[4] if parts[4] in _EVENTS else "unknown", parts[7], process, pid, _number(parts[0]))
    said, lost, phase, number, command, rule, result, error, took, taken, given = parts[:PARTS]
    refused = phase == REFUSED
    if process == FRONT:
        if command not in domains or phase == BEGIN:
            return None
        result = "lost"
    elif domains.get(command) != process:
        return None
    rule, origin = about(command, rule)
    found: Record = {
        "time": _instant(_number(said)),
        "phase": phase,
        "id": _number(number),
        "process": process,
        "pid": pid,
        "command": command,
        "domain": domains[command],
        "decision": "deny" if refused else "allow",
    }
    if rule:
        found["rule"] = rule
    if origin:
        found["origin"] = origin
    if phase == END:
        found["result"] = result if result in _RESULTS else "error"
    if error:
        found["error"] = error
    if phase == END and took:
        found["duration-us"] = _number(took)
    for key, value in (("bytes-in", taken), ("bytes-out", given), ("lost", lost)):
        if value and value != "0" and _number(value):
            found[key] = _number(value)
    if len(parts) > PARTS:
        names, values = parts[PARTS::2], parts[PARTS + 1 :: 2]
        arguments = {n: v for n, v in zip(names, values, strict=False) if n and _NAME.issuperset(n)}
        if arguments:
            found["arguments"] = arguments
    return found


def event(name: str, detail: str, process: str, pid: int, said: int) -> Record:
    """What the agent does by itself; `said` in microseconds since the epoch."""
    return {"time": _instant(said), "phase": EVENT, "process": process, "pid": pid, "event": name, "detail": detail}


def _number(text: str) -> int:
    return int(text) if len(text) <= _DIGITS and text.isascii() and text.isdigit() else 0


def _instant(micro: int) -> str:
    global _second
    second = micro // 1000000
    if second != _second[0]:
        try:
            t = time.gmtime(second)
        except (OverflowError, OSError, ValueError):
            t = time.gmtime(0)
        date = f"{t.tm_year:04}-{t.tm_mon:02}-{t.tm_mday:02}"
        _second = second, f"{date}T{t.tm_hour:02}:{t.tm_min:02}:{t.tm_sec:02}"
    return f"{_second[1]}.{micro % 1000000:06}Z"


def as_json(record: Record) -> str:
    """One line, without its end."""
    return "{" + ",".join([f"{quoted(key)}:{_json(value)}" for key, value in record.items()]) + "}"


def _json(value: str | int | dict[str, str]) -> str:
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, int):
        return str(value)
    return "{" + ",".join([f"{quoted(k)}:{quoted(v)}" for k, v in value.items()]) + "}"


def as_text(record: Record) -> str:
    """For people, on one line."""
    phase = record["phase"]
    if phase == EVENT:
        return printable(f"{record['event']}: {record['detail']}")
    words = [f"{phase} {record['id']} {record['command']}"]
    arguments = record.get("arguments")
    if isinstance(arguments, dict):
        words += [f"{name}={value}" for name, value in arguments.items()]
    if phase == END:
        words.append(str(record["result"]))
        if "duration-us" in record:
            words.append(f"{int(record['duration-us']) / 1000:.1f} ms")  # type: ignore[arg-type]
    text = " ".join(words)
    if phase == REFUSED:
        text += f": not allowed by {record.get('rule', '?')}"
        text += f" at {record['origin']}" if "origin" in record else ""
        text += f": {record['error']}" if "error" in record else ""
    elif "error" in record:
        text += f": {record['error']}"
    if "lost" in record:
        text += f" ({record['lost']} records before it were lost)"
    return printable(text)


def priority(record: Record) -> int:
    """As in syslog(3)."""
    if record["phase"] == REFUSED or record["phase"] == EVENT:
        return _WARNING
    return _NOTICE if record.get("result") in ("error", "lost") else _INFO


def journal_field(key: str) -> str:
    """The journal's name of a field."""
    return PREFIX + key.upper().replace("-", "_")


def as_journal(record: Record) -> bytes:
    """One datagram."""
    fields = [
        _field("MESSAGE", as_text(record)),
        _field("MESSAGE_ID", MESSAGE_ID),
        _field("PRIORITY", str(priority(record))),
        _field("SYSLOG_IDENTIFIER", IDENTIFIER),
    ]
    for key, value in record.items():
        if isinstance(value, dict):
            fields += [_field(ARGUMENT + name.upper().replace("-", "_"), text) for name, text in value.items()]
        else:
            fields.append(_field(journal_field(key), str(value)))
    return b"".join(fields)


def _field(name: str, value: str) -> bytes:
    data = value.encode("utf-8", "backslashreplace")
    if b"\n" in data:
        return name.encode() + b"\n" + len(data).to_bytes(8, "little") + data + b"\n"
    return name.encode() + b"=" + data + b"\n"
