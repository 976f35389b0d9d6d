"""The short form of the fault matrix, broken variants that it must notice, and the committed table of the long form."""

from __future__ import annotations

import fcntl
import os
from signal import SIGKILL, SIGSTOP

import pytest

from tests.faults import cells, extras, matrix
from tests.faults.cells import Run
from tests.faults.runner import Bench
from tests.support import faultpoint
from tests.support.agent import wait_for
from tests.support.deadman import thaw
from tests.support.faultkit import Writers
from tests.support.loopfs import LoopFs
from tests.support.namespace import isolated


@pytest.mark.root
@pytest.mark.loop
@pytest.mark.timeout(300)
def test_the_short_matrix_is_green() -> None:
    items: list[matrix.Work] = [*cells.SHORT_FORM, *extras.EXTRAS]
    found = list(matrix.outcomes(items))
    assert len(found) == len(items)
    red = {o["run"]: o["red"] for o in found if o["red"]}
    assert not red


FIFREEZE = 0xC0045877  # linux/fs.h

# Without this safety this cell is red: the other holders cannot make up for it there.
NOTICED = [
    (faultpoint.NO_REGISTRATION, Run("fs+supervisor", SIGKILL, "unsaid")),
    (faultpoint.NO_END_OF_FILE, Run("fs", SIGKILL, "unsaid")),
    (faultpoint.NO_END_OF_FILE, Run("fs+supervisor", SIGKILL, "frozen")),
    (faultpoint.NO_DEATH_RULE, Run("fs+thawer", SIGKILL, "frozen")),
    (faultpoint.NO_JOURNAL, Run("group", SIGKILL, "frozen")),
]


@pytest.mark.root
@pytest.mark.loop
@pytest.mark.parametrize(("variant", "run"), NOTICED, ids=lambda value: str(value))
@isolated
def test_without_a_safety_its_cell_is_red(variant: str, run: Run) -> None:
    assert run in cells.RUNS
    with Bench(variant) as bench:
        red = bench.run(run).red
    assert any("not writable within" in line for line in red), red


@pytest.mark.root
@pytest.mark.loop
@isolated
def test_a_writer_is_held_by_a_frozen_file_system_and_by_nothing_else() -> None:
    with LoopFs(*cells.FILE_SYSTEMS) as fs, Writers(fs.points) as writers:
        assert writers.watch(5.0, steady=0.05) and writers.settle()
        assert not any(w.held() for w in writers.all)
        fds = [os.open(point, os.O_RDONLY | os.O_DIRECTORY) for point in fs.points]
        for fd in fds:
            fcntl.ioctl(fd, FIFREEZE, 0)
        writers.poke()
        wait_for(lambda: all(w.held() for w in writers.all), 5.0, "the writes to be held")
        for fd in fds:
            thaw(fd)
            os.close(fd)
        assert writers.settle() and not any(w.held() for w in writers.all)


def test_every_safety_that_can_be_removed_has_its_cell() -> None:
    assert {variant for variant, _ in NOTICED} == set(faultpoint.VARIANTS)


def test_the_short_form_is_of_the_long_one_and_hits_everybody_at_every_moment() -> None:
    assert set(cells.SHORT_FORM) <= set(cells.RUNS)
    assert {r.phase for r in cells.SHORT_FORM} >= set(cells.PHASES) - {"after"}
    assert set().union(*(r.who for r in cells.SHORT_FORM)) == set(cells.PROCESSES)
    assert {r.signal for r in cells.SHORT_FORM} == set(cells.SIGNALS)


def test_the_document_has_the_rows_of_the_matrix_and_none_is_red() -> None:
    text = matrix.DOC.read_text()
    assert "RED" not in text
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    for number in cells.SIGNALS:
        part = text.partition(f"## {number.name}\n")[2].partition("\n## ")[0]
        table = [line.strip("| ").split(" | ") for line in part.splitlines() if line.startswith("| ")]
        assert table[0] == ["hit", *cells.PHASES]
        assert tuple(row[0] for row in table[1:]) == cells.VICTIMS
        assert all(len(row) == len(cells.PHASES) + 1 for row in table)
    assert {row[0].strip("| ") for row in rows} >= {extra.text for extra in extras.EXTRAS}
    assert f"{cells.CELLS} cells" in text


def test_a_stop_is_bounded_by_the_deadline_and_a_death_by_a_second() -> None:
    for run in cells.RUNS:
        what, bound = run.expected()
        assert bound == (cells.AFTER_DEADLINE if run.signal == SIGSTOP and run.phase != "after" else cells.AT_ONCE)
        assert what != cells.ON or run.signal != SIGSTOP
