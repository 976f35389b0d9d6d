"""The argument types of the protocol, and their check.

A type is one of the names in `SCALARS` or an instance of `ListOf`, `Struct`, `Enum` or `Alternate`.  `check_arguments`
takes the decoded `arguments` object of a request and returns it checked; the order of the checks and the words of each
error are those of QEMU's QAPI input visitor (qapi/qobject-input-visitor.c), which visits the declared members in schema
order and complains about what is left over last.

JSON integers that fit neither int64 nor uint64 arrive here as floats, as in QEMU; `bool` is never an integer.
"""

from __future__ import annotations

from protocol.errors import CommandError
from protocol.text import Long

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Final

    type_ = object
    Type = "str | ListOf | Struct | Enum | Alternate"

INT64_MIN: Final = -(1 << 63)
INT64_MAX: Final = (1 << 63) - 1
UINT64_MAX: Final = (1 << 64) - 1

# The scalar types by name, and the word that the error uses for each.
SCALARS: Final = {
    "int": "integer",
    "uint64": "uint64",
    "str": "string",
    "bool": "boolean",
    "number": "number",
}


class ListOf:
    """A list of elements of one type."""

    __slots__ = ("item",)

    def __init__(self, item: object) -> None:
        self.item = item


class Arg:
    """One member of an object: its name, type, whether it may be absent, and whether its value is a secret.

    `bulk`: base64 of any number of bytes, which the processes hand over beside the frame (privsep/frame.py)."""

    __slots__ = ("name", "type", "optional", "secret", "bulk")

    def __init__(
        self, name: str, type: object, *, optional: bool = False, secret: bool = False, bulk: bool = False
    ) -> None:
        self.name = name
        self.type = type
        self.optional = optional
        self.secret = secret
        self.bulk = bulk


class Struct:
    """An object with declared members."""

    __slots__ = ("name", "members")

    def __init__(self, name: str, *members: Arg) -> None:
        self.name = name
        self.members = members


class Enum:
    """A string out of a closed set."""

    __slots__ = ("name", "values")

    def __init__(self, name: str, *values: str) -> None:
        self.name = name
        self.values = values


class Alternate:
    """A value whose JSON type selects what it is: `scalar` or one of the enumeration's strings."""

    __slots__ = ("name", "scalar", "enum")

    def __init__(self, name: str, scalar: str, enum: Enum) -> None:
        self.name = name
        self.scalar = scalar
        self.enum = enum


# -- arguments: what the host sent

_ABSENT: Final = object()


def check_arguments(command_args: tuple[Arg, ...], given: Mapping[str, object]) -> dict[str, object]:
    """The arguments of one request, checked: declared members only, uint64 wrapped to be positive.

    Raises CommandError with the text for the first offence in the peer's order."""
    return _members(command_args, given, "")


def _members(declared: tuple[Arg, ...], given: Mapping[str, object], prefix: str) -> dict[str, object]:
    checked: dict[str, object] = {}
    for arg in declared:
        value = given.get(arg.name, _ABSENT)
        if value is _ABSENT:
            if not arg.optional:
                raise CommandError(f"Parameter '{prefix}{arg.name}' is missing")
        else:
            checked[arg.name] = _argument(arg.type, value, prefix, arg.name)
    if len(checked) != len(given):
        extra = next(name for name in given if name not in checked)
        raise CommandError(f"Parameter '{prefix}{extra}' is unexpected")
    return checked


def _wrong(path: str, expected: str) -> CommandError:
    return CommandError(f"Invalid parameter type for '{path}', expected: {expected}")


def _argument(kind: object, value: object, prefix: str, name: str) -> object:
    """One value; its full name for errors is `prefix` + `name`."""
    given = type(value)
    match kind:
        case "str":
            fits = given is str or isinstance(value, Long)
        case "int":
            fits = given is int and INT64_MIN <= value <= INT64_MAX  # type: ignore[operator]
        case "bool":
            fits = given is bool
        case "number":
            fits = given is int or given is float
        case "uint64":
            if given is int and INT64_MIN <= value <= UINT64_MAX:  # type: ignore[operator]
                return value & UINT64_MAX  # type: ignore[operator]
            raise CommandError(f"Parameter '{prefix}{name}' expects uint64")
        case ListOf():
            if given is not list:
                raise _wrong(prefix + name, "array")
            path = prefix + name
            return [_argument(kind.item, v, path, f"[{i}]") for i, v in enumerate(value)]  # type: ignore[arg-type, var-annotated]
        case Struct():
            if given is not dict:
                raise _wrong(prefix + name, "object")
            return _members(kind.members, value, f"{prefix}{name}.")  # type: ignore[arg-type]
        case Enum():
            if given is not str:
                raise _wrong(prefix + name, "string")
            if value not in kind.values:
                raise CommandError(f"Parameter '{prefix}{name}' does not accept value '{value}'")
            return value
        case Alternate():
            if given is str:
                return _argument(kind.enum, value, prefix, name)
            # The scalar's JSON type selects it; whether its value will do is another question (a fraction is a number).
            if given is bool if kind.scalar == "bool" else given is int or given is float:
                return _argument(kind.scalar, value, prefix, name)
            raise _wrong(name, kind.name)
        case _:
            raise AssertionError(f"unknown type {kind!r}")
    if not fits:
        raise _wrong(prefix + name, SCALARS[kind])
    return value


