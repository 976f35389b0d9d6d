"""Shuts down and suspends, through whatever the init system offers, as uid 0 without a capability.

Facts: shutdown(8), poweroff(8), systemd-suspend.service(8), pm-utils' pm-is-supported(1), the kernel's
Documentation/power/interface; the order of the ways and the words are qemu-ga 10.2's.  The words of a failure are
followed by what the helper program itself said, bounded.

All four commands answer nothing when they work (the table says so); a handler's {} never reaches the wire.
"""

from __future__ import annotations

import os

from protocol.errors import CommandError
from workers import programs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from privsep.runtime import Context

# Seconds for one helper program; the commands' own limit is 120 and a suspend may need three of them.
LIMIT: Final = 60.0
_ASK_LIMIT: Final = 10.0

_FLAGS: Final = {"powerdown": "-P", "halt": "-H", "reboot": "-r"}
_COMMANDS: Final = {"powerdown": "/sbin/poweroff", "halt": "/sbin/halt", "reboot": "/sbin/reboot"}

_POWER_STATE: Final = "/sys/power/state"


def guest_shutdown(ctx: Context, mode: str = "powerdown") -> dict[str, object]:
    """Starts a power-down, halt or reboot and waits for the program that asks for it."""
    flag = _FLAGS.get(mode)
    if flag is None:
        # The missing parenthesis is the peer's.
        raise CommandError("mode is invalid (valid values are: halt|powerdown|reboot")
    command = ctx.root + _COMMANDS[mode]
    if programs.executable(command):
        argv = [command]
    else:
        argv = [f"{ctx.root}/sbin/shutdown", "-h", flag, "+0", "hypervisor initiated shutdown"]
    try:
        result = programs.run(argv, limit=LIMIT)
    except OSError as e:
        raise CommandError.from_errno(
            f"failed to create child process: {argv[0][len(ctx.root) :]}", e.errno or 0
        ) from None
    if result.late:
        raise CommandError(f"child process has failed to shutdown: it did not end within {LIMIT:.0f} seconds")
    if result.status is None or result.status < 0:
        raise CommandError("child process has terminated abnormally")
    if result.status:
        raise CommandError(f"child process has failed to shutdown: {result.text() or f'exit status {result.status}'}")
    return {}


class _Mode:
    """What one suspend mode is called by each of the three ways; no word: that way cannot."""

    __slots__ = ("unit", "verb", "question", "program", "word")

    def __init__(self, unit: str, verb: str, question: str, program: str, word: str) -> None:
        self.unit = unit
        self.verb = verb
        self.question = question
        self.program = program
        self.word = word


_DISK: Final = _Mode("systemd-hibernate", "hibernate", "--hibernate", "pm-hibernate", "disk")
_RAM: Final = _Mode("systemd-suspend", "suspend", "--suspend", "pm-suspend", "mem")
_HYBRID: Final = _Mode("systemd-hybrid-sleep", "hybrid-sleep", "--suspend-hybrid", "pm-suspend-hybrid", "")


def guest_suspend_disk(ctx: Context) -> dict[str, object]:
    """Hibernates."""
    return _suspend(ctx, _DISK)


def guest_suspend_ram(ctx: Context) -> dict[str, object]:
    """Suspends to RAM."""
    return _suspend(ctx, _RAM)


def guest_suspend_hybrid(ctx: Context) -> dict[str, object]:
    """Suspends to RAM with an image on disk."""
    return _suspend(ctx, _HYBRID)


def _suspend(ctx: Context, mode: _Mode) -> dict[str, object]:
    """Each available way in turn; the first success ends it, else the last available way's error is told."""
    last: CommandError | None = None
    for available, suspend in ((_has_systemd, _by_systemd), (_has_pm_utils, _by_pm_utils), (_has_sysfs, _by_sysfs)):
        if not available(ctx, mode):
            continue
        try:
            suspend(ctx, mode)
        except CommandError as e:
            if last is not None:
                ctx.log.warning(f"suspend: {last.desc}")
            last = e
        else:
            return {}
    if last is None:
        raise CommandError("the requested suspend mode is not supported by the guest")
    raise last


def _ask(ctx: Context, *argv: str) -> int | None:
    """A helper program's exit status; None when there is no such program or it did not end by itself."""
    path = programs.find(argv[0], ctx.root)
    if path is None:
        return None
    try:
        return programs.run((path, *argv[1:]), limit=_ASK_LIMIT, keep=0).status
    except OSError:
        return None


def _help(ctx: Context, name: str, *argv: str) -> None:
    """Runs a helper program that must succeed; `name` is what the error calls it."""
    path = programs.find(argv[0], ctx.root)
    if path is None:
        raise CommandError(f"the helper program '{name}' was not found")
    try:
        result = programs.run((path, *argv[1:]), limit=LIMIT)
    except OSError as e:
        raise CommandError.from_errno("failed to create child process", e.errno or 0) from None
    if result.late:
        raise CommandError(f"the helper program '{name}' did not end within {LIMIT:.0f} seconds")
    if result.status is None or result.status < 0:
        raise CommandError(f"the helper program '{name}' has terminated abnormally")
    if result.status:
        said = f": {result.text()}" if result.output else ""
        raise CommandError(
            f"the helper program '{name}' returned an unexpected exit status code ({result.status}){said}"
        )


def _has_systemd(ctx: Context, mode: _Mode) -> bool:
    # systemctl(1), "status": 0 would mean that it is suspending right now, 4 that there is no such unit.
    return _ask(ctx, "systemctl", "status", mode.unit) in (1, 2, 3)


def _by_systemd(ctx: Context, mode: _Mode) -> None:
    _help(ctx, f"systemctl {mode.verb}", "systemctl", mode.verb)


def _has_pm_utils(ctx: Context, mode: _Mode) -> bool:
    return _ask(ctx, "pm-is-supported", mode.question) == 0


def _by_pm_utils(ctx: Context, mode: _Mode) -> None:
    _help(ctx, mode.program, mode.program)


def _has_sysfs(ctx: Context, mode: _Mode) -> bool:
    if not mode.word:
        return False
    try:
        fd = os.open(ctx.root + _POWER_STATE, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return mode.word.encode() in os.read(fd, 256).split()
    except OSError:
        return False
    finally:
        os.close(fd)


def _by_sysfs(ctx: Context, mode: _Mode) -> None:
    # The write returns after the machine has woken up again.
    try:
        fd = os.open(ctx.root + _POWER_STATE, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, mode.word.encode())
        finally:
            os.close(fd)
    except OSError as e:
        raise CommandError.from_errno(f"suspend: cannot write to '{_POWER_STATE}'", e.errno or 0) from None
