"""The programs: one for each row, isolated, found again by a second run, whatever the paths are called."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from privsep.domains import DOMAINS

SCRIPT = Path(__file__).resolve().parents[2] / "packaging" / "launchers.py"
_spec = importlib.util.spec_from_file_location("launchers", SCRIPT)
assert _spec is not None and _spec.loader is not None
launchers = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(launchers)

PROBE = "def main(*args):\n    import sys\n    print(args, sys.flags.isolated, sys.flags.no_site, sys.argv[1:], sys.path[0])\n"


def write_all(prefix: Path, *more: str) -> str:
    command = [sys.executable, str(SCRIPT), "--prefix", str(prefix), *more]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_each_row_of_the_privilege_table_has_its_program(tmp_path: Path) -> None:
    write_all(tmp_path)
    assert {p.name for p in (tmp_path / "bin").iterdir()} == {"privsep-ga", "privsep-gactl"}
    found = {p.name for p in (tmp_path / "libexec/privsep-ga").iterdir()}
    assert found == {d.name for d in DOMAINS} | {"recover"}
    for path in (tmp_path / "libexec/privsep-ga").iterdir():
        assert path.stat().st_mode & 0o7777 == 0o755


def test_a_second_run_writes_nothing_and_a_row_that_went_takes_its_program_along(tmp_path: Path) -> None:
    write_all(tmp_path)
    assert write_all(tmp_path) == ""
    old = tmp_path / "libexec/privsep-ga/old"
    old.write_text((tmp_path / "libexec/privsep-ga/fs").read_text())
    foreign = tmp_path / "libexec/privsep-ga/foreign"
    foreign.write_text("not ours")
    assert write_all(tmp_path) == f"removed {old}\n"
    assert foreign.exists()


@pytest.mark.parametrize("folder", ["plain", "with blank", "lo" + "n" * 150 + "g", "qu'ote", "\u00fcmlaut"])
def test_a_program_runs_isolated_wherever_the_interpreter_and_the_modules_are(tmp_path: Path, folder: str) -> None:
    home = tmp_path / folder
    (home / "privsep").mkdir(parents=True)
    (home / "privsep" / "child.py").write_text(PROBE)
    shutil.copy(SCRIPT.parents[1] / "privsep" / "finder.py", home / "privsep")
    python = home / "python"
    # A script in between: an interpreter finds its library by its own place, which a link would change.
    python.write_text(f'#!/bin/sh\nexec {os.path.realpath(sys.executable)} "$@"\n')
    python.chmod(0o755)
    path = tmp_path / "program"
    launchers.write(
        path, launchers.program(str(python), "-IS", str(home), "", "privsep.child", "main('fs')", hurry=True)
    )
    result = subprocess.run([path, "a b", "c"], capture_output=True, text=True, cwd="/", env={"LC_ALL": "C.UTF-8"})
    assert result.stdout == f"{('fs',)} 1 1 ['a b', 'c'] {home}\n", result.stderr
    assert not (home / "privsep" / "__pycache__").exists()


def test_destdir_is_written_to_and_not_written_down(tmp_path: Path) -> None:
    write_all(
        tmp_path / "usr", "--destdir", str(tmp_path / "stage"), "--bindir", "/usr/sbin", "--modules", "/usr/lib/x"
    )
    text = (tmp_path / "stage/usr/sbin/privsep-ga").read_text()
    assert "/usr/lib/x" in text and str(tmp_path / "stage") not in text
