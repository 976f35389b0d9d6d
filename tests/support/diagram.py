"""docs/freeze-states.md out of privsep/freezestate.py: `python -m tests.support.diagram` writes it."""

from __future__ import annotations

from privsep.freezestate import STATES, TRANSITIONS
from tests.support.namespace import PROJECT

PATH = PROJECT / "docs" / "freeze-states.md"


def document() -> str:
    arrows = dict.fromkeys((STATES[t.state], STATES[t.to], by) for t in TRANSITIONS for by in (t.by,))
    lines = [
        "# States of a freeze",
        "",
        "Generated from `privsep/freezestate.py` by `python -m tests.support.diagram`; a test checks that it is current.",
        "",
        "```mermaid",
        "stateDiagram-v2",
        "    [*] --> thawed",
        *(f"    {state} --> {to}: {by}" for state, to, by in arrows),
        "```",
        "",
        "| from | to | who | how |",
        "|---|---|---|---|",
        *(f"| {STATES[t.state]} | {STATES[t.to]} | {t.by} | {t.why} |" for t in TRANSITIONS),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PATH.write_text(document())
