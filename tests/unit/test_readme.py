"""The README's figures are those of docs/performance.md and docs/vm-table.md, in which nothing failed."""

from __future__ import annotations

from tests.support import readme


def test_the_figures_are_current() -> None:
    text = readme.README.read_text()
    assert readme.render(text) == text, "run python -m tests.support.readme"


def test_the_table_of_the_guests_is_whole_and_green() -> None:
    rows = [
        line.split(" | ")
        for line in readme.GUESTS.read_text().splitlines()
        if line.startswith(("| plain ", "| selinux "))
    ]
    modules = {path.stem.removeprefix("test_") for path in (readme.TREE / "tests" / "vm").glob("test_*.py")}
    assert {row[1] for row in rows} == modules
    assert {row[3] for row in rows} <= {"ok", "cannot"}
