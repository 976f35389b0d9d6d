"""Every command's arguments refuse the wrong types with the peer's words, driven by the command table."""

from __future__ import annotations

import pytest

from protocol.commands import BY_NAME, COMMANDS, Command
from protocol.errors import CommandError
from protocol.schema import Alternate, Arg, Enum, ListOf, Struct, check_arguments, check_result, fits

INT_EDGES = [0, -1, 2**63 - 1, -(2**63)]
BEYOND_INT = [2**63, 2**64 - 1, 1.0, 1.5, 1e300, float(2**64)]


def good(kind: object) -> object:
    """A value that fits."""
    match kind:
        case "str":
            return ""
        case "int" | "uint64" | "number":
            return 1
        case "bool":
            return True
        case ListOf():
            return [good(kind.item), good(kind.item)]
        case Struct():
            return {m.name: good(m.type) for m in kind.members}
        case Enum():
            return kind.values[0]
        case Alternate():
            return kind.enum.values[-1]
    raise AssertionError(kind)


def wrong(kind: object, name: str) -> list[tuple[object, str]]:
    """Values that do not fit, with what is said of them."""
    path = name
    cases: list[tuple[object, str]] = []

    def refuse(expected: str, *values: object) -> None:
        cases.extend((v, f"Invalid parameter type for '{path}', expected: {expected}") for v in values)

    match kind:
        case "str":
            refuse("string", None, 1, 1.5, True, [], {}, ["x"])
        case "int":
            refuse("integer", None, "1", "", True, False, [], {}, *BEYOND_INT)
        case "bool":
            refuse("boolean", None, 0, 1, 0.0, "true", [], {})
        case "uint64":
            cases += [(v, f"Parameter '{path}' expects uint64") for v in (None, "1", True, [], {}, 1.0, 0.5, 1e300)]
        case ListOf():
            refuse("array", None, 1, "x", True, {})
            cases += [([v], text) for v, text in wrong(kind.item, f"{path}[0]")]
            cases += [([good(kind.item), v], text) for v, text in wrong(kind.item, f"{path}[1]")]
        case Struct():
            refuse("object", None, 1, "x", True, [])
            whole = good(kind)
            assert isinstance(whole, dict)
            for member in kind.members:
                rest = {k: v for k, v in whole.items() if k != member.name}
                if not member.optional:
                    cases.append((rest, f"Parameter '{path}.{member.name}' is missing"))
                cases += [({**whole, member.name: v}, t) for v, t in wrong(member.type, f"{path}.{member.name}")]
            cases.append(({**whole, "foo": 1}, f"Parameter '{path}.foo' is unexpected"))
        case Alternate():
            cases += [(v, f"Parameter '{path}' does not accept value '{v}'") for v in ("", "X", "Set", "cu")]
            if kind.scalar == "int":
                refuse(kind.name, None, True, [], {})
                refuse("integer", *BEYOND_INT)
            else:
                refuse(kind.name, None, 0, 1, 1.5, [], {})
        case _:
            raise AssertionError(kind)
    return cases


def whole(command: Command) -> dict[str, object]:
    return {a.name: good(a.type) for a in command.args}


def refusal(args: tuple[Arg, ...], given: dict[str, object]) -> str:
    with pytest.raises(CommandError) as caught:
        check_arguments(args, given)
    assert caught.value.kind == "GenericError"
    return caught.value.desc


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c.name)
def test_every_argument_of_every_command(command: Command) -> None:
    given = whole(command)
    assert check_arguments(command.args, given) == given
    required = {a.name: good(a.type) for a in command.args if not a.optional}
    assert check_arguments(command.args, required) == required
    for arg in command.args:
        if not arg.optional:
            assert (
                refusal(command.args, {k: v for k, v in given.items() if k != arg.name})
                == f"Parameter '{arg.name}' is missing"
            )
        for value, text in wrong(arg.type, arg.name):
            assert refusal(command.args, {**given, arg.name: value}) == text, value


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c.name)
def test_what_is_left_over_is_complained_about_last(command: Command) -> None:
    given = whole(command)
    assert refusal(command.args, {"foo": None, **given}) == "Parameter 'foo' is unexpected"
    for arg in command.args:
        value, text = wrong(arg.type, arg.name)[0]
        assert refusal(command.args, {"foo": 1, **given, arg.name: value}) == text


