"""Bad values for every argument of every command, through the whole agent: each an error in the peer's words, and no
worker dies of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from protocol.commands import COMMANDS, Command
from protocol.schema import Alternate, Enum, ListOf, Struct
from tests.support.agent import Agent
from tests.support.namespace import isolated

pytestmark = pytest.mark.root

MEGABYTE = "m" * (1 << 20)
WRONG_TYPES: dict[str, list[object]] = {
    "int": ["1", True, 1.5, None, [], {}, 2**63, 2**64, -(2**63) - 1, "", MEGABYTE],
    "uint64": ["1", True, 1.5, None, [], {}, 2**64, ""],
    "str": [1, True, 1.5, None, [], {}, 2**64],
    "bool": [0, 1, "true", None, [], {}, 1.5],
    "number": ["1", True, None, [], {}],
}
# Right type, no sense: for arguments where no such value can do anything to a machine.
SENSELESS = ["", "\0", "a\0b", MEGABYTE, "\ufffd\u0001", "../../../..", "/"]
HARMLESS = {
    ("guest-shutdown", "mode"),
    ("guest-file-open", "mode"),
    ("guest-ssh-get-authorized-keys", "username"),
}


def good(kind: object) -> object:
    """A value of the right type that does nothing."""
    if isinstance(kind, ListOf):
        return []
    if isinstance(kind, Struct):
        return {m.name: good(m.type) for m in kind.members if not m.optional}
    if isinstance(kind, Enum):
        return kind.values[0]
    if isinstance(kind, Alternate):
        return good(kind.scalar)
    return {"int": -1, "uint64": 1 << 60, "str": "\0", "bool": False, "number": -1}[str(kind)]


def bad(kind: object) -> Iterator[object]:
    if isinstance(kind, ListOf):
        yield from ("x", 1, None, {}, True)
        for value in bad(kind.item):
            yield [value]
    elif isinstance(kind, Struct):
        yield from ("x", 1, None, [], True)
        for member in kind.members:
            rest = {m.name: good(m.type) for m in kind.members if not m.optional and m is not member}
            if not member.optional:
                yield rest
            for value in bad(member.type):
                yield {**rest, member.name: value}
        yield {**{m.name: good(m.type) for m in kind.members if not m.optional}, "surplus": 1}
    elif isinstance(kind, Enum):
        yield from ("no such value", 1, None, [], "")
    elif isinstance(kind, Alternate):
        yield from (None, [], {}, 1.5, "no such value")
    else:
        yield from WRONG_TYPES[str(kind)]


def requests(command: Command) -> Iterator[dict[str, Any]]:
    needed = {a.name: good(a.type) for a in command.args if not a.optional}
    yield {**needed, "surplus": 1}
    for arg in command.args:
        rest = {k: v for k, v in needed.items() if k != arg.name}
        if not arg.optional:
            yield rest
        for value in bad(arg.type):
            yield {**rest, arg.name: value}
        if (command.name, arg.name) in HARMLESS:
            for text in SENSELESS:
                yield {**rest, arg.name: text}


@isolated
def test_every_bad_argument_of_every_command_is_an_error_and_kills_nobody() -> None:
    count = 0
    with Agent("--policy", "qemu-ga") as agent:
        for command in COMMANDS:
            for arguments in requests(command):
                agent.client.request(command.name, arguments, id=count)
                reply = agent.client.reply()
                what = (command.name, json.dumps(arguments)[:200], reply)
                assert reply.get("id") == count and "error" in reply, what
                assert reply["error"]["class"] == "GenericError" and reply["error"]["desc"], what
                assert "inside the agent" not in reply["error"]["desc"], what
                assert "worker" not in reply["error"]["desc"], what
                count += 1
        assert agent.call("guest-ping") == {}
        assert " ended by " not in agent.log()
    assert count > 400


@isolated
def test_text_that_is_no_text_is_a_parse_error_and_nothing_more() -> None:
    with Agent("--policy", "qemu-ga") as agent:
        for raw in (b'"\\ud800"', b'"\xc3\x28"', b'"\xed\xa0\x80"', b'"\\udc00\\ud800"', b'"\xff"'):
            agent.client.raw(b'{"execute":"guest-file-open","arguments":{"path":' + raw + b"}}\n")
            assert agent.client.reply()["error"]["class"] == "GenericError"
            agent.client.sync()
        assert agent.call("guest-ping") == {}
