"""Freezing whatever can be mounted: stacks, superblocks mounted twice, odd names, mounts that come and go meanwhile."""

from __future__ import annotations

import ctypes
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults.runner import write_policy
from tests.support import faultpoint
from tests.support.agent import Agent, AgentError
from tests.support.faultkit import FaultAgent, Points
from tests.support.freezekit import Kit
from tests.support.loopfs import LoopFs, frozen, takes_writes
from tests.support.namespace import isolated

pytestmark = [pytest.mark.root, pytest.mark.loop]

_MS_BIND = 4096
_libc = ctypes.CDLL(None, use_errno=True)


def mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True, capture_output=True)


@contextmanager
def mounted(point: str, *words: str) -> Iterator[str]:
    """Mount there for the body; what is frozen then can be unmounted after the thaw only."""
    os.makedirs(point, exist_ok=True)
    mount(*words, point)
    try:
        yield point
    finally:
        subprocess.run(["umount", "-l", point], capture_output=True)


@isolated
def test_ext4_on_a_loop_device_on_ext4_on_a_loop_device() -> None:
    with LoopFs("ext4") as fs, Kit() as kit:
        upper = f"{fs.folder}/upper"
        fs.add(upper, "ext4", f"{fs.points[0]}/image")
        for _ in range(2):
            Path(f"{upper}/dirty").write_bytes(os.urandom(1 << 20))
            # The outer one is named first and frozen last all the same.
            assert kit.freeze([fs.points[0], upper], limit=20) == 2
            assert kit.thaw() == 2
        assert takes_writes(upper)


@isolated
def test_one_superblock_mounted_twice_counts_once() -> None:
    with LoopFs("ext4") as fs, Kit() as kit:
        device = next(line.split()[0] for line in Path("/proc/mounts").read_text().splitlines() if fs.points[0] in line)
        with mounted(f"{fs.folder}/again", device) as again:
            assert kit.freeze([fs.points[0], again]) == 1
            assert frozen(again)
            assert kit.thaw() == 1
            assert kit.call("guest-fsfreeze-freeze") == 1
            assert kit.thaw() == 1
            # Either name means it.
            subprocess.run(["mount", "--make-private", again], check=True)
            assert kit.freeze([again]) == 1
            assert kit.thaw() == 1


@isolated
def test_subvolumes_of_a_btrfs_are_one_file_system() -> None:
    with LoopFs("btrfs") as fs, Kit() as kit:
        top = fs.points[0]
        for name in ("one", "two"):
            subprocess.run(["btrfs", "subvolume", "create", f"{top}/{name}"], check=True, capture_output=True)
        device = next(line.split()[0] for line in Path("/proc/mounts").read_text().splitlines() if top in line)
        with (
            mounted(f"{fs.folder}/one", "-o", "subvol=one", device) as one,
            mounted(f"{fs.folder}/two", "-o", "subvol=two", device) as two,
        ):
            assert kit.freeze([one, two]) == 1
            assert frozen(top, 0.2)
            assert frozen(two, 0.2)
            assert kit.thaw() == 1
            assert kit.freeze([top, one, two]) == 1
            assert kit.thaw() == 1
            assert takes_writes(one)


@isolated
def test_an_overlay_is_frozen_by_its_upper_file_system() -> None:
    with LoopFs("ext4") as fs, Kit() as kit:
        base = fs.points[0]
        for name in ("lower", "upper", "work"):
            os.mkdir(f"{base}/{name}")
        options = f"lowerdir={base}/lower,upperdir={base}/upper,workdir={base}/work"
        with mounted(f"{fs.folder}/overlay", "-t", "overlay", "-o", options, "overlay") as overlay:
            assert kit.freeze([overlay]) == 0
            assert kit.call("guest-fsfreeze-freeze") == 1
            assert frozen(overlay, 0.3)
            assert kit.thaw() == 1
            assert takes_writes(overlay)


@isolated
def test_a_mount_point_that_only_its_owner_may_enter() -> None:
    """With the worker's own user and capabilities."""
    with LoopFs("ext4") as fs, Agent("--policy", write_policy(30)) as agent:
        for path in (fs.folder, fs.points[0]):
            os.chmod(path, 0o700)
        os.chown(fs.points[0], 65534, 65534)
        assert agent.call("guest-fsfreeze-freeze-list", mountpoints=fs.points) == 1
        assert frozen(fs.points[0])
        assert agent.call("guest-fsfreeze-thaw") == 1


@isolated
def test_names_with_blanks_newlines_and_other_scripts() -> None:
    with LoopFs() as fs, Agent("--policy", write_policy(30)) as agent:
        names = [
            f"{fs.folder}/{n}"
            for n in ("two words", "line\nbreak", "tab\tand \\ backslash", "Überlieferung-データ", "a\\040b")
        ]
        for name in names:
            fs.add(name, "ext4", f"/tmp/image{len(fs._made)}")
        fs.release()
        fs.guard()
        assert agent.call("guest-fsfreeze-freeze-list", mountpoints=names) == len(names)
        assert all(frozen(n, 0.2) for n in names)
        assert agent.call("guest-fsfreeze-thaw") == len(names)
        for name in names:
            assert agent.call("guest-fsfreeze-freeze-list", mountpoints=[name]) == 1
            assert agent.call("guest-fsfreeze-thaw") == 1
        assert agent.call("guest-fsfreeze-freeze-list", mountpoints=[f"{fs.folder}/a b"]) == 0


