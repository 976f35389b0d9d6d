"""What the machine is: processors, memory blocks, disks, file systems, users, system, time zone, load, counters.

Runs as a user of its own without any capability and only reads.  Besides the files below it asks the kernel for its name (uname),
for the sizes of file systems (statvfs, in a helper thread: see sizes.py) and the C library for the time zone.

Paths read (for the walls):
    /sys                                        processors, memory blocks, block devices
    /proc/self/mountinfo  /proc/diskstats  /proc/stat  /proc/loadavg
    /run/udev/data                              serial numbers, names of volumes
    /run/utmp  /var/run/utmp  /run/systemd/sessions    users
    /etc/os-release  /usr/lib/os-release  and what QGA_OS_RELEASE names
    /etc/localtime  /usr/share/zoneinfo         by the C library, when the worker is already walled
    /dev/nvme*                                  health; absent without CAP_SYS_ADMIN
    each mount point                            statvfs only: search permission on the way, nothing is opened

Facts: orders, members and texts are qemu-ga's (10.2); kernel, Documentation/ABI (sysfs-devices-system-cpu, sysfs-devices-memory).
"""

from __future__ import annotations

import errno
import os
import sys
import time

from protocol.errors import CommandError
from workers.disks import BlockDevices
from workers.mounts import Tree, block_device, parse_mountinfo, superblocks
from workers.osrelease import PATHS, parse_os_release
from workers.processors import Processors
from workers.sizes import Surveyor, sizes_of
from workers.statistics import parse_cpustats, parse_diskstats
from workers.sysfs import numbered, read_page, read_whole
from workers.utmp import earliest_by_user, parse_session, parse_utmp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from privsep.runtime import Context

    Reply = dict[str, object]

_MEMORY: Final = "/sys/devices/system/memory/"
_UTMP: Final = ("/run/utmp", "/var/run/utmp")
_SESSIONS: Final = "/run/systemd/sessions"


def prepare(ctx: Context) -> None:
    """Import what only machines with an NVMe disk need: behind the walls nothing can be."""
    if os.path.isdir(f"{ctx.root}/sys/class/nvme"):
        import workers.nvme  # noqa: F401


def guest_get_vcpus(ctx: Context) -> list[Reply]:
    """Each processor that the kernel knows.  One without an `online` file cannot be taken off line."""
    known: Processors | None = ctx.state.__dict__.get("processors")
    if known is None:
        known = ctx.state.__dict__["processors"] = Processors(ctx.root)
    return known.rows()


