"""docs/audit.md has the fields, the metrics and the message id that the code has."""

from __future__ import annotations

import re
from pathlib import Path

from privsep.auditrecord import ARGUMENT, FIELDS, MESSAGE_ID, journal_field
from privsep.ctlmetrics import METRICS, P

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "audit.md").read_text()


def test_fields_and_metrics_are_documented_as_they_are() -> None:
    for key, meaning in FIELDS:
        field = f"{ARGUMENT}NAME" if key == "arguments" else journal_field(key)
        assert f"| `{key}` | `{field}` | {meaning} |\n" in TEXT
    for name, kind, meaning in METRICS:
        assert f"| `{P}{name}` | {kind} | {meaning} |\n" in TEXT
    rows = re.findall(r"^\| `", TEXT, re.MULTILINE)
    assert len(rows) == len(FIELDS) + len(METRICS)


def test_the_message_id_is_documented() -> None:
    assert f"MESSAGE_ID={MESSAGE_ID}" in TEXT
