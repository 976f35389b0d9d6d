"""The inventory beside the real qemu-ga's: on this machine, and on trees that are mounted over /sys, /proc and /run in a mount
namespace of the peer's own.  Read-only commands only.

What differs on purpose or by the peer's release is taken out first: sizes that change while we look, the member that 7.2 lacks,
and further mounts of a device, which 10.2 does not list.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from privsep.runtime import State
from protocol.errors import CommandError
from tests.support.agent import LIMIT, AgentError
from tests.support.handlers import BareContext
from tests.support.machine_tree import MachineTree, sample_machine
from tests.support.namespace import isolated
from tests.support.peer import Peer
from tests.unit.test_inventory_utmp import record
from workers import inventory

pytestmark = pytest.mark.peer

SIZES = ("used-bytes", "total-bytes", "total-bytes-privileged")
CPUS = "/sys/devices/system/cpu"
MEMORY = "/sys/devices/system/memory"


class ReadingPeer(Peer):
    """The peer, ended the short way: it changes nothing, and loses a SIGTERM that comes while it lets a connection go."""

    def stop(self, limit: float = LIMIT) -> int:
        self.kill()
        return 0


class PeerIn(ReadingPeer):
    """The peer on a tree: whatever folder or file the tree has is bound over the real one, for it alone."""

    PLACES = ("sys", "run", "proc/stat", "proc/diskstats")

    def __init__(self, tree: MachineTree) -> None:
        # Without this libudev takes no device from what is not really sysfs.
        super().__init__(env={"SYSTEMD_DEVICE_VERIFY_SYSFS": "0"})
        self._tree = tree.root

    def command(self) -> list[str]:
        binds = [f'mount --bind "$TREE/{p}" /{p}' for p in self.PLACES if (self._tree / p).exists()]
        if (self._tree / "proc/self/mountinfo").exists():
            binds.insert(0, 'mount --bind "$TREE/proc/self/mountinfo" /proc/$$/mountinfo')
        script = " && ".join([f"TREE='{self._tree}'", *binds, 'exec "$@"'])
        return ["unshare", "-m", "sh", "-c", script, "sh", *super().command()]


def ours(name: str, root: object = "") -> Any:
    """The result, or the text of the error."""
    ctx = BareContext(root)
    ctx.state = State()  # type: ignore[attr-defined]
    handler: Callable[..., object] = getattr(inventory, name.replace("-", "_"))
    try:
        return handler(ctx)
    except CommandError as e:
        return f"{e.kind}: {e.desc}"


def theirs(peer: Peer, name: str) -> Any:
    try:
        return peer.call(name)
    except AgentError as e:
        return f"{e.kind}: {e.desc}"


def without(entries: list[dict[str, Any]], *members: str) -> list[dict[str, Any]]:
    return [{k: v for k, v in entry.items() if k not in members} for entry in entries]


def test_this_machine() -> None:
    with ReadingPeer() as peer:
        for name in (
            "guest-get-vcpus",
            "guest-get-memory-blocks",
            "guest-get-memory-block-info",
            "guest-get-disks",
            "guest-get-users",
            "guest-get-timezone",
            "guest-get-osinfo",
        ):
            found, expected = ours(name), theirs(peer, name)
            if name == "guest-get-disks":  # without a capability there is no health to be had
                found, expected = without(found, "smart"), without(expected, "smart")
            assert found == expected, name
        found, expected = ours("guest-get-fsinfo"), theirs(peer, "guest-get-fsinfo")
        listed = [f["mountpoint"] for f in found]
        assert without(found, *SIZES) == without([e for e in expected if e["mountpoint"] in listed], *SIZES)
        assert {f["name"] for f in found} == {e["name"] for e in expected}
        for name, members in (("guest-get-diskstats", ("stats",)), ("guest-get-cpustats", ())):
            found, expected = ours(name), theirs(peer, name)
            assert [set(f) for f in found] == [set(e) for e in expected]
            assert [set(f[m]) for f in found for m in members] == [set(e[m]) for e in expected for m in members]
            for f, e in zip(found, expected, strict=True):
                assert all(f[k] == e[k] for k in ("name", "major", "minor", "cpu") if k in e)
        idle = [
            (f["idle"], e["idle"])
            for f, e in zip(ours("guest-get-cpustats"), theirs(peer, "guest-get-cpustats"), strict=True)
        ]
        assert all(abs(a - b) < 2000 for a, b in idle)


@pytest.mark.root
def test_every_kind_of_disk(tmp_path: Path) -> None:
    tree = sample_machine(tmp_path)
    with PeerIn(tree) as peer:
        disks = theirs(peer, "guest-get-disks")
        assert len(disks) == 20
        assert ours("guest-get-disks", tmp_path) == disks
        systems = theirs(peer, "guest-get-fsinfo")
        assert len(systems) == 18
        assert without(ours("guest-get-fsinfo", tmp_path), *SIZES) == without(systems, *SIZES)


def _processors_and_memory(tree: MachineTree) -> None:
    for n in (0, 10, 2):
        tree.write(f"{CPUS}/cpu{n}/uevent", "")
    tree.write(f"{CPUS}/cpu10/online", "1\n")
    tree.write(f"{CPUS}/cpu2/online", "0\n")
    tree.write(f"{CPUS}/cpufreq/boost", "1\n")
    tree.write(f"{CPUS}/online", "0,10\n")
    for n, state, removable in (
        (0, "online", "0"),
        (1, "offline", "1"),
        (2, "going-offline", ""),
        (4, "", "1"),
        (5, "online_movable", "2"),
    ):
        for name, value in (("state", state), ("removable", removable)):
            if value:
                tree.write(f"{MEMORY}/memory{n}/{name}", value + "\n")
    tree.write(f"{MEMORY}/block_size_bytes", "8000000\n")


def _no_files(tree: MachineTree) -> None:
    for folder in (f"{CPUS}/cpu0/online", f"{MEMORY}/memory0/state"):
        (tree.root / folder[1:]).mkdir(parents=True)


def _no_blocks(tree: MachineTree) -> None:
    tree.write(f"{CPUS}/cpu0/online", "1\n")
    (tree.root / MEMORY[1:]).mkdir(parents=True)


def _nothing(tree: MachineTree) -> None:
    (tree.root / "sys/block").rmdir()


@pytest.mark.root
@pytest.mark.parametrize("fill", [_processors_and_memory, _no_files, _no_blocks, _nothing])
def test_processors_memory_and_error_texts(fill: Callable[[MachineTree], None], tmp_path: Path) -> None:
    tree = MachineTree(tmp_path)
    fill(tree)
    with PeerIn(tree) as peer:
        for name in ("guest-get-vcpus", "guest-get-memory-blocks", "guest-get-memory-block-info", "guest-get-disks"):
            assert ours(name, tmp_path) == theirs(peer, name), name


@pytest.mark.root
def test_counters_and_users(tmp_path: Path) -> None:
    tree = MachineTree(tmp_path)
    lines = [f" 8 {n} sd{n} " + " ".join(map(str, range(1, n + 1))) for n in (2, 4, 5, 10, 11, 13, 14, 15, 16, 17, 19)]
    tree.write("/proc/diskstats", "\n".join([*lines, "garbage", " 104 0 cciss!c0d0 1 2 3 4", ""]))
    # As many columns as kernels had: softirq came with irq, so the peer does not tell a line with only one of them.
    cpus = [f"cpu{n} " + " ".join(map(str, range(1, n + 1))) for n in (4, 5, 7, 8, 9, 10, 12)]
    tree.write("/proc/stat", "\n".join(["cpu  1 2 3 4 5 6 7 8 9 10", *cpus, "intr 1 2", "ctxt 5", ""]))
    machine = "aarch64" if os.uname().machine == "aarch64" else "x86_64"
    logins = [
        record(machine, kind, user, since, micros, sys.byteorder)
        for kind, user, since, micros in (
            (2, b"reboot", 1, 0),
            (7, b"bob", 1700000009, 500000),
            (7, b"alice", 1700000005, 0),
            (8, b"carol", 5, 0),
            (7, b"bob", 1700000001, 250000),
            (7, b"x" * 31, 1700000002, 0),
        )
    ]
    tree.write("/run/utmp", b"".join(logins))
    with PeerIn(tree) as peer:
        for name in ("guest-get-diskstats", "guest-get-cpustats", "guest-get-users"):
            found = theirs(peer, name)
            assert len(found) > 2
            assert ours(name, tmp_path) == found, name


OS_RELEASE = (
    b"NAME=", b'NAME=""', b"NAME = x", b"  NAME=x", b"NAME=x   ", b"NAME= x y", b'NAME="x y" z', b'NAME="a\\"b"',
    b'NAME="a\\nb\\\\c\\$d\\`e\\\'f"', b"NAME=a;b", b"NAME=a\\ b", b"NAME=x\nNAME=y", b"garbage\nNAME=x", b"NAME=x\ngarbage",
    b"[other]\nNAME=x", b"#c\n\nNAME=x", b'NAME="a;b # c"', b"NAME=a#b", b"NAME=x\r\n", b'NAME="x y"\r\n', b"NAME=\xff",
    b'NAME="\xc3\xa4"', b"export NAME=x", b'NAME=a"b c"', b"NAME\t=\tx", b"=x\nNAME=y", b"NAME[de]=x\nNAME=y", b"NAME==x",
    b"[os-release]\nNAME=z", b"NAME=x\x00y\nID=q", b"1NAME=x\nNAME=b", b"\xef\xbb\xbfNAME=x", b"NAME=;x", b"NAME=x\\", b"",
    b'NAME="a\\\nb"', b"NAME=$x", b"NAME=a\tb", b'NAME="a"b"c"', b"ID=a\nVARIANT_ID=b\nVARIANT='c'\nVERSION_ID=12\nVERSION=",
)  # fmt: skip


def test_os_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "os-release"
    monkeypatch.setenv("QGA_OS_RELEASE", str(file))
    with ReadingPeer() as peer:
        for text in OS_RELEASE:
            file.write_bytes(text)
            expected = theirs(peer, "guest-get-osinfo")
            if b"'c'" in text:  # single quotes: the peer leaves them on
                assert expected["variant"] == "'c'"
                expected["variant"] = "c"
            assert ours("guest-get-osinfo") == expected, text
        file.unlink()
        assert ours("guest-get-osinfo") == theirs(peer, "guest-get-osinfo")


@pytest.mark.parametrize(
    "zone", [None, "UTC", "CET-1CEST,M3.5.0,M10.5.0/3", "Asia/Kolkata", ":America/St_Johns", "Asia/Kathmandu"]
)
def test_time_zone(zone: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    name = (zone or "").removeprefix(":")
    if name.startswith(("Asia/", "America/")) and not os.path.exists(f"/usr/share/zoneinfo/{name}"):
        pytest.skip("needs tzdata")
    try:
        with monkeypatch.context() as patch:
            if zone is None:
                patch.delenv("TZ", raising=False)
            else:
                patch.setenv("TZ", zone)
            with ReadingPeer() as peer:
                assert ours("guest-get-timezone") == theirs(peer, "guest-get-timezone")
    finally:
        time.tzset()


@pytest.mark.loop
@isolated
def test_sizes_of_mounted_file_systems() -> None:
    from tests.support.loopfs import LoopFs

    with LoopFs("ext4", "xfs", "btrfs") as fs, ReadingPeer() as peer:
        found = ours("guest-get-fsinfo")
        assert {f["mountpoint"] for f in found} == set(map(str, fs.points))
        assert all(f["total-bytes-privileged"] >= f["total-bytes"] > f["used-bytes"] > 0 for f in found)
        assert without(found, SIZES[2]) == without(theirs(peer, "guest-get-fsinfo"), SIZES[2])
