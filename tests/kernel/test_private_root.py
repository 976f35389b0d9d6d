"""The net under every freeze test: no device of the machine in sight, and a dead man who thaws whatever happens."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support import loopfs
from tests.support.deadman import FITHAW, DeadMan
from tests.support.namespace import PROJECT, block_mounts, isolated, thaw_everything

FIFREEZE = 0xC0045877

pytestmark = [pytest.mark.root, pytest.mark.loop]


def mounted(name: str) -> str:
    """A small ext4 on a loop device, inside a private root only."""
    assert not block_mounts()
    mountpoint = f"/tmp/{name}"
    loopfs.make(mountpoint)
    return mountpoint


def freeze(mountpoint: str) -> int:
    fd = os.open(mountpoint, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.ioctl(fd, FIFREEZE, 0)
    return fd


def is_frozen(fd: int) -> bool:
    """Ask by freezing: EBUSY says that it is frozen already."""
    try:
        fcntl.ioctl(fd, FIFREEZE, 0)
    except OSError:
        return True
    fcntl.ioctl(fd, FITHAW, 0)
    return False


def test_outside_nothing_of_it_remains() -> None:
    before = Path("/proc/self/mountinfo").read_text()

    @isolated
    def inside() -> None:
        assert block_mounts() == []
        Path("/etc/only-inside").write_text("x")
        assert list(Path("/run").iterdir()) == [] and list(Path("/dev/shm").iterdir()) == []
        assert (PROJECT / "pyproject.toml").is_file()
        assert "privsep-ga:" in Path("/etc/passwd").read_text()

    inside()
    assert not Path("/etc/only-inside").exists()
    assert Path("/proc/self/mountinfo").read_text() == before


def test_a_failure_inside_is_a_failure_outside() -> None:
    @isolated
    def inside() -> None:
        assert 1 == 2, "as it should be"

    with pytest.raises(pytest.fail.Exception, match="as it should be"):
        inside()


def test_block_devices_are_recognised_btrfs_too() -> None:
    text = (
        "27 1 254:0 / / rw shared:1 - ext4 /dev/vda rw\n"
        "28 27 0:25 / /run rw - tmpfs tmpfs rw\n"
        "29 27 0:31 /@home /home rw - btrfs /dev/sdb1 rw\n"
    )
    assert block_mounts(text) == ["/", "/home"]


@isolated
def test_the_dead_man_thaws_when_his_time_is_up() -> None:
    mountpoint = mounted("a")
    man = DeadMan(0.3, mountpoint)
    started = time.monotonic()
    fd = freeze(mountpoint)
    assert is_frozen(fd)
    Path(mountpoint, "file").write_text("goes through once it is thawed")
    assert 0.2 < time.monotonic() - started < 2
    assert not man.cancel()
    assert not is_frozen(fd)


@isolated
def test_the_dead_man_thaws_when_who_started_him_is_killed() -> None:
    mountpoint = mounted("b")
    code = (
        "import os, signal, fcntl; from tests.support.deadman import DeadMan\n"
        f"DeadMan(60, {mountpoint!r})\n"
        f"fcntl.ioctl(os.open({mountpoint!r}, os.O_RDONLY), {FIFREEZE}, 0)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=PROJECT)
    assert result.returncode == -signal.SIGKILL
    Path(mountpoint, "file").write_text("goes through")


@isolated
def test_the_dead_man_leaves_alone_what_others_thawed() -> None:
    mountpoint = mounted("c")
    with DeadMan(60, mountpoint) as man:
        fcntl.ioctl(freeze(mountpoint), FITHAW, 0)
        assert man.cancel()


@isolated
def test_what_a_test_leaves_frozen_is_thawed_with_its_private_root() -> None:
    mountpoint = mounted("d")
    with DeadMan(60, mountpoint):
        freeze(mountpoint)
        assert thaw_everything() == [mountpoint]
        assert thaw_everything() == []
