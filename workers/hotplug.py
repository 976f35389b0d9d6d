"""Takes logical processors and memory blocks on and off line, through sysfs.

Facts: Documentation/ABI/testing/sysfs-devices-system-cpu and sysfs-devices-memory of the Linux kernel; order of the
steps, words (the doubled slash in the paths too) and error codes are those of qemu-ga 7.2.22 run on a made-up tree.
Two differences: numbers that no kernel has are refused without touching a path, and a memory block without `state`
answers operation-not-supported, as qemu-ga 10.2 does, where 7.2 says success.

sysfs files belong to root, so uid 0 without any capability is enough.
"""

from __future__ import annotations

import errno
import os

from protocol.errors import CommandError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

    from privsep.runtime import Context

_CPU: Final = "/sys/devices/system/cpu"
_MEMORY: Final = "/sys/devices/system/memory"

# Far above what a kernel can be built for (NR_CPUS is at most 8192 on x86; memory blocks are at least 16 MiB of an
# address space of 57 bits).  Numbers above them are answered as the missing folder that they are.
CPU_CEILING: Final = 1 << 20
BLOCK_CEILING: Final = 1 << 40

_UINT64: Final = 1 << 64
_STATE_LENGTH: Final = 16  # "going-offline" is the longest word that `state` holds


def guest_set_vcpus(ctx: Context, vcpus: list[dict[str, Any]]) -> int:
    """Returns how many elements were done, in order; an error is told only when the first element fails."""
    done = 0
    for vcpu in vcpus:
        try:
            _set_vcpu(ctx, vcpu["logical-id"], vcpu["online"])
        except CommandError as e:
            if not done:
                raise
            ctx.log.warning(f"guest-set-vcpus stopped after {done} of {len(vcpus)}: {e.desc}")
            break
        done += 1
    return done


def _set_vcpu(ctx: Context, number: int, online: bool) -> None:
    folder = f"{_CPU}/cpu{number}/"
    file = f"{folder}/online"
    if not 0 <= number < CPU_CEILING:
        raise CommandError.from_errno(f'open("{folder}")', errno.ENOENT)
    try:
        folder_fd = os.open(ctx.root + folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as e:
        raise CommandError.from_errno(f'open("{folder}")', e.errno or 0) from None
    try:
        # Read-write even when nothing will be written: whether the right is there shows at once.
        fd = os.open("online", os.O_RDWR | os.O_CLOEXEC, dir_fd=folder_fd)
    except FileNotFoundError:
        if not online:
            raise CommandError(f"logical processor #{number} can't be offlined") from None
        return
    except OSError as e:
        raise CommandError.from_errno(f'open("{file}")', e.errno or 0) from None
    finally:
        os.close(folder_fd)
    try:
        _switch(fd, file, online)
    finally:
        os.close(fd)


def _switch(fd: int, file: str, online: bool) -> None:
    try:
        now = os.pread(fd, 1, 0)
    except OSError as e:
        raise CommandError.from_errno(f'pread("{file}")', e.errno or 0) from None
    if not now:
        raise CommandError(f'pread("{file}"): unexpected EOF')
    if online == (now != b"0"):
        return
    try:
        os.pwrite(fd, b"1" if online else b"0", 0)
    except OSError as e:
        raise CommandError.from_errno(f'pwrite("{file}")', e.errno or 0) from None


def guest_set_memory_blocks(ctx: Context, mem_blks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One result for each element; a failure does not stop the list."""
    if not mem_blks:
        return []
    try:
        tree = os.open(ctx.root + _MEMORY, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as e:
        # Without the folder the kernel cannot do it at all; anything else that keeps us out is a failure.
        response = "operation-not-supported" if e.errno == errno.ENOENT else "operation-failed"
        return [_result(block["phys-index"], response, e.errno or 0) for block in mem_blks]
    try:
        return [_set_block(tree, block["phys-index"], block["online"]) for block in mem_blks]
    finally:
        os.close(tree)


def _result(number: int, response: str, error: int = 0) -> dict[str, Any]:
    result: dict[str, Any] = {"phys-index": number % _UINT64, "response": response}
    if error:
        result["error-code"] = error
    return result


def _set_block(tree: int, number: int, online: bool) -> dict[str, Any]:
    number %= _UINT64  # -1 arrives as the largest number, also from a front that did not wrap it
    if number >= BLOCK_CEILING:
        return _result(number, "not-found", errno.ENOENT)
    try:
        folder = os.open(f"memory{number}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=tree)
    except OSError as e:
        response = "not-found" if e.errno == errno.ENOENT else "operation-failed"
        return _result(number, response, e.errno or 0)
    try:
        fd = os.open("state", os.O_RDWR | os.O_CLOEXEC, dir_fd=folder)
    except OSError as e:
        response = "operation-not-supported" if e.errno == errno.ENOENT else "operation-failed"
        return _result(number, response, e.errno or 0)
    finally:
        os.close(folder)
    try:
        if online != os.pread(fd, _STATE_LENGTH, 0).startswith(b"online"):
            os.pwrite(fd, b"online" if online else b"offline", 0)
    except OSError as e:
        return _result(number, "operation-failed", e.errno or 0)
    finally:
        os.close(fd)
    return _result(number, "success")