@isolated
def test_a_name_that_is_not_utf_8_is_frozen_with_all_and_recovered_from_the_journal() -> None:
    with LoopFs() as fs, Kit() as kit:
        name = os.fsdecode(os.fsencode(fs.folder) + b"/caf\xe9")
        fs.add(name, "ext4", "/tmp/image")
        fs.release()
        fs.guard()
        assert kit.call("guest-fsfreeze-freeze") == 1
        assert [e.path for e in kit.journal().entries] == [name]
        assert kit.thaw() == 1


@isolated
def test_five_hundred_mounts_of_one_superblock() -> None:
    with LoopFs("ext4", "ext4") as fs, Kit() as kit:
        points = [f"{fs.folder}/many/{n}" for n in range(500)]
        for point in points:
            os.makedirs(point)
            assert _libc.mount(os.fsencode(fs.points[0]), os.fsencode(point), None, ctypes.c_ulong(_MS_BIND), None) == 0
        begun = time.monotonic()
        assert kit.call("guest-fsfreeze-freeze") == 2
        assert time.monotonic() - begun < 2.0
        assert kit.thaw() == 2
        assert kit.freeze(points[-1:]) == 1
        assert frozen(fs.points[0], 0.2)
        assert kit.thaw() == 1
        for point in points:
            _libc.umount2(os.fsencode(point), 0)


@isolated
def test_a_mount_that_goes_after_the_plan_fails_the_freeze_by_name_and_nothing_is_frozen() -> None:
    with LoopFs("ext4", "ext4") as fs, Points() as points, FaultAgent(points, "--policy", write_policy(30)) as agent:
        fs.release()
        points.arm(faultpoint.PLANNED)
        agent.client.request("guest-fsfreeze-freeze-list", {"mountpoints": fs.points})
        points.wait()
        subprocess.run(["umount", fs.points[1]], check=True)
        points.release()
        with pytest.raises(AgentError, match=f"failed to open {fs.points[1]}"):
            _answer(agent)
        assert takes_writes(fs.points[0], 1.0)
        assert agent.call("guest-fsfreeze-status") == "thawed"
        assert agent.call("guest-fsfreeze-freeze-list", mountpoints=fs.points) == 1
        assert agent.call("guest-fsfreeze-thaw") == 1


def _answer(agent: Agent) -> object:
    reply = agent.client.reply()
    if "error" in reply:
        raise AgentError(reply)
    return reply["return"]


@isolated
def test_a_mount_that_is_covered_after_the_plan_is_not_mistaken_for_what_covers_it() -> None:
    with LoopFs("ext4", "ext4") as fs, Points() as points, FaultAgent(points, "--policy", write_policy(30)) as agent:
        points.arm(faultpoint.PLANNED)
        agent.client.request("guest-fsfreeze-freeze-list", {"mountpoints": fs.points[:1]})
        points.wait()
        mount("--bind", fs.points[1], fs.points[0])
        points.release()
        with pytest.raises(AgentError, match="failed to open"):
            _answer(agent)
        assert takes_writes(fs.points[0], 1.0)
        subprocess.run(["umount", fs.points[0]], check=True)


@isolated
def test_a_mount_that_goes_is_no_loss_where_the_superblock_has_another() -> None:
    with LoopFs("ext4") as fs, Points() as points, FaultAgent(points, "--policy", write_policy(30)) as agent:
        other = f"{fs.folder}/other"
        os.mkdir(other)
        mount("--bind", fs.points[0], other)
        fs._made.append(other)
        fs.release()
        points.arm(faultpoint.PLANNED)
        agent.client.request("guest-fsfreeze-freeze-list", {"mountpoints": [other]})
        points.wait()
        subprocess.run(["umount", fs.points[0]], check=True)
        fs.guard_only(other)
        points.release()
        assert _answer(agent) == 1
        assert frozen(other, 0.2)
        assert agent.call("guest-fsfreeze-thaw") == 1
        assert takes_writes(other, 1.0)


@isolated
def test_a_mount_that_comes_after_the_plan_is_left_alone() -> None:
    with LoopFs("ext4") as fs, Points() as points, FaultAgent(points, "--policy", write_policy(30)) as agent:
        points.arm(faultpoint.PLANNED)
        agent.client.request("guest-fsfreeze-freeze-list", {})
        points.wait()
        late = f"{fs.folder}/late"
        fs.add(late, "ext4")
        points.release()
        assert _answer(agent) == 1
        assert takes_writes(late, 1.0)
        assert agent.call("guest-fsfreeze-thaw") == 1


@isolated
def test_a_lazy_unmount_while_frozen_does_not_stop_the_thaw() -> None:
    with LoopFs("ext4", "xfs") as fs, Agent("--policy", write_policy(30)) as agent:
        assert agent.call("guest-fsfreeze-freeze-list", mountpoints=fs.points) == 2
        fd = os.open(fs.points[0], os.O_RDONLY)  # to see what becomes of it
        subprocess.run(["umount", "-l", fs.points[0]], check=True)
        assert agent.call("guest-fsfreeze-status") == "frozen"
        assert agent.call("guest-fsfreeze-thaw") == 2
        assert takes_writes(f"/proc/{os.getpid()}/fd/{fd}", 1.0)
        os.close(fd)
        assert takes_writes(fs.points[1], 1.0)


@isolated
def test_a_lazy_unmount_while_frozen_does_not_stop_the_deadline() -> None:
    with LoopFs("ext4") as fs, Agent("--policy", write_policy(1)) as agent:
        assert agent.call("guest-fsfreeze-freeze-list", mountpoints=fs.points) == 1
        fd = os.open(fs.points[0], os.O_RDONLY)
        subprocess.run(["umount", "-l", fs.points[0]], check=True)
        assert takes_writes(f"/proc/{os.getpid()}/fd/{fd}", 3.0)
        os.close(fd)
        with pytest.raises(AgentError, match="limited up to"):
            agent.call("guest-fsfreeze-thaw")
