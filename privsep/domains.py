"""THE privilege table: which process runs as whom, with what, and why.

One row a process.  `sandbox/apply.py` makes a child what its row says and reads the result back from the kernel, the
supervisor compares it again from outside before it hands over any socket, the tests execute both sides of each entry.
A privilege without a reason does not stand here.  The system calls of each row, with their reasons, are in
`sandbox/rules.py`: they are compiled when the programs are installed, and no process of the agent imports them.

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
    paths       path -> (letters, why): what it may open after its walls are up, enforced by Landlock; None: no Landlock.
                l list folders, r read files, w write files, x execute, c create, rename and remove files, d make folders,
                n other changes of names, i ioctl on devices (`sandbox/landlock.py`).  "$NAME" is what the environment says,
                "selinux:PATH" one where SELinux is in force, "~" each account's home (`sandbox/paths.py`)
    scoped      Landlock also keeps its signals and its connections to abstract sockets inside
    filtered    its system calls are filtered
    network     "host": the network namespace of the agent; "none": an empty one of its own
    limits      hard resource limits (setrlimit(2)); those of a row that starts programs are its programs' too, so it has none
    channel     "front": its requests come from the front; "fs": only the fs worker may ask; "none": neither
    idle        seconds without a request after which it goes at the latest, unless it holds state (`privsep/dispatch.py` says
                when it goes earlier); 0: never by itself
    programs    starts other programs: they inherit its walls, so those are declared for both
    locked      its memory is locked before the first freeze
    """

    __slots__ = (
        "name", "user", "caps", "why", "paths", "scoped", "filtered", "network", "limits", "channel", "idle", "programs",
        "locked",
    )  # fmt: skip

    def __init__(
        self,
        name: str,
        user: str,
        caps: Mapping[str, str],
        why: str,
        *,
        paths: Mapping[str, tuple[str, str]] | None,
        scoped: bool = True,
        filtered: bool = True,
        network: str = "host",
        limits: Mapping[str, int] | None = None,
        channel: str = "front",
        idle: float = 15.0,
        programs: bool = False,
        locked: bool = False,
    ) -> None:
        self.name = name
        self.user = user
        self.caps = caps
        self.why = why
        self.paths = paths
        self.scoped = scoped
        self.filtered = filtered
        self.network = network
        self.limits = {} if programs else {"CORE": 0, "NOFILE": 256, **(limits or {})}
        self.channel = channel
        self.idle = idle
        self.programs = programs
        self.locked = locked

    @property
    def selinux_type(self) -> str:
        """The type that SELinux knows the process by, once it is what the row says (selinux/README.md)."""
        return f"privsep_ga_{self.name}_t"

    @property
    def selinux_start_type(self) -> str:
        """The type between the exec and the drop, which leads to the one above and nowhere else."""
        return f"privsep_ga_{self.name}_start_t"

    @property
    def selinux_entry_type(self) -> str:
        """The label of its entry script."""
        return f"privsep_ga_{self.name}_entry_t"

    def mask(self, available: int) -> int:
        """The capability set as the kernel's bit mask; `available` is what the agent itself was started with, which "ALL"
        stands for."""
        if "ALL" in self.caps:
            return available
        return sum(
            [1 << CAPABILITIES[c] for c in self.caps if c not in DISPENSABLE or available >> CAPABILITIES[c] & 1]
        )


# What a row works without, less well, where the agent itself was not given it (a container); status says so.
DISPENSABLE: Final = frozenset(("IPC_LOCK",))

