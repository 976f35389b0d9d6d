"""Paths that nobody but root can have prepared: each step is looked at before it is taken.

A name is resolved here, component by component, so that what was looked at is what is opened; a symbolic link is followed only when it
is root's own, because where somebody else's leads is decided by somebody else.

Facts: path_resolution(7), open(2) O_PATH, symlink(7).
"""

from __future__ import annotations

import os
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_MOST_LINKS: Final = 40  # as the kernel
_STEP: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


class NotTrusted(Exception):
    """Somebody else could have made the path lead where it does; the text says which step, and what mends it."""


def walk(path: str, *, folders: bool, root: str = "/") -> int:
    """An O_PATH descriptor of an absolute path.  Raises NotTrusted or OSError.

    folders  each folder on the way must be root's (or this process's own user's) and writable by nobody else
    root     where the path begins"""
    owners = (0, os.geteuid())
    left = [p for p in path.split("/") if p]
    left.reverse()
    at = os.open(root, _STEP | os.O_DIRECTORY)
    seen = "/"
    links = 0
    try:
        if folders and left:
            _check_folder(os.fstat(at), seen, owners)
        while left:
            name = left.pop()
            if name == ".":
                continue
            if name == "..":  # out of a link's text; it may not lead out of `root`
                if root != "/":
                    raise NotTrusted(f"{path}: a symbolic link on the way has a '..' in it")
                seen = os.path.dirname(seen)
            else:
                seen = f"{seen.rstrip('/')}/{name}"
            step = os.open(name, _STEP, dir_fd=at)
            found = os.fstat(step)
            if stat.S_ISLNK(found.st_mode):
                links += 1
                try:
                    if found.st_uid not in owners:
                        raise NotTrusted(
                            f"{seen}: is a symbolic link of uid {found.st_uid}, who may let it lead elsewhere"
                        )
                    if links > _MOST_LINKS:
                        raise NotTrusted(f"{path}: too many symbolic links")
                    target = os.readlink("", dir_fd=step)
                finally:
                    os.close(step)
                left += [p for p in reversed(target.split("/")) if p]
                if target.startswith("/"):
                    step = os.open(root, _STEP | os.O_DIRECTORY)
                    os.close(at)
                    at, seen = step, "/"
                else:
                    seen = os.path.dirname(seen)
                continue
            os.close(at)
            at = step
            if folders and left:
                _check_folder(found, seen, owners)
        result, at = at, -1
        return result
    finally:
        if at >= 0:
            os.close(at)


def _check_folder(found: os.stat_result, name: str, owners: tuple[int, ...]) -> None:
    if not stat.S_ISDIR(found.st_mode):
        raise NotADirectoryError(20, "Not a directory", name)
    if found.st_uid not in owners:
        raise NotTrusted(f"{name}: the folder belongs to uid {found.st_uid}, not to root (chown root {name})")
    # In a sticky folder (/tmp) everybody may make files, but nobody can take another's away or put one in its place.
    if found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX:
        raise NotTrusted(f"{name}: others than its owner may write the folder (chmod go-w {name})")
