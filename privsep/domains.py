"""THE privilege table: which process runs as whom, with what, and why.

One row a process.  `sandbox/apply.py` makes a child what its row says and reads the result back from the kernel, the
supervisor compares it again from outside before it hands over any socket, the tests execute both sides of each entry.
A privilege without a reason does not stand here.

Facts: capabilities(7); measured on Linux 6.18: uid 0 without capabilities gets EPERM on FIFREEZE, any uid with
CAP_SYS_ADMIN may, under no_new_privs too; sysfs files owned by root need uid 0 only; chpasswd on Debian needs uid 0 and
CAP_CHOWN.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Final

# Linux's capability numbers (include/uapi/linux/capability.h) for those that a row may name.
CAPABILITIES: Final = {
    "CHOWN": 0,
    "DAC_OVERRIDE": 1,
    "DAC_READ_SEARCH": 2,
    "FOWNER": 3,
    "KILL": 5,
    "SETGID": 6,
    "SETUID": 7,
    "SETPCAP": 8,
    "IPC_LOCK": 14,
    "SYS_ADMIN": 21,
    "SYS_BOOT": 22,
    "SYS_TIME": 25,
    "AUDIT_WRITE": 29,
}


class Domain:
    """One row.

    name        the domain; also the worker's module `workers.<name>` and its entry script
    user        the account it runs as; "root" is uid 0, whatever else is a system user of its own
    caps        capability -> why; held as permitted, effective and bounding set, nothing inheritable or ambient
    why         what the process is for
    channel     "front": its requests come from the front; "fs": only the fs worker may ask; "none": neither
    idle        seconds without a request after which it may go (it does not while it holds state); 0: never by itself
    programs    starts other programs: they inherit its walls, so those are declared for both
    locked      its memory is locked before the first freeze
    """

    __slots__ = ("name", "user", "caps", "why", "channel", "idle", "programs", "locked")

    def __init__(
        self,
        name: str,
        user: str,
        caps: Mapping[str, str],
        why: str,
        *,
        channel: str = "front",
        idle: float = 60.0,
        programs: bool = False,
        locked: bool = False,
    ) -> None:
        self.name = name
        self.user = user
        self.caps = caps
        self.why = why
        self.channel = channel
        self.idle = idle
        self.programs = programs
        self.locked = locked

    def mask(self, available: int) -> int:
        """The capability set as the kernel's bit mask; `available` is what the agent itself was started with, which "ALL"
        stands for."""
        if "ALL" in self.caps:
            return available
        return sum(1 << CAPABILITIES[c] for c in self.caps)


DOMAINS: Final = (
    Domain(
        "front",
        "privsep-ga",
        {},
        "the only reader of the host's bytes: parses, routes and words the replies",
        channel="none",
        idle=0.0,
    ),
    Domain(
        "thawer",
        "privsep-ga-thawer",
        {
            "SYS_ADMIN": "ioctl FITHAW on what is frozen",
            "IPC_LOCK": "its memory must not be paged in from a frozen file system",
        },
        "the freeze watchdog: thaws at the deadline, or when fs or the supervisor dies, whatever anybody says",
        channel="fs",
        idle=0.0,
        locked=True,
    ),
    Domain(
        "hook",
        "root",
        {
            "ALL": "the administrator's scripts quiesce whatever they like (databases, LVM, containers), as with qemu-ga",
        },
        "runs the administrator's freeze and thaw hook; only fs may ask it",
        channel="fs",
        programs=True,
    ),
    Domain(
        "fs",
        "privsep-ga-fs",
        {
            "SYS_ADMIN": "ioctl FIFREEZE and FITHAW",
            "DAC_READ_SEARCH": "opens mount points that only their owner may enter",
            "IPC_LOCK": "its memory must not be paged in from a frozen file system",
        },
        "freezes: makes the plan, registers it with the thawer and the journal, then freezes",
        locked=True,
    ),
    Domain(
        "trim",
        "privsep-ga-trim",
        {
            "SYS_ADMIN": "ioctl FITRIM",
            "DAC_READ_SEARCH": "opens mount points that only their owner may enter",
        },
        "discards unused blocks, in a process of its own because it can take minutes",
    ),
    Domain("network", "privsep-ga-network", {}, "reads interfaces, addresses, counters and routes from netlink"),
    Domain(
        "inventory",
        "privsep-ga-inventory",
        {},
        "reads what the machine is: system, users, disks, file systems, cpus, memory blocks",
    ),
    Domain(
        "power",
        "root",
        {},
        "shuts down and suspends through the init system, as uid 0 without a capability",
        programs=True,
    ),
    Domain(
        "time",
        "privsep-ga-time",
        {"SYS_TIME": "clock_settime and the clock chip's RTC_SET_TIME"},
        "sets the clock, from the host's time or the clock chip",
    ),
    Domain("hotplug", "root", {}, "takes cpus and memory blocks on and off line; sysfs wants uid 0 and no capability"),
    Domain(
        "user",
        "root",
        {"CHOWN": "chpasswd gives the new shadow file the old one's owner"},
        "sets passwords by chpasswd",
        programs=True,
    ),
    Domain(
        "ssh",
        "root",
        {
            "SETUID": "becomes the target user before it touches the home directory",
            "SETGID": "becomes the target user before it touches the home directory",
        },
        "reads and writes authorized_keys as the user they belong to",
    ),
    Domain(
        "file",
        "root",
        {
            "DAC_OVERRIDE": "reads and writes files whoever they belong to, as the policy that enables it says",
        },
        "opens, reads and writes files for the host",
    ),
    Domain(
        "exec",
        "root",
        {
            "ALL": "programs for the host are root's where policy lets them run at all, as with qemu-ga",
        },
        "runs programs for the host",
        programs=True,
    ),
)

BY_NAME: Final = {d.name: d for d in DOMAINS}
NUMBER: Final = {d.name: n for n, d in enumerate(DOMAINS)}

# What the supervisor itself needs, whatever is enabled.
SUPERVISOR_CAPS: Final = {
    "SETUID": "children become their own users",
    "SETGID": "children become their own users",
    "SETPCAP": "children drop their bounding sets",
    "KILL": "ends children that run as other users",
    "SYS_ADMIN": "thaws from the journal as the last holder",
    "DAC_READ_SEARCH": "opens the mount points in the journal",
}
