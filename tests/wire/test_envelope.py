"""From a request's value to command and arguments, and what is said of a malformed one."""

from __future__ import annotations

import pytest

from protocol.errors import CommandError
from protocol.wire import read_request

UNSET = object()


class Seen:
    def __init__(self) -> None:
        self.id: object = UNSET
        self.has_id = False


@pytest.mark.parametrize(
    ("value", "name", "arguments"),
    [
        ({"execute": "guest-ping"}, "guest-ping", {}),
        ({"execute": "x", "arguments": {"a": 1}}, "x", {"a": 1}),
        ({"id": None, "arguments": {}, "execute": ""}, "", {}),
    ],
)
def test_reads(value: dict[str, object], name: str, arguments: dict[str, object]) -> None:
    seen = Seen()
    assert read_request(value, seen) == (name, arguments)
    assert seen.has_id is ("id" in value)
    assert seen.id is value.get("id", UNSET)


MALFORMED = [
    ([], "QMP input must be a JSON object"),
    ("guest-ping", "QMP input must be a JSON object"),
    (None, "QMP input must be a JSON object"),
    (1, "QMP input must be a JSON object"),
    ({}, "QMP input lacks member 'execute'"),
    ({"arguments": {}}, "QMP input lacks member 'execute'"),
    ({"execute": 1}, "QMP input member 'execute' must be a string"),
    ({"execute": None}, "QMP input member 'execute' must be a string"),
    ({"execute": "a", "foo": 1}, "QMP input member 'foo' is unexpected"),
    ({"foo": 1}, "QMP input member 'foo' is unexpected"),
    ({"exec-oob": "a"}, "QMP input member 'exec-oob' is unexpected"),
    ({"execute": "a", "arguments": []}, "QMP input member 'arguments' must be an object"),
    ({"execute": "a", "arguments": None}, "QMP input member 'arguments' must be an object"),
    ({"execute": "a", "arguments": "x"}, "QMP input member 'arguments' must be an object"),
    ({"execute": "a", "\xe9\0": 1}, "QMP input member '\xe9\0' is unexpected"),
]


@pytest.mark.parametrize(("value", "text"), MALFORMED)
@pytest.mark.parametrize("id", [UNSET, None, 3, {"a": []}])
def test_complains_and_keeps_the_id(value: object, text: str, id: object) -> None:
    seen = Seen()
    if isinstance(value, dict) and id is not UNSET:
        value = {**value, "id": id}
    with pytest.raises(CommandError) as caught:
        read_request(value, seen)
    assert (caught.value.desc, caught.value.kind) == (text, "GenericError")
    if isinstance(value, dict) and id is not UNSET:
        assert seen.has_id
        assert seen.id == id
    else:
        assert not seen.has_id
