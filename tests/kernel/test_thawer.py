"""Nothing stays frozen, and the host is told: whoever is killed or stopped, whenever."""

from __future__ import annotations

import array
import fcntl
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from privsep import thawwire as wire
from privsep.crew import FIFREEZE
from privsep.recover import recover
from tests.support import rcu
from tests.support.freezekit import Died, Failed, Kit
from tests.support.loopfs import LoopFs, frozen, takes_writes
from tests.support.namespace import PROJECT, isolated

pytestmark = [pytest.mark.root, pytest.mark.loop]


def told(kit: Kit) -> str:
    """The next thaw must be an error: its reason."""
    with pytest.raises(Failed) as e:
        kit.thaw()
    text = str(e.value)
    assert text.startswith("couldn't hold writes: fsfreeze is limited up to ")
    kit.wait_journal(lambda state: state.clear)
    return text.partition(" seconds: ")[2]


def restart_fs(kit: Kit) -> None:
    assert kit.fs
    assert kit.fs.ended(5)
    kit.start_fs()


def restart_both(kit: Kit) -> None:
    assert kit.thawer
    assert kit.thawer.ended(5)
    kit.start_thawer()
    restart_fs(kit)


def hook_at(path: str) -> str:
    Path(path).write_text(f'#!/bin/sh\necho "$1" >> {path}.log\n')
    os.chmod(path, 0o755)
    return path


# -- the deadline


@isolated
def test_the_deadline_thaws_and_the_host_is_told_once() -> None:
    hook = hook_at("/tmp/hook")
    with LoopFs("ext4", "xfs") as fs, Kit(seconds=1, hook=hook) as kit:
        assert kit.freeze(fs.points) == 2
        begun = time.monotonic()
        assert frozen(fs.points[0])
        assert takes_writes(fs.points[0], 3)
        assert time.monotonic() - begun < 1.5
        kit.wait_journal(lambda state: not state.entries)
        restart_fs(kit)
        kit.wait_journal(lambda state: not state.hook_due)
        assert Path(f"{hook}.log").read_text().split() == ["freeze", "thaw"]
        assert kit.status() == "thawed"
        assert not kit.board.frozen
        assert kit.seen == ["fs A", "thawer K", "thawer T"]
        assert told(kit) == "the time limit has passed"
        assert Path(f"{hook}.log").read_text().split() == ["freeze", "thaw"]
        assert kit.freeze(fs.points) == 2
        assert kit.thaw() == 2


@isolated
def test_a_stopped_fs_cannot_keep_it_frozen() -> None:
    with LoopFs("ext4") as fs, Kit(seconds=1) as kit:
        assert kit.freeze(fs.points) == 1
        assert kit.fs
        kit.fs.kill(signal.SIGSTOP)
        assert takes_writes(fs.points[0], 3)
        restart_fs(kit)
        assert told(kit) == "the time limit has passed"


@isolated
def test_a_freeze_that_is_in_flight_is_thawed_when_it_lands() -> None:
    """fs has frozen the lower file system; its FIFREEZE of the upper one waits for that, in the kernel, for ever."""
    with LoopFs("ext4") as fs, Kit(seconds=1, fs=False) as kit:
        lower, upper = fs.points[0], f"{fs.folder}/upper"
        image = f"{lower}/image"
        with open(image, "wb") as f:
            f.truncate(8 << 20)
        subprocess.run(["mkfs.ext4", "-q", image], check=True)
        os.mkdir(upper)
        subprocess.run(["mount", "-o", "loop", image, upper], check=True)
        Path(f"{upper}/dirty").write_bytes(os.urandom(1 << 20))
        fds = [os.open(p, os.O_RDONLY) for p in (lower, upper)]
        link = kit.link()
        assert link.begin(1, 1, None, fds)
        fcntl.ioctl(fds[0], FIFREEZE, 0)
        thread = threading.Thread(target=lambda: fcntl.ioctl(fds[1], FIFREEZE, 0))
        begun = time.monotonic()
        thread.start()
        thread.join(0.5)
        assert thread.is_alive(), "the freeze was to wait"
        thread.join(5)
        assert not thread.is_alive()
        assert time.monotonic() - begun < 3
        assert takes_writes(upper, 3)
        assert takes_writes(lower, 3)
        # It keeps its descriptors, and thaws, until fs is gone.
        assert link.ask().held == 2
        fcntl.ioctl(fds[0], FIFREEZE, 0)
        assert takes_writes(lower, 3)
        assert "thawer T" not in kit.seen
        link.socket.close()
        kit.wait_journal(lambda state: "thawer T" in kit.seen)
        for fd in fds:
            os.close(fd)
        subprocess.run(["umount", upper], check=True)


