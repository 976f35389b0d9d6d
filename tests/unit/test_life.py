"""A child that keeps dying is started ever more rarely; one that lived is started at once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privsep import life


def test_the_first_failure_costs_no_pause_and_later_ones_double() -> None:
    child = life.Life()
    now, pauses = 100.0, []
    for _ in range(12):
        assert child.may_start(now)
        child.started()
        child.died(now, expected=False)
        pauses.append(child.wait(now))
        now = max(now, child.not_before)
    assert pauses[:4] == pytest.approx([0.0, 0.1, 0.2, 0.4])
    assert pauses[-1] == pytest.approx(life.LONGEST)


def test_a_settled_life_forgets_earlier_failures() -> None:
    child = life.Life()
    for _ in range(5):
        child.started()
        child.died(0.0, expected=False)
    child.started()
    child.ready(10.0)
    child.died(10.0 + life.SETTLED, expected=False)
    assert child.may_start(10.0 + life.SETTLED)


def test_leaving_when_idle_is_no_failure() -> None:
    child = life.Life()
    child.started()
    child.ready(1.0)
    child.died(1.5, expected=True)
    assert child.may_start(1.5) and child.restarts == 0


def test_settled_is_up_for_some_time() -> None:
    child = life.Life()
    assert not child.settled(99.0)
    child.started()
    assert not child.settled(99.0)
    child.ready(99.0)
    assert not child.settled(99.0 + life.SETTLED - 0.1)
    assert child.settled(99.0 + life.SETTLED)


@given(st.lists(st.tuples(st.sampled_from(["die", "ready", "leave"]), st.floats(0, 100)), max_size=60))
def test_a_pause_is_never_longer_than_the_longest_and_ends(events: list[tuple[str, float]]) -> None:
    child, now = life.Life(), 0.0
    for what, later in events:
        now += later
        if child.state == life.ABSENT:
            now = max(now, child.not_before)
            assert child.may_start(now)
            child.started()
        if what == "ready" and child.state == life.STARTING:
            child.ready(now)
        elif what != "ready":
            child.died(now, expected=what == "leave")
            assert child.wait(now) <= life.LONGEST + 1e-9
