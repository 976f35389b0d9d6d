"""guest-set-time against a clock and a chip that are not the machine's: nothing here sets a real clock."""

from __future__ import annotations

import datetime
import errno
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import CommandError
from workers import time as worker

SECOND = 1_000_000_000


class Machine:
    """A system clock and a clock chip in one simulated time.

    The chip counts full seconds; writing it restarts its divider so that it ticks after `first_tick` ns.
    """

    def __init__(self, now: int, chip: int, *, local: bool = False, first_tick: int = SECOND) -> None:
        self.elapsed = 0
        self.offset = now
        self.chip_value = chip
        self.chip_ticks_at = SECOND // 3
        self.first_tick = first_tick
        self.local = local
        self.sets: list[int] = []
        self.writes: list[int] = []
        self.fail: dict[str, int] = {}
        self.ticking = True

    def pause(self, seconds: float) -> None:
        self.elapsed += round(seconds * SECOND)

    def now(self) -> int:
        return self.offset + self.elapsed

    def set(self, ns: int) -> None:
        if "set" in self.fail:
            raise OSError(self.fail["set"], "set")
        self.sets.append(ns)
        self.offset = ns - self.elapsed

    def chip(self) -> int:
        while self.ticking and self.elapsed >= self.chip_ticks_at:
            self.chip_value += 1
            self.chip_ticks_at += SECOND
        return self.chip_value

    def ioctl(self, descriptor: int, request: int, data: bytes) -> bytes:
        assert descriptor == 99 and len(data) == 36
        if request == worker.RTC_RD_TIME:
            if "read" in self.fail:
                raise OSError(self.fail["read"], "read")
            return worker.to_fields(self.chip(), self.local)
        assert request == worker.RTC_SET_TIME
        if "write" in self.fail:
            raise OSError(self.fail["write"], "write")
        self.chip_value = worker.to_seconds(data, self.local)
        self.chip_ticks_at = self.elapsed + self.first_tick
        self.writes.append(self.chip_value)
        return data

    def context(self, delay: int = 0) -> Any:
        clock = worker.Clock()
        clock.set, clock.now, clock.ioctl, clock.pause = self.set, self.now, self.ioctl, self.pause
        clock.chip, clock.delay, clock.local = 99, delay, self.local
        return SimpleNamespace(state=SimpleNamespace(clock=clock))


