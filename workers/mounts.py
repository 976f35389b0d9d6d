"""The mount table: what there is to freeze, trim and describe, and in which order file systems can be frozen.

Pure: text and facts in, rows and a plan out; what has to be asked of the machine (is this a block device, what lies
beneath it) is a function given by the caller, `Sysfs` being the real one.

Facts: the format of /proc/self/mountinfo is in proc(5); which mounts count is qemu-ga 10.2's (qga/commands-linux.c):
every superblock on a block device once.  `loop/backing_file`, `slaves/` and `partition` below /sys/dev/block/MAJ:MIN
are described in the kernel's Documentation/ABI (sysfs-block, sysfs-block-loop).  A loop device's file system must be
frozen before the one that carries its backing file: the other order leaves the freeze waiting, in a sleep that cannot
be interrupted, for writes that the frozen one will not take.
"""

from __future__ import annotations

import os
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Final

    Device = tuple[int, int]
    Beneath = tuple[list[Device], list[str]]


class Mount:
    """One line of mountinfo.  Strings are unescaped; what is not UTF-8 in them is a surrogate escape."""

    __slots__ = (
        "id", "parent", "major", "minor", "root", "point", "options", "fstype", "source", "superoptions",
    )  # fmt: skip

    def __init__(
        self,
        id: int,
        parent: int,
        major: int,
        minor: int,
        root: str,
        point: str,
        options: str,
        fstype: str,
        source: str,
        superoptions: str,
    ) -> None:
        self.id = id
        self.parent = parent
        self.major = major
        self.minor = minor
        self.root = root
        self.point = point
        self.options = options
        self.fstype = fstype
        self.source = source
        self.superoptions = superoptions

    @property
    def device(self) -> Device:
        """The superblock's number.  btrfs, which has several devices or none of its own, has an anonymous one (0:N)."""
        return self.major, self.minor

    def __repr__(self) -> str:
        return f"Mount({self.id} on {self.parent}, {self.major}:{self.minor} {self.fstype} {self.point!r})"


def _text(field: bytes) -> str:
    r"""Undo mountinfo's octal escapes (\040 \011 \012 \134 \043)."""
    if b"\\" in field:
        first, *rest = field.split(b"\\")
        out = [first]
        for piece in rest:
            if len(piece) >= 3 and piece[:3].isdigit() and max(piece[:3]) < 0x38:
                out.append(bytes((int(piece[:3], 8) & 0xFF,)) + piece[3:])
            else:
                out.append(b"\\" + piece)
        field = b"".join(out)
    return field.decode("utf-8", "surrogateescape")


def parse_mountinfo(text: bytes) -> list[Mount]:
    """The lines of /proc/self/mountinfo in their order; a line that is not one is left out."""
    mounts = []
    for line in text.split(b"\n"):
        fields = line.split(b" ")
        try:
            dash = fields.index(b"-", 6)
            major, _, minor = fields[2].partition(b":")
            mounts.append(
                Mount(
                    int(fields[0]),
                    int(fields[1]),
                    int(major),
                    int(minor),
                    _text(fields[3]),
                    _text(fields[4]),
                    fields[5].decode("utf-8", "surrogateescape"),
                    _text(fields[dash + 1]),
                    _text(fields[dash + 2]),
                    _text(fields[dash + 3]) if len(fields) > dash + 3 else "",
                )
            )
        except (ValueError, IndexError):
            continue
    return mounts


class Tree:
    """The mounts as the tree that path lookup walks, to tell where a path leads and which mounts nobody can reach."""

    __slots__ = ("_on",)

    def __init__(self, mounts: Iterable[Mount]) -> None:
        rows = list(mounts)
        ids = {m.id for m in rows}
        # What is mounted at a path of a mount.  0 stands for "not shown": the parent of the root, or of everything
        # when the process was chrooted below its mounts.  A later one on the same place lies on top.
        self._on = {(m.parent if m.parent in ids and m.parent != m.id else 0, m.point): m for m in rows}

    def resolve(self, path: str) -> Mount | None:
        """The mount that an absolute path without symbolic links lies in."""
        at: Mount | None = None
        end = 0
        while True:
            prefix = path[:end] or "/"
            seen = 0
            while (top := self._on.get((at.id if at else 0, prefix))) is not None and top is not at:
                at = top
                seen += 1
                if seen > 10_000:  # a table that was read while it changed can hold a circle
                    return None
            if end >= len(path):
                return at
            end = path.find("/", end + 1)
            if end < 0:
                end = len(path)

    def reachable(self, mount: Mount) -> bool:
        """Whether opening the mount point opens this mount, and not one that covers it."""
        return not mount.point.endswith("//deleted") and self.resolve(mount.point) is mount


