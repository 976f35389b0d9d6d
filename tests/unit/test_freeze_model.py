"""The design of the freeze under every order of commands, deaths, stops and time that hypothesis thinks of.

A model of the processes and of one file system; what the processes know in common is the real journal text, read by the real
`fold`, and the thawer moves by the real table (`privsep/freezestate.py`).  Whoever runs reacts at once to what it can see;
a stopped process sees nothing until it is continued.  The agent is restarted, and its policy is reloaded, whenever hypothesis
likes.  The real processes are in tests/faults.
"""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from privsep import freezestate as fz
from privsep.journal import Entry, Lapse, fold, hold_record, lapse_record

LIMIT = 10.0  # seconds: the deadline of the first policy
LIMITS = [LIMIT, 3.0, 30.0]  # of those that it is reloaded with
LATER = 1.0  # the supervisor's comes so much later
GRACE = 5.0
WATCHDOG = 3.0  # the service manager's
UP, STOPPED, DEAD = "up", "stopped", "dead"
NEVER = float("inf")
EVERYBODY = ["fs", "thawer", "front", "supervisor"]


class Freeze(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.frozen = False  # the kernel's word
        self.frozen_since = 0.0
        self.journal = ""
        self.cycle = 0
        self.limit = self.wanted = LIMIT  # of the policy in force, and of the one that waits for a thaw
        self.cycle_limit = LIMIT  # of the freeze at hand
        # What is true, whatever anybody knows.
        self.said = 0  # cycle for which the host had success
        self.broke = 0  # cycle that was thawed although the host had success and had not asked
        self.boot()

    def boot(self) -> None:
        """The service manager starts the agent."""
        self.supervisor = self.thawer = self.fs = self.front = UP
        self.limit = self.wanted
        self.armed_until = NEVER
        self.silent_since = NEVER
        self.state = fz.THAWED
        self.committed = False
        self.deadline = self.grace = NEVER
        self.late = False  # an fs worker that may still freeze is around
        self.stage = "idle"  # of fs: idle, registered, froze, taken
        self.reply = ""  # a reply that was not delivered yet
        if self.read().entries:
            self.thaw("service manager", "the agent was killed")

    # -- what they share

    def write(self, record: str) -> None:
        self.journal += f"\n{record} .\n"

    def read(self):  # type: ignore[no-untyped-def]
        return fold(self.journal.encode())

    def thaw(self, who: str, lapse: str) -> None:
        """One holder thaws, `lapse` says why if nobody had asked for it."""
        if who == "fs":
            assert self.thawer == DEAD
        if who == "supervisor":
            assert self.thawer == DEAD and self.fs == DEAD
        if who == "service manager":
            assert True if self.supervisor == UP and self.stage == "idle" else self.supervisor == DEAD
        if self.frozen and lapse and self.said == self.cycle:
            self.broke = self.cycle
        self.frozen = False
        if lapse:
            self.write(lapse_record(Lapse(self.cycle, int(self.cycle_limit), lapse)))
        if who == "thawer":
            if not self.late:
                self.release()
        else:
            self.write(f"thawed {self.cycle}")
            self.armed_until = NEVER

    def release(self) -> None:
        self.state = fz.step(self.state, fz.FREE)
        self.write(f"thawed {self.cycle}")
        self.deadline = self.grace = NEVER
        self.committed = False
        if self.supervisor == UP:
            self.armed_until = NEVER
        self.told_free = True

    def lapse(self, cause: int, why: str) -> None:
        self.state = fz.step(self.state, cause)
        self.deadline = self.grace = NEVER
        self.thaw("thawer", why)

    # -- who sees what, at once

    def react(self) -> None:
        for _ in range(8):
            before = (self.supervisor, self.thawer, self.fs, self.state, self.stage, self.frozen, self.journal)
            self.thawer_reacts()
            self.fs_reacts()
            self.supervisor_reacts()
            self.manager_reacts()
            if before == (self.supervisor, self.thawer, self.fs, self.state, self.stage, self.frozen, self.journal):
                return
        raise AssertionError("they never come to rest")

    def thawer_reacts(self) -> None:
        if self.thawer != UP:
            return
        if self.fs == DEAD:
            self.late = False
        held = self.state in (fz.FREEZING, fz.FROZEN)
        if held and self.supervisor == DEAD:
            self.lapse(fz.ORPHANED, "the agent's supervisor died")
        elif held and self.now >= self.deadline:
            self.lapse(fz.DEADLINE, "the time limit has passed")
        elif held and self.fs == DEAD and not (self.state == fz.FROZEN and self.committed):
            self.lapse(fz.UNCONFIRMED, "the fs worker died before the freeze was confirmed")
        elif held and self.now >= self.grace:
            self.lapse(fz.NOT_BACK, "the fs worker died and was not back in time")
        elif held and self.fs == DEAD and self.grace == NEVER:
            self.grace = self.now + GRACE
        elif self.state == fz.LAPSED:
            if self.frozen:  # one that landed late: FITHAW again
                self.frozen = False
            if self.supervisor == UP and self.fs != DEAD:
                self.fs = DEAD  # it is killed, stopped or not
                self.stage = "idle"
            if self.fs == DEAD:
                self.late = False
                self.release()
        if self.supervisor == DEAD and self.state == fz.THAWED:
            self.thawer = DEAD  # it ends

    def fs_reacts(self) -> None:
        if self.fs != UP:
            return
        if self.thawer == DEAD:
            if self.stage in ("froze", "taken") and self.read().entries:
                self.thaw("fs", "the agent's freeze watchdog died")
            elif self.read().entries:
                self.write(f"thawed {self.cycle}")
            self.stage = "idle"
            self.fs = DEAD  # it ends
        elif self.supervisor == DEAD and self.thawer == UP:
            self.fs = DEAD
            self.stage = "idle"

    def supervisor_reacts(self) -> None:
        if self.supervisor != UP:
            return
        self.silent_since = NEVER
        armed = self.armed_until < NEVER
        if armed and self.now >= self.armed_until:
            self.fs = self.thawer = DEAD
        if self.front == DEAD:
            self.front = UP
        if self.armed_until == NEVER and not self.read().entries:
            self.limit = self.wanted  # a reload waits until nothing is frozen
        if self.thawer == DEAD and self.fs != DEAD:
            self.fs = DEAD  # after its patience
            self.stage = "idle"
        if self.thawer == DEAD and self.fs == DEAD:
            if self.read().entries:
                self.thaw("supervisor", "the freeze's workers died")
            self.armed_until = NEVER
            self.thawer = UP
            self.state, self.committed, self.deadline, self.grace = fz.THAWED, False, NEVER, NEVER
            self.late = False
        if self.fs == DEAD and self.thawer != DEAD:
            self.thawer_reacts()  # end of file comes before the new one
            if self.thawer == UP:
                assert self.state == fz.THAWED or (self.state == fz.FROZEN and self.committed), (
                    "nobody was told that it holds"
                )
                self.fs = UP
                self.late = False
                self.grace = NEVER
                self.stage = "taken" if self.state == fz.FROZEN else "idle"

    def manager_reacts(self) -> None:
        if self.supervisor == STOPPED and self.now - self.silent_since >= WATCHDOG:
            self.supervisor = self.thawer = self.fs = DEAD
        if self.supervisor == DEAD:
            # The main process is gone: the rest is killed, then ExecStopPost, then a new start.
            self.thawer = self.fs = self.front = DEAD
            self.stage = "idle"
            if self.read().entries:
                self.thaw("service manager", "the agent was killed")
            self.boot()

    # -- the host

    def told(self) -> None:
        """The error that tells of the lapse was written to the host."""
        lapse = self.read().lapse
        assert lapse is not None
        self.write(f"told {lapse.cycle}")
        if self.broke == lapse.cycle:
            self.broke = 0
        self.said = 0

    @precondition(lambda self: self.everybody_is_up and self.stage == "idle")
    @rule(delivered=st.booleans(), progress=st.integers(0, 3))
    def host_freezes(self, delivered: bool, progress: int) -> None:
        """As far as `progress`: registered, frozen, answered, committed."""
        if self.read().lapse is not None:
            if delivered:
                self.told()
            return
        self.cycle += 1
        self.journal = ""
        self.cycle_limit = self.limit
        self.write(f"begin {self.cycle} {int(self.cycle_limit)}")
        self.armed_until = self.now + self.cycle_limit + LATER
        self.state = fz.step(self.state, fz.REGISTER)
        self.deadline = self.now + self.cycle_limit
        self.committed = False
        self.late = True
        self.write(hold_record(Entry(self.cycle, 7, 1, 1, "/mnt")))
        self.stage = "registered"
        if progress > 0:
            self.fs_freezes()
        if progress > 1:
            self.fs_answers(delivered=True, reported=progress > 2)

    @precondition(lambda self: self.fs == UP and self.stage == "registered")
    @rule()
    def fs_freezes(self) -> None:
        # Whoever was stopped, however long: when it gets here somebody holds what it is about to freeze.
        assert self.thawer != DEAD
        assert self.state in (fz.FREEZING, fz.LAPSED)
        assert self.read().entries
        if self.thawer == UP:
            assert self.state == fz.FREEZING, "it woke up after the deadline"
        self.frozen = True
        self.frozen_since = self.now
        self.stage = "froze"
        self.react()

    @precondition(lambda self: self.fs == self.thawer == UP and self.stage == "froze" and self.state == fz.FREEZING)
    @rule(delivered=st.booleans(), reported=st.booleans())
    def fs_answers(self, delivered: bool, reported: bool) -> None:
        delivered = delivered and self.front == UP
        self.state = fz.step(self.state, fz.DONE)
        self.stage = "taken"
        if delivered:
            self.said = self.cycle
            if reported:
                self.committed = True
                self.write(f"commit {self.cycle}")

    @precondition(lambda self: self.fs == self.thawer == self.front == UP and self.stage != "registered")
    @rule(delivered=st.booleans())
    def host_thaws(self, delivered: bool) -> None:
        held = self.frozen
        if fz.can(self.state, fz.ASK):
            self.late = False
            self.state = fz.step(self.state, fz.ASK)
            self.thaw("thawer", "" if held else "a file system was thawed by another program")
        self.stage = "idle"
        lapse = self.read().lapse
        if lapse is not None:
            if delivered:
                self.told()
            return
        assert not self.broke, "success for a freeze that did not hold"
        self.said = 0

    @precondition(lambda self: self.frozen)
    @rule()
    def somebody_thaws(self) -> None:
        if self.said == self.cycle:
            self.broke = self.cycle
        self.frozen = False

    # -- what goes wrong

    @rule(who=st.sampled_from(EVERYBODY), more=st.sampled_from(["", *EVERYBODY]))
    def die(self, who: str, more: str) -> None:
        for name in {who, more} - {""}:
            setattr(self, name, DEAD)
            if name == "fs":
                self.stage = "idle"
        self.react()

    @rule(who=st.sampled_from(EVERYBODY), more=st.sampled_from(["", *EVERYBODY]))
    def stop(self, who: str, more: str) -> None:
        for name in {who, more} - {""}:
            if getattr(self, name) != DEAD:  # fs may be, until a thawer that is stopped has gone too
                setattr(self, name, STOPPED)
        if self.supervisor == STOPPED and self.silent_since == NEVER:
            self.silent_since = self.now
        self.react()

    @rule(who=st.sampled_from(EVERYBODY))
    def wake(self, who: str) -> None:
        if getattr(self, who) == STOPPED:
            setattr(self, who, UP)
        self.react()
        if who == "fs" and self.fs == UP and self.stage == "registered":
            self.fs_freezes()  # it goes on where it was

    @rule(
        who=st.sampled_from([["fs"], ["thawer"], ["supervisor"], ["fs", "thawer"], ["fs", "supervisor"], ["front"]]),
        seconds=st.sampled_from([4.0, 11.0, 20.0]),
    )
    def sleep(self, who: list[str], seconds: float) -> None:
        """Stopped for so long, then continued."""
        for name in who:
            self.stop(name, "")
        self.time_passes(seconds)
        for name in who:
            self.wake(name)

    @rule(seconds=st.sampled_from([0.5, 4.0, 11.0, 20.0]))
    def time_passes(self, seconds: float) -> None:
        for _ in range(int(seconds * 2)):
            self.now += 0.5
            self.react()

    # -- what an administrator does

    @rule(limit=st.sampled_from(LIMITS))
    def reload(self, limit: float) -> None:
        """A new policy, which a freeze that is on does not see."""
        before = self.deadline, self.armed_until
        self.wanted = limit
        self.react()
        if self.armed_until < NEVER:
            assert (self.deadline, self.armed_until) == before

    @precondition(lambda self: self.supervisor == UP)
    @rule()
    def restart(self) -> None:
        """The service is stopped and started: thawed on the way, by the first of them who can."""
        why = "the agent was stopped"
        if self.frozen and self.said == self.cycle:
            self.broke = self.cycle
        if self.armed_until < NEVER:
            if self.thawer == UP and self.state in (fz.FREEZING, fz.FROZEN):
                self.fs, self.stage = DEAD, "idle"  # it asks for the thaw and ends, or is ended
                self.late = False
                self.lapse(fz.ORPHANED, why)
            elif self.read().entries:
                self.thawer = self.fs = DEAD  # stopped: they are killed, then the journal
                self.thaw("supervisor", why)
        assert not self.frozen or not self.read().entries
        self.supervisor = self.thawer = self.fs = self.front = DEAD
        self.boot()

    @property
    def everybody_is_up(self) -> bool:
        return all(getattr(self, name) == UP for name in EVERYBODY)

    # -- what always holds

    @invariant()
    def frozen_has_a_holder_and_an_end(self) -> None:
        if not self.frozen:
            return
        holders = [
            self.thawer != DEAD and self.state in (fz.FREEZING, fz.FROZEN, fz.LAPSED),
            bool(self.read().entries),
        ]
        assert any(holders)
        ends = [
            self.deadline if self.thawer == UP else NEVER,
            self.armed_until if self.supervisor == UP else NEVER,
            self.silent_since + WATCHDOG if self.supervisor == STOPPED else NEVER,
        ]
        assert min(ends) < NEVER
        assert self.now - self.frozen_since <= self.cycle_limit + LATER + WATCHDOG

    @invariant()
    def a_freeze_that_broke_can_be_told(self) -> None:
        if self.broke and self.broke == self.cycle and not self.frozen:
            still_to_be_seen = self.state in (fz.FREEZING, fz.FROZEN) and self.thawer != DEAD
            assert self.read().lapse is not None or still_to_be_seen or bool(self.read().entries)


Freeze.TestCase.settings = settings(
    max_examples=500, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
TestFreeze = Freeze.TestCase
