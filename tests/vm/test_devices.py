"""File systems on device-mapper: volumes, volumes on files, suspended and failing ones; and what a disk hears of a trim."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.vm.harness.hostagent import Refused
from tests.vm.harness.machine import Guest
from tests.vm.harness.seen import Seen
from tests.vm.harness.service import FILE_SYSTEMS, Writers, set_policy

DISK = "/dev/disk/by-id/virtio-blank"
VOLUME = "/mnt/more/volume"
NESTED = "/mnt/more/nested"
MIB = 1 << 20


@pytest.fixture(scope="module")
def volumes(guest: Guest) -> Iterator[str]:
    """A logical volume with ext4 on a disk of its own, and one whose disk is a file on /mnt/ext4.

    The copy of losetup(8) runs as whoever starts it; SELinux gives the installed one a type that may not write to files without a label.
    """
    set_policy(guest, "backup")
    guest.check(
        f"set -e; pvcreate -q {DISK}; vgcreate -q disks {DISK}; lvcreate -q -Wn -n volume -L 200M disks;"
        f"mkfs.ext4 -q /dev/disks/volume; mkdir -p {VOLUME} {NESTED}; mount /dev/disks/volume {VOLUME};"
        "truncate -s 120M /mnt/ext4/disk; cp /usr/sbin/losetup /root; loop=$(/root/losetup --show -f /mnt/ext4/disk); echo $loop > /run/loop;"
        "pvcreate -q $loop; vgcreate -q files $loop; lvcreate -q -Wn -n nested -L 100M files;"
        f"mkfs.ext4 -q /dev/files/nested; mount /dev/files/nested {NESTED}",
    )
    yield VOLUME
    guest.check(
        f"systemctl stop writers; umount {NESTED}; vgchange -q -an files; /root/losetup -d $(cat /run/loop); umount {VOLUME}; vgchange -q -an disks"
    )


def test_logical_volumes(guest: Guest, volumes: str, seen: Seen) -> None:
    """LVM: a volume on a disk, and one on a loop device whose file is on another frozen file system"""
    mounts = (*FILE_SYSTEMS, VOLUME, NESTED)
    with guest.agent() as agent:
        writers = Writers(guest, mounts)
        assert agent.call("guest-fsfreeze-freeze") == len(mounts)
        frozen = writers.now()
        guest.check("sleep 1")
        writers.blocked_since(frozen)
        assert agent.call("guest-fsfreeze-thaw") == len(mounts)
        writers.thawed(frozen)
        infos = {row["mountpoint"]: row for row in agent.call("guest-get-fsinfo")}
    assert infos[VOLUME]["disk"][0]["serial"] == "blank"
    assert infos[VOLUME]["name"] == "dm-0"
    seen(
        f"{len(mounts)} frozen, the nested one before what carries it, and thawed; get-fsinfo finds the disk below the volume"
    )


def test_a_volume_that_is_suspended_already(guest: Guest, volumes: str, seen: Seen) -> None:
    """A volume that device-mapper has suspended (and so frozen) is not ours: not counted, not thawed"""
    with guest.agent() as agent:
        guest.check("dmsetup suspend disks-volume")
        try:
            count = agent.call("guest-fsfreeze-freeze-list", mountpoints=[VOLUME, "/mnt/xfs"])
            assert agent.call("guest-fsfreeze-thaw") == count
            assert guest.check("dmsetup info -c --noheadings -o suspended disks-volume").strip() == "Suspended"
            late = guest.sh(f"timeout -s KILL 2 touch {VOLUME}/early", 10)
            assert late.status != 0, "a write went through a suspended volume"
        finally:
            guest.check("dmsetup resume disks-volume")
        assert count == 1
        guest.check(f"touch {VOLUME}/later && sync {VOLUME}/later")
    seen("1 of 2 counted; after our thaw it is suspended still; writable after resume")


def test_a_volume_that_is_frozen_cannot_be_suspended(guest: Guest, volumes: str, seen: Seen) -> None:
    """Device-mapper's suspend of a volume that we froze: refused by the kernel, the freeze holds"""
    with guest.agent() as agent:
        assert agent.call("guest-fsfreeze-freeze-list", mountpoints=[VOLUME]) == 1
        suspend = guest.sh("dmsetup suspend disks-volume", 10)
        held = guest.sh(f"timeout -s KILL 2 touch {VOLUME}/early", 10)
        assert agent.call("guest-fsfreeze-thaw") == 1
        assert suspend.status != 0
        assert held.status != 0, "a write went through a frozen volume"
        guest.check(f"touch {VOLUME}/later && sync {VOLUME}/later")
    seen(suspend.err.strip().splitlines()[0])