DOMAINS: Final = (
    Domain(
        "front",
        "privsep-ga",
        {},
        "the only reader of the host's bytes: parses, routes and words the replies",
        channel="none",
        idle=0.0,
        paths={},
        network="none",
        # A log that is a regular file reaches it as a pipe, so it makes no file longer.
        limits={"NOFILE": 64, "FSIZE": 0, "NPROC": 0},
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
        paths={},
        limits={"NOFILE": 4200},
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
        paths=None,
        filtered=False,
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
        paths={
            "/": ("l", "opens mount points, which are folders; DAC_READ_SEARCH reads no file's content"),
            "/proc/self": ("rl", "fdinfo: which mount a descriptor is on"),
            "/sys/dev/block": ("rl", "what a block device is made of"),
            "/sys/devices": ("rl", "what a block device is made of"),
            "/sys/fs/btrfs": ("rl", "the devices of a btrfs file system"),
        },
        limits={"NOFILE": 4200},
    ),
    Domain(
        "trim",
        "privsep-ga-trim",
        {
            "SYS_ADMIN": "ioctl FITRIM",
            "DAC_READ_SEARCH": "opens mount points that only their owner may enter",
        },
        "discards unused blocks, in a process of its own because it can take minutes",
        paths={"/": ("l", "opens mount points, which are folders; DAC_READ_SEARCH reads no file's content")},
    ),
    Domain(
        "network",
        "privsep-ga-network",
        {},
        "reads interfaces, addresses, counters and routes from netlink",
        paths={},
    ),
    Domain(
        "inventory",
        "privsep-ga-inventory",
        {},
        "reads what the machine is: system, users, disks, file systems, cpus, memory blocks",
        paths={
            "/sys": ("rl", "processors, memory blocks, block devices"),
            "/proc": ("r", "mountinfo, diskstats, stat, loadavg"),
            "/etc": ("r", "os-release, localtime"),
            "/usr/lib": ("r", "os-release"),
            "/usr/share/zoneinfo": ("r", "the time zone"),
            "/run/udev/data": ("rl", "serial numbers and names of volumes"),
            "/run/utmp": ("r", "who is logged in"),
            "/var/run/utmp": ("r", "who is logged in, where /var/run is no link to /run"),
            "/run/systemd/sessions": ("rl", "who is logged in, where there is no utmp"),
            "$QGA_OS_RELEASE": ("r", "the file that the peer's environment variable names"),
        },
    ),
    Domain(
        "power",
        "root",
        {},
        "shuts down and suspends through the init system, as uid 0 without a capability",
        programs=True,
        paths={
            "/usr": ("lrx", "the init system's programs, and the libraries and texts of theirs"),
            "/bin": ("lrx", "the same, where it is no link to /usr"),
            "/sbin": ("lrx", "the same"),
            "/lib": ("lrx", "the same"),
            "/lib64": ("lrx", "the same"),
            "/proc": ("lr", "shutdown(8) and systemctl(1) look at processes and at the mount table"),
            "/sys": ("lr", "whether the machine can suspend"),
            "/sys/power": ("w", "suspends without an init system"),
            "/etc/ld.so.cache": ("r", "the loader"),
            "/etc/ld.so.preload": ("r", "the loader"),
            "/etc/passwd": ("r", "names of users in the warning"),
            "/etc/nsswitch.conf": ("r", "the same"),
            "/etc/group": ("r", "the same"),
            "/etc/localtime": ("r", "the time in the log"),
            "/etc/machine-id": ("r", "systemctl(1)"),
            "/etc/systemd": ("lr", "systemctl(1)"),
            "/etc/init.d": ("lrx", "shutdown(8) without systemd"),
            "/etc/default": ("lr", "the same"),
            "/etc/inittab": ("r", "the same"),
            "/etc/pm": ("lrx", "pm-utils"),
            "/run": ("lrwcdn", "a note for logins, a request for init, the init system's sockets"),
            "/dev/null": ("rw", "programs' standard input"),
            "/dev/initctl": ("w", "a request for init"),
            "/dev/console": ("w", "the warning"),
            "/dev/tty": ("w", "the warning"),
            "/dev/pts": ("lw", "the warning"),
            "/var/log": ("w", "the record of logins, pm-utils' log"),
            "/var/lib/pm-utils": ("lrwcdn", "pm-utils' state"),
        },
        # Without systemd, poweroff(8) signals process 1.
        scoped=False,
    ),
    Domain(
        "time",
        "privsep-ga-time",
        {"SYS_TIME": "clock_settime and the clock chip's RTC_SET_TIME"},
        "sets the clock, from the host's time or the clock chip",
        # It has the clock chip open, which one process alone may have: hwclock and others find it busy meanwhile.
        idle=1.0,
        paths={
            "/etc/localtime": ("r", "a hardware clock that holds local time: the zone's file is looked at again"),
            "/usr/share/zoneinfo": ("r", "the same"),
        },
    ),
    Domain(
        "hotplug",
        "root",
        {},
        "takes cpus and memory blocks on and off line; sysfs wants uid 0 and no capability",
        paths={
            "/sys/devices/system/cpu": ("lrw", "a processor's `online`"),
            "/sys/devices/system/memory": ("lrw", "a memory block's `state`"),
        },
    ),
    Domain(
        "user",
        "root",
        {"CHOWN": "chpasswd gives the new shadow file the old one's owner"},
        "sets passwords by chpasswd",
        programs=True,
        paths={
            "/usr": ("lrx", "chpasswd, PAM modules and what they read"),
            "/bin": ("lrx", "the same, where it is no link to /usr"),
            "/sbin": ("lrx", "the same"),
            "/lib": ("lrx", "the same"),
            "/lib64": ("lrx", "the same"),
            "/proc": ("lr", "libraries look at their own process, the kernel's settings and what entropy there is"),
            "selinux:/proc": (
                "w",
                "PAM asks for shadow's label (attr/fscreate); the row's type may write nothing else there",
            ),
            "/etc": ("lrwc", "shadow, its lock, its backup and its successor; PAM's settings"),
            "/dev/null": ("rw", "programs' standard input"),
            "/dev/urandom": ("r", "salt"),
            "/run": ("lrw", "notes of PAM modules, the account database's services"),
            "/var/lib/sss": ("lr", "the account database's services"),
        },
    ),
    Domain(
        "ssh",
        "root",
        {
            "SETUID": "becomes the target user before it touches the home directory",
            "SETGID": "becomes the target user before it touches the home directory",
        },
        "reads and writes authorized_keys as the user they belong to",
        paths={
            "/home": ("lrwcd", "`.ssh` and authorized_keys; the target user's own rights say what there is to write"),
            "~": ("lrwcd", "the same, for homes elsewhere"),
            "/etc": ("r", "the account database"),
            "/usr": ("r", "modules of the account database"),
            "/lib": ("r", "the same, where it is no link to /usr"),
            "/lib64": ("r", "the same"),
            "/run": ("r", "the account database's services"),
            "/var/lib/sss": ("lr", "the same"),
            "/proc": ("r", "the same: the kernel's settings"),
        },
    ),
    Domain(
        "file",
        "root",
        {
            "DAC_OVERRIDE": "reads and writes files whoever they belong to, as the policy that enables it says",
        },
        "opens, reads and writes files for the host",
        paths={
            "/": (
                "lrwc",
                "whatever path the policy that enables it admits; no program is run and no name but a file made",
            )
        },
        limits={"NOFILE": 1200},
    ),
    Domain(
        "exec",
        "root",
        {
            "ALL": "programs for the host are root's where policy lets them run at all, as with qemu-ga",
        },
        "runs programs for the host",
        programs=True,
        paths=None,
        filtered=False,
    ),
)

# The newest Landlock ABI that the walls make use of: what an older kernel lacks is said in the log and the status.
LANDLOCK: Final = 6
LANDLOCK_UNDECLARED: Final = 255  # the level that a child of a row without Landlock reports

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
