"""Handle numbers never repeat, and are on disk before they are given out."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from protocol.errors import CommandError
from workers.counter import HandleCounter


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY)
    yield fd
    os.close(fd)


def test_the_first_number_is_1000_and_the_file_is_there_before_it_is_asked_for(tmp_path: Path, folder: int) -> None:
    counter = HandleCounter(folder)
    assert (tmp_path / "qga.state").read_text() == "[global]\nfd_counter=1000\n"
    assert counter.take() == 1000
    assert (tmp_path / "qga.state").read_text() == "[global]\nfd_counter=1001\n"
    assert os.listdir(tmp_path) == ["qga.state"]


def test_a_restart_goes_on_where_the_last_process_stopped(folder: int) -> None:
    first = HandleCounter(folder)
    numbers = [first.take() for _ in range(3)]
    second = HandleCounter(folder)
    assert second.start == 1003
    assert second.take() not in numbers


def test_the_peers_own_file_is_gone_on_with(tmp_path: Path, folder: int) -> None:
    (tmp_path / "qga.state").write_text("# a comment\n[global]\nfd_counter=4711\nother=1\n")
    assert HandleCounter(folder).take() == 4711


@pytest.mark.parametrize(
    "text", ["[global]\nfd_counter=x\n", "[global]\nfd_counter=-5\n", "nonsense", "[global]\nfd_counter=" + "9" * 30]
)
def test_a_damaged_file_gives_no_number_and_is_left_alone(tmp_path: Path, folder: int, text: str) -> None:
    (tmp_path / "qga.state").write_text(text)
    counter = HandleCounter(folder)
    with pytest.raises(CommandError, match=r"^failed to commit persistent state to disk: qga.state is damaged"):
        counter.take()
    assert (tmp_path / "qga.state").read_text() == text


def test_the_last_number_is_not_followed_by_a_repeated_one(tmp_path: Path, folder: int) -> None:
    (tmp_path / "qga.state").write_text(f"[global]\nfd_counter={(1 << 63) - 1}\n")
    with pytest.raises(CommandError, match=r"no number is left"):
        HandleCounter(folder).take()


def test_no_folder_no_number() -> None:
    with pytest.raises(CommandError, match=r"^failed to commit persistent state to disk: there is no state folder$"):
        HandleCounter(None).take()


def test_a_folder_that_went_away_gives_no_number(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    fd = os.open(gone, os.O_RDONLY)
    counter = HandleCounter(fd)
    (gone / "qga.state").unlink()
    gone.rmdir()
    with pytest.raises(CommandError, match=r"^failed to commit persistent state to disk: No such file or directory$"):
        counter.take()
    os.close(fd)


def test_a_symbolic_link_in_the_place_of_the_file_is_not_followed(tmp_path: Path, folder: int) -> None:
    (tmp_path / "other").write_text("[global]\nfd_counter=5000\n")
    (tmp_path / "qga.state").symlink_to("other")
    with pytest.raises(CommandError, match=r"failed to commit persistent state to disk"):
        HandleCounter(folder).take()
