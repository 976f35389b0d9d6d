"""Audit records: whatever a process sends, what is written is one line, one datagram, and signed with its own name."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.builtin import COMMANDS
from privsep import audit, auditrecord
from privsep.audit import Audit, arguments, without_secrets
from privsep.auditrecord import FIELDS, as_journal, as_json, as_text, journal_field, stamped
from privsep.counters import nowhere
from privsep.jsontext import quoted, structure
from protocol import tally
from protocol.commands import BY_NAME
from protocol.commands import COMMANDS as TABLE

KEYS = [key for key, _ in FIELDS]


def about(command: str, rule: str) -> tuple[str, str]:
    return (rule, "a file:7") if rule else ("commands.allow", "policy.toml:3")


def stamp(datagram: bytes, process: str = "", pid: int = 42) -> auditrecord.Record | None:
    """By default of the process that may say such a thing."""
    parts = datagram.split(b"\0")
    if not process and len(parts) > 4:
        owner = COMMANDS.get(parts[4].decode(errors="replace"), "thawer")
        process = "front" if parts[2] == b"refused" else owner
    return stamped(datagram, process, pid, COMMANDS, about)


def native(datagram: bytes) -> list[tuple[str, bytes]]:
    """The fields of the journal's native protocol, as its description says."""
    found = []
    while datagram:
        end = datagram.index(b"\n")
        line = datagram[:end]
        if b"=" in line:
            name, _, value = line.partition(b"=")
            datagram = datagram[end + 1 :]
        else:
            size = int.from_bytes(datagram[end + 1 : end + 9], "little")
            name, value = line, datagram[end + 9 : end + 9 + size]
            assert datagram[end + 9 + size : end + 10 + size] == b"\n"
            datagram = datagram[end + 10 + size :]
        assert name.replace(b"_", b"").isalnum() and name.isupper() and not name.startswith(b"_") and len(name) <= 64
        found.append((name.decode(), value))
    return found


