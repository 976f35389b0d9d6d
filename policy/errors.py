"""The one way in which a policy can be wrong, and the help that the message gives.

A reader of a file does not stop at the first fault: it collects every `Problem` and raises one PolicyError with all of them, so
that an administrator mends a file once.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


class Problem:
    """One fault.  `path` "" where it is in no file (the command line); `line` and `column` count from 1, 0: not known."""

    __slots__ = ("path", "line", "column", "text")

    def __init__(self, text: str, path: str = "", line: int = 0, column: int = 0) -> None:
        self.text = text
        self.path = path
        self.line = line
        self.column = column

    def place(self) -> str:
        """`file:line:column` as far as it is known."""
        return ":".join([self.path, *(str(n) for n in (self.line, self.column) if n)])

    def __str__(self) -> str:
        return f"{self.place()}: {self.text}" if self.path else self.text


class PolicyError(Exception):
    """A policy that cannot be followed as written; the text says where, and what would be valid.

    `problems` are all of its faults in the order of the files; the text has a line for each."""

    def __init__(self, *what: str | Problem) -> None:
        self.problems = tuple([w if isinstance(w, Problem) else Problem(w) for w in what])
        super().__init__("\n".join(map(str, self.problems)))


def nearest(name: str, choices: Iterable[str]) -> str:
    """The end of an error: " (did you mean X?)", or nothing where no choice is near."""
    import difflib  # only where something fails anyway

    found = difflib.get_close_matches(name, list(choices), 1, 0.5)
    return f" (did you mean {found[0]}?)" if found else ""


def listed(name: str, choices: Iterable[str]) -> str:
    """The same for an unknown name out of a list, which may be several names, or one with blanks around it."""
    if not name:
        return " (there is a comma too many)"
    pieces = name.replace(";", " ").replace(",", " ").split()
    if len(pieces) > 1 or ";" in name:
        near = nearest(pieces[0] if pieces else name, choices)
        return f" (names are separated by commas, without blanks){near}"
    return nearest(name.strip(), choices)
