"""Every file system of a running system is frozen, its root included, and thawed by whoever is left.

Times are the guest's own.  The promises are those of the README; a translated processor is some twenty times slower than
the real one, so what is a second there may be `SLACK` seconds here.  The table has what was measured.
"""

from __future__ import annotations

import time

import pytest

from tests.vm.harness.hostagent import HostAgent, Refused
from tests.vm.harness.machine import Guest
from tests.vm.harness.seen import Seen
from tests.vm.harness.service import FILE_SYSTEMS, LIMITED, UNIT, Writers, kill, memory, set_policy

ALL = len(FILE_SYSTEMS)
SECOND = 1.0
SLACK = 6.0
KILL, STOP = 9, 19
WARM = 8  # cycles, until interpreters have filled what they keep for re-use
MOST_GROWTH = 512  # kB


@pytest.fixture(scope="module", autouse=True)
def backup_policy(guest: Guest) -> None:
    set_policy(guest, "backup")


def freeze(guest: Guest, agent: HostAgent, writers: Writers) -> float:
    """Freeze everything; the guest's time just after the answer, from when on nothing was written."""
    assert agent.call("guest-fsfreeze-freeze") == ALL
    frozen = writers.now()
    time.sleep(1)
    writers.blocked_since(frozen)
    return frozen


def tells_of_the_lapse(agent: HostAgent) -> None:
    """The next thaw is an error that names the limit, the one after it is a thaw of nothing."""
    with pytest.raises(Refused, match=LIMITED):
        agent.call("guest-fsfreeze-thaw")
    assert agent.call("guest-fsfreeze-status") == "thawed"
    assert agent.call("guest-fsfreeze-thaw") == 0


def test_everything_is_frozen_with_journald_running(guest: Guest, seen: Seen) -> None:
    """Freeze of all file systems, the root included, with journald writing to it; thaw"""
    assert guest.check("systemctl is-active systemd-journald").strip() == "active"
    assert guest.check("ls /var/log/journal/*/system.journal") != ""
    with guest.agent() as agent:
        writers = Writers(guest)
        begun = time.monotonic()
        agent.ask("guest-fsfreeze-freeze")
        assert agent.answer() == ALL
        took = time.monotonic() - begun
        frozen = writers.now()
        guest.check("logger -t privsep-ga-test said while frozen")
        time.sleep(3)
        writers.blocked_since(frozen)
        assert agent.call("guest-fsfreeze-status") == "frozen"
        with pytest.raises(Refused, match="has been disabled"):
            agent.call("guest-get-osinfo")
        begun = time.monotonic()
        assert agent.call("guest-fsfreeze-thaw") == ALL
        thaw = time.monotonic() - begun
        writers.thawed(frozen)
    assert "said while frozen" in guest.check("journalctl -b --no-pager -t privsep-ga-test")
    seen(f"{ALL} frozen in {took:.2f} s, held 3 s against writers, thawed in {thaw:.2f} s; the journal lost nothing")


def test_it_ends_by_itself_at_the_deadline(guest: Guest, seen: Seen) -> None:
    """Nobody thaws: all is thawed at the deadline, and the host is told"""
    set_policy(guest, "backup", "[fsfreeze]\nauto-thaw = 8\n")
    with guest.agent() as agent:
        writers = Writers(guest)
        frozen = freeze(guest, agent, writers)
        held = writers.thawed(frozen) - frozen
        assert 7 < held < 8 + SLACK
        tells_of_the_lapse(agent)
    set_policy(guest, "backup")
    seen(f"auto-thaw = 8: {held:.1f} s")


@pytest.mark.parametrize("name", ["fs", "front"])
def test_a_death_that_the_freeze_outlives(guest: Guest, seen: Seen, name: str) -> None:
    """`kill -9` of one process while frozen"""
    with guest.agent() as agent:
        writers = Writers(guest)
        frozen = freeze(guest, agent, writers)
        kill(guest, KILL, [name])
        time.sleep(3)
    with guest.agent() as agent:
        assert agent.call("guest-fsfreeze-status") == "frozen"
        writers.blocked_since(frozen)
        assert agent.call("guest-fsfreeze-thaw") == ALL
        writers.thawed(frozen)
    seen(f"{name}: the freeze holds, and the thaw after it")


@pytest.mark.parametrize("name", ["thawer", "supervisor"])
def test_a_death_that_ends_the_freeze(guest: Guest, seen: Seen, name: str) -> None:
    """`kill -9` of one process while frozen"""
    with guest.agent() as agent:
        writers = Writers(guest)
        freeze(guest, agent, writers)
        killed = kill(guest, KILL, [name])
        waited = writers.thawed(killed) - killed
        assert waited < SECOND + SLACK
    with guest.agent() as agent:
        tells_of_the_lapse(agent)
    seen(f"{name}: writable {waited:.2f} s later, the host is told")


