"""Disks as the host sees them: the block devices below /sys, with what udev knows about them.

`BlockDevices` lives for one request: it asks the kernel anew each time and each thing once.  Paths in it are those of the
machine (`/sys/devices/...`, links resolved); `root` stands before them when something is opened.

Facts: /sys/dev/block/MAJ:MIN and /sys/block/NAME are links to the device's folder; its `uevent` has DEVNAME below /dev and the
number, `slaves/` links to what a volume is made of (kernel, Documentation/ABI/stable/sysfs-block); udev keeps a device's
properties in /run/udev/data/bMAJ:MIN, lines `E:NAME=VALUE` (systemd, sd-device).  The order of everything is qemu-ga's, which
puts each thing it finds at the front of its lists.
"""

from __future__ import annotations

import os

from workers.diskpath import attachment
from workers.sysfs import assignments, read_page, read_whole

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_VIRTUAL: Final = "/devices/virtual/block/"
# Volumes on volumes: deeper than anybody stacks them, and an end where the links of a broken tree go in a circle.
_DEEPEST: Final = 16
# Virtual disks that are made of memory, a file or a connection, never of other disks.
_LEAVES: Final = ("loop", "ram", "zram", "nbd")
_NO_PCI: Final = (-1, -1, -1, -1)


class BlockDevices:
    """What one request asks about block devices."""

    __slots__ = ("_root", "_uevents", "_drivers")

    def __init__(self, root: str = "") -> None:
        self._root = root
        self._uevents: dict[str, dict[bytes, bytes]] = {}
        self._drivers: dict[str, str] = {}

    def by_number(self, major: int, minor: int) -> str | None:
        """The device's folder; None if /sys does not show it, as in a container."""
        return self._follow("/sys/dev/block", f"{major}:{minor}")

    def node(self, path: str) -> str:
        """The device node; "" if the device has none."""
        name = self._uevent(path).get(b"DEVNAME", b"")
        return "/dev/" + name.decode("utf-8", "surrogateescape") if name else ""

    def properties(self, path: str) -> dict[bytes, bytes]:
        """What udev keeps about the device; nothing where there is no udev."""
        uevent = self._uevent(path)
        number = uevent.get(b"MAJOR", b"") + b":" + uevent.get(b"MINOR", b"")
        try:
            record = read_whole(f"{self._root}/run/udev/data/b{number.decode('ascii')}", 1 << 20)
        except (OSError, ValueError):
            return {}
        return assignments(record, b"E:")

    def addresses(self, path: str, depth: int = 0) -> list[dict[str, object]]:
        """The GuestDiskAddress of each physical disk below the device: one, or those of a volume's parts."""
        if _VIRTUAL not in path:
            address = self._address(path)
            return [] if address is None else [address]
        found: list[dict[str, object]] = []
        if depth < _DEEPEST and not path.startswith(_LEAVES, path.rfind("/") + 1):
            for part in self._parts(path) or ():
                found[:0] = self.addresses(part, depth + 1)
        return found

    def disks(self) -> list[dict[str, object]]:
        """Every disk with a size and its partitions, as GuestDiskInfo, last disk first.  Raises OSError without /sys/block."""
        found: list[dict[str, object]] = []
        for name in os.listdir(f"{self._root}/sys/block"):
            path = self._follow("/sys/block", name)
            if path is None or self._is_empty(path):
                continue
            node = self.node(path)
            if node:
                found.append(self._disk(path, node))
                found += self._partitions(path, node)
        found.reverse()
        return found

    def _disk(self, path: str, node: str) -> dict[str, object]:
        disk: dict[str, object] = {"name": node, "partition": False}
        parts = self._parts(path)
        if parts is not None:
            disk["dependencies"] = [n for n in map(self.node, reversed(parts)) if n]
        if _VIRTUAL not in path:
            address = self._address(path)
            if address is not None:
                disk["address"] = address
        alias = self.properties(path).get(b"DM_NAME")
        if alias:
            disk["alias"] = alias.decode("utf-8", "surrogateescape")
        return disk

    def _partitions(self, path: str, node: str) -> list[dict[str, object]]:
        """A disk's partitions: the folders named after it with a number, or `p` and a number, behind."""
        disk = os.path.basename(path)
        found: list[dict[str, object]] = []
        try:
            with os.scandir(self._root + path) as entries:
                names = [e.name for e in entries if e.name.startswith(disk) and e.is_dir(follow_symlinks=False)]
        except OSError:
            return found
        for name in names:
            number = name[len(disk) :].removeprefix("p")
            if number[:1].isdecimal():
                own = self.node(f"{path}/{name}")
                if own:
                    found.append({"name": own, "partition": True, "dependencies": [node]})
        return found

    def _address(self, path: str) -> dict[str, object] | None:
        """The GuestDiskAddress of a physical disk or its partition; None if nothing at all is known about it."""
        place = attachment(path, self._driver, self._list)
        node = self.node(path)
        serial = self.properties(path).get(b"ID_SERIAL", b"")
        if not (place.known or node or serial):
            return None
        pci = place.pci or _NO_PCI
        address: dict[str, object] = {
            "pci-controller": {"domain": pci[0], "bus": pci[1], "slot": pci[2], "function": pci[3]},
            "bus-type": place.bus_type,
            "bus": place.bus,
            "target": place.target,
            "unit": place.unit,
        }
        if serial:
            address["serial"] = serial.decode("utf-8", "surrogateescape")
        if node:
            address["dev"] = node
        if place.ccw is not None:
            address["ccw-address"] = dict(zip(("cssid", "ssid", "subchno", "devno"), place.ccw, strict=True))
        return address

    def _parts(self, path: str) -> list[str] | None:
        """The devices that a volume is made of, in the folder's order; None if there is no such folder."""
        folder = path + "/slaves"
        try:
            names = os.listdir(self._root + folder)
        except OSError:
            return None
        return [part for name in names if (part := self._follow(folder, name)) is not None]

    def _follow(self, folder: str, name: str) -> str | None:
        """Where a link of /sys leads; None if it is not there or no link.  These links go straight to the device."""
        try:
            target = os.readlink(f"{self._root}{folder}/{name}")
        except OSError:
            return None
        if target.startswith("../../devices/"):
            return "/sys" + target[5:]
        return os.path.normpath(f"{folder}/{target}" if target[:1] != "/" else target)

    def _is_empty(self, path: str) -> bool:
        try:
            return read_page(f"{self._root}{path}/size").strip() == b"0"
        except OSError:
            return True

    def _uevent(self, path: str) -> dict[bytes, bytes]:
        known = self._uevents.get(path)
        if known is None:
            try:
                known = assignments(read_page(f"{self._root}{path}/uevent"))
            except OSError:
                known = {}
            self._uevents[path] = known
        return known

    def _driver(self, path: str) -> str:
        known = self._drivers.get(path)
        if known is None:
            try:
                known = os.path.basename(os.readlink(f"{self._root}{path}/driver"))
            except OSError:
                known = ""
            self._drivers[path] = known
        return known

    def _list(self, path: str) -> list[str]:
        try:
            return os.listdir(self._root + path)
        except OSError:
            return []
