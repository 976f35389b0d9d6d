"""What a process that was taken over would try.  Each attack is harmless when it succeeds, and says so by returning.

Run from inside a row's walls, so: no imports, and nothing but the call itself, through the C library's syscall(2).  An attack is
stopped when the kernel kills the process, or answers with an error; it has come through when it returns a value, or one
of the errors that only come after the permission was checked (`through`).
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Callable

_libc = ctypes.CDLL(None, use_errno=True)
_seccomp = ctypes.CDLL("libseccomp.so.2")


def _number(name: str) -> int:
    return int(_seccomp.seccomp_syscall_resolve_name(name.encode()))


_NAMES = (
    "openat ptrace process_vm_readv pidfd_open pidfd_getfd kill socket connect sendto bind mount chroot finit_module bpf "
    "kexec_load userfaultfd io_uring_setup keyctl open_by_handle_at perf_event_open setns unshare reboot clock_settime clone "
    "execve mmap setresuid setgroups capget capset prctl ioctl mknodat memfd_create close pwrite64 exit_group wait4 linkat"
)
NUMBERS = {name: _number(name) for name in _NAMES.split()}

CONTROL = 3
BOARD = 5


class Target:
    """What is there to attack: a sibling process of uid 0, ports and an abstract name that somebody listens on."""

    def __init__(self, sibling: int, tcp: int, udp: int, abstract: str, disk: str) -> None:
        self.sibling = sibling
        self.tcp = struct.pack("=H2s4s8x", 2, tcp.to_bytes(2, "big"), bytes((127, 0, 0, 1)))
        self.udp = struct.pack("=H2s4s8x", 2, udp.to_bytes(2, "big"), bytes((127, 0, 0, 1)))
        self.abstract = struct.pack("=H", 1) + b"\0" + abstract.encode()
        self.disk = disk.encode()


def call(name: str, *args: object) -> int:
    given = [ctypes.c_long(a) if isinstance(a, int) else a for a in args]
    _libc.syscall.restype = ctypes.c_long
    result = int(_libc.syscall(ctypes.c_long(NUMBERS[name]), *given))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def opened(path: bytes, flags: int = os.O_RDONLY, mode: int = 0o600) -> None:
    call("close", call("openat", -100, path, flags | os.O_CLOEXEC, mode))


def _connect(family: int, kind: int, address: bytes) -> None:
    call("connect", call("socket", family, kind, 0), address, len(address))


def _datagram(t: Target) -> None:
    call("sendto", call("socket", 2, 2, 0), b"x", 1, 0, t.udp, len(t.udp))


def _stolen(t: Target) -> None:
    call("pidfd_getfd", call("pidfd_open", t.sibling, 0), 0, 0)


def _vm(t: Target) -> None:
    here = ctypes.create_string_buffer(16)
    local = struct.pack("=QQ", ctypes.addressof(here), 16)
    call("process_vm_readv", t.sibling, local, 1, struct.pack("=QQ", 4096, 16), 1, 0)


def _fork(_: Target) -> None:
    pid = call("clone", 17, 0, 0, 0, 0)  # SIGCHLD
    if pid == 0:
        call("exit_group", 0)
    call("wait4", pid, 0, 0, 0)


def _execute(_: Target) -> None:
    path = b"/bin/true"
    argv = (ctypes.c_char_p * 2)(path, None)
    call("execve", path, argv, (ctypes.c_char_p * 1)(None))


def _privileges(_: Target) -> None:
    if call("prctl", 39, 0, 0, 0, 0):  # PR_GET_NO_NEW_PRIVS
        raise OSError(errno.EPERM, "")


def _capabilities(_: Target) -> None:
    head, data = struct.pack("=Ii", 0x20080522, 0), ctypes.create_string_buffer(24)
    call("capget", head, data)
    effective, permitted, inheritable, *high = struct.unpack("=6I", data.raw)
    call("capset", head, struct.pack("=6I", effective, permitted | 1 << 19, inheritable, *high))


def _perf(_: Target) -> None:
    attributes = struct.pack("=IIQ", 1, 112, 0) + bytes(96)  # PERF_TYPE_SOFTWARE, the cpu clock
    call("perf_event_open", attributes, 0, -1, -1, 0)


class Attack:
    def __init__(self, name: str, act: Callable[[Target], object], *through: int) -> None:
        self.name = name
        self.act = act
        self.through = through

    def outcome(self, target: Target) -> str:
        """YES or no; whether it killed us, somebody else has to tell."""
        try:
            self.act(target)
        except OSError as e:
            return "YES" if e.errno in self.through else "no"
        return "YES"


_FITRIM_ARGUMENT = struct.pack("=QQQ", 0, 0, 1 << 62)

# In this order: the last ones change the process if they succeed.
ATTACKS = (
    Attack("read /etc/shadow", lambda t: opened(b"/etc/shadow")),
    Attack("read /etc/passwd", lambda t: opened(b"/etc/passwd")),
    Attack("read /root/secret", lambda t: opened(b"/root/secret")),
    Attack("create a file in /etc", lambda t: opened(b"/etc/attack", os.O_WRONLY | os.O_CREAT)),
    Attack("create a file in /tmp", lambda t: opened(b"/tmp/attack", os.O_WRONLY | os.O_CREAT)),
    Attack("write /usr/bin/true", lambda t: opened(b"/usr/bin/true", os.O_WRONLY | os.O_APPEND)),
    Attack("list /root", lambda t: opened(b"/root", os.O_RDONLY | os.O_DIRECTORY)),
    Attack("read a disk", lambda t: opened(t.disk)),
    Attack("open /dev/mem", lambda t: opened(b"/dev/mem")),
    Attack("write /proc/sys", lambda t: opened(b"/proc/sys/kernel/hostname", os.O_WRONLY)),
    Attack("write the board", lambda t: call("pwrite64", BOARD, b"\1", 1, 0)),
    Attack("a sibling's memory", lambda t: opened(b"/proc/%d/mem" % t.sibling)),
    Attack("a sibling's environment", lambda t: opened(b"/proc/%d/environ" % t.sibling)),
    Attack("ptrace a sibling", lambda t: call("ptrace", 0x4206, t.sibling, 0, 0)),
    Attack("process_vm_readv", _vm, errno.EFAULT),
    Attack("pidfd_getfd", _stolen, errno.EBADF),
    Attack("signal a sibling", lambda t: call("kill", t.sibling, 0)),
    Attack("tcp", lambda t: _connect(2, 1, t.tcp)),
    Attack("udp", _datagram),
    Attack("raw packets", lambda t: call("socket", 17, 3, 0x0300)),
    Attack("netlink", lambda t: call("socket", 16, 3, 0)),
    Attack("vsock", lambda t: call("socket", 40, 1, 0)),
    Attack("abstract socket", lambda t: _connect(1, 1, t.abstract)),
    Attack("mount", lambda t: call("mount", b"attack", b"/mnt", b"tmpfs", 0, b"")),
    Attack("chroot", lambda t: call("chroot", b"/")),
    Attack("device node", lambda t: call("mknodat", -100, b"/tmp/attack-null", 0o20600, 0x103)),
    Attack("hard link to shadow", lambda t: call("linkat", -100, b"/etc/shadow", -100, b"/etc/attack-shadow", 0)),
    Attack("load a module", lambda t: call("finit_module", -1, b"", 0), errno.EBADF),
    Attack("bpf", lambda t: call("bpf", 5, bytes(128), 128), errno.EINVAL, errno.EFAULT),
    Attack("kexec", lambda t: call("kexec_load", 0, 0, 0, 0xFF0), errno.EINVAL),
    Attack("userfaultfd", lambda t: call("userfaultfd", 1)),
    Attack("io_uring", lambda t: call("io_uring_setup", 1, 0), errno.EFAULT),
    Attack("keyctl", lambda t: call("keyctl", 0, -4, 0), errno.ENOKEY),
    Attack(
        "open_by_handle_at",
        lambda t: call("open_by_handle_at", -100, struct.pack("=Ii8x", 8, 1), 0),
        errno.ESTALE,
        errno.EOPNOTSUPP,
    ),
    Attack("perf_event_open", _perf),
    Attack("reboot", lambda t: call("reboot", 1, 2, 3, 0), errno.EINVAL),
    Attack("clock_settime", lambda t: call("clock_settime", 0, 0), errno.EFAULT),
    # On a socket: no file system of any disk is near.
    Attack("FIFREEZE", lambda t: call("ioctl", CONTROL, 0xC0045877, 0), errno.EOPNOTSUPP),
    Attack("FITHAW", lambda t: call("ioctl", CONTROL, 0xC0045878, 0), errno.EOPNOTSUPP, errno.EINVAL),
    Attack("FITRIM", lambda t: call("ioctl", CONTROL, 0xC0185879, _FITRIM_ARGUMENT), errno.ENOTTY),
    Attack("TIOCSTI", lambda t: call("ioctl", 0, 0x5412, b"x"), errno.ENOTTY),
    Attack("executable memory", lambda t: call("mmap", 0, 4096, 7, 0x22, -1, 0)),
    Attack("new privileges by exec", _privileges),
    Attack("fork", _fork),
    Attack("execute /bin/true", _execute),
    Attack("become dumpable", lambda t: call("prctl", 4, 1, 0, 0, 0)),
    Attack("setgroups", lambda t: call("setgroups", 0, 0)),
    Attack("become root", lambda t: call("setresuid", 0, 0, 0)),
    Attack("raise capabilities", _capabilities),
    Attack("setns", lambda t: call("setns", CONTROL, 0), errno.EINVAL),
    Attack("unshare mounts", lambda t: call("unshare", 0x20000)),
    Attack("unshare user", lambda t: call("unshare", 0x10000000)),
    Attack("become another user", lambda t: call("setresuid", 65534, 65534, 65534)),
)