# -- results: what a worker returned


def check_result(kind: object, value: object, path: str = "return") -> None:
    """Raises ValueError, saying where, when a result does not fit its declared type; None is declared for `{}`."""
    given = type(value)
    match kind:
        case None:
            fits = value == {} and given is dict
        case "str":
            fits = given is str
        case "bool":
            fits = given is bool
        case "int":
            fits = given is int and INT64_MIN <= value <= INT64_MAX  # type: ignore[operator]
        case "uint64":
            fits = given is int and 0 <= value <= UINT64_MAX  # type: ignore[operator]
        case "number":
            fits = given is int or given is float
        case Enum():
            fits = given is str and value in kind.values
        case ListOf():
            fits = given is list
            if fits:
                for i, item in enumerate(value):  # type: ignore[arg-type, var-annotated]
                    check_result(kind.item, item, f"{path}[{i}]")
        case Struct():
            fits = given is dict
            if fits:
                _check_members(kind, value, path)  # type: ignore[arg-type]
        case Alternate():
            check_result(kind.enum if given is str else kind.scalar, value, path)
            return
        case _:
            raise AssertionError(f"unknown type {kind!r}")
    if not fits:
        raise ValueError(f"{path}: {given.__name__} is not what is declared")


def _check_members(struct: Struct, value: dict[str, object], path: str) -> None:
    left = len(value)
    for member in struct.members:
        if member.name in value:
            left -= 1
            check_result(member.type, value[member.name], f"{path}.{member.name}")
        elif not member.optional:
            raise ValueError(f"{path}.{member.name}: missing")
    if left:
        known = {m.name for m in struct.members}
        raise ValueError(f"{path}.{next(n for n in value if n not in known)}: not declared")


# -- the same, quick, for every reply that a worker sends


def fits(kind: object) -> Callable[[object], bool]:
    """What `check_result` says, as a function that was made once for the type and costs 50 ns a member.

    Bulk members are whatever can be written as base64 (`protocol/wire.py` decides), everything else is from a
    codec: containers, strings and numbers, integers from int64's least to uint64's largest."""
    made = _fits(kind)
    if isinstance(made, type):
        return lambda value: type(value) is made
    return made


def has_floats(kind: object) -> bool:
    """Whether a value of the type may have a float in it, whose text is not the C encoder's."""
    match kind:
        case ListOf():
            return has_floats(kind.item)
        case Struct():
            return any(has_floats(m.type) for m in kind.members)
    return kind == "number"


def _fits(kind: object) -> type | Callable[[object], bool]:
    """A type where nothing else is to be looked at."""
    match kind:
        case None:
            return lambda value: type(value) is dict and not value
        case "str":
            return str
        case "bool":
            return bool
        case "int":
            return _is_int
        case "uint64":
            return _is_uint64
        case "number":
            return lambda value: type(value) is float or type(value) is int
        case Enum():
            values = frozenset(kind.values)
            return lambda value: type(value) is str and value in values
        case ListOf():
            return _list_fits(_fits(kind.item))
        case Struct():
            return _struct_fits(kind)
        case _:
            raise AssertionError(f"no result has type {kind!r}")


def _list_fits(item: type | Callable[[object], bool]) -> Callable[[object], bool]:
    if isinstance(item, type):
        return lambda value: type(value) is list and not [v for v in value if type(v) is not item]
    return lambda value: type(value) is list and all(map(item, value))


def _struct_fits(struct: Struct) -> Callable[[object], bool]:
    kinds = {m.name: _anything if m.bulk else _fits(m.type) for m in struct.members}
    required = frozenset([m.name for m in struct.members if not m.optional])

    def check(value: object) -> bool:
        if type(value) is not dict:
            return False
        for name, member in value.items():
            kind = kinds.get(name)
            if type(member) is kind:
                continue
            # Most members are integers: a call for each would double their cost.
            if kind is _is_uint64:
                if type(member) is not int or member < 0:
                    return False
            elif kind is _is_int:
                if type(member) is not int or member > INT64_MAX:
                    return False
            elif kind is None or type(kind) is type or not kind(member):
                return False
        # No name stands twice, so where there are as many as there can be none is missing.
        return len(value) == len(kinds) or value.keys() >= required

    return check


def _is_int(value: object) -> bool:
    return type(value) is int and value <= INT64_MAX


def _is_uint64(value: object) -> bool:
    return type(value) is int and value >= 0


def _anything(value: object) -> bool:
    return True