@pytest.fixture
def wire() -> Iterator[tuple[Audit, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.setblocking(False)
    with ours, theirs:
        yield Audit(theirs.fileno(), nowhere()), ours


def received(ours: socket.socket) -> auditrecord.Record:
    record = stamp(ours.recv(1 << 17))
    assert record is not None
    return record


def test_begin_and_end_of_one_request(wire: tuple[Audit, socket.socket]) -> None:
    trail, ours = wire
    command = BY_NAME["guest-file-open"]
    trail.begin(7, command.name, arguments(command, {"path": "/a b", "mode": "r"}))
    begin = received(ours)
    assert begin.pop("time").endswith("Z")  # type: ignore[union-attr]
    assert begin == {
        "phase": "begin", "id": 7, "process": "file", "pid": 42, "command": "guest-file-open", "domain": "file",
        "decision": "allow", "rule": "commands.allow", "origin": "policy.toml:3",
        "arguments": {"path": "/a b", "mode": "r"},
    }  # fmt: skip
    trail.end(7, command.name, error=None, took=0.0015, taken=0, given=9)
    end = received(ours)
    assert (end["phase"], end["result"], end["duration-us"], end["bytes-out"]) == ("end", "ok", 1500, 9)
    assert "bytes-in" not in end and "error" not in end
    trail.end(8, command.name, error="no such file", took=0.1, taken=3, given=0)
    failed = received(ours)
    assert (failed["result"], failed["error"], failed["bytes-in"]) == ("error", "no such file", 3)


def test_a_refusal_names_rule_and_place(wire: tuple[Audit, socket.socket]) -> None:
    trail, ours = wire
    trail.refused(9, "guest-exec", ["path", "/bin/sh"])
    record = received(ours)
    assert (record["decision"], record["rule"], record["origin"]) == ("deny", "commands.allow", "policy.toml:3")
    assert as_text(record) == "refused 9 guest-exec path=/bin/sh: not allowed by commands.allow at policy.toml:3"
    trail.refused(10, "guest-exec", [], rule="exec.backup")
    assert received(ours)["origin"] == "a file:7"


def test_every_field_is_declared_and_in_order() -> None:
    datagram = "\0".join(
        ["1", "2", "end", "3", "guest-exec", "r", "error", "text", "5", "6", "7", "path", "/x"]
    ).encode()
    lapse = "\0".join(["1", "0", "event", "", "lapse", "", "", "cause", "", "", ""]).encode()
    seen = set()
    for raw in (datagram, lapse):
        record = stamp(raw)
        assert record is not None
        assert [k for k in KEYS if k in record] == list(record)
        seen |= record.keys()
    assert seen == set(KEYS)


def test_secrets_bulk_and_masked_arguments_are_not_in_a_record() -> None:
    """By the command table's flags: each argument that is one of these, of every command."""
    marker = "cVeRySeCrEt"
    flagged = 0
    for command in TABLE:
        given = {a.name: [marker] if "ListOf" in type(a.type).__name__ else marker for a in command.args}
        shown = arguments(command, given)
        names = shown[::2]
        for arg in command.args:
            if arg.bulk:
                assert arg.name not in names
            elif arg.secret:
                assert shown[shown.index(arg.name) + 1] == audit.SECRET
            flagged += arg.bulk or arg.secret
        assert sum(marker in text for text in shown) == sum(not (a.bulk or a.secret) for a in command.args)
    assert flagged >= 5
    command = BY_NAME["guest-exec"]
    shown = arguments(command, {"path": "/bin/x", "arg": [marker]}, masked=("arg",))
    assert shown == ["path", "/bin/x", "arg", audit.MASKED]


def test_passwords_keys_contents_and_environments_are_flagged() -> None:
    assert {(c.name, a.name) for c in TABLE for a in c.args if a.secret} == {
        ("guest-set-user-password", "password"),
        ("guest-ssh-add-authorized-keys", "keys"),
        ("guest-ssh-remove-authorized-keys", "keys"),
        ("guest-file-write", "buf-b64"),
        ("guest-exec", "input-data"),
        ("guest-exec", "env"),
    }


def test_a_full_socket_drops_and_the_next_record_says_so(wire: tuple[Audit, socket.socket]) -> None:
    trail, ours = wire
    counts = trail._numbers
    sent = 0
    while not counts[tally.DROPPED]:
        trail.begin(sent, "guest-exec", ["path", "x" * 1000])
        sent += 1
        assert sent < 10000
    for _ in range(4):
        trail.begin(sent, "guest-exec", ["path", "x" * 1000])
    assert counts[tally.DROPPED] == 5 and counts[tally.RECORDS] == sent + 4
    while sent - 1:
        assert "lost" not in received(ours)
        sent -= 1
    trail.begin(1, "guest-exec", [])
    record = received(ours)
    assert record["lost"] == 5
    assert "(5 records before it were lost)" in as_text(record)
    trail.begin(2, "guest-exec", [])
    assert "lost" not in received(ours)


def test_a_begin_waits_for_room_and_nothing_else_does(wire: tuple[Audit, socket.socket]) -> None:
    trail, ours = wire
    while trail._numbers[tally.DROPPED] == 0:
        trail.end(1, "guest-exec", error=None, took=0.0, taken=0, given=0)
    begun = time.monotonic()
    assert not trail.begin(2, "guest-exec", [], patience=0)
    trail.end(1, "guest-exec", error=None, took=0.0, taken=0, given=0)
    assert time.monotonic() - begun < 0.1
    assert not trail.begin(2, "guest-exec", [], patience=200)
    assert time.monotonic() - begun >= 0.2

    def read() -> None:
        time.sleep(0.2)
        with contextlib.suppress(BlockingIOError):
            while True:
                ours.recv(1 << 17, socket.MSG_DONTWAIT)

    reader = threading.Thread(target=read)
    reader.start()
    assert trail.begin(3, "guest-exec", [])
    reader.join()


def test_an_error_that_quotes_a_secret_is_not_told() -> None:
    command = BY_NAME["guest-ssh-add-authorized-keys"]
    given_ = {"username": "alice", "keys": ["-----BEGIN OPENSSH PRIVATE KEY-----\nabc", ""]}
    assert without_secrets(command, given_, "no such user: alice") == "no such user: alice"
    for text in (
        "invalid key: -----BEGIN OPENSSH PRIVATE KEY-----\nabc",
        "invalid key: -----BEGIN OPENSSH PRIVATE KEY...",
    ):
        assert without_secrets(command, given_, text) == "(its text quotes a secret)"
    command = BY_NAME["guest-set-user-password"]
    assert "pw" not in without_secrets(command, {"username": "a", "password": "pw"}, "what is pw")


def test_a_supervisor_that_is_gone_is_no_error() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.setblocking(False)
    ours.close()
    with theirs:
        trail = Audit(theirs.fileno(), nowhere())
        trail.begin(1, "guest-exec", [])
        assert trail._numbers[tally.DROPPED] == 1


def test_a_record_that_is_too_large_goes_without_its_arguments(wire: tuple[Audit, socket.socket]) -> None:
    trail, ours = wire
    trail.begin(1, "guest-exec", [n for i in range(40) for n in (f"a{i}", "y" * 1000)])
    record = received(ours)
    assert "arguments" not in record and record["command"] == "guest-exec"


def test_arguments_are_bounded_whatever_they_are() -> None:
    """The front shows what it refuses before anybody has checked it."""
    command = BY_NAME["guest-exec"]
    deep: object = "x"
    for _ in range(200):
        deep = [deep]
    for value in (
        "p" * 10**6,
        [["a" * 100] * 1000] * 1000,
        deep,
        {"a" * 10**5: {"b": list(range(10**5))}},
        1e308,
        True,
    ):
        shown = arguments(command, {"path": value})
        assert shown[0] == "path" and 0 < len(shown[1]) <= audit.LONGEST


@given(
    st.binary(max_size=400)
    | st.lists(st.text(max_size=20), min_size=11, max_size=16).map(
        lambda t: "\0".join(t).encode("utf-8", "surrogatepass")
    )
)
def test_no_datagram_makes_a_second_line_or_field(data: bytes) -> None:
    parts = data.split(b"\0")
    for phase in (b"begin", b"end", b"refused", b"event", None):
        forged = list(parts)
        if phase is not None and len(parts) > 2:
            forged[2] = phase
        if len(forged) > 4 and phase is not None:
            forged[4] = b"guest-file-open"
        process = "fs" if phase == b"event" else "file"
        record = stamp(b"\0".join(forged), process, 5)
        if record is None:
            continue
        line = as_json(record)
        assert "\n" not in line and "\r" not in line and line.isprintable()
        whole = json.loads(line, object_pairs_hook=lambda pairs: pairs)
        keys = [k for k, _ in whole]
        assert len(set(keys)) == len(keys) and set(keys) <= set(KEYS)
        assert ("process", process) in whole and ("pid", 5) in whole
        fields = native(as_journal(record))
        assert [v for k, v in fields if k == "PRIVSEP_GA_PROCESS"] == [process.encode()]
        assert [v for k, v in fields if k == "MESSAGE_ID"] == [auditrecord.MESSAGE_ID.encode()]
        assert as_text(record).isprintable()


def test_a_forged_name_is_a_value_like_any_other() -> None:
    evil = 'x\nPRIVSEP_GA_PROCESS=fs\n","process":"fs","y":"'
    datagram = "\0".join(
        ["1", "0", "end", "3", "guest-exec", "", "error", evil, "5", "6", "7", "path", evil, "bad name", "v"]
    )
    record = stamp(datagram.encode(), "front", 9)
    assert stamp(datagram.encode().replace(b"guest-exec", evil.encode()), "front", 9) is None  # no such command
    assert record is not None
    assert json.loads(as_json(record))["process"] == "front"
    assert json.loads(as_json(record))["error"] == evil
    assert json.loads(as_json(record))["arguments"] == {"path": evil}
    fields = native(as_journal(record))
    assert [v for k, v in fields if k == "PRIVSEP_GA_PROCESS"] == [b"front"]
    assert dict(fields)["PRIVSEP_GA_ERROR"] == evil.encode()


@pytest.mark.parametrize(
    ("process", "phase", "command", "good"),
    [
        ("exec", "begin", "guest-exec", True),
        ("exec", "end", "guest-exec", True),
        ("exec", "refused", "guest-exec", True),
        ("exec", "begin", "guest-file-open", False),
        ("thawer", "begin", "guest-fsfreeze-thaw", False),
        ("front", "refused", "guest-exec", True),
        ("front", "begin", "guest-exec", False),
        ("front", "end", "guest-exec", True),
        ("fs", "event", "lapse", True),
        ("thawer", "event", "lapse", True),
        ("front", "event", "lapse", False),
        ("exec", "event", "lapse", False),
        ("exec", "begin", "no-such-command", False),
        ("front", "refused", "no-such-command", False),
    ],
)
def test_a_process_says_what_is_its_to_say(process: str, phase: str, command: str, good: bool) -> None:
    datagram = "\0".join(["1", "0", phase, "3", command, "", "ok", "", "5", "6", "7"]).encode()
    record = stamp(datagram, process)
    assert (record is not None) == good
    if record is not None and phase == "end":  # the front cannot say that something went well
        assert record["result"] == ("lost" if process == "front" else "ok")


@given(st.text() | st.text(st.characters(min_codepoint=0xD7F0, max_codepoint=0xE010)))
def test_quoted_text_is_json(text: str) -> None:
    # Two surrogates that make a pair are one character in JSON.
    assert json.loads(quoted(text)) == text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
    assert quoted(text).isprintable()


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda c: st.lists(c, max_size=4) | st.dictionaries(st.text(max_size=4), c, max_size=4),
        max_leaves=20,
    )
)
def test_structures_are_json(value: object) -> None:
    assert json.loads(structure(value, 100000)) == value
    json.loads(structure(value, 10))  # cut off, and still


def test_names_of_fields_fit_the_journal() -> None:
    for key in KEYS:
        assert len(journal_field(key)) <= 64 and journal_field(key).replace("_", "").isalnum()


def test_file_names_that_are_not_text_come_through(wire: tuple[Audit, socket.socket]) -> None:
    trail, ours = wire
    trail.end(1, "guest-file-open", error=os.fsdecode(b"cannot open /\xff"), took=0, taken=0, given=0)
    assert received(ours)["error"] == "cannot open /\\udcff"
