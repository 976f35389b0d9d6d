"""getopt_long(3) as glibc has it, in small: permuted words, abbreviated long options, attached optional arguments, its texts.

The standard library's module of this name imports gettext and with it 7 ms of others, has no optional arguments, and
words its errors otherwise; qemu-ga's command line is glibc's to the letter.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Final

NONE: Final = 0
REQUIRED: Final = 1
OPTIONAL: Final = 2

# What an option that cannot be taken is reported as.
ERROR: Final = "?"


def options(
    words: Sequence[str], table: Sequence[tuple[str, str, int]], program: str, *, permute: bool = True
) -> Iterator[tuple[str, str | None]]:
    """(code, argument) for each option of the command line; (ERROR, message) for one that cannot be taken, then on.

    table     rows of long name, code, NONE/REQUIRED/OPTIONAL; a code of one letter is the short option too, and
              a code `X:NAME` is another name of X, with which an abbreviation is not ambiguous
    program   what the messages begin with
    permute   words that are no options are skipped; without it (POSIXLY_CORRECT) the first one ends the options
    """
    rest = list(reversed(words))
    while rest:
        word = rest.pop()
        if word == "--":
            return
        if word.startswith("--"):
            yield _long(word[2:], rest, table, program)
        elif word.startswith("-") and len(word) > 1:
            yield from _short(word[1:], rest, table, program)
        elif not permute:
            return


def _long(word: str, rest: list[str], table: Sequence[tuple[str, str, int]], program: str) -> tuple[str, str | None]:
    name, sign, value = word.partition("=")
    found = [row for row in table if row[0] == name] or [row for row in table if row[0].startswith(name)]
    if not found:
        return ERROR, f"{program}: unrecognized option '--{word}'"
    if any(row[1].partition(":")[0] != found[0][1] for row in found[1:]):
        possible = " ".join(f"'--{row[0]}'" for row in found)
        return ERROR, f"{program}: option '--{word}' is ambiguous; possibilities: {possible}"
    full, code, kind = found[0]
    if sign:
        if kind == NONE:
            return ERROR, f"{program}: option '--{full}' doesn't allow an argument"
        return code, value
    if kind == REQUIRED:
        if not rest:
            return ERROR, f"{program}: option '--{full}' requires an argument"
        return code, rest.pop()
    return code, None


def _short(
    letters: str, rest: list[str], table: Sequence[tuple[str, str, int]], program: str
) -> Iterator[tuple[str, str | None]]:
    for place, letter in enumerate(letters, 1):
        kind = next((row[2] for row in table if row[1] == letter), None)
        if kind is None:
            yield ERROR, f"{program}: invalid option -- '{letter}'"
        elif kind == NONE:
            yield letter, None
        else:
            if place < len(letters):
                yield letter, letters[place:]
            elif kind == OPTIONAL:
                yield letter, None
            elif rest:
                yield letter, rest.pop()
            else:
                yield ERROR, f"{program}: option requires an argument -- '{letter}'"
            return
