"""The freeze journal: what was written is what is read, and a torn record is neither believed nor harmful."""

from __future__ import annotations

import os

from hypothesis import given
from hypothesis import strategies as st

from privsep.journal import (
    Entry,
    Journal,
    JournalState,
    Lapse,
    escape,
    fold,
    hold_record,
    lapse_record,
    unescape,
)  # fmt: skip

_PATHS = st.binary(max_size=40).map(lambda b: "/" + os.fsdecode(b.replace(b"\0", b"")))


def journal(*records: str) -> bytes:
    return "".join(f"\n{r} .\n" for r in ("boot here", *records)).encode()


def same(a: JournalState, b: JournalState) -> bool:
    def facts(s: JournalState) -> object:
        lapse = s.lapse and (s.lapse.cycle, s.lapse.seconds, s.lapse.reason)
        return s.cycle, s.seconds, s.entries, s.committed, lapse, s.hook_due, s.rcu

    return facts(a) == facts(b)


def test_a_cycle_from_begin_to_end() -> None:
    entry = Entry(5, 7, 1, 40, "/mnt/a b%\udcff")
    records = ["begin 5 300", "hook 5 freeze", hold_record(entry), "rcu 5 0"]
    state = fold(journal(*records))
    assert (state.cycle, state.seconds, state.entries, state.committed) == (5, 300, [entry], False)
    assert (state.hook_due, state.rcu, state.pending, state.clear) == (True, "0", True, False)
    assert fold("\n".join(f"\n{r} .\n" for r in ["begin 5 300", "rcu 5 1", "rcu 5 x"]).encode()).rcu is None
    records += ["rcu-back 5", "commit 5"]
    assert fold(journal(*records)).committed
    records += ["thawed 5"]
    state = fold(journal(*records))
    assert (state.entries, state.committed, state.rcu, state.pending) == ([], False, None, True)
    records += ["hook 5 thaw"]
    assert fold(journal(*records)).clear
    assert fold(journal(*records, "hook 5 again")).hook_due


def test_a_lapse_lasts_until_it_is_told_and_keeps_its_first_reason() -> None:
    records = ["begin 5 300", lapse_record(Lapse(5, 300, "first cause")), lapse_record(Lapse(5, 300, "second"))]
    lapse = fold(journal(*records)).lapse
    assert lapse is not None
    assert lapse.text() == "couldn't hold writes: fsfreeze is limited up to 300 seconds: first cause"
    assert not fold(journal(*records)).clear
    assert fold(journal(*records, "told 4")).lapse is not None
    assert fold(journal(*records, "told 5")).clear


def test_a_journal_of_another_boot_is_void() -> None:
    data = journal("begin 5 300", hold_record(Entry(5, 7, 1, 40, "/a")))
    assert fold(data, "here").entries
    assert not fold(data, "elsewhere").entries
    assert not fold(data[5:], "here").entries


@given(_PATHS)
def test_paths_survive(path: str) -> None:
    assert unescape(escape(path)) == path
    assert not set(escape(path)) & set(" \n")
    (entry,) = fold(journal("begin 1 0", hold_record(Entry(1, 7, 0, 3, path)))).entries
    assert entry.path == path


_RECORDS = st.lists(
    st.one_of(
        st.sampled_from(
            ["begin 2 30", "hook 2 freeze", "hook 2 thaw", "commit 2", "thawed 2", "told 2", "rcu 2 0", "rcu-back 2"]
        ),
        _PATHS.map(lambda p: hold_record(Entry(2, 7, 1, 9, p))),
        st.just(lapse_record(Lapse(2, 30, "the time limit has passed"))),
    ),
    max_size=8,
)


@given(_RECORDS, _RECORDS, st.data())
def test_a_record_that_is_cut_short_counts_as_not_written(
    before: list[str], after: list[str], data: st.DataObject
) -> None:
    torn = f"\n{data.draw(_RECORDS.filter(bool))[0]} .\n".encode()
    cut = torn[: data.draw(st.integers(0, len(torn) - 2))]
    rest = "".join(f"\n{r} .\n" for r in after).encode()
    assert same(fold(journal(*before) + cut + rest), fold(journal(*before) + rest))


@given(st.binary(max_size=200))
def test_any_bytes_are_taken(data: bytes) -> None:
    fold(data)
    fold(b"\nbegin 1 1 .\n" + data + b" .\n")


def test_it_is_appended_whole_and_emptied_by_a_new_cycle(tmp_path: object) -> None:
    path = f"{tmp_path}/journal"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
    log = Journal(fd, "here")
    log.begin(1, 10)
    log.append("hook 1 freeze", "hook 1 thaw")
    assert log.read().cycle == 1
    log.begin(2, 20)
    log.append("commit 2")
    state = log.read()
    assert (state.cycle, state.seconds, state.committed) == (2, 20, True)
    assert b"begin 1" not in os.pread(fd, 4096, 0)
    assert Journal(fd, "elsewhere").read().cycle == 0
    os.close(fd)
