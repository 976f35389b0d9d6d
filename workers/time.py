"""guest-set-time: sets the system's clock and the clock chip, or the system's clock from the chip.

qemu-ga sets the clock itself and starts hwclock for the chip; here both are system calls of this process, so that it
needs no program, and what hwclock does besides is left out: the drift correction of /etc/adjtime and the kernel's own
time zone.  Kept are its ways that decide the result:

* The chip counts whole seconds.  It is written at the moment in a second at which it takes the time over (half a second
  after the full one for rtc_cmos, else at once: --delay in hwclock(8)), and read at the moment when it ticks.
* The chip holds UTC, unless the third line of /etc/adjtime is LOCAL.

The chip is opened before the drop: it is root's, and one process alone may have it open, so others (hwclock, chrony's
rtcfile) find it busy as long as this worker lives, which is why it leaves a second after its last request (its row's `idle`).

Facts: rtc(4) for the ioctls and struct rtc_time; RTC_SET_TIME wants CAP_SYS_TIME and no write access
(drivers/rtc/dev.c); range, order and texts are qemu-ga 10.2's.
"""

from __future__ import annotations

import fcntl
import os
import time
from struct import Struct

from protocol.errors import CommandError, strerror

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

    from privsep.runtime import Context

RTC_RD_TIME: Final = 0x80247009
RTC_SET_TIME: Final = 0x4024700A
# Seconds, minutes, hours, day of the month, month from 0, year from 1900, day of the week, of the year, summer time.
_RTC_TIME: Final = Struct("=9i")
_SECOND: Final = 1_000_000_000
# The first second of 2070, UTC: qemu-ga takes years 1970 to 2069.
_END: Final = 3_155_760_000
# How long a chip may take to tick, and how often it is asked: each question is a trip to the hypervisor.
_TICK: Final = 1.5
_ASK: Final = 0.005

_CHIPS: Final = ("rtc0", "rtc")


class Clock:
    """What the handler works on.

    The primitives are attributes so that a test can put others in their place without touching the machine's clock.

    set       sets the system's clock (ns since the epoch); OSError
    now       reads it
    ioctl     asks or sets the chip: (descriptor, request, struct rtc_time) -> struct rtc_time; OSError
    pause     sleeps (seconds)
    chip      descriptor of the chip, -1: none
    missing   why there is none
    delay     the moment in a second, in ns, at which the chip takes a time over
    local     the chip holds local time
    """

    __slots__ = ("set", "now", "ioctl", "pause", "chip", "missing", "delay", "local")

    def __init__(self) -> None:
        self.set: Callable[[int], None] = set_clock
        self.now: Callable[[], int] = time.time_ns
        self.ioctl: Callable[[int, int, bytes], bytes] = fcntl.ioctl
        self.pause: Callable[[float], None] = time.sleep
        self.chip = -1
        self.missing = ""
        self.delay = 0
        self.local = False


def set_clock(ns: int) -> None:
    """The privileged primitive.  Raises OSError (EPERM without CAP_SYS_TIME)."""
    time.clock_settime_ns(time.CLOCK_REALTIME, ns)


def prepare(ctx: Context) -> None:
    """Open the chip, and find out how it counts, as long as the worker is root."""
    clock = Clock()
    for name in _CHIPS:
        path = f"/dev/{name}"
        try:
            clock.chip = os.open(ctx.root + path, os.O_RDONLY | os.O_CLOEXEC)
            break
        except OSError as e:
            clock.missing = clock.missing or f"cannot open {path}: {strerror(e.errno or 0)}"
    clock.delay = _SECOND // 2 if b"rtc_cmos" in _text(f"{ctx.root}/sys/class/rtc/rtc0/name") else 0
    clock.local = holds_local_time(_text(f"{ctx.root}/etc/adjtime"))
    if clock.local:
        time.tzset()  # reads the zone's file now; it is not read again while it stays the same
    ctx.state.clock = clock


