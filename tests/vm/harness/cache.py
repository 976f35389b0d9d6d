"""Where images are kept and who may build or boot: one folder outside the tree, two locks in it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

KEPT = 3  # images of one name; older ones make room
GUEST_PATIENCE = 1800.0  # seconds to wait for the guest of another run
_ours: set[tuple[int, str]] = set()  # thread, name: a thread that asks for what it holds would wait for itself


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
def locked(*names: str, patience: float) -> Iterator[None]:
    """Hold one of these locks.  Raises HarnessError when others keep them all for longer than `patience` seconds."""
    thread = threading.get_ident()
    if {(thread, name) for name in names} <= _ours:
        raise HarnessError(f"this run holds {names[0]} already: end the first before the second")
    end = time.monotonic() + patience
    files = {name: open(folder() / f"{name}.lock", "w") for name in names}  # noqa: SIM115
    try:
        while (name := next((n for n, file in files.items() if _taken(file)), None)) is None:
            if time.monotonic() > end:
                raise HarnessError(f"other runs have held {', '.join(names)} in {folder()} for {patience:g} s")
            time.sleep(0.2)
        _ours.add((thread, name))
        try:
            yield
        finally:
            _ours.discard((thread, name))
    finally:
        for file in files.values():
            file.close()


def _taken(file: TextIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def guest_slot() -> contextlib.AbstractContextManager[None]:
    """Leave to run a guest: one on this machine at a time, or as many as $PRIVSEP_GA_VM_GUESTS says."""
    most = int(os.environ.get("PRIVSEP_GA_VM_GUESTS", "1"))
    names = (*(f"guest-{n}" for n in range(2, most + 1)), "guest")  # the last is what everybody else waits for
    return locked(*names, patience=GUEST_PATIENCE)


def place(name: str, digest: str) -> Path:
    """The folder of one image; it is complete when it exists."""
    return folder() / "images" / f"{name}-{digest[:16]}"


def prune(name: str) -> None:
    """Keep the newest images of this name."""
    found = sorted((folder() / "images").glob(f"{name}-" + "[0-9a-f]" * 16), key=lambda p: p.stat().st_mtime)
    for old in found[:-KEPT]:
        shutil.rmtree(old)
