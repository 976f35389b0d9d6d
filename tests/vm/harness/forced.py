#!/usr/bin/python3 -IS
"""Runs in the guest in a worker's place: the work of all the others, tried with every capability and behind no wall but SELinux.

Put over a worker's entry script, so that it has that label, it takes the row's type as the worker does and tells what
came through, as one line of JSON in the journal.  The answers of the kernel other than a refusal ("Invalid argument" for a file
system that is not frozen) mean that it was let through.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import sys
import time
from collections.abc import Callable

FITHAW = 0xC0045878
FITRIM = 0xC0185879
CPU = "/sys/devices/system/cpu/cpu1/online"


def folder_ioctl(number: int, argument: bytes) -> None:
    fd = os.open("/mnt/ext4", os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.ioctl(fd, number, argument)
    finally:
        os.close(fd)


def write(path: str, data: bytes, flags: int = 0) -> None:
    fd = os.open(path, os.O_WRONLY | flags, 0o600)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)


def start_program() -> None:
    pid = os.fork()
    if pid == 0:
        try:
            os.execv("/usr/bin/true", ["true"])
        except OSError as e:
            os._exit(e.errno or 1)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status:
        raise OSError(status, os.strerror(status))


def make_socket() -> None:
    import _socket

    _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM).close()


ATTEMPTS: dict[str, Callable[[], object]] = {
    "read the passwords": lambda: os.close(os.open("/etc/shadow", os.O_RDONLY)),
    "make a file in /etc": lambda: write("/etc/forced", b"", os.O_CREAT),
    "set the clock": lambda: time.clock_settime(time.CLOCK_REALTIME, time.time()),
    "thaw": lambda: folder_ioctl(FITHAW, b""),
    "trim": lambda: folder_ioctl(FITRIM, (0).to_bytes(8, "little") + (1 << 20).to_bytes(8, "little") * 2),
    "write to a processor": lambda: write(CPU, b"1"),
    "start a program": start_program,
    "make a network socket": make_socket,
    "become another user": lambda: os.setresuid(-1, 65534, 0),
    "signal init": lambda: os.kill(1, signal.SIGCONT),
}


def try_all() -> dict[str, bool]:
    found = {}
    for what, attempt in ATTEMPTS.items():
        try:
            attempt()
            found[what] = True
        except OSError as e:
            found[what] = e.errno not in (errno.EACCES, errno.EPERM)
        if what == "become another user" and found[what]:
            os.setresuid(-1, 0, -1)
    return found


def main() -> None:
    fd = os.open("/proc/self/attr/current", os.O_WRONLY)
    name = os.path.basename(sys.argv[0])
    os.write(fd, f"system_u:system_r:privsep_ga_{name}_t:s0".encode())
    os.close(fd)
    words = ", ".join(f'"{what}": {"true" if through else "false"}' for what, through in try_all().items())
    os.write(2, f"forced {name} {{{words}}}\n".encode())
    time.sleep(1)


if __name__ == "__main__":
    main()
