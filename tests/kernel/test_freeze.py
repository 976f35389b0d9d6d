"""guest-fsfreeze-*: real file systems are frozen and thawed, and nothing is said that is not so."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import time
from pathlib import Path

import pytest

from privsep.crew import FIFREEZE
from tests.support import rcu
from tests.support.agent import wait_for
from tests.support.deadman import thaw
from tests.support.freezekit import Failed, Kit
from tests.support.loopfs import LoopFs, frozen, takes_writes
from tests.support.namespace import isolated

pytestmark = [pytest.mark.root, pytest.mark.loop]

LIMITED = "couldn't hold writes: fsfreeze is limited up to 30 seconds: "


def ioctl(point: str, request: int) -> int:
    """One ioctl on a mount point; the errno."""
    fd = os.open(point, os.O_RDONLY)
    try:
        fcntl.ioctl(fd, request, 0)
    except OSError as e:
        return e.errno or -1
    finally:
        os.close(fd)
    return 0


def write_hook(path: str, body: str = "") -> str:
    """A hook that notes its argument beside itself."""
    Path(path).write_text(f'#!/bin/sh\necho "$# $*" >> {path}.log\n{body}\n')
    os.chmod(path, 0o755)
    return path


def calls(hook: str) -> list[str]:
    path = Path(f"{hook}.log")
    return path.read_text().splitlines() if path.exists() else []


@isolated
def test_freezes_and_thaws_ext4_xfs_and_btrfs() -> None:
    with LoopFs("ext4", "xfs", "btrfs") as fs, Kit() as kit:
        assert kit.status() == "thawed"
        assert kit.freeze(fs.points) == 3
        assert kit.status() == "frozen"
        assert kit.board.frozen
        assert all(frozen(p) for p in fs.points)
        assert rcu.comes_back()
        assert kit.journal().committed
        with pytest.raises(Failed, match="has been disabled"):
            kit.freeze(fs.points)
        assert kit.thaw() == 3
        assert not kit.board.frozen
        assert kit.status() == "thawed"
        assert all(takes_writes(p) for p in fs.points)
        assert kit.thaw() == 0
        assert kit.journal().clear


@isolated
def test_freeze_all_takes_what_is_mounted_and_only_block_devices() -> None:
    with LoopFs("ext4", "ext4") as fs, Kit() as kit:
        assert kit.call("guest-fsfreeze-freeze") == 2
        assert kit.thaw() == 2
        assert not frozen(fs.points[0])


@isolated
def test_names_are_exact_strings_and_unknown_ones_are_ignored() -> None:
    with LoopFs("ext4") as fs, Kit() as kit:
        for names in ([], ["/nonexistent"], [fs.points[0] + "/"], [fs.points[0] + "/lost+found"]):
            assert kit.freeze(names) == 0
            assert kit.status() == "thawed"
            assert not kit.board.frozen
        # A superblock is meant by any of its mount points, and counted once.
        other = f"{fs.folder}/bind"
        os.mkdir(other)
        subprocess.run(["mount", "--bind", fs.points[0], other], check=True)
        assert kit.freeze([other]) == 1
        assert frozen(fs.points[0])
        assert kit.thaw() == 1
        assert kit.freeze([other, fs.points[0]]) == 1
        assert kit.thaw() == 1
        subprocess.run(["umount", other], check=True)


@isolated
def test_a_file_system_in_a_file_on_another_is_frozen_before_it() -> None:
    with LoopFs("btrfs") as fs, Kit() as kit:
        lower = fs.points[0]
        upper = f"{fs.folder}/upper"
        image = f"{lower}/image"
        fs.add(upper, "ext4", image)
        for _ in range(3):
            Path(f"{upper}/dirty").write_bytes(os.urandom(1 << 20))
            assert kit.call("guest-fsfreeze-freeze", limit=20) == 2
            assert kit.thaw() == 2


@isolated
def test_what_somebody_else_froze_is_not_counted_and_stays_frozen() -> None:
    with LoopFs("ext4", "ext4") as fs, Kit() as kit:
        assert ioctl(fs.points[0], FIFREEZE) == 0
        assert kit.freeze(fs.points) == 1
        assert kit.thaw() == 1
        assert frozen(fs.points[0])
        assert not frozen(fs.points[1])
        # Nothing is held now: a thaw thaws what others left, as the peer does.
        assert kit.thaw() == 1
        assert takes_writes(fs.points[0])


@isolated
def test_a_read_only_file_system_is_frozen_like_any_other() -> None:
    with LoopFs("ext4") as fs, Kit() as kit:
        subprocess.run(["mount", "-o", "remount,ro", fs.points[0]], check=True)
        assert kit.freeze(fs.points) == 1
        assert ioctl(fs.points[0], FIFREEZE) == errno.EBUSY
        assert kit.thaw() == 1
        subprocess.run(["mount", "-o", "remount,rw", fs.points[0]], check=True)


@isolated
def test_a_covered_mount_is_skipped_and_named_in_the_log() -> None:
    with LoopFs("ext4", "ext4") as fs, Kit() as kit:
        subprocess.run(["mount", "-t", "tmpfs", "cover", fs.points[1]], check=True)
        assert kit.freeze(fs.points) == 1
        assert kit.thaw() == 1
        subprocess.run(["umount", fs.points[1]], check=True)
        assert f"{fs.points[1]} (7:" in kit.logged()
        assert not frozen(fs.points[1])


@isolated
def test_umount_works_after_the_thaw() -> None:
    with LoopFs("ext4") as fs, Kit() as kit:
        assert kit.freeze(fs.points) == 1
        assert kit.thaw() == 1
        fs.release()
        subprocess.run(["umount", fs.points[0]], check=True)


@isolated
def test_a_freeze_that_did_not_hold_is_told_until_it_is_delivered() -> None:
    with LoopFs("ext4", "ext4") as fs, Kit() as kit:
        assert kit.freeze(fs.points) == 2
        fd = os.open(fs.points[1], os.O_RDONLY)
        assert thaw(fd)
        os.close(fd)
        for deliver in (False, False, True):
            with pytest.raises(Failed) as told:
                kit.thaw(deliver=deliver)
            assert str(told.value).startswith(LIMITED + "a file system was thawed by another program")
            assert not frozen(fs.points[0], 0.2)
            assert kit.status() == "thawed"
        kit.wait_journal(lambda state: state.clear)
        assert kit.thaw() == 0
        assert kit.freeze(fs.points) == 2
        assert kit.thaw() == 2


@isolated
def test_a_lapse_that_was_not_told_refuses_the_next_freeze() -> None:
    with LoopFs("ext4") as fs, Kit() as kit:
        assert kit.freeze(fs.points) == 1
        fs.thaw()
        with pytest.raises(Failed, match="fsfreeze is limited up to 30 seconds"):
            kit.thaw(deliver=False)
        with pytest.raises(Failed, match="fsfreeze is limited up to 30 seconds"):
            kit.freeze(fs.points)
        assert not frozen(fs.points[0])
        assert kit.freeze(fs.points) == 1
        assert kit.thaw() == 1


@isolated
def test_the_hook_is_called_in_pairs() -> None:
    hook = write_hook("/tmp/hook")
    with LoopFs("ext4") as fs, Kit(hook=hook) as kit:
        assert kit.freeze(fs.points) == 1
        assert calls(hook) == ["1 freeze"]
        assert kit.thaw() == 1
        assert calls(hook) == ["1 freeze", "1 thaw"]
        assert kit.freeze(["/nonexistent"]) == 0
        assert calls(hook)[2:] == ["1 freeze", "1 thaw"]
        assert kit.thaw() == 0
        assert calls(hook)[4:] == ["1 thaw"]


@isolated
def test_a_hook_that_fails_stops_the_freeze() -> None:
    hook = write_hook("/tmp/hook", '[ "$1" = thaw ] || { echo database is busy; exit 3; }')
    with LoopFs("ext4") as fs, Kit(hook=hook) as kit:
        with pytest.raises(Failed) as e:
            kit.freeze(fs.points)
        assert str(e.value) == "child process has failed to execute fsfreeze hook: database is busy\n"
        assert not frozen(fs.points[0])
        assert not kit.board.frozen
        assert calls(hook) == ["1 freeze"]
        assert kit.thaw() == 0


@isolated
def test_the_hook_s_words_are_the_peer_s() -> None:
    Path("/tmp/hook").write_text("#!/bin/sh\n")
    with Kit(hook="/tmp/hook") as kit:
        for body, text in (
            ("", "child process has failed to execute fsfreeze hook: failed to exec '/tmp/hook': Permission denied\n"),
            ("exit 1", "child process has failed to execute fsfreeze hook: exit status 1"),
            ("kill -9 $$", "child process has terminated abnormally"),
        ):
            if body:
                write_hook("/tmp/hook", body)
            with pytest.raises(Failed) as e:
                kit.freeze([])
            assert str(e.value) == text


@isolated
def test_a_thaw_hook_that_fails_is_told_although_all_is_thawed() -> None:
    hook = write_hook("/tmp/hook", '[ "$1" = freeze ]')
    with LoopFs("ext4") as fs, Kit(hook=hook) as kit:
        assert kit.freeze(fs.points) == 1
        with pytest.raises(Failed, match="execute fsfreeze hook: exit status 1"):
            kit.thaw()
        assert kit.status() == "thawed"
        assert not frozen(fs.points[0])


@isolated
def test_a_hook_that_hangs_is_killed_with_its_children_and_followed_by_thaw() -> None:
    hook = write_hook("/tmp/hook", '[ "$1" = thaw ] && exit 0\nsleep 600 & echo $! > /tmp/child\nwait')
    with LoopFs("ext4") as fs, Kit(hook=hook, hook_limit=1) as kit:
        with pytest.raises(Failed, match="not done within 1 seconds"):
            kit.freeze(fs.points)
        assert calls(hook) == ["1 freeze", "1 thaw"]
        status = Path(f"/proc/{Path('/tmp/child').read_text().strip()}/status")
        wait_for(lambda: not status.exists() or "State:\tZ" in status.read_text(), 5.0)


@isolated
def test_a_dying_hook_worker_does_not_cost_the_thaw_hook() -> None:
    hook = write_hook("/tmp/hook")
    with LoopFs("ext4") as fs, Kit(hook=hook) as kit:
        assert kit.freeze(fs.points) == 1
        assert kit.hook
        kit.hook.kill()
        assert kit.hook.ended(5)
        number = kit.send(kit.verb("guest-fsfreeze-thaw"), {})
        kit.wait_journal(lambda state: not state.entries)
        kit.start_hook()
        kit.give_hook()
        assert kit.reply(number) == 1
        assert calls(hook) == ["1 freeze", "1 thaw"]
        assert kit.journal().clear


@isolated
def test_a_state_folder_that_freezes_too_gets_no_marker() -> None:
    with LoopFs("ext4", "ext4") as fs, Kit(statedir=f"{(fs.points[0])}/") as kit:
        assert kit.freeze(fs.points[:1]) == 1
        assert kit.thaw() == 1
        assert kit.freeze(fs.points[1:]) == 1
        assert kit.thaw() == 1
        assert [b for b in kit.seen if b.startswith("fs")] == ["fs a", "fs A"]


@isolated
def test_without_the_supervisor_s_answer_nothing_is_frozen() -> None:
    with LoopFs("ext4") as fs, Kit() as kit:
        kit.answers = False
        with pytest.raises(Failed, match="supervisor does not answer"):
            kit.freeze(fs.points)
        assert not frozen(fs.points[0])
        assert not kit.journal().entries


@isolated
def test_while_frozen_fs_and_thawer_map_no_memory_and_open_no_file() -> None:
    def picture(pid: int) -> tuple[list[str], list[str]]:
        maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
        return [line.split()[0] for line in maps], sorted(os.listdir(f"/proc/{pid}/fd"))

    with LoopFs("ext4", "ext4") as fs, Kit() as kit:
        assert kit.fs
        assert kit.thawer
        assert kit.freeze(fs.points) == 2
        assert kit.thaw() == 2
        assert kit.freeze(fs.points) == 2
        before = picture(kit.fs.pid), picture(kit.thawer.pid)
        for _ in range(50):
            assert kit.status() == "frozen"
        assert (picture(kit.fs.pid), picture(kit.thawer.pid)) == before
        for process in (kit.fs, kit.thawer):
            status = Path(f"/proc/{process.pid}/status").read_text()
            locked = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmLck"))
            assert locked > 4096
        assert kit.thaw() == 2


@isolated
def test_many_file_systems_are_frozen_in_a_few_milliseconds() -> None:
    with LoopFs(*["ext4"] * 8) as fs, Kit() as kit:
        times = []
        for _ in range(3):
            begun = time.monotonic()
            assert kit.freeze(fs.points) == 8
            times.append(time.monotonic() - begun)
            assert kit.thaw() == 8
        # One after the other it takes the kernel's grace periods, some 30 ms each.
        assert min(times) < 0.1
