"""The argument types of the protocol, and their check.

A type is one of the names in `SCALARS` or an instance of `ListOf`, `Struct`, `Enum` or `Alternate`.  `check_arguments`
takes the decoded `arguments` object of a request and returns it checked; the order of the checks and the words of each
error are those of QEMU's QAPI input visitor (qapi/qobject-input-visitor.c), which visits the declared members in schema
order and complains about what is left over last.

JSON integers that fit neither int64 nor uint64 arrive here as floats, as in QEMU; `bool` is never an integer.
"""

from __future__ import annotations

from protocol.errors import CommandError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
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
    """One member of an object: its name, type, whether it may be absent, and whether its value is a secret."""

    __slots__ = ("name", "type", "optional", "secret")

    def __init__(self, name: str, type: object, *, optional: bool = False, secret: bool = False) -> None:
        self.name = name
        self.type = type
        self.optional = optional
        self.secret = secret


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
