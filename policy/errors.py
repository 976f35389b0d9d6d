"""The one way in which a policy can be wrong, and the help that the message gives."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


class PolicyError(Exception):
    """A policy that cannot be followed as written; the text says where, and what would be valid."""


def nearest(name: str, choices: Iterable[str]) -> str:
    """The end of an error: " (did you mean X?)", or nothing where no choice is near."""
    import difflib  # only where something fails anyway

    found = difflib.get_close_matches(name, list(choices), 1, 0.5)
    return f" (did you mean {found[0]}?)" if found else ""
