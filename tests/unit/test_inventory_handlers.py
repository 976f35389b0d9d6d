"""The inventory's commands, on trees that play the machine and on this one: values, texts, and the declared types."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privsep.runtime import State
from protocol.commands import BY_NAME, verbs_of
from protocol.errors import CommandError
from protocol.schema import check_result
from tests.support.handlers import BareContext
from tests.support.machine_tree import MachineTree, sample_machine
from tests.unit.test_inventory_utmp import SESSION, record
from workers import inventory
from workers.statistics import parse_cpustats, parse_diskstats

CPUS = "/sys/devices/system/cpu"
MEMORY = "/sys/devices/system/memory"


class Context(BareContext):
    def __init__(self, root: object = "") -> None:
        super().__init__(root)
        self.state = State()


def ask(name: str, root: object = "") -> object:
    """Call the handler and check its result against the command table."""
    handler: Callable[..., object] = getattr(inventory, name.replace("-", "_"))
    result = handler(Context(root))
    check_result(BY_NAME[name].returns, result)
    return result


def refused(name: str, root: object) -> str:
    with pytest.raises(CommandError) as e:
        ask(name, root)
    return e.value.desc


@pytest.mark.parametrize("name", [c.name for c in verbs_of("inventory")])
def test_this_machine_fits_the_declared_types(name: str) -> None:
    try:
        ask(name)
    except CommandError as e:
        assert "No such file" in e.desc  # a kernel without memory hotplug


def test_processors(tmp_path: Path) -> None:
    tree = MachineTree(tmp_path)
    for n in (0, 10, 2):
        tree.write(f"{CPUS}/cpu{n}/uevent", "")
    tree.write(f"{CPUS}/cpu10/online", "1\n")
    tree.write(f"{CPUS}/cpu2/online", "0\n")
    for odd in ("cpufreq", "cpu7x", "cpu", "cpu٣"):
        tree.write(f"{CPUS}/{odd}/online", "0\n")
    found = ask("guest-get-vcpus", tmp_path)
    assert sorted(found, key=lambda c: c["logical-id"]) == [  # type: ignore[call-overload]
        {"logical-id": 0, "online": True, "can-offline": False},
        {"logical-id": 2, "online": False, "can-offline": True},
        {"logical-id": 10, "online": True, "can-offline": True},
    ]


def test_memory_blocks(tmp_path: Path) -> None:
    assert ask("guest-get-memory-blocks", tmp_path) == []
    tree = MachineTree(tmp_path)
    tree.write(f"{MEMORY}/block_size_bytes", "8000000\n")
    assert refused("guest-get-memory-blocks", tmp_path) == "guest reported zero memory blocks!"
    for n, state, removable in (
        (0, "online", "0"),
        (1, "offline", "1"),
        (2, "going-offline", None),
        (4, None, "1"),
        (5, "online", "2"),
    ):
        if state:
            tree.write(f"{MEMORY}/memory{n}/state", state + "\n")
        if removable:
            tree.write(f"{MEMORY}/memory{n}/removable", removable + "\n")
    found = ask("guest-get-memory-blocks", tmp_path)
    assert isinstance(found, list)
    assert {b["phys-index"]: (b["online"], b["can-offline"]) for b in found} == {
        0: (True, False),
        1: (False, True),
        2: (False, False),
        4: (True, False),
        5: (True, True),
    }
    assert ask("guest-get-memory-block-info", tmp_path) == {"size": 128 << 20}


def test_texts_of_what_is_not_there(tmp_path: Path) -> None:
    missing = "No such file or directory"
    assert refused("guest-get-vcpus", tmp_path) == f"failed to list entries: {CPUS}: {missing}"
    assert refused("guest-get-memory-block-info", tmp_path) == f'open("{MEMORY}/"): {missing}'
    assert refused("guest-get-disks", tmp_path) == f'Can\'t open directory "/sys/block": {missing}'
    assert refused("guest-get-diskstats", tmp_path) == f'open("/proc/diskstats"): {missing}'
    assert refused("guest-get-cpustats", tmp_path) == f'open("/proc/stat"): {missing}'
    assert refused("guest-get-load", tmp_path) == f"cannot query load average: {missing}"
    assert missing in refused("guest-get-fsinfo", tmp_path)
    (tmp_path / f"{MEMORY}/memory0/state"[1:]).mkdir(parents=True)
    (tmp_path / f"{CPUS}/cpu0/online"[1:]).mkdir(parents=True)
    assert refused("guest-get-memory-block-info", tmp_path) == f'open sysfs file "block_size_bytes": {missing}'
    assert refused("guest-get-memory-blocks", tmp_path) == 'pread sysfs file "state": Is a directory'
    assert refused("guest-get-vcpus", tmp_path) == f'pread("{CPUS}/cpu0//online"): Is a directory'


def test_file_systems_of_the_sample_machine(tmp_path: Path) -> None:
    tree = sample_machine(tmp_path)
    (tmp_path / "two").mkdir()
    found = ask("guest-get-fsinfo", tmp_path)
    assert isinstance(found, list)
    by_point = {f["mountpoint"]: f for f in found}
    assert [f["mountpoint"] for f in found][-2:] == ["/two", "/"]
    assert by_point["/container"] == {"name": "99:7", "mountpoint": "/container", "type": "ext4", "disk": []}
    assert by_point["/with blank"]["name"] == "sda1"
    assert by_point["/dm"]["name"] == "dm-0"
    assert len(by_point["/dm"]["disk"]) == 2
    assert "/net" not in by_point
    assert by_point["/two"]["total-bytes-privileged"] > by_point["/two"]["used-bytes"] > 0
    assert "used-bytes" not in by_point["/sda"]
    # A second mount of a device is not listed; one that covers another leaves it without sizes.
    tree.mount("254:2", "/again")
    tree.mount("8:99", "/two")
    found = ask("guest-get-fsinfo", tmp_path)
    assert isinstance(found, list)
    assert sum(f["name"] == "vda2" for f in found) == 1
    assert next(f for f in found if f["name"] == "8:99")["total-bytes"] > 0


def test_a_covered_file_system_has_no_sizes(tmp_path: Path) -> None:
    tree = MachineTree(tmp_path)
    tree.mount("0:5", "/", "tmpfs", "none")
    (tmp_path / "a").mkdir()
    tree.mount("8:1", "/a")
    tree.mount("8:2", "/a", "xfs")
    found = ask("guest-get-fsinfo", tmp_path)
    assert isinstance(found, list)
    assert [(f["name"], "used-bytes" in f) for f in found] == [("8:2", True), ("8:1", False)]


@pytest.mark.root
def test_btrfs_goes_by_its_source(tmp_path: Path) -> None:
    tree = sample_machine(tmp_path)
    os.mknod(tmp_path / "dev/vda2", 0o060600, os.makedev(254, 2))
    tree.mount("0:77", "/btrfs", "btrfs", "/dev/vda2", "/@home")
    tree.mount("0:78", "/not", "btrfs", "/dev/missing")
    found = ask("guest-get-fsinfo", tmp_path)
    assert isinstance(found, list)
    assert found[0]["mountpoint"] == "/btrfs"
    assert (found[0]["name"], found[0]["disk"][0]["dev"]) == ("vda2", "/dev/vda2")


def test_users_from_utmp_else_from_logind(tmp_path: Path) -> None:
    tree = MachineTree(tmp_path)
    assert ask("guest-get-users", tmp_path) == []
    tree.write("/run/systemd/sessions/2", SESSION)
    tree.write("/run/systemd/sessions/1", SESSION.replace(b"alice", b"bob").replace(b"17000", b"18000"))
    tree.write("/run/systemd/sessions/c1", SESSION.replace(b"alice", b"gdm").replace(b"=user", b"=greeter"))
    os.mkfifo(tmp_path / "run/systemd/sessions/2.ref")
    assert ask("guest-get-users", tmp_path) == [
        {"user": "alice", "login-time": 1700000000.25},
        {"user": "bob", "login-time": 1800000000.25},
    ]
    machine = "aarch64" if os.uname().machine == "aarch64" else "x86_64"
    logins = [record(machine, 7, user, since, order=sys.byteorder) for user, since in ((b"b", 9), (b"a", 8), (b"b", 7))]
    tree.write("/run/utmp", b"".join(logins))
    assert ask("guest-get-users", tmp_path) == [{"user": "b", "login-time": 7.0}, {"user": "a", "login-time": 8.0}]
    tree.write("/run/utmp", b"")
    assert ask("guest-get-users", tmp_path) == []


@pytest.mark.parametrize(
    ("zone", "expected"),
    [
        ("UTC", ("UTC", 0)),
        ("XYZ-5:30", ("XYZ", 19800)),
        ("ABC3:15", ("ABC", -11700)),
        (":Asia/Kolkata", ("IST", 19800)),
    ],
)
def test_time_zone(zone: str, expected: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    if zone[0] == ":" and not os.path.exists("/usr/share/zoneinfo/Asia/Kolkata"):
        pytest.skip("needs tzdata")
    with monkeypatch.context() as patch:
        patch.setenv("TZ", zone)
        assert ask("guest-get-timezone") == {"zone": expected[0], "offset": expected[1]}
    time.tzset()


def test_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QGA_OS_RELEASE", raising=False)
    tree = MachineTree(tmp_path)
    kernel = {"kernel-release": os.uname().release, "kernel-version": os.uname().version, "machine": os.uname().machine}
    assert ask("guest-get-osinfo", tmp_path) == kernel
    tree.write("/usr/lib/os-release", "ID=below\n")
    assert ask("guest-get-osinfo", tmp_path) == {**kernel, "id": "below"}
    tree.write("/etc/os-release", "ID=above\n")
    assert ask("guest-get-osinfo", tmp_path) == {**kernel, "id": "above"}
    tree.write("/etc/os-release", b"ID=\xff\n")
    assert ask("guest-get-osinfo", tmp_path) == kernel
    tree.write("/elsewhere", "ID='else where'\n")
    monkeypatch.setenv("QGA_OS_RELEASE", "/elsewhere")
    assert ask("guest-get-osinfo", tmp_path) == {**kernel, "id": "else where"}
    monkeypatch.setenv("QGA_OS_RELEASE", "/missing")
    assert ask("guest-get-osinfo", tmp_path) == kernel


def test_load(tmp_path: Path) -> None:
    tree = MachineTree(tmp_path)
    tree.write("/proc/loadavg", "0.52 1.00 12.59 2/1234 5678\n")
    assert ask("guest-get-load", tmp_path) == {"load1m": 0.52, "load5m": 1.0, "load15m": 12.59}
    tree.write("/proc/loadavg", "\n")
    assert "no three numbers" in refused("guest-get-load", tmp_path)


@pytest.mark.parametrize(
    ("columns", "members"), [(4, 4), (5, 0), (10, 0), (11, 11), (14, 11), (15, 15), (16, 15), (17, 17), (19, 17)]
)
def test_disk_counters_by_number_of_columns(columns: int, members: int) -> None:
    line = "   8       3 sda3 " + " ".join(str(n) for n in range(1, columns + 1))
    (found,) = parse_diskstats(line.encode())
    check_result(BY_NAME["guest-get-diskstats"].returns, [found])
    stats = found["stats"]
    assert isinstance(stats, dict)
    assert (found["name"], found["major"], found["minor"], len(stats)) == ("sda3", 8, 3, members)
    if columns == 4:
        assert stats == {"read-ios": 1, "read-sectors": 2, "write-ios": 3, "write-sectors": 4}
    elif members == 17:
        assert (stats["read-ios"], stats["write-sectors"], stats["weight-ticks"]) == (1, 7, 11)
        assert (stats["discard-ticks"], stats["flush-ticks"]) == (15, 17)


def test_disk_counters_of_odd_lines() -> None:
    text = b"garbage\n 8 0 sda 1 2\n\n 8 x sdb 1 2 3 4\n 8 2 cciss!c0d0 1 2 3 4 5 6 7 8 -1 18446744073709551615 3\n"
    (found,) = parse_diskstats(text)
    check_result(BY_NAME["guest-get-diskstats"].returns, [found])
    assert found["name"] == "cciss!c0d0"


def test_processor_counters_in_milliseconds() -> None:
    text = b"cpu  9 9 9 9\ncpu0 1 2 3 4 5 6 7 8 9 10\ncpu2 1 2 3 4 5\ncpu3 1 2 3\ncpux 1 2 3 4\nintr 5\ncpu9 1 2 3 4\n"
    found = parse_cpustats(text, 250)
    check_result(BY_NAME["guest-get-cpustats"].returns, found)
    assert [f["cpu"] for f in found] == [0, 2]
    assert (found[0]["user"], found[0]["guestnice"]) == (4, 40)
    assert list(found[1]) == "type cpu user nice system idle iowait".split()


@given(st.binary(max_size=300))
def test_any_counters_are_taken(text: bytes) -> None:
    check_result(BY_NAME["guest-get-diskstats"].returns, parse_diskstats(text))
    parse_cpustats(b"cpu0 " + text, 100)
