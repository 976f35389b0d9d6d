"""Feeds the parser the same bytes in many ways, and puts what comes out into a form that can be compared.

Every test of the parser goes through `events`, so each input is parsed whole, byte by byte and in random pieces, and all
must agree.
"""

from __future__ import annotations

import random

from protocol.dialect import ParseError, Parser, Value


def flat(value: object) -> list[object]:
    """A value as a list of marks and typed scalars: comparable at any depth, with 1, 1.0 and True told apart."""
    out: list[object] = []
    todo: list[object] = [("value", value)]
    while todo:
        kind, item = todo.pop()  # type: ignore[misc]
        if kind == "mark":
            out.append(item)
        elif isinstance(item, dict):
            out.append("{")
            todo.append(("mark", "}"))
            for key in reversed(item):
                todo += [("value", item[key]), ("mark", (str, key))]
        elif isinstance(item, list):
            out.append("[")
            todo.append(("mark", "]"))
            todo += [("value", element) for element in reversed(item)]
        else:
            out.append((type(item), repr(item)))
    return out


def form(event: Value | ParseError) -> tuple[str, object]:
    match event:
        case Value(value):
            return "value", flat(value)
        case ParseError(desc):
            return "error", desc


def feed(pieces: list[bytes], parser: Parser | None = None) -> list[Value | ParseError]:
    parser = parser or Parser()
    return [event for piece in pieces for event in parser.feed(piece)]


def random_pieces(data: bytes, seed: int) -> list[bytes]:
    chance = random.Random(seed)
    longest = chance.choice((2, 10, 100, 2000, 100_000))
    pieces = []
    pos = 0
    while pos < len(data):
        stop = pos + chance.randint(1, longest)
        pieces.append(data[pos:stop])
        pos = stop
    return pieces


def events(data: bytes, *, bytewise: bool = True, seeds: int = 3) -> list[Value | ParseError]:
    """What the bytes yield, after having seen that it does not depend on the pieces."""
    whole = feed([data])
    expected = [form(e) for e in whole]
    if bytewise:
        one_by_one = feed([data[i : i + 1] for i in range(len(data))])
        assert [form(e) for e in one_by_one] == expected, "byte by byte"
    for seed in range(seeds):
        pieces = random_pieces(data, seed)
        assert [form(e) for e in feed(pieces)] == expected, f"split into {[len(p) for p in pieces]}"
    return whole


def outcomes(data: bytes, **how: object) -> list[object]:
    """Values as they are, errors as their text without the common beginning."""
    found: list[object] = []
    for event in events(data, **how):  # type: ignore[arg-type]
        match event:
            case Value(value):
                found.append(value)
            case ParseError(desc):
                found.append("! " + desc.removeprefix("JSON parse error, "))
    return found