def test_all_of_them_die(guest: Guest, seen: Seen) -> None:
    """`kill -9` of the whole cgroup while frozen: the service manager thaws"""
    with guest.agent() as agent:
        writers = Writers(guest)
        freeze(guest, agent, writers)
        killed = writers.now()
        guest.check(f"systemctl kill --signal=KILL --kill-whom=all {UNIT}")
        waited = writers.thawed(killed) - killed
        assert waited < SECOND + SLACK
    with guest.agent() as agent:
        tells_of_the_lapse(agent)
    seen(f"writable {waited:.2f} s later, the host is told")


def test_all_of_them_are_stopped(guest: Guest, seen: Seen) -> None:
    """SIGSTOP of every process while frozen: WatchdogSec ends the service, ExecStopPost thaws"""
    with guest.agent() as agent:
        writers = Writers(guest)
        freeze(guest, agent, writers)
        patience = int(guest.check(f"systemctl show {UNIT} -p WatchdogUSec --value").removesuffix("s\n"))
        stopped = writers.now()
        guest.check(f"systemctl kill --signal=STOP --kill-whom=all {UNIT}")
        waited = writers.thawed(stopped, patience + 30) - stopped
        assert waited < patience + SECOND + SLACK
    with guest.agent() as agent:
        tells_of_the_lapse(agent)
    seen(f"WatchdogSec={patience}: writable {waited:.1f} s later, the host is told")


@pytest.mark.parametrize("how", ["stop", "restart", "kill"])
def test_the_administrator_ends_the_service(guest: Guest, seen: Seen, how: str) -> None:
    """systemctl stop, restart and kill while frozen"""
    with guest.agent() as agent:
        writers = Writers(guest)
        freeze(guest, agent, writers)
        begun = writers.now()
        took = time.monotonic()
        guest.check(f"systemctl {how} {UNIT}")
        took = time.monotonic() - took
        waited = writers.thawed(begun) - begun
        assert waited < SECOND + SLACK
        result = guest.check(f"systemctl show {UNIT} -p Result --value").strip()
    if how == "stop":
        assert result == "success"
        assert guest.sh(f"systemctl is-active {UNIT}").out.strip() == "inactive"
        guest.check(f"systemctl start {UNIT}")
    with guest.agent() as agent:
        tells_of_the_lapse(agent)
    seen(f"{how}: writable {waited:.2f} s later, the command took {took:.1f} s, the host is told")


def test_a_machine_that_is_paused_for_longer_than_the_deadline(guest: Guest, seen: Seen) -> None:
    """QMP stop and cont while frozen, paused for twice the deadline: the guest's clock stood still, the freeze holds"""
    set_policy(guest, "backup", "[fsfreeze]\nauto-thaw = 10\n")
    with guest.agent() as agent:
        writers = Writers(guest)
        frozen = freeze(guest, agent, writers)
        guest.qmp.call("stop")
        time.sleep(20)
        guest.qmp.call("cont")
        ran = writers.now() - frozen
        assert ran < 8, "CLOCK_MONOTONIC went on while the machine was paused"
        assert agent.call("guest-fsfreeze-status") == "frozen"
        writers.blocked_since(frozen)
        assert agent.call("guest-fsfreeze-thaw") == ALL
        writers.thawed(frozen)
        # And with the pause the deadline still comes.
        frozen = freeze(guest, agent, writers)
        guest.qmp.call("stop")
        time.sleep(5)
        guest.qmp.call("cont")
        held = writers.thawed(frozen) - frozen
        assert 9 < held < 10 + SLACK
        tells_of_the_lapse(agent)
    set_policy(guest, "backup")
    seen(
        f"auto-thaw = 10, paused for 20 s: still frozen after {ran:.1f} s of the guest's time, thaw succeeds; "
        f"paused for 5 s: thawed after {held:.1f} s of the guest's time"
    )


def test_twenty_four_cycles(guest: Guest, seen: Seen) -> None:
    """24 freezes and thaws under writers"""
    set_policy(guest, "backup", '[workers]\npreload = ["fs"]\n')  # who freezes stays while its memory is looked at
    times = []
    with guest.agent() as agent:
        writers = Writers(guest)
        for cycle in range(24):
            if cycle == WARM:
                before, huge = memory(guest, "Anonymous"), memory(guest, "AnonHugePages")
            begun = time.monotonic()
            assert agent.call("guest-fsfreeze-freeze") == ALL
            frozen = writers.now()
            times.append(time.monotonic() - begun)
            time.sleep(0.3)
            writers.blocked_since(frozen)
            assert agent.call("guest-fsfreeze-thaw") == ALL
            writers.thawed(frozen)
        after, huge_after = memory(guest, "Anonymous"), memory(guest, "AnonHugePages")
    set_policy(guest, "backup")
    assert set(after) == set(before) >= {"fs", "thawer"}
    # A huge page that the kernel has made of small ones meanwhile counts whole, whatever of it was in use: that is no growth.
    made = {name: max(0, huge_after[name] - huge[name]) for name in before}
    grown = {name: after[name] - before[name] - made[name] for name in before}
    assert sum(grown.values()) < MOST_GROWTH, (grown, made)
    seen(
        f"freeze: median {sorted(times)[12]:.2f} s, longest {max(times):.2f} s; all processes together grew by "
        f"{sum(grown.values())} kB in the last {24 - WARM}"
    )
