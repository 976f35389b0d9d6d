"""The mount table and the freeze plan: each superblock once, in an order that cannot deadlock."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.mounts import Mount, Plan, Sysfs, Tree, mount_list, parse_mountinfo, plan

Device = tuple[int, int]
_ids = itertools.count(100)


def mount(point: str, device: Device = (8, 1), *, parent: int = 1, fstype: str = "ext4", **kw: object) -> Mount:
    fields: dict[str, object] = {
        "id": next(_ids), "parent": parent, "major": device[0], "minor": device[1], "root": "/", "point": point,
        "options": "rw", "fstype": fstype, "source": "/dev/x", "superoptions": "rw",
    }  # fmt: skip
    return Mount(**{**fields, **kw})  # type: ignore[arg-type]


def planned(
    mounts: list[Mount],
    wanted: list[str] | None = None,
    beneath: dict[Device, tuple[list[Device], list[str]] | None] | None = None,
) -> Plan:
    facts = beneath or {}
    return plan(
        mounts,
        wanted,
        members=lambda m: [m.device],
        beneath=lambda d: facts.get(d, ([], [])),
        block=lambda source: (8, 99) if source.startswith("/dev/") else None,
        directory=None,
    )


def points(found: Plan) -> list[list[str]]:
    return [[t.candidates[0].point for t in level] for level in found.levels]


def test_a_line_is_taken_apart_and_unescaped() -> None:
    text = (
        b"36 35 98:0 /mnt1 /mnt\\0402\\134x rw,noatime master:1 propagate_from:2 - ext3 /dev/ro\\011ot rw,errors=continue\n"
        b"37 35 0:21 / /p\xff rw - proc proc rw\n"
        b"garbage\n"
        b"38 35 8:x / /p rw - proc proc rw\n"
        b"39 35 8:1 / /p rw proc proc rw\n"
    )
    first, second = parse_mountinfo(text)
    assert (first.id, first.parent, first.device, first.root) == (36, 35, (98, 0), "/mnt1")
    assert (first.point, first.source) == ("/mnt 2\\x", "/dev/ro\tot")
    assert (first.options, first.fstype, first.superoptions) == ("rw,noatime", "ext3", "rw,errors=continue")
    assert second.point == "/p\udcff"


@given(st.binary(max_size=300))
def test_any_bytes_are_taken(data: bytes) -> None:
    parse_mountinfo(data)


@given(st.text(st.characters(codec="utf-8"), min_size=1).map(lambda t: "/" + t))
def test_what_the_kernel_escapes_comes_back(point: str) -> None:
    data = point.encode()
    for c in b"\\ \t\n#":
        data = data.replace(bytes((c,)), b"\\%03o" % c) if c != 0x5C else data.replace(b"\\", b"\\134")
    (found,) = parse_mountinfo(b"1 0 8:1 / " + data + b" rw - ext4 /dev/x rw")
    assert found.point == point


def test_only_block_devices_and_btrfs_on_one_count() -> None:
    root = mount("/", id=1, parent=0)
    mounts = [
        root,
        mount("/proc", (0, 21), fstype="proc", source="proc"),
        mount("/run", (0, 22), fstype="tmpfs", source="tmpfs"),
        mount("/pool", (0, 23), fstype="zfs", source="pool"),
        mount("/b", (0, 24), fstype="btrfs", source="/dev/sdb"),
        mount("/b/sub", (0, 24), fstype="btrfs", source="/dev/sdb", root="/sub"),
        mount("/odd", (0, 25), fstype="btrfs", source="none"),
        mount("/again", (8, 1), root="/srv"),
    ]
    found = mount_list(mounts, block=lambda s: (8, 2) if s.startswith("/dev/") else None, directory=None)
    assert [m.point for m in found] == ["/", "/b"]


def test_a_directory_is_preferred_to_a_bound_file() -> None:
    root = mount("/", (0, 5), id=1, parent=0, fstype="overlay")
    mounts = [root, mount("/etc/hosts", root="/c/hosts"), mount("/data", root="/srv")]
    assert [m.point for m in mount_list(mounts, directory=lambda p: p == "/data")] == ["/data"]
    assert [m.point for m in mount_list(mounts, directory=lambda p: False)] == ["/etc/hosts"]


def test_a_mount_that_is_covered_is_not_taken() -> None:
    root = mount("/", id=1, parent=0)
    below = mount("/mnt", (8, 2))
    inside = mount("/mnt/deep/er", (8, 3), parent=below.id)
    beside = mount("/mnt2", (8, 4))
    tree = Tree([root, below, inside, beside])
    assert all(tree.reachable(m) for m in (root, below, inside, beside))
    on_top = mount("/mnt", (8, 5), parent=below.id)
    found = planned([root, below, inside, beside, on_top])
    assert sorted(itertools.chain(*points(found))) == ["/", "/mnt", "/mnt2"]
    assert [m.point for m in found.unreachable] == ["/mnt", "/mnt/deep/er"]
    deeper = mount("/mnt/deep", (8, 6), parent=below.id)
    assert [m.point for m in planned([root, below, inside, deeper]).unreachable] == ["/mnt/deep/er"]


def test_another_mount_of_a_covered_superblock_is_taken_in_its_place() -> None:
    root = mount("/", id=1, parent=0)
    covered, elsewhere = mount("/a", (8, 2)), mount("/b", (8, 2))
    on_top = mount("/a", (0, 9), parent=covered.id, fstype="tmpfs")
    found = planned([root, covered, elsewhere, on_top], ["/a"])
    assert points(found) == [["/b"]]
    assert not found.unreachable


def test_names_are_exact_and_mean_the_superblock() -> None:
    root = mount("/", id=1, parent=0)
    mounts = [root, mount("/a", (8, 2)), mount("/b", (8, 2)), mount("/c", (8, 3))]
    assert points(planned(mounts, ["/b", "/a", "/nowhere", "/c/"])) == [["/a"]]
    assert points(planned(mounts, [])) == []
    assert points(planned(mounts, None)) == [["/c", "/a", "/"]]


def test_loop_files_dm_partitions_and_overlays_are_frozen_from_the_top() -> None:
    root = mount("/", (8, 1), id=1, parent=0)
    upper = mount("/over", (0, 40), fstype="overlay", superoptions="rw,lowerdir=/l,upperdir=/data/up,workdir=/data/w")
    data = mount("/data", (253, 0))
    loop = mount("/loop", (259, 7))
    beneath: dict[Device, tuple[list[Device], list[str]] | None] = {
        (253, 0): ([(7, 1)], []),  # dm on a loop device on /
        (7, 1): ([], ["/img/disk"]),
        (259, 7): ([(7, 2)], []),  # a partition of a loop device on an overlay on /data
        (7, 2): ([], ["/over/file"]),
    }
    for order in itertools.permutations([upper, data, loop]):
        assert points(planned([root, *order], None, beneath)) == [["/loop"], ["/data"], ["/"]]
    # What lies between counts even when it is not frozen itself.
    assert points(planned([root, upper, data, loop], ["/", "/loop"], beneath)) == [["/loop"], ["/"]]


@pytest.mark.parametrize("fstype", ["fuse.sshfs", "nfs4", "9p"])
def test_a_loop_file_that_a_server_keeps_may_be_on_anything_mounted_before(fstype: str) -> None:
    root, served = mount("/", (8, 1), id=1, parent=0), mount("/served", (0, 50), fstype=fstype)
    data, loop = mount("/data", (8, 2)), mount("/loop", (7, 0))
    beneath: dict[Device, tuple[list[Device], list[str]] | None] = {(7, 0): ([], ["/served/image"])}
    assert points(planned([root, served, data, loop], None, beneath)) == [["/loop"], ["/data", "/"]]
    beneath[7, 0] = [], ["/tmp/image"]
    kept = mount("/tmp", (0, 51), fstype="tmpfs")
    assert points(planned([root, kept, data, loop], None, beneath)) == [["/loop", "/data", "/"]]


@pytest.mark.parametrize(
    ("place", "known"),
    [
        ("devices/virtual/block/nbd0", False),
        ("devices/virtual/block/nbd0/nbd0p1", False),
        ("devices/virtual/block/ublkb3", False),
        ("devices/virtual/block/drbd1", False),
        ("devices/platform/host2/session1/target2:0:0/2:0:0:0/block/sda", False),
        ("devices/virtual/nvme-fabrics/ctl/nvme0/nvme0n1", False),
        ("devices/pci0000:00/0000:00:04.0/nvme/nvme0/nvme0n1", True),
        ("devices/virtual/nvme-subsystem/nvme-subsys0/nvme0n1", True),
        ("devices/pci0000:00/0000:00:05.0/virtio1/block/vda/vda1", True),
        ("devices/virtual/block/loop0", True),
    ],
)
def test_what_serves_a_block_device_is_known_or_not(tmp_path: Path, place: str, known: bool) -> None:
    (tmp_path / "sys" / place).mkdir(parents=True)
    link = tmp_path / "sys/dev/block/43:0"
    link.parent.mkdir(parents=True)
    link.symlink_to(tmp_path / "sys" / place)
    assert (Sysfs(str(tmp_path)).beneath((43, 0)) is not None) is known


def test_a_device_that_sysfs_does_not_know_waits_for_what_was_mounted_later() -> None:
    root = mount("/", (8, 1), id=1, parent=0)
    found = planned([root, mount("/a", (9, 1)), mount("/b", (9, 2))], None, {(9, 1): None, (9, 2): None})
    assert points(found) == [["/b"], ["/a"], ["/"]]


_NAMES = st.sampled_from([f"/{a}{b}" for a in "abc" for b in ("", "/x", "/y", "/x/z")])


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[Mount], dict[Device, tuple[list[Device], list[str]] | None]]:
    rows = [mount("/", (8, 0), id=1, parent=0)]
    for _ in range(draw(st.integers(0, 9))):
        point = draw(_NAMES)
        parent = Tree(rows).resolve(point)
        assert parent is not None
        device = (draw(st.sampled_from([0, 8, 8, 7])), draw(st.integers(0, 4)))
        rows.append(mount(point, device, parent=parent.id))
    draw(st.randoms()).shuffle(rows[1:])
    beneath: dict[Device, tuple[list[Device], list[str]] | None] = {}
    for row in rows:
        if row.major and draw(st.booleans()):  # nothing lies beneath 0:N, which is not a device
            files = draw(st.lists(_NAMES.map(lambda n: n + "/file"), max_size=2))
            devices = draw(st.lists(st.tuples(st.just(8), st.integers(0, 4)), max_size=1))
            beneath[row.device] = draw(st.sampled_from([(devices, files), None]))
    return rows, beneath


@given(tables(), st.none() | st.lists(_NAMES))
def test_every_superblock_is_planned_once_or_named_as_unreachable(
    table: tuple[list[Mount], dict[Device, tuple[list[Device], list[str]] | None]], wanted: list[str] | None
) -> None:
    rows, beneath = table
    found = planned(rows, wanted, beneath)
    devices = [t.device for t in found.targets()] + [m.device for m in found.unreachable]
    assert len(devices) == len(set(devices))
    expected = {m.device for m in rows if m.major and (wanted is None or m.point in wanted)}
    assert set(devices) == expected
    tree = Tree(rows)
    for target in found.targets():
        assert all(tree.resolve(m.point) is m and m.device == target.device for m in target.candidates)


@given(tables())
def test_nothing_is_frozen_before_what_sits_on_it(
    table: tuple[list[Mount], dict[Device, tuple[list[Device], list[str]] | None]],
) -> None:
    rows, beneath = table
    tree = Tree(rows)
    level = {t.device: n for n, row in enumerate(planned(rows, None, beneath).levels) for t in row}

    # Recomputed in another way: walk down from each superblock; give up where the facts go in a circle.
    def below(device: Device, path: tuple[Device, ...]) -> set[Device] | None:
        if device in path:
            return None
        found: set[Device] = set()
        facts = beneath.get(device, ([], []))
        if facts is None:
            return None
        for other in [*facts[0], *(m.device for f in facts[1] if (m := tree.resolve(f)))]:
            deeper = below(other, (*path, device))
            if deeper is None:
                return None
            found |= {other, *deeper}
        return found

    walks = {device: below(device, ()) for device in level}
    if any(w is None for w in walks.values()):
        return
    for device, found in walks.items():
        for other in found or ():
            if other in level:
                assert level[device] < level[other]
