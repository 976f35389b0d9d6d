"""Nothing is imported behind the walls: the front may open no file at all, most workers no file of ours."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.support.agent import PROJECT

# (file, function) that imports inside, and why it may.
ALLOWED = {
    ("privsep/child.py", "_live"): "before the walls",
    ("privsep/recover.py", "main"): "a program of its own",
    ("privsep/codec.py", "_codec"): "called while the module is imported",
    ("workers/netlink.py", "_modules"): "called while the module is imported",
    ("workers/netlink.py", "_pyroute2"): "called while the module is imported",
    ("workers/inventory.py", "prepare"): "before the walls",
    ("workers/file.py", "__init__"): "of the table, which `prepare` makes before the walls",
    ("workers/inventory.py", "_add_smart"): "`prepare` has imported it",
    ("workers/programs.py", "_above"): "a module of the interpreter, in rows that may read the system's folders",
    ("policy/seal.py", "slice_for"): "the supervisor's",
    ("workers/confine.py", "_allow"): "exec has no walls, and few rules need it",
}
# Of the supervisor and of programs, which have no walls that forbid it.
OTHERS = {
    "privsep/" + n
    for n in (
        "cli.py config.py ctl.py daemon.py kernelview.py runfiles.py startup.py supervisor.py holder.py channel.py statefile.py "
        "notify.py rundir.py accounts.py spawn.py keyfile.py getopt.py usage.py children.py"
    ).split()
}
FILES = [
    str(path.relative_to(PROJECT))
    for folder in ("privsep", "privsep/sandbox", "protocol", "workers")
    for path in sorted((PROJECT / folder).glob("*.py"))
] + [f"policy/{n}.py" for n in "seal rules decide decision checks patterns rates trust".split()]


def late(path: Path) -> set[str]:
    """Functions with an import in their bodies."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef) and any(
            isinstance(n, ast.Import | ast.ImportFrom) for n in ast.walk(node)
        ):
            found.add(node.name)
    return found


@pytest.mark.parametrize("name", [f for f in FILES if f not in OTHERS])
def test_no_function_imports(name: str) -> None:
    assert {f for f in late(PROJECT / name) if (name, f) not in ALLOWED} == set()


def test_nobody_names_a_codec_that_would_be_imported() -> None:
    # utf-8, ascii and latin-1 are built in; every other name is looked up in the `encodings` package.
    for name in FILES:
        for node in ast.walk(ast.parse((PROJECT / name).read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in ("encode", "decode")
            ):
                for argument in node.args[:1]:
                    if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                        assert argument.value in ("utf-8", "ascii", "latin-1"), (name, node.lineno)