def block_device(path: str) -> Device | None:
    """The number of the block device at a path; None if there is none."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    if not stat.S_ISBLK(status.st_mode):
        return None
    return os.major(status.st_rdev), os.minor(status.st_rdev)


def superblocks(mounts: Sequence[Mount], block: Callable[[str], Device | None] = block_device) -> list[list[Mount]]:
    """All mounts of each superblock that counts, in mountinfo's order of the first one of each.

    What has a device number of its own counts; of those without (0:N: tmpfs, overlay, network, fuse) only btrfs on a
    block device."""
    groups: dict[Device, list[Mount]] = {}
    for mount in mounts:
        group = groups.get(mount.device)
        if group is not None:
            group.append(mount)
        elif mount.major != 0 or (mount.fstype == "btrfs" and block(mount.source) is not None):
            groups[mount.device] = [mount]
    return list(groups.values())


def _preferred(
    group: list[Mount], tree: Tree, directory: Callable[[str], bool] | None
) -> tuple[list[Mount], list[Mount]]:
    """One superblock's mounts: the reachable ones, best first, and those that are covered."""
    reachable = [m for m in group if tree.reachable(m)]
    if len(reachable) > 1 and directory is not None:
        # Containers bind single files (resolv.conf): a directory, if there is one, comes first.
        reachable.sort(key=lambda m: m.root != "/" and not directory(m.point))
    return reachable, [m for m in group if m not in reachable]


def mount_list(
    mounts: Sequence[Mount],
    *,
    block: Callable[[str], Device | None] = block_device,
    directory: Callable[[str], bool] | None = os.path.isdir,
) -> list[Mount]:
    """qemu-ga's mount list: one mount of each superblock, the first that can be reached and is a directory.

    A superblock that cannot be reached at all is left out."""
    tree = Tree(mounts)
    chosen = []
    for group in superblocks(mounts, block):
        reachable, _ = _preferred(group, tree, directory)
        if reachable:
            chosen.append(reachable[0])
    return chosen


class Sysfs:
    """What lies beneath a block device, asked of /sys."""

    __slots__ = ("_root",)

    def __init__(self, root: str = "") -> None:
        self._root = root

    def _read(self, path: str) -> str:
        with open(path, "rb", 0) as file:
            return file.read(65536).rstrip(b"\n").decode("utf-8", "surrogateescape")

    def _number(self, path: str) -> Device | None:
        try:
            major, _, minor = self._read(path).partition(":")
            return int(major), int(minor)
        except (OSError, ValueError):
            return None

    def beneath(self, device: Device) -> Beneath | None:
        """The devices and the backing files that a device is made of; None if /sys does not know, as when another process or
        another machine (which may be this one) serves it."""
        base = f"{self._root}/sys/dev/block/{device[0]}:{device[1]}"
        if not os.path.isdir(base):
            return None
        place = os.path.realpath(base)
        if any(part.startswith(_SERVED) for part in place.split("/")):
            return None
        devices: list[Device] = []
        files: list[str] = []
        try:
            files.append(self._read(f"{base}/loop/backing_file").removesuffix(" (deleted)"))
        except OSError:
            pass
        try:
            below = [f"{base}/slaves/{name}/dev" for name in os.listdir(f"{base}/slaves")]
        except OSError:
            below = []
        if os.path.exists(f"{base}/partition"):
            below.append(os.path.dirname(os.path.realpath(base)) + "/dev")
        for path in below:
            number = self._number(path)
            if number is not None:
                devices.append(number)
        return devices, files

    def suspended(self, device: Device) -> bool:
        """Whether device-mapper has suspended it: what is on it is frozen already, or waits for the resume."""
        try:
            return self._read(f"{self._root}/sys/dev/block/{device[0]}:{device[1]}/dm/suspended") == "1"
        except OSError:
            return False

    def members(self, mount: Mount) -> list[Device]:
        """The devices a superblock is on: one, or for btrfs all its members."""
        if mount.major != 0:
            return [mount.device]
        source = block_device(mount.source)
        if source is None:
            return []
        base = f"{self._root}/sys/fs/btrfs"
        try:
            for uuid in os.listdir(base):
                folder = f"{base}/{uuid}/devices"
                if not os.path.isdir(folder):
                    continue
                numbers = [n for name in os.listdir(folder) if (n := self._number(f"{folder}/{name}/dev"))]
                if source in numbers:
                    return numbers
        except OSError:
            pass
        return [source]


