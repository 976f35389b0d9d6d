"""Each way in which a disk can be attached gets the address that the host knows it by;
a broken /sys costs only what is missing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.commands import BY_NAME
from protocol.schema import check_result
from tests.support.machine_tree import MachineTree, sample_machine
from workers.diskpath import Attachment, attachment
from workers.disks import BlockDevices
from workers.nvme import LOG_SIZE, parse_smart_log, read_smart_log

NONE = (-1, -1, -1, -1)


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> BlockDevices:
    return BlockDevices(str(sample_machine(tmp_path_factory.mktemp("machine")).root))


def short(address: dict[str, object]) -> tuple[object, ...]:
    pci = address["pci-controller"]
    assert isinstance(pci, dict)
    return (tuple(pci.values()), address["bus-type"], address["bus"], address["target"], address["unit"])


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        ("254:0", ((0, 0, 2, 0), "virtio", 0, 0, 0)),
        ("254:2", ((0, 0, 2, 0), "virtio", 0, 0, 0)),
        ("8:0", ((0, 2, 0, 0), "scsi", 0, 0, 4)),
        ("8:16", ((0, 0, 31, 2), "sata", 0, 0, 3)),
        ("8:32", ((0, 0, 1, 1), "ide", 1, 0, 1)),
        ("8:48", ((0, 0, 4, 0), "scsi", 0, 0, 5)),
        ("259:1", ((0, 0, 5, 0), "nvme", 0, 0, 0)),
        ("8:64", (NONE, "unknown", 0, 0, 0)),
        ("8:80", ((0, 0, 31, 2), "unknown", 0, 0, 0)),
        ("254:16", (NONE, "virtio", 0, 0, 0)),
        ("8:96", (NONE, "scsi", 0, 3, 7)),
        ("254:32", (NONE, "virtio", 0, 0, 0)),
        ("104:0", (NONE, "unknown", 0, 0, 0)),
    ],
)
def test_one_disk(sample: BlockDevices, number: str, expected: tuple[object, ...]) -> None:
    path = sample.by_number(*map(int, number.split(":")))
    assert path is not None
    assert [short(a) for a in sample.addresses(path)] == [expected]


def test_serial_node_and_channel_device(sample: BlockDevices) -> None:
    def address(major: int, minor: int) -> dict[str, object]:
        path = sample.by_number(major, minor)
        assert path is not None
        return sample.addresses(path)[0]

    assert address(254, 1)["serial"] == "root-disk"
    assert address(254, 1)["dev"] == "/dev/vda1"
    assert "serial" not in address(254, 2)
    assert address(104, 0)["dev"] == "/dev/cciss/c0d0"
    assert address(254, 32)["ccw-address"] == {"cssid": 0, "ssid": 0, "subchno": 11, "devno": 0xCFE}


def test_a_volume_has_the_disks_it_is_made_of(sample: BlockDevices) -> None:
    def nodes(major: int, minor: int) -> set[object]:
        path = sample.by_number(major, minor)
        assert path is not None
        return {a["dev"] for a in sample.addresses(path)}

    assert nodes(253, 0) == {"/dev/vda2", "/dev/sdb"}
    assert nodes(253, 1) == nodes(9, 0) == {"/dev/sda1", "/dev/nvme0n1p1", "/dev/sdc"}
    assert nodes(7, 0) == set()
    assert sample.by_number(99, 7) is None


def test_the_list_of_disks(sample: BlockDevices) -> None:
    disks = sample.disks()
    check_result(BY_NAME["guest-get-disks"].returns, disks)
    names = [d["name"] for d in disks]
    found = {d["name"]: d for d in disks}
    assert len(found) == len(disks) == 20
    assert not {"/dev/loop1", "/dev/hidden0"} & set(found)
    assert names.index("/dev/nvme0n1p1") == names.index("/dev/nvme0n1") - 1
    assert {names.index("/dev/vda1"), names.index("/dev/vda2")} == {names.index("/dev/vda") - n for n in (1, 2)}
    assert found["/dev/vda1"] == {"name": "/dev/vda1", "partition": True, "dependencies": ["/dev/vda"]}
    assert found["/dev/dm-1"] == {
        "name": "/dev/dm-1",
        "partition": False,
        "dependencies": ["/dev/md0"],
        "alias": "vg-näme",
    }
    assert found["/dev/loop0"] == {"name": "/dev/loop0", "partition": False}
    assert found["/dev/vda"]["dependencies"] == []
    listed = [e.name for e in os.scandir(f"{sample._root}/sys/block")]
    assert [n for n in reversed(names) if not found[n]["partition"]] == [
        "/dev/" + n.replace("!", "/") for n in listed if n not in ("loop1", "hidden0")
    ]


def test_a_bus_of_a_device_tree_and_a_usb_disk() -> None:
    usb = "/sys/devices/platform/4010000000.pcie/pci0000:00/0000:00:05.1/usb1/1-1/1-1:1.0/host2/target2:0:0/2:0:0:0/block/sda"
    found = attachment(usb, lambda path: "xhci_hcd" if path.endswith("05.1") else "", lambda path: [])
    assert (found.pci, found.bus_type, found.known) == ((0, 0, 5, 1), "usb", True)


def test_the_first_known_driver_from_the_left_counts() -> None:
    drivers = {"0000:00:01.0": "pcieport", "0001:02:00.0": "nvme", "0001:03:1f.7": "ahci"}
    path = "/sys/devices/pci0000:00/0000:00:01.0/0001:02:00.0/0001:03:1f.7/nvme/nvme0/nvme0n1"
    found = attachment(path, lambda p: drivers[os.path.basename(p)], lambda p: [])
    assert found.pci == (1, 2, 0, 0)


@pytest.mark.parametrize(
    "part", ["block", "host1", "ata1", "target1:0:0", "target1:0:0/1:0", "ata1/host1/target1:0:0/1:0:x:0"]
)
@pytest.mark.parametrize("driver", ["ahci", "ata_piix", "sym53c8xx"])
def test_paths_that_end_early_are_of_unknown_bus(part: str, driver: str) -> None:
    found = attachment(f"/sys/devices/pci0000:00/0000:00:01.0/{part}", lambda p: driver, lambda p: [])
    assert (found.pci, found.bus_type, found.known) == ((0, 0, 1, 0), "unknown", False)


WORDS = st.sampled_from(
    "pci0000:00 pci: 0000:00:01.0 0000:00:01. ata1 ata host0 target0:0:0 0:0:0:0 target 0:0 virtio1 css0 css 0.0.1 0.0 "
    "nvme block x".split()
)


@given(st.lists(st.one_of(WORDS, st.text("0123456789abcdef:.", max_size=12)), max_size=8), st.text(max_size=8))
def test_no_path_makes_it_fail(parts: list[str], driver: str) -> None:
    for name in (driver, "ahci", "ata_piix", "virtio-pci", "sym53c8xx"):
        found = attachment("/sys/devices/" + "/".join(parts), lambda p, n=name: n, lambda p: parts)
        assert isinstance(found, Attachment)
        assert found.unit >= 0


def test_what_is_missing_or_odd_in_sys_costs_only_itself(tmp_path: Path) -> None:
    tree = MachineTree(tmp_path)
    devices = BlockDevices(str(tmp_path))
    assert devices.disks() == []
    virtual = "/sys/devices/virtual/block"
    good = tree.block(f"{virtual}/dm-3", "253:3")
    tree.link(f"{good}/slaves/gone", "/sys/devices/nowhere/sdz")
    tree.write(f"{good}/slaves/file", "")
    round_trip = tree.block(f"{virtual}/dm-4", "253:4")
    tree.slave(round_trip, round_trip)
    nosize = tree.block(f"{virtual}/dm-5", "253:5")
    (tmp_path / f"{nosize}/size".lstrip("/")).unlink()
    nouevent = tree.block("/sys/devices/platform/x/block/sdx", "8:240")
    (tmp_path / f"{nouevent}/uevent".lstrip("/")).unlink()
    tree.write("/sys/block/regular", "")
    (tmp_path / "sys/block/dangling").symlink_to("../devices/virtual/block/gone")
    (tmp_path / "sys/block/\udcff").symlink_to("../devices/virtual/block/dm-3")
    tree.write("/run/udev/data/b253:3", b"\xff\nE:\nE:DM_NAME\nE:DM_NAME=\nE:ID_SERIAL=x\n")
    devices = BlockDevices(str(tmp_path))
    names = [d["name"] for d in devices.disks()]
    assert sorted(set(map(str, names))) == ["/dev/dm-3", "/dev/dm-4"]
    assert devices.addresses(round_trip) == []
    assert all("alias" not in d for d in devices.disks())
    assert devices.addresses(nouevent) == []


def test_smart_log() -> None:
    log = bytearray(LOG_SIZE)
    log[:6] = bytes((4, 0x2C, 0x01, 100, 10, 3))
    for n in range(10):
        log[32 + 16 * n : 48 + 16 * n] = (n + 1 + (n << 64)).to_bytes(16, "little")
    smart = parse_smart_log(bytes(log))
    assert (smart["critical-warning"], smart["temperature"], smart["percentage-used"]) == (4, 300, 3)
    assert (smart["data-units-read-lo"], smart["data-units-read-hi"]) == (1, 0)
    assert (smart["number-of-error-log-entries-lo"], smart["number-of-error-log-entries-hi"]) == (10, 9)
    disk = {"name": "/dev/nvme0n1", "partition": False, "smart": smart}
    check_result(BY_NAME["guest-get-disks"].returns, [disk])
    with pytest.raises(ValueError):
        parse_smart_log(bytes(191))


def test_smart_of_what_is_no_nvme_disk(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "file", tmp_path / "missing", Path("/dev/null")):
        with pytest.raises(OSError):
            read_smart_log(str(path))
