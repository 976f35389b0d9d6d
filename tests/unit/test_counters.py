"""Pages of counters: they outlive their process, cannot be resized, and everything has its place on them."""

from __future__ import annotations

import fcntl
import mmap
import os

import pytest

from policy import builtin
from privsep import counters
from privsep.counters import OTHERS, SIZE, SLOTS, Page, numbers_in, rules_in
from protocol import tally
from protocol.commands import COMMANDS


def test_every_command_has_cells_of_its_own() -> None:
    offsets = (tally.OK, tally.ERROR, tally.REFUSED, tally.LOST, tally.TAKEN, tally.GIVEN, tally.FROZEN)
    assert sorted(offsets) == list(range(tally.WIDTH))
    used = [c.cell + o for c in COMMANDS for o in offsets]
    assert len(set(used)) == len(used) and min(used) == tally.FIRST and max(used) < tally.CELLS
    # The supervisor, which does not import the table, finds them by the names' order.
    assert [c.name for c in COMMANDS] == list(builtin.COMMANDS)
    own = [
        v
        for k, v in vars(tally).items()
        if k in "SINCE RECORDS DROPPED INVALID LAPSES FREEZES FROZEN_US FROZEN_SINCE RECOVERIES".split()
    ]
    assert len(set(own)) == 9 and max(own) < tally.FIRST


def test_counts_outlive_the_process_and_a_successor_goes_on() -> None:
    page = Page.create("test")
    for _ in range(2):
        pid = os.fork()
        if pid == 0:
            child = Page.attach(page.fd)
            child.numbers[tally.FIRST] += 3
            child.refused_by("guest-exec exec.1")
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
    data = os.pread(page.fd, SIZE, 0)
    assert numbers_in(data)[tally.FIRST] == 6 == page.numbers[tally.FIRST]
    assert list(rules_in(data)) == [("guest-exec exec.1", 2)]
    assert numbers_in(data)[tally.SINCE] > 0
    os.close(page.fd)


def test_a_process_cannot_resize_it() -> None:
    page = Page.create("test")
    for size in (0, SIZE * 2):
        with pytest.raises(PermissionError):
            os.ftruncate(page.fd, size)
    with pytest.raises(PermissionError):
        fcntl.fcntl(page.fd, 1033, 0x8)
    os.close(page.fd)


def test_anything_else_is_refused() -> None:
    fd = os.memfd_create("x")
    with pytest.raises(ValueError, match="sealed"):
        Page.attach(fd)
    os.close(fd)


def test_rules_beyond_the_room_are_counted_together() -> None:
    page = Page.create("test")
    for number in range(SLOTS + 10):
        page.refused_by(f"rule-{number}")
    page.refused_by("rule-0")
    found = dict(rules_in(os.pread(page.fd, SIZE, 0)))
    assert len(found) == SLOTS and found["rule-0"] == 2 and found[OTHERS] == 11
    os.close(page.fd)


def test_a_page_of_a_broken_process_is_read_all_the_same() -> None:
    noise = mmap.mmap(-1, SIZE)
    noise[:] = bytes(range(256)) * (SIZE // 256)
    assert len(list(rules_in(bytes(noise)))) == SLOTS
    assert len(counters.nowhere()) == tally.CELLS