@pytest.mark.parametrize(("delay", "first_tick"), [(0, SECOND), (SECOND // 2, SECOND // 2)])
@pytest.mark.parametrize("fraction", [0, 1, 250_000_000, 499_999_999, 500_000_000, 999_999_999])
def test_the_given_time_is_set_and_the_chip_then_ticks_with_it(delay: int, first_tick: int, fraction: int) -> None:
    machine = Machine(0, 5, first_tick=first_tick)
    wanted = 1_700_000_000 * SECOND + fraction
    worker.guest_set_time(machine.context(delay), time=wanted)
    assert machine.sets == [wanted]
    assert machine.elapsed <= SECOND
    machine.pause(5.25)
    # Whenever both are read in the middle of a second they agree.
    machine.pause(((SECOND // 4 - machine.now()) % SECOND) / SECOND)
    assert machine.chip() == machine.now() // SECOND


def test_without_a_time_the_clock_is_set_when_the_chip_ticks() -> None:
    machine = Machine(0, 1_600_000_000)
    worker.guest_set_time(machine.context())
    assert machine.sets == [1_600_000_001 * SECOND]
    assert not machine.writes
    late = machine.elapsed - SECOND // 3
    assert 0 <= late <= 10_000_000


@pytest.mark.parametrize("bad", [-1, -(2**63), 3_155_760_000 * SECOND, 2**63 - 1])
def test_years_outside_1970_to_2069_are_refused_and_nothing_is_set(bad: int) -> None:
    machine = Machine(0, 5)
    with pytest.raises(CommandError, match=r"^Invalid time$"):
        worker.guest_set_time(machine.context(), time=bad)
    assert not machine.sets and not machine.writes


@pytest.mark.parametrize("good", [0, 3_155_760_000 * SECOND - 1])
def test_the_first_and_last_moment_of_the_range_are_taken(good: int) -> None:
    machine = Machine(0, 5)
    worker.guest_set_time(machine.context(), time=good)
    assert machine.sets == [good]


def test_a_refused_clock_is_told_in_the_peers_words_and_the_chip_is_left_alone() -> None:
    machine = Machine(0, 5)
    machine.fail["set"] = errno.EPERM
    with pytest.raises(CommandError, match=r"^Failed to set time to guest: Operation not permitted$"):
        worker.guest_set_time(machine.context(), time=SECOND)
    assert not machine.writes


FAILED = "child process has failed to set hardware clock to system time: "


def test_a_chip_that_cannot_be_set_is_told_after_the_clock_was_set() -> None:
    machine = Machine(0, 5)
    machine.fail["write"] = errno.EINVAL
    with pytest.raises(CommandError, match=f"^{FAILED}cannot set the hardware clock: Invalid argument$"):
        worker.guest_set_time(machine.context(), time=SECOND)
    assert machine.sets == [SECOND]


@pytest.mark.parametrize("given", [None, SECOND])
def test_without_a_chip_a_given_time_is_set_and_the_missing_chip_is_told(tmp_path: Path, given: int | None) -> None:
    """The chip is missing in fact: prepare looks for it in an empty folder."""
    machine = Machine(0, 5)
    ctx: Any = SimpleNamespace(root=str(tmp_path), state=SimpleNamespace())
    worker.prepare(ctx)
    ctx.state.clock.set, ctx.state.clock.pause = machine.set, machine.pause
    with pytest.raises(CommandError, match=f"^{FAILED}cannot open /dev/rtc0: No such file or directory$"):
        assert worker.guest_set_time(ctx, **({} if given is None else {"time": given})) == {}
    assert machine.sets == ([] if given is None else [given])


def test_a_chip_that_stands_still_or_cannot_be_read_sets_nothing() -> None:
    machine = Machine(0, 5)
    machine.ticking = False
    with pytest.raises(CommandError, match="does not tick"):
        worker.guest_set_time(machine.context())
    machine.fail["read"] = errno.EINVAL
    with pytest.raises(CommandError, match="cannot read the hardware clock: Invalid argument"):
        worker.guest_set_time(machine.context())
    assert not machine.sets
    assert machine.elapsed < 2 * SECOND


def test_a_chip_without_a_valid_time_sets_nothing() -> None:
    machine = Machine(0, 5)
    ctx = machine.context()
    ctx.state.clock.ioctl = lambda *_: bytes(36)  # day 0
    with pytest.raises(CommandError, match="no valid time"):
        worker.guest_set_time(ctx)
    assert not machine.sets


def test_prepare_finds_chip_kind_and_local_time(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/rtc0").write_bytes(b"")
    (tmp_path / "sys/class/rtc/rtc0").mkdir(parents=True)
    (tmp_path / "sys/class/rtc/rtc0/name").write_text("rtc_cmos rtc_cmos\n")
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/adjtime").write_text("0.0 0 0.0\n0\nLOCAL\n")
    ctx: Any = SimpleNamespace(root=str(tmp_path), state=SimpleNamespace())
    worker.prepare(ctx)
    clock = ctx.state.clock
    assert clock.chip >= 0 and clock.delay == SECOND // 2 and clock.local
    os.close(clock.chip)


@pytest.mark.parametrize(
    ("text", "local"),
    [
        (b"", False),
        (b"0.0 0 0.0\n0\nUTC\n", False),
        (b"0.0 0 0.0\n0\nLOCAL", True),
        (b"0.0 0 0.0\n0\nLOCAL \n", True),
        (b"0.0 0 0.0\n0\n", False),
        (b"LOCAL\n", False),
    ],
)
def test_the_third_line_of_adjtime_says_what_the_chip_holds(text: bytes, local: bool) -> None:
    assert worker.holds_local_time(text) is local


@given(st.integers(0, 3_155_759_999))
def test_utc_goes_to_the_chip_and_back(seconds: int) -> None:
    fields = worker.to_fields(seconds, False)
    assert worker.to_seconds(fields, False) == seconds
    then = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    assert worker._RTC_TIME.unpack(fields) == (
        then.second, then.minute, then.hour, then.day, then.month - 1, then.year - 1900,
        then.isoweekday() % 7, then.timetuple().tm_yday - 1, 0,
    )  # fmt: skip


def test_local_time_goes_to_the_chip_and_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    time.tzset()
    try:
        for seconds in (1_700_000_000, 1_690_000_000):  # winter, summer
            assert worker.to_seconds(worker.to_fields(seconds, True), True) == seconds
        assert worker._RTC_TIME.unpack(worker.to_fields(1_690_000_000, True))[2] == 6  # 04:26:40 UTC
        machine = Machine(0, 1_690_000_000, local=True)
        worker.guest_set_time(machine.context())
        assert machine.sets == [1_690_000_001 * SECOND]
    finally:
        monkeypatch.undo()
        time.tzset()
