"""Where images are kept and who may build or boot: one folder outside the tree, two locks in it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

KEPT = 3  # images of one name; older ones make room
_ours: set[str] = set()


class HarnessError(Exception):
    """The harness or the guest did not do what a test needs; the text says what is known."""


def folder() -> Path:
    """The cache: $PRIVSEP_GA_VM_CACHE, by default privsep-ga-vm in the user's own cache folder."""
    named = os.environ.get("PRIVSEP_GA_VM_CACHE")
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path = Path(named) if named else home / "privsep-ga-vm"
    path.mkdir(parents=True, exist_ok=True)
    return path


@contextlib.contextmanager
def locked(name: str, patience: float) -> Iterator[None]:
    """Hold the lock of this name.  Raises HarnessError when somebody else keeps it for longer than `patience` seconds."""
    if name in _ours:
        raise HarnessError(f"this run has {name} already: end the first before the second")
    with open(folder() / f"{name}.lock", "w") as file:
        end = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise HarnessError(f"another process has held {file.name} for {patience:g} s") from None
                time.sleep(0.2)
        _ours.add(name)
        try:
            yield
        finally:
            _ours.discard(name)


def place(name: str, digest: str) -> Path:
    """The folder of one image; it is complete when it exists."""
    return folder() / "images" / f"{name}-{digest[:16]}"


def prune(name: str) -> None:
    """Keep the newest images of this name."""
    found = sorted((folder() / "images").glob(f"{name}-" + "[0-9a-f]" * 16), key=lambda p: p.stat().st_mtime)
    for old in found[:-KEPT]:
        shutil.rmtree(old)
