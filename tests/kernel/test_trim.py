"""guest-fstrim on loop mounts in a private root: what is mounted there is all that the command can see."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.namespace import isolated
from workers import mounts, trim

pytestmark = [pytest.mark.root, pytest.mark.loop]

SIZE = 32 << 20


def context() -> Any:
    ctx: Any = SimpleNamespace(
        root="", state=SimpleNamespace(), log=SimpleNamespace(info=lambda text: None), settings={}, ruling=None
    )
    trim.prepare(ctx)
    return ctx


def make(name: str, fstype: str = "ext4", options: str = "loop") -> tuple[Path, Path]:
    """A file system in a file on tmpfs, mounted: (file, mount point)."""
    image, point = Path(f"/tmp/{name}.img"), Path(f"/tmp/{name}")
    with image.open("wb") as f:
        f.truncate(SIZE)
    quiet = ["-q", "-E", "nodiscard"] if fstype == "ext4" else []
    subprocess.run([f"mkfs.{fstype}", *quiet, str(image)], check=True, capture_output=True)
    point.mkdir()
    subprocess.run(["mount", "-o", options, str(image), str(point)], check=True)
    return image, point


def unmount(*points: Path) -> None:
    for point in points:
        subprocess.run(["umount", str(point)], check=True)


def fill_and_remove(point: Path, size: int) -> None:
    path = point / "big"
    with path.open("wb") as f:
        f.write(os.urandom(size))
        f.flush()
        os.fsync(f.fileno())
    path.unlink()
    subprocess.run(["sync", "-f", str(point)], check=True)


@isolated
def test_unused_blocks_go_back_to_the_backing_file() -> None:
    image, point = make("one")
    ctx = context()
    trim.guest_fstrim(ctx)
    fill_and_remove(point, 8 << 20)
    before = image.stat().st_blocks * 512
    answer = trim.guest_fstrim(ctx)
    (row,) = answer["paths"]  # type: ignore[attr-defined]
    assert row["path"] == str(point)
    assert row["trimmed"] >= 8 << 20
    assert row["minimum"] == 0
    assert before - image.stat().st_blocks * 512 >= 7 << 20
    unmount(point)


@isolated
def test_all_file_systems_are_trimmed_and_listed_last_mounted_first() -> None:
    made = [make(f"fs{n}")[1] for n in range(6)]
    answer = trim.guest_fstrim(context())
    rows: list[dict[str, object]] = answer["paths"]  # type: ignore[assignment]
    assert [row["path"] for row in rows] == [str(p) for p in reversed(made)]
    assert all("error" not in row and int(str(row["trimmed"])) > 0 for row in rows)
    unmount(*made)


@isolated
def test_the_mount_table_is_read_anew_and_a_file_system_counts_once() -> None:
    ctx = context()
    assert trim.guest_fstrim(ctx) == {"paths": []}
    _, point = make("late")
    twin = Path("/tmp/twin")
    twin.mkdir()
    subprocess.run(["mount", "--bind", str(point), str(twin)], check=True)
    rows: list[dict[str, object]] = trim.guest_fstrim(ctx)["paths"]  # type: ignore[assignment]
    assert [row["path"] for row in rows] == [str(point)]
    unmount(twin, point)


@isolated
def test_the_minimum_reaches_the_kernel_and_a_huge_one_is_its_error() -> None:
    _, point = make("small")
    ctx = context()
    (row,) = trim.guest_fstrim(ctx, minimum=1 << 20)["paths"]  # type: ignore[attr-defined]
    assert row["trimmed"] > 0 and row["minimum"] == 1 << 20
    (row,) = trim.guest_fstrim(ctx, minimum=2**63 - 1)["paths"]  # type: ignore[attr-defined]
    assert row == {"path": str(point), "error": "failed to trim: Invalid argument"}
    unmount(point)


@isolated
def test_what_cannot_be_trimmed_says_so_and_does_not_keep_the_others_from_it() -> None:
    """A vanished mount point, a directory that is on another file system, one whose file system knows no FITRIM."""
    _, point = make("good")
    table = mounts.mount_list(mounts.parse_mountinfo(Path("/proc/self/mountinfo").read_bytes()))
    (good,) = table

    def other(path: str, device: tuple[int, int]) -> mounts.Mount:
        return mounts.Mount(1, 1, *device, "/", path, "rw", "ext4", "/dev/x", "")

    tmpfs = os.stat("/tmp").st_dev
    rows = trim.trim_all(
        [
            other("/tmp/not there", (7, 99)),
            other("/tmp", (7, 99)),
            other("/tmp", (os.major(tmpfs), os.minor(tmpfs))),
            other("/tmp/nul\0", (7, 99)),
            good,
        ],
        0,
    )
    assert rows[0] == {"path": "/tmp/not there", "error": f"failed to open: {os.strerror(errno.ENOENT)}"}
    assert str(rows[1]["error"]).startswith("failed to open: another file system")
    assert rows[2] == {"path": "/tmp", "error": "trim not supported"}
    assert rows[3]["error"] == f"failed to open: {os.strerror(errno.EINVAL)}"
    assert rows[4]["path"] == str(point) and int(str(rows[4]["trimmed"])) > 0
    unmount(point)


@isolated
def test_a_read_only_file_system_is_opened_and_the_kernel_decides() -> None:
    _, point = make("ro", options="loop,ro")
    (row,) = trim.guest_fstrim(context())["paths"]  # type: ignore[attr-defined]
    assert row["path"] == str(point)
    assert ("trimmed" in row) != ("error" in row)
    unmount(point)


@isolated
def test_as_many_lanes_as_can_be_had_trim_everything() -> None:
    """Where no further thread can be started, the one there is does all the work."""
    made = [make(f"fs{n}")[1] for n in range(3)]
    table = mounts.mount_list(mounts.parse_mountinfo(Path("/proc/self/mountinfo").read_bytes()))
    start = trim._thread.start_new_thread

    def none_left(*_: object) -> int:
        raise RuntimeError("can't start new thread")

    trim._thread.start_new_thread = none_left  # type: ignore[assignment]
    try:
        rows = trim.trim_all(table, 0)
    finally:
        trim._thread.start_new_thread = start
    assert [row["path"] for row in rows] == [str(p) for p in made]
    assert all("trimmed" in row for row in rows)
    unmount(*made)


@pytest.mark.peer
@isolated
def test_rows_are_the_peers() -> None:
    """The peer and we, one after the other on the same mounts; its list may name more mounts of a superblock."""
    import json
    import socket
    import time

    made = [make(f"fs{n}")[1] for n in range(3)]
    os.makedirs("/tmp/state")
    peer = subprocess.Popen(
        ["/usr/sbin/qemu-ga", "-m", "unix-listen", "-p", "/tmp/ga.sock", "-t", "/tmp/state", "-f", "/tmp/ga.pid"],
        stderr=subprocess.DEVNULL,
    )
    try:
        s = socket.socket(socket.AF_UNIX)
        s.settimeout(20)
        for _ in range(200):
            try:
                s.connect("/tmp/ga.sock")
                break
            except OSError:
                time.sleep(0.02)
        answers = []
        for minimum in (2**63 - 1, 31 << 20):
            s.sendall(json.dumps({"execute": "guest-fstrim", "arguments": {"minimum": minimum}}).encode() + b"\n")
            line = b""
            while not line.endswith(b"\n"):
                line += s.recv(65536)
            answers.append((minimum, json.loads(line)["return"]))
    finally:
        peer.kill()
        peer.wait()
    ctx = context()
    for minimum, theirs in answers:
        assert trim.guest_fstrim(ctx, minimum=minimum) == theirs
    assert len(answers[0][1]["paths"]) == len(made)
    unmount(*made)
