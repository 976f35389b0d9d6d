"""The log never waits, never writes while frozen, and cannot be forged by what it quotes."""

from __future__ import annotations

import fcntl
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privsep.log import LONGEST, RING, Log, is_journal, printable


class Pipe:
    def __init__(self) -> None:
        self.reading, self.writing = os.pipe()
        os.set_blocking(self.reading, False)

    def text(self) -> str:
        data = bytearray()
        try:
            while part := os.read(self.reading, 1 << 16):
                data += part
        except BlockingIOError:
            pass
        return data.decode()

    def lines(self) -> list[str]:
        return self.text().splitlines()


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    os.close(made.reading)
    os.close(made.writing)


def test_a_line_is_the_peers_with_the_processs_name(pipe: Pipe) -> None:
    log = Log(pipe.writing, "fs", journal=False)
    log.error("one")
    log.warning("two")
    log.info("three")
    log.debug("not said")
    found = pipe.lines()
    assert [re.sub(r"^\d+\.\d{6}: ", "", line) for line in found] == [
        "error: fs: one",
        "warning: fs: two",
        "info: fs: three",
    ]
    assert all(re.match(r"\d+\.\d{6}: ", line) for line in found)
    Log(pipe.writing, "fs", True, journal=False).debug("said")
    assert pipe.lines()[0].endswith("debug: fs: said")


def test_the_journal_gets_priorities(pipe: Pipe) -> None:
    log = Log(pipe.writing, "fs", journal=True, verbose=True)
    for write in (log.error, log.warning, log.info, log.debug):
        write("x")
    assert pipe.lines() == ["<3>fs: x", "<4>fs: x", "<6>fs: x", "<7>fs: x"]


def test_the_journal_is_known_by_its_descriptor(pipe: Pipe) -> None:
    found = os.fstat(pipe.writing)
    assert is_journal(pipe.writing, {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"})
    assert not is_journal(pipe.reading, {"JOURNAL_STREAM": "1:2"})
    assert not is_journal(pipe.writing, {})


def test_what_came_from_the_host_cannot_make_a_line_of_its_own(pipe: Pipe) -> None:
    Log(pipe.writing, "fs", journal=False).info("a\n1.000000: info: fs: forged\r\x1b[2J\u202e\ud800")
    text = pipe.text()
    assert text.count("\n") == 1 and text.endswith("\n")
    assert "\\n1.0" in text and "\\x1b" in text and "\\u202e" in text and "\\ud800" in text


@given(st.text())
def test_anything_is_one_printable_line(text: str) -> None:
    assert printable(text).isprintable()
    assert not text.isprintable() or printable(text) == text


@pytest.mark.parametrize("letter", ["a", "é", "\U0001f600", "\n"])
def test_a_line_is_short_enough_for_one_write(pipe: Pipe, letter: str) -> None:
    Log(pipe.writing, "fs", journal=False).info(letter * 10000)
    data = os.read(pipe.reading, 1 << 16)
    assert LONGEST - 8 <= len(data) <= LONGEST
    assert data.endswith(b"...\n")
    data.decode()


def test_nothing_is_written_while_held_and_all_of_it_after(pipe: Pipe) -> None:
    frozen = True
    log = Log(pipe.writing, "fs", hold=lambda: frozen, journal=True)
    log.info("one")
    log.flush()
    assert pipe.text() == ""
    log.info("two")
    frozen = False
    log.flush()
    assert pipe.lines() == ["<6>fs: one", "<6>fs: two"]
    frozen = True
    log.info("three")
    frozen = False
    log.info("four")  # no flush needed for the order to be right
    assert pipe.lines() == ["<6>fs: three", "<6>fs: four"]


def test_the_ring_keeps_the_latest_and_says_what_it_lost(pipe: Pipe) -> None:
    frozen = True
    log = Log(pipe.writing, "fs", hold=lambda: frozen, journal=True)
    for n in range(RING + 10):
        log.info(str(n))
    frozen = False
    log.flush()
    found = pipe.lines()
    assert found[0] == "<4>fs: 10 lines of the log were lost"
    assert found[1:] == [f"<6>fs: {n}" for n in range(10, RING + 10)]


def test_a_full_pipe_loses_lines_and_not_time(pipe: Pipe) -> None:
    fcntl.fcntl(pipe.writing, fcntl.F_SETPIPE_SZ, 8192)
    log = Log(pipe.writing, "fs", journal=True)

    def fill() -> None:
        for n in range(4):
            log.info(f"{n} " + "x" * 3000)

    writer = threading.Thread(target=fill, daemon=True)
    writer.start()
    writer.join(5)
    assert not writer.is_alive()
    assert len(pipe.lines()) == 2
    log.info("later")
    assert pipe.lines() == ["<4>fs: 2 lines of the log were lost", "<6>fs: later"]


def test_a_reader_that_has_gone_ends_nobody() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    log = Log(writing, "fs", journal=True)
    log.error("x")
    os.close(writing)
    log.error("y")


def test_a_file_is_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("old\n")
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    Log(fd, "fs", journal=True).info("new")
    os.close(fd)
    assert path.read_text() == "old\n<6>fs: new\n"


def test_a_line_for_later_is_written_before_the_next_or_when_there_is_time(pipe: Pipe) -> None:
    log = Log(pipe.writing, "exec", journal=True)
    log.later("one")
    assert pipe.lines() == []
    log.warning("two")
    log.later("three")
    assert pipe.lines() == ["<6>exec: one", "<4>exec: two"]
    log.flush()
    assert pipe.lines() == ["<6>exec: three"]
    log.hold = lambda: True
    log.later("four")
    log.flush()
    assert pipe.lines() == []
