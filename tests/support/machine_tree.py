"""A folder that plays `/`: the parts of /sys, /proc and /run that the inventory reads, for machines that are not at hand.

The same tree can be given to a handler (`Context.root`) and, bind-mounted in a mount namespace, to the real qemu-ga.
Folders look as the kernel makes them: `uevent`, `dev`, `size`, links out of /sys/block and /sys/dev/block.
"""

from __future__ import annotations

import os
from pathlib import Path


class MachineTree:
    """root: where the tree is made; it may exist."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._mounts: list[str] = []
        self._points: dict[str, int] = {}
        for folder in ("sys/block", "sys/dev/block", "sys/devices", "proc/self", "run/udev/data", "etc", "dev"):
            (root / folder).mkdir(parents=True, exist_ok=True)

    def write(self, path: str, text: str | bytes) -> None:
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text.encode() if isinstance(text, str) else text)

    def link(self, path: str, target: str) -> None:
        """A relative link at path to target, both as seen from the tree's own root."""
        place = self.root / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(os.path.relpath(target, os.path.dirname(path)))

    def driver(self, folder: str, name: str) -> None:
        (self.root / folder.lstrip("/")).mkdir(parents=True, exist_ok=True)
        (self.root / "sys/bus/drivers" / name).mkdir(parents=True, exist_ok=True)
        self.link(f"{folder}/driver", f"/sys/bus/drivers/{name}")

    def block(self, folder: str, number: str, *, size: int = 2048, node: str | None = None, slaves: bool = True) -> str:
        """A disk's folder: its name is the last part; node "" for a device that has none."""
        name = os.path.basename(folder)
        self._device(folder, number, name if node is None else node, "disk")
        self.write(f"{folder}/size", f"{size}\n")
        if slaves:
            (self.root / folder.lstrip("/") / "slaves").mkdir()
        self.link(f"/sys/block/{name}", folder)
        return folder

    def partition(self, disk: str, name: str, number: str) -> str:
        folder = f"{disk}/{name}"
        self._device(folder, number, name, "partition")
        self.write(f"{folder}/size", "1024\n")
        self.write(f"{folder}/partition", "1\n")
        return folder

    def _device(self, folder: str, number: str, node: str, kind: str) -> None:
        major, _, minor = number.partition(":")
        names = f"DEVNAME={node}\n" if node else ""
        self.write(f"{folder}/uevent", f"MAJOR={major}\nMINOR={minor}\n{names}DEVTYPE={kind}\n")
        self.write(f"{folder}/dev", f"{number}\n")
        (self.root / "sys/class/block").mkdir(parents=True, exist_ok=True)
        self.link(f"{folder}/subsystem", "/sys/class/block")
        self.link(f"/sys/dev/block/{number}", folder)

    def slave(self, volume: str, part: str) -> None:
        self.link(f"{volume}/slaves/{os.path.basename(part)}", part)

    def udev(self, number: str, **properties: str) -> None:
        lines = "".join(f"E:{name}={value}\n" for name, value in properties.items())
        self.write(f"/run/udev/data/b{number}", f"S:disk/by-id/x\nI:1234\n{lines}G:systemd\n")

    def mount(self, number: str, point: str, fstype: str = "ext4", source: str = "/dev/x", root: str = "/") -> None:
        """A line of mountinfo, on the root or on an earlier mount at the same point; mount points need not exist."""
        own = 29 if point == "/" else 30 + len(self._mounts)
        below = self._points.get(point, 1 if point == "/" else 29)
        self._points[point] = own
        self._mounts.append(f"{own} {below} {number} {root} {point} rw shared:1 - {fstype} {source} rw\n")
        self.write("/proc/self/mountinfo", "".join(self._mounts))