@isolated
def test_a_freeze_that_lands_in_the_last_breath_of_fs_is_thawed() -> None:
    """The thawer found nothing frozen, then fs freezes and ends at once: what it found before counts no more."""
    with LoopFs("ext4") as fs, Kit(seconds=1, fs=False) as kit:
        fd = os.open(fs.points[0], os.O_RDONLY)
        link = kit.link()
        assert link.begin(1, 1, None, [fd])
        kit.wait_journal(lambda state: "thawer K" in kit.seen)
        time.sleep(1.2)  # it tries again, more and more seldom
        fcntl.ioctl(fd, FIFREEZE, 0)
        link.socket.close()
        assert takes_writes(fs.points[0], 0.5)
        kit.wait_journal(lambda state: "thawer T" in kit.seen)
        os.close(fd)


# -- deaths


@isolated
def test_fs_that_dies_before_the_reply_was_delivered_costs_the_freeze() -> None:
    with LoopFs("ext4") as fs, Kit() as kit:
        assert kit.freeze(fs.points, deliver=False) == 1
        assert kit.fs
        kit.fs.kill()
        assert takes_writes(fs.points[0], 1)
        restart_fs(kit)
        assert kit.status() == "thawed"
        assert told(kit) == "the fs worker died before the freeze was confirmed"


@isolated
def test_a_new_fs_takes_a_committed_freeze_over() -> None:
    hook = hook_at("/tmp/hook")
    with LoopFs("ext4", "xfs") as fs, Kit(hook=hook) as kit:
        assert kit.freeze(fs.points) == 2
        kit.status()
        for _ in range(2):
            assert kit.fs
            kit.fs.kill()
            restart_fs(kit)
            assert kit.status() == "frozen"
            assert kit.board.frozen
        assert all(frozen(p) for p in fs.points)
        assert kit.thaw() == 2
        assert Path(f"{hook}.log").read_text().split() == ["freeze", "thaw"]
        assert kit.journal().clear


@isolated
def test_a_committed_freeze_whose_fs_does_not_come_back_is_thawed() -> None:
    with LoopFs("ext4") as fs, Kit() as kit:
        assert kit.freeze(fs.points) == 1
        kit.status()
        assert kit.fs
        kit.fs.kill()
        assert frozen(fs.points[0], 3)
        assert takes_writes(fs.points[0], 4)
        kit.wait_journal(lambda state: not state.entries)
        restart_fs(kit)
        assert told(kit) == "the fs worker died and was not back in time"


@isolated
def test_when_the_thawer_dies_fs_thaws_at_once_and_ends() -> None:
    with LoopFs("ext4", "btrfs") as fs, Kit() as kit:
        assert kit.freeze(fs.points) == 2
        kit.status()
        assert kit.thawer
        kit.thawer.kill()
        assert all(takes_writes(p, 1) for p in fs.points)
        kit.wait_journal(lambda state: not state.entries)
        restart_both(kit)
        assert told(kit) == "the agent's freeze watchdog died"
        assert not kit.board.frozen


@isolated
def test_when_the_thawer_dies_after_a_take_over_fs_thaws_from_the_journal() -> None:
    with LoopFs("ext4", "btrfs") as fs, Kit() as kit:
        assert kit.freeze(fs.points) == 2
        kit.status()
        assert kit.fs
        assert kit.thawer
        kit.fs.kill()
        restart_fs(kit)
        assert kit.status() == "frozen"
        kit.thawer.kill()
        assert all(takes_writes(p, 1) for p in fs.points)
        restart_both(kit)
        assert told(kit) == "the agent's freeze watchdog died"


