"""docs/operations.md explains every line that the agent can log as an error or a warning, and no line that it cannot.

The lines are collected from the source: the arguments of `log.error` and `log.warning`, and of the exceptions that end up in
them.  A row of the document's tables begins with the line in backticks, capital words standing for what varies.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

TREE = Path(__file__).resolve().parents[2]
DOCUMENT = TREE / "docs" / "operations.md"
HOST = "## What the host sees"  # errors that are no log lines
# Whose text is logged as it is, by a call that adds nothing to it: exceptions, and functions that return it.
RAISED = {"StartError", "ChannelError", "DaemonError", "NoFilter", "StillFrozen", "SinkError"}
RETURNED = {"complaint"}
TOOLS = ("ctl.py", "caller.py", "kernelview.py")  # privsep-gactl prints, it logs nothing


def pieces(node: ast.expr) -> list[str] | None:
    """The constant parts of a text, what varies being between them; None for what is no text at all."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [node.value]
    if isinstance(node, ast.JoinedStr):
        found = [""]
        for part in node.values:
            if isinstance(part, ast.Constant):
                found[-1] += str(part.value)
            else:
                found.append("")
        return found
    return None


def texts(node: ast.expr | None) -> Iterator[list[str]]:
    if isinstance(node, ast.IfExp):
        yield from texts(node.body)
        yield from texts(node.orelse)
    elif node is not None:
        found = pieces(node)
        if found is not None and re.search(r"[a-z]{2}", "".join(found)):
            yield found


def said(tree: ast.AST) -> Iterator[tuple[ast.expr | None, str]]:
    """Each expression that is, or may be, the text of a line, and what is added to it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name in RETURNED:
            yield from ((n.value, "") for n in ast.walk(node) if isinstance(n, ast.Return))
        if not isinstance(node, ast.Call) or not node.args:
            continue
        function = node.func
        name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        if name in ("error", "warning") and "log" in ast.unparse(function):
            yield node.args[0], ""
        elif name in RAISED or name == "_say":
            yield node.args[-1], ""  # a key may stand before it
        elif name == "_give_up":
            yield node.args[0], "; the agent ends"


def sources() -> Iterator[Path]:
    for package in ("privsep", "workers", "policy"):
        yield from (p for p in sorted((TREE / package).rglob("*.py")) if p.name not in TOOLS)


@functools.cache
def anything() -> tuple[re.Pattern[str], ...]:
    """Every text in the source that is long enough to be told from others: lines are also put together elsewhere first."""
    found = []
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            parts = pieces(node) if isinstance(node, ast.expr) else None
            if parts is not None and max(map(len, parts)) >= 10:
                found.append(re.compile(".+?".join(map(re.escape, parts))))
    return tuple(found)


def logged() -> dict[str, tuple[str, re.Pattern[str]]]:
    """Skeleton (`...` for what varies) -> (file, pattern of such a line)."""
    lines: dict[str, tuple[str, re.Pattern[str]]] = {}
    for path in sources():
        for node, added in said(ast.parse(path.read_text())):
            for parts in texts(node):
                parts[-1] += added
                pattern = ".+?".join(map(re.escape, parts))
                lines["...".join(parts)] = str(path.relative_to(TREE)), re.compile(pattern)
    return lines


def told() -> list[str]:
    """The lines that the document explains."""
    rows = DOCUMENT.read_text().partition(HOST)[0].splitlines()
    return [line for row in rows if row.startswith("| `") for line in re.findall(r"`([^`]+)`", row.split(" | ")[0])]


LOGGED = logged()
TOLD = told()


def test_the_collector_finds_lines_of_each_kind() -> None:
    assert len(LOGGED) > 50
    assert "auto-thaw is 0: a freeze that the host does not end lasts for ever" in LOGGED
    assert "... ended by ..." in LOGGED and "the state folder ... is no directory" in LOGGED


@pytest.mark.parametrize("skeleton", LOGGED)
def test_the_document_explains_it(skeleton: str) -> None:
    place, pattern = LOGGED[skeleton]
    assert any(pattern.fullmatch(line) for line in TOLD), (
        f"{place} logs what docs/operations.md does not explain: {skeleton}"
    )


@pytest.mark.parametrize("line", TOLD)
def test_the_agent_can_say_it(line: str) -> None:
    by_log = any(pattern.fullmatch(line) for _, pattern in LOGGED.values())
    assert by_log or any(pattern.fullmatch(line) for pattern in anything()), f"nothing logs {line!r} any more"