def sample_machine(root: Path) -> MachineTree:
    """Every kind of disk there is a rule for, with a mount on most of them."""
    tree = MachineTree(root)
    pci = "/sys/devices/pci0000:00"

    tree.driver(f"{pci}/0000:00:02.0", "virtio-pci")
    vda = tree.block(f"{pci}/0000:00:02.0/virtio1/block/vda", "254:0")
    tree.partition(vda, "vda1", "254:1")
    vda2 = tree.partition(vda, "vda2", "254:2")
    tree.udev("254:0", ID_SERIAL="root-disk", ID_BUS="virtio")
    tree.udev("254:1", ID_SERIAL="root-disk", ID_PART_ENTRY_NUMBER="1")

    # Behind a PCI bridge, as on q35.
    tree.driver(f"{pci}/0000:00:1c.1", "pcieport")
    tree.driver(f"{pci}/0000:00:1c.1/0000:02:00.0", "virtio-pci")
    sda = tree.block(f"{pci}/0000:00:1c.1/0000:02:00.0/virtio3/host6/target6:0:1/6:0:1:4/block/sda", "8:0")
    sda1 = tree.partition(sda, "sda1", "8:1")
    tree.udev("8:0", ID_SERIAL="0QEMU_HARDDISK_drive-scsi0")

    tree.driver(f"{pci}/0000:00:1f.2", "ahci")
    for port in (1, 2, 10, 3):
        (tree.root / f"{pci}/0000:00:1f.2/ata{port}".lstrip("/")).mkdir(parents=True)
    sdb = tree.block(f"{pci}/0000:00:1f.2/ata10/host9/target9:0:0/9:0:0:0/block/sdb", "8:16")

    tree.driver(f"{pci}/0000:00:01.1", "ata_piix")
    (tree.root / f"{pci}/0000:00:01.1/ata4".lstrip("/")).mkdir(parents=True)
    sdc = tree.block(f"{pci}/0000:00:01.1/ata5/host1/target1:0:1/1:0:1:0/block/sdc", "8:32")

    tree.driver(f"{pci}/0000:00:04.0", "sym53c8xx")
    tree.block(f"{pci}/0000:00:04.0/host3/target3:0:5/3:0:5:0/block/sdd", "8:48")

    tree.driver(f"{pci}/0000:00:05.0", "nvme")
    nvme = tree.block(f"{pci}/0000:00:05.0/nvme/nvme0/nvme0n1", "259:0")
    nvme_p1 = tree.partition(nvme, "nvme0n1p1", "259:1")

    # A controller that no rule knows, and an ahci disk whose path lacks the SCSI part.
    tree.driver(f"{pci}/0000:00:06.0", "megaraid_sas")
    tree.block(f"{pci}/0000:00:06.0/host8/target8:2:0/8:2:0:0/block/sde", "8:64")
    tree.block(f"{pci}/0000:00:1f.2/odd/block/sdf", "8:80")

    # virtio without PCI: a microvm, and s390.
    tree.block("/sys/devices/platform/a003e00.virtio_mmio/virtio7/block/vdb", "254:16")
    tree.block("/sys/devices/platform/a003c00.virtio_mmio/virtio8/host2/target2:0:3/2:0:3:7/block/sdg", "8:96")
    tree.block("/sys/devices/css0/0.0.000b/0.0.0cfe/virtio4/block/vdc", "254:32")
    tree.block("/sys/devices/platform/hpsa/block/cciss!c0d0", "104:0", node="cciss/c0d0")

    virtual = "/sys/devices/virtual/block"
    dm0 = tree.block(f"{virtual}/dm-0", "253:0")
    tree.slave(dm0, vda2)
    tree.slave(dm0, sdb)
    tree.udev("253:0", DM_NAME="vg-root", DM_UUID="LVM-x")
    md0 = tree.block(f"{virtual}/md0", "9:0")
    for part in (sda1, nvme_p1, sdc):
        tree.slave(md0, part)
    dm1 = tree.block(f"{virtual}/dm-1", "253:1")
    tree.slave(dm1, md0)
    tree.udev("253:1", DM_NAME="vg-näme")
    tree.block(f"{virtual}/loop0", "7:0", slaves=False)
    tree.block(f"{virtual}/loop1", "7:1", size=0)
    tree.block(f"{virtual}/hidden0", "7:9", node="")

    tree.mount("0:22", "/sys", "sysfs", "sysfs")
    for number, point in (
        ("254:1", "/"), ("254:2", "/two"), ("253:0", "/dm"), ("253:1", "/dm/md"), ("8:0", "/sda"), ("8:16", "/sdb"),
        ("8:32", "/sdc"), ("8:48", "/sdd"), ("259:1", "/nvme"), ("8:64", "/sde"), ("8:80", "/sdf"), ("254:16", "/vdb"),
        ("8:96", "/sdg"), ("254:32", "/vdc"), ("104:0", "/cciss"), ("7:0", "/loop"), ("99:7", "/container"),
        ("8:1", "/with\\040blank"),
    ):  # fmt: skip
        tree.mount(number, point)
    tree.mount("0:55", "/net", "nfs4", "host:/x")
    return tree
