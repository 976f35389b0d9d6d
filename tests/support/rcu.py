"""/sys/kernel/rcu_expedited, which is the machine's: other agents, and other test runs, raise it for moments too."""

from __future__ import annotations

import time
from pathlib import Path

PATH = Path("/sys/kernel/rcu_expedited")
ENOUGH = 10.0


def value() -> str:
    return PATH.read_text().strip()


def comes_back(seconds: float = ENOUGH) -> bool:
    """Whether it is 0, or is soon: nobody has it raised for longer than a freeze takes."""
    end = time.monotonic() + seconds
    while value() != "0":
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True
