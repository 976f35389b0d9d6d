"""A file system that does not answer costs its own sizes and one wait, not the reply and not the next request's time."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from tests.support.namespace import isolated
from workers.sizes import MOST_STUCK, Surveyor, sizes_of

ROOT = os.statvfs("/")


class Machine:
    """Stands for statvfs: paths in `hang` do not answer until `revive`."""

    def __init__(self, *hang: str) -> None:
        self.hang = set(hang)
        self.gate = threading.Event()
        self.asked: list[str] = []

    def ask(self, path: str) -> os.statvfs_result:
        self.asked.append(path)
        if path in self.hang:
            self.gate.wait(20)
        if "missing" in path:
            raise FileNotFoundError(path)
        return ROOT

    def revive(self) -> None:
        self.hang.clear()
        self.gate.set()


def wait_for(condition: object) -> None:
    end = time.monotonic() + 5
    while not condition() and time.monotonic() < end:  # type: ignore[operator]
        time.sleep(0.005)


def test_all_answer() -> None:
    machine = Machine()
    paths = [f"/{n}" for n in range(50)]
    assert Surveyor(machine.ask).survey([*paths, "/missing"]) == [ROOT] * 50 + [None]
    assert machine.asked == [*paths, "/missing"]
    assert Surveyor(machine.ask).survey([]) == []


def test_those_behind_the_stuck_one_are_still_asked() -> None:
    machine = Machine("/b", "/d")
    surveyor = Surveyor(machine.ask)
    begun = time.monotonic()
    found = surveyor.survey(["/a", "/b", "/c", "/d", "/e"], patience=0.05, limit=5)
    assert found == [ROOT, None, ROOT, None, ROOT]
    assert time.monotonic() - begun < 2
    assert surveyor.stuck() == ["/b", "/d"]
    machine.revive()


def test_a_stuck_one_is_not_asked_again_until_it_came_back() -> None:
    machine = Machine("/b")
    surveyor = Surveyor(machine.ask)
    surveyor.survey(["/a", "/b"], patience=0.05)
    threads = threading.active_count()
    begun = time.monotonic()
    for _ in range(20):
        assert surveyor.survey(["/a", "/b", "/c"], patience=2) == [ROOT, None, ROOT]
    assert time.monotonic() - begun < 1
    assert machine.asked.count("/b") == 1
    assert threading.active_count() <= threads
    machine.revive()
    wait_for(lambda: not surveyor.stuck())
    assert surveyor.survey(["/a", "/b"]) == [ROOT, ROOT]


def test_no_more_threads_than_allowed_and_no_more_time_than_the_limit() -> None:
    paths = [f"/{n}" for n in range(40)]
    machine = Machine(*paths)
    surveyor = Surveyor(machine.ask)
    surveyor.survey(paths, patience=0.01, limit=20)
    assert len(surveyor.stuck()) == MOST_STUCK
    asked = len(machine.asked)
    assert surveyor.survey(paths) == [None] * 40
    assert len(machine.asked) == asked
    machine.revive()

    slow = Machine()

    def ask(path: str) -> os.statvfs_result:
        time.sleep(0.05)
        return slow.ask(path)

    begun = time.monotonic()
    found = Surveyor(ask).survey(paths, patience=0.2, limit=0.5)
    assert time.monotonic() - begun < 1.5
    assert found[0] == ROOT
    assert found[-1] is None


def test_the_late_answer_of_a_stuck_one_does_not_reach_a_reply() -> None:
    machine = Machine("/b")
    surveyor = Surveyor(machine.ask)
    found = surveyor.survey(["/a", "/b", "/c"], patience=0.05)
    machine.revive()
    wait_for(lambda: not surveyor.stuck())
    assert found == [ROOT, None, ROOT]
    assert machine.asked == ["/a", "/b", "/c"]


def test_sizes_in_bytes() -> None:
    status = os.statvfs_result((4096, 1024, 1000, 300, 250, 0, 0, 0, 0, 255))
    assert sizes_of(status) == (700 * 1024, 950 * 1024, 1000 * 1024)
    odd = os.statvfs_result((4096, 1024, 10, 30, 5, 0, 0, 0, 0, 255))
    assert sizes_of(odd) == (0, 5 * 1024, 10 * 1024)


@pytest.mark.loop
@isolated
def test_fsinfo_with_a_file_system_whose_program_stopped() -> None:
    """A FUSE mount on a block device whose program never answers: statvfs on it waits for ever."""
    import subprocess
    from types import SimpleNamespace

    from privsep.runtime import State
    from workers.inventory import guest_get_fsinfo

    if not os.access("/dev/fuse", os.R_OK | os.W_OK) or "fuseblk" not in Path("/proc/filesystems").read_text():
        pytest.skip("needs FUSE on block devices")
    images = Path("/tmp/images")
    loops = []
    for name in ("good", "dead"):
        (images / name).mkdir(parents=True)
        with open(images / f"{name}.img", "wb") as image:
            image.truncate(16 << 20)
        subprocess.run(["mkfs.ext4", "-q", str(images / f"{name}.img")], check=True)
        loops.append(
            subprocess.run(
                ["losetup", "--find", "--show", str(images / f"{name}.img")], check=True, capture_output=True, text=True
            ).stdout.strip()
        )
    program = os.open("/dev/fuse", os.O_RDWR)
    try:
        subprocess.run(["mount", loops[0], str(images / "good")], check=True)
        options = f"fd={program},rootmode=40000,user_id=0,group_id=0"
        subprocess.run(
            ["mount", "-i", "-t", "fuseblk", "-o", options, loops[1], str(images / "dead")],
            check=True,
            pass_fds=[program],
        )
        told: list[str] = []
        ctx = SimpleNamespace(root="", state=State(), log=SimpleNamespace(warning=told.append))
        for wait in (3.0, 0.4):
            begun = time.monotonic()
            found = guest_get_fsinfo(ctx)  # type: ignore[arg-type]
            assert time.monotonic() - begun < wait
            assert [f["mountpoint"] for f in found] == [str(images / "dead"), str(images / "good")]
            assert "used-bytes" not in found[0]
            assert found[0]["type"] == "fuseblk"
            assert found[1]["total-bytes-privileged"] == sizes_of(os.statvfs(images / "good"))[2]
        assert any("/tmp/images/dead" in line for line in told)
    finally:
        os.close(program)  # the kernel ends what waits for it
        for name, loop in zip(("dead", "good"), reversed(loops), strict=True):
            subprocess.run(["umount", str(images / name)], check=False)
            subprocess.run(["losetup", "--detach", loop], check=False)