@isolated
def test_a_stopped_thawer_fails_the_request_and_not_the_thaw() -> None:
    with LoopFs("ext4") as fs, Kit() as kit:
        assert kit.freeze(fs.points) == 1
        assert kit.thawer
        kit.thawer.kill(signal.SIGSTOP)
        with pytest.raises(Died):
            kit.status()  # no answer within ASK_LIMIT: fs thaws by itself and ends
        assert takes_writes(fs.points[0], 1)
        kit.thawer.kill()
        restart_both(kit)
        assert told(kit) == "the agent's freeze watchdog died"


@isolated
def test_when_the_supervisor_dies_the_thawer_thaws_and_ends() -> None:
    with LoopFs("ext4", "xfs") as fs, Kit() as kit:
        assert kit.freeze(fs.points) == 2
        assert kit.fs
        assert kit.thawer
        kit.fs.kill(signal.SIGSTOP)
        kit._over = True
        kit._thread.join()
        kit.thawer.control.close()
        assert all(takes_writes(p, 1) for p in fs.points)
        kit.fs.kill()
        assert kit.thawer.ended(3)
        state = kit.journal()
        assert not state.entries
        assert state.lapse is not None
        assert state.lapse.reason == "the agent's supervisor died"


@isolated
def test_when_supervisor_and_thawer_die_together_fs_thaws_and_ends() -> None:
    with LoopFs("ext4", "xfs") as fs, Kit() as kit:
        assert kit.freeze(fs.points) == 2
        assert kit.fs
        assert kit.thawer
        kit._over = True
        kit._thread.join()
        kit.fs.kill(signal.SIGSTOP)
        kit.thawer.kill()
        assert kit.thawer.ended(3)
        kit.fs.control.close()
        kit.fs.kill(signal.SIGCONT)
        assert all(takes_writes(p, 1) for p in fs.points)
        assert kit.fs.ended(3)
        state = kit.journal()
        assert not state.entries
        assert state.lapse is not None


@isolated
def test_a_supervisor_that_goes_while_a_thaw_is_asked_for_does_not_stop_it() -> None:
    with LoopFs("ext4") as fs, Kit() as kit:
        assert kit.freeze(fs.points) == 1
        kit.answers = False  # it does not acknowledge
        begun = time.monotonic()
        assert kit.thaw() == 1
        assert time.monotonic() - begun < 2
        assert kit.seen[-1] == "thawer T"
        kit.board.set_frozen(False)
        kit.answers = True


@isolated
def test_when_both_are_killed_the_journal_thaws() -> None:
    with LoopFs("ext4", "xfs", "btrfs") as fs, Kit() as kit:
        assert kit.freeze(fs.points) == 3
        kit.status()
        assert kit.fs
        assert kit.thawer
        kit.thawer.kill(signal.SIGSTOP)
        kit.fs.kill()
        kit.thawer.kill()
        assert kit.fs.ended(5)
        assert kit.thawer.ended(5)
        assert frozen(fs.points[0])
        lines = recover(kit.journal_path, "the agent was killed")
        assert all(f"{p} was frozen and is thawed" in lines for p in fs.points)
        assert all(takes_writes(p, 1) for p in fs.points)
        assert recover(kit.journal_path) == []
        kit.board.set_frozen(False)
        kit.start_thawer()
        kit.start_fs()
        assert told(kit) == "the agent was killed"