def test_offences_are_found_in_schema_order() -> None:
    args = BY_NAME["guest-file-seek"].args
    assert refusal(args, {}) == "Parameter 'handle' is missing"
    assert (
        refusal(args, {"whence": {}, "offset": "x", "handle": 1})
        == "Invalid parameter type for 'offset', expected: integer"
    )
    assert refusal(args, {"whence": {}, "handle": 1}) == "Parameter 'offset' is missing"


@pytest.mark.parametrize("value", INT_EDGES)
def test_the_edges_of_int(value: int) -> None:
    assert check_arguments(BY_NAME["guest-sync"].args, {"id": value}) == {"id": value}


@pytest.mark.parametrize(("given", "taken"), [(-1, 2**64 - 1), (-(2**63), 2**63), (2**64 - 1, 2**64 - 1), (0, 0)])
def test_uint64_takes_negative_numbers_wrapped(given: int, taken: int) -> None:
    args = BY_NAME["guest-set-memory-blocks"].args
    checked = check_arguments(args, {"mem-blks": [{"phys-index": given, "online": True}]})
    assert checked == {"mem-blks": [{"phys-index": taken, "online": True}]}


@pytest.mark.parametrize("whence", [0, 1, 2, 7, -1, "set", "cur", "end"])
def test_whence_may_be_a_number_or_a_name(whence: object) -> None:
    given = {"handle": 1, "offset": 0, "whence": whence}
    assert check_arguments(BY_NAME["guest-file-seek"].args, given) == given


@pytest.mark.parametrize("capture", [True, False, "none", "stdout", "stderr", "separated", "merged"])
def test_capture_output_may_be_a_boolean_or_a_name(capture: object) -> None:
    given = {"path": "/bin/true", "capture-output": capture}
    assert check_arguments(BY_NAME["guest-exec"].args, given) == given


def test_the_arguments_given_are_not_changed() -> None:
    given = {"mem-blks": [{"phys-index": -1, "online": True}]}
    check_arguments(BY_NAME["guest-set-memory-blocks"].args, given)
    assert given == {"mem-blks": [{"phys-index": -1, "online": True}]}


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c.name)
def test_results_are_checked_against_what_is_declared(command: Command) -> None:
    fit = fits(command.returns)
    for bad in (None, [0], 0.5, {"a": 1}, b"", True, "no such word"):
        with pytest.raises(ValueError):
            check_result(command.returns, bad)
        assert not fit(bad)
    if command.returns is None:
        check_result(None, {})
        assert fit({})
        assert not fit([])
        return
    value = good(command.returns)
    check_result(command.returns, value)
    assert fit(value)
    with pytest.raises(ValueError, match="return"):
        check_result(command.returns, None)
    if isinstance(value, dict):
        with pytest.raises(ValueError, match="not declared"):
            check_result(command.returns, {**value, "foo": 1})
        assert not fit({**value, "foo": 1})
        assert isinstance(command.returns, Struct)
        for member in command.returns.members:
            rest = {k: v for k, v in value.items() if k != member.name}
            assert fit(rest) == member.optional
            for bad in (None, b"bytes", 0.5, [0.5], {"a": 1}, -(2**63), 2**64 - 1, "no such word", True, ""):
                wrong = {**value, member.name: bad}
                try:
                    check_result(command.returns, wrong)
                except ValueError:
                    assert not fit(wrong) or member.bulk, wrong
                else:
                    assert fit(wrong), wrong
            if member.optional:
                check_result(command.returns, rest)
            else:
                with pytest.raises(ValueError, match=f"{member.name}: missing"):
                    check_result(command.returns, rest)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("int", 2**63),
        ("int", True),
        ("int", 1.0),
        ("uint64", -1),
        ("uint64", 2**64),
        ("str", b""),
        ("number", "1"),
        ("bool", 1),
    ],
)
def test_results_of_the_wrong_kind(kind: str, value: object) -> None:
    with pytest.raises(ValueError, match=r"return\.x"):
        check_result(Struct("S", Arg("x", kind)), {"x": value})
    if value != 2**64:  # which no codec has
        assert not fits(Struct("S", Arg("x", kind)))({"x": value})
        assert not fits(ListOf(Struct("S", Arg("x", kind))))([{"x": value}])
        assert not fits(ListOf(kind))([value])
        assert not fits(kind)(value)
    assert not fits(ListOf(kind))({})
    assert fits(ListOf(kind))([])
