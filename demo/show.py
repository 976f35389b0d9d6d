"""How the demo looks: one line for each thing said, colours on a terminal only."""

from __future__ import annotations

import os
import sys

_COLOUR = sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
_WIDTH = 150  # where a reply is cut
_acts = 0


class Broken(Exception):
    """A promise was not kept."""


def _line(code: str, mark: str, text: str) -> None:
    print(f"\033[{code}m{mark}\033[0m{text}" if _COLOUR else f"{mark}{text}", flush=True)


def act(title: str) -> None:
    global _acts
    _acts += 1
    print()
    _line("1", f"{_acts}. {title}", "")


def sent(text: str) -> None:
    _line("36", "   host  > ", text)


def received(text: str, seconds: float) -> None:
    if len(text) > _WIDTH:
        text = text[:_WIDTH] + " ..."
    _line("35", "   agent < ", f"{text}   ({seconds * 1000:.1f} ms)")


def check(holds: object, text: str) -> None:
    """Say that it holds, or raise Broken."""
    if not holds:
        raise Broken(f"not as promised: {text}")
    if text:
        _line("32", "      ok   ", text)


def note(text: str) -> None:
    _line("33", "      --   ", text)


def plain(text: str) -> None:
    print(text, flush=True)


def failed(text: str) -> None:
    sys.stdout.flush()
    mark = "FAILED: "
    print(f"\033[1;31m{mark}\033[0m{text}" if _COLOUR else mark + text, file=sys.stderr, flush=True)
