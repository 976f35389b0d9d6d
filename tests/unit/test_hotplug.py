"""Hot-plug handlers on a made-up sysfs; the expected answers are qemu-ga 7.2.22's on the same tree, except where named."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from protocol.errors import CommandError
from tests.support.handlers import BareContext
from workers.hotplug import BLOCK_CEILING, CPU_CEILING, guest_set_memory_blocks, guest_set_vcpus

CPU = "sys/devices/system/cpu"
MEMORY = "sys/devices/system/memory"


def put(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def ctx(tmp_path: Path) -> BareContext:
    (tmp_path / CPU / "cpu0").mkdir(parents=True)
    put(tmp_path / CPU / "cpu1/online", "1\n")
    put(tmp_path / CPU / "cpu2/online", "0\n")
    (tmp_path / CPU / "cpu3/online").mkdir(parents=True)
    put(tmp_path / CPU / "cpu4/online", "")
    (tmp_path / CPU / "cpu5").mkdir()
    (tmp_path / CPU / "cpu5/online").symlink_to("/dev/full")
    put(tmp_path / MEMORY / "memory1/state", "online\n")
    (tmp_path / MEMORY / "memory2").mkdir()
    (tmp_path / MEMORY / "memory3/state").mkdir(parents=True)
    put(tmp_path / MEMORY / "memory4/state", "offline\n")
    (tmp_path / MEMORY / "memory5").mkdir()
    (tmp_path / MEMORY / "memory5/state").symlink_to("/dev/full")
    return BareContext(tmp_path)


def vcpus(*pairs: tuple[int, bool]) -> list[dict[str, Any]]:
    return [{"logical-id": number, "online": online} for number, online in pairs]


def blocks(*pairs: tuple[int, bool]) -> list[dict[str, Any]]:
    return [{"phys-index": number, "online": online} for number, online in pairs]


def content(ctx: BareContext, path: str) -> str:
    return (Path(ctx.root) / path).read_text()


def test_processors_go_off_and_on_line(ctx: BareContext) -> None:
    assert guest_set_vcpus(ctx, vcpus((1, False), (2, True))) == 2
    assert content(ctx, f"{CPU}/cpu1/online")[0] == "0"
    assert content(ctx, f"{CPU}/cpu2/online")[0] == "1"


def test_can_offline_is_ignored(ctx: BareContext) -> None:
    assert guest_set_vcpus(ctx, [{"logical-id": 1, "online": False, "can-offline": False}]) == 1


def test_same_state_writes_nothing_but_opens_for_writing(ctx: BareContext) -> None:
    file = Path(ctx.root) / CPU / "cpu1/online"
    before = file.stat().st_mtime_ns
    assert guest_set_vcpus(ctx, vcpus((1, True))) == 1
    assert file.stat().st_mtime_ns == before
    assert file.read_text() == "1\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="another user's read-only file")
def test_a_processor_that_may_not_be_written_fails_even_when_nothing_is_to_be_done(ctx: BareContext) -> None:
    file = Path(ctx.root) / CPU / "cpu1/online"
    file.chmod(0o444)
    # In a child without capabilities: root with CAP_DAC_OVERRIDE may write anything.
    from tests.support.handlers import confined

    os.chown(file, 65534, 65534)
    answer = confined("hotplug", lambda: guest_set_vcpus(ctx, vcpus((1, True))), root=ctx.root)
    assert isinstance(answer, CommandError)
    assert answer.desc == 'open("/sys/devices/system/cpu/cpu1//online"): Permission denied'


@pytest.mark.skipif(os.geteuid() != 0, reason="needs uid 0")
def test_uid_0_without_any_capability_is_enough(ctx: BareContext) -> None:
    from tests.support.handlers import confined

    assert confined("hotplug", lambda: guest_set_vcpus(ctx, vcpus((1, False))), root=ctx.root) == 1
    assert content(ctx, f"{CPU}/cpu1/online")[0] == "0"


@pytest.mark.parametrize(
    ("number", "online", "words"),
    [
        (0, False, "logical processor #0 can't be offlined"),
        (3, True, 'open("/sys/devices/system/cpu/cpu3//online"): Is a directory'),
        (4, True, 'pread("/sys/devices/system/cpu/cpu4//online"): unexpected EOF'),
        (5, False, 'pwrite("/sys/devices/system/cpu/cpu5//online"): No space left on device'),
        (9999, True, 'open("/sys/devices/system/cpu/cpu9999/"): No such file or directory'),
        (-5, True, 'open("/sys/devices/system/cpu/cpu-5/"): No such file or directory'),
    ],
)
def test_processor_errors_have_the_peers_words(ctx: BareContext, number: int, online: bool, words: str) -> None:
    with pytest.raises(CommandError) as e:
        guest_set_vcpus(ctx, vcpus((number, online)))
    assert e.value.desc == words


@pytest.mark.parametrize("number", [-1, -(1 << 63), CPU_CEILING, (1 << 63) - 1])
def test_processor_numbers_out_of_range_touch_no_path(ctx: BareContext, number: int) -> None:
    put(Path(ctx.root) / CPU / f"cpu{number}/online", "1\n")
    with pytest.raises(CommandError, match="No such file or directory"):
        guest_set_vcpus(ctx, vcpus((number, False)))
    assert content(ctx, f"{CPU}/cpu{number}/online") == "1\n"


def test_a_later_failure_ends_the_list_and_tells_how_many_were_done(ctx: BareContext) -> None:
    assert guest_set_vcpus(ctx, vcpus((1, False), (99, True), (2, True))) == 1
    assert content(ctx, f"{CPU}/cpu2/online")[0] == "0"
    assert any("cpu99" in line for line in ctx.log.lines)


def test_empty_lists_do_nothing(ctx: BareContext) -> None:
    assert guest_set_vcpus(ctx, []) == 0
    assert guest_set_memory_blocks(ctx, []) == []


def test_each_memory_block_has_a_result_of_its_own(ctx: BareContext) -> None:
    got = guest_set_memory_blocks(
        ctx, blocks((1, True), (2, True), (3, True), (4, True), (5, True), (1, False), (-1, True), (77, True))
    )
    assert got == [
        {"phys-index": 1, "response": "success"},
        # qemu-ga 7.2 says success here, with error-code 2
        {"phys-index": 2, "response": "operation-not-supported", "error-code": 2},
        {"phys-index": 3, "response": "operation-failed", "error-code": 21},
        {"phys-index": 4, "response": "success"},
        {"phys-index": 5, "response": "operation-failed", "error-code": 28},
        {"phys-index": 1, "response": "success"},
        {"phys-index": (1 << 64) - 1, "response": "not-found", "error-code": 2},
        {"phys-index": 77, "response": "not-found", "error-code": 2},
    ]
    assert content(ctx, f"{MEMORY}/memory1/state").startswith("offline")
    assert content(ctx, f"{MEMORY}/memory4/state").startswith("online")


def test_memory_block_in_the_wanted_state_is_not_written(ctx: BareContext) -> None:
    file = Path(ctx.root) / MEMORY / "memory1/state"
    before = file.stat().st_mtime_ns
    assert guest_set_memory_blocks(ctx, blocks((1, True))) == [{"phys-index": 1, "response": "success"}]
    assert file.stat().st_mtime_ns == before


@pytest.mark.parametrize("number", [BLOCK_CEILING, (1 << 64) - 1])
def test_memory_block_numbers_out_of_range_touch_no_path(ctx: BareContext, number: int) -> None:
    put(Path(ctx.root) / MEMORY / f"memory{number}/state", "online\n")
    [got] = guest_set_memory_blocks(ctx, blocks((number, False)))
    assert got == {"phys-index": number, "response": "not-found", "error-code": 2}
    assert content(ctx, f"{MEMORY}/memory{number}/state") == "online\n"


def test_a_kernel_without_memory_blocks_supports_none(tmp_path: Path) -> None:
    got = guest_set_memory_blocks(BareContext(tmp_path), blocks((1, True), (2, False)))
    assert got == [{"phys-index": n, "response": "operation-not-supported", "error-code": 2} for n in (1, 2)]


def test_no_descriptor_is_left_open(ctx: BareContext) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        guest_set_vcpus(ctx, vcpus((1, False), (1, True), (3, True)))
        guest_set_memory_blocks(ctx, blocks((1, True), (2, True), (3, True), (5, True), (77, True)))
    assert len(os.listdir("/proc/self/fd")) == before
