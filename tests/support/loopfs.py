"""Real file systems on loop devices, for what freezes.  Only inside a private root (`tests/support/namespace.py`).

with LoopFs("ext4", "btrfs") as fs:          # images on tmpfs, mounted, a dead-man process behind them
    freeze(fs.points[0])
    assert frozen(fs.points[0])              # a writer in a process of its own does not get through
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from types import TracebackType

from tests.support.deadman import DeadMan, thaw

SIZES = {"ext4": 16 << 20, "xfs": 320 << 20, "btrfs": 128 << 20}
_AT_ONCE = 0.1  # seconds that a write takes which nothing stops, on a busy machine
_QUIET = {"ext4": ["-q"], "xfs": ["-q"], "btrfs": ["-q"]}


def make(point: str, fstype: str = "ext4", image: str = "", options: str = "loop") -> str:
    """Make a file system in `image` (by default on tmpfs, beside the mount point) and mount it; the image's path."""
    image = image or f"{point}.img"
    with open(image, "wb") as f:
        f.truncate(SIZES[fstype])
    subprocess.run([f"mkfs.{fstype}", *_QUIET[fstype], image], check=True, capture_output=True)
    os.makedirs(point, exist_ok=True)
    subprocess.run(["mount", "-o", options, image, point], check=True, capture_output=True)
    return image


class Writer:
    """A process of its own that writes and syncs one file; it is `through` once that was taken.

    It says when it begins, so that a machine that is slow to start it is not mistaken for a file system that blocks it."""

    def __init__(self, point: str) -> None:
        code = (
            "import os,sys\n"
            "os.write(1, b'r')\n"
            f"fd = os.open({os.path.join(point, 'probe')!r}, os.O_WRONLY | os.O_CREAT, 0o600)\n"
            "os.write(fd, b'x'); os.fsync(fd)\n"
        )
        self._process = subprocess.Popen(
            [sys.executable, "-IS", "-c", code], stdin=subprocess.DEVNULL, cwd="/", stdout=subprocess.PIPE
        )
        assert self._process.stdout is not None
        with self._process.stdout as ready:
            ready.read(1)

    def through(self, seconds: float) -> bool:
        try:
            return self._process.wait(seconds) == 0
        except subprocess.TimeoutExpired:
            return False


def frozen(point: str, seconds: float = 0.4) -> bool:
    """Whether a writer is stopped for so long.  It gets through later, when the file system is thawed."""
    return not Writer(point).through(seconds)


def takes_writes(point: str, seconds: float = 10.0) -> bool:
    """Whether a writer gets through within so many seconds from now, or at once where it could not be started in time."""
    end = time.monotonic() + seconds
    writer = Writer(point)
    return writer.through(max(end - time.monotonic(), _AT_ONCE))


class LoopFs:
    """File systems of the named types, mounted at `points` below a folder of their own."""

    def __init__(self, *fstypes: str, seconds: float = 40.0) -> None:
        self.folder = tempfile.mkdtemp(prefix="loopfs-", dir="/tmp")
        self.points = [f"{self.folder}/{n}-{fstype}" for n, fstype in enumerate(fstypes)]
        self._made: list[str] = []
        self._seconds = seconds
        self._deadman: DeadMan | None = None
        try:
            for point, fstype in zip(self.points, fstypes, strict=True):
                make(point, fstype)
                self._made.append(point)
        except BaseException:
            self.unmount()
            raise

    def add(self, point: str, fstype: str = "ext4", image: str = "") -> None:
        """One more, where the test says."""
        make(point, fstype, image)
        self._made.append(point)

    def guard(self) -> None:
        """Start the dead-man process; from here on something may be frozen."""
        self.guard_only(*self._made)

    def guard_only(self, *points: str) -> None:
        """The same for these alone, when others are gone."""
        self._deadman = DeadMan(self._seconds, *points)

    def __enter__(self) -> LoopFs:
        self.guard()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        left = self.thaw()
        self.release()
        self.unmount()
        if kind is None and left:
            raise AssertionError(f"left frozen: {left}")

    def release(self) -> None:
        """End the dead-man process, whose descriptors keep everything busy."""
        if self._deadman is not None:
            self._deadman.cancel()
            self._deadman = None

    def thaw(self) -> list[str]:
        """Thaw all; those that were frozen."""
        left = []
        for point in filter(os.path.ismount, self._made):
            fd = os.open(point, os.O_RDONLY | os.O_DIRECTORY)
            if thaw(fd):
                left.append(point)
            os.close(fd)
        return left

    def unmount(self) -> None:
        for point in reversed(self._made):
            if not os.path.ismount(point):
                continue
            end = time.monotonic() + 5
            while subprocess.run(["umount", point], capture_output=True).returncode and time.monotonic() < end:
                time.sleep(0.05)
            if os.path.ismount(point):
                subprocess.run(["umount", "-l", point], capture_output=True)
        self._made = []
