"""Where a disk is attached: the path of a block device below /sys to the address that the host knows it by.

The path alone tells most of it; two things are asked of the caller, so that this stays a function of its arguments: which driver
a PCI device has, and what stands in a folder.  Facts: the rules are qemu-ga's (10.2), which hosts match against their
own bus addresses: the first PCI device from the left with a known driver is the controller; `bus` and `target` are 0 on PCI
but for the bus of an IDE controller; a unit is what the host numbers, so a rank for SATA and a LUN for virtio-scsi.

Deviation on purpose: the peer looks for `/devices/pci` only; a PCI host bridge of a device tree (arm64 without ACPI) has its
bus one or two folders further down, and is understood too.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Final

# Drivers of PCI devices that are the controller of a disk.
CONTROLLERS: Final = frozenset(
    ("ata_piix", "sym53c8xx", "virtio-pci", "ahci", "nvme", "xhci_hcd", "ehci-pci"),
)


class Attachment:
    """What became known of a device.

    pci      domain, bus, slot, function; None when there is none or no driver on the way is known
    ccw      cssid, ssid, subchno, devno on s390; None elsewhere
    bus_type one of GuestDiskBusType
    known    whether a rule applied: what none applies to is only worth reporting by its name
    """

    __slots__ = ("pci", "ccw", "bus_type", "bus", "target", "unit", "known")

    def __init__(self) -> None:
        self.pci: tuple[int, ...] | None = None
        self.ccw: tuple[int, ...] | None = None
        self.bus_type = "unknown"
        self.bus = 0
        self.target = 0
        self.unit = 0
        self.known = False


def attachment(path: str, driver_of: Callable[[str], str], list_folder: Callable[[str], Sequence[str]]) -> Attachment:
    """The attachment of the device at path (`/sys/devices/...`, without links).

    driver_of gives the driver of the device in a folder ("" for none), list_folder the names in one ([] if it cannot).
    """
    parts = path.split("/")
    found = Attachment()
    bridge = _first(parts, "pci", lambda rest: ":" in rest)
    if bridge:
        _on_pci(found, parts, bridge, driver_of, list_folder)
        return found
    css = _first(parts, "css", _is_hex)
    if css:
        found.ccw = _ccw(parts, css)
        found.known = found.ccw is not None
    if (css and found.known) or not css:
        virtio = _first(parts, "virtio", lambda rest: True)
        if virtio:
            found.known = True
            numbers = _scsi_numbers(parts)
            if numbers is None:
                found.bus_type = "virtio"
            else:
                found.bus_type = "scsi"
                found.bus, found.target, found.unit = numbers
    return found


def _on_pci(
    found: Attachment,
    parts: list[str],
    bridge: int,
    driver_of: Callable[[str], str],
    list_folder: Callable[[str], Sequence[str]],
) -> None:
    """Fill in what the path below a PCI host bridge says."""
    for at in range(bridge + 1, len(parts)):
        address = _pci_address(parts[at])
        if address is None:
            return
        driver = driver_of("/".join(parts[: at + 1]))
        if driver in CONTROLLERS:
            found.pci = address
            break
    else:
        return
    numbers = _scsi_numbers(parts)
    match driver:
        case "virtio-pci":
            found.bus_type = "virtio"
            if numbers is not None:
                found.bus_type, found.unit = "scsi", numbers[2]
        case "nvme":
            found.bus_type = "nvme"
        case "xhci_hcd" | "ehci-pci":
            found.bus_type = "usb"
        case "sym53c8xx" if numbers is not None:
            found.bus_type, found.unit = "scsi", numbers[1]
        case "ata_piix" | "ahci" if numbers is not None:
            rank = _port_rank(parts, list_folder)
            if rank is None:
                return
            if driver == "ahci":
                found.bus_type, found.unit = "sata", rank
            else:
                found.bus_type, found.bus, found.unit = "ide", rank, numbers[1]
        case _:
            return
    found.known = True


def _first(parts: list[str], prefix: str, fits: Callable[[str], bool]) -> int:
    """The place of the first folder whose name is prefix and a rest that fits; 0 if there is none."""
    for at, part in enumerate(parts):
        if part.startswith(prefix) and fits(part[len(prefix) :]):
            return at
    return 0


def _is_hex(text: str) -> bool:
    return bool(text) and text.isascii() and all(c in "0123456789abcdefABCDEF" for c in text)


def _hex_fields(text: str, separator: str, count: int) -> tuple[int, ...] | None:
    fields = text.split(separator)
    if len(fields) != count or not all(map(_is_hex, fields)):
        return None
    return tuple(int(f, 16) for f in fields)


def _pci_address(name: str) -> tuple[int, ...] | None:
    """`0000:00:1f.2` to domain, bus, slot, function."""
    device, dot, function = name.rpartition(".")
    fields = _hex_fields(device, ":", 3)
    return (*fields, int(function, 16)) if dot and fields and _is_hex(function) else None


def _ccw(parts: list[str], css: int) -> tuple[int, ...] | None:
    """`css0/0.0.000b/0.0.0cfe`: the subchannel's folder has cssid, ssid and number, the device's the device number."""
    subchannel = _hex_fields(parts[css + 1], ".", 3) if len(parts) > css + 2 else None
    device = _hex_fields(parts[css + 2], ".", 3) if subchannel else None
    return (*subchannel, device[2]) if subchannel and device else None


def _scsi_numbers(parts: list[str]) -> tuple[int, int, int] | None:
    """Channel, target and LUN out of `targetH:C:T/H:C:T:L`."""
    at = _first(parts, "target", lambda rest: ":" in rest)
    if not at or at + 1 >= len(parts):
        return None
    fields = parts[at + 1].split(":")
    if len(fields) != 4 or not all(f.isdecimal() and f.isascii() for f in fields):
        return None
    return int(fields[1]), int(fields[2]), int(fields[3])


def _port_rank(parts: list[str], list_folder: Callable[[str], Sequence[str]]) -> int | None:
    """The place of this ATA port (where the path names none: of this SCSI host) among those of its controller."""
    for kind in ("ata", "host"):
        at = _first(parts, kind, lambda rest: rest.isdecimal() and rest.isascii())
        if not at:
            continue
        start = len(kind)
        names = list_folder("/".join(parts[:at]))
        numbers = {int(n[start:]) for n in names if n.startswith(kind) and n[start:].isdecimal() and n.isascii()}
        own = int(parts[at][start:])
        return sorted(numbers).index(own) if own in numbers else None
    return None
