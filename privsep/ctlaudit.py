"""`privsep-gactl audit`: the audit trail, out of the journal or a file, chosen and printed.

Which of the two the running agent says in its status.  A record in the journal is believed to be the agent's when it came from its
user, as journald saw it (`_UID`): anybody may write to the journal, but not as somebody else.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import subprocess
import time
from collections.abc import Generator, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, BinaryIO

from privsep.auditrecord import ARGUMENT, FIELDS, MESSAGE_ID, as_text, journal_field
from privsep.auditsink import FILE, JOURNAL, NONE

RESULTS = ("ok", "error", "lost", "refused")
_NUMBERS = ("id", "pid", "duration-us", "bytes-in", "bytes-out", "lost")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}

LOOK = 0.2  # seconds between two looks at a file that is followed

Record = dict[str, Any]


class AuditError(Exception):
    """The trail cannot be read; the text says why and what to do."""


def options(made: argparse.ArgumentParser) -> None:
    made.add_argument("--command", dest="wanted", metavar="NAME", help="only this command; * ? [ ] are a pattern's")
    made.add_argument("--domain", metavar="NAME", help="only commands of this domain")
    made.add_argument("--result", choices=RESULTS, help="only what ended so")
    made.add_argument("--since", metavar="TIME", help="30s, 10m, 2h, 7d ago, or a date and time (ISO 8601)")
    where = made.add_mutually_exclusive_group()
    where.add_argument("--journal", action="store_true", help="read the journal, whatever the agent's status says")
    where.add_argument("--file", metavar="PATH", help="read this file of records")
    made.add_argument("--follow", action="store_true", help="then go on with what is written from now on, until Ctrl-C")
    made.add_argument("--json", action="store_true", help="for programs: a record a line")


def records(options: argparse.Namespace, sink: str) -> Generator[Record]:
    """The records that the options ask for; `sink` is the running agent's.  Raises AuditError."""
    since = instant(options.since) if options.since else None
    if options.file:
        found = from_file(options.file, options.follow)
    elif options.journal or sink == JOURNAL:
        found = from_journal(since, *(("--follow", "--lines=all") if options.follow else ()))
    elif sink.startswith(FILE):
        found = from_file(sink[len(FILE) :], options.follow)
    elif sink == NONE:
        raise AuditError('the running agent\'s policy says that there is no audit trail ([audit] to = "none")')
    else:
        raise AuditError("the running agent's records are lines of its log (see [audit] to in its policy)")
    return chosen(found, command=options.wanted, domain=options.domain, result=options.result, since=since)


def instant(text: str, now: datetime | None = None) -> datetime:
    """`10m`: so long ago; else a date with or without a time, local unless it says otherwise.  Raises AuditError."""
    now = datetime.now(UTC) if now is None else now
    if text[:-1].isdigit() and text[-1:] in _UNITS:
        try:
            return now - timedelta(seconds=int(text[:-1]) * _UNITS[text[-1]])
        except OverflowError:
            return datetime.fromtimestamp(0, UTC)
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError):
        raise AuditError(
            f"--since {text}: neither a time ago (30s, 10m, 2h, 7d) nor a date (2026-01-31T12:00)"
        ) from None


def chosen(
    found: Iterable[Record],
    *,
    command: str | None = None,
    domain: str | None = None,
    result: str | None = None,
    since: datetime | None = None,
) -> Generator[Record]:
    for record in found:
        if command is not None and not fnmatch.fnmatchcase(str(record.get("command", "")), command):
            continue
        if domain is not None and record.get("domain") != domain:
            continue
        if result is not None and result != ("refused" if record.get("phase") == "refused" else record.get("result")):
            continue
        if since is not None and _time(record) < since:
            continue
        yield record


def _time(record: Record) -> datetime:
    try:
        return datetime.fromisoformat(str(record["time"]))
    except (KeyError, ValueError):
        return datetime.fromtimestamp(0, UTC)


def from_file(path: str, follow: bool = False) -> Iterator[Record]:
    """Of a file with a record a line; what is none (a line that was cut off by a crash) is passed over.  Raises AuditError."""
    try:
        for line in _followed(path) if follow else _lines(path):
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict) and "phase" in record:
                yield record
    except OSError as e:
        raise AuditError(f"{path}: {e.strerror}") from None


def _lines(path: str) -> Iterator[bytes]:
    """Raises OSError."""
    with open(path, "rb") as file:
        yield from file


def _followed(path: str) -> Iterator[bytes]:
    """Whole lines as they come, also of the file that takes this one's place, as when it is rotated.  Raises OSError."""
    while True:
        with open(path, "rb") as file:
            yield from _grown(file, path)


def _grown(file: BinaryIO, path: str) -> Iterator[bytes]:
    """Until another file stands at the path."""
    rest = b""
    while True:
        try:
            replaced = not os.path.samestat(os.stat(path), os.fstat(file.fileno()))
        except FileNotFoundError:  # for a moment, while it is rotated
            replaced = False
        # Whatever was written before the look above is read now: of a file that was moved away nothing is missed.
        while line := file.readline():
            rest += line
            if rest.endswith(b"\n"):
                yield rest
                rest = b""
        if replaced:
            return
        if os.fstat(file.fileno()).st_size < file.tell():  # emptied in its place
            file.seek(0)
            rest = b""
        else:
            time.sleep(LOOK)


def from_journal(since: datetime | None, *more: str) -> Iterator[Record]:
    """Raises AuditError."""
    words = ["journalctl", "--no-pager", "--quiet", "--all", "--output=json", *more]
    if since is not None:
        words.append(f"--since=@{since.timestamp():.6f}")
    words += [f"MESSAGE_ID={MESSAGE_ID}", f"_UID={os.geteuid()}"]
    try:
        process = subprocess.Popen(words, stdout=subprocess.PIPE)
    except OSError as e:
        raise AuditError(f"journalctl cannot be run: {e.strerror}") from None
    assert process.stdout is not None
    try:
        with process.stdout as lines:
            for line in lines:
                yield of_journal(json.loads(line))
    except GeneratorExit:
        process.terminate()
        process.wait()
        raise
    if process.wait():
        raise AuditError(f"journalctl failed (status {process.returncode})")


def of_journal(entry: dict[str, Any]) -> Record:
    """A record out of an entry as `journalctl --output=json` writes it."""
    record: Record = {}
    for key, _ in FIELDS:
        value = entry.get(journal_field(key))
        if value is not None:
            text = _text(value)
            record[key] = int(text) if key in _NUMBERS and text.isdigit() else text
    given = {k[len(ARGUMENT) :].lower().replace("_", "-"): _text(v) for k, v in entry.items() if k.startswith(ARGUMENT)}
    if given:
        record["arguments"] = given
    return record


def _text(value: object) -> str:
    """A field's value: text, or the numbers of its bytes where it has some that are not printable."""
    if isinstance(value, list) and all(isinstance(n, int) for n in value):
        return bytes(value).decode("utf-8", "backslashreplace")
    if isinstance(value, list):  # several values
        return str(value[-1]) if value else ""
    return str(value)


def line(record: Record) -> str:
    """For people."""
    return f"{record.get('time', '?')} {record.get('process', '?'):9} {as_text(record)}"
