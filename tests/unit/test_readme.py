"""The README's figures are those of docs/performance.md."""

from __future__ import annotations

from tests.support import readme


def test_the_figures_are_current() -> None:
    text = readme.README.read_text()
    assert readme.render(text, readme.MEASURED.read_text()) == text, "run python -m tests.support.readme"