# Parts of a device's place in /sys: a network block device, a userspace one, DRBD, iSCSI, NVMe over fabrics.
_SERVED: Final = ("nbd", "ublkb", "drbd", "session", "nvme-fabrics")
# What a loop device's file may lie on without a process in between, among those without a device of their own.
_IN_KERNEL: Final = ("btrfs", "overlay", "tmpfs", "ramfs", "bcachefs", "zfs")


class Target:
    """One superblock to be frozen: its usable mounts, best first, and every mount point that it has."""

    __slots__ = ("device", "candidates", "points")

    def __init__(self, device: Device, candidates: list[Mount], points: list[str]) -> None:
        self.device = device
        self.candidates = candidates
        self.points = points

    def __repr__(self) -> str:
        return f"Target({self.device[0]}:{self.device[1]} {self.points})"


class Plan:
    """Levels, to be frozen one after the other, targets within one at the same time; and what cannot be reached."""

    __slots__ = ("levels", "unreachable")

    def __init__(self, levels: list[list[Target]], unreachable: list[Mount]) -> None:
        self.levels = levels
        self.unreachable = unreachable

    def targets(self) -> list[Target]:
        return [target for level in self.levels for target in level]


def _carriers(tree: Tree, path: str, depth: int = 0) -> list[Device]:
    """The superblocks that a write to a file ends up on: the one it is in, and for overlayfs that of its upper layer."""
    mount = tree.resolve(path)
    if mount is None:
        return []
    found = [mount.device]
    if mount.fstype == "overlay" and depth < 8:
        for option in mount.superoptions.split(","):
            if option.startswith("upperdir="):
                found += _carriers(tree, option[len("upperdir=") :], depth + 1)
    return found


def foundations(
    mounts: Sequence[Mount],
    groups: Sequence[list[Mount]],
    members: Callable[[Mount], list[Device]],
    beneath: Callable[[Device], Beneath | None],
) -> dict[Device, set[Device]]:
    """For each superblock those that it sits on, however far down.

    A device that /sys does not know may sit on anything, so everything mounted before it counts as below it."""
    tree = Tree(mounts)
    direct: dict[Device, set[Device]] = {}
    for index, group in enumerate(groups):
        found: set[Device] = set()
        waiting = list(members(group[0]))
        seen: set[Device] = set()
        while waiting:
            device = waiting.pop()
            if device in seen:
                continue
            seen.add(device)
            below = beneath(device)
            if below is None:
                found.update(g[0].device for g in groups[:index])
                continue
            waiting += below[0]
            found.update(below[0])
            for path in below[1]:
                mount = tree.resolve(path)
                if mount is not None and mount.major == 0 and mount.fstype not in _IN_KERNEL:
                    found.update(g[0].device for g in groups[:index])  # FUSE, NFS: whatever its server writes to
                found.update(_carriers(tree, path))
        found.discard(group[0].device)
        direct[group[0].device] = found
    closed: dict[Device, set[Device]] = {}
    for start in direct:
        reach: set[Device] = set()
        waiting = list(direct[start])
        while waiting:
            device = waiting.pop()
            if device not in reach:
                reach.add(device)
                waiting += direct.get(device, ())
        closed[start] = reach - {start}
    return closed


def plan(
    mounts: Sequence[Mount],
    wanted: Sequence[str] | None = None,
    *,
    members: Callable[[Mount], list[Device]] | None = None,
    beneath: Callable[[Device], Beneath | None] | None = None,
    block: Callable[[str], Device | None] = block_device,
    directory: Callable[[str], bool] | None = os.path.isdir,
) -> Plan:
    """What to freeze, and in which order.

    `wanted` None is everything; otherwise names count as qemu-ga counts them: exact strings, unknown ones ignored; a
    superblock is meant if any of its mount points is named.  In each level the last mounted comes first."""
    sysfs = Sysfs()
    groups = superblocks(mounts, block)
    below = foundations(mounts, groups, members or sysfs.members, beneath or sysfs.beneath)
    tree = Tree(mounts)
    names = None if wanted is None else set(wanted)
    unreachable: list[Mount] = []
    targets: list[Target] = []
    for group in groups:
        if names is not None and not any(m.point in names for m in group):
            continue
        usable, covered = _preferred(group, tree, directory)
        if usable:
            targets.append(Target(group[0].device, usable, [m.point for m in group]))
        else:
            unreachable.append(covered[0])
    targets.reverse()
    levels: list[list[Target]] = []
    while targets:
        # Ready is what carries nothing that still waits.  Two that claim to carry each other (a table read while it
        # changed) cannot both wait: then reverse mount order decides.
        ready = [t for t in targets if not any(t.device in below[other.device] for other in targets)]
        if not ready:
            ready = targets[:1]
        levels.append(ready)
        targets = [t for t in targets if t not in ready]
    return Plan(levels, unreachable)
