"""A private root for whatever may freeze, format or kill: no block device of the machine is in sight.

The process (and all it starts) gets a mount namespace of its own whose root is an overlay: lower the real root, upper a
tmpfs.  After the pivot the old root is gone, so `guest-fsfreeze-freeze` finds no file system but those that were mounted
inside.  `unshare -m` alone would not do: the machine's root would still be listed, and freezing it is final.

    @isolated                              # a test: runs in a forked child, inside
    def test_...(tmp_path): ...

    with private_root():                   # in a process that was forked for it
        ...

    python -m tests.support.namespace -- COMMAND...

/run, /tmp, /dev/shm are empty; /proc, /sys, /dev (the kernel's devtmpfs, so loop devices work) are fresh; writes anywhere go to
memory and vanish with the last process.  The project and the interpreter stay readable at their own paths wherever they lie.
The agent's system accounts exist inside.  Every check fails loudly: a private root that shows a block device is an error.

Facts: overlayfs has no FIFREEZE (EOPNOTSUPP), and does not show other mounts below its lower folder; unshare(2), pivot_root(2).
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from tests.support import deadman

PROJECT = Path(__file__).resolve().parents[2]
_STAGE = "/tmp"  # the tmpfs is mounted over it in the new namespace before anything is written there
_FRESH = ("run", "tmp", "dev", "proc", "sys")

_CLONE_NEWNS = 0x20000
_MS_NOSUID, _MS_NODEV, _MS_REC, _MS_PRIVATE = 2, 4, 0x4000, 1 << 18
_MNT_DETACH = 2

_libc = ctypes.CDLL(None, use_errno=True)

F = TypeVar("F", bound=Callable[..., Any])


def _check(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _mount(source: str, target: str, fstype: str, flags: int = 0, data: str = "") -> None:
    os.makedirs(target, exist_ok=True)
    _check(
        _libc.mount(source.encode(), os.fsencode(target), fstype.encode(), ctypes.c_ulong(flags), os.fsencode(data)),
        f"mount {fstype} at {target}",
    )


def why_not() -> str:
    """Why this process cannot make a private root; empty if it can."""
    if os.geteuid() != 0:
        return "a private mount namespace needs root"
    if "\toverlay\n" not in Path("/proc/filesystems").read_text():
        return "a private root needs overlayfs (modprobe overlay)"
    return ""


def block_mounts(mountinfo: str | None = None) -> list[str]:
    """Mount points of this namespace that lie on a block device, out of /proc/self/mountinfo (proc_pid_mountinfo(5)).

    A major number of 0 is an anonymous device: tmpfs, proc, overlay.  btrfs has such a number too, so the source counts as well.
    """
    if mountinfo is None:
        mountinfo = Path("/proc/self/mountinfo").read_text()
    found = []
    for line in mountinfo.splitlines():
        fields = line.split()
        source = fields[fields.index("-") + 2]
        if not fields[2].startswith("0:") or source.startswith("/dev/"):
            found.append(fields[4])
    return found


def _kept(extra: tuple[str, ...]) -> list[str]:
    """Folders that must be seen inside but are not part of the overlay of `/`, or would be hidden by a fresh mount."""
    wanted = {str(PROJECT), sys.prefix, sys.base_prefix, os.path.dirname(os.path.realpath(sys.executable)), *extra}
    root_device = os.stat("/").st_dev
    kept: list[str] = []
    for path in sorted(wanted):
        if not os.path.isdir(path) or any(path == k or path.startswith(k + "/") for k in kept):
            continue
        hidden = path.lstrip("/").split("/")[0] in _FRESH
        if hidden or os.stat(path).st_dev != root_device:
            kept.append(path)
    return kept


def enter(keep: tuple[str, ...] = ()) -> None:
    """Move this process into a private root, for good.  It must have a single thread.

    keep: further folders that must stay readable at their paths.  Raises OSError, RuntimeError.
    """
    cwd = os.getcwd()
    _check(_libc.unshare(_CLONE_NEWNS), "unshare")
    _check(_libc.mount(None, b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None), "make / private")
    kept = [(path, os.open(path, os.O_PATH | os.O_DIRECTORY)) for path in _kept(keep)]
    # Anything written before the pivot would land on the machine's disk: first of all a tmpfs, then folders in it.
    _mount("privsep-ga-test", _STAGE, "tmpfs", 0, "mode=755,size=75%")
    root = f"{_STAGE}/root"
    for folder in ("upper", "work"):
        os.mkdir(f"{_STAGE}/{folder}")
    os.chmod(f"{_STAGE}/upper", 0o755)  # it becomes /
    _mount("overlay", root, "overlay", 0, f"lowerdir=/,upperdir={_STAGE}/upper,workdir={_STAGE}/work")
    _mount("proc", f"{root}/proc", "proc", _MS_NOSUID | _MS_NODEV)
    _mount("sysfs", f"{root}/sys", "sysfs", _MS_NOSUID | _MS_NODEV)
    _mount("devtmpfs", f"{root}/dev", "devtmpfs", _MS_NOSUID)
    _mount("devpts", f"{root}/dev/pts", "devpts", _MS_NOSUID, "ptmxmode=666,mode=620,gid=5")
    for folder, mode in (("run", "755"), ("tmp", "1777"), ("dev/shm", "1777")):
        _mount("tmpfs", f"{root}/{folder}", "tmpfs", _MS_NOSUID | _MS_NODEV, f"mode={mode}")
    for number, (path, fd) in enumerate(kept):
        for folder in ("upper", "work"):
            os.mkdir(f"{_STAGE}/{folder}{number}")
        os.chmod(f"{_STAGE}/upper{number}", 0o755)  # it becomes a folder that other users must enter
        data = f"lowerdir=/proc/self/fd/{fd},upperdir={_STAGE}/upper{number},workdir={_STAGE}/work{number}"
        _mount("overlay", root + path, "overlay", 0, data)
        os.close(fd)
    os.makedirs(f"{root}/.old", exist_ok=True)
    os.chdir(root)
    _check(_libc.pivot_root(b".", b".old"), "pivot_root")
    os.chdir("/")
    _check(_libc.umount2(b"/.old", _MNT_DETACH), "umount of the old root")
    os.rmdir("/.old")
    with contextlib.suppress(OSError):
        os.chdir(cwd)
    visible = block_mounts()
    if visible:
        raise RuntimeError(f"the private root still shows block devices at {visible}")
    if not os.access(__file__, os.R_OK):
        raise RuntimeError(f"{PROJECT} cannot be seen in the private root")
    add_accounts()


def add_accounts() -> None:
    """Give the private root the accounts of the privilege table that it lacks (into the overlay, never the machine)."""
    from privsep.domains import DOMAINS

    databases = [Path("/etc/passwd"), Path("/etc/group")]
    texts = [p.read_text() for p in databases]
    rows = [[line.split(":") for line in text.splitlines() if line.count(":") >= 3] for text in texts]
    used = {int(row[2]) for database in rows for row in database if row[2].isdigit()}
    free = (n for n in range(980, 100, -1) if n not in used)
    for user in dict.fromkeys(d.user for d in DOMAINS):
        if any(row[0] == user for row in rows[0]):
            continue
        number = next(free)
        texts[0] = f"{texts[0].rstrip()}\n{user}:x:{number}:{number}:privsep-ga:/nonexistent:/usr/sbin/nologin\n"
        texts[1] = f"{texts[1].rstrip()}\n{user}:x:{number}:\n"
    for path, text in zip(databases, texts, strict=True):
        path.write_text(text)


def thaw_everything() -> list[str]:
    """Thaw each block-backed mount of this private root; which were frozen.  A superblock that stays frozen outlives
    its last mount and keeps its loop device for ever, so this runs before a private root is given up."""
    frozen = []
    for mountpoint in dict.fromkeys(block_mounts()):
        try:
            fd = os.open(mountpoint, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            continue
        if deadman.thaw(fd):
            frozen.append(mountpoint)
        os.close(fd)
    return frozen


@contextlib.contextmanager
def private_root(keep: tuple[str, ...] = ()) -> Iterator[None]:
    """Enter; at the end thaw what was left frozen.  The process stays inside: fork for it."""
    enter(keep)
    try:
        yield
    finally:
        left = thaw_everything()
        if left:
            print(f"private root: {left} had been left frozen", file=sys.stderr)


def isolated(function: F) -> F:
    """Run a test function in a forked child inside a private root; its failure is this process's failure.

    Fixtures work; what the function changes in memory is lost; skips inside are passed on.
    """

    @functools.wraps(function)
    def wrapper(*args: object, **kwargs: object) -> None:
        import pytest

        reason = why_not()
        if reason:
            pytest.skip(reason)
        reader, writer = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            os.close(reader)
            os._exit(_child(function, args, kwargs, writer))
        os.close(writer)
        with os.fdopen(reader, encoding="utf-8", errors="replace") as f:
            text = f.read()
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if code == _SKIPPED:
            pytest.skip(text)
        if code != 0:
            pytest.fail(text or f"the isolated test ended with status {code}", pytrace=False)

    return wrapper  # type: ignore[return-value]


_SKIPPED = 77


def _child(function: Callable[..., object], args: tuple[object, ...], kwargs: dict[str, object], writer: int) -> int:
    import pytest

    try:
        with private_root():
            function(*args, **kwargs)
    except pytest.skip.Exception as e:
        os.write(writer, str(e).encode())
        return _SKIPPED
    except BaseException:  # pytest.fail and sys.exit too
        os.write(writer, traceback.format_exc().encode("utf-8", "replace")[-60000:])
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def main(argv: list[str]) -> int:
    """`-- COMMAND...` inside a private root; its exit status."""
    import subprocess

    command = argv[argv.index("--") + 1 :] if "--" in argv else argv
    if not command:
        print("usage: python -m tests.support.namespace -- COMMAND...", file=sys.stderr)
        return 2
    reason = why_not()
    if reason:
        print(reason, file=sys.stderr)
        return 1
    with private_root():
        code = subprocess.run(command).returncode
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
