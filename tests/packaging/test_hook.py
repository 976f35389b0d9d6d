"""The freeze hook that the package installs: order, pairing, what is passed over, what an error costs."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

HOOK = Path(__file__).resolve().parents[2] / "packaging" / "hook" / "fsfreeze-hook"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copy(HOOK, tmp_path / "fsfreeze-hook")
    (tmp_path / "fsfreeze-hook.d").mkdir()
    return tmp_path


def add(folder: Path, name: str, status: int = 0, mode: int = 0o755) -> None:
    path = folder / "fsfreeze-hook.d" / name
    path.write_text(f'#!/bin/sh\necho "{name} $1" >>{folder}/calls\n[ "$1" = freeze ] || exit 0\nexit {status}\n')
    path.chmod(mode)


def call(folder: Path, *words: str) -> tuple[int, list[str], str]:
    calls = folder / "calls"
    calls.write_text("")
    run = subprocess.run([folder / "fsfreeze-hook", *words], capture_output=True, text=True, timeout=20)
    return run.returncode, calls.read_text().splitlines(), run.stderr


def test_freeze_goes_by_name_and_thaw_the_other_way(folder: Path) -> None:
    for name in ("20-b", "10 a", "30-c"):
        add(folder, name)
    assert call(folder, "freeze") == (0, ["10 a freeze", "20-b freeze", "30-c freeze"], "")
    assert call(folder, "thaw") == (0, ["30-c thaw", "20-b thaw", "10 a thaw"], "")


def test_one_that_fails_ends_the_freeze_and_frees_what_was_quiesced(folder: Path) -> None:
    add(folder, "1")
    add(folder, "2")
    add(folder, "3", status=3)
    add(folder, "4")
    status, calls, said = call(folder, "freeze")
    assert (status, calls) == (1, ["1 freeze", "2 freeze", "3 freeze", "2 thaw", "1 thaw"])
    assert "3 freeze: exit status 3" in said


def test_a_thaw_that_fails_stops_no_other(folder: Path) -> None:
    add(folder, "1")
    (folder / "fsfreeze-hook.d" / "2").write_text("#!/bin/sh\nexit 1\n")
    (folder / "fsfreeze-hook.d" / "2").chmod(0o755)
    status, calls, said = call(folder, "thaw")
    assert (status, calls) == (1, ["1 thaw"]) and "2 thaw: exit status 1" in said


@pytest.mark.parametrize("name", ["a~", "a.bak", "a.sample", "a.dpkg-dist", "a.dpkg-old", "a.rpmsave"])
def test_leftovers_are_passed_over(folder: Path, name: str) -> None:
    add(folder, name)
    add(folder, "mine", mode=0o644)
    assert call(folder, "freeze") == (0, [], "")


def test_an_empty_and_a_missing_folder_are_no_error(folder: Path) -> None:
    assert call(folder, "freeze")[:2] == (0, [])
    (folder / "fsfreeze-hook.d").rmdir()
    assert call(folder, "thaw")[:2] == (0, [])


@pytest.mark.parametrize("words", [(), ("status",), ("",)])
def test_other_words_are_wrong_usage(folder: Path, words: tuple[str, ...]) -> None:
    add(folder, "1")
    status, calls, said = call(folder, *words)
    assert (status, calls) == (2, []) and said.startswith("usage:")