def test_a_failing_device(guest: Guest, volumes: str, seen: Seen) -> None:
    """A device that fails every request: the freeze fails by name, and nothing stays frozen"""
    if guest.sh("modprobe dm_mod && dmsetup targets | grep -q '^error'").status != 0:
        seen.cannot(f"no dm-error: {guest.check('uname -r; dmsetup targets').split()}")
    guest.check(
        "set -e; lvcreate -q -Wn -n failing -L 64M disks; mkfs.ext4 -q /dev/disks/failing; mkdir -p /mnt/more/failing;"
        "mount -o errors=continue /dev/disks/failing /mnt/more/failing; echo something > /mnt/more/failing/file"
    )
    size = guest.check("blockdev --getsz /dev/disks/failing").strip()
    table = guest.check("dmsetup table disks-failing").strip()
    # What was written is still to go to the disk when that fails.
    swap(guest, "disks-failing", f"0 {size} error")
    try:
        with guest.agent() as agent:
            try:
                count = agent.call("guest-fsfreeze-freeze")
                answer = f"{count} frozen"
                assert agent.call("guest-fsfreeze-thaw") == count
            except Refused as e:
                assert "/mnt/more/failing" in e.desc
                answer = e.desc
            assert agent.call("guest-fsfreeze-status") == "thawed"
            for mount in FILE_SYSTEMS:
                guest.check(f"touch {mount}/after && sync {mount}/after", 10)
    finally:
        guest.sh("umount /mnt/more/failing")
        swap(guest, "disks-failing", table)
        guest.sh("lvremove -qfy disks/failing")
    seen(answer)


def test_a_device_that_fails_at_times(guest: Guest, volumes: str, seen: Seen) -> None:
    """A device that drops every write for a while (dm-flakey): whatever the answers are, nothing stays frozen"""
    if guest.sh("modprobe dm_flakey").status != 0:
        seen.cannot(f"no dm-flakey in {guest.check('uname -r').strip()}")
    guest.check("set -e; lvcreate -q -Wn -n below -L 64M disks; mkdir -p /mnt/more/flakey")
    size = guest.check("blockdev --getsz /dev/disks/below").strip()
    guest.check(
        f"set -e; dmsetup create flakey --table '0 {size} linear /dev/disks/below 0';"
        "mkfs.ext4 -q -F /dev/mapper/flakey; mount -o errors=continue /dev/mapper/flakey /mnt/more/flakey"
    )
    swap(guest, "flakey", f"0 {size} flakey /dev/disks/below 0 1 1 1 error_writes")
    answers = []
    try:
        with guest.agent() as agent:
            for n in range(8):
                guest.sh(f"echo {n} > /mnt/more/flakey/file", 10)
                try:
                    answers.append(
                        str(agent.call("guest-fsfreeze-freeze-list", mountpoints=["/mnt/more/flakey", "/mnt/xfs"]))
                    )
                except Refused as e:
                    answers.append("error")
                    assert "/mnt/more/flakey" in e.desc, e.desc
                try:
                    agent.call("guest-fsfreeze-thaw")
                except Refused as e:
                    answers.append(f"thaw: {e.desc}")
                assert agent.call("guest-fsfreeze-status") == "thawed"
                guest.check("touch /mnt/xfs/after && sync /mnt/xfs/after", 10)
    finally:
        swap(guest, "flakey", f"0 {size} linear /dev/disks/below 0")
        guest.sh("umount /mnt/more/flakey; dmsetup remove --retry flakey; lvremove -qfy disks/below")
    seen(f"8 rounds: {', '.join(answers)}")


def test_a_trim_reaches_the_disk(guest: Guest, seen: Seen) -> None:
    """guest-fstrim: QEMU counts the discards, and the disk's file gets smaller"""
    set_policy(guest, "backup")
    disk = guest.disk("ext4")
    with guest.agent() as agent:
        guest.check(
            "dd if=/dev/urandom of=/mnt/ext4/large bs=1M count=100 conv=fsync status=none; rm /mnt/ext4/large; sync"
        )
        large = disk.stat().st_blocks * 512
        before = discards(guest, "ext4")
        rows = {row["path"]: row for row in agent.call("guest-fstrim", limit=300)["paths"]}
        count, amount = (now - then for now, then in zip(discards(guest, "ext4"), before, strict=True))
    small = disk.stat().st_blocks * 512
    assert rows["/mnt/ext4"]["trimmed"] >= 95 * MIB
    assert count > 0
    assert amount >= 95 * MIB
    assert large - small >= 90 * MIB
    seen(
        f"{rows['/mnt/ext4']['trimmed'] // MIB} MiB by the answer, {count} discards of {amount // MIB} MiB at the disk, "
        f"its file {large // MIB} -> {small // MIB} MiB; {len(rows)} file systems"
    )


def swap(guest: Guest, name: str, table: str) -> None:
    """Another table under a device in use, without a flush and without freezing what is on it."""
    guest.check(
        f"dmsetup load {name} --table '{table}' && dmsetup suspend --noflush --nolockfs {name} && dmsetup resume {name}"
    )


def discards(guest: Guest, disk: str) -> tuple[int, int]:
    """How many discards QEMU has passed on to the disk's file, and of how many bytes."""
    for row in guest.qmp.call("query-blockstats"):
        if row["device"] == disk:
            file = row["parent"]["driver-specific"]
            return file["discard-nb-ok"], file["discard-bytes-ok"]
    raise AssertionError(f"QEMU has no disk {disk}")
