"""The same malformed inputs to a real qemu-ga and to our parser, envelope and argument check: the same lines back.

Only harmless commands are sent, everything else is blocked, and the agent keeps its files in the test's folder.  Floods of
more errors than the parser is patient with are documented to differ and are not generated.
"""

from __future__ import annotations

import json
import os
import random
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from protocol import wire
from protocol.commands import BY_NAME
from protocol.dialect import PATIENCE, ParseError, Parser
from protocol.errors import CommandError
from protocol.schema import check_arguments
from tests.support.peer import PROGRAM
from tests.wire import test_dialect

pytestmark = pytest.mark.peer

HARMLESS = ["guest-ping", "guest-sync", "guest-sync-delimited"]
# What 7.2 words differently from 10.2, which our words are.
WORDING = [(re.compile(rb"has been disabled: the command is not allowed"), rb"has been disabled")]


class Conversation:
    """One connection to one agent."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(20)
        self.socket.connect(str(path))
        self.received = b""
        self.number = 0

    def ask(self, data: bytes) -> bytes:
        """Everything that comes back for `data`, up to the answer of a sync that follows it."""
        self.number += 1
        mark = b"%d" % (990_000_000 + self.number)
        self.socket.sendall(data + b'\xff{"execute":"guest-sync","arguments":{"id":' + mark + b"}}\n")
        end = b'{"return": ' + mark + b"}\n"
        while end not in self.received:
            got = self.socket.recv(1 << 16)
            assert got, "the peer is gone"
            self.received += got
        answer, self.received = self.received.split(end, 1)
        return answer


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Conversation]:
    folder = tmp_path_factory.mktemp("peer")
    path = folder / "socket"
    names = subprocess.run(
        [PROGRAM, "-b", "help"], capture_output=True, text=True, check=True, timeout=10
    ).stdout.split()
    blocked = ",".join(n for n in names if n not in HARMLESS)
    child = subprocess.Popen(
        [PROGRAM, "-m", "unix-listen", "-p", path, "-t", folder, "-f", folder / "pid", "-b", blocked],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={"QGA_CONF": "/nonexistent", "PATH": os.environ["PATH"]},
    )
    try:
        for _ in range(200):
            if path.exists():
                break
            time.sleep(0.05)
        yield Conversation(path)
    finally:
        child.kill()
        child.wait(10)


class Slot:
    id: object = None
    has_id = False


def ours(data: bytes) -> bytes:
    """The lines that our pure layers make of it, with the same commands allowed."""
    out = b""
    for event in Parser().feed(data):
        slot = Slot()
        try:
            if isinstance(event, ParseError):
                raise CommandError(event.desc)
            name, arguments = wire.read_request(event.value, slot)
            command = BY_NAME.get(name)
            if command is None:
                raise CommandError.not_found(name)
            if name not in HARMLESS:
                raise CommandError.disabled(name)
            checked = check_arguments(command.args, arguments)
            value = checked.get("id", {})
            line = wire.success(value, slot.id) if slot.has_id else wire.success(value)
            out += wire.delimited(line) if name == "guest-sync-delimited" else line
        except CommandError as e:
            out += wire.failure(e.kind, e.desc, slot.id) if slot.has_id else wire.failure(e.kind, e.desc)
    return out


RESET = b"\xff"  # follows each input, with a sync: it is answered too, and ends what is unfinished


def same(peer: Conversation, data: bytes) -> None:
    expected = ours(data + RESET)
    if expected.count(b"\n") >= PATIENCE:
        return
    got = peer.ask(data)
    for pattern, replacement in WORDING:
        expected = pattern.sub(replacement, expected)
        got = pattern.sub(replacement, got)
    assert got == expected, data


def table() -> list[bytes]:
    return [d for d, _ in (*test_dialect.VALUES, *test_dialect.ERRORS)]


@pytest.mark.parametrize("data", table())
def test_the_tables_inputs(peer: Conversation, data: bytes) -> None:
    same(peer, data)


ENVELOPES: list[object] = [
    [], "guest-ping", None, 7, 1.5, {}, {"id": 3}, {"execute": 1, "id": 3}, {"execute": None}, {"exec-oob": "guest-ping"},
    {"execute": "guest-ping", "foo": 1}, {"execute": "guest-ping", "arguments": []}, {"execute": "nope", "id": "é\u007f"},
    {"execute": "guest-ping", "arguments": None}, {"execute": "", "id": None}, {"execute": "guest-info"},
    {"execute": "guest-ping", "arguments": {"x": 1}}, {"execute": "guest-sync"}, {"execute": "no\0pe"},
    {"execute": 1, "foo": 1}, {"arguments": 1, "execute": 1}, {"arguments": 1, "foo": 1}, {"foo": 1, "bar": 2, "baz": 3},
    {"é": 1, "arguments": None, "execute": None}, {"a" * n: n for n in range(20)}, {"execute": 1, "x" * 30: 2, "yy": 3},
    *({"execute": "guest-sync", "arguments": {"id": v}, "id": v}
      for v in (0, -1, 2**63 - 1, -(2**63), 2**63, 2**64 - 1, 1.0, 0.1, 1e300, True, None, "x", [], [[1.5, "é"]], {"a": "\0"})),
]  # fmt: skip


@pytest.mark.parametrize("value", ENVELOPES, ids=repr)
def test_envelopes(peer: Conversation, value: object) -> None:
    same(peer, json.dumps(value).encode())
    same(peer, json.dumps(value, ensure_ascii=False).encode() + b"\n")


ATOMS = [
    b'{"execute":"guest-ping"}', b'{"execute":"guest-sync","arguments":{"id":5},"id":[1]}', b"{", b"}", b"[", b"]", b":", b",",
    b'"a"', b'"a":1', b'"a":1,', b"'b'", b"1", b"-", b"0", b"01", b"1.", b"1.5", b"e", b"E", b"1e5", b"1e", b"true", b"nul",
    b" ", b"\t", b"\n", b"\r", b"#", b"/", b"%d", b"NaN", b"\0", b"\x01", b"\x0b", b"\x7f", b"\x80", b"\xc3", b"\xa9", b"\xc0",
    b"\xfe", b"\xff", b'"', b"'", b"\\", b'"\\u00', b'"\\ud83d', b"\\ude00", b'"\\x"', b'"\\n"', b'"\xe2\x82\xac"', b'"\xe2\x82"',
    b"\xf8\x88\x80\x80\x80", b"\xef\xbf\xbf", b"\xed\xa0\x80", b'{"id":', b'{"execute":',
]  # fmt: skip


@pytest.mark.parametrize("seed", range(40))
def test_random_rows_of_tokens_and_half_tokens(peer: Conversation, seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(25):
        same(peer, b"".join(chance.choices(ATOMS, k=chance.randint(1, 25))))


@pytest.mark.parametrize("seed", range(20))
def test_requests_with_a_few_bytes_changed(peer: Conversation, seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(25):
        data = bytearray(
            b'{"execute": "guest-sync", "id": [1, -2.5e3, true, null, {"a": "\\u00e9\\n\xe2\x82\xac"}], '
            b'"arguments": {"id": 12}}\n'
        )
        for _ in range(chance.randint(1, 4)):
            place = chance.randrange(len(data))
            match chance.randrange(3):
                case 0:
                    data[place] = chance.randrange(256)
                case 1:
                    del data[place]
                case _:
                    data.insert(place, chance.choice(b"{}[]:,\"'\\ 0e-\n\xff\x01"))
        same(peer, bytes(data))


@pytest.mark.parametrize("seed", range(10))
def test_random_bytes(peer: Conversation, seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(25):
        same(peer, chance.randbytes(chance.randint(1, 60)))
