"""The state files and the runtime directory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from privsep import rundir, statefile
from privsep.keyfile import KeyFile


def test_the_state_file_is_made_once(tmp_path: Path) -> None:
    statefile.ensure(str(tmp_path))
    path = tmp_path / "qga.state"
    assert path.read_bytes() == b"[global]\nfd_counter=1000\n"
    path.write_bytes(statefile.text(1234))
    statefile.ensure(str(tmp_path))
    assert KeyFile(path.read_bytes()).get("global", "fd_counter") == "1234"
    assert [p.name for p in tmp_path.iterdir()] == ["qga.state"]
    with pytest.raises(FileNotFoundError):
        statefile.ensure(str(tmp_path / "none"))


def test_the_state_file_is_replaced_not_written_into(tmp_path: Path) -> None:
    path = tmp_path / "qga.state"
    statefile.ensure(str(tmp_path))
    with path.open("rb") as old:
        statefile.replace(str(path), b"new")
        assert old.read() == statefile.text()
    (tmp_path / "qga.state.new").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic"):
        statefile.replace(str(path), b"newer")
    assert path.read_bytes() == b"new"


def test_the_marker(tmp_path: Path) -> None:
    folder = str(tmp_path)
    assert not statefile.is_marked(folder)
    statefile.mark(folder, True)
    statefile.mark(folder, True)
    assert statefile.is_marked(folder) and (tmp_path / "qga.state.isfrozen").read_bytes() == b""
    statefile.mark(folder, False)
    statefile.mark(folder, False)
    assert not statefile.is_marked(folder)


def test_where_the_runtime_directory_is(tmp_path: Path) -> None:
    base = "/run" if rundir.in_memory("/run") else "/dev/shm"
    assert rundir.runtime_dir("/var/run", 0, {}) == f"{base}/privsep-ga"
    assert rundir.runtime_dir("/run", 0, {}) == f"{base}/privsep-ga"
    own = rundir.runtime_dir(str(tmp_path), 0, {})
    assert os.path.dirname(own) == f"{base}/privsep-ga" and len(os.path.basename(own)) == 8
    (tmp_path / "link").symlink_to(tmp_path)
    assert rundir.runtime_dir(str(tmp_path / "link"), 0, {}) == own
    assert rundir.runtime_dir("/var/run", 0, {"RUNTIME_DIRECTORY": "/run/x:/run/y"}) == "/run/x"
    assert rundir.runtime_dir(str(tmp_path), 1000, {"XDG_RUNTIME_DIR": "/run/user/1000"}) == "/run/user/1000/privsep-ga"
    assert rundir.runtime_dir(str(tmp_path), 1000, {}) == str(tmp_path)


def test_what_is_in_memory() -> None:
    assert rundir.in_memory("/dev/shm")
    assert not rundir.in_memory("/proc")
    assert not rundir.in_memory("/nonexistent")
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if line.split()[4] == "/":
            assert rundir.in_memory("/") == (line.partition(" - ")[2].split()[0] in ("tmpfs", "ramfs"))


def test_a_directory_that_others_could_have_made_is_refused(tmp_path: Path) -> None:
    uid = os.geteuid()
    path = str(tmp_path / "privsep-ga" / "0123abcd")
    rundir.make(path, uid)
    rundir.make(path, uid)
    assert os.stat(path).st_mode & 0o777 == 0o755 & ~_umask()
    os.chmod(path, 0o777)
    with pytest.raises(PermissionError):
        rundir.make(path, uid)
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "privsep-ga")
    with pytest.raises(NotADirectoryError):
        rundir.make(str(link), uid)


def _umask() -> int:
    old = os.umask(0)
    os.umask(old)
    return old


def test_only_an_instances_directory_is_removed_and_only_when_empty(tmp_path: Path) -> None:
    path = tmp_path / "privsep-ga" / "0123abcd"
    path.mkdir(parents=True)
    assert rundir.is_instance(str(path)) and not rundir.is_instance(str(path.parent))
    (path / "journal").touch()
    (path / "other").touch()
    rundir.remove(str(path), str(path / "journal"))
    assert [p.name for p in path.iterdir()] == ["other"]
    (path / "other").unlink()
    rundir.remove(str(path), str(path / "journal"))
    assert not path.exists()
