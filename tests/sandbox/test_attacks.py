"""The attack table is as committed, and each wall stops something that the others would let through."""

from __future__ import annotations

import pytest

from privsep.domains import DOMAINS, Domain
from tests.sandbox import attack, stage
from tests.sandbox.attacks import ATTACKS
from tests.support.namespace import isolated

pytestmark = [pytest.mark.root]


def test_the_table_is_as_committed() -> None:
    assert attack.differences(attack.measure(), attack.EXPECTED.read_text()) == []


def test_the_committed_table_is_complete() -> None:
    cells = attack.cells(attack.EXPECTED.read_text())
    assert {process for process, _ in cells} == set(attack.ROWS)
    assert {a for _, a in cells} == {a.name for a in ATTACKS}


def test_nothing_comes_through_from_the_front() -> None:
    cells = attack.cells(attack.EXPECTED.read_text())
    assert [a for (process, a), outcome in cells.items() if process == "front" and outcome == "YES"] == []


# A wall, and those in front of it that hide it as long as they stand.
WALLS = {
    "seccomp": "",
    "landlock": "seccomp",
    "network": "seccomp",
    "uid": "seccomp landlock",
    "caps": "seccomp landlock",
}


def has(wall: str, row: Domain) -> bool:
    """Whether there is something to take away."""
    match wall:
        case "seccomp":
            return row.filtered
        case "landlock":
            return row.paths is not None
        case "network":
            return row.network == "none"
        case "uid":
            return row.user != "root"
        case _:
            return "ALL" not in row.caps


@pytest.mark.parametrize(("wall", "row"), [(w, d.name) for w in WALLS for d in DOMAINS if has(w, d)], ids="-".join)
@isolated
def test_without_it_something_comes_through(wall: str, row: str) -> None:
    before = frozenset(WALLS[wall].split())
    with stage.scene() as scene:
        if before:
            with_it = stage.column(row, scene, before)
        else:
            committed = attack.cells(attack.EXPECTED.read_text())
            with_it = [committed[row, a.name] for a in ATTACKS]
        without_it = stage.column(row, scene, before | {wall})
    gained = [a.name for a, x, y in zip(ATTACKS, with_it, without_it, strict=True) if x != "YES" and y == "YES"]
    assert gained


@pytest.mark.parametrize("row", [d.name for d in DOMAINS])
@isolated
def test_without_no_new_privs_there_is_no_process_or_privileges_can_be_gained(row: str) -> None:
    with stage.scene() as scene:
        try:
            outcomes = stage.column(row, scene, frozenset({"seccomp", "no_new_privs"}))
        except RuntimeError as e:
            # Landlock is not to be had without it, so the process ends before its first request.
            assert f"status {71 << 8}" in str(e)
            return
    assert outcomes[[a.name for a in ATTACKS].index("new privileges by exec")] == "YES"
