"""Clock, processors and memory: asked for by the host, seen by QEMU and by the guest's kernel."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.vm.harness.hostagent import Refused
from tests.vm.harness.machine import Guest
from tests.vm.harness.seen import Seen

YEAR_2030 = 1893456000
PLUGGED = 256 << 20  # bytes


def now(guest: Guest) -> float:
    return guest.control.ping()["time"]


def test_set_time(guest: Guest, seen: Seen) -> None:
    """guest-set-time: the system's clock and the clock chip, which tells QEMU"""
    with guest.agent() as agent:
        guest.qmp.seen()
        agent.call("guest-set-time", time=YEAR_2030 * 10**9)
        off = now(guest) - YEAR_2030
        assert 0 <= off < 20
        event = guest.qmp.wait("RTC_CHANGE", limit=20)
        # The chip is one program's at a time, and the agent gives it back.
        chip = guest.check(
            "for n in 1 2 3 4 5 6 7 8 9; do hwclock --show --utc 2>/dev/null && break; sleep 1; done"
        ).strip()
        assert chip.startswith("2030-01-01")
        assert abs(agent.call("guest-get-time") / 1e9 - now(guest)) < 10
    seen(f"set to 2030: event RTC_CHANGE with offset {event['data']['offset']} s, chip {chip}")


def test_set_time_from_the_chip(guest: Guest, seen: Seen) -> None:
    """guest-set-time without a time: the system's clock is set from the chip"""
    with guest.agent() as agent:
        guest.check("date -s 2001-02-03")
        assert now(guest) < YEAR_2030
        agent.call("guest-set-time")
        off = now(guest) - YEAR_2030
        assert 0 <= off < 600
        agent.call("guest-set-time", time=int(time.time() * 1e9))
    seen("a clock of 2001 is of 2030 again, as the chip is")


def test_processors_off_and_on(guest: Guest, seen: Seen) -> None:
    """guest-set-vcpus: a processor off line and on line"""
    with guest.agent() as agent:
        cpus = {c["logical-id"]: c for c in agent.call("guest-get-vcpus")}
        assert sorted(cpus) == [0, 1]
        assert agent.call("guest-set-vcpus", vcpus=[{"logical-id": 1, "online": False}]) == 1
        assert guest.check("nproc").strip() == "1"
        assert not next(c["online"] for c in agent.call("guest-get-vcpus") if c["logical-id"] == 1)
        assert agent.call("guest-set-vcpus", vcpus=[{"logical-id": 1, "online": True}]) == 1
        assert guest.check("nproc").strip() == "2"
        with pytest.raises(Refused) as refusal:
            agent.call("guest-set-vcpus", vcpus=[{"logical-id": 0, "online": False}])
    seen(f"nproc 2, 1, 2; processor 0: {refusal.value.desc}")


def test_memory_blocks(guest: Guest, seen: Seen) -> None:
    """Memory that QEMU plugs: blocks off line and on line by guest-set-memory-blocks"""
    with guest.agent() as agent:
        size = agent.call("guest-get-memory-block-info")["size"]
        before = {b["phys-index"] for b in agent.call("guest-get-memory-blocks")}
        guest.plug_memory(PLUGGED >> 20)
        end = time.monotonic() + 30
        new: list[dict[str, Any]] = []
        while len(new) * size < PLUGGED:
            assert time.monotonic() < end
            time.sleep(0.2)
            new = [b for b in agent.call("guest-get-memory-blocks") if b["phys-index"] not in before]
        indexes = [b["phys-index"] for b in new]

        def ask(online: bool) -> list[str]:
            blocks = [{"phys-index": n, "online": online} for n in indexes]
            return [r["response"] for r in agent.call("guest-set-memory-blocks", 130.0, mem_blks=blocks)]

        # Movable, so that the kernel can empty a block when it is asked to; in another one a page of the kernel's own may sit for good.
        for n in indexes:
            guest.check(f"cd /sys/devices/system/memory/memory{n} && echo offline > state; echo online_movable > state")
        total = memory_total(guest)
        assert ask(False) == ["success"] * len(indexes)
        assert total - memory_total(guest) > 200 * 1024
        states = {b["phys-index"]: b["online"] for b in agent.call("guest-get-memory-blocks")}
        assert not any(states[n] for n in indexes)
        assert ask(True) == ["success"] * len(indexes)
        assert memory_total(guest) == total
        states = {b["phys-index"]: b["online"] for b in agent.call("guest-get-memory-blocks")}
        assert all(states[n] for n in indexes)
    seen(f"{len(indexes)} blocks of {size >> 20} MiB: off line, -256 MiB; on line, +256 MiB")


def test_a_plugged_processor(guest: Guest, seen: Seen) -> None:
    """A processor that QEMU plugs comes off line, and on line by guest-set-vcpus"""
    # The last: a guest with more processors than the machine is too slow under the translator to take memory off line.
    with guest.agent() as agent:
        guest.qmp.call("query-status")
        guest.plug_cpu()
        end = time.monotonic() + 30
        while len(cpus := agent.call("guest-get-vcpus")) < 3:
            assert time.monotonic() < end
            time.sleep(0.2)
        new = next(c for c in cpus if c["logical-id"] == 2)
        if not new["online"]:
            assert agent.call("guest-set-vcpus", vcpus=[{"logical-id": 2, "online": True}]) == 1
        assert guest.check("nproc").strip() == "3"
    seen(f"plugged: online {new['online']}; nproc 3 after")


def memory_total(guest: Guest) -> int:
    return int(guest.check("grep MemTotal /proc/meminfo").split()[1])
