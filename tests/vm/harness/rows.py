"""Rows of the table: what a run of the tests leaves for people to read, and for the run that has several runs in it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

WORDS = {"passed": "ok", "failed": "FAILED", "skipped": "cannot"}


class Row(NamedTuple):
    """A test.  `image` is the guest's; `seen` is what the test told, why it failed, or the evidence that it cannot work here."""

    image: str
    theme: str
    what: str
    result: str
    seconds: float
    seen: str

    def line(self) -> str:
        noted = f"  [{self.seen}]" if self.seen else ""
        return f"{self.result:7} {self.image:8} {self.seconds:4.0f} s  {self.theme}: {self.what}{noted}"


def append(path: Path, row: Row) -> None:
    with open(path, "a") as file:
        file.write(json.dumps(row._asdict()) + "\n")


def load(path: Path) -> list[Row]:
    return [Row(**json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


def document(rows: Iterable[Row], head: str) -> str:
    """A table in Markdown."""
    lines = [head, "", "| image | | what | result | s | seen |", "|---|---|---|---|---|---|"]
    for row in rows:
        cells = (row.image, row.theme, row.what, row.result, f"{row.seconds:.0f}", row.seen)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"
