"""What a test adds to its row of the table."""

from __future__ import annotations

from typing import NoReturn

import pytest


class Seen:
    """What a test saw, for the table."""

    def __init__(self, notes: list[str]) -> None:
        self._notes = notes

    def __call__(self, text: str) -> None:
        self._notes.append(text)

    def cannot(self, evidence: str) -> NoReturn:
        """This cannot work on this machine or kernel; the evidence is what was found instead."""
        pytest.skip(evidence)
