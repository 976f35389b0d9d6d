"""The freeze's state table is whole, is what the code uses, and its diagram is current."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from privsep import freezestate as fz
from privsep import thawwire
from tests.support import diagram
from tests.support.namespace import PROJECT


def test_the_diagram_is_current() -> None:
    assert diagram.PATH.read_text() == diagram.document()


def test_no_state_has_two_ends_for_one_cause() -> None:
    assert len({(t.state, t.cause) for t in fz.TRANSITIONS}) == len(fz.TRANSITIONS)


def test_every_state_can_be_reached_and_leads_back_to_thawed() -> None:
    def reachable(start: int) -> set[int]:
        seen, waiting = set(), [start]
        while waiting:
            state = waiting.pop()
            if state not in seen:
                seen.add(state)
                waiting += [t.to for t in fz.TRANSITIONS if t.state == state]
        return seen

    every = set(range(len(fz.STATES)))
    assert reachable(fz.THAWED) == every
    assert all(fz.THAWED in reachable(state) for state in every)


def test_every_held_state_ends_when_anybody_dies() -> None:
    for state in (fz.FREEZING, fz.FROZEN, fz.THAWING):
        assert fz.step(state, fz.ORPHANED) == fz.LAPSED
        assert fz.step(state, fz.UNCONFIRMED) == fz.LAPSED
        assert fz.step(state, fz.LEFT) == fz.THAWED


def test_only_fs_can_freeze() -> None:
    assert {t.by for t in fz.TRANSITIONS if t.to in (fz.FREEZING, fz.FROZEN)} == {"fs"}


def test_what_is_not_in_the_table_cannot_happen() -> None:
    for state in range(len(fz.STATES)):
        for cause in range(1, fz.LEFT + 1):
            if not fz.can(state, cause):
                with pytest.raises(fz.Impossible):
                    fz.step(state, cause)


def test_every_lapse_has_its_words() -> None:
    lapses = {t.cause for t in fz.TRANSITIONS if t.to == fz.LAPSED} | {fz.LOST}
    assert lapses == set(range(1, len(thawwire.REASONS)))


def test_the_thawer_moves_by_the_table_alone() -> None:
    source = Path(PROJECT / "privsep" / "thawer.py").read_text()
    assert re.findall(r"self\._phase(?:: \w+)? = .*", source) == [
        "self._phase = wire.PHASE_IDLE",
        "self._phase = freezestate.step(self._phase, cause)",
    ]