def _text(path: str) -> bytes:
    """A small file; nothing if it cannot be read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(descriptor, 4096)
    except OSError:
        return b""
    finally:
        os.close(descriptor)


def holds_local_time(adjtime: bytes) -> bool:
    """Whether the chip holds local time, by the contents of /etc/adjtime (adjtime_config(5))."""
    lines = adjtime.split(b"\n")
    return len(lines) > 2 and lines[2].strip() == b"LOCAL"


def guest_set_time(ctx: Context, time: int | None = None) -> dict[str, object]:
    """Set the clock to `time` (ns since the epoch, UTC) and the chip to the clock; without `time`, the clock to the chip."""
    clock = ctx.state.clock
    assert isinstance(clock, Clock)
    if time is None:
        now = _from_chip(clock)
    elif 0 <= time < _END * _SECOND:
        now = time
    else:
        raise CommandError("Invalid time")
    try:
        clock.set(now)
    except OSError as e:
        raise CommandError.from_errno("Failed to set time to guest", e.errno or 0) from e
    if time is not None:
        _to_chip(clock)
    return {}


def _failed(reason: str) -> CommandError:
    """In qemu-ga's words for a hwclock that failed, whichever way it was to set."""
    return CommandError(f"child process has failed to set hardware clock to system time: {reason}")


def _from_chip(clock: Clock) -> int:
    """The chip's time at the moment it ticks, in ns since the epoch.  Raises CommandError."""
    first = _read(clock)
    waited = 0.0
    while (seconds := _read(clock)) == first:
        if waited > _TICK:
            raise _failed("the hardware clock does not tick")
        clock.pause(_ASK)
        waited += _ASK
    if not 0 <= seconds < _END:
        raise CommandError("Invalid time")
    return seconds * _SECOND


def _read(clock: Clock) -> int:
    """The chip's time in seconds since the epoch.  Raises CommandError."""
    if clock.chip < 0:
        raise _failed(clock.missing)
    try:
        return to_seconds(clock.ioctl(clock.chip, RTC_RD_TIME, bytes(_RTC_TIME.size)), clock.local)
    except OSError as e:
        raise _failed(f"cannot read the hardware clock: {strerror(e.errno or 0)}") from e
    except (ValueError, OverflowError) as e:
        raise _failed("the hardware clock holds no valid time") from e


def _to_chip(clock: Clock) -> None:
    """Write the system's time to the chip, at the moment in a second at which the chip takes it over."""
    if clock.chip < 0:
        raise _failed(clock.missing)
    wait = (clock.delay - clock.now()) % _SECOND
    clock.pause(wait / _SECOND)
    seconds = (clock.now() - clock.delay + _SECOND // 4) // _SECOND
    try:
        clock.ioctl(clock.chip, RTC_SET_TIME, to_fields(seconds, clock.local))
    except OSError as e:
        raise _failed(f"cannot set the hardware clock: {strerror(e.errno or 0)}") from e


def to_seconds(fields: bytes, local: bool) -> int:
    """struct rtc_time to seconds since the epoch.  Raises ValueError, OverflowError."""
    values: tuple[int, ...] = _RTC_TIME.unpack(fields)
    second, minute, hour, day, month, year = values[:6]
    if not (0 <= second < 61 and 0 <= minute < 60 and 0 <= hour < 24 and 1 <= day <= 31 and 0 <= month < 12):
        raise ValueError(fields)
    if local:
        return int(time.mktime((year + 1900, month + 1, day, hour, minute, second, 0, 0, -1)))
    return _days(year + 1900, month + 1, day) * 86400 + hour * 3600 + minute * 60 + second


def _days(year: int, month: int, day: int) -> int:
    """Days from 1970-01-01 to a date of the Gregorian calendar (the year begun in March, so that leap days come last)."""
    year -= month < 3
    return year * 365 + year // 4 - year // 100 + year // 400 + (153 * ((month - 3) % 12) + 2) // 5 + day - 719469


def to_fields(seconds: int, local: bool) -> bytes:
    """Seconds since the epoch to struct rtc_time; as hwclock does, the chip's day of the year and summer time are set too."""
    t = time.localtime(seconds) if local else time.gmtime(seconds)
    return _RTC_TIME.pack(
        t.tm_sec, t.tm_min, t.tm_hour, t.tm_mday, t.tm_mon - 1, t.tm_year - 1900,
        (t.tm_wday + 1) % 7, t.tm_yday - 1, max(t.tm_isdst, 0),
    )  # fmt: skip