@isolated
def test_the_journal_thaws_as_a_program_and_only_what_it_names() -> None:
    with LoopFs("ext4", "ext4") as fs, Kit() as kit:
        fd = os.open(fs.points[1], os.O_RDONLY)
        fcntl.ioctl(fd, FIFREEZE, 0)
        assert kit.freeze(fs.points[:1]) == 1
        kit.status()
        assert kit.fs
        assert kit.thawer
        kit.thawer.kill(signal.SIGSTOP)
        kit.fs.kill()
        kit.thawer.kill()
        # The mount point has gone elsewhere and another file system lies there now.
        elsewhere = f"{fs.folder}/elsewhere"
        os.mkdir(elsewhere)
        subprocess.run(["mount", "--bind", fs.points[0], elsewhere], check=True)
        subprocess.run(["mount", "--bind", fs.points[1], fs.points[0]], check=True)
        done = subprocess.run(
            [sys.executable, "-m", "privsep.recover", kit.journal_path], cwd=PROJECT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert takes_writes(elsewhere, 1)
        assert frozen(fs.points[1])
        fcntl.ioctl(fd, 0xC0045878, 0)
        os.close(fd)
        subprocess.run(["umount", fs.points[0]], check=True)
        fs.release()
        subprocess.run(["umount", elsewhere], check=True)


@isolated
def test_a_stop_of_the_agent_thaws_and_pairs_the_hook() -> None:
    hook = hook_at("/tmp/hook")
    with LoopFs("ext4") as fs, Kit(hook=hook) as kit:
        assert kit.freeze(fs.points) == 1
        assert kit.fs
        kit.fs.control.send(b"Q")
        assert takes_writes(fs.points[0], 1)
        assert kit.fs.ended(3)
        assert Path(f"{hook}.log").read_text().split() == ["freeze", "thaw"]
        lapse = kit.journal().lapse
        assert lapse is not None
        assert lapse.reason == "the agent was stopped"


@isolated
def test_fs_killed_at_any_instant_of_a_freeze_leaves_nothing_frozen() -> None:
    chance = random.Random(7)
    with LoopFs("ext4", "xfs", "ext4") as fs, Kit() as kit:
        kit.freeze(fs.points)
        kit.thaw()
        for _ in range(25):
            assert kit.fs
            kit.send(kit.verb("guest-fsfreeze-freeze-list"), {"mountpoints": fs.points})
            time.sleep(chance.random() * 0.008)
            kit.fs.kill()
            assert all(takes_writes(p, 2) for p in fs.points)
            assert kit.fs.ended(5)
            kit.wait_journal(lambda state: not state.entries or not state.lapse)
            assert rcu.comes_back()
            kit.start_fs()
            assert kit.status() == "thawed"
            kit.wait_journal(lambda state: not state.pending)
            if kit.journal().lapse is not None:
                told(kit)
            assert not kit.board.frozen


@isolated
def test_thawer_killed_at_any_instant_of_a_freeze_leaves_nothing_frozen() -> None:
    chance = random.Random(11)
    with LoopFs("ext4", "xfs", "ext4") as fs, Kit() as kit:
        kit.freeze(fs.points)
        kit.thaw()
        for _ in range(12):
            assert kit.fs
            assert kit.thawer
            number = kit.send(kit.verb("guest-fsfreeze-freeze-list"), {"mountpoints": fs.points})
            time.sleep(chance.random() * 0.008)
            kit.thawer.kill()
            try:
                kit.reply(number)
            except (Died, Failed):
                pass
            assert all(takes_writes(p, 2) for p in fs.points)
            kit.fs.kill()
            restart_both(kit)
            state = kit.wait_journal(lambda state: not state.pending)
            if state.lapse is not None:
                told(kit)
            assert not kit.board.frozen


# -- a hostile fs


def fd_message(data: bytes, fds: list[int]) -> tuple[bytes, list[tuple[int, int, array.array[int]]]]:
    return data, [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []


def wait_idle(link: wire.Link) -> None:
    end = time.monotonic() + 3
    while link.ask().phase != wire.PHASE_IDLE:
        assert time.monotonic() < end
        time.sleep(0.01)


@isolated
def test_whatever_a_hostile_fs_says_what_it_registered_is_thawed() -> None:
    devices = [os.open("/dev/null", os.O_RDONLY), os.open("/", os.O_PATH)]
    begin = wire.BEGIN_BODY.pack(wire.BEGIN, 9, 30, 0, 2)
    hostile: list[tuple[bytes, list[int]]] = [
        (b"\x00", []),
        (b"\xff" * 100, []),
        (b"x" * (wire.BIGGEST + 100), []),
        (begin, []),
        (begin[:-1], []),
        (wire.HOLD_BODY.pack(wire.HOLD, 7, 0, 1), []),
        (wire.HOLD_BODY.pack(wire.HOLD, 7, 1, 1), devices[:1]),
        (wire.HOLD_BODY.pack(wire.HOLD, 7, 1, 1), devices[1:]),
        (wire.HOLD_BODY.pack(wire.HOLD, 8, 1, 1), [-1]),
        (wire.HOLD_BODY.pack(wire.HOLD, 7, 1, 200), [-1] * 200),
        (wire.FROZEN_BODY.pack(wire.FROZEN, 7, 2) + b"ff", []),
        (wire.FROZEN_BODY.pack(wire.FROZEN, 7, 1) + b"x", []),
        (wire.CYCLE_BODY.pack(wire.COMMIT, 7) + b"x", []),
        (wire.KIND.pack(wire.ASK), devices),
    ]
    with LoopFs("ext4") as fs, Kit(fs=False) as kit:
        fd = os.open(fs.points[0], os.O_RDONLY)
        assert kit.thawer
        for data, fds in hostile:
            link = kit.link()
            wait_idle(link)
            assert link.begin(7, 30, None, [fd])
            fcntl.ioctl(fd, FIFREEZE, 0)
            data, ancillary = fd_message(data, [fd if n == -1 else n for n in fds])
            kit.seen.clear()
            link.socket.sendmsg([data], ancillary)
            assert takes_writes(fs.points[0], 1), data
            link.socket.close()
        # It lives, holds nothing, and works.
        link = kit.link()
        wait_idle(link)
        left = os.listdir(f"/proc/{kit.thawer.pid}/fd")
        assert len(left) < 16, left
        assert link.begin(8, 30, None, [fd])
        fcntl.ioctl(fd, FIFREEZE, 0)
        assert link.frozen(8, b"f")
        assert link.thaw(lower=True).results == b"h"
        os.close(fd)


@isolated
def test_a_flood_of_questions_does_not_hold_the_deadline_up() -> None:
    with LoopFs("ext4") as fs, Kit(seconds=1, fs=False) as kit:
        fd = os.open(fs.points[0], os.O_RDONLY)
        link = kit.link()
        assert link.begin(1, 1, None, [fd])
        fcntl.ioctl(fd, FIFREEZE, 0)
        over = threading.Event()

        def flood() -> None:
            while not over.is_set():
                link.ask()

        thread = threading.Thread(target=flood)
        thread.start()
        assert takes_writes(fs.points[0], 2)
        over.set()
        thread.join()
        assert "thawer K" in kit.seen
        link.socket.close()
        os.close(fd)


@isolated
def test_rcu_expedited_is_put_back_when_fs_dies_in_the_middle() -> None:
    with LoopFs("ext4") as fs, Kit(fs=False) as kit:
        fd = os.open(fs.points[0], os.O_RDONLY)
        link = kit.link()
        assert link.begin(1, 30, "0", [fd])
        rcu.PATH.write_text("1")
        link.socket.close()
        kit.wait_journal(lambda state: "thawer T" in kit.seen)
        assert rcu.comes_back()
        os.close(fd)


@isolated
def test_agents_beside_each_other_leave_rcu_expedited_at_0() -> None:
    """Each freezes and thaws as fast as it can; one is killed in the middle now and then."""
    with LoopFs("ext4") as one, LoopFs("ext4") as other, Kit() as first, Kit() as second:

        def work(kit: Kit, fs: LoopFs) -> None:
            for _ in range(15):
                assert kit.freeze(fs.points) == 1
                assert kit.thaw() == 1

        thread = threading.Thread(target=work, args=(first, one))
        thread.start()
        chance = random.Random(3)
        for _ in range(8):
            assert second.fs
            second.send(second.verb("guest-fsfreeze-freeze-list"), {"mountpoints": other.points})
            time.sleep(chance.random() * 0.006)
            second.fs.kill()
            assert second.fs.ended(5)
            second.wait_journal(lambda state: state.rcu is None)
            second.start_fs()
            second.wait_journal(lambda state: not state.pending)
        thread.join(60)
        assert not thread.is_alive()
        assert first.journal().rcu is None
        assert rcu.comes_back()
        if second.journal().lapse is not None:
            told(second)


@isolated
def test_an_answer_that_is_cut_short_is_a_lost_thawer() -> None:
    for data in (b"", b"\x10", bytes((wire.STATUS,)) + bytes(5), struct.pack("<BQIBH", wire.THAWED, 1, 1, 0, 3)):
        with pytest.raises(wire.ThawerLost):
            wire.Status(data)
        with pytest.raises(wire.ThawerLost):
            wire.Thawed(data)
