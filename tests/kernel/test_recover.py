"""Thawing from the journal when something is in its way: nothing is called thawed that is not, and nothing else has to wait."""

from __future__ import annotations

import ctypes
import os
import signal

import pytest

from privsep import crew, recover
from privsep.recover import StillFrozen
from tests.support.freezekit import Kit
from tests.support.loopfs import LoopFs, frozen, takes_writes
from tests.support.namespace import isolated

pytestmark = [pytest.mark.root, pytest.mark.loop]

_LIBC = ctypes.CDLL(None, use_errno=True)


def left_frozen(fs: LoopFs, kit: Kit) -> str:
    """The journal's path, fs and thawer being killed."""
    assert kit.freeze(fs.points) == len(fs.points)
    kit.status()
    assert kit.fs and kit.thawer
    kit.thawer.kill(signal.SIGSTOP)
    kit.fs.kill()
    kit.thawer.kill()
    assert kit.fs.ended(5) and kit.thawer.ended(5)
    assert all(frozen(p) for p in fs.points)
    return kit.journal_path


@isolated
def test_what_is_mounted_and_cannot_be_opened_is_not_called_thawed() -> None:
    with LoopFs("ext4", "xfs") as fs, Kit() as kit:
        journal = left_frozen(fs, kit)
        one, two = fs.points
        assert _LIBC.mount(b"none", one.encode(), b"tmpfs", 0, None) == 0
        try:
            for _ in range(2):
                with pytest.raises(StillFrozen, match=f"still frozen: {one}"):
                    recover.recover(journal)
                assert takes_writes(two, 1)
        finally:
            assert _LIBC.umount2(one.encode(), 0) == 0
        assert f"{one} was frozen and is thawed" in recover.recover(journal)
        assert takes_writes(one, 1)
        assert recover.recover(journal) == []


@isolated
def test_nothing_is_final_while_a_process_that_freezes_lives() -> None:
    with LoopFs("ext4") as fs, Kit() as kit:
        journal = left_frozen(fs, kit)
        for _ in range(2):
            with pytest.raises(StillFrozen, match="cannot be ended"):
                recover.recover(journal, "the deadline passed", False)
            assert takes_writes(fs.points[0], 1)
        assert recover.recover(journal, "the deadline passed") == []
        assert recover.main([journal]) == 0


@isolated
def test_no_threads_and_a_full_run_do_not_keep_it_from_thawing() -> None:
    patch = pytest.MonkeyPatch()
    with LoopFs("ext4", "btrfs") as fs, Kit() as kit:
        journal = left_frozen(fs, kit)

        def none(self: object, count: int) -> None:
            raise RuntimeError("can't start new thread")

        def full(self: object, *records: str) -> None:
            raise OSError(28, "No space left on device")

        with patch.context() as patched:
            patched.setattr(crew.Crew, "ensure", none)
            patched.setattr(recover.Journal, "append", full)
            with pytest.raises(OSError, match="No space"):
                recover.recover(journal)
        assert all(takes_writes(p, 1) for p in fs.points)
        with open(journal, "rb") as file:
            assert file.read()
        recover.recover(journal)
        assert recover.recover(journal) == []


@isolated
def test_more_file_systems_than_a_service_may_open_at_once() -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with LoopFs("ext4", "ext4", "ext4") as fs, Kit() as kit:
        journal = left_frozen(fs, kit)
        in_use = max(map(int, os.listdir("/proc/self/fd"))) + 1
        resource.setrlimit(resource.RLIMIT_NOFILE, (in_use + 1, hard))
        try:
            lines = recover.recover(journal)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert all(f"{p} was frozen and is thawed" in lines for p in fs.points)