def guest_get_memory_blocks(ctx: Context) -> list[Reply]:
    """Each memory block; none at all where the kernel has no memory hotplug."""
    try:
        folder = os.open(ctx.root + _MEMORY, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return []
    except OSError as e:
        raise CommandError.from_errno(f'Can\'t open directory "{_MEMORY}"', e.errno or 0) from None
    try:
        numbers = numbered(os.listdir(folder), "memory")
        if not numbers:
            raise CommandError("guest reported zero memory blocks!")
        return [block for number in numbers if (block := _memory_block(folder, number)) is not None]
    finally:
        os.close(folder)


def _memory_block(folder: int, number: int) -> Reply | None:
    """One block; None if it was unplugged meanwhile.  A kernel without `state` has only blocks that are on line."""
    online, removable = True, False
    try:
        online = read_page(f"memory{number}/state", folder).startswith(b"online")
        removable = read_page(f"memory{number}/removable", folder)[:1] != b"0"
    except FileNotFoundError:
        pass
    except OSError as e:
        if e.errno in (errno.ENODEV, errno.ENOTDIR):
            return None
        raise CommandError.from_errno('pread sysfs file "state"', e.errno or 0) from None
    return {"phys-index": number, "online": online, "can-offline": removable}


def guest_get_memory_block_info(ctx: Context) -> Reply:
    """The size of a memory block in bytes."""
    try:
        return {"size": int(read_page(f"{ctx.root}{_MEMORY}block_size_bytes"), 16)}
    except OSError as e:
        what = ' sysfs file "block_size_bytes"' if os.path.isdir(ctx.root + _MEMORY) else f'("{_MEMORY}")'
        raise CommandError.from_errno(f"open{what}", e.errno or 0) from None
    except ValueError:
        raise CommandError("block_size_bytes has no number") from None


def guest_get_disks(ctx: Context) -> list[Reply]:
    """Every disk with a size, and its partitions, last disk first."""
    try:
        disks = BlockDevices(ctx.root).disks()
    except OSError as e:
        raise CommandError.from_errno('Can\'t open directory "/sys/block"', e.errno or 0) from None
    for disk in disks:
        address = disk.get("address")
        if isinstance(address, dict) and address["bus-type"] == "nvme":
            _add_smart(ctx, disk)
    return disks


def _add_smart(ctx: Context, disk: Reply) -> None:
    try:
        from workers.nvme import parse_smart_log, read_smart_log  # it is there, unless the disk is new

        disk["smart"] = parse_smart_log(read_smart_log(f"{ctx.root}{disk['name']}"))
    except (OSError, ValueError, ImportError) as e:
        ctx.log.debug(f"no SMART log of {disk['name']}: {e}")


def guest_get_fsinfo(ctx: Context) -> list[Reply]:
    """Each file system on a block device once, in the reverse order of the mount table.

    Sizes are absent where they cannot be had, also where the mount point is covered by another mount."""
    try:
        mounts = parse_mountinfo(read_whole(f"{ctx.root}/proc/self/mountinfo"))
    except OSError as e:
        raise CommandError.from_errno("failed to open file: '/proc/self/mountinfo'", e.errno or 0) from None
    tree, devices = Tree(mounts), BlockDevices(ctx.root)
    found: list[Reply] = []
    paths: list[str] = []
    measured: list[Reply] = []
    for group in reversed(superblocks(mounts, lambda source: block_device(ctx.root + source))):
        mount = next((m for m in group if tree.reachable(m)), None)
        major, minor = (group[0].major and group[0].device) or block_device(ctx.root + group[0].source) or (0, 0)
        path = devices.by_number(major, minor)
        system: Reply = {
            "name": os.path.basename(path) if path else f"{major}:{minor}",
            "mountpoint": (mount or group[0]).point,
            "type": group[0].fstype,
        }
        if mount is not None:
            paths.append(ctx.root + mount.point)
            measured.append(system)
        system["disk"] = devices.addresses(path) if path else []
        found.append(system)
    for system, status in zip(measured, _surveyor(ctx).survey(paths), strict=True):
        if status is not None:
            system["used-bytes"], system["total-bytes"], system["total-bytes-privileged"] = sizes_of(status)
    stuck = _surveyor(ctx).stuck()
    if stuck:
        ctx.log.warning(f"file systems that do not answer: {', '.join(map(ascii, stuck))}")
    return found


def _surveyor(ctx: Context) -> Surveyor:
    """The one of this worker: what is stuck is remembered from request to request."""
    surveyor = ctx.state.__dict__.get("surveyor")
    if not isinstance(surveyor, Surveyor):
        surveyor = ctx.state.__dict__["surveyor"] = Surveyor()
    return surveyor


def guest_get_users(ctx: Context) -> list[Reply]:
    """Each user who is logged in, with the first login; from utmp, or where there is none from logind's session files."""
    for path in _UTMP:
        try:
            logins = parse_utmp(read_whole(ctx.root + path), sys.byteorder, os.uname().machine)
            break
        except OSError:
            continue
    else:
        logins = []
        for name in _sessions(ctx):
            try:
                session = parse_session(read_whole(f"{ctx.root}{_SESSIONS}/{name}", 1 << 16))
            except OSError:
                continue  # logged out meanwhile
            if session is not None:
                logins.append(session)
        logins.sort(key=lambda login: login.since)
    return [{"user": login.user, "login-time": login.since} for login in earliest_by_user(logins)]


def _sessions(ctx: Context) -> list[str]:
    """The names of the session files; `*.ref` beside them are FIFOs."""
    try:
        return [name for name in os.listdir(ctx.root + _SESSIONS) if "." not in name]
    except OSError:
        return []


def guest_get_timezone(ctx: Context) -> Reply:
    """The local zone now.  The C library decides: TZ, else /etc/localtime, read again when it changed."""
    time.tzset()
    now = time.localtime()
    return {"zone": now.tm_zone, "offset": now.tm_gmtoff}


def guest_get_osinfo(ctx: Context) -> Reply:
    """The kernel's names, and what os-release says."""
    system = os.uname()
    info: Reply = {"kernel-release": system.release, "kernel-version": system.version, "machine": system.machine}
    told = os.environ.get("QGA_OS_RELEASE")
    for path in PATHS if told is None else (told,):
        try:
            return info | _os_release(ctx, path)
        except OSError:
            continue
    return info


def _os_release(ctx: Context, path: str) -> dict[str, str]:
    """What the file says; it is asked for often and changes with an upgrade of the system.  Raises OSError."""
    known: tuple[object, dict[str, str]] | None = ctx.state.__dict__.get("os_release")
    stat = os.stat(ctx.root + path)
    now = (path, stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    if known is None or known[0] != now:
        try:
            known = now, parse_os_release(read_whole(ctx.root + path, 1 << 20))
        except ValueError as e:
            ctx.log.warning(f"{path!a}: {e}")
            known = now, {}
        ctx.state.__dict__["os_release"] = known
    return known[1]


def guest_get_load(ctx: Context) -> Reply:
    """The load averages of one, five and fifteen minutes."""
    try:
        one, five, fifteen = map(float, read_whole(f"{ctx.root}/proc/loadavg").split()[:3])
    except OSError as e:
        raise CommandError.from_errno("cannot query load average", e.errno or 0) from None
    except ValueError:
        raise CommandError("cannot query load average: /proc/loadavg has no three numbers") from None
    return {"load1m": one, "load5m": five, "load15m": fifteen}


def guest_get_diskstats(ctx: Context) -> list[Reply]:
    """The counters of each line of /proc/diskstats."""
    return parse_diskstats(_proc(ctx, "/proc/diskstats"))


def guest_get_cpustats(ctx: Context) -> list[Reply]:
    """The time each processor spent in each way, in milliseconds."""
    return parse_cpustats(_proc(ctx, "/proc/stat"), os.sysconf("SC_CLK_TCK"))


def _proc(ctx: Context, path: str) -> bytes:
    try:
        return read_whole(ctx.root + path)
    except OSError as e:
        raise CommandError.from_errno(f'open("{path}")', e.errno or 0) from None
