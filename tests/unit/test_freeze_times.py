"""Who waits for whom, and for how long: each has given up or is done before the next one steps in."""

from __future__ import annotations

from privsep import holder, recover, supervisor, thawer
from privsep.domains import BY_NAME
from protocol.commands import COMMANDS
from workers import fs, fshook, fsstate

WITHIN = 1.0  # seconds in which a death is made good
START = 0.25  # seconds that a process has to notice, or to be started, on a busy machine


def test_the_thawer_is_dead_fs_then_the_supervisor_then_the_journal() -> None:
    assert fsstate.IN_FLIGHT_PATIENCE + START <= holder.PATIENCE_FS
    assert holder.PATIENCE_FS + START <= WITHIN


def test_a_stop_tries_both_ways_before_it_kills() -> None:
    assert fsstate.IN_FLIGHT_PATIENCE < supervisor._STOP_THAW
    assert recover.PATIENCE < holder._RECOVERY


def test_the_supervisors_deadline_is_later_than_the_thawers_and_within_the_promise() -> None:
    assert thawer.PATIENCE <= holder._LATER
    assert holder._LATER + START < 2.0


def test_a_new_fs_is_asked_for_before_the_thawer_gives_a_freeze_up() -> None:
    assert thawer.GRACE > 10 * START
    # fs is not ended for being idle while the thawer waits for it: what is frozen is state.
    assert BY_NAME["fs"].idle
    assert fs.SETTLE > thawer.GRACE


def test_the_hook_worker_is_given_up_after_the_hook_itself_and_the_command_after_both() -> None:
    assert fshook.HOOK_MARGIN > START
    limits = {c.name: c.limit for c in COMMANDS if c.domain == "fs"}
    assert not limits["guest-fsfreeze-thaw"]  # the thawer's answer ends it
    assert limits["guest-fsfreeze-freeze"] == limits["guest-fsfreeze-freeze-list"] > 300 + 60 + fshook.HOOK_MARGIN
