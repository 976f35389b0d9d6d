"""An NVMe disk's health: the SMART log page, asked of the device node and taken apart.

The kernel lets only CAP_SYS_ADMIN send this admin command, and the node belongs to root; a worker without the one or the
other gets nothing, and the reply goes without `smart` as it does when the disk refuses.

Facts: NVM Express base specification, Get Log Page (opcode 02h), SMART / Health Information (log 02h, 512 bytes, little
endian); struct nvme_passthru_cmd and NVME_IOCTL_ADMIN_CMD in linux/nvme_ioctl.h.
"""

from __future__ import annotations

import fcntl
import os
import sys
from array import array

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_ADMIN_COMMAND: Final = 0xC0484E41
_GET_LOG_PAGE: Final = 0x02
_SMART_LOG: Final = 0x02
_EVERY_NAMESPACE: Final = 0xFFFFFFFF
LOG_SIZE: Final = 512

# The 128-bit counters from byte 32 on, in their order.
_COUNTERS: Final = (
    "data-units-read data-units-written host-read-commands host-write-commands controller-busy-time power-cycles "
    "power-on-hours unsafe-shutdowns media-errors number-of-error-log-entries"
).split()


def read_smart_log(node: str) -> bytes:
    """The log page of a disk.  Raises OSError, also (EIO) when the disk answered with a status."""
    log = array("B", bytes(LOG_SIZE))
    address, _ = log.buffer_info()
    command = bytearray(72)
    command[0] = _GET_LOG_PAGE
    command[4:8] = _EVERY_NAMESPACE.to_bytes(4, sys.byteorder)
    command[24:32] = address.to_bytes(8, sys.byteorder)
    command[36:40] = LOG_SIZE.to_bytes(4, sys.byteorder)
    # cdw10: how many 32-bit words less one, and which log.
    command[40:44] = ((LOG_SIZE // 4 - 1) << 16 | _SMART_LOG).to_bytes(4, sys.byteorder)
    fd = os.open(node, os.O_RDONLY | os.O_NONBLOCK)
    try:
        status = fcntl.ioctl(fd, _ADMIN_COMMAND, command)
    finally:
        os.close(fd)
    if status:
        raise OSError(5, f"the disk answered with status {status:#x}")
    return log.tobytes()


def parse_smart_log(log: bytes) -> dict[str, object]:
    """The GuestNVMeSmart of a log page; the temperature is in kelvin.  Raises ValueError if it is too short."""
    if len(log) < 32 + 16 * len(_COUNTERS):
        raise ValueError("the log page is cut short")
    smart: dict[str, object] = {
        "type": "nvme",
        "critical-warning": log[0],
        "temperature": int.from_bytes(log[1:3], "little"),
        "available-spare": log[3],
        "available-spare-threshold": log[4],
        "percentage-used": log[5],
    }
    for at, name in enumerate(_COUNTERS):
        start = 32 + 16 * at
        smart[f"{name}-lo"] = int.from_bytes(log[start : start + 8], "little")
        smart[f"{name}-hi"] = int.from_bytes(log[start + 8 : start + 16], "little")
    return smart
