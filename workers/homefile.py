"""The way from a home directory to its authorized_keys, and back with a new one.

Runs as the user whose home it is, so the kernel allows nothing that the user could not do.  What is left is what the
user's own rights would let *us* do wrongly; therefore directory descriptors and nothing by a path of several parts:

* HOME is opened as it stands in the account; it must belong to the user or root.
* `.ssh` and `authorized_keys` are opened without following symbolic links; the first must be a folder, the second a
  regular file with one name, of at most 1 MiB, both belonging to the user or root.
* A change is written to a new file beside the old one and renamed over it, mode 0600, or stricter where the old one was.
  Where the user may write the file but not its folder (an administrator's `.ssh`), it is written in place.

Descriptors are not closed: the process ends with its one request.  The words of errors are qemu-ga's 10.2 where it has words.
Facts: openat(2), rename(2), sshd(8).  System calls beyond the plain ones: mkdirat, renameat, unlinkat, fchmod, ftruncate,
fsync, getrandom.
"""

from __future__ import annotations

import errno
import os
import stat

from protocol.errors import CommandError, strerror

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from workers.asuser import Account

FILE_LIMIT: Final = 1024 * 1024  # bytes of an authorized_keys file, read or written

_FOLDER_FLAGS: Final = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_FILE_FLAGS: Final = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


def folder_path(account: Account) -> str:
    return f"{account.home}/.ssh"


def file_path(account: Account) -> str:
    return f"{account.home}/.ssh/authorized_keys"


def cannot_read(account: Account, reason: str) -> CommandError:
    """The peer's words, GLib's inside, for a file that cannot be opened."""
    path = file_path(account)
    return CommandError(f"failed to read '{path}': Failed to open file \u201c{path}\u201d: {reason}")


def _owned(status: os.stat_result, account: Account) -> bool:
    return status.st_uid in (account.uid, 0)


def open_home(root: str, account: Account) -> int | None:
    """None when there is none."""
    if not account.home.startswith("/"):
        raise CommandError(f"user '{account.name}' has no home directory")
    try:
        home = os.open(root + account.home, _FOLDER_FLAGS)
    except FileNotFoundError:
        return None
    except OSError as e:
        raise CommandError.from_errno(f"failed to open directory '{account.home}'", e.errno or 0) from None
    if not _owned(os.fstat(home), account):
        raise CommandError(f"directory '{account.home}' belongs to neither the user nor root")
    return home


def open_folder(home: int | None, account: Account) -> int | None:
    """`.ssh`; None when there is none."""
    if home is None:
        return None
    try:
        folder = os.open(".ssh", _FOLDER_FLAGS | os.O_NOFOLLOW, dir_fd=home)
    except FileNotFoundError:
        return None
    except OSError as e:
        if e.errno in (errno.ENOTDIR, errno.ELOOP):
            raise CommandError(
                f"'{folder_path(account)}' is not a directory (symbolic links are not followed)"
            ) from None
        raise CommandError.from_errno(f"failed to open directory '{folder_path(account)}'", e.errno or 0) from None
    if not _owned(os.fstat(folder), account):
        raise CommandError(f"directory '{folder_path(account)}' belongs to neither the user nor root")
    return folder


def make_folder(home: int | None, account: Account) -> int:
    """`.ssh`, made if it is missing."""
    try:
        if home is None:
            raise OSError(errno.ENOENT, "")
        os.mkdir(".ssh", 0o700, dir_fd=home)
    except FileExistsError:
        pass  # made since we looked; what it is, is checked next
    except OSError as e:
        raise CommandError.from_errno(f"failed to create directory '{folder_path(account)}'", e.errno or 0) from None
    folder = open_folder(home, account)
    if folder is None:
        raise CommandError.from_errno(f"failed to create directory '{folder_path(account)}'", errno.ENOENT)
    return folder


def _checked(fd: int, account: Account) -> os.stat_result:
    status = os.fstat(fd)
    reason = ""
    if not stat.S_ISREG(status.st_mode):
        reason = "not a regular file"
    elif not _owned(status, account):
        reason = "it belongs to neither the user nor root"
    elif status.st_nlink != 1:
        reason = "it has more than one name (hard link)"
    elif status.st_size > FILE_LIMIT:
        reason = strerror(errno.EFBIG)
    if reason:
        raise CommandError(f"failed to read '{file_path(account)}': {reason}")
    return status


def read(folder: int, account: Account, *, content: bool = True) -> tuple[bytes, os.stat_result] | None:
    """The file's content and status; None when there is none.  `content` false: only that it is what it must be."""
    try:
        fd = os.open("authorized_keys", os.O_RDONLY | _FILE_FLAGS, dir_fd=folder)
    except FileNotFoundError:
        return None
    except OSError as e:
        reason = "symbolic links are not followed" if e.errno == errno.ELOOP else strerror(e.errno or 0)
        raise cannot_read(account, reason) from None
    try:
        status = _checked(fd, account)
        data = b""
        while content and len(data) <= FILE_LIMIT:
            part = os.read(fd, FILE_LIMIT + 1 - len(data))
            if not part:
                break
            data += part
    except OSError as e:
        raise CommandError.from_errno(f"failed to read '{file_path(account)}'", e.errno or 0) from None
    if len(data) > FILE_LIMIT:  # it grew meanwhile
        raise CommandError.from_errno(f"failed to read '{file_path(account)}'", errno.EFBIG)
    return data, status


def write(folder: int, account: Account, content: bytes, old: tuple[bytes, os.stat_result] | None) -> None:
    """Puts `content` in the place of `old`, which is what `read` returned."""
    mode = stat.S_IMODE(old[1].st_mode) & 0o600 if old else 0o600
    try:
        if len(content) > FILE_LIMIT:
            raise OSError(errno.EFBIG, "")
        temporary = f".authorized_keys.{os.urandom(8).hex()}"
        try:
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FILE_FLAGS, 0o600, dir_fd=folder)
        except PermissionError:
            if old is None:
                raise
            _overwrite(folder, account, content, old, mode)
            return
        try:
            _put(fd, content, mode)
            os.rename(temporary, "authorized_keys", src_dir_fd=folder, dst_dir_fd=folder)
        except OSError:
            os.unlink(temporary, dir_fd=folder)
            raise
    except OSError as e:
        raise CommandError.from_errno(f"failed to write to '{file_path(account)}'", e.errno or 0) from None


def _put(fd: int, content: bytes, mode: int) -> None:
    """Writes all of it from the start, makes it last, sets the mode."""
    at = 0
    while at < len(content):
        at += os.pwrite(fd, content[at:], at)
    os.ftruncate(fd, len(content))
    os.fchmod(fd, mode)
    os.fsync(fd)


def _overwrite(folder: int, account: Account, content: bytes, old: tuple[bytes, os.stat_result], mode: int) -> None:
    """In place, for a folder that is not the user's to write in; on an error the old content is put back."""
    fd = os.open("authorized_keys", os.O_WRONLY | _FILE_FLAGS, dir_fd=folder)
    status = _checked(fd, account)
    if (status.st_dev, status.st_ino) != (old[1].st_dev, old[1].st_ino):
        raise OSError(errno.EBUSY, "")
    try:
        _put(fd, content, mode)
    except OSError:
        if len(old[0]) == old[1].st_size:
            _put(fd, old[0], stat.S_IMODE(old[1].st_mode))
        raise
