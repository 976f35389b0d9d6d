"""The project's own version; what the host sees stands beside the peer's level (protocol/commands.py)."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

VERSION: Final = "0.1.0"
